// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! syncsnoop: who makes the kernel write out what it has cached, and how long that takes.

use bpfscope::path::of_names;
use bpfscope::prelude::*;
use bpfscope::value::Flag;
use nix::libc;

bpf!("syncsnoop");
use bpf::types;

/// Trace sync, fsync and other calls that write out cached data
#[derive(clap::Args)]
pub struct Args {}

/// In the order of `enum call_kind` in the C file.
static CALLS: [&str; 7] =
    ["sync", "fsync", "fdatasync", "msync", "syncfs", "sync_file_range", "arm_sync_file_range"];
const SYNC: u8 = 0;
const MSYNC: u8 = 3;
const SYNC_FILE_RANGE: u8 = 5;

const fn bit(value: libc::c_uint, name: &'static str) -> Flag {
    Flag::bit(value as u64, name)
}

/// include/uapi/asm-generic/mman-common.h, through libc.
static MSYNC_FLAGS: [Flag; 3] = [
    bit(libc::MS_ASYNC.unsigned_abs(), "MS_ASYNC"),
    bit(libc::MS_INVALIDATE.unsigned_abs(), "MS_INVALIDATE"),
    bit(libc::MS_SYNC.unsigned_abs(), "MS_SYNC"),
];

/// include/uapi/linux/fs.h, through libc.
static RANGE_FLAGS: [Flag; 3] = [
    bit(libc::SYNC_FILE_RANGE_WAIT_BEFORE, "SYNC_FILE_RANGE_WAIT_BEFORE"),
    bit(libc::SYNC_FILE_RANGE_WRITE, "SYNC_FILE_RANGE_WRITE"),
    bit(libc::SYNC_FILE_RANGE_WAIT_AFTER, "SYNC_FILE_RANGE_WAIT_AFTER"),
];

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows each call that makes the kernel write out cached data: sync, fsync, fdatasync, msync, syncfs \
and sync_file_range, of 64-bit and 32-bit programs. Programs that make many of them wait for the \
disk, and make others wait.

A call is shown when it has returned. TIME(s) is still the moment when it began, in seconds since \
boot, so that a long call stands behind shorter ones that began later. --fields adds columns: pid, \
fd, path (the file of the descriptor), lat_ns (how long it took, as LAT(ms)), error, and what was \
to be written, where the call says it: flags, offset_bytes, size_bytes, addr.",
        examples: "\
Who calls sync, and what?

    # syncsnoop
    TIME(s)            COMM             CALL
    1163.405012874     sh               sync
    1163.562294711     dpkg             fsync

Which files does a database sync, and how long does each call take?

    # syncsnoop --comm postgres --fields +path,+lat_ns

Only calls that took longer than 100 ms:

    # syncsnoop --fields +pid,+path,+lat_ns --filter 'lat_ns > 100000000'",
        overhead: "\
Two programs for each of these calls, which is little beside what the calls do. Where no kernel \
function can be probed (way rawtp), every system call of the machine pays for it.",
        limits: "\
What is written out without one of these calls is not shown: writes to files that were opened with \
O_SYNC or O_DSYNC, fsync through io_uring or through the aio of the kernel, and what the kernel \
does by itself. A call that has not returned yet is not shown, nor one that was under way when \
tracing began.

