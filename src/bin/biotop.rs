// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! biotop: which processes do the most block I/O.

use std::collections::HashMap;
use std::time::Duration;

use bpfscope::block;
use bpfscope::block::OnlyDisk;
use bpfscope::cli::seconds;
use bpfscope::disks::Disks;
use bpfscope::filter::filters_tree;
use bpfscope::maps;
use bpfscope::prelude::*;
use bpfscope::swapped::Swapped;
use bpfscope::table::Table;
use bpfscope::tracked_requests;

bpf!("biotop");
use bpf::types;

/// Show the processes that do the most block I/O
#[derive(clap::Args)]
pub struct Args {
    /// Seconds between reports
    #[arg(default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// End after this many reports
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    only: OnlyDisk,
    /// Whether requests are told apart by who submitted them.
    #[arg(skip)]
    by_owner: bool,
}

/// What is one row.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    cgroup_id: u64,
    pid: u32,
    disk: u32,
    direction: u32,
    comm: [u8; 16],
}

#[derive(Default)]
struct Count {
    requests: u64,
    bytes: u64,
    ns: u64,
    timed: u64,
    max_ns: u64,
}

fn direction(number: u32) -> &'static str {
    match types::direction(number) {
        types::direction::DIRECTION_READ => "R",
        types::direction::DIRECTION_WRITE => "W",
        _ => "O",
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows for each interval which processes did how much block I/O on which disk: the number of \
requests, their size, and the average time that they took in the device. D is R for reads, W for \
writes, O for others (flushes, discards and so on). --fields +max_lat_ns adds the longest time, \
+container the container.

The process is the one that submitted the I/O, not the one that happened to run when it was issued \
or completed; filters (--pid, --comm, --cgroup and the others) mean that process too. Each request \
is counted once, in the interval in which its last byte was done. What was merged before it was \
issued is one request, and belongs to the first submitter. Data that was written to a file without \
O_DIRECT or O_SYNC is written back later by a kernel thread, and counted as that thread's, with the \
cgroup of the file's writer where the kernel knows it.

On a terminal the table is drawn anew at each interval, until q or Ctrl-C. --sort io, bytes or time \
sorts by requests, size or time; all, the default, by the sum of the three.",
        examples: "\
Who keeps the disks busy?

    # biotop

One table of two seconds:

    # biotop --no-clear 2 1
    20:00:00 loadavg: 0.39 0.08 0.03 2/74 368

    PID     COMM             D MAJ MIN DISK       I/O  Kbytes  AVGms
    250     dd               R 254 3   sde      11556 1314816   0.66
    251     dd               W 254 3   sde       1586    6344   0.75
    243     jbd2/sdb-8       W 254 0   sdb         62      93   0.56
    243     jbd2/sdb-8       O 254 0   sdb         31       0   0.63

One dd reads large blocks and another writes small ones, of 4 KiB, on the same disk; the journal of \
the file system on sdb wrote 62 times and sent 31 flushes (O).

For a script: five tables of ten seconds, one after another, the largest writers and readers first:

    # biotop --no-clear -s bytes -r 10 10 5

One process, with the longest time of each interval:

    # biotop -p 1234 --fields +max_lat_ns",
        overhead: "\
Three short programs a request: where it is submitted, issued and completed, each followed by a \
still shorter one that steps in where the kernel skipped it. They add up in the kernel.",
        limits: "\
Requests that were submitted before the tool was ready, and on kernels before 6.5 those that a \
program sends directly to the driver (SG_IO) and those that a multipath device makes of others, have \
no known submitter: PID 0, COMM ?, and filters on the task leave them out. An interval has room for \
4,096 rows; more are counted as map_full.",
    };
    const QUESTION: Question =
        Question { heading: "Block I/O", question: "Which processes do the most disk I/O?" };
    const LETTERS: &'static [(&'static str, char)] =
        &[("no-clear", 'C'), ("pid", 'p'), ("rows", 'r'), ("sort", 's')];
    const TABLE: Option<Table> = Some(Table {
        sorts: &[
            ("all", &["requests", "size_bytes", "total_lat_ns"]),
            ("io", &["requests"]),
            ("bytes", &["size_bytes"]),
            ("time", &["total_lat_ns"]),
        ],
        names: &[("no-clear", "noclear"), ("rows", "maxrows")],
        ..Table::by("all")
    });

    fn ways(&self) -> Vec<Way> {
        vec![
            tracked_requests!("btf", queued: false, done: true),
            tracked_requests!("rawtp", queued: false, done: true),
        ]
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        self.by_owner = common.filters_tasks() || filters_tree(common);
        Ok(())
    }

    fn records(&self) -> Records {
        let kind = Kind::row("io")
            .field(
                "pid",
                Type::Uint,
                "Process that submitted the requests; null when it is not known.",
            )
            .field("comm", Type::String, "Its command name; null when it is not known.")
            .field(
                "cgroup_id",
                Type::Id,
                "Id of its cgroup (v2 hierarchy), for what is written back that of the file's \
                 writer where the kernel knows it; null when it is not known.",
            )
            .field(
                "container",
                Type::String,
                "The container that the cgroup is of, as events name it; null outside of one.",
            )
            .field("direction", Type::String, "R for reads, W for writes, O for others.")
            .field("major", Type::Uint, "Major number of the whole disk.")
            .field("minor", Type::Uint, "Minor number of the whole disk.")
            .field("disk", Type::String, "The whole disk; null when it has no name.")
            .field("requests", Type::Uint, "Requests in this interval.")
            .field("size_bytes", Type::Uint, "Their size.")
            .field(
                "avg_lat_ns",
                Type::Uint,
                "Their average time in the device; null when none got there.",
            )
            .field("max_lat_ns", Type::Uint, "The longest; null when none got there.")
            .field("total_lat_ns", Type::Uint, "All their times added up.")
            .columns([
                column("pid", "PID", 7).null("0"),
                column("comm", "COMM", 16),
                column("direction", "D", 1).right(),
                column("major", "MAJ", 3),
                column("minor", "MIN", 3),
                column("disk", "DISK", 8),
                column("requests", "I/O", 5).right(),
                column("size_bytes", "Kbytes", 7).right().format(Format::Kib),
                column("max_lat_ns", "MAXms", 6).right().format(Format::Millis(2)).when(false),
                column("container", "CONTAINER", 16).null("-").when(false),
                column("avg_lat_ns", "AVGms", 6).right().format(Format::Millis(2)),
            ]);
        Records::new([kind])
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, way: &Way) -> Result<()> {
        self.only.configure(open)?;
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_owner = self.by_owner;
        open.maps.submitted_bios.set_autocreate(block::by_bio(way))?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let mut disks = Disks::read();
        let mut intervals = Swapped::new(&skel.maps.intervals, &skel.maps.first_interval);
        let mut report = |out: &mut Output| -> Result<()> {
            let mut rows: HashMap<Key, Count> = HashMap::new();
            for (key, parts) in intervals.end_interval()?.iter() {
                let key = maps::copy::<types::top_key>(key)?;
                let key = Key {
                    cgroup_id: key.cgroup_id,
                    pid: key.pid,
                    disk: key.disk,
                    direction: key.direction,
                    comm: key.comm.map(|c| c.to_ne_bytes()[0]),
                };
                let sum = rows.entry(key).or_default();
                for part in parts {
                    let part = maps::copy::<types::top_count>(part)?;
                    sum.requests += part.requests;
                    sum.bytes += part.bytes;
                    sum.ns += part.ns;
                    sum.timed += part.timed;
                    sum.max_ns = sum.max_ns.max(part.max_ns);
                }
            }
            for (key, sum) in rows {
                let known = |value| if key.pid == 0 { Value::Null } else { value };
                let comm = key.comm.split(|c| *c == 0).next().unwrap_or_default();
                let container = out.container(key.cgroup_id);
                out.row(
                    0,
                    &[
                        known(Value::Uint(key.pid.into())),
                        known(Value::Bytes(comm)),
                        known(Value::Id(key.cgroup_id)),
                        known(
                            container.as_ref().map_or(Value::Null, |c| Value::Bytes(c.as_bytes())),
                        ),
                        Value::Str(direction(key.direction)),
                        Value::Uint((key.disk >> 20).into()),
                        Value::Uint((key.disk & 0xf_ffff).into()),
                        disks.name(key.disk).map_or(Value::Null, Value::Str),
                        Value::Uint(sum.requests),
                        Value::Uint(sum.bytes),
                        sum.ns.checked_div(sum.timed).map_or(Value::Null, Value::Uint),
                        if sum.timed > 0 { Value::Uint(sum.max_ns) } else { Value::Null },
                        Value::Uint(sum.ns),
                    ],
                );
            }
            out.report_done();
            Ok(())
        };
        session.every(Every { interval: Some(self.interval), count: self.count, act: &mut report })
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
