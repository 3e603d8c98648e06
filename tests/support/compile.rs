// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Programs of the tests' own, made with a compiler.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// Makes `directory/name` of this source with these options; `None` where there is no such
/// compiler.
pub fn compile(
    compiler: &str,
    directory: &Path,
    name: &str,
    source: &str,
    options: &[&str],
) -> Option<PathBuf> {
    let suffix = if compiler.ends_with("++") { "cc" } else { "c" };
    let (file, program) = (directory.join(format!("{name}.{suffix}")), directory.join(name));
    fs::write(&file, source).expect("source");
    let mut command = Command::new(compiler);
    command.arg("-o").arg(&program).arg(&file).args(options);
    let built = command.output().ok()?;
    assert!(built.status.success(), "{command:?}: {}", String::from_utf8_lossy(&built.stderr));
    Some(program)
}
