// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Maps that hold one interval: the kernel side finds the one that is under way in an array of
//! maps, and at the end of the interval an empty one takes its place. For what cannot be the
//! difference of two reads: a maximum, or keys that come and go.

use std::os::fd::AsRawFd as _;

use anyhow::Context as _;
use anyhow::Result;
use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::libbpf_sys;

use crate::maps;
use crate::maps::Entries;

/// See the module.
pub struct Swapped<'a> {
    /// The array of one map.
    outer: &'a dyn MapCore,
    /// The map of the first interval, and the model of the other.
    first: &'a dyn MapCore,
    /// They take turns: making one costs as much as thousands of events. `None` = it could not be
    /// made yet.
    second: Option<MapHandle>,
    /// Whether `second` is under way.
    second_counts: bool,
}

impl<'a> Swapped<'a> {
    /// `outer` is the array, which holds `first` from the load on.
    pub fn new(outer: &'a dyn MapCore, first: &'a dyn MapCore) -> Self {
        // Now rather than in the first interval; why it cannot be made is said when it is needed.
        Self { outer, first, second: alike(first).ok(), second_counts: false }
    }

    /// Ends an interval: everything that was counted in it, each thing in one interval. The kernel
    /// does not return from the exchange before the programs are done that may still use the old
    /// map.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub fn end_interval(&mut self) -> Result<Entries> {
        let second = match self.second.take() {
            Some(second) => second,
            None => alike(self.first).context("a map for the next interval")?,
        };
        let second: &dyn MapCore = self.second.insert(second);
        let (over, next) =
            if self.second_counts { (second, self.first) } else { (self.first, second) };
        let fd = next.as_fd().as_raw_fd().to_ne_bytes();
        self.outer
            .update(&0u32.to_ne_bytes(), &fd, MapFlags::ANY)
            .context("exchanging the maps of two intervals")?;
        self.second_counts = !self.second_counts;
        let entries = maps::read_all(over)?;
        // Nobody writes to it until its next turn.
        for (key, _) in entries.iter() {
            over.delete(key).context("emptying the map of an interval")?;
        }
        Ok(entries)
    }
}

/// An empty map of the same kind.
fn alike(model: &dyn MapCore) -> libbpf_rs::Result<MapHandle> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    MapHandle::create(
        model.map_type(),
        Some("interval"),
        model.key_size(),
        model.value_size(),
        model.max_entries(),
        &options,
    )
}
