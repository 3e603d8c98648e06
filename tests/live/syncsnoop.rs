// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! syncsnoop against calls that the tests make.

use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::Barrier;
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::MFdFlags;
use nix::sys::memfd::memfd_create;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap;
use nix::time::ClockId;
use nix::time::clock_gettime;
use nix::unistd::pipe;
use serde_json::Value;
use serde_json::json;

use crate::support::Case;
use crate::support::Finished;
use crate::support::Outcome;
#[cfg(target_arch = "x86_64")]
use crate::support::call_32bit;
use crate::support::gettid;
use crate::support::lines_of;
use crate::support::losses::assert_counted;
use crate::support::scratch;
use crate::support::start;

pub const CASES: &[Case] = &[
    Case::new("every call", every_call),
    Case::new("callers of 32-bit calls", compat),
    Case::new("files", files),
    Case::new("many threads", many_threads),
    Case::new("filters", filters),
    Case::new("text columns", text_columns).in_turn(),
    Case::new("what does not fit is counted", no_room).in_turn(),
];

/// Bytes of the files that are written.
const SIZE: usize = 8192;

fn file(path: &Path) -> File {
    fs::write(path, [b'x'; SIZE]).expect("written");
    OpenOptions::new().read(true).write(true).open(path).expect("opened")
}

/// A shared mapping of a file, below 4 GiB, which is never removed. Its address.
fn mapping(file: &File) -> usize {
    let size = NonZeroUsize::new(SIZE).expect("not zero");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    #[cfg(target_arch = "x86_64")]
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_32BIT;
    #[cfg(not(target_arch = "x86_64"))]
    let flags = MapFlags::MAP_SHARED;
    // SAFETY: a fresh mapping, used by nobody else.
    let memory = unsafe { mmap(None, size, access, flags, file, 0) }.expect("mapped");
    memory.as_ptr() as usize
}

/// What is compared of an event.
fn row(event: &Value) -> Value {
    let fields = ["call", "error", "fd", "path", "flags", "offset_bytes", "size_bytes", "addr"];
    fields.iter().map(|name| event[name].clone()).collect()
}

fn rows(finished: &Finished) -> Vec<Value> {
    finished.of("event").map(row).collect()
}

/// A call that names a file, and nothing else.
fn of_file(call: &str, fd: i32, path: &str) -> Value {
    json!([call, null, fd, path, null, null, null, null])
}

fn boot_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("a clock");
    u64::try_from(time.tv_sec() * 1_000_000_000 + time.tv_nsec()).expect("positive")
}

const ALL_FLAGS: &str =
    "SYNC_FILE_RANGE_WAIT_BEFORE|SYNC_FILE_RANGE_WRITE|SYNC_FILE_RANGE_WAIT_AFTER";

