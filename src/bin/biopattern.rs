// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! biopattern: is disk I/O random or sequential?

use std::collections::HashMap;

use bpfscope::block::OnlyDisk;
use bpfscope::block_requests;
use bpfscope::cli::Reports;
use bpfscope::disks::Disks;
use bpfscope::filter::filters_tree;
use bpfscope::maps;
use bpfscope::prelude::*;

bpf!("biopattern");
use bpf::types;

/// Show how much of each disk's I/O is random and how much sequential
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    reports: Reports,
    #[command(flatten)]
    only: OnlyDisk,
    /// Whether requests are told apart by who submitted them.
    #[arg(skip)]
    by_owner: bool,
}

/// What one disk did, in an interval or since the start.
#[derive(Clone, Copy, Default)]
struct Count {
    requests: u64,
    bytes: u64,
    sequential: u64,
    random: u64,
}

impl Count {
    fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            sequential: self.sequential.saturating_sub(earlier.sequential),
            random: self.random.saturating_sub(earlier.random),
        }
    }

    /// Random and sequential, rounded so that together they are 100.
    fn percent(self) -> Option<(u64, u64)> {
        let all = self.random + self.sequential;
        let random = (self.random * 100 + all / 2).checked_div(all)?;
        Some((random, 100 - random))
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows for each disk which part of its requests was sequential: began at the sector where the \
request issued before it to the same disk ended. The rest is random. COUNT is the number of \
requests, KBYTES their size.

Each request is counted once, when it is issued, in the order in which the device gets them. \
Requests that were merged before are one, which is the first submitter's. The very first request of \
a disk follows none, so it is in COUNT and KBYTES, but in neither percentage; where there is no \
other, both are -. From one interval to the next the last sector is kept.

With filters on the task (--pid, --comm, --cgroup and the others), only the requests that such a \
task submitted are looked at: whether they follow one another.",
        examples: "\
Is the I/O of this machine random? One line a disk, until Ctrl-C:

    # biopattern

The same in three intervals of a second:

    # biopattern 1 3
    Tracing block device I/O requested seeks... Hit Ctrl-C to end.
    DISK     %RND  %SEQ    COUNT     KBYTES
    sdb        25    75     3630     352642
    sdb        36    64     3153     286031
    sdb        34    66     3442     313380

Two thirds of the requests of sdb began where the one before them ended, and they were large: about \
90 KiB each. Two large files were being read at once, and the rest is the disk's way from one to the \
other.

With the time, for one disk:

    # biopattern -T -d nvme0n1 1

Does the backup read sequentially?

    # biopattern --comm tar 10 1",
        overhead: "\
Two short programs a request, at issue and at completion, each followed by a still shorter one that \
steps in where the kernel skipped it; they count in the kernel. Filters on the task add one where \
requests are made.",
        limits: "\
A disk that several processes read sequentially at once sees a random mixture, and that is what is \
shown. Requests that several CPUs issue at the same moment have no order; each is then compared \
with what its CPU knows to be the last. Requests without a place (flushes, commands that programs \
send directly to the driver) are left out. Up to 4,096 disks are told apart; more are counted as \
map_full. With a filter on the task, requests without a submitter are left out.",
    };
    const QUESTION: Question =
        Question { heading: "Block I/O", question: "Is disk I/O random or sequential?" };
    const LETTERS: &'static [(&'static str, char)] =
        &[("cgroup", 'c'), ("pid", 'p'), ("timestamp", 'T')];
    const TABLE: Option<Table> = Some(Table::running_on("disk"));

    fn ways(&self) -> Vec<Way> {
        vec![
            block_requests!("btf", queued: false, owner: self.by_owner),
            block_requests!("rawtp", queued: false, owner: self.by_owner),
        ]
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        self.by_owner = common.filters_tasks() || filters_tree(common);
        Ok(())
    }

    fn records(&self) -> Records {
        let kind = Kind::row("pattern")
            .field("disk", Type::String, "The whole disk; null when it has no name.")
            .field("random_percent", Type::Uint, "Requests that began elsewhere; null when no request could be compared.")
            .field("sequential_percent", Type::Uint, "Requests that began where the one before ended; null when no request could be compared.")
            .field("requests", Type::Uint, "All requests.")
            .field("random", Type::Uint, "Random ones.")
            .field("sequential", Type::Uint, "Sequential ones.")
            .field("size_bytes", Type::Uint, "Size of all requests together.")
            .columns([
                time_column("TIME", 9, TimeFormat::Wall),
                column("disk", "DISK", 7).null("Unknown"),
                column("random_percent", "%RND", 5).right().null("-"),
                column("sequential_percent", "%SEQ", 5).right().null("-"),
                column("requests", "COUNT", 8).right(),
                column("size_bytes", "KBYTES", 10).right().format(Format::Kib),
            ]);
        Records::new([kind])
            .banner("Tracing block device I/O requested seeks... Hit Ctrl-C to end.")
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        self.only.configure(open)?;
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_owner = self.by_owner;
        open.maps.owned_bios.set_autocreate(self.by_owner)?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let mut disks = Disks::read();
        let mut seen: HashMap<u32, Count> = HashMap::new();
        session.output.header(0);
        let mut report = |out: &mut Output| -> Result<()> {
            let now: HashMap<u32, Count> =
                maps::fold(&skel.maps.patterns, |sum: &mut Count, part: &types::pattern_count| {
                    sum.requests += part.requests;
                    sum.bytes += part.bytes;
                    sum.sequential += part.sequential;
                    sum.random += part.random;
                })?;
            let counts = now
                .iter()
                .map(|(disk, all)| (*disk, all.since(seen.get(disk).copied().unwrap_or_default())))
                .filter(|(_, count)| count.requests > 0);
            for (disk, count) in counts {
                let percent = count.percent();
                let part = |part: Option<u64>| part.map_or(Value::Null, Value::Uint);
                out.row(
                    0,
                    &[
                        disks.name(disk).map_or(Value::Null, Value::Str),
                        part(percent.map(|(random, _)| random)),
                        part(percent.map(|(_, sequential)| sequential)),
                        Value::Uint(count.requests),
                        Value::Uint(count.random),
                        Value::Uint(count.sequential),
                        Value::Uint(count.bytes),
                    ],
                );
            }
            seen = now;
            out.report_done();
            Ok(())
        };
        session.every(self.reports.every(&mut report))
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_a_hundred_together() {
        let count = |random, sequential| Count { random, sequential, ..Count::default() };
        assert_eq!(count(1, 2).percent(), Some((33, 67)));
        assert_eq!(count(2, 1).percent(), Some((67, 33)));
        assert_eq!(count(0, 9).percent(), Some((0, 100)));
        assert_eq!(count(0, 0).percent(), None);
    }
}
