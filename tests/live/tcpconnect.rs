// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! tcpconnect against connects that the tests make, each test in a network namespace of its own.

use std::fs;
use std::fs::File;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::IoSliceMut;
use std::io::Read as _;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::Backlog;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::accept;
use nix::sys::socket::listen;
use nix::sys::socket::recvmsg;
use nix::sys::socket::sendto;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::command;
use crate::support::gettid;
use crate::support::kernel;
use crate::support::losses::assert_counted;
use crate::support::net::*;
use crate::support::start;
use crate::support::uring;

pub const CASES: &[Case] = &[
    Case::alone("every connect once", every_connect),
    Case::alone("other ways to connect", other_ways),
    Case::new("failures", failures),
    Case::new("results", results),
    Case::alone("a blocked connect is shown at once", blocked).in_turn(),
    Case::new("counts", counts).in_turn(),
    Case::new("ports and families", ports_and_families).in_turn(),
    Case::new("filters on the task", task_filters),
    Case::new("DNS names", dns_names).in_turn(),
    Case::new("text columns", text_columns).in_turn(),
    Case::new("text of counts", text_counts).in_turn(),
    Case::new("what does not fit is counted", no_room).in_turn(),
];

/// A listener on 127.0.0.1 that does not answer any more: its queue is full. Also the connection
/// that fills it.
fn silent() -> (OwnedFd, OwnedFd, SocketAddr) {
    let full = listener("127.0.0.1", 0);
    let to = local(&full);
    let (first, result) = dial(to, false);
    result.expect("room for one");
    (full, first, to)
}

fn set_syn_retries(fd: &OwnedFd, retries: libc::c_int) {
    let size = libc::socklen_t::try_from(size_of_val(&retries)).expect("small");
    // SAFETY: an int, as the option wants it.
    let result = unsafe {
        let value = (&raw const retries).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_SYNCNT, value, size)
    };
    assert_eq!(result, 0);
}

/// What an event says of the connection: IP version, addresses, ports, whether v4-mapped.
type Connection = (u64, String, Option<u64>, String, u64, bool);

fn connection(event: &Value) -> Connection {
    let text = |name: &str| event[name].as_str().unwrap_or("?").to_string();
    (
        event["ip"].as_u64().expect("ip"),
        text("saddr"),
        event["sport"].as_u64(),
        text("daddr"),
        event["dport"].as_u64().expect("dport"),
        event["v4_mapped"].as_bool().expect("v4_mapped"),
    )
}

/// The same of a socket that was told to connect to `to`.
fn expected(fd: &OwnedFd, to: SocketAddr) -> Connection {
    let from = local(fd);
    let plain = |ip: IpAddr| ip.to_canonical();
    let mapped = to.is_ipv6() && plain(to.ip()).is_ipv4();
    (
        if plain(to.ip()).is_ipv4() { 4 } else { 6 },
        plain(from.ip()).to_string(),
        Some(from.port().into()),
        plain(to.ip()).to_string(),
        to.port().into(),
        mapped,
    )
}

fn connections(finished: &Finished) -> Vec<Connection> {
    finished.of("event").map(connection).collect()
}

/// 1,200 connects, IPv4, IPv6 and IPv4 through IPv6 sockets, blocking and not: each is there,
/// once, in order, with its process and both its ends.
fn every_connect() -> Outcome {
    const EACH: usize = 200;
    isolated(|| {
        let v4 = listener("127.0.0.1", 4 * EACH as i32);
        let v6 = listener("::1", 2 * EACH as i32);
        let targets = [local(&v4), local(&v6), address("::ffff:127.0.0.1", port_of(&v4))];
        let tool = start("tcpconnect", &["--pid", &std::process::id().to_string()]);
        let mut wanted = Vec::new();
        for i in 0..2 * EACH {
            let nonblocking = i % 2 == 1;
            for to in targets {
                let (fd, result) = dial(to, nonblocking);
                match result {
                    Ok(()) => {}
                    Err(error) => assert_eq!((error, nonblocking), (Errno::EINPROGRESS, true)),
                }
                wanted.push(expected(&fd, to));
            }
        }
        let finished = tool.stop();
        finished.assert_clean();
        let me = std::process::id();
        for event in finished.of("event") {
            assert_eq!((&event["pid"], &event["tid"]), (&me.into(), &gettid().into()));
            assert_eq!((&event["kind"], &event["sent"]), (&"connect".into(), &true.into()));
            assert_eq!((&event["error"], &event["error_raw"]), (&Value::Null, &0.into()));
            assert_eq!((&event["result"], &event["query"]), (&Value::Null, &Value::Null));
        }
        assert_eq!(connections(&finished), wanted);
        Outcome::Passed
    })
}

