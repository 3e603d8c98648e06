// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! tcptop: which processes send and receive most, on which TCP connections.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use bpfscope::cli::seconds;
use bpfscope::maps;
use bpfscope::net;
use bpfscope::output::until_nul;
use bpfscope::prelude::*;
use bpfscope::shared::EventHead;
use bpfscope::swap::Swap;

bpf!("tcptop");
use bpf::types;

/// Show the TCP connections that carry most, by process
#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools)]
pub struct Args {
    /// Seconds between tables
    #[arg(default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// End after this many tables
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Only IPv4, through whichever kind of socket
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Leave out the line with the time and the load average
    #[arg(short = 'S', long)]
    nosummary: bool,
    /// Whether only certain tasks are wanted.
    #[arg(skip)]
    by_owner: bool,
}

/// Index of the rows of IPv4 and of IPv6 in `records()`.
const KINDS: [(u8, usize); 2] = [(4, 0), (6, 1)];

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows at each interval what processes sent and received on each TCP connection, those with most \
first: a line for each connection and process. IPv6 has a table of its own below that of IPv4; what \
goes as IPv4 through an IPv6 socket is shown as IPv4.

RX_KB is what the process was given, TX_KB what the kernel took from it to be sent, in whole units \
of 1,024 bytes, without headers; the fields rx_bytes and tx_bytes are exact. Both count what calls \
returned, not what they asked for. What is only peeked at does not count. sendfile() and splice() \
count like any other call. Kernel TLS is counted as it goes over the wire, encrypted. What the \
kernel takes from a socket in an interrupt belongs to nobody, and its process is shown as ?.

--sort takes all (both together; the default), sent, received, or the name of a field.",
        examples: "\
Who uses the network just now?

    # tcptop
    09:14:22 loadavg: 0.42 0.30 0.21 2/312 8120

    PID    COMM         LADDR                 RADDR                  RX_KB  TX_KB
    2101   rsync        192.0.2.10:48212      198.51.100.7:873       81204     12
    884    sshd         192.0.2.10:22         203.0.113.5:51022          3     17

What does one service send in ten seconds, for a script?

    # tcptop --cgroup /system.slice/app.service --sort sent --output json 10 1",
        overhead: "\
One probe at the end of each call that sends or receives, and an addition in the kernel.",
        limits: "\
In an interval at most 16,384 pairs of connection and process are told apart; what finds no room is \
counted as a refused map insertion. Data that is mapped instead of copied (TCP_ZEROCOPY_RECEIVE), \
that BPF programs pass from socket to socket, and MPTCP are not counted. A process is shown under \
the name that it had at its first call in the interval.

In way fexit, a call that waits for data is not counted if another program is attached to, or \
detached from, the same kernel function meanwhile: the kernel then leaves out the end of calls that \
are under way.

Way tp, for kernels where no function can be probed, needs Linux 6.3. There a send or receive \
counts as the socket's own layer returned it: kernel TLS without its encryption, and not at all \
what the kernel's own clients send with the socket locked, and what splice() or the kernel read.",
    };
    const QUESTION: Question = Question {
        heading: "Network",
        question: "Which connections carry most just now, and whose are they?",
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

    fn ways(&self) -> Vec<Way> {
        let functions = Way::new("fexit", &["send__fexit", "receive4__fexit", "receive6__fexit"])
            .twin("send__fexit", "send_twin__fexit")
            .twin("receive4__fexit", "receive4_twin__fexit")
            .twin("receive6__fexit", "receive6_twin__fexit")
            .optional(&["pages__fexit", "splice__fexit", "read__fexit", "done__fexit"]);
        let probes = &[
            "send_exit__kprobe",
            "send_enter__kprobe",
            "receive4_exit__kprobe",
            "receive4_enter__kprobe",
        ];
        vec![
            functions,
            Way::new("kprobe", probes).optional(&[
                "receive6_exit__kprobe",
                "receive6_enter__kprobe",
                "pages_exit__kprobe",
                "pages_enter__kprobe",
                "splice_exit__kprobe",
                "splice_enter__kprobe",
                "read_exit__kprobe",
                "read_enter__kprobe",
                "done__kprobe",
            ]),
            Way::new("tp", &["send__tp", "receive__tp"])
                .twin("send__tp", "send_twin__tp")
                .twin("receive__tp", "receive_twin__tp"),
        ]
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        self.by_owner = common.filters_tasks() || !common.command.is_empty();
        if let Some(choice) = &mut common.choice.table {
            choice.table.summary = !self.nosummary;
        }
        Ok(())
    }

    fn records(&self) -> Records {
        let kind = |name, local, remote, width| {
            Kind::row(name)
                .field("pid", Type::Uint, "Process id; null for what nobody did.")
                .field("comm", Type::String, "Command name of the process.")
                .field("uid", Type::Uint, "Real user id of the process.")
                .field("cgroup_id", Type::Id, "Id of its cgroup (v2 hierarchy).")
                .field("ip", Type::Uint, "4 or 6: what is sent.")
                .field("laddr", Type::Ip, "Local address.")
                .field("lport", Type::Uint, "Local port.")
                .field("raddr", Type::Ip, "Remote address.")
                .field("rport", Type::Uint, "Remote port.")
                .field("v4_mapped", Type::Bool, "Whether it is IPv4 through an IPv6 socket.")
                .field("rx_bytes", Type::Uint, "Bytes received in this interval.")
                .field("tx_bytes", Type::Uint, "Bytes sent in this interval.")
                .field("local", Type::String, "Local address and port, as one text.")
                .field("remote", Type::String, "Remote address and port, as one text.")
                .columns([
                    column("pid", "PID", 6),
                    column("comm", "COMM", 12),
                    column("local", local, width),
                    column("remote", remote, width),
                    column("rx_bytes", "RX_KB", 6).right().format(Format::Kib),
                    column("tx_bytes", "TX_KB", 6).right().format(Format::Kib),
                ])
        };
        let seconds = self.interval.as_secs_f64();
        Records::new([kind("ipv4", "LADDR", "RADDR", 21), kind("ipv6", "LADDR6", "RADDR6", 51)])
            .banner(format!("Tracing... Output every {seconds} secs. Hit Ctrl-C to end"))
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

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let maps = &skel.maps;
        let mut swap = Swap::new(&maps.traffic, &maps.traffic_first, &maps.traffic_second);
        let mut since = session.output.clock.now();
        let mut report = |out: &mut Output| -> Result<()> {
            for (who, (rx_bytes, tx_bytes)) in totals(&mut swap)? {
                show(&who, rx_bytes, tx_bytes, out);
            }
            out.report_done(since);
            since = out.clock.now();
            Ok(())
        };
        session.every(Every { interval: Some(self.interval), count: self.count, act: &mut report })
    }
}

