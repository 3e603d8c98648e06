// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! tcplife: TCP connections when they end: whose, how long, how much.

use bpfscope::net;
use bpfscope::output::Form;
use bpfscope::prelude::*;

bpf!("tcplife");
use bpf::types;

/// Trace TCP connections as they end, with their lifespan and bytes
#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools)]
pub struct Args {
    /// Only IPv4, through whichever kind of socket
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Columns wide enough for any IPv6 address, and one for the IP version
    #[arg(short, long)]
    wide: bool,
    /// Show the time of day when the connection ended
    #[arg(short = 'T', long)]
    time: bool,
    /// Show the seconds since the first line
    #[arg(short, long)]
    timestamp: bool,
    /// Only these local ports
    #[arg(short = 'L', long, value_name = "LIST", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..))]
    localport: Vec<u16>,
    /// Only these remote ports
    #[arg(short = 'D', long, value_name = "LIST", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..))]
    remoteport: Vec<u16>,
    /// The same as --output csv
    #[arg(short = 's', long, conflicts_with_all = ["output", "json"])]
    csv: bool,
    /// Whether only connections of certain tasks are wanted.
    #[arg(skip)]
    by_owner: bool,
}

/// include/net/tcp_states.h
const STATES: [&str; 12] = [
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
    "NEW_SYN_RECV",
];

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows each TCP connection when it ends: the process, both ends, what was sent and received, and how \
long it lasted, from the end of the handshake on. A connect that was refused or got no answer is \
shown with the time that it took.

The process is the one that called connect() or accept(), not whoever closes the socket, and not \
whoever happened to be interrupted when the last packet came. A connection that ended before \
anybody accepted it belongs to nobody: its process is shown as ?, and it is left out when tasks are \
filtered. TX_KB is what the other side acknowledged, RX_KB what arrived in order, both without the \
headers, in units of 1,024 bytes; the fields tx_bytes and rx_bytes are exact.

The socket ends when the connection does. The minute of TIME_WAIT that follows on the side that \
closed first is not part of it. The field last_state says how it ended: FIN_WAIT2 or CLOSING, this \
side closed first; LAST_ACK, the other one did; SYN_SENT, it was never established; any other, it \
was cut off. reset says who cut it off, error what the application was told (ECONNRESET, ETIMEDOUT), \
retransmits how many segments had to be sent again, direction who had connected (out: this side).",
        examples: "\
What did each connection carry?

    # tcplife
    PID     COMM             LADDR           LPORT RADDR           RPORT TX_KB  RX_KB  MS
    2101    curl             192.0.2.10      48212 198.51.100.7    443   0.71   84.02  112.84
    884     sshd             192.0.2.10      22    203.0.113.5     51022 7.60   4.11   34120.77

Which connections to the database are cut off, and by whom?

    # tcplife -D 5432 --fields +reset,+error --filter 'reset ~ .'

What came to a web server, as a file for later?

    # tcplife -L 80,443 --output json --duration 60 >connections",
        overhead: "\
One probe at each change of a TCP socket's state, some six for a connection, and one at accept; \
nothing while data flows. Where no kernel function can be probed (way tp), each system call of the \
machine costs a few nanoseconds more.",
        limits: "\
Connections that were established before the tool started are not shown; nor are those that have \
not ended when it ends. What was sent and never acknowledged, because the connection was cut off, \
is not in TX_KB. Room is for 65,000 connections at a time; what finds none is counted. With MPTCP, \
each subflow is a connection, and those that were joined later belong to nobody.