/// sendto() with MSG_FASTOPEN, io_uring in the task and in a worker, connect() to 0.0.0.0, a
/// socket that connects to itself, and one that is bound first; what is accepted is not shown.
fn other_ways() -> Outcome {
    isolated(|| {
        let v4 = listener("127.0.0.1", 100);
        let to = local(&v4);
        let tool = start("tcpconnect", &["--pid", &std::process::id().to_string()]);
        let mut wanted = Vec::new();

        let fast = tcp(AddressFamily::Inet, false);
        sendto(
            fast.as_raw_fd(),
            b"x",
            &SockaddrStorage::from(to),
            MsgFlags::from_bits_retain(libc::MSG_FASTOPEN),
        )
        .expect("fast open");
        wanted.push(expected(&fast, to));

        let (any, result) = dial(address("0.0.0.0", to.port()), false);
        result.expect("connect");
        wanted.push(expected(&any, to));

        let own = bound("127.0.0.1");
        let itself = local(&own);
        connect_to(&own, itself).expect("simultaneous open");
        wanted.push(expected(&own, itself));

        let from_there = bound("127.0.0.1");
        connect_to(&from_there, to).expect("connect");
        wanted.push(expected(&from_there, to));

        let mut rings = Vec::new();
        if let Ok(mut ring) = uring::ring() {
            for worker in [false, true] {
                // A worker of 5.10 is a thread of the kernel, not of this process.
                if worker && kernel() == "5.10" {
                    continue;
                }
                let fd = tcp(AddressFamily::Inet, false);
                let result =
                    uring::connect(&mut ring, fd.as_raw_fd(), &SockaddrStorage::from(to), worker);
                assert_eq!(result, 0, "worker: {worker}");
                wanted.push(expected(&fd, to));
                rings.push(fd);
            }
        }
        let finished = tool.stop();
        finished.assert_clean();
        assert_eq!(connections(&finished), wanted);
        // A worker's own name is not the program's.
        let comm = fs::read_to_string("/proc/self/comm").expect("comm");
        let names: Vec<_> = finished.of("event").map(|e| e["comm"].as_str()).collect();
        if rings.len() == 2 {
            assert_eq!(names.last(), Some(&Some(comm.trim_end())));
        }
        Outcome::Passed
    })
}

