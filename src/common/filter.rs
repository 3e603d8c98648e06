// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Hands the common filters to the kernel side, `bpf/filter.h`.

use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::Context as _;
use anyhow::Result;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::Object;
use libbpf_rs::OpenObject;

use crate::cgroup_names;
use crate::cli::Common;
use crate::globals::set_constant;
use crate::packed::Optional;
use crate::pidns;
use crate::shared::FilterKind;

/// `FILTER_CGROUPS` of `bpf/filter.h`; [`set_constant`] checks the size of the arrays.
pub const CGROUPS: usize = 8;
const KINDS: usize = FilterKind::FILTER_KINDS.0 as usize;

fn lists(common: &Common) -> [(FilterKind, &[u32]); KINDS] {
    [
        (FilterKind::FILTER_PID, &common.pid),
        (FilterKind::FILTER_TID, &common.tid),
        (FilterKind::FILTER_PPID, &common.ppid),
        (FilterKind::FILTER_UID, &common.uid),
    ]
}

fn bytes<T, const N: usize, const M: usize>(values: [T; N], one: fn(T) -> [u8; M]) -> Vec<u8> {
    values.into_iter().flat_map(one).collect()
}

fn pinned_maps(common: &Common) -> [(&'static str, Option<&Path>); 2] {
    [
        ("filter_cgroupmap", common.cgroupmap.as_deref()),
        ("filter_mntnsmap", common.mntnsmap.as_deref()),
    ]
}

fn open_pinned(path: &Path) -> Result<MapHandle> {
    MapHandle::from_pinned_path(path).with_context(|| format!("pinned map {}", path.display()))
}

/// Whether there is any filter on tasks but the one that leaves the tool itself out.
fn is_on(common: &Common) -> bool {
    common.filters_tasks() || filters_tree(common)
}

/// The functions that nobody calls under the constants that [`configure`] will set.
pub fn not_called(common: &Common) -> Vec<Optional> {
    [(!is_on(common), Optional::Filters), (pidns::own().is_none(), Optional::PidNamespaces)]
        .into_iter()
        .filter_map(|(unused, functions)| unused.then_some(functions))
        .collect()
}

/// Sets the constants; before the load. The maps that are returned must stay open until then.
///
/// # Errors
/// Fails when the object's constants are not those of `bpf/filter.h`.
pub fn configure(open: &mut OpenObject, common: &Common) -> Result<Vec<MapHandle>> {
    let mut counts = [0u32; KINDS];
    let mut ones = [0u32; KINDS];
    let mut in_map = 0;
    for (kind, list) in lists(common) {
        let mut list = list.to_vec();
        list.sort_unstable();
        list.dedup();
        let kind = kind.0 as usize;
        counts[kind] = u32::try_from(list.len())?;
        ones[kind] = list.first().copied().unwrap_or(0);
        if list.len() > 1 {
            in_map += counts[kind];
        }
    }
    set_constant(open, "filter_count", &bytes(counts, u32::to_ne_bytes))?;
    set_constant(open, "filter_one", &bytes(ones, u32::to_ne_bytes))?;
    set_constant(open, "filter_on", &[u8::from(is_on(common))])?;
    if !common.include_self {
        set_constant(open, "filter_self", &std::process::id().to_ne_bytes())?;
    }
    if let Some(comm) = &common.comm {
        let (name, mask) = comm.words();
        set_constant(open, "filter_comm_on", &[1])?;
        set_constant(open, "filter_comm", &bytes(name, u64::to_ne_bytes))?;
        set_constant(open, "filter_comm_mask", &bytes(mask, u64::to_ne_bytes))?;
    }
    let mut ids = [0u64; CGROUPS];
    let mut levels = [0u32; CGROUPS];
    for (i, cgroup) in common.cgroup.iter().enumerate() {
        ids[i] = cgroup.id;
        levels[i] = cgroup.level;
    }
    let count = u32::try_from(common.cgroup.len())?;
    set_constant(open, "filter_cgroup_count", &count.to_ne_bytes())?;
    set_constant(open, "filter_cgroup_id", &bytes(ids, u64::to_ne_bytes))?;
    set_constant(open, "filter_cgroup_level", &bytes(levels, u32::to_ne_bytes))?;

    // Types from a file (--btf) tell where things are, but the verifier does not know them.
    let typed = Path::new("/sys/kernel/btf/vmlinux").exists();
    set_constant(open, "typed_tasks", &[u8::from(typed)])?;
    if let Some(inode) = pidns::own() {
        set_constant(open, "pidns_inode", &inode.to_ne_bytes())?;
    }
    let containers = !common.container.is_empty();
    set_constant(open, "filter_containers_on", &[u8::from(containers)])?;
    let tree = filters_tree(common);
    set_constant(open, "filter_tree_on", &[u8::from(tree)])?;
    set_constant(open, "filter_cgroupmap_on", &[u8::from(common.cgroupmap.is_some())])?;
    set_constant(open, "filter_mntnsmap_on", &[u8::from(common.mntnsmap.is_some())])?;
    let mut models = Vec::new();
    for mut map in open.maps_mut() {
        for (name, path) in pinned_maps(common) {
            if map.name() == name {
                map.set_autocreate(path.is_some())?;
                if let Some(path) = path {
                    let pinned = open_pinned(path)?;
                    map.set_inner_map_fd(pinned.as_fd())?;
                    models.push(pinned);
                }
            }
        }
        if map.name() == pidns::NOTED {
            map.set_autocreate(pidns::own().is_some())?;
        }
        if map.name() == "filter_tree" {
            map.set_autocreate(tree)?;
            // As many as there can be processes on most machines (kernel.pid_max).
            map.set_max_entries(32_768)?;
        }
        if map.name() == "filter_containers" {
            map.set_autocreate(containers)?;
            map.set_max_entries(cgroup_names::FILTERED)?;
        }
        if map.name() == "filter_ids" {
            map.set_autocreate(in_map > 0)?;
            map.set_max_entries(in_map.max(1))?;
        }
    }
    Ok(models)
}

/// Programs of `bpf/filter.h` that are loaded only with a tree filter.
pub const TREE_PROGRAMS: [&str; 3] =
    ["filter_tree_fork", "filter_tree_fork_twin", "filter_tree_free"];
/// The second does what the kernel skipped of the first; see [`crate::tool::Way::twins`].
pub const TREE_TWINS: (&str, &str) = ("filter_tree_fork", "filter_tree_fork_twin");

/// Whether there is a tree filter: asked for, or because a command is run and nothing else was
/// said about whom to trace.
pub fn filters_tree(common: &Common) -> bool {
    common.tree.is_some() || (!common.command.is_empty() && !common.filters_tasks())
}

/// Adds a process and the descendants that it already has to the tree filter. Call it when
/// [`TREE_PROGRAMS`] are attached, so that children born meanwhile are not missed.
///
/// # Errors
/// Fails when the kernel refuses.
pub fn plant_tree(object: &Object, root: u32) -> Result<()> {
    let Some(map) = object.maps().find(|map| map.name() == "filter_tree") else { return Ok(()) };
    // In a PID namespace only the kernel knows what these numbers are outside.
    let mark = pidns::own().map_or(0, |_| pidns::PLANTED);
    let mut inside = vec![root];
    let mut known = 0;
    // Until a look at /proc finds nobody new.
    while known < inside.len() {
        for pid in &inside[known..] {
            map.update(&(pid | mark).to_ne_bytes(), &[1], MapFlags::ANY)
                .context("filling the filter")?;
        }
        known = inside.len();
        for (pid, parent) in processes() {
            if inside.contains(&parent) && !inside.contains(&pid) {
                inside.push(pid);
            }
        }
    }
    Ok(())
}

/// Every process with its parent, as /proc says now.
fn processes() -> Vec<(u32, u32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read(entry.path().join("stat")).ok()?;
            // The name in parentheses may hold anything, parentheses too.
            let rest = stat.get(stat.iter().rposition(|b| *b == b')')? + 2..)?;
            let parent = std::str::from_utf8(rest).ok()?.split(' ').nth(1)?.parse().ok()?;
            Some((pid, parent))
        })
        .collect()
}

/// Fills the maps of the longer lists and of pinned maps; after the load, before anything is
/// attached.
///
/// # Errors
/// Fails when the kernel refuses.
pub fn fill(object: &Object, common: &Common) -> Result<()> {
    pidns::attend(object)?;
    for (name, path) in pinned_maps(common) {
        if let (Some(path), Some(map)) = (path, object.maps().find(|map| map.name() == name)) {
            let pinned = open_pinned(path)?;
            let fd = pinned.as_fd().as_raw_fd();
            map.update(&0u32.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
                .context("filling the filter")?;
        }
    }
    let Some(map) = object.maps().find(|map| map.name() == "filter_ids") else { return Ok(()) };
    for (kind, list) in lists(common) {
        if list.len() < 2 {
            continue;
        }
        for id in list {
            // struct filter_key: two words without padding.
            let mut key = kind.0.to_ne_bytes().to_vec();
            key.extend_from_slice(&id.to_ne_bytes());
            map.update(&key, &[1], MapFlags::ANY).context("filling the filter")?;
        }
    }
    Ok(())
}
