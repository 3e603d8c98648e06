// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! tcpconnect: who opens which TCP connections.

mod dns;

use std::collections::HashMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use bpfscope::maps;
use bpfscope::names::errno;
use bpfscope::net;
use bpfscope::output::Form;
use bpfscope::output::Output;
use bpfscope::prelude::*;
use bpfscope::shared::EventHead;

bpf!("tcpconnect");
use bpf::types;

/// Trace active TCP connects
#[derive(clap::Args)]
#[allow(clippy::struct_excessive_bools)]
pub struct Args {
    /// Count connects by addresses and port, and show the table at the end
    #[arg(short, long)]
    count: bool,
    /// Show the user id
    #[arg(short = 'U', long, conflicts_with = "count")]
    print_uid: bool,
    /// Show the source port behind the addresses; with -c count each by itself
    #[arg(short, long)]
    source_port: bool,
    /// The same, between the addresses
    #[arg(short = 'L', long)]
    lport: bool,
    /// Only these destination ports
    #[arg(short = 'P', long, value_name = "LIST", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..))]
    port: Vec<u16>,
    /// Only IPv4, through whichever kind of socket
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Only IPv6
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Show the name that the destination was looked up by, from DNS answers
    #[arg(short, long, conflicts_with = "count")]
    dns: bool,
    /// Also connects that failed before anything was sent, and why
    #[arg(short = 'x', long, conflicts_with = "count")]
    fails: bool,
    /// Wait for the end of each handshake and show what came of it
    #[arg(long, conflicts_with = "count")]
    result: bool,
}

/// An answer that is older than this is shown with its age.
const AGE_SHOWN_NS: u64 = 100_000_000;

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows each TCP connection that this machine begins: the process, the addresses and the port, at \
the moment when the first packet (SYN) is sent. What was accepted from outside is not shown. \
IPv4 and IPv6 are seen, blocking and non-blocking calls, MSG_FASTOPEN, io_uring and the kernel's \
own clients, such as NFS. An IPv6 socket that connects to ::ffff:a.b.c.d sends IPv4, and is shown \
so; the field v4_mapped tells.

That a line appears does not mean that anybody answered. --result holds each line back until the \
handshake is over and adds what came of it: established, the error (ECONNREFUSED when the other \
side refused, ETIMEDOUT when nobody answered), or closed, when the application gave up first. What \
is undecided when the tool ends is shown as pending. -x adds connects that failed before \
anything was sent, for want of a route (ENETUNREACH) or of a free port (EADDRNOTAVAIL).

-d shows the name that the destination was looked up by: localhost, the name in the latest \
DNS answer with this address, or No DNS Query. An answer that had come more than 100 ms before is \
shown with its age. -c shows nothing until the end, then how often each destination was connected \
to.",
        examples: "\
Which process connects where, and is it let in?

    # tcpconnect --result
    PID    COMM             IP SADDR            DADDR            DPORT RESULT
    2101   curl             4  192.0.2.10       198.51.100.7     443   established
    2102   backup           6  2001:db8::10     2001:db8::20     8000  ECONNREFUSED

Who talks to a database, by name?

    # tcpconnect -d -P 3306,5432

How many connections does a service open in a minute, and to whom?

    # tcpconnect -c --cgroup /system.slice/app.service --duration 60",
        overhead: "\
One probe at the end of each connect, much cheaper than the connect itself; --result adds a probe \
at each change of a TCP socket's state. -d looks at each datagram that is received. Where no \
kernel function can be probed (way tp), each system call of the machine costs a few nanoseconds \
more.",
        limits: "\
Only DNS answers over UDP are seen, and only if they were received into one buffer of at most \
1,500 bytes: not DNS over TCP, TLS or HTTPS. An answer that a caching service (systemd-resolved, \
nscd) gives from its memory over a local socket is no DNS answer; the name is known if the service \
asked while the tool was running. An address that several names lead to has the one asked for \
last.