/// -x adds what failed before a SYN was sent, with the reason; without it only what was sent.
fn failures() -> Outcome {
    isolated(|| {
        let refuses = bound("127.0.0.1");
        let open = listener("127.0.0.1", 10);
        let tid = gettid().to_string();
        let plain = start("tcpconnect", &["--tid", &tid]);
        let all = start("tcpconnect", &["--tid", &tid, "-x"]);

        let refused = local(&refuses);
        let (fd, result) = dial(refused, false);
        assert_eq!(result, Err(Errno::ECONNREFUSED));
        let mut wanted = vec![(refused.ip().to_string(), refused.port(), true, None)];
        drop(fd);
        for to in ["255.255.255.255", "224.0.0.1", "ff02::1", "::ffff:255.255.255.255"] {
            let to = address(to, 9);
            let (_fd, result) = dial(to, false);
            let error = result.expect_err("no route");
            let shown = to.ip().to_canonical().to_string();
            wanted.push((shown, 9, false, Some(format!("{error:?}"))));
        }
        // Refused by tcp_v6_connect() itself, before it asks tcp_v4_connect().
        let only = tcp(AddressFamily::Inet6, false);
        setsockopt(&only, sockopt::Ipv6V6Only, &true).expect("IPV6_V6ONLY");
        let to = address("::ffff:127.0.0.1", port_of(&open));
        assert_eq!(connect_to(&only, to), Err(Errno::ENETUNREACH));
        wanted.push(("127.0.0.1".into(), to.port(), false, Some("ENETUNREACH".into())));
        // One source port for everything: the second connection to the same place has none.
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "50000 50000").expect("sysctl");
        let to = local(&open);
        let (first, result) = dial(to, false);
        result.expect("the first");
        wanted.push(("127.0.0.1".into(), to.port(), true, None));
        let (_second, result) = dial(to, true);
        assert_eq!(result, Err(Errno::EADDRNOTAVAIL));
        wanted.push(("127.0.0.1".into(), to.port(), false, Some("EADDRNOTAVAIL".into())));
        // Not a failed connect: the socket has one already.
        assert_eq!(connect_to(&first, to), Err(Errno::EISCONN));

        let seen = |finished: &Finished| -> Vec<_> {
            finished.assert_clean();
            finished
                .of("event")
                .map(|event| {
                    let (_, _, _, daddr, dport, _) = connection(event);
                    let error = event["error"].as_str().map(String::from);
                    assert_eq!(event["result"].as_str().map(String::from), error);
                    (
                        daddr,
                        u16::try_from(dport).expect("a port"),
                        event["sent"].as_bool().expect("sent"),
                        error,
                    )
                })
                .collect()
        };
        assert_eq!(seen(&all.stop()), wanted);
        wanted.retain(|(_, _, sent, _)| *sent);
        assert_eq!(seen(&plain.stop()), wanted);
        Outcome::Passed
    })
}

/// --result: established, refused, timed out, closed, and what is undecided at the end.
fn results() -> Outcome {
    isolated(|| {
        let v4 = listener("127.0.0.1", 10);
        let v6 = listener("::1", 10);
        let refuses = bound("::1");
        let (_full, _first, nowhere) = silent();
        let tool = start("tcpconnect", &["--tid", &gettid().to_string(), "--result", "-x"]);
        let mut wanted = Vec::new();

        for (to, nonblocking) in [(local(&v4), false), (local(&v4), true), (local(&v6), false)] {
            let (fd, _) = dial(to, nonblocking);
            wanted.push((expected(&fd, to), "established"));
        }
        let mapped = address("::ffff:127.0.0.1", port_of(&v4));
        let (fd, _) = dial(mapped, false);
        wanted.push((expected(&fd, mapped), "established"));
        let own = bound("127.0.0.1");
        let itself = local(&own);
        connect_to(&own, itself).expect("simultaneous open");
        wanted.push((expected(&own, itself), "established"));

        // The socket of a refused blocking connect forgets its port, but not one it was bound to.
        let from = bound("::1");
        let source = local(&from);
        assert_eq!(connect_to(&from, local(&refuses)), Err(Errno::ECONNREFUSED));
        let (_, saddr, _, daddr, dport, _) = expected(&from, local(&refuses));
        wanted.push(((6, saddr, Some(source.port().into()), daddr, dport, false), "ECONNREFUSED"));

        let (_fd, result) = dial(address("224.0.0.1", 9), false);
        assert_eq!(result, Err(Errno::ENETUNREACH));
        wanted.push(((4, "0.0.0.0".into(), None, "224.0.0.1".into(), 9, false), "ENETUNREACH"));

        let (closed, result) = dial(nowhere, true);
        assert_eq!(result, Err(Errno::EINPROGRESS));
        wanted.push((expected(&closed, nowhere), "closed"));
        drop(closed);

        let slow = tcp(AddressFamily::Inet, true);
        set_syn_retries(&slow, 1);
        assert_eq!(connect_to(&slow, nowhere), Err(Errno::EINPROGRESS));
        wanted.push((expected(&slow, nowhere), "ETIMEDOUT"));
        let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&slow), PollFlags::POLLOUT)];
        assert_eq!(poll(&mut fds, PollTimeout::NONE), Ok(1));

        // Two at once, in their order.
        let pending: Vec<OwnedFd> = (0..2).map(|_| dial(nowhere, true).0).collect();
        wanted.extend(pending.iter().map(|fd| (expected(fd, nowhere), "pending")));

        let finished = tool.stop();
        finished.assert_clean();
        let seen: Vec<(Connection, &str)> = finished
            .of("event")
            .map(|event| {
                let result = event["result"].as_str().expect("a result");
                let error = event["error"].as_str();
                assert_eq!(error, Some(result).filter(|name| name.starts_with('E')));
                assert_eq!(event["sent"], result != "ENETUNREACH");
                (connection(event), result)
            })
            .collect();
        assert_eq!(seen, wanted);
        Outcome::Passed
    })
}