In way tp, what io_uring accepts belongs to nobody, and so does what is over before accept() \
returns.",
    };
    const QUESTION: Question = Question {
        heading: "Network",
        question: "How long did TCP connections last, and what did they carry?",
    };
    const LETTERS: &'static [(&'static str, char)] = &[("pid", 'p')];

    fn ways(&self) -> Vec<Way> {
        net::connection_ways(&["reset_sent__all", "reset_received__all"])
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        self.by_owner = common.filters_tasks() || !common.command.is_empty();
        if self.csv {
            common.choice.form = Form::Csv;
        }
        Ok(())
    }

    fn records(&self) -> Records {
        let address = if self.wide { 39 } else { 15 };
        let time = if self.timestamp { "TIME" } else { "TIME(s)" };
        let kind = Kind::event("connection")
            .field("ip", Type::Uint, "4 or 6: what was sent.")
            .field("laddr", Type::Ip, "Local address.")
            .field("lport", Type::Uint, "Local port; null when there was none yet.")
            .field("raddr", Type::Ip, "Remote address.")
            .field("rport", Type::Uint, "Remote port.")
            .field("v4_mapped", Type::Bool, "Whether it was IPv4 through an IPv6 socket.")
            .field("direction", Type::String, "out: this side connected; in: it accepted.")
            .field("established", Type::Bool, "Whether the handshake came to its end.")
            .field("tx_bytes", Type::Uint, "Bytes sent and acknowledged.")
            .field("rx_bytes", Type::Uint, "Bytes received.")
            .field("retransmits", Type::Uint, "Segments that were sent again.")
            .field(
                "duration_ns",
                Type::Uint,
                "Time since it was established; since connect() if it never was.",
            )
            .field("last_state", Type::Name, "The socket's state before the end.")
            .field(
                "reset",
                Type::String,
                "Which side cut it off: sent or received; null when neither did.",
            )
            .field("error", Type::Errno, "What the application was told; null when it ended well.")
            .columns([
                time_column(time, 8, TimeFormat::Wall).when(self.time),
                time_column("TIME(s)", 9, TimeFormat::SinceFirst).decimals(6).when(self.timestamp),
                column("pid", "PID", 7),
                column("comm", "COMM", 16),
                column("ip", "IP", 2).when(self.wide),
                column("laddr", "LADDR", address),
                column("lport", "LPORT", 5).null("-"),
                column("raddr", "RADDR", address),
                column("rport", "RPORT", 5),
                column("tx_bytes", "TX_KB", 6).format(Format::KibWith(2)),
                column("rx_bytes", "RX_KB", 6).format(Format::KibWith(2)),
                column("error", "ERR", 3).when(false),
                column("reset", "RESET", 8).null("-").when(false),
                column("duration_ns", "MS", 0).format(Format::Millis(2)),
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
        settings.want_lports = !self.localport.is_empty();
        settings.want_rports = !self.remoteport.is_empty();
        for port in &self.localport {
            settings.want_lport[usize::from(port / 64)] |= 1 << (port % 64);
        }
        for port in &self.remoteport {
            settings.want_rport[usize::from(port / 64)] |= 1 << (port % 64);
        }
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        session.stream(&skel.maps.events, show)
    }
}

fn show(record: Event<'_>, out: &mut Output) -> Result<()> {
    let event: &types::event = record.body()?;
    let tuple = &event.tuple;
    let state = usize::from(event.last_state);
    let values = [
        Value::Uint(tuple.version.into()),
        net::ip(tuple.version, tuple.saddr),
        net::port(tuple.sport),
        net::ip(tuple.version, tuple.daddr),
        net::port(tuple.dport),
        Value::Bool(tuple.v4_mapped != 0),
        match event.direction {
            types::direction::DIRECTION_OUT => Value::Str("out"),
            types::direction::DIRECTION_IN => Value::Str("in"),
            _ => Value::Null,
        },
        Value::Bool(event.established != 0),
        Value::Uint(event.tx_bytes),
        Value::Uint(event.rx_bytes),
        Value::Uint(event.retransmits.into()),
        Value::Uint(event.duration_ns),
        Value::Name(STATES.get(state.wrapping_sub(1)).copied(), event.last_state.into()),
        match event.reset {
            types::reset::RESET_SENT => Value::Str("sent"),
            types::reset::RESET_RECEIVED => Value::Str("received"),
            _ => Value::Null,
        },
        Value::Errno(i32::try_from(event.error).unwrap_or(0)),
    ];
    if event.owned != 0 {
        out.event(0, record.head()?, &values);
    } else {
        out.event_of_nobody(0, record.head()?.boot_ns, &values);
    }
    Ok(())
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