The path is that of the file when the call returns; of a file that was deleted, the one that it \
had. There is none for pipes, sockets and memory files, for msync, which may reach several files, \
and where another thread has closed the descriptor meanwhile.",
    };
    const QUESTION: Question = Question {
        heading: "Files",
        question: "Who makes the kernel write out cached data, and how long does it take?",
    };

    fn ways(&self) -> Vec<Way> {
        vec![
            Way::new(
                "kprobe",
                &[
                    "sync_exit__kprobe",
                    "sync_enter__kprobe",
                    "msync_exit__kprobe",
                    "msync_enter__kprobe",
                    "fsync_exit__kprobe",
                    "fsync_enter__kprobe",
                    "fdatasync_exit__kprobe",
                    "fdatasync_enter__kprobe",
                    "syncfs_exit__kprobe",
                    "syncfs_enter__kprobe",
                    "range_exit__kprobe",
                    "range_enter__kprobe",
                ],
            )
            // Functions of 32-bit callers alone, which kernels without 32-bit programs have not.
            .optional(&[
                "msync32_exit__kprobe",
                "msync32_enter__kprobe",
                "fsync32_exit__kprobe",
                "fsync32_enter__kprobe",
                "fdatasync32_exit__kprobe",
                "fdatasync32_enter__kprobe",
                "syncfs32_exit__kprobe",
                "syncfs32_enter__kprobe",
                "range32_exit__kprobe",
                "range32_enter__kprobe",
            ]),
            Way::new("rawtp", &["exit__rawtp", "enter__rawtp"]),
        ]
    }

    fn records(&self) -> Records {
        let kind = Kind::event("sync")
            .field("call", Type::String, "The system call.")
            .field("lat_ns", Type::Uint, "How long it took.")
            .field("error", Type::Errno, "Why it failed; null when it did not.")
            .field("fd", Type::Int, "The descriptor; null for sync and msync.")
            .field("path", Type::String, "The file's path from the root; null when there is none.")
            .field("flags", Type::Flags, "What msync or sync_file_range was asked; else null.")
            .field("offset_bytes", Type::Int, "Where sync_file_range begins; else null.")
            .field("size_bytes", Type::Uint, "How much, of msync and sync_file_range; else null.")
            .field("addr", Type::Id, "The address where msync begins; else null.")
            .columns([
                time_column("TIME(s)", 18, TimeFormat::Boot).decimals(9).when(true),
                column("pid", "PID", 6).when(false),
                column("comm", "COMM", 16),
                column("call", "CALL", 15),
                column("lat_ns", "LAT(ms)", 7).right().format(Format::Millis(3)).when(false),
                column("error", "ERR", 3).right().when(false),
                column("fd", "FD", 3).right().null("-").when(false),
                column("path", "PATH", 0).null("-").when(false),
            ]);
        Records::new([kind])
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        session.stream(&skel.maps.events, |record, out| {
            let event: &types::event = record.body()?;
            let (names, _) = split(record.tail::<types::event>(), event.path_size);
            let path = path(names, event.path_cut != 0);
            let is_range = event.kind >= SYNC_FILE_RANGE;
            let has_range = is_range || event.kind == MSYNC;
            out.event(
                0,
                record.head()?,
                &[
                    CALLS.get(usize::from(event.kind)).map_or(Value::Null, |call| Value::Str(call)),
                    Value::Uint(event.lat_ns),
                    Value::Errno(event.result.min(0)),
                    match event.kind {
                        SYNC | MSYNC => Value::Null,
                        _ => Value::Int(event.fd.into()),
                    },
                    path.as_deref().map_or(Value::Null, Value::Bytes),
                    match event.kind {
                        MSYNC => Value::Flags(&MSYNC_FLAGS, event.flags.into()),
                        _ if is_range => Value::Flags(&RANGE_FLAGS, event.flags.into()),
                        _ => Value::Null,
                    },
                    if is_range { Value::Int(event.begin.cast_signed()) } else { Value::Null },
                    if has_range { Value::Uint(event.size) } else { Value::Null },
                    if event.kind == MSYNC { Value::Id(event.begin) } else { Value::Null },
                ],
            );
            Ok(())
        })
    }
}

/// The file's path, or nothing where it has none (pipes, sockets, memory files) or there is no file.
fn path(names: &[u8], cut: bool) -> Option<Vec<u8>> {
    match (names, cut) {
        ([], true) => None,
        ([], false) => Some(b"/".to_vec()),
        _ => Some(of_names(names, cut)),
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_a_place_have_no_path() {
        assert_eq!(path(b"", true), None);
        assert_eq!(path(b"", false), Some(b"/".to_vec()));
        assert_eq!(path(b"file\0dir\0", false), Some(b"/dir/file".to_vec()));
    }
}
