// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Names of system calls, for callers of either word size: each has a table of its own.

use std::borrow::Cow;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod i386;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
use aarch64::NAMES as NATIVE;
#[cfg(target_arch = "aarch64")]
use arm::NAMES as COMPAT;
#[cfg(target_arch = "x86_64")]
use i386::NAMES as COMPAT;
#[cfg(target_arch = "x86_64")]
use x86_64::NAMES as NATIVE;

/// Whose numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Abi {
    /// 64-bit callers of this machine.
    Native,
    /// 32-bit callers on it.
    Compat,
}

impl Abi {
    /// Both, native first.
    pub const ALL: [Self; 2] = [Self::Native, Self::Compat];

    /// Its name: `x86_64`, `i386`, `aarch64`, `arm`.
    pub fn name(self) -> &'static str {
        match (self, cfg!(target_arch = "aarch64")) {
            (Self::Native, false) => "x86_64",
            (Self::Compat, false) => "i386",
            (Self::Native, true) => "aarch64",
            (Self::Compat, true) => "arm",
        }
    }

    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Native => &NATIVE,
            Self::Compat => &COMPAT,
        }
    }

    /// The name of a number.
    pub fn call(self, number: i32) -> Option<&'static str> {
        let name = self.names().get(usize::try_from(number).ok()?).copied()?;
        (!name.is_empty()).then_some(name)
    }

    /// The number of a name.
    pub fn number(self, name: &str) -> Option<i32> {
        let at = self.names().iter().position(|known| !name.is_empty() && *known == name)?;
        i32::try_from(at).ok()
    }

    /// Every call that is known, by number.
    pub fn calls(self) -> impl Iterator<Item = (i32, &'static str)> {
        (0..).zip(self.names()).map(|(n, name)| (n, *name)).filter(|(_, name)| !name.is_empty())
    }

    /// The name of a number as text has it: with the ABI where that is not the machine's own.
    pub fn shown(self, number: i32) -> Cow<'static, str> {
        match (self, self.call(number)) {
            (Self::Native, Some(name)) => name.into(),
            (Self::Native, None) => format!("[unknown: {number}]").into(),
            (Self::Compat, Some(name)) => format!("{name} ({})", self.name()).into(),
            (Self::Compat, None) => format!("[unknown: {number}] ({})", self.name()).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc;

    #[test]
    fn names_are_those_of_this_machine() {
        for (number, name) in [
            (libc::SYS_read, "read"),
            (libc::SYS_getppid, "getppid"),
            (libc::SYS_openat2, "openat2"),
            (libc::SYS_set_mempolicy_home_node, "set_mempolicy_home_node"),
        ] {
            let number = i32::try_from(number).expect("small");
            assert_eq!(Abi::Native.call(number), Some(name));
            assert_eq!(Abi::Native.number(name), Some(number));
        }
    }

    #[test]
    fn each_word_size_has_its_own() {
        assert_eq!((Abi::Compat.call(1), Abi::Compat.call(3)), (Some("exit"), Some("read")));
        assert_eq!(Abi::Compat.shown(3), format!("read ({})", Abi::Compat.name()));
        // From 403 on all have the same numbers.
        for abi in Abi::ALL {
            assert_eq!((abi.call(437), abi.call(462)), (Some("openat2"), Some("mseal")));
            assert_eq!((abi.call(-1), abi.call(100_000)), (None, None));
            assert_eq!((abi.number("no_such_call"), abi.number("")), (None, None));
        }
        assert_eq!(Abi::Native.shown(4000), "[unknown: 4000]");
    }

    #[test]
    fn no_name_has_two_numbers() {
        for abi in Abi::ALL {
            let mut names: Vec<&str> = abi.calls().map(|(_, name)| name).collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all, "{}", abi.name());
        }
    }
}