/// Each call once and each kind of refusal once, with all that is said of them, and when.
fn every_call() -> Outcome {
    let path = scratch("every").join("file");
    let file = file(&path);
    let fd = file.as_raw_fd();
    let address = mapping(&file);
    let tool = start("syncsnoop", &["--tid", &gettid().to_string()]);
    let mut moments = Vec::new();
    let mut call = |number: libc::c_long, args: [i64; 4]| {
        let before = boot_ns();
        // SAFETY: none of these calls writes to memory, and the mapping is there to stay.
        let result = unsafe { libc::syscall(number, args[0], args[1], args[2], args[3]) };
        let error = if result < 0 { Some(Errno::last()) } else { None };
        moments.push((before, boot_ns()));
        error
    };
    let start = i64::try_from(address).expect("address");
    let fd_arg = i64::from(fd);
    let results = [
        call(libc::SYS_sync, [0; 4]),
        call(libc::SYS_fsync, [fd_arg, 0, 0, 0]),
        call(libc::SYS_fdatasync, [fd_arg, 0, 0, 0]),
        call(libc::SYS_msync, [start, 4096, libc::MS_SYNC.into(), 0]),
        call(libc::SYS_msync, [start, 8192, (libc::MS_ASYNC | libc::MS_INVALIDATE).into(), 0]),
        call(libc::SYS_syncfs, [fd_arg, 0, 0, 0]),
        call(libc::SYS_sync_file_range, [fd_arg, 0x1_0000_0001, 0x2_0000_0002, 7]),
        call(libc::SYS_sync_file_range, [fd_arg, -4096, 1, 2]),
        call(libc::SYS_fsync, [-1, 0, 0, 0]),
        call(libc::SYS_syncfs, [-7, 0, 0, 0]),
        call(libc::SYS_msync, [start + 1, 1, 0x40, 0]),
        call(libc::SYS_sync_file_range, [fd_arg, 0, 0, 0x108]),
    ];
    let finished = tool.stop();
    finished.assert_clean();
    let (bad, wrong) = (Some(Errno::EBADF), Some(Errno::EINVAL));
    let none = None;
    assert_eq!(results, [none, none, none, none, none, none, none, wrong, bad, bad, wrong, wrong]);
    let path = path.to_str().expect("UTF-8");
    let (at, after) = (address.to_string(), (address + 1).to_string());
    let expected = [
        json!(["sync", null, null, null, null, null, null, null]),
        of_file("fsync", fd, path),
        of_file("fdatasync", fd, path),
        json!(["msync", null, null, null, "MS_SYNC", null, 4096, at]),
        json!(["msync", null, null, null, "MS_ASYNC|MS_INVALIDATE", null, 8192, at]),
        of_file("syncfs", fd, path),
        json!([
            "sync_file_range",
            null,
            fd,
            path,
            ALL_FLAGS,
            0x1_0000_0001_u64,
            0x2_0000_0002_u64,
            null
        ]),
        json!(["sync_file_range", "EINVAL", fd, path, "SYNC_FILE_RANGE_WRITE", -4096, 1, null]),
        json!(["fsync", "EBADF", -1, null, null, null, null, null]),
        json!(["syncfs", "EBADF", -7, null, null, null, null, null]),
        json!(["msync", "EINVAL", null, null, "0x40", null, 1, after]),
        json!(["sync_file_range", "EINVAL", fd, path, "0x108", 0, 0, null]),
    ];
    assert_eq!(rows(&finished), expected);
    for (event, (before, after)) in finished.of("event").zip(moments) {
        let began: u64 = event["boot_ns"].as_str().and_then(|s| s.parse().ok()).expect("boot_ns");
        let took = event["lat_ns"].as_u64().expect("lat_ns");
        assert!(took > 0 && before <= began && began + took <= after, "{before}, {after}: {event}");
    }
    Outcome::Passed
}

/// The same calls as a 32-bit program makes them: `int 0x80`, its numbers, long numbers in halves.
#[cfg(target_arch = "x86_64")]
fn compat() -> Outcome {
    let path = scratch("compat").join("file");
    let file = file(&path);
    let fd = file.as_raw_fd();
    let address = u32::try_from(mapping(&file)).expect("below 4 GiB");
    // SAFETY: none of these calls writes to memory.
    let call = |number, args| unsafe { call_32bit(number, args) };
    let tool = start("syncsnoop", &["--tid", &gettid().to_string()]);
    let number = fd.cast_unsigned();
    if call(118, [number, 0, 0, 0, 0, 0]) == -libc::ENOSYS {
        return Outcome::Skipped("this kernel has no 32-bit system calls".into());
    }
    let results = [
        call(148, [number, 0, 0, 0, 0, 0]),
        call(144, [address, 4096, 4, 0, 0, 0]),
        call(344, [number, 0, 0, 0, 0, 0]),
        call(314, [number, 1, 2, 3, 4, 7]),
        call(36, [0; 6]),
        call(118, [u32::MAX, 0, 0, 0, 0, 0]),
    ];
    let finished = tool.stop();
    finished.assert_clean();
    assert_eq!(results, [0, 0, 0, 0, 0, -libc::EBADF]);
    let path = path.to_str().expect("UTF-8");
    let (begin, size) = (0x2_0000_0001_u64, 0x4_0000_0003_u64);
    let expected = [
        of_file("fsync", fd, path),
        of_file("fdatasync", fd, path),
        json!(["msync", null, null, null, "MS_SYNC", null, 4096, address.to_string()]),
        of_file("syncfs", fd, path),
        json!(["sync_file_range", null, fd, path, ALL_FLAGS, begin, size, null]),
        json!(["sync", null, null, null, null, null, null, null]),
        json!(["fsync", "EBADF", -1, null, null, null, null, null]),
    ];
    assert_eq!(rows(&finished), expected);
    Outcome::Passed
}

