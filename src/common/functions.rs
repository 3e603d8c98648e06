// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Functions by name, wildcard or regular expression: those of the kernel that can be probed, and
//! those of programs and libraries.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use regex_lite::Regex;

use crate::error::usage;
use crate::kretprobe;
use crate::symbols;
use crate::uprobe;

/// Which functions are meant.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// Those of this name.
    Name(String),
    /// Those whose whole name matches.
    Regex(Regex),
}

impl Pattern {
    /// A name or wildcards (`*`, `?`), or with `is_regex` a regular expression.
    ///
    /// # Errors
    /// A usage error when it is no regular expression, or empty.
    pub fn new(text: &str, is_regex: bool) -> Result<Self> {
        if text.is_empty() {
            return Err(usage("the name of a function is missing"));
        }
        let expression = match (is_regex, text.contains(['*', '?'])) {
            (false, false) => return Ok(Self::Name(text.into())),
            (false, true) => regex_lite::escape(text).replace("\\*", ".*").replace("\\?", "."),
            (true, _) => text.into(),
        };
        match Regex::new(&format!("^(?:{expression})$")) {
            Ok(regex) => Ok(Self::Regex(regex)),
            Err(error) => {
                let error = error.to_string().replace('\n', " ");
                Err(usage(format!("'{text}' is not a regular expression: {error}")))
            }
        }
    }

    /// Whether it can only be one name.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Regex(_) => None,
        }
    }

    /// Whether it means this function.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(wanted) => wanted == name,
            Self::Regex(regex) => regex.is_match(name),
        }
    }
}

/// What the kernel runs while it serves a probe or a program: to probe it may bring the machine
/// down, or at least loses calls.
const TRACING: [&str; 27] = [
    "__bpf_",
    "__htab_",
    "__rcu_",
    "__srcu_",
    "_raw_read_",
    "_raw_spin_",
    "_raw_write_",
    "alloc_htab_",
    "arch_ftrace_",
    "arch_rethook_",
    "array_map_",
    "bpf_",
    "fprobe_",
    "ftrace_",
    "function_graph_",
    "htab_",
    "irqentry_",
    "kprobe_",
    "kretprobe_",
    "lock_is_held",
    "native_queued_spin_",
    "queued_spin_",
    "rcu_",
    "rethook_",
    "stack_trace_",
    "text_poke",
    "trace_",
];

/// Whether the kernel needs this function of its own for tracing, so that it is better not traced.
pub fn serves_tracing(name: &str) -> bool {
    TRACING.iter().any(|start| name.starts_with(start))
}

/// Functions of the kernel.
#[derive(Clone, Debug, Default)]
pub struct OfKernel {
    /// Their names, each once, in order.
    pub names: Vec<String>,
    /// How many were left out because several functions have the same name.
    pub ambiguous: usize,
    /// How many were left out because tracing needs them itself.
    pub denied: usize,
}

/// The functions of the kernel that match and can be probed, as far as it says so: from tracefs, or
/// where that is not, all that have a symbol.
///
/// # Errors
/// Fails when neither can be read.
pub fn of_kernel(pattern: &Pattern) -> Result<OfKernel> {
    let listed = kretprobe::mounted()
        .and_then(|path| fs::read_to_string(path.join("available_filter_functions")).ok());
    let mut names: Vec<String> = match listed {
        Some(text) => {
            let name = |line: &str| Some(line.split_whitespace().next()?.to_string());
            text.lines().filter_map(name).filter(|name| pattern.matches(name)).collect()
        }
        None => {
            let text = fs::read_to_string("/proc/kallsyms").context("/proc/kallsyms")?;
            let names = text.lines().filter_map(symbol).map(|(name, _)| name);
            names.filter(|name| pattern.matches(name)).map(String::from).collect()
        }
    };
    names.sort_unstable();
    let mut found = OfKernel::default();
    for same in names.chunk_by(|a, b| a == b) {
        if serves_tracing(&same[0]) {
            found.denied += 1;
        } else if same.len() > 1 {
            found.ambiguous += same.len();
        } else {
            found.names.push(same[0].clone());
        }
    }
    Ok(found)
}

/// Name and address of a function, from a line of /proc/kallsyms.
fn symbol(line: &str) -> Option<(&str, u64)> {
    let mut words = line.split_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    matches!(words.next()?, "t" | "T" | "w" | "W").then_some(())?;
    Some((words.next()?, address))
}

