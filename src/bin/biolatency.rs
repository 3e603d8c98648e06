// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! biolatency: how long block I/O takes, as histograms.

use bpfscope::block::OnlyDisk;
use bpfscope::block::kind_name;
use bpfscope::block_requests;
use bpfscope::cli::Reports;
use bpfscope::disks::Disks;
use bpfscope::escape;
use bpfscope::filter::filters_tree;
use bpfscope::histogram;
use bpfscope::histogram::Histogram;
use bpfscope::histogram::Intervals;
use bpfscope::histogram::Unit;
use bpfscope::prelude::*;

bpf!("biolatency");
use bpf::types;

/// Show block I/O latency as a histogram
#[derive(clap::Args)]
// Each is a switch of its own on the command line.
#[allow(clippy::struct_excessive_bools)]
pub struct Args {
    #[command(flatten)]
    reports: Reports,
    /// Count in milliseconds instead of microseconds
    #[arg(short, long)]
    milliseconds: bool,
    /// Include the time in the queue of the operating system
    #[arg(short = 'Q', long)]
    queued: bool,
    /// One histogram for each disk
    #[arg(short = 'D', long)]
    by_disk: bool,
    /// One histogram for each operation and its flags
    #[arg(short = 'F', long)]
    flag: bool,
    #[command(flatten)]
    only: OnlyDisk,
    /// Show the average, the total and the count below the histograms
    #[arg(short, long)]
    extension: bool,
    /// Whether requests are told apart by who submitted them.
    #[arg(skip)]
    by_owner: bool,
}

/// Room for devices that come while the tool runs.
const MORE_DISKS: usize = 64;
/// Sets of flags that are told apart; a machine shows some twenty.
const FLAG_SETS: usize = 128;
/// Histograms take memory on every CPU.
const MOST_HISTOGRAMS: usize = 8192;

impl Args {
    fn unit(&self) -> Unit {
        histogram::time_unit(self.milliseconds)
    }

    /// How many histograms there can be.
    fn histograms(&self) -> usize {
        let disks = if self.by_disk { Disks::read().len() + MORE_DISKS } else { 1 };
        let sets = if self.flag { FLAG_SETS } else { 1 };
        (disks * sets).min(MOST_HISTOGRAMS)
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Counts how long block requests take, from the moment when they are given to the device until their \
last byte is done, in a histogram whose rows are powers of two. With -Q the time starts when the \
request enters the queue of the operating system, or where it bypasses that queue, when it is \
issued; what -Q adds is the time that requests wait for the scheduler and for a free place in the \
device.

Each request is counted once, when it is complete. A request that the device did in parts is one \
request; requests that were merged before they were issued are one, which is the first submitter's.

Filters on the task (--pid, --comm, --cgroup and the others) mean the task that submitted the I/O, \
not the one that happened to run when it was issued or completed. For data that was written to a \
file without O_DIRECT or O_SYNC that is a kernel thread, which writes it back later.",
        examples: "\
Is the disk slow? One histogram, until Ctrl-C:

    # biolatency

The reads of one command, in milliseconds:

    # biolatency -m -d sdb -- dd if=backup.img of=/dev/null bs=64k count=500 iflag=direct
    Tracing block device I/O... Hit Ctrl-C to end.

         msecs               : count    distribution
             0 -> 1          : 489      |****************************************|
             2 -> 3          : 8        |                                        |
             4 -> 7          : 3        |                                        |

Of 500 reads, 489 took less than 2 ms, and the slowest three between 4 and 8; an average would not \
have shown these.

Every second, five times, with the time, for each disk, in milliseconds:

    # biolatency -TmD 1 5

Do synchronous writes take longer than reads?

    # biolatency -F

How much of the latency is waiting in the queue of sda1? Compare

    # biolatency -d sda1 10 1
    # biolatency -Q -d sda1 10 1",
        overhead: "\
Two short programs a request, at issue and at completion (three with -Q), each followed by a still \
shorter one that steps in where the kernel skipped it; they count in the kernel, and what is read \
at each report is only the histograms. Filters on the task add one where requests are made.",
        limits: "\
Time that a request waits before it enters the queue (throttling by a cgroup, waiting for a free \
request) is not seen. With a filter on the task, requests without a submitter are left out: those \
that a program sends directly to the driver (SG_IO), and those that a multipath device makes of \
others. A flush of the device serves all who wait for one at that moment; it is counted if one of \
them passes the filter. It has no place on the disk, so -d with a partition leaves flushes out.",
    };
    const QUESTION: Question =
        Question { heading: "Block I/O", question: "How long does disk I/O take?" };
    const LETTERS: &'static [(&'static str, char)] = &[("cgroup", 'c'), ("timestamp", 'T')];

    fn ways(&self) -> Vec<Way> {
        vec![
            block_requests!("btf", queued: self.queued, owner: self.by_owner),
            block_requests!("rawtp", queued: self.queued, owner: self.by_owner),
        ]
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        self.by_owner = common.filters_tasks() || filters_tree(common);
        Ok(())
    }

    fn records(&self) -> Records {
        let kind = Kind::histogram("latency_ns")
            .field("disk", Type::String, "The disk; null without --by-disk.")
            .field(
                "flags",
                Type::String,
                "Flags and operation of the requests, joined by '-'; null without --flag.",
            );
        Records::new([kind]).banner("Tracing block device I/O... Hit Ctrl-C to end.")
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        self.only.configure(open)?;
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_queued = self.queued;
        settings.want_by_disk = self.by_disk;
        settings.want_by_flags = self.flag;
        settings.want_owner = self.by_owner;
        settings.ns_per_slot_unit = self.unit().scale;
        open.maps.owned_bios.set_autocreate(self.by_owner)?;
        open.maps.latencies.set_max_entries(u32::try_from(self.histograms())?)?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let unit = self.unit();
        let timestamp = session.common.choice.timestamp;
        let mut disks = Disks::read();
        let mut intervals = Intervals::default();
        let mut report = |out: &mut Output| -> Result<()> {
            out.line("");
            if timestamp {
                out.time_line();
            }
            let latencies = if self.by_disk || self.flag {
                histogram::read(&skel.maps.latencies, |key: &types::latency_key| {
                    (key.disk, key.kind)
                })?
            } else {
                histogram::read(&skel.maps.latencies_of_all, |_: &u32| (0, 0))?
            };
            let mut all = Histogram::default();
            for ((disk, kind), latency) in intervals.next(latencies) {
                let disk = self.by_disk.then(|| disks.name(disk).unwrap_or("Unknown"));
                let flags = self.flag.then(|| kind_name(kind));
                let mut title = String::new();
                if let Some(disk) = disk {
                    title = format!("disk = {}\t", escape::printable(disk.as_bytes()));
                }
                if let Some(flags) = &flags {
                    title += &format!("flags = {flags}");
                }
                let key = [
                    disk.map_or(Value::Null, Value::Str),
                    flags.as_deref().map_or(Value::Null, Value::Str),
                ];
                if out.histogram(0, Some(&title), &key, &latency, unit) {
                    all.add(&latency.slots, latency.sum);
                }
            }
            if self.extension && all.count() > 0 {
                out.line(&all.summary(unit));
            }
            out.report_done();
            Ok(())
        };
        session.every(self.reports.every(&mut report))
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
