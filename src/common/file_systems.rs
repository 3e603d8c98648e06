// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! File systems by name, the functions that do their operations, and the ways to hook them
//! (`bpf/fs_ops.h`).

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;

use crate::cli::Common;
use crate::error::usage;
use crate::tool::Way;

/// A file system.
#[derive(Debug)]
pub struct FileSystem {
    /// Its name.
    pub name: &'static str,
    /// What it is in, where it is not part of the kernel proper.
    module: &'static str,
    read: &'static str,
    write: &'static str,
    open: &'static str,
    fsync: &'static str,
    getattr: Option<&'static str>,
    /// A second function that opens files, and its module.
    open_too: Option<(&'static str, &'static str)>,
    /// Whether it commits.
    commits: bool,
}

const BASE: FileSystem = FileSystem {
    name: "",
    module: "",
    read: "",
    write: "",
    open: "",
    fsync: "",
    getattr: None,
    open_too: None,
    commits: false,
};

static ALL: [FileSystem; 8] = [
    FileSystem {
        name: "btrfs",
        module: "btrfs",
        read: "btrfs_file_read_iter",
        write: "btrfs_file_write_iter",
        open: "btrfs_file_open",
        fsync: "btrfs_sync_file",
        getattr: Some("btrfs_getattr"),
        ..BASE
    },
    FileSystem {
        name: "ext4",
        module: "ext4",
        read: "ext4_file_read_iter",
        write: "ext4_file_write_iter",
        open: "ext4_file_open",
        fsync: "ext4_sync_file",
        getattr: Some("ext4_file_getattr"),
        ..BASE
    },
    FileSystem {
        name: "fuse",
        module: "fuse",
        read: "fuse_file_read_iter",
        write: "fuse_file_write_iter",
        open: "fuse_open",
        fsync: "fuse_fsync",
        getattr: Some("fuse_getattr"),
        ..BASE
    },
    FileSystem {
        name: "nfs",
        module: "nfs",
        read: "nfs_file_read",
        write: "nfs_file_write",
        open: "nfs_file_open",
        fsync: "nfs_file_fsync",
        getattr: Some("nfs_getattr"),
        open_too: Some(("nfs4_file_open", "nfsv4")),
        commits: true,
    },
    FileSystem {
        name: "xfs",
        module: "xfs",
        read: "xfs_file_read_iter",
        write: "xfs_file_write_iter",
        open: "xfs_file_open",
        fsync: "xfs_file_fsync",
        getattr: Some("xfs_vn_getattr"),
        ..BASE
    },
    FileSystem {
        name: "f2fs",
        module: "f2fs",
        read: "f2fs_file_read_iter",
        write: "f2fs_file_write_iter",
        open: "f2fs_file_open",
        fsync: "f2fs_sync_file",
        getattr: Some("f2fs_getattr"),
        ..BASE
    },
    FileSystem {
        name: "bcachefs",
        module: "bcachefs",
        read: "bch2_read_iter",
        write: "bch2_write_iter",
        open: "bch2_open",
        fsync: "bch2_fsync",
        getattr: Some("bch2_getattr"),
        ..BASE
    },
    FileSystem {
        name: "zfs",
        module: "zfs",
        read: "zpl_iter_read",
        write: "zpl_iter_write",
        open: "zpl_open",
        fsync: "zpl_fsync",
        ..BASE
    },
];

/// An operation, as `enum fs_operation` of `bpf/fs_ops.h` numbers it: word and letter.
pub const OPERATIONS: [(&str, &str); 6] = [
    ("read", "R"),
    ("write", "W"),
    ("open", "O"),
    ("fsync", "F"),
    ("getattr", "G"),
    ("commit", "C"),
];

/// Word and letter of an operation.
pub fn operation(number: u32) -> (&'static str, &'static str) {
    let known = usize::try_from(number).ok().and_then(|number| OPERATIONS.get(number));
    known.copied().unwrap_or(("?", "?"))
}

/// Asks for a file system, unless what is saved is only shown.
///
/// # Errors
/// A usage error.
pub fn check(chosen: Option<&FileSystem>, common: &Common) -> Result<()> {
    if chosen.is_some() || common.from.is_some() {
        return Ok(());
    }
    let names: Vec<&str> = ALL.iter().map(|fs| fs.name).collect();
    Err(usage(format!("which file system? --type takes {}", names.join(", "))))
}

/// Parses the name of a file system on the command line.
pub fn parser() -> impl TypedValueParser<Value = &'static FileSystem> {
    PossibleValuesParser::new(ALL.iter().map(|fs| fs.name)).map(|name| {
        // One of those that were just offered.
        ALL.iter().find(|fs| fs.name == name).unwrap_or(&ALL[0])
    })
}

/// Aliases of a tool for each file system: `ext4WHAT`.
#[macro_export]
macro_rules! file_system_aliases {
    ($what:literal) => {
        &[
            $crate::file_system_aliases!("btrfs", $what),
            $crate::file_system_aliases!("ext4", $what),
            $crate::file_system_aliases!("fuse", $what),
            $crate::file_system_aliases!("nfs", $what),
            $crate::file_system_aliases!("xfs", $what),
            $crate::file_system_aliases!("f2fs", $what),
            $crate::file_system_aliases!("bcachefs", $what),
            $crate::file_system_aliases!("zfs", $what),
        ]
    };
    ($name:literal, $what:literal) => {
        $crate::tool::Alias { name: concat!($name, $what), args: &["--type", $name] }
    };
}

