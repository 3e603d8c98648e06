// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Which tools are measured by which workloads.

use crate::workloads as w;
use crate::workloads::Workload;

/// How what a tool shows is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Lines with the workload's mark, so many for each operation.
    Lines(u32),
    /// The counts of histograms.
    Histogram,
    /// The number behind the mark, at the beginning of a line.
    Number,
    /// What others do is in it, too, or it is no number of operations.
    Not,
}

/// A tool and a workload.
pub struct Row {
    pub tool: &'static str,
    pub workload: &'static Workload,
    /// Options; PID is this process, LIBC the C library that it uses.
    pub args: &'static [&'static str],
    /// The peer's, where they differ.
    pub peer_args: Option<&'static [&'static str]>,
    pub shown: Shown,
    /// What it may cost at most, in hundredths of the peer's cost.
    pub budget: u32,
}

/// One line for each event: at most a quarter of the peer's cost.
const fn stream(tool: &'static str, workload: &'static Workload, lines: u32) -> Row {
    let shown = Shown::Lines(lines);
    Row { tool, workload, args: &[], peer_args: None, shown, budget: 25 }
}

/// Counts in the kernel.
const fn counts(tool: &'static str, workload: &'static Workload, shown: Shown) -> Row {
    Row { tool, workload, args: &[], peer_args: None, shown, budget: 80 }
}

impl Row {
    const fn args(self, args: &'static [&'static str]) -> Self {
        Self { args, ..self }
    }

    const fn peer_args(self, args: &'static [&'static str]) -> Self {
        Self { peer_args: Some(args), ..self }
    }

    const fn budget(self, budget: u32) -> Self {
        Self { budget, ..self }
    }

    /// The words after the tool's name.
    pub fn words(&self, of_peer: bool) -> Vec<String> {
        let args = if of_peer { self.peer_args.unwrap_or(self.args) } else { self.args };
        let word = |arg: &&str| match *arg {
            "PID" => std::process::id().to_string(),
            "LIBC" => c_library(),
            other => other.to_string(),
        };
        args.iter().map(word).collect()
    }
}

/// The C library of this process, whose functions the workloads call: peers look at their own.
fn c_library() -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    paths.into_iter().find(|path| path.contains("/libc.so.")).unwrap_or_default().to_string()
}

/// A tool that `bpfscope list` does not have is left out.
pub const ROWS: &[Row] = &[
    stream("opensnoop", &w::OPENS, 1),
    stream("statsnoop", &w::STATS, 1),
    stream("filelife", &w::CREATIONS, 1),
    stream("execsnoop", &w::EXECS, 1),
    stream("exitsnoop", &w::EXECS, 1),
    stream("sigsnoop", &w::SIGNALS, 1).args(&["-n"]),
    stream("biosnoop", &w::BLOCK_READS, 1),
    counts("biolatency", &w::BLOCK_READS, Shown::Histogram),
    counts("bitesize", &w::BLOCK_READS, Shown::Histogram),
    counts("biopattern", &w::BLOCK_READS, Shown::Not),
    counts("biotop", &w::BLOCK_READS, Shown::Not).args(&["-C"]),
    counts("biostacks", &w::BLOCK_READS, Shown::Histogram),
    stream("tcpconnect", &w::CONNECTIONS, 1).budget(35),
    stream("tcplife", &w::CONNECTIONS, 2),
    stream("tcpstates", &w::CONNECTIONS, 1),
    stream("tcptracer", &w::CONNECTIONS, 1),
    stream("tcpconnlat", &w::CONNECTIONS, 1),
    stream("bindsnoop", &w::BINDS, 1),
    counts("tcptop", &w::TRANSFERS, Shown::Not).args(&["-C"]),
    counts("tcprtt", &w::TRANSFERS, Shown::Not),
    stream("tcppktlat", &w::TRANSFERS, 1),
    counts("softirqs", &w::TRANSFERS, Shown::Not),
    counts("syscount", &w::SYSTEM_CALLS, Shown::Number),
    counts("offcputime", &w::SWITCHES, Shown::Not),
    counts("wakeuptime", &w::SWITCHES, Shown::Not),
    counts("cpudist", &w::SWITCHES, Shown::Not),
    counts("runqlat", &w::SWITCHES, Shown::Not),
    counts("runqslower", &w::SWITCHES, Shown::Not),
    counts("klockstat", &w::SWITCHES, Shown::Not),
    counts("futexctn", &w::CONTENTION, Shown::Not),
    counts("profile", &w::COMPUTING, Shown::Not),
    counts("runqlen", &w::COMPUTING, Shown::Not),
    counts("funclatency", &w::READS, Shown::Not).args(&["vfs_read"]),
    counts("vfsstat", &w::READS, Shown::Not),
    counts("filetop", &w::READS, Shown::Not).args(&["-C"]),
    counts("slabratetop", &w::OPENS, Shown::Not).args(&["-C"]),
    counts("cachestat", &w::CACHE_HITS, Shown::Not),
    counts("cachestat", &w::CACHE_MISSES, Shown::Not),
    counts("readahead", &w::CACHE_MISSES, Shown::Not),
    counts("fsdist", &w::CACHE_HITS, Shown::Histogram).args(&["-t", "ext4"]),
    counts("memleak", &w::ALLOCATIONS, Shown::Not).args(&["-p", "PID"]),
    stream("gethostlatency", &w::NAMES, 1).peer_args(&["-l", "LIBC"]),
];
