// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! biosnoop: each block I/O with who submitted it and how long it took.

use std::collections::BTreeMap;
use std::time::Duration;

use bpfscope::block;
use bpfscope::block::OnlyDisk;
use bpfscope::cli::seconds;
use bpfscope::disks::Disks;
use bpfscope::filter::filters_tree;
use bpfscope::prelude::*;
use bpfscope::tracked_requests;

bpf!("biosnoop");
use bpf::types;

/// Trace block I/O with the process that submitted it and the latency
#[derive(clap::Args)]
pub struct Args {
    /// End after this many seconds
    #[arg(value_name = "DURATION", value_parser = seconds)]
    seconds: Option<Duration>,
    /// Show the time in the queue of the operating system
    #[arg(short = 'Q', long)]
    queued: bool,
    #[command(flatten)]
    only: OnlyDisk,
    /// Only I/O that took at least this many milliseconds in the device
    #[arg(short, long, value_name = "MS", value_parser = millis)]
    min: Option<u64>,
    /// Show whether each I/O begins where the one before it on the disk ended
    #[arg(short = 'P', long)]
    pattern: bool,
    /// Whether requests are told apart by who submitted them.
    #[arg(skip)]
    by_owner: bool,
    /// `--timestamp` replaces the time column instead of adding one.
    #[arg(skip)]
    wall: bool,
}

