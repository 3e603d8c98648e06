// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! memleak against allocations of which every one is known.

use crate::support::Case;

pub const CASES: &[Case] = &[];