/// Where none was chosen: as an example, for what is asked before one is.
const EXAMPLE: &str = "ext4";
/// The arguments that choose it.
pub const NEEDS: &[&str] = &["-t", EXAMPLE];

/// The programs of a role in `bpf/fs_ops.h`, the end before the beginning. In the way fexit each has
/// a twin.
macro_rules! role {
    ($role:literal, "fexit") => {
        &[
            concat!($role, "_exit__fexit"),
            concat!($role, "_exit_twin__fexit"),
            concat!($role, "_enter__fexit"),
            concat!($role, "_enter_twin__fexit"),
        ]
    };
    ($role:literal, "kprobe") => {
        &[concat!($role, "_exit__kprobe"), concat!($role, "_enter__kprobe")]
    };
}

/// The programs at a function that submitters of I/O want to have called at its end.
macro_rules! completion {
    ($role:literal, "fexit") => {
        &[concat!($role, "__fexit"), concat!($role, "_twin__fexit")]
    };
    ($role:literal, "kprobe") => {
        &[concat!($role, "__kprobe")]
    };
}

/// Pairs of twins among programs in their order.
fn twins(programs: &[&'static str]) -> Vec<(&'static str, &'static str)> {
    let pairs = programs.windows(2).map(|pair| (pair[0], pair[1]));
    pairs.filter(|(first, second)| first.replace("__", "_twin__") == **second).collect()
}

/// The programs of a way: those of each role that has a function, and those at ends of I/O.
macro_rules! way {
    ($fs:expr, $way:tt) => {{
        let fs = $fs;
        let mut way = Way::new($way, &[]);
        let mut add = |role: &'static [&'static str], (function, module)| {
            let grouped = way.clone().group(role).twins(&twins(role));
            way = role.iter().fold(grouped, |way, program| way.aim(program, function, module));
        };
        add(role!("read", $way), (fs.read, fs.module));
        add(role!("write", $way), (fs.write, fs.module));
        add(role!("open", $way), (fs.open, fs.module));
        add(role!("fsync", $way), (fs.fsync, fs.module));
        if let Some(function) = fs.getattr {
            add(role!("getattr", $way), (function, fs.module));
        }
        if let Some(function) = fs.open_too {
            add(role!("open_too", $way), function);
        }
        if fs.commits {
            way = way.optional(&["commit_done", "commit_begin"]);
        }
        let ends: [&'static [&'static str]; 2] =
            [completion!("aio", $way), completion!("uring", $way)];
        for programs in ends {
            way = way.optional(programs).twins(&twins(programs));
        }
        let of_loop: &'static [&'static str] = completion!("loop", $way);
        way = way.optional(of_loop).twins(&twins(of_loop));
        of_loop.iter().fold(way, |way, program| way.aim(program, "lo_rw_aio_complete", "loop"))
    }};
}

/// The ways to hook the operations of a file system, best first. Each function is hooked if it is
/// there.
pub fn ways(fs: Option<&FileSystem>) -> Vec<Way> {
    let fs = fs.or_else(|| ALL.iter().find(|fs| fs.name == EXAMPLE)).unwrap_or(&BASE);
    vec![
        // What is under way is kept with the thread (task-local storage), which programs of this
        // kind can do since a10787e6d58c "bpf: Enable task local storage for tracing programs" (5.12).
        way!(fs, "fexit").only_where("task_struct", "bpf_storage"),
        way!(fs, "kprobe"),
    ]
}

/// A path from its names, which come leaf first, each with its NUL; `cut` where the upper ones are
/// missing. `None` when nothing of it could be read.
pub fn path_of(names: &[u8], cut: bool) -> Option<Vec<u8>> {
    let names: Vec<&[u8]> = names.split(|b| *b == 0).filter(|name| !name.is_empty()).collect();
    if names.is_empty() {
        return (!cut).then(|| b"/".to_vec());
    }
    let mut path = if cut { b"...".to_vec() } else { Vec::new() };
    for name in names.into_iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_of_every_file_system_is_aimed() {
        for fs in &ALL {
            for way in ways(Some(fs)) {
                assert!(way.groups.len() >= 4, "{}", fs.name);
                // Two pairs an operation, one an end of I/O.
                let pairs = if way.name == "fexit" { 2 * way.groups.len() + 3 } else { 0 };
                assert_eq!(way.twins.len(), pairs, "{}", fs.name);
                for program in way.groups.iter().flatten() {
                    let aim = way.aims.iter().find(|aim| aim.program == *program);
                    assert!(aim.is_some_and(|aim| !aim.function.is_empty()), "{program}");
                }
            }
        }
    }

    #[test]
    fn paths_are_put_together() {
        assert_eq!(path_of(b"c\0b\0a\0", false).as_deref(), Some(b"/a/b/c".as_slice()));
        assert_eq!(path_of(b"c\0b\0", true).as_deref(), Some(b".../b/c".as_slice()));
        assert_eq!(path_of(b"", false).as_deref(), Some(b"/".as_slice()));
        assert_eq!(path_of(b"", true), None);
    }
}
