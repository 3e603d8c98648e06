// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! tcptop: which connections carry the most, and whose they are.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::time::Duration;

use bpfscope::cli::seconds;
use bpfscope::escape::until_nul;
use bpfscope::iterator;
use bpfscope::maps;
use bpfscope::net;
use bpfscope::prelude::*;

use libbpf_rs::IterOpts;

bpf!("tcptop");
use bpf::types;

/// Show the TCP connections that carry the most, by process
#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools)]
pub struct Args {
    /// Seconds between reports
    #[arg(default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// End after this many reports
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Only IPv4, through whichever kind of socket
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// No line with the time and the load average above each table
    #[arg(short = 'S', long)]
    nosummary: bool,
    /// Whether only connections of certain tasks are wanted.
    #[arg(skip)]
    by_owner: bool,
}

/// One connection of all that the machine has had: the socket, and when it began.
type Id = (u64, u64);

/// What a connection has carried until now.
#[derive(Clone, Copy, Default)]
struct Bytes {
    tx: u64,
    rx: u64,
}

/// What was told of connections, and when it was shown.
#[derive(Default)]
struct Connections {
    /// Of those that have not ended, as far as they have carried anything: what has been shown.
    shown: HashMap<Id, Bytes>,
    /// What is to be in the next report: the last word on each, with what is new of it.
    rows: Vec<(types::count, Bytes)>,
}

impl Connections {
    fn tell(&mut self, count: &types::count) {
        let id = (count.sock, count.begun_ns);
        let before = self.shown.get(&id).copied().unwrap_or_default();
        let new = Bytes {
            tx: count.tx_bytes.saturating_sub(before.tx),
            rx: count.rx_bytes.saturating_sub(before.rx),
        };
        if count.ended != 0 {
            self.shown.remove(&id);
        } else {
            self.shown.insert(id, Bytes { tx: before.tx + new.tx, rx: before.rx + new.rx });
        }
        if new.tx > 0 || new.rx > 0 {
            self.rows.push((*count, new));
        }
    }

    /// Forgets those that are no longer there although nobody told: ends can be lost.
    fn forget_lost(&mut self, lives: &dyn libbpf_rs::MapCore) -> Result<()> {
        if self.shown.len() <= lives.max_entries() as usize {
            return Ok(());
        }
        let mut living = HashSet::new();
        for (key, _) in maps::read_all(lives)?.iter() {
            living.insert(maps::copy::<u64>(key)?);
        }
        self.shown.retain(|(sock, _), _| living.contains(sock));
        Ok(())
    }
}

/// `[` and `]` around an IPv6 address, a colon and a port of five digits.
const PORT_WIDTH: usize = 6;
const BRACKETS_WIDTH: usize = 2;