/// A blocking connect to a host that does not answer is shown while it waits. The host answers when
/// it is asked again, once its queue has room.
fn blocked() -> Outcome {
    isolated(|| {
        let (full, _first, nowhere) = silent();
        let fd = Arc::new(tcp(AddressFamily::Inet, false));
        let mut tool = start(
            "tcpconnect",
            &["--pid", &std::process::id().to_string(), "-P", &nowhere.port().to_string()],
        );
        let returned = Arc::new(AtomicBool::new(false));
        let waiting = thread::spawn({
            let (fd, returned) = (fd.clone(), returned.clone());
            move || {
                let result = connect_to(&fd, nowhere);
                returned.store(true, Ordering::SeqCst);
                result
            }
        });
        let event = tool.wait_for(|record| record["type"] == "event");
        assert!(!returned.load(Ordering::SeqCst), "it has returned");
        assert_eq!(connection(&event), expected(&fd, nowhere));
        accept(full.as_raw_fd()).expect("accept");
        assert_eq!(waiting.join().expect("thread"), Ok(()));
        let finished = tool.stop();
        finished.assert_clean();
        assert_eq!(finished.of("event").count(), 1);
        Outcome::Passed
    })
}

/// -c: no events, totals at the end, the largest first, IPv4 and IPv6 in one table.
fn counts() -> Outcome {
    isolated(|| {
        let v4 = listener("127.0.0.1", 100);
        let v6 = listener("::1", 100);
        let refuses = bound("127.0.0.1");
        let tid = gettid().to_string();
        let by_target = start("tcpconnect", &["-c", "--tid", &tid]);
        let by_source = start("tcpconnect", &["-c", "-s", "--tid", &tid]);
        let by_lport = start("tcpconnect", &["--count", "-L", "--tid", &tid, "-6"]);
        let by_dport =
            start("tcpconnect", &["-c", "--tid", &tid, "--sort", "dport", "--rows", "2"]);
        let mut sources = Vec::new();
        let mapped = address("::ffff:127.0.0.1", port_of(&v4));
        let mut times = |to: SocketAddr, n: usize| {
            for i in 0..n {
                let (fd, result) = dial(to, i % 2 == 0);
                let from = result.map_or_else(
                    |error| (error == Errno::EINPROGRESS).then(|| local(&fd)),
                    |()| Some(local(&fd)),
                );
                sources.extend(from.map(|from| u64::from(from.port())));
            }
        };
        times(local(&v4), 20);
        times(mapped, 7);
        times(local(&v6), 30);
        times(local(&refuses), 3);
        // Nothing of this was sent.
        dial(address("224.0.0.1", 9), false).1.expect_err("multicast");

        let rows = |finished: &Finished| -> Vec<_> {
            finished.assert_clean();
            assert_eq!(finished.of("event").count(), 0);
            finished
                .of("row")
                .map(|row| {
                    assert_eq!(row["kind"], "count");
                    let number = |name: &str| row[name].as_u64();
                    let text = |name: &str| row[name].as_str().expect("an address").to_string();
                    (
                        number("ip"),
                        text("saddr"),
                        number("sport"),
                        text("daddr"),
                        number("dport"),
                        number("connects"),
                    )
                })
                .collect()
        };
        let totals = rows(&by_target.stop_with(Signal::SIGTERM));
        let row = |ip, at: &str, port: &OwnedFd, n| {
            (Some(ip), at.to_string(), None, at.to_string(), Some(port_of(port).into()), Some(n))
        };
        assert_eq!(
            totals,
            [
                row(6, "::1", &v6, 30),
                row(4, "127.0.0.1", &v4, 27),
                row(4, "127.0.0.1", &refuses, 3)
            ]
        );
        let mut ports = [&v4, &v6, &refuses].map(port_of).map(u64::from);
        ports.sort_unstable_by(|a, b| b.cmp(a));
        let by_dport = rows(&by_dport.stop());
        let shown: Vec<u64> = by_dport.iter().map(|row| row.4.expect("a port")).collect();
        assert_eq!(shown, ports[..2]);
        let by_source = rows(&by_source.stop());
        assert_eq!(by_source.iter().map(|row| row.5.expect("count")).sum::<u64>(), 60);
        let mut ports: Vec<u64> = by_source.iter().map(|row| row.2.expect("sport")).collect();
        // A refused blocking connect leaves no port behind to compare with.
        assert!(sources.iter().all(|port| ports.contains(port)) && sources.len() == 59);
        ports.sort_unstable();
        let by_lport = rows(&by_lport.stop());
        assert_eq!(by_lport.len(), 30);
        assert!(by_lport.iter().all(|row| row.0 == Some(6) && row.2.is_some() && row.5 == Some(1)));
        Outcome::Passed
    })
}

