// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Names of C++ and Rust functions as people write them.
//!
//! A few hundred bytes can be made that demangle to gigabytes, so it is given up at a limit.

use std::fmt;
use std::fmt::Write as _;

use cpp_demangle::DemangleOptions;
use cpp_demangle::ParseOptions;
use cpp_demangle::Symbol;

/// The longest name that is made.
const LONGEST: usize = 4096;
/// How deeply a name may be nested.
const DEPTH: u32 = 160;

#[derive(Default)]
struct Limited {
    text: String,
}

impl fmt::Write for Limited {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.text.len() + text.len() > LONGEST {
            return Err(fmt::Error);
        }
        self.text.push_str(text);
        Ok(())
    }
}

/// The name as it was written, or `name` itself when it is not mangled.
pub fn demangle(name: &str) -> String {
    // An ELF file can hold a name of any length.
    let end = (0..=LONGEST.min(name.len())).rev().find(|end| name.is_char_boundary(*end));
    let name = &name[..end.unwrap_or(0)];
    let mut out = Limited::default();
    if let Ok(rust) = rustc_demangle::try_demangle(name)
        && write!(out, "{rust:#}").is_ok()
    {
        return out.text;
    }
    if name.starts_with("_Z") {
        let mut out = Limited::default();
        let parse = ParseOptions::default().recursion_limit(DEPTH);
        let show = DemangleOptions::default().recursion_limit(DEPTH);
        if let Ok(symbol) = Symbol::new_with_options(name, &parse)
            && symbol.structured_demangle(&mut out, &show).is_ok()
        {
            return out.text;
        }
    }
    name.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(demangle("main"), "main");
        assert_eq!(
            demangle("_ZN4core9panicking9panic_fmt17h5f1a6fd39197ad62E"),
            "core::panicking::panic_fmt"
        );
        assert_eq!(demangle("_RNvNtC7mycrate3foo3bar"), "mycrate::foo::bar");
        assert_eq!(demangle("_ZN5space3fooEibc"), "space::foo(int, bool, char)");
        assert_eq!(demangle("_Z"), "_Z");
    }

    /// Each argument doubles the one before it.
    #[test]
    fn a_name_that_explodes_is_left_alone() {
        let mut bomb = "_Z1f1AIS_S_E".to_string();
        for _ in 0..60 {
            bomb.push_str("IS0_S0_E");
        }
        assert!(demangle(&bomb).len() <= LONGEST);
        assert!(demangle(&"é".repeat(LONGEST)).len() <= LONGEST);
        assert!(demangle(&format!("_Z{}", "N".repeat(1 << 20))).len() <= LONGEST);
    }
}
