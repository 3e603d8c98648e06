// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! System calls through io_uring.

use std::ffi::CStr;

use io_uring::IoUring;
use io_uring::opcode;
use io_uring::squeue;
use io_uring::types;
use nix::libc;
use nix::sys::socket::SockaddrLike as _;
use nix::sys::socket::SockaddrStorage;

/// A ring, or why there can be none.
pub fn ring() -> Result<IoUring, String> {
    IoUring::new(8).map_err(|error| format!("io_uring is not available: {error}"))
}

/// Opens `path` and returns the descriptor or the negative errno. With `worker`, the kernel is told
/// to use a worker thread from the start.
pub fn open(ring: &mut IoUring, path: &CStr, flags: i32, worker: bool) -> i32 {
    let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
        .flags(flags)
        .build()
        .user_data(7);
    // SAFETY: the path outlives the call, which waits for the completion.
    unsafe { one(ring, entry, worker) }
}

/// Connects a socket, and returns 0 or the negative errno. See [`open`].
pub fn connect(ring: &mut IoUring, fd: i32, address: &SockaddrStorage, worker: bool) -> i32 {
    let entry = opcode::Connect::new(types::Fd(fd), address.as_ptr().cast(), address.len())
        .build()
        .user_data(7);
    // SAFETY: the address outlives the call, which waits for the completion.
    unsafe { one(ring, entry, worker) }
}

/// Makes one call and waits for its result.
///
/// # Safety
/// What the entry points to must live as long as the call.
unsafe fn one(ring: &mut IoUring, mut entry: squeue::Entry, worker: bool) -> i32 {
    if worker {
        entry = entry.flags(squeue::Flags::ASYNC);
    }
    // SAFETY: as the caller says.
    unsafe { ring.submission().push(&entry).expect("room in the queue") };
    ring.submit_and_wait(1).expect("submit");
    let done = ring.completion().next().expect("a completion");
    assert_eq!(done.user_data(), 7);
    done.result()
}