/// As long as it is with a port of five digits, so that columns keep their width.
fn width(version: u8, words: [u32; 4]) -> usize {
    let brackets = if version == 6 { BRACKETS_WIDTH } else { 0 };
    let address = net::address(version, words).map_or(0, |ip| ip.to_string().len());
    address + brackets + PORT_WIDTH
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows for each interval what each TCP connection has carried, both ways, and the process that it \
belongs to. Connections that have carried nothing in the interval are not shown; those that began \
and ended in it are. RX_KB is what arrived in order, TX_KB what the other side has acknowledged, \
both without the headers, in whole units of 1,024 bytes; the fields rx_bytes and tx_bytes are \
exact. What was only handed to the kernel, or had to be sent again, does not count, so that the sum \
over all reports is what the connection has carried from the start of the tool to its own end.

The process is the one that called connect() or accept(), also when another one reads and writes, \
and not whoever happened to be interrupted when a packet came. Of a connection that is older than \
the tool it is a process that has it open: the one with the smallest id, of those that pass the \
filters (for --tid, by its first thread). Filters (--pid, --comm, --cgroup and the others) mean that process too. What nobody has \
accepted yet, and connections of the kernel itself that are older than the tool, are nobody's: ?.

Addresses are followed by the port, those of IPv6 in brackets. IPv4 through an IPv6 socket is shown \
as IPv4; the field v4_mapped tells. Connections of all network namespaces are seen, so the same \
addresses may occur twice: once for each side.

On a terminal the table is drawn anew at each interval, until q or Ctrl-C. --sort sent or received \
sorts by one direction; all, the default, by the sum of both.",
        examples: "\
Which connections keep the network busy?

    # tcptop -C 1 1
    21:12:04 loadavg: 0.49 0.65 1.12 1/84 27210

    PID     COMM             LADDR                 RADDR                  RX_KB  TX_KB
    27165   python3          127.0.0.1:46614       127.0.0.1:8080           390      4
    27165   python3          127.0.0.1:8080        127.0.0.1:46614            4    390

Both ends of the one connection are on this machine, so it is there twice: what the one side sends, the \
other receives.

For a script: the five that sent the most, every ten seconds, one table after another:

    # tcptop -C -s sent -r 5 10

What one container carries, as JSON:

    # tcptop --container web --output json 60",
        overhead: "\
Nothing while data flows: the kernel's own counters are read once an interval, at some hundred \
nanoseconds a connection. Beside that one short program at each change of a TCP socket's state, some \
six for a connection, and one at accept. When the tool starts it goes once through the open files of \
all processes. Where no kernel function can be probed (way tp), each system call of the machine \
costs a few nanoseconds more.",
        limits: "\
Bytes that were sent and never acknowledged, because the connection was cut off, are not in TX_KB. \
Connections that are older than the tool are found by the files that processes have open; those that \
no process has open are found only in the tool's own network namespace, and what came in another \
one before a connection was accepted, on one that is older than the tool, is not counted. Room is \
for 65,536 connections at a time; what finds none is counted as map_full. With MPTCP, each subflow \
is a connection, and those that were joined later belong to nobody.

In way tp, what io_uring accepts belongs to nobody, and so does what is over before accept() \
returns.",
    };
    const QUESTION: Question = Question {
        heading: "Network",
        question: "Which TCP connections carry the most, and whose are they?",
    };
    const LETTERS: &'static [(&'static str, char)] =
        &[("cgroup", 'c'), ("no-clear", 'C'), ("pid", 'p'), ("rows", 'r'), ("sort", 's')];
    const TABLE: Option<Table> = Some(Table {
        sorts: &[
            ("all", &["rx_bytes", "tx_bytes"]),
            ("sent", &["tx_bytes"]),
            ("received", &["rx_bytes"]),
        ],
        names: &[("no-clear", "noclear")],
        ..Table::by("all")
    });
    const REFUSED: &'static [(&'static str, &'static str)] =
        &[("max-rate", "it shows connections at intervals, not single events")];

    fn ways(&self) -> Vec<Way> {
        let iterators = |way: Way| way.iterators(&["living", "older", "older_unowned"]);
        net::connection_ways(&[]).into_iter().map(iterators).collect()
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        self.by_owner = common.filters_tasks() || !common.command.is_empty();
        if let Some(choice) = &mut common.choice.table {
            choice.table.summary = !self.nosummary;
        }
        Ok(())
    }

    fn records(&self) -> Records {
        let kind = Kind::row("connection")
            .field(
                "pid",
                Type::Uint,
                "Process that connected or accepted; null when it is not known.",
            )
            .field("comm", Type::String, "Its command name; null when it is not known.")
            .field(
                "cgroup_id",
                Type::Id,
                "Id of its cgroup (v2 hierarchy); null when it is not known.",
            )
            .field(
                "container",
                Type::String,
                "The container that the cgroup is of, as events name it; null outside of one.",
            )
            .field("ip", Type::Uint, "4 or 6: what was sent.")
            .field("laddr", Type::Ip, "Local address.")
            .field("lport", Type::Uint, "Local port.")
            .field("raddr", Type::Ip, "Remote address.")
            .field("rport", Type::Uint, "Remote port.")
            .field("v4_mapped", Type::Bool, "Whether it was IPv4 through an IPv6 socket.")
            .field("rx_bytes", Type::Uint, "Bytes received in this interval.")
            .field("tx_bytes", Type::Uint, "Bytes sent and acknowledged in this interval.")
            .columns([
                column("pid", "PID", 7),
                column("comm", "COMM", 16),
                column("laddr", "LADDR", 21).port("lport"),
                column("raddr", "RADDR", 21).port("rport"),
                column("container", "CONTAINER", 16).null("-").when(false),
                column("rx_bytes", "RX_KB", 6).right().format(Format::Kib),
                column("tx_bytes", "TX_KB", 6).right().format(Format::Kib),
            ]);
        Records::new([kind])
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_owner = self.by_owner;
        settings.want_version = match (self.ipv4, self.ipv6) {
            (true, _) => 4,
            (_, true) => 6,
            _ => 0,
        };
        Ok(())
    }

    fn attach(&self, skel: &bpf::Skel<'_>, _: &Common, _: &mut Asides) -> Result<()> {
        // They write nothing, but fill the map. Whatever begins meanwhile is seen by then.
        for program in [&skel.progs.older, &skel.progs.older_unowned] {
            let link = program.attach_iter_with_opts(IterOpts::None);
            let link = link.context("looking for connections that are older")?;
            iterator::read(&link, 1, |_| {})?;
        }
        // Whether it can be had; run() makes its own.
        let living = skel.progs.living.attach_iter(skel.maps.lives.as_fd());
        living.context("an iterator over connections").map(drop)
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let lives = &skel.maps.lives;
        let living =
            skel.progs.living.attach_iter(lives.as_fd()).context("an iterator over connections")?;
        let connections = RefCell::new(Connections::default());
        let mut report = |out: &mut Output| -> Result<()> {
            let mut all = connections.borrow_mut();
            let mut failed = None;
            iterator::read(&living, size_of::<types::count>(), |record| {
                match maps::copy::<types::count>(record) {
                    Ok(count) => all.tell(&count),
                    Err(error) => failed = Some(error),
                }
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            all.forget_lost(lives)?;
            show(&std::mem::take(&mut all.rows), out);
            Ok(())
        };
        let every = Every { interval: Some(self.interval), count: self.count, act: &mut report };
        let ended = |record: Event<'_>, _: &mut Output| -> Result<()> {
            connections.borrow_mut().tell(record.body()?);
            Ok(())
        };
        session.stream_and(&skel.maps.events, ended, every)
    }
}

fn show(rows: &[(types::count, Bytes)], out: &mut Output) {
    for (count, _) in rows {
        let tuple = &count.tuple;
        out.widen(0, "laddr", width(tuple.version, tuple.saddr));
        out.widen(0, "raddr", width(tuple.version, tuple.daddr));
    }
    for (count, new) in rows {
        let tuple = &count.tuple;
        let comm = count.comm.map(|c| c.to_ne_bytes()[0]);
        let container = out.container(count.cgroup_id);
        let known = |value| if count.owned != 0 { value } else { Value::Null };
        out.row(
            0,
            &[
                known(Value::Uint(count.pid.into())),
                known(Value::Bytes(until_nul(&comm))),
                known(Value::Id(count.cgroup_id)),
                known(container.as_ref().map_or(Value::Null, |c| Value::Bytes(c.as_bytes()))),
                Value::Uint(tuple.version.into()),
                net::ip(tuple.version, tuple.saddr),
                net::port(tuple.sport),
                net::ip(tuple.version, tuple.daddr),
                net::port(tuple.dport),
                Value::Bool(tuple.v4_mapped != 0),
                Value::Uint(new.rx),
                Value::Uint(new.tx),
            ],
        );
    }
    out.report_done();
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
