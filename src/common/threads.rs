// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! How many threads there can be, for maps that keep something about each.

use std::fs;

/// How many threads there are now, which the kernel says: `running/all`. 0 when it does not.
fn now() -> u32 {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let all = load.split(' ').nth(3).and_then(|word| word.split_once('/')?.1.parse::<u32>().ok());
    all.unwrap_or(0)
}

/// Twice as many as there are now, but not fewer than `fewest` and not more than `most`.
pub fn twice(fewest: u32, most: u32) -> u32 {
    now().saturating_mul(2).clamp(fewest, most)
}

/// Room for something about each thread.
pub fn room() -> u32 {
    twice(32_768, 1 << 22)
}