#[cfg(not(target_arch = "x86_64"))]
fn compat() -> Outcome {
    Outcome::Skipped("32-bit calls are made with x86 instructions".into())
}

/// Files with odd places: hostile names, deleted, too deep, the root, and such that have none.
fn files() -> Outcome {
    let directory = scratch("files");
    let base = directory.to_str().expect("UTF-8").to_string();
    let hostile = file(&directory.join(OsStr::from_bytes(b"a\nb\x1b[2J\xff")));
    let deleted = file(&directory.join("deleted"));
    fs::remove_file(directory.join("deleted")).expect("removed");
    let depths = "/d".repeat(100);
    fs::create_dir_all(format!("{base}{depths}")).expect("directories");
    let deep = file(Path::new(&format!("{base}{depths}/deep")));
    let root = File::open("/").expect("root");
    let memory = memfd_create("memory", MFdFlags::empty()).expect("memfd");
    let (pipe, _writer) = pipe().expect("pipe");
    let fds = [
        hostile.as_raw_fd(),
        deleted.as_raw_fd(),
        deep.as_raw_fd(),
        root.as_raw_fd(),
        memory.as_raw_fd(),
        pipe.as_raw_fd(),
    ];
    let sync_all = || {
        for fd in fds {
            // SAFETY: fsync takes a number.
            unsafe { libc::fsync(fd) };
        }
    };
    let tid = gettid().to_string();
    let tool = start("syncsnoop", &["--tid", &tid]);
    sync_all();
    let finished = tool.stop();
    finished.assert_clean();
    let events: Vec<_> = finished.of("event").collect();
    let shown: Vec<_> = events.iter().map(|event| event["fd"].clone()).collect();
    assert_eq!(shown, fds);
    let paths: Vec<_> = events.iter().map(|event| event["path"].clone()).collect();
    // As many names as are followed: that of the file and 95 of its directories.
    let cut = format!("/...{}/deep", "/d".repeat(95));
    assert_eq!(
        paths,
        [
            json!(format!("{base}/a\nb\x1b[2J\u{fffd}")),
            json!(format!("{base}/deleted")),
            json!(cut),
            json!("/"),
            Value::Null,
            Value::Null,
        ]
    );
    assert!(events[0]["path_b64"].is_string() && events[1].get("path_b64").is_none());
    assert_eq!(events[5]["error"], "EINVAL");

    let args = ["--tid", &tid, "--limit", "6", "--fields", "path"];
    let lines = lines_of("syncsnoop", &args, sync_all);
    let escaped = format!("{base}/a\\nb\\x1b[2J\\xff");
    let deleted = format!("{base}/deleted");
    assert_eq!(lines, ["PATH", &escaped, &deleted, &cut, "/", "-", "-"]);
    Outcome::Passed
}

