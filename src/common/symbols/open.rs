// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Opening files that a traced process chose. It may have put a FIFO there, a device, or a link to
//! a secret; only regular files are opened, and nothing outside of what the process itself sees.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::fcntl::OFlag;
use nix::fcntl::OpenHow;
use nix::fcntl::ResolveFlag;
use nix::fcntl::open;
use nix::fcntl::openat2;
use nix::sys::stat::Mode;

/// Opens what a descriptor of a path stands for, if it is a regular file: only now, since opening a
/// device or a FIFO can have effects.
fn regular(at: &OwnedFd) -> Option<File> {
    let path = format!("/proc/self/fd/{}", at.as_raw_fd());
    if !std::fs::metadata(&path).ok()?.is_file() {
        return None;
    }
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    open(path.as_str(), flags, Mode::empty()).ok().map(File::from)
}

/// Opens the file that a process has mapped at these addresses: that very file, also where it has
/// been deleted or lies in another mount namespace.
pub fn mapped(pid: u32, start: u64, end: u64) -> Option<File> {
    let path = format!("/proc/{pid}/map_files/{start:x}-{end:x}");
    let at = open(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    regular(&at)
}

/// Opens the program that a process runs, whatever has become of its path.
pub fn executable(pid: u32) -> Option<File> {
    let path = format!("/proc/{pid}/exe");
    regular(&open(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?)
}

/// Opens a path as the process sees it, without following a link at its end.
pub fn in_process(pid: u32, path: &Path) -> Option<File> {
    in_root(&format!("/proc/{pid}/root"), path, OFlag::O_NOFOLLOW)
}

/// The same where the path may be a link, as those of libraries are; it leads to what the process
/// would find there.
pub fn followed(pid: u32, path: &Path) -> Option<File> {
    in_root(&format!("/proc/{pid}/root"), path, OFlag::empty())
}

fn in_root(root: &str, path: &Path, more: OFlag) -> Option<File> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(root, flags, Mode::empty()).ok()?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | more)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    regular(&openat2(&root, path.strip_prefix("/").unwrap_or(path), how).ok()?)
}

/// Opens a file of ours by the path that a process which is gone had for it, if it is that file.
pub fn by_inode(path: &Path, inode: u64) -> Option<File> {
    let at =
        openat2(AT_FDCWD, path, OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC)).ok()?;
    regular(&at).filter(|file| file.metadata().is_ok_and(|data| data.ino() == inode))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_regular_files_are_opened() {
        let directory = std::env::temp_dir().join(format!("bpfscope-open-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("directory");
        let at = |name: &str| directory.join(name);
        std::fs::write(at("file"), "x").expect("file");
        mkfifo(&at("fifo"), Mode::S_IRWXU).expect("fifo");
        symlink("/etc/hostname", at("link")).expect("link");
        let pid = std::process::id();
        assert!(in_process(pid, &at("file")).is_some());
        for name in ["fifo", "link", "nothing", "."] {
            assert!(in_process(pid, &at(name)).is_none(), "{name}");
        }
        assert!(in_process(pid, Path::new("/dev/null")).is_none());
        // A link on the way out of the root leads back into it.
        symlink("/", at("root")).expect("link");
        let root = directory.to_str().expect("UTF-8");
        assert!(in_root(root, Path::new("/root/file"), OFlag::O_NOFOLLOW).is_some());
        assert!(in_root(root, Path::new("/root/etc/hostname"), OFlag::O_NOFOLLOW).is_none());
        assert!(in_root(root, Path::new("/../../../etc/hostname"), OFlag::O_NOFOLLOW).is_none());
        std::fs::remove_dir_all(directory).expect("clean up");
    }
}