/// What a line of the table is about.
#[derive(PartialEq, Eq, Hash)]
struct Who {
    /// `None` = nobody.
    pid: Option<u32>,
    comm: Vec<u8>,
    uid: u32,
    cgroup_id: u64,
    version: u8,
    v4_mapped: bool,
    laddr: [u32; 4],
    raddr: [u32; 4],
    lport: u16,
    rport: u16,
}

/// What was received and sent since the last time. A socket that is closed has another key while
/// the rest is read from it, but is the same connection.
fn totals(swap: &mut Swap<'_>) -> Result<HashMap<Who, (u64, u64)>> {
    let mut totals: HashMap<Who, (u64, u64)> = HashMap::new();
    for (key, values) in swap.take()?.iter() {
        let key: types::traffic_key = maps::copy(key)?;
        let value = values.first().context("a connection without a value")?;
        let traffic: types::traffic = maps::copy(value)?;
        // The struct begins with it.
        let head: EventHead = maps::copy(value)?;
        let tuple = &traffic.tuple;
        let who = Who {
            pid: (key.pid != 0).then_some(head.pid),
            comm: until_nul(&head.comm.map(i8::cast_unsigned)).to_vec(),
            uid: head.uid,
            cgroup_id: head.cgroup_id,
            version: tuple.version,
            v4_mapped: tuple.v4_mapped != 0,
            laddr: tuple.saddr,
            raddr: tuple.daddr,
            lport: tuple.sport,
            rport: tuple.dport,
        };
        let (rx_bytes, tx_bytes) = totals.entry(who).or_default();
        *rx_bytes += traffic.rx_bytes;
        *tx_bytes += traffic.tx_bytes;
    }
    Ok(totals)
}

fn show(who: &Who, rx_bytes: u64, tx_bytes: u64, out: &mut Output) {
    let Some((_, kind)) = KINDS.into_iter().find(|(version, _)| *version == who.version) else {
        return;
    };
    let end = |words, port| {
        net::address(who.version, words).map(|ip| SocketAddr::new(ip, port).to_string())
    };
    let (local, remote) = (end(who.laddr, who.lport), end(who.raddr, who.rport));
    let of_owner = |value| if who.pid.is_some() { value } else { Value::Null };
    out.row(
        kind,
        &[
            who.pid.map_or(Value::Null, |pid| Value::Uint(pid.into())),
            of_owner(Value::Bytes(&who.comm)),
            of_owner(Value::Uint(who.uid.into())),
            of_owner(Value::Id(who.cgroup_id)),
            Value::Uint(who.version.into()),
            net::ip(who.version, who.laddr),
            net::port(who.lport),
            net::ip(who.version, who.raddr),
            net::port(who.rport),
            Value::Bool(who.v4_mapped),
            Value::Uint(rx_bytes),
            Value::Uint(tx_bytes),
            local.as_deref().map_or(Value::Null, Value::Str),
            remote.as_deref().map_or(Value::Null, Value::Str),
        ],
    );
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
