// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The PID namespace that the tool itself is in. Outside of any, ids are the kernel's own; inside
//! one, the kernel side translates them: those of events at once (`bpf/pidns.h`), those in the keys
//! of what is counted when they are shown (`bpf/pid_keys.h`).

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;

use anyhow::Context as _;
use anyhow::Result;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::Object;

/// `PROC_PID_INIT_INO` of the kernel: the inode of the initial namespace, on every machine.
const INITIAL: u64 = 0xEFFF_FFFC;

/// Marks a process id of the namespace in `filter_tree`: `FILTER_TREE_PLANTED` of `bpf/filter.h`.
pub const PLANTED: u32 = 1 << 31;

/// The map of `bpf/pid_keys.h`, which is made in a namespace only.
pub const NOTED: &str = "pidns_noted";

/// The same, open, of the tool that runs: one for the process, like the namespace itself.
static MAP: Mutex<Option<MapHandle>> = Mutex::new(None);

/// The inode of the tool's PID namespace; `None` in the initial one.
pub fn own() -> Option<u32> {
    // A process never changes its own.
    static OWN: OnceLock<Option<u32>> = OnceLock::new();
    *OWN.get_or_init(|| {
        let inode = fs::metadata("/proc/self/ns/pid").ok()?.ino();
        (inode != INITIAL).then(|| u32::try_from(inode).ok())?
    })
}

/// Takes note of where the kernel side says what numbers are in the namespace; after the load.
///
/// # Errors
/// Fails when the process has no descriptors left.
pub fn attend(object: &Object) -> Result<()> {
    let map = object.maps().find(|map| map.name() == NOTED && own().is_some());
    let map = map.map(|map| MapHandle::try_from(&map)).transpose().context(NOTED)?;
    *MAP.lock().unwrap_or_else(PoisonError::into_inner) = map;
    Ok(())
}

/// What a number of the host, from the key of something that was counted, is in the namespace;
/// `None` for processes and threads that it does not see.
pub fn inside(host: u32) -> Option<u32> {
    if own().is_none() {
        return Some(host);
    }
    let map = MAP.lock().unwrap_or_else(PoisonError::into_inner);
    let value = map.as_ref()?.lookup(&host.to_ne_bytes(), MapFlags::ANY).ok()??;
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// The same as text.
pub fn shown(host: u32) -> String {
    inside(host).map_or_else(|| "?".into(), |inside| inside.to_string())
}