fn ports_and_families() -> Outcome {
    isolated(|| {
        let v4: Vec<OwnedFd> = (0..3).map(|_| listener("127.0.0.1", 10)).collect();
        let v6 = listener("::1", 10);
        let ports: Vec<u16> = v4.iter().chain([&v6]).map(port_of).collect();
        let tid = gettid().to_string();
        let run = |args: &[&str]| start("tcpconnect", &[&["--tid", &tid], args].concat());
        let one = run(&["-P", &ports[1].to_string()]);
        // More than a fixed table would hold, the wanted ones last.
        let many: Vec<String> =
            (1..=100u16).chain([ports[0], ports[3]]).map(|p| p.to_string()).collect();
        let many = run(&["--port", &many.join(",")]);
        let (only4, only6) = (run(&["-4"]), run(&["--ipv6"]));
        let mapped = address("::ffff:127.0.0.1", ports[2]);
        for to in v4.iter().chain([&v6]).map(local).chain([mapped]) {
            dial(to, false).1.expect("connect");
        }
        let seen = |tool: crate::support::Running| -> Vec<u16> {
            let finished = tool.stop();
            finished.assert_clean();
            connections(&finished).iter().map(|c| u16::try_from(c.4).expect("a port")).collect()
        };
        assert_eq!(seen(one), [ports[1]]);
        assert_eq!(seen(many), [ports[0], ports[3]]);
        assert_eq!(seen(only4), [ports[0], ports[1], ports[2], ports[2]]);
        assert_eq!(seen(only6), [ports[3]]);
        Outcome::Passed
    })
}

/// A shell that connects there, through bash's own /dev/tcp.
const CONNECT: &str = "exec 3<>\"/dev/tcp/127.0.0.1/$1\"";

fn run_shell(mut command: Command, port: u16) -> u32 {
    let mut child =
        command.args(["-c", CONNECT, "bash", &port.to_string()]).spawn().expect("a shell");
    assert!(child.wait().expect("wait").success());
    child.id()
}

fn task_filters() -> Outcome {
    isolated(|| {
        let open = listener("127.0.0.1", 10);
        let port = port_of(&open);
        let cgroup = Cgroup::new("tcpconnect");
        let at = ["-P", &port.to_string()].map(String::from);
        let run = |args: &[&str]| {
            start("tcpconnect", &[&[at[0].as_str(), at[1].as_str()], args].concat())
        };
        let by_uid = run(&["-u", "65534"]);
        let by_cgroup = run(&["--cgroup", cgroup.path.to_str().expect("UTF-8")]);
        let by_comm = run(&["--comm", "bash", "--result"]);
        let me = std::process::id().to_string();
        let by_pid = run(&["-p", &me]);

        dial(local(&open), false).1.expect("connect");
        let mut other = Command::new("setpriv");
        other.args(["--reuid", "65534", "--clear-groups", "bash"]);
        let nobody = run_shell(other, port);
        let inside = run_shell(cgroup.command("bash", &[]), port);
        let plain = run_shell(Command::new("bash"), port);

        let seen = |tool: crate::support::Running| -> Vec<(u64, u64)> {
            let finished = tool.stop();
            finished.assert_clean();
            finished
                .of("event")
                .map(|e| (e["pid"].as_u64().expect("pid"), e["uid"].as_u64().expect("uid")))
                .collect()
        };
        assert_eq!(seen(by_uid), [(nobody.into(), 65534)]);
        assert_eq!(seen(by_cgroup), [(inside.into(), 0)]);
        assert_eq!(seen(by_comm), [(nobody.into(), 65534), (inside.into(), 0), (plain.into(), 0)]);
        assert_eq!(seen(by_pid), [(std::process::id().into(), 0)]);
        Outcome::Passed
    })
}

