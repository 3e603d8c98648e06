// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! How often each BPF program ran, and how long, as the kernel counts it: where the cost of a tool
//! comes from.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Context as _;
use anyhow::Result;
use libbpf_rs::query::ProgInfoIter;

/// Asks for it. The counting is done at each run and costs something itself, so that the other figures
/// are larger then.
const ASKED: &str = "BPFSCOPE_PROGRAMS";

/// Runs and their nanoseconds, by the id of the program and its name.
pub(crate) type Programs = BTreeMap<(u32, String), (u64, u64)>;

/// Has the kernel count, if that was asked for.
pub(crate) fn begin() -> Result<()> {
    const SETTING: &str = "/proc/sys/kernel/bpf_stats_enabled";
    match std::env::var_os(ASKED) {
        Some(_) => fs::write(SETTING, "1").context(SETTING),
        None => Ok(()),
    }
}

/// Prints what ran since `before`, of how many operations.
pub(crate) fn print_since(before: &Programs, operations: u64) {
    for ((id, name), (runs, ns)) in now() {
        let (runs_before, ns_before) = before.get(&(id, name.clone())).copied().unwrap_or_default();
        let (runs, ns) = (runs - runs_before, ns - ns_before);
        if runs > 0 {
            let each = runs as f64 / operations as f64;
            println!("  {name:<16} {each:>8.2} runs an operation, {:>8} ns each", ns / runs);
        }
    }
}

/// All programs that are loaded now; none unless that was asked for.
pub(crate) fn now() -> Programs {
    if std::env::var_os(ASKED).is_none() {
        return Programs::new();
    }
    ProgInfoIter::default()
        .map(|program| {
            let name = program.name.to_string_lossy().into_owned();
            ((program.id, name), (program.run_cnt, program.run_time_ns))
        })
        .collect()
}
