// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Maps that hold one interval: the kernel side finds the one that is under way in an array of
//! maps, and at the end of the interval an empty one takes its place. For what cannot be the
//! difference of two reads: a maximum, or keys that come and go.

use std::os::fd::AsFd as _;
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
    /// The map of the first interval, and the model of the others.
    first: &'a dyn MapCore,
    /// The map of the interval that is under way, after the first.
    current: Option<MapHandle>,
}

impl<'a> Swapped<'a> {
    /// `outer` is the array, which holds `first` from the load on.
    pub fn new(outer: &'a dyn MapCore, first: &'a dyn MapCore) -> Self {
        Self { outer, first, current: None }
    }

    /// Ends an interval: everything that was counted in it, each thing in one interval. The kernel
    /// does not return from the exchange before the programs are done that may still use the old
    /// map.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub fn end_interval(&mut self) -> Result<Entries> {
        let options = libbpf_sys::bpf_map_create_opts {
            sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
            ..Default::default()
        };
        let empty = MapHandle::create(
            self.first.map_type(),
            Some("interval"),
            self.first.key_size(),
            self.first.value_size(),
            self.first.max_entries(),
            &options,
        )
        .context("a map for the next interval")?;
        let fd = empty.as_fd().as_raw_fd().to_ne_bytes();
        self.outer
            .update(&0u32.to_ne_bytes(), &fd, MapFlags::ANY)
            .context("exchanging the maps of two intervals")?;
        match self.current.replace(empty) {
            Some(old) => maps::read_all(&old),
            None => maps::read_all(self.first),
        }
    }
}