In way tp a blocking connect is shown when it returns, when it is answered, or when its first \
packet is repeated a second later, whichever comes first; -x shows what connect() itself \
returned; -d is not possible. A connect with TCP_FASTOPEN_CONNECT is shown when connect() is \
called, though its first packet may wait for data. Before 5.12 a connect that io_uring leaves to a \
worker is the worker's, which is no thread of the process there.",
    };
    const QUESTION: Question = Question {
        heading: "Network",
        question: "Who opens TCP connections to where, and do they succeed?",
    };
    const LETTERS: &'static [(&'static str, char)] =
        &[("timestamp", 't'), ("pid", 'p'), ("uid", 'u'), ("cgroupmap", 'C'), ("mntnsmap", 'M')];
    const TABLE: Option<Table> = Some(Table::running_on("connects"));

    fn ways(&self) -> Vec<Way> {
        let handshake = &["handshake__all"];
        let mut ways = vec![
            Way::new("fexit", &[])
                .with(self.result, handshake)
                .with(true, &["connect6__fexit", "connect4__fexit"])
                .twin("connect6__fexit", "connect6_twin__fexit")
                .twin("connect4__fexit", "connect4_twin__fexit")
                .with(self.dns, &["dns6__fexit", "dns4__fexit"]),
            Way::new("kprobe", &[])
                .with(self.result, handshake)
                .with(true, &["connect4_exit__kprobe", "connect4_enter__kprobe"])
                .with(self.dns, &["dns_end__kprobe", "dns4_enter__kprobe"])
                .optional(&["connect6_exit__kprobe", "connect6_enter__kprobe"]),
            Way::new("tp", &["call_exit__tp", "call_lasts__tp", "handshake__all"]),
        ];
        if self.dns {
            // No tracepoint sees what is received.
            ways.pop();
            ways[1].optional.push("dns6_enter__kprobe");
        }
        ways
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        // What was saved may be a table.
        if self.count || common.from.is_some() {
            return Ok(());
        }
        let table = common.choice.table.take();
        if table.is_some_and(|table| table.sort.is_some() || table.rows.is_some()) {
            return Err(usage("--sort and --rows are for the table of --count"));
        }
        Ok(())
    }

    fn records(&self) -> Records {
        let lport = |header, width, place| {
            column("sport", header, width).null("-").when(if place == 'L' {
                self.lport
            } else {
                self.source_port && !self.lport
            })
        };
        let connect = Kind::event("connect")
            .field("ip", Type::Uint, "4 or 6: what was sent.")
            .field("saddr", Type::Ip, "Source address.")
            .field("sport", Type::Uint, "Source port; null when there was none yet.")
            .field("daddr", Type::Ip, "Destination address; null when the caller gave none.")
            .field("dport", Type::Uint, "Destination port.")
            .field("v4_mapped", Type::Bool, "Whether it is IPv4 through an IPv6 socket.")
            .field("sent", Type::Bool, "Whether the SYN was sent; false only with --fails.")
            .field("result", Type::String, "What came of it: established, closed, pending, or the name of the error; null for connects that were sent, unless --result was given.")
            .field("error", Type::Errno, "Why it failed; null when it did not, or when that is not known.")
            .field("query", Type::String, "The name that the address was looked up by, or localhost; null without --dns, or when no answer was seen.")
            .field("query_age_ns", Type::Uint, "How long before the connect that answer had come.")
            .columns([
                time_column("TIME(s)", 9, TimeFormat::SinceFirst),
                column("uid", "UID", 6).when(self.print_uid),
                column("pid", "PID", 6),
                column("tid", "TID", 6).when(false),
                column("comm", "COMM", 16),
                column("ip", "IP", 2),
                column("saddr", "SADDR", 16),
                lport("LPORT", 5, 'L'),
                column("daddr", "DADDR", 16),
                lport("SPORT", 5, 's'),
                column("dport", "DPORT", 5),
                column("error", "ERR", 3).when(self.fails && !self.result),
                column("result", "RESULT", 12).null("-").when(self.result),
                column("query", "QUERY", 0).null("No DNS Query").when(self.dns),
            ]);
        let count = Kind::row("count")
            .field("ip", Type::Uint, "4 or 6: what was sent.")
            .field("saddr", Type::Ip, "Source address.")
            .field("sport", Type::Uint, "Source port; null unless -s or -L was given.")
            .field("daddr", Type::Ip, "Destination address.")
            .field("dport", Type::Uint, "Destination port.")
            .field("connects", Type::Uint, "How many connects.")
            .columns([
                column("saddr", "LADDR", 25),
                column("daddr", "RADDR", 25),
                column("sport", "LPORT", 20).when(self.source_port || self.lport),
                column("dport", "RPORT", 20),
                column("connects", "CONNECTS", 10),
            ]);
        // The kind that is shown comes first.
        if self.count {
            Records::new([count, connect]).banner("Tracing connect ... Hit Ctrl-C to end")
        } else {
            Records::new([connect, count])
        }
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, way: &Way) -> Result<()> {
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_fails = self.fails;
        settings.want_result = self.result;
        settings.want_count = self.count;
        settings.want_sport = self.source_port || self.lport;
        settings.want_version = match (self.ipv4, self.ipv6) {
            (true, _) => 4,
            (_, true) => 6,
            _ => 0,
        };
        settings.want_ports = !self.port.is_empty();
        for port in &self.port {
            settings.want_port[usize::from(port / 64)] |= 1 << (port % 64);
        }
        settings.way_is_tp = way.name == "tp";
        open.maps.pending.set_autocreate(self.result || way.name == "tp")?;
        open.maps.counts.set_autocreate(self.count)?;
        open.maps.events.set_autocreate(!self.count)?;
        open.maps.slot_dns4.set_autocreate(self.dns)?;
        open.maps.slot_dns6.set_autocreate(self.dns)?;
        open.maps.dns_calls__kprobe.set_autocreate(self.dns && way.name == "kprobe")?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let waits = self.result || session.way.name == "tp";
        if self.count {
            return session.every(Every {
                interval: None,
                count: None,
                act: &mut |out| {
                    self.table(skel, if waits { undecided(skel)? } else { Vec::new() }, out)
                },
            });
        }
        let mut names = dns::Names::default();
        session.stream(&skel.maps.events, |bytes, out| {
            let record: &types::record = bytes.body()?;
            if record.kind == types::record_kind::RECORD_DNS {
                let message = bytes.tail::<types::record>();
                let size = message.len().min(record.size as usize);
                names.learn(&message[..size], record.head.boot_ns);
                return Ok(());
            }
            self.show(bytes.head()?, bytes.body()?, false, &names, out);
            Ok(())
        })?;
        if waits {
            for (head, event) in undecided(skel)? {
                self.show(&head, &event, true, &names, &mut session.output);
            }
        }
        Ok(())
    }
}