/// Answers DNS questions at these places: A with `v4`, AAAA with ::1, behind an alias.
fn serve_dns(at: &[SocketAddr], v4: fn(&[u8]) -> [u8; 4]) {
    for at in at {
        let server = UdpSocket::bind(at).expect("bind");
        thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((size, from)) = server.recv_from(&mut query) {
                let question = &query[12..size];
                let is_v6 = question[question.len() - 3] == 28;
                let mut answer = query[..2].to_vec();
                answer.extend([0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0]);
                answer.extend(question);
                answer.extend(b"\xc0\x0c\0\x05\0\x01\0\0\0\x3c\0\x08\x05alias\xc0\x0c");
                let one: &[u8] = if is_v6 {
                    &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
                } else {
                    &v4(question)
                };
                answer.extend(b"\x05alias\xc0\x0c\0");
                answer.extend([if is_v6 { 28 } else { 1 }, 0, 1, 0, 0, 0, 60, 0]);
                answer.push(u8::try_from(one.len()).expect("short"));
                answer.extend(one);
                server.send_to(&answer, from).expect("answer");
            }
        });
    }
}

/// A question for one label.
fn question(label: &[u8], kind: u8) -> Vec<u8> {
    let mut out = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    out.push(u8::try_from(label.len()).expect("short"));
    out.extend(label);
    out.extend([0, 0, kind, 0, 1]);
    out
}

/// The first byte of the label as the last of 127.0.1.x.
fn by_first_letter(question: &[u8]) -> [u8; 4] {
    [127, 0, 1, question[1]]
}

