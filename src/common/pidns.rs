// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The PID namespace that the tool itself is in. Outside of any, ids are the kernel's own; inside
//! one, the kernel side (`bpf/pidns.h`) translates them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// `PROC_PID_INIT_INO` of the kernel: the inode of the initial namespace, on every machine.
const INITIAL: u64 = 0xEFFF_FFFC;

/// Marks a process id of the namespace in `filter_tree`: `FILTER_TREE_PLANTED` of `bpf/filter.h`.
pub const PLANTED: u32 = 1 << 31;

/// The inode of the tool's PID namespace; `None` in the initial one.
pub fn own() -> Option<u32> {
    let inode = fs::metadata("/proc/self/ns/pid").ok()?.ino();
    (inode != INITIAL).then(|| u32::try_from(inode).ok())?
}
