// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! biostacks: how long block I/O takes, by the stack that asked for it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bpfscope::block::OnlyDisk;
use bpfscope::block_requests;
use bpfscope::cli::seconds;
use bpfscope::disks::Disks;
use bpfscope::escape;
use bpfscope::escape::until_nul;
use bpfscope::histogram;
use bpfscope::histogram::Histogram;
use bpfscope::histogram::Intervals;
use bpfscope::histogram::Unit;
use bpfscope::pidns;
use bpfscope::prelude::*;
use bpfscope::stacks;
use bpfscope::stacks::Stack;
use bpfscope::stacks::Stacks;
use bpfscope::stacks::Storage;
use bpfscope::stacks::Taken;
use libbpf_rs::skel::OpenSkel as _;

bpf!("biostacks");
use bpf::types;

/// Show block I/O latency by the stack that asked for it
#[derive(clap::Args)]
pub struct Args {
    /// End after so many seconds; without it, at Ctrl-C
    #[arg(value_parser = seconds, conflicts_with = "duration")]
    seconds: Option<Duration>,
    /// Seconds between reports; without it, one report at the end
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    interval: Option<Duration>,
    #[command(flatten)]
    only: OnlyDisk,
    /// Count in milliseconds instead of microseconds
    #[arg(short, long)]
    milliseconds: bool,
    #[command(flatten)]
    storage: Storage,
}

/// Histograms take memory on every CPU: at most so many, and about this many bytes.
const MOST_HISTOGRAMS: usize = 10_240;
const LEAST_HISTOGRAMS: usize = 2_048;
const HISTOGRAM_BYTES: usize = 8 << 20;

/// What a histogram is about: process, name, disk, number of the stack.
type Group = (u32, [i8; 16], u32, u64);

/// What makes two of them one: the same, but the frames instead of the number, and whether they
/// are missing.
type Same = (u32, [i8; 16], u32, bool, Vec<u64>);

