// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Two maps that take turns: one is filled while the other one is read and emptied.
//!
//! For counters whose keys come and go, so that they cannot just grow. The kernel side looks up
//! the map to fill in an array of maps with one entry. Between the swap and the reading nothing can
//! be lost: writing to an array of maps returns when no program uses what stood there any more
//! (1ae80cf31938 "bpf: wait for running BPF programs when updating map-in-map", 4.20).

use std::os::fd::AsRawFd as _;

use anyhow::Context as _;
use anyhow::Result;
use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;

use crate::maps;
use crate::maps::Entries;

/// See the module.
pub struct Swap<'a> {
    outer: &'a dyn MapCore,
    inner: [&'a dyn MapCore; 2],
    filled: usize,
}

impl<'a> Swap<'a> {
    /// `outer` holds `first`, as the kernel side declares it.
    pub fn new(outer: &'a dyn MapCore, first: &'a dyn MapCore, second: &'a dyn MapCore) -> Self {
        Self { outer, inner: [first, second], filled: 0 }
    }

    /// What has been counted since the last time.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub fn take(&mut self) -> Result<Entries> {
        let full = self.inner[self.filled];
        let empty = self.inner[1 - self.filled];
        let fd = empty.as_fd().as_raw_fd().to_ne_bytes();
        self.outer.update(&0u32.to_ne_bytes(), &fd, MapFlags::ANY).context("swapping maps")?;
        self.filled = 1 - self.filled;
        let entries = maps::read_all(full)?;
        maps::delete(full, &entries)?;
        Ok(entries)
    }
}