fn dns_names() -> Outcome {
    isolated(|| {
        let mut probe = command("tcpconnect", &["--output", "json", "-d", "--duration", "0.1"]);
        let tried = probe.output().expect("tcpconnect");
        if tried.status.code() == Some(3) {
            let text = String::from_utf8_lossy(&tried.stderr).into_owned();
            assert_eq!(text.lines().count(), 1, "{text}");
            return Outcome::Skipped("no kernel function can be probed here".into());
        }
        let resolver = address("127.0.0.53", 53);
        let resolver6 = address("::1", 53);
        let not_dns = address("127.0.0.53", 5300);
        serve_dns(&[resolver, resolver6, not_dns], by_first_letter);
        let open = bound("0.0.0.0");
        listen(&open, Backlog::new(100).expect("backlog")).expect("listen");
        let port = port_of(&open);
        let v6 = listener("::1", 10);
        let tid = gettid().to_string();
        let tool = start("tcpconnect", &["-d", "--tid", &tid]);
        let mut text_tool = command("tcpconnect", &["-d", "--tid", &tid, "--limit", "11"]);
        let mut text_tool = text_tool.stdout(Stdio::piped()).spawn().expect("tcpconnect");
        let mut lines = BufReader::new(text_tool.stdout.take().expect("piped")).lines();
        let header = lines.next().expect("a header").expect("readable");
        assert!(header.ends_with("DPORT QUERY"), "{header}");

        let mut buffer = [0; 512];
        let connected = UdpSocket::bind("127.0.0.1:0").expect("bind");
        connected.connect(resolver).expect("connect");
        let loose = UdpSocket::bind("127.0.0.1:0").expect("bind");
        // Not known yet; known without an answer; asked in every way; not from port 53.
        let go = |letter: u8| {
            dial(SocketAddr::from(([127, 0, 1, letter], port)), false).1.expect("connect");
        };
        go(b'a');
        dial(address("127.0.0.1", port), false).1.expect("connect");
        connected.send(&question(b"a-recv", 1)).expect("send");
        connected.recv(&mut buffer).expect("recv");
        go(b'a');
        loose.send_to(&question(b"b-recvfrom", 1), resolver).expect("send");
        loose.recv_from(&mut buffer).expect("recvfrom");
        go(b'b');
        connected.send(&question(b"c-recvmsg", 1)).expect("send");
        recvmsg::<()>(
            connected.as_raw_fd(),
            &mut [IoSliceMut::new(&mut buffer)],
            None,
            MsgFlags::empty(),
        )
        .expect("recvmsg");
        go(b'c');
        connected.send(&question(b"d-read", 1)).expect("send");
        let mut file = File::from(OwnedFd::from(connected.try_clone().expect("dup")));
        assert!(file.read(&mut buffer).expect("read") > 0);
        go(b'd');
        connected.send(&question(b"e\x1b[2J", 1)).expect("send");
        connected.recv(&mut buffer).expect("recv");
        go(b'e');
        loose.send_to(&question(b"f-elsewhere", 1), not_dns).expect("send");
        loose.recv_from(&mut buffer).expect("recvfrom");
        go(b'f');
        dial(local(&v6), false).1.expect("connect");
        let six = UdpSocket::bind("[::1]:0").expect("bind");
        six.send_to(&question(b"six", 28), resolver6).expect("send");
        six.recv_from(&mut buffer).expect("recvfrom");
        dial(local(&v6), false).1.expect("connect");
        let answered = Instant::now();
        // The age is what is tested.
        thread::sleep(Duration::from_millis(200));
        let at_least = u64::try_from(answered.elapsed().as_nanos()).expect("short");
        dial(local(&v6), false).1.expect("connect");

        let finished = tool.stop();
        finished.assert_clean();
        let names: Vec<_> = finished.of("event").map(|event| event["query"].as_str()).collect();
        let evil = "e\u{1b}[2J";
        let wanted = [
            None,
            Some("localhost"),
            Some("a-recv"),
            Some("b-recvfrom"),
            Some("c-recvmsg"),
            Some("d-read"),
            Some(evil),
            None,
            Some("localhost"),
            Some("six"),
            Some("six"),
        ];
        assert_eq!(names, wanted);
        let ages: Vec<_> =
            finished.of("event").map(|event| event["query_age_ns"].as_u64()).collect();
        for (name, age) in names.iter().zip(&ages) {
            assert_eq!(age.is_some(), !matches!(name, None | Some("localhost")));
        }
        assert!(ages.last().expect("events").expect("an age") >= at_least, "{ages:?}");

        interrupt(&text_tool);
        let text: Vec<String> = lines.map_while(Result::ok).collect();
        assert!(text_tool.wait().expect("wait").success());
        assert_eq!(text.len(), wanted.len());
        assert!(text[0].ends_with(" No DNS Query") && text[1].ends_with(" localhost"), "{text:?}");
        assert!(text[6].contains("e\\x1b[2J") && !text[6].contains('\x1b'), "{}", text[6]);
        let (_, old) = text[10].split_once(" six (").expect("an age");
        let ms: f64 = old.strip_suffix("ms)").expect("in ms").parse().expect("a number");
        assert!(
            ms * 1e6 >= 2e8 && old.split_once('.').expect("decimals").1.len() == "000ms)".len(),
            "{old}"
        );
        Outcome::Passed
    })
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(i32::try_from(child.id()).expect("pid")), Signal::SIGINT).expect("kill");
}

/// Runs tcpconnect in text form around `act` and returns its lines, the first of which came before.
fn text_run(args: &[&str], act: impl Fn()) -> Vec<String> {
    let mut child = command("tcpconnect", args).stdout(Stdio::piped()).spawn().expect("tcpconnect");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut all = vec![lines.next().expect("a line").expect("readable")];
    act();
    // It may have ended by its own limit, but is still there to be waited for.
    interrupt(&child);
    all.extend(lines.map_while(Result::ok));
    assert!(child.wait().expect("wait").success());
    all
}

