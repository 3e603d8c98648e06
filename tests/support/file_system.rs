// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! File systems of the tests' own, mounted once, and operations on them of which each is known.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::PoisonError;

use nix::libc;

use super::scratch;

/// Loads a module, unless it is part of the kernel; false where there is none.
pub fn load(module: &str) -> bool {
    let status = Command::new("modprobe").args(["-q", module]).status();
    status.is_ok_and(|status| status.success())
}

fn run(program: &str, args: &[&str], path: &Path) {
    let output = Command::new(program).args(args).arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A directory on a file system of this kind; the same one for all tests.
pub fn mounted(kind: &'static str) -> PathBuf {
    static MOUNTED: Mutex<Option<HashMap<&str, PathBuf>>> = Mutex::new(None);
    let mut mounted = MOUNTED.lock().unwrap_or_else(PoisonError::into_inner);
    let mounted = mounted.get_or_insert_default();
    let path = mounted.entry(kind).or_insert_with(|| {
        load("loop");
        load(kind);
        let directory = scratch(kind);
        let (image, at) = (directory.join("image"), directory.join("at"));
        // The least that each takes.
        let (size, quiet) = match kind {
            "xfs" => (320, "-q"),
            "btrfs" => (128, "-q"),
            _ => (64, "-q"),
        };
        File::create(&image).expect("image").set_len(size << 20).expect("image");
        fs::create_dir(&at).expect("a place to mount");
        run(&format!("mkfs.{kind}"), &[quiet], &image);
        let image = image.to_str().expect("UTF-8");
        run("mount", &["-t", kind, "-o", "loop", image], &at);
        at
    });
    path.clone()
}

/// One operation, as tools should see it: its word, bytes (none of a sync of all), offset, error.
pub type Seen = (&'static str, Option<u64>, u64, Option<&'static str>);

/// What names of files used to be cut to.
const LONG: &str = "a-name-of-more-than-thirty-one-bytes-\x1b[2J-and-more";

/// Operations by this thread in a directory below `at`; returns the file and what they are.
pub fn operations(at: &Path, name: &str) -> (PathBuf, Vec<Seen>) {
    let directory = at.join(name);
    fs::create_dir(&directory).expect("directory");
    let path = directory.join(LONG);
    let mut seen: Vec<Seen> = Vec::new();

    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
    let file = file.expect("create");
    seen.push(("open", Some(0), 0, None));
    assert_eq!(file.write_at(&[7; 9000], 100).expect("write"), 9000);
    seen.push(("write", Some(9000), 100, None));
    file.sync_all().expect("fsync");
    seen.push(("fsync", None, 0, None));
    assert_eq!(file.read_at(&mut [0; 3000], 2000).expect("read"), 3000);
    seen.push(("read", Some(3000), 2000, None));
    assert_eq!(file.read_at(&mut [0; 3000], 10_000).expect("read"), 0);
    seen.push(("read", Some(0), 10_000, None));
    assert_eq!(fs::metadata(&path).expect("stat").len(), 9100);
    seen.push(("getattr", Some(0), 0, None));

    // The second page only.
    // SAFETY: a mapping of its own, which is not touched but for its sync.
    unsafe {
        let fd = file.as_raw_fd();
        let map = libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_WRITE, libc::MAP_SHARED, fd, 0);
        assert_ne!(map, libc::MAP_FAILED, "mmap");
        assert_eq!(libc::msync(map.byte_add(4096), 4096, libc::MS_SYNC), 0, "msync");
        libc::munmap(map, 8192);
    }
    seen.push(("fsync", Some(4095), 4096, None));

    // The sync is inside the write, and over before it.
    let file = OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(&path).expect("open");
    seen.push(("open", Some(0), 0, None));
    assert_eq!(file.write_at(&[8; 10], 0).expect("write"), 10);
    seen.push(("fsync", Some(9), 0, None));
    seen.push(("write", Some(10), 0, None));

    // Beyond what a file of ext4 can hold; others have no such end.
    if name.starts_with("ext4") {
        let error = file.write_at(&[9], 1 << 45).expect_err("too large");
        assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
        seen.push(("write", Some(0), 1 << 45, Some("EFBIG")));
    }
    (path, seen)
}

/// Reads `count` blocks of a file past the page cache without waiting for any before all have been
/// submitted (libaio).
pub fn read_unwaited(path: &Path, count: usize) {
    const BLOCK: usize = 4096;
    /// `struct iocb` of include/uapi/linux/aio_abi.h, on little-endian machines.
    #[repr(C)]
    #[derive(Default)]
    struct Iocb {
        data: u64,
        key: u32,
        rw_flags: u32,
        opcode: u16,
        priority: i16,
        fd: u32,
        buffer: u64,
        bytes: u64,
        offset: i64,
        reserved: u64,
        flags: u32,
        event_fd: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let layout = std::alloc::Layout::from_size_align(BLOCK * count, BLOCK).expect("layout");
    // SAFETY: the kernel writes to a buffer of its own for each call, all of which live until the
    // last has been reaped.
    unsafe {
        let fd = libc::open(name.as_ptr(), libc::O_RDONLY | libc::O_DIRECT);
        assert!(fd >= 0, "open");
        let memory = std::alloc::alloc(layout);
        let mut context = 0u64;
        assert_eq!(libc::syscall(libc::SYS_io_setup, count, &raw mut context), 0, "io_setup");
        let mut calls: Vec<Iocb> = (0..count)
            .map(|i| Iocb {
                fd: fd.cast_unsigned(),
                buffer: memory.add(i * BLOCK) as u64,
                bytes: BLOCK as u64,
                offset: i64::try_from(i * BLOCK).expect("small"),
                ..Default::default()
            })
            .collect();
        let list: Vec<*mut Iocb> = calls.iter_mut().map(std::ptr::from_mut).collect();
        let submitted = libc::syscall(libc::SYS_io_submit, context, count, list.as_ptr());
        assert_eq!(usize::try_from(submitted), Ok(count), "io_submit");
        let mut events = vec![[0i64; 4]; count];
        let none = std::ptr::null_mut::<libc::timespec>();
        let reaped =
            libc::syscall(libc::SYS_io_getevents, context, count, count, events.as_mut_ptr(), none);
        assert_eq!(usize::try_from(reaped), Ok(count), "io_getevents");
        assert!(events.iter().all(|event| event[2] == BLOCK as i64), "{events:?}");
        libc::syscall(libc::SYS_io_destroy, context);
        libc::close(fd);
        std::alloc::dealloc(memory, layout);
    }
}