impl Args {
    fn unit(&self) -> Unit {
        histogram::time_unit(self.milliseconds)
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Measures how long block requests take, from the moment when a task asks for one until its last byte \
is done, and shows a histogram for each stack of kernel functions that asked: what in the kernel \
causes this I/O, and whose it is. Above each histogram stand the command name, the process id, the \
disk and the stack, the function that asked first and its callers below it. The stack with the most \
time stands last.

What is written later, from memory, is asked for by threads of the kernel and shown as theirs. \
Requests that were merged before they were issued are one.",
        examples: "\
Which code paths cause the reads and writes of the next ten seconds?

    # biostacks 10

One of the stacks of a second, on one disk, without the empty rows of its histogram:

    # biostacks -d sdb 1
    dd             592    sdb
    blk_mq_submit_bio
    __submit_bio
    submit_bio_noacct_nocheck
    iomap_dio_bio_iter
    __iomap_dio_rw
    iomap_dio_rw
    ext4_file_write_iter
    vfs_write
    ksys_write
    do_syscall_64
    entry_SYSCALL_64_after_hwframe
         usecs               : count    distribution
           256 -> 511        : 5        |**********                              |
           512 -> 1023       : 19       |****************************************|
          1024 -> 2047       : 10       |*********************                   |
          2048 -> 4095       : 6        |************                            |

dd wrote to a file of ext4 (ext4_file_write_iter) past the page cache (iomap_dio_rw: O_DIRECT), 40 \
times.

Only one disk, only process 1234, every five seconds:

    # biostacks -d nvme0n1 --pid 1234 -i 5",
        overhead: "\
A program where a request is made, which walks the stack of the kernel (some microseconds), and \
shorter ones at its issue and its end. Only the histograms are read at each report.",
        limits: "\
Requests that no task submitted as I/O are left out: what a program \
sends directly to the driver (SG_IO), and what a multipath device makes of others. The time that a \
request waits before it is made (throttling by a cgroup, waiting for a free request) is not seen. \
Functions of the kernel lack names where kernel.kptr_restrict hides them.",
    };
    const QUESTION: Question =
        Question { heading: "Block I/O", question: "Which kernel code paths cause disk I/O?" };
    const LETTERS: &'static [(&'static str, char)] =
        &[("cgroup", 'c'), ("pid", 'p'), ("timestamp", 'T')];

    fn ways(&self) -> Vec<Way> {
        vec![
            block_requests!("btf", queued: false, owner: true),
            block_requests!("rawtp", queued: false, owner: true),
        ]
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        common.duration = self.seconds.or(common.duration);
        Ok(())
    }

    fn records(&self) -> Records {
        let kind = Kind::histogram("latency_ns")
            .field("pid", Type::Uint, "Process that asked for the I/O.")
            .field("comm", Type::String, "Command name of the thread.")
            .field("disk", Type::String, "The disk; null when it is not known.")
            .field(
                "kernel_stack",
                Type::Stack,
                "Where in the kernel it was asked for, leaf first; null when it could not be kept.",
            );
        Records::new([kind]).banner("Tracing block I/O with init stacks. Hit Ctrl-C to end.")
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        self.only.configure(open)?;
        self.storage.configure(open.open_object_mut())?;
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.ns_per_slot_unit = self.unit().scale;
        let one = open.maps.latencies.value_size() as usize * libbpf_rs::num_possible_cpus()?;
        let histograms = (HISTOGRAM_BYTES / one.max(1)).clamp(LEAST_HISTOGRAMS, MOST_HISTOGRAMS);
        open.maps.latencies.set_max_entries(u32::try_from(histograms)?)?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let unit = self.unit();
        let timestamp = session.common.choice.timestamp;
        let style = stacks::Style { verbose: session.common.verbose, ..Default::default() };
        let symbols = Rc::clone(&session.symbols);
        let stacks = RefCell::new(Stacks::default());
        let mut disks = Disks::read();
        let mut intervals = Intervals::default();
        let mut report = |out: &mut Output| -> Result<()> {
            let mut symbols = symbols.borrow_mut();
            let stacks = stacks.borrow();
            if timestamp {
                out.time_line();
            }
            let latencies = histogram::read(&skel.maps.latencies, |key: &types::latency_key| {
                (key.pid, key.comm, key.disk, key.kernel)
            })?;
            let entries = resolve(intervals.next(latencies), &stacks, &mut symbols);
            for ((pid, comm, disk, _), stack, latency) in &entries {
                let comm = comm.map(|c| c.to_ne_bytes()[0]);
                let comm = until_nul(&comm);
                let disk = disks.name(*disk);
                let mut title = format!(
                    "{:<14.14} {:<6} {:<7}\n",
                    escape::printable(comm),
                    pidns::shown(*pid),
                    escape::printable(disk.unwrap_or("Unknown").as_bytes()),
                )
                .into_bytes();
                stacks::bare_lines(&mut title, stack, style);
                // The histogram brings the end of the line.
                title.pop();
                let key = [
                    Value::Uint((*pid).into()),
                    Value::Bytes(comm),
                    disk.map_or(Value::Null, Value::Str),
                    stack.value(true),
                ];
                let title = String::from_utf8_lossy(&title);
                if out.histogram(0, Some(&title), &key, latency, unit) {
                    out.line("");
                }
            }
            out.report_done();
            stacks::complain_of_missing(
                "biostacks",
                entries.iter().filter(|(_, stack, _)| *stack == Stack::Missed).count(),
                &symbols,
            );
            Ok(())
        };
        session.stream_and(
            &skel.maps.events,
            |record, _| stacks.borrow_mut().take(record),
            Every { interval: self.interval, count: None, act: &mut report },
        )
    }
}

/// Names the stacks. Those that differ only in the frames of tracing are one; the largest sum of
/// time stands last.
fn resolve(
    latencies: Vec<(Group, Histogram)>,
    stacks: &Stacks,
    symbols: &mut bpfscope::symbols::Symbols,
) -> Vec<(Group, Stack, Histogram)> {
    let mut named: HashMap<u64, Stack> = HashMap::new();
    let mut merged: BTreeMap<Same, (Group, Stack, Histogram)> = BTreeMap::new();
    for (group, latency) in latencies {
        let (pid, comm, disk, id) = group;
        let stack = named
            .entry(id)
            .or_insert_with(|| stacks.kernel(id, Taken::AtTracepoint, symbols))
            .clone();
        let addrs = stack.frames().iter().map(|frame| frame.addr).collect();
        let entry = merged
            .entry((pid, comm, disk, stack == Stack::Missed, addrs))
            .or_insert_with(|| (group, stack, Histogram::default()));
        entry.2.add(&latency.slots, latency.sum);
    }
    let mut entries: Vec<_> = merged.into_values().collect();
    entries.sort_by_key(|(_, _, latency)| latency.sum);
    entries
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