/// Where these functions of the kernel begin.
///
/// # Errors
/// Fails where the kernel hides its addresses.
pub fn addresses(names: &[String]) -> Result<HashMap<String, u64>> {
    let wanted: std::collections::HashSet<&str> = names.iter().map(String::as_str).collect();
    let text = fs::read_to_string("/proc/kallsyms").context("/proc/kallsyms")?;
    let found: HashMap<String, u64> = text
        .lines()
        .filter_map(symbol)
        .filter(|(name, _)| wanted.contains(name))
        .map(|(name, address)| (name.to_string(), address))
        .collect();
    if found.values().any(|address| *address == 0) {
        bail!("the kernel hides its addresses (kernel.kptr_restrict)");
    }
    Ok(found)
}

/// A file with functions, in one process or (0) in all.
pub struct Binary {
    /// The file.
    pub file: File,
    /// The process.
    pub pid: u32,
}

/// The file that `name` means (a path, or the name of a library or program), as these processes see
/// it; without processes, as we do. An empty name is the program that a process runs.
///
/// # Errors
/// Fails when there is none.
pub fn binaries(name: &str, pids: &[u32]) -> Result<Vec<Binary>> {
    if pids.is_empty() {
        let file = of_host(name)?;
        return Ok(vec![Binary { file, pid: 0 }]);
    }
    let of = |pid: &u32| Ok(Binary { file: of_process(name, *pid)?, pid: *pid });
    pids.iter().map(of).collect()
}

fn of_process(name: &str, pid: u32) -> Result<File> {
    if name.is_empty() {
        let missing = || format!("the program of process {pid} cannot be opened");
        return symbols::open_executable(pid).with_context(missing);
    }
    if name.contains('/') {
        let missing = || format!("process {pid} sees no file {name}");
        return symbols::open_in_process(pid, Path::new(name)).with_context(missing);
    }
    let maps = fs::read(format!("/proc/{pid}/maps"))
        .with_context(|| format!("what process {pid} has mapped"))?;
    let mapped = symbols::exec_lines(&maps).filter(|line| line.inode != 0).find(|line| {
        let path = line.path.strip_suffix(b" (deleted)").unwrap_or(line.path);
        let base = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
        let base = String::from_utf8_lossy(base);
        base == name || is_library(&base, name)
    });
    mapped
        .and_then(|line| symbols::open_mapped(pid, line.start, line.end))
        .with_context(|| format!("process {pid} has mapped no library or program {name}"))
}

/// Whether a file of this name is the library that `name` means: `c` and `libc` are libc.so.6,
/// libc-2.31.so and libc.musl-x86_64.so.1.
fn is_library(file: &str, name: &str) -> bool {
    let stem = name.strip_prefix("lib").unwrap_or(name);
    let stem = stem.split(".so").next().unwrap_or(stem);
    let Some(rest) = file.strip_prefix("lib").and_then(|rest| rest.strip_prefix(stem)) else {
        return false;
    };
    let versioned =
        rest.strip_prefix('-').is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()));
    file == name
        || (!name.contains(".so") && rest.contains(".so") && (rest.starts_with('.') || versioned))
}

fn of_host(name: &str) -> Result<File> {
    if name.is_empty() {
        return Err(usage("':FUNCTION' means the program of a process: it needs --pid"));
    }
    let open = |path: &Path| -> Result<File> {
        let data = fs::metadata(path).with_context(|| path.display().to_string())?;
        anyhow::ensure!(data.is_file(), "{} is not a file", path.display());
        File::open(path).with_context(|| path.display().to_string())
    };
    if name.contains('/') {
        return open(Path::new(name));
    }
    if let Some(path) = program_of_host(name).or_else(|| library_of_host(name)) {
        return open(&path);
    }
    bail!("there is no program or library {name}")
}

fn program_of_host(name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(path)
            .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    let paths = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&paths).map(|directory| directory.join(name)).find(is_program)
}

/// Whether a name without a path is that of a program in the PATH.
pub fn is_program(name: &str) -> bool {
    program_of_host(name).is_some()
}