/// Milliseconds, also with a fraction, as nanoseconds.
fn millis(text: &str) -> Result<u64, String> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match text.parse::<f64>() {
        Ok(n) if plain && n > 0.0 && n < 1e9 => {
            u64::try_from(Duration::from_secs_f64(n / 1e3).as_nanos()).map_err(|e| e.to_string())
        }
        _ => Err("not a positive number of milliseconds".into()),
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows each block request when its last byte is done: the process that submitted it, the disk, what \
was asked, the first sector, the size, and LAT(ms), the time from when it was given to the device \
until its end. With -Q, QUE(ms) is the time before that, from when it entered the queue of the \
operating system; where it bypassed that queue it is 0.

T has the letters of blktrace. The operation: R read, W write, D discard, DE secure erase, F flush, \
WZ zeroes, ZA append to a zone, ZO ZC ZF ZR ZRA other operations on zones, N anything else. Before \
it F for a flush that goes before the data; after it F for a write that must not stay in the \
device's cache, A for readahead, S for synchronous, M for metadata.

Each request is shown once. A request that the device did in parts is one request; what was merged \
before it was issued is one, and belongs to the first submitter, also where others had a part in it: \
filters on those leave it out. The process is the one that submitted the I/O, not the one that \
happened to run when it was issued or completed; filters (--pid, --comm, --cgroup and the others) \
mean that process too. Data that was written to a file \
without O_DIRECT or O_SYNC is written back later by a kernel thread: then the field writeback is \
true, and the cgroup is that of the file's writer where the kernel knows it (cgroup v2 with the io \
and memory controllers). A flush of the device serves all who wait for one at that moment; it is \
shown as the first one's.

With -P, the column P is S where the request begins at the sector where the one issued before it to \
the same disk ended, R where it does not, and ? for the first one and for those without data.",
        examples: "\
What is the disk doing, and for whom?

    # biosnoop
    TIME(s)     COMM           PID     DISK    T    SECTOR     BYTES   LAT(ms)
    0.908174    jbd2/sdb-8     243     sdb     WSM  230444     2048      0.333
    0.908794    jbd2/sdb-8     243     sdb     FF   0          0         0.291
    0.909160    jbd2/sdb-8     243     sdb     WFSM 230448     1024      0.266
    0.933176    jbd2/sdb-8     243     sdb     WSM  230450     2048      0.339
    0.933742    jbd2/sdb-8     243     sdb     FF   0          0         0.293
    0.934117    jbd2/sdb-8     243     sdb     WFSM 230454     1024      0.280

These are two commits of ext4's journal, of three requests each: a synchronous write of metadata, a \
flush of the disk's cache, and the record of the commit, which must not stay in that cache. Somebody \
calls fsync, about every 25 ms.

Which I/O of sda takes more than 10 ms, with the time of day and the time in the queue?

    # biosnoop -tQ -m 10 -d sda

All I/O of one command:

    # biosnoop -- tar xf archive.tar",
        overhead: "\
Three short programs a request: where it is submitted, issued and completed (four with -Q), each \
followed by a still shorter one that steps in where the kernel skipped it. The state of a request \
stays in one map entry, which is used again for the next request in the same memory.",
        limits: "\
Requests that were submitted before the tool was ready, those that a program sends directly to the \
driver on kernels before 6.5 (SG_IO), and those that a multipath device makes of others there, have \
no known submitter: COMM is ?, PID 0, and filters on the task leave them out. Time that a request \
waits before it enters the queue (throttling by a cgroup, waiting for a free request) is not seen. \
Before 5.12 reads and writes of io_uring that a worker thread submits are the thread's.",
    };
    const QUESTION: Question = Question {
        heading: "Block I/O",
        question: "Which process does which disk I/O, and how long does each take?",
    };
    const LETTERS: &'static [(&'static str, char)] =
        &[("cgroup", 'c'), ("pid", 'p'), ("timestamp", 't')];

    fn ways(&self) -> Vec<Way> {
        vec![
            tracked_requests!("btf", queued: self.queued, done: true),
            tracked_requests!("rawtp", queued: self.queued, done: true),
        ]
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        if self.seconds.is_some() && common.duration.is_some() {
            return Err(usage("the duration is given twice"));
        }
        common.duration = common.duration.or(self.seconds);
        self.by_owner = common.filters_tasks() || filters_tree(common);
        self.wall = common.choice.timestamp;
        Ok(())
    }

    fn records(&self) -> Records {
        let time = if self.wall {
            time_column("TIMESTAMP", 12, TimeFormat::Wall).decimals(3)
        } else {
            time_column("TIME(s)", 11, TimeFormat::SinceFirst).decimals(6)
        };
        let kind = Kind::event("io")
            .field("disk", Type::String, "The whole disk; null when it has no name.")
            .field("op", Type::String, "What was asked of the device: Read, Write, Flush, Discard and so on.")
            .field("flags", Type::Flags, "The request's flags.")
            .field("rwbs", Type::String, "Operation and flags in the letters of blktrace.")
            .field("sector", Type::Uint, "First sector, in units of 512 bytes from the start of the disk; null for a flush.")
            .field("size_bytes", Type::Uint, "Size of the request when it was issued first.")
            .field("pattern", Type::String, "S when it begins where the one before it ended, R when not; null without --pattern.")
            .field("queue_ns", Type::Uint, "From the queue of the operating system to the device; null without --queued.")
            .field("lat_ns", Type::Uint, "From the device to the end; null when it failed before it was given to the device.")
            .field("total_ns", Type::Uint, "Both together; null without --queued.")
            .field("error", Type::Errno, "Why it failed; null when it did not.")
            .field("writeback", Type::Bool, "Whether a kernel thread wrote back what others left in memory; null when the submitter is not known.")
            .columns([
                time.when(true),
                column("comm", "COMM", 14),
                column("pid", "PID", 7).null("0"),
                column("disk", "DISK", 7).null("Unknown"),
                column("rwbs", "T", 4),
                column("sector", "SECTOR", 10).null("0"),
                column("size_bytes", "BYTES", 7),
                column("pattern", "P", 1).when(self.pattern),
                column("queue_ns", "QUE(ms)", 7).right().format(Format::Millis(3)).when(self.queued),
                column("lat_ns", "LAT(ms)", 7).right().format(Format::Millis(3)),
            ]);
        Records::new([kind])
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, way: &Way) -> Result<()> {
        self.only.configure(open)?;
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_queued = self.queued;
        settings.want_pattern = self.pattern;
        settings.want_owner = self.by_owner;
        settings.want_min_ns = self.min.unwrap_or(0);
        open.maps.disk_ends.set_autocreate(self.pattern)?;
        open.maps.submitted_bios.set_autocreate(block::by_bio(way))?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let mut disks = Disks::read();
        let mut letters: BTreeMap<u32, String> = BTreeMap::new();
        session.stream(&skel.maps.events, |record, out| {
            let event: &types::event = record.body()?;
            let kind = event.kind;
            let rwbs = letters.entry(kind).or_insert_with(|| block::letters(kind));
            // All bits are set where the issue was not seen.
            let issued = event.lat_ns != u64::MAX;
            let latency = if issued { Value::Uint(event.lat_ns) } else { Value::Null };
            let queued = |ns| if self.queued && issued { Value::Uint(ns) } else { Value::Null };
            let placed = event.bytes > 0 || block::op_name(kind) != "Flush";
            let pattern = match types::block_pattern(event.pattern) {
                types::block_pattern::PATTERN_SEQUENTIAL => Value::Str("S"),
                types::block_pattern::PATTERN_RANDOM => Value::Str("R"),
                _ => Value::Null,
            };
            let known = event.known != 0;
            let values = [
                disks.name(event.disk).map_or(Value::Null, Value::Str),
                Value::Str(block::op_name(kind)),
                Value::Flags(&block::FLAGS, block::flags(kind)),
                Value::Str(rwbs),
                if placed { Value::Uint(event.sector) } else { Value::Null },
                Value::Uint(event.bytes.into()),
                pattern,
                queued(event.queue_ns),
                latency,
                queued(event.queue_ns.saturating_add(event.lat_ns)),
                Value::Errno(block::errno(event.error)),
                if known { Value::Bool(event.writeback != 0) } else { Value::Null },
            ];
            if known {
                out.event(0, record.head()?, &values);
            } else {
                out.event_of_nobody(0, record.head()?.boot_ns, &values);
            }
            Ok(())
        })
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