fn text_columns() -> Outcome {
    isolated(|| {
        let v4 = listener("127.0.0.1", 100);
        let v6 = listener("::1", 100);
        let tid = gettid().to_string();
        let (to4, to6) = (local(&v4), local(&v6));
        // As many characters as an address can have, with nobody there.
        let long = address("2001:db8:1111:2222:3333:4444:5555:6666", 65535);
        let act = || {
            dial(to4, false).1.expect("connect");
            dial(to6, false).1.expect("connect");
            dial(long, false).1.expect_err("no route");
        };
        let plain = text_run(&["--tid", &tid, "--limit", "3", "-x"], act);
        assert_eq!(
            plain[0],
            "PID    COMM             IP SADDR            DADDR            DPORT ERR"
        );
        let pid = std::process::id().to_string();
        let [ip4, port4, port6] =
            ["127.0.0.1".to_string(), to4.port().to_string(), to6.port().to_string()];
        let row = words(&plain[1]);
        assert_eq!(
            (row[0], &row[row.len() - 5..]),
            (pid.as_str(), &["4", &ip4, &ip4, &port4, "0"][..])
        );
        let row = words(&plain[2]);
        assert_eq!(row[row.len() - 5..], ["6", "::1", "::1", &port6, "0"]);
        let row = words(&plain[3]);
        assert_eq!(
            row[row.len() - 3..],
            ["2001:db8:1111:2222:3333:4444:5555:6666", "65535", "101"]
        );

        let all = text_run(&["--tid", &tid, "--limit", "2", "-t", "-U", "-s"], act);
        assert_eq!(
            all[0],
            "TIME(s)   UID    PID    COMM             IP SADDR            DADDR            SPORT DPORT"
        );
        let row = words(&all[1]);
        assert_eq!((row[0], row[1]), ("0.000", "0"));
        assert!(row[row.len() - 2].parse::<u16>().is_ok_and(|port| port > 0));
        let second = words(&all[2])[0].parse::<f64>();
        assert!(second.is_ok_and(|s| s < 100.0));

        let lport = text_run(&["--tid", &tid, "--limit", "1", "-L", "--result"], act);
        assert_eq!(
            lport[0],
            "PID    COMM             IP SADDR            LPORT DADDR            DPORT RESULT"
        );
        let row = words(&lport[1]);
        assert_eq!(row[row.len() - 3..], [ip4.as_str(), port4.as_str(), "established"]);
        Outcome::Passed
    })
}

fn text_counts() -> Outcome {
    isolated(|| {
        let v4 = listener("127.0.0.1", 100);
        let to = local(&v4);
        let tid = gettid().to_string();
        let act = || {
            for _ in 0..3 {
                dial(to, false).1.expect("connect");
            }
        };
        let plain = text_run(&["-c", "--tid", &tid], act);
        assert_eq!(plain[0], "Tracing connect ... Hit Ctrl-C to end");
        assert_eq!(plain[1], format!("{:25} {:25} {:20} CONNECTS", "LADDR", "RADDR", "RPORT"));
        assert_eq!(words(&plain[2]), ["127.0.0.1", "127.0.0.1", &to.port().to_string(), "3"]);
        assert_eq!(plain.len(), 3);
        let by_port = text_run(&["-c", "-s", "--tid", &tid], act);
        assert_eq!(
            by_port[1],
            format!("{:25} {:25} {:20} {:20} CONNECTS", "LADDR", "RADDR", "LPORT", "RPORT")
        );
        assert_eq!(by_port.len(), 5);
        // Nobody connected: the header alone.
        assert_eq!(text_run(&["-c", "--tid", &tid], || ()).len(), 2);
        Outcome::Passed
    })
}

/// A buffer too small: see [`assert_counted`].
fn no_room() -> Outcome {
    isolated(|| {
        let open = listener("127.0.0.1", 10);
        let to = local(&open);
        assert_counted("tcpconnect", &["--tid", &gettid().to_string()], 200, || {
            (0..200).for_each(|_| drop(pair(&open, to)));
        });
        Outcome::Passed
    })
}
