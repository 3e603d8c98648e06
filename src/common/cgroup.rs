// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Cgroups of the v2 hierarchy: where it is, and from a path to the id that the kernel side tests.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// A mount of the cgroup v2 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Which directory of the hierarchy is mounted there, as the caller's namespace names it.
    pub root: String,
}

/// Finds where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on hosts that
/// also have v1 hierarchies.
pub fn mount() -> Option<Mount> {
    parse_mountinfo(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// proc_pid_mountinfo(5): id parent major:minor root point options … - type source options
fn parse_mountinfo(text: &str) -> Option<Mount> {
    text.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        if right.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut words = left.split(' ').skip(3);
        let root = unescape(words.next()?);
        Some(Mount { point: PathBuf::from(unescape(words.next()?)), root })
    })
}

/// The kernel writes blanks in mount points as `\040` and the like.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let code = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// One cgroup that a filter names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    /// Its id: the inode number of its directory (64-bit kernels, since 5.5).
    pub id: u64,
    /// How many levels it lies below the root of the hierarchy; [`ANY_LEVEL`] where that cannot
    /// be known.
    pub level: u32,
}

/// `FILTER_ANY_LEVEL` of `bpf/filter.h`.
pub const ANY_LEVEL: u32 = u32::MAX;

/// Whether the tool is in a cgroup namespace, which hides where in the hierarchy it lies. The
/// inode of the initial one, `PROC_CGROUP_INIT_INO` of the kernel, is the same everywhere.
pub fn in_namespace() -> bool {
    fs::metadata("/proc/self/ns/cgroup").is_ok_and(|namespace| namespace.ino() != 0xEFFF_FFFB)
}

impl Cgroup {
    /// Resolves a path: absolute in the file system, or relative to the hierarchy's root.
    ///
    /// # Errors
    /// A sentence that says what is wrong: no such directory, or not in the hierarchy.
    pub fn find(mount: &Mount, path: &str) -> Result<Self, String> {
        let point = fs::canonicalize(&mount.point).unwrap_or_else(|_| mount.point.clone());
        let below = |candidate: PathBuf| {
            let found = fs::canonicalize(candidate).ok().filter(|found| found.is_dir())?;
            let inside = found.strip_prefix(&point).ok()?.to_path_buf();
            Some((found, inside))
        };
        // A path in the file system, or one as /proc/PID/cgroup shows it.
        let (found, inside) = below(PathBuf::from(path))
            .or_else(|| below(point.join(path.trim_start_matches('/'))))
            .ok_or_else(|| {
                format!("there is no '{path}' in the cgroup v2 hierarchy at {}", point.display())
            })?;
        let metadata =
            fs::metadata(&found).map_err(|e| format!("cannot look at cgroup '{path}': {e}"))?;
        let below_root = mount.root.split('/').filter(|part| !part.is_empty()).count();
        let level = u32::try_from(inside.components().count() + below_root).unwrap_or(ANY_LEVEL);
        let level = if in_namespace() { ANY_LEVEL } else { level };
        Ok(Self { id: metadata.ino(), level })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_mount_is_found_on_pure_and_hybrid_hosts() {
        let hybrid = "25 24 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      26 24 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw\n";
        let mount = parse_mountinfo(hybrid).expect("found");
        assert_eq!(
            (mount.point.to_str(), mount.root.as_str()),
            (Some("/sys/fs/cgroup/unified"), "/")
        );
        let odd = "26 24 0:23 /a /mnt/my\\040cgroups rw - cgroup2 none rw\n";
        let mount = parse_mountinfo(odd).expect("found");
        assert_eq!((mount.point.to_str(), mount.root.as_str()), (Some("/mnt/my cgroups"), "/a"));
        assert_eq!(parse_mountinfo("25 24 0:22 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn a_path_that_is_no_cgroup_is_refused() {
        let mount = Mount { point: "/sys".into(), root: "/".into() };
        for path in ["/proc/self", "/no/such/cgroup", "/sys/../proc", "kernel/notes"] {
            let error = Cgroup::find(&mount, path).expect_err("not a cgroup");
            assert!(error.contains("cgroup v2"), "{error}");
        }
        let found = Cgroup::find(&mount, "kernel").expect("a directory");
        assert_eq!(found.level, 1);
        let part = Mount { root: "/a/b".into(), ..mount };
        assert_eq!(Cgroup::find(&part, "/sys/kernel").expect("a directory").level, 3);
    }
}