impl Args {
    /// Shows a connect; `pending` says that it was still under way at the end.
    fn show(
        &self,
        head: &EventHead,
        event: &types::event,
        pending: bool,
        names: &dns::Names,
        out: &mut Output,
    ) {
        let tuple = &event.tuple;
        let unsent = event.outcome == types::outcome::OUTCOME_UNSENT;
        let error = i32::try_from(event.error).unwrap_or(0);
        let failed = || errno(error.into()).unwrap_or("failed");
        let result = match event.outcome {
            _ if pending && self.result => Some("pending"),
            types::outcome::OUTCOME_ESTABLISHED => Some("established"),
            types::outcome::OUTCOME_CLOSED => Some("closed"),
            types::outcome::OUTCOME_FAILED | types::outcome::OUTCOME_UNSENT => Some(failed()),
            _ => None,
        };
        let daddr = net::address(tuple.version, tuple.daddr);
        let mut text = Vec::new();
        let found = daddr.filter(|_| self.dns).and_then(|address| {
            let (name, age) = names.find(address, head.boot_ns)?;
            text.extend_from_slice(name.as_bytes());
            if age > AGE_SHOWN_NS && out.form() == Form::Columns {
                // Into memory, which does not fail.
                let _ = write!(text, " ({}.{:03}ms)", age / 1_000_000, age / 1000 % 1000);
            }
            Some(age)
        });
        let query = match (found, daddr) {
            (Some(_), _) => Value::Bytes(&text),
            (None, Some(address)) if self.dns && is_localhost(address) => Value::Str("localhost"),
            _ => Value::Null,
        };
        out.event(
            0,
            head,
            &[
                Value::Uint(tuple.version.into()),
                net::ip(tuple.version, tuple.saddr),
                net::port(tuple.sport),
                daddr.map_or(Value::Null, Value::Ip),
                Value::Uint(tuple.dport.into()),
                Value::Bool(tuple.v4_mapped != 0),
                Value::Bool(!unsent),
                result.map_or(Value::Null, Value::Str),
                Value::Errno(error),
                query,
                found.map_or(Value::Null, Value::Uint),
            ],
        );
    }

    /// The table of `--count`. `undecided` are those that were under way at the end.
    fn table(
        &self,
        skel: &bpf::Skel<'_>,
        undecided: Vec<(EventHead, types::event)>,
        out: &mut Output,
    ) -> Result<()> {
        let mut counts: HashMap<Target, u64> = HashMap::new();
        for (key, values) in maps::read_all(&skel.maps.counts)?.iter() {
            let tuple: types::sock_tuple = maps::copy(key)?;
            let count: u64 = maps::copy(values.first().context("a count without a value")?)?;
            *counts.entry(Target::from(&tuple)).or_default() += count;
        }
        for (_, event) in undecided {
            let mut target = Target::from(&event.tuple);
            if !(self.source_port || self.lport) {
                target.sport = 0;
            }
            *counts.entry(target).or_default() += 1;
        }
        for (target, count) in counts {
            out.row(
                0,
                &[
                    Value::Uint(target.version.into()),
                    net::ip(target.version, target.saddr),
                    net::port(target.sport),
                    net::ip(target.version, target.daddr),
                    Value::Uint(target.dport.into()),
                    Value::Uint(count),
                ],
            );
        }
        out.report_done();
        Ok(())
    }
}

/// What `--count` counts by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Target {
    version: u8,
    daddr: [u32; 4],
    dport: u16,
    saddr: [u32; 4],
    sport: u16,
}

impl From<&types::sock_tuple> for Target {
    fn from(tuple: &types::sock_tuple) -> Self {
        Self {
            version: tuple.version,
            daddr: tuple.daddr,
            dport: tuple.dport,
            saddr: tuple.saddr,
            sport: tuple.sport,
        }
    }
}

fn is_localhost(address: IpAddr) -> bool {
    address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST
}

/// Connects that were still under way when the programs were detached, in their order.
fn undecided(skel: &bpf::Skel<'_>) -> Result<Vec<(EventHead, types::event)>> {
    let mut all = Vec::new();
    for (_, values) in maps::read_all(&skel.maps.pending)?.iter() {
        let bytes = values.first().context("a pending connect without a value")?;
        let pending: types::pending = maps::copy(bytes)?;
        // What is giving up has not sent anything.
        if pending.giving_up == 0 {
            // Each struct begins with the next one.
            all.push((maps::copy(bytes)?, pending.event));
        }
    }
    all.sort_unstable_by_key(|(head, _): &(EventHead, _)| head.boot_ns);
    Ok(all)
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