/// Threads that sync at the same time: each call once, with its own thread.
fn many_threads() -> Outcome {
    const THREADS: usize = 8;
    const CALLS: usize = 250;
    let directory = scratch("threads");
    let tool = start("syncsnoop", &["--pid", &std::process::id().to_string()]);
    let ready = Arc::new(Barrier::new(THREADS));
    let threads: Vec<_> = (0..THREADS)
        .map(|n| {
            let (path, ready) = (directory.join(n.to_string()), Arc::clone(&ready));
            thread::spawn(move || {
                let file = File::create(&path).expect("file");
                ready.wait();
                for call in 0..CALLS {
                    if call % 2 == 0 { file.sync_all() } else { file.sync_data() }.expect("synced");
                }
                (gettid(), path.to_str().expect("UTF-8").to_string(), file)
            })
        })
        .collect();
    let threads: Vec<_> = threads.into_iter().map(|t| t.join().expect("joined")).collect();
    let finished = tool.stop();
    finished.assert_clean();
    for (tid, path, _) in &threads {
        let mine: Vec<_> = finished.of("event").filter(|event| event["tid"] == *tid).collect();
        assert_eq!(mine.len(), CALLS, "{}", finished.end());
        for (call, event) in mine.iter().enumerate() {
            let name = if call % 2 == 0 { "fsync" } else { "fdatasync" };
            assert_eq!((&event["call"], &event["path"]), (&json!(name), &json!(path)));
        }
    }
    Outcome::Passed
}

/// A filter holds for the one who calls; a command after `--` is one.
fn filters() -> Outcome {
    let directory = scratch("filters");
    let file = file(&directory.join("file"));
    let path = directory.join("file").to_str().expect("UTF-8").to_string();
    let me = std::process::id();
    let tool = start("syncsnoop", &["--ppid", &me.to_string()]);
    // sync(1) with a file makes one fsync; the shell's child is no child of this process.
    let child = Command::new("sync").arg(&path).spawn().and_then(|mut child| {
        child.wait()?;
        Ok(child.id())
    });
    let grandchild = Command::new("sh").args(["-c", "sync \"$1\"; :", "sh", &path]).status();
    assert!(grandchild.expect("sh").success());
    file.sync_all().expect("synced");
    let finished = tool.stop();
    finished.assert_clean();
    let mine: Vec<_> = finished.of("event").filter(|event| event["path"] == path).collect();
    assert_eq!(mine.len(), 1, "{mine:?}");
    assert_eq!(mine[0]["pid"], child.expect("sync"));
    assert_eq!((mine[0]["comm"].as_str(), mine[0]["call"].as_str()), (Some("sync"), Some("fsync")));
    Outcome::Passed
}

fn text_columns() -> Outcome {
    let file = file(&scratch("text").join("file"));
    let tid = gettid().to_string();
    let before = boot_ns();
    let lines = lines_of("syncsnoop", &["--tid", &tid, "--limit", "2"], || {
        file.sync_all().expect("synced");
        file.sync_data().expect("synced");
    });
    let after = boot_ns();
    let comm = fs::read_to_string("/proc/thread-self/comm").expect("comm");
    let comm = comm.trim_end();
    assert_eq!(lines[0], "TIME(s)            COMM             CALL");
    let mut last = before;
    for (line, call) in lines[1..].iter().zip(["fsync", "fdatasync"]) {
        let (time, rest) = line.split_at(18);
        assert_eq!(rest, format!(" {comm:<16} {call}"));
        let (seconds, fraction) = time.trim_end().split_once('.').expect("decimals");
        assert_eq!(fraction.len(), 9, "{line}");
        let time: u64 = format!("{seconds}{fraction}").parse().expect("digits");
        assert!(last < time && time < after, "{line}");
        last = time;
    }
    assert_eq!(lines.len(), 3);
    Outcome::Passed
}

/// A buffer too small: see [`assert_counted`].
fn no_room() -> Outcome {
    let file = File::create(scratch("no-room").join("file")).expect("a file");
    assert_counted("syncsnoop", &["--tid", &gettid().to_string()], 200, || {
        (0..200).for_each(|_| file.sync_data().expect("fdatasync"));
    });
    Outcome::Passed
}