/// The library of the highest version.
fn library_of_host(name: &str) -> Option<PathBuf> {
    let arch = env::consts::ARCH;
    let places = [
        format!("/lib/{arch}-linux-gnu"),
        format!("/usr/lib/{arch}-linux-gnu"),
        "/lib64".into(),
        "/usr/lib64".into(),
        "/lib".into(),
        "/usr/lib".into(),
        "/usr/local/lib".into(),
    ];
    places.iter().find_map(|place| {
        let names = fs::read_dir(place).ok()?.flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        // `libc.so` without a version is for linking, and often a text.
        let best = names
            .filter(|file| is_library(file, name))
            .max_by_key(|file| (!file.ends_with(".so"), file.clone()))?;
        Some(Path::new(place).join(best))
    })
}

/// A function in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfFile {
    /// What it is called, as it was asked for.
    pub name: String,
    /// Where it begins in the file.
    pub offset: u64,
}

/// The functions of a file that match, each place once: by the names of their symbols, or by those
/// that people write (C++, Rust), with or without the types of the arguments.
///
/// # Errors
/// Fails when the file is no program or library of this machine.
pub fn of_file(file: &File, pattern: &Pattern) -> Result<Vec<OfFile>> {
    let mut found: Vec<OfFile> = Vec::new();
    let mut add = |symbol: &[u8], offset: u64| {
        let Ok(symbol) = std::str::from_utf8(symbol) else { return };
        let symbol = symbol.split('@').next().unwrap_or(symbol);
        let name = if pattern.matches(symbol) {
            Some(symbol.to_string())
        } else if symbol.starts_with("_Z") || symbol.starts_with("_R") {
            let whole = symbols::demangle(symbol);
            let bare = whole.split('(').next().unwrap_or(&whole).to_string();
            if pattern.matches(&bare) {
                Some(bare)
            } else {
                pattern.matches(&whole).then_some(whole)
            }
        } else {
            None
        };
        if let Some(name) = name
            && !found.iter().any(|known| known.offset == offset)
        {
            found.push(OfFile { name, offset });
        }
    };
    uprobe::for_each_function(file, &mut add)
        .context("it is no program or library of this machine")?;
    found.sort_by(|a, b| (&a.name, a.offset).cmp(&(&b.name, b.offset)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let matches = |text: &str, is_regex, name: &str| {
            Pattern::new(text, is_regex).expect("a pattern").matches(name)
        };
        assert!(matches("vfs_read", false, "vfs_read") && !matches("vfs_read", false, "vfs_readv"));
        assert!(matches("vfs_*", false, "vfs_read") && !matches("vfs_*", false, "xvfs_read"));
        assert!(matches("vfs_rea?", false, "vfs_read") && !matches("vfs_rea?", false, "vfs_ready"));
        assert!(matches("a.b*", false, "a.bc") && !matches("a.b*", false, "axbc"));
        assert!(matches("vfs_(read|write)", true, "vfs_write"));
        assert!(!matches("vfs_(read|write)", true, "vfs_writev"));
        assert!(Pattern::new("(", true).is_err() && Pattern::new("", false).is_err());
    }

    #[test]
    fn libraries_have_many_names() {
        for file in ["libc.so.6", "libc-2.31.so", "libc.musl-x86_64.so.1"] {
            assert!(is_library(file, "c") && is_library(file, "libc"), "{file}");
        }
        assert!(is_library("libc.so.6", "libc.so.6"));
        for file in ["libcap.so.2", "libc-client.so.7", "libc.a", "c", "libc++.so.1"] {
            assert!(!is_library(file, "c"), "{file}");
        }
        assert!(is_library("libstdc++.so.6", "stdc++"));
    }

    #[test]
    fn lines_of_kallsyms() {
        assert_eq!(symbol("ffffffff81000100 t first"), Some(("first", 0xffff_ffff_8100_0100)));
        assert_eq!(symbol("ffffffff81000100 D data"), None);
        assert_eq!(symbol("0 T work\t[mod_a]"), Some(("work", 0)));
    }

    #[test]
    fn functions_of_ourselves() {
        let own = File::open("/proc/self/exe").expect("ourselves");
        let name = "bpfscope::functions::tests::functions_of_ourselves";
        let pattern = Pattern::new(name, false).expect("a name");
        let found = of_file(&own, &pattern).expect("ELF");
        assert!(found.iter().any(|function| function.name == name), "{found:?}");
        let none = Pattern::new("no_such_function", false).expect("a name");
        assert_eq!(of_file(&own, &none).expect("ELF"), []);
        assert!(of_file(&File::open("/proc/version").expect("file"), &none).is_err());
    }
}
