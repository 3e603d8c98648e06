// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What was not seen is counted: by the kernel side (`bpf/loss.h`) and by the kernel itself.

use std::ops::Sub;

use anyhow::Result;
use libbpf_rs::MapCore as _;
use libbpf_rs::Object;

use crate::maps;
use crate::shared;

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Events that the ring buffer had no room for.
    pub lost: u64,
    /// Map insertions that the kernel refused.
    pub map_full: u64,
    /// Events that `--max-rate` left out.
    pub rate_limited: u64,
}

impl Loss {
    /// Reads the counters of every CPU. Objects without counters have lost nothing.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub fn read(object: &Object) -> Result<Self> {
        let Some(map) = object.maps().find(|map| map.name() == "losses") else {
            return Ok(Self::default());
        };
        let mut total = Self::default();
        for (_, values) in maps::read_all(&map)?.iter() {
            for value in values {
                let one: shared::Loss = maps::copy(value)?;
                total.lost += one.lost;
                total.map_full += one.map_full;
                total.rate_limited += one.rate_limited;
            }
        }
        Ok(total)
    }

    /// Whether anything was lost; what the user asked to be left out is not.
    pub fn any(self) -> bool {
        self.lost > 0 || self.map_full > 0
    }
}

impl Sub for Loss {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            lost: self.lost.saturating_sub(earlier.lost),
            map_full: self.map_full.saturating_sub(earlier.map_full),
            rate_limited: self.rate_limited.saturating_sub(earlier.rate_limited),
        }
    }
}
