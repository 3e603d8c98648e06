// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! tcplife against connections that the tests make, each test in a network namespace of its own.

use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;
use serde_json::Value;
use serde_json::json;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::Running;
use crate::support::assert_time;
use crate::support::command;
use crate::support::gettid;
use crate::support::losses::assert_counted;
use crate::support::net::*;
use crate::support::start;

pub const CASES: &[Case] = &[
    Case::new("bytes and durations", bytes_and_durations).timed(),
    Case::new("between namespaces", between_namespaces),
    Case::new("resets and failures", resets),
    Case::new("owners", owners),
    Case::alone("every connection", every_connection).in_turn(),
    Case::new("ports and families", ports_and_families).in_turn(),
    Case::new("filters on the task", task_filters),
    Case::new("text columns", text_columns).in_turn(),
    Case::new("what does not fit is counted", no_room).in_turn(),
];

/// Which side of which connection an event is about.
fn side(event: &Value) -> (&str, &str, u64, u64) {
    (
        event["direction"].as_str().unwrap_or("?"),
        event["raddr"].as_str().expect("raddr"),
        event["lport"].as_u64().expect("lport"),
        event["rport"].as_u64().expect("rport"),
    )
}

/// The one event about this side.
fn find<'a>(
    finished: &'a Finished,
    direction: &str,
    from: SocketAddr,
    to: SocketAddr,
) -> &'a Value {
    let (from_ip, to_ip) = (from.ip().to_canonical(), to.ip().to_canonical());
    let found: Vec<&Value> = finished
        .of("event")
        .filter(|event| {
            side(event) == (direction, &to_ip.to_string(), from.port().into(), to.port().into())
        })
        .collect();
    let [event] = found[..] else {
        let all: Vec<_> = finished.of("event").map(side).collect();
        panic!("{direction} {from} {to}: {} events; there are {all:?}", found.len());
    };
    assert_eq!(event["laddr"], from_ip.to_string());
    event
}

/// The fields of the event that are always the same here.
fn check(event: &Value, wanted: &Value) {
    for (name, value) in wanted.as_object().expect("an object") {
        assert_eq!(&event[name], value, "{name} of {event}");
    }
}

/// IPv4, IPv6 and IPv4 through IPv6; both sides end first; no data, little, much. Bytes exactly,
/// durations between what was measured inside and outside.
fn bytes_and_durations() -> Outcome {
    isolated(|| {
        let v4 = listener("127.0.0.1", 10);
        let v6 = listener("::1", 10);
        let any = listener("::", 10);
        let tool = start("tcplife", &["--tid", &gettid().to_string()]);
        let mut wanted = Vec::new();
        let targets = [
            (&v4, local(&v4), 4, [false, false]),
            (&v6, local(&v6), 6, [false, false]),
            (&v4, address("::ffff:127.0.0.1", port_of(&v4)), 4, [true, false]),
            (&any, address("127.0.0.1", port_of(&any)), 4, [false, true]),
        ];
        for (i, (sent, answered)) in
            [(0, 0), (1, 0), (0, 1), (1_234_567, 89), (3, 2_345_678)].into_iter().enumerate()
        {
            for (listener, to, ip, mapped) in targets {
                let outside = Instant::now();
                let (mut client, mut server) = pair(listener, to);
                let inside = Instant::now();
                send(&mut client, &mut server, sent);
                send(&mut server, &mut client, answered);
                // The duration is what is tested.
                thread::sleep(Duration::from_millis(20));
                let (from, to) =
                    (client.local_addr().expect("address"), client.peer_addr().expect("address"));
                let least = inside.elapsed();
                let client_first = i % 2 == 0;
                if client_first {
                    end(client, server);
                } else {
                    end(server, client);
                }
                wanted.push((
                    from,
                    to,
                    ip,
                    mapped,
                    sent,
                    answered,
                    client_first,
                    least,
                    // The kernel ends it with the last acknowledgement, a moment after the calls.
                    outside.elapsed() + Duration::from_millis(100),
                ));
            }
        }
        let finished = tool.stop();
        finished.assert_clean();
        assert_eq!(finished.of("event").count(), 2 * wanted.len());
        for (from, to, ip, mapped, sent, answered, client_first, least, most) in wanted {
            let out = find(&finished, "out", from, to);
            let incoming = find(&finished, "in", to, from);
            let first_and_second = ["FIN_WAIT2", "LAST_ACK"];
            let of = |first: bool| first_and_second[usize::from(!first)];
            for (event, tx, rx, mapped, first) in [
                (out, sent, answered, mapped[0], client_first),
                (incoming, answered, sent, mapped[1], !client_first),
            ] {
                check(
                    event,
                    &json!({
                        "pid": std::process::id(), "tid": gettid(), "uid": 0,
                        "ip": ip, "v4_mapped": mapped, "established": true,
                        "tx_bytes": tx, "rx_bytes": rx, "last_state": of(first),
                        "reset": null, "error": null, "error_raw": 0,
                    }),
                );
                let duration = Duration::from_nanos(event["duration_ns"].as_u64().expect("ns"));
                assert_time(duration, least, most);
            }
        }
        Outcome::Passed
    })
}

/// Over a pair of network devices instead of lo.
fn between_namespaces() -> Outcome {
    isolated(|| {
        let other = match Other::new() {
            Ok(other) => other,
            Err(reason) => return Outcome::Skipped(reason),
        };
        let tids = format!("{},{}", gettid(), other.run(gettid));
        let tool = start("tcplife", &["--tid", &tids]);
        let mut wanted = Vec::new();
        for at in ["192.0.2.2", "2001:db8::2"] {
            let there = other.run(move || listener(at, 10));
            let to = local(&there);
            let (fd, result) = dial(to, false);
            result.expect("connect");
            let mut client = TcpStream::from(fd);
            let from = client.local_addr().expect("address");
            let (mut server, tid) = other.run(move || (accept_one(&there), gettid()));
            send(&mut client, &mut server, 100_000);
            send(&mut server, &mut client, 300_000);
            end(server, client);
            wanted.push((from, to, tid));
        }
        let finished = tool.stop();
        finished.assert_clean();
        assert_eq!(finished.of("event").count(), 4);
        for (from, to, tid) in wanted {
            let out = json!({"tid": gettid(), "tx_bytes": 100_000, "rx_bytes": 300_000,
                             "last_state": "LAST_ACK", "reset": null});
            check(find(&finished, "out", from, to), &out);
            let incoming = json!({"tid": tid, "tx_bytes": 300_000, "rx_bytes": 100_000,
                                  "last_state": "FIN_WAIT2", "reset": null});
            check(find(&finished, "in", to, from), &incoming);
        }
        Outcome::Passed
    })
}

fn set_linger_zero(stream: &TcpStream) {
    let now = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(stream, sockopt::Linger, &now).expect("SO_LINGER");
}

/// Who cut it off, why, and what was carried until then.
fn resets() -> Outcome {
    isolated(|| {
        let open = listener("127.0.0.1", 10);
        let refuses = bound("127.0.0.1");
        let to = local(&open);
        let tool = start("tcplife", &["--tid", &gettid().to_string()]);

        // By SO_LINGER: the client's side tells, the server's is told.
        let (mut client, mut server) = pair(&open, to);
        let linger = client.local_addr().expect("address");
        send(&mut client, &mut server, 1000);
        set_linger_zero(&client);
        drop(client);
        let mut byte = [0];
        let told = server.read(&mut byte).map_err(|error| error.raw_os_error());
        assert_eq!(told, Err(Some(libc::ECONNRESET)));
        drop(server);

        // By closing what has not been read.
        let (mut client, server) = pair(&open, to);
        let unread = client.local_addr().expect("address");
        client.write_all(b"nobody reads this").expect("write");
        while server.peek(&mut byte).expect("peek") == 0 {}
        drop(server);
        let told = client.read(&mut byte).map_err(|error| error.raw_os_error());
        assert_eq!(told, Err(Some(libc::ECONNRESET)));
        drop(client);

        // By sending to somebody who has closed.
        let (mut client, server) = pair(&open, to);
        let late = client.local_addr().expect("address");
        drop(server);
        assert_eq!(drain(&mut client), 0);
        client.write_all(b"too late").expect("write");
        while client.write_all(b"and again").is_ok() {}
        drop(client);

        // Never established.
        let nobody = local(&refuses);
        let from = bound("127.0.0.1");
        let source = local(&from);
        assert_eq!(connect_to(&from, nobody), Err(Errno::ECONNREFUSED));

        let finished = tool.stop();
        finished.assert_clean();
        assert_eq!(finished.of("event").count(), 7);
        let about = |direction, from, to| find(&finished, direction, from, to);
        check(
            about("out", linger, to),
            &json!({"reset": "sent", "error": null, "tx_bytes": 1000, "last_state": "ESTABLISHED"}),
        );
        check(
            about("in", to, linger),
            &json!({"reset": "received", "error": "ECONNRESET", "error_raw": 104, "rx_bytes": 1000}),
        );
        check(about("in", to, unread), &json!({"reset": "sent", "error": null, "rx_bytes": 17}));
        check(
            about("out", unread, to),
            &json!({"reset": "received", "error": "ECONNRESET", "tx_bytes": 17}),
        );
        check(
            about("out", late, to),
            &json!({"reset": "received", "error": "EPIPE", "last_state": "CLOSE_WAIT", "rx_bytes": 0}),
        );
        check(about("in", to, late), &json!({"reset": null, "last_state": "FIN_WAIT2"}));
        check(
            about("out", source, nobody),
            &json!({"error": "ECONNREFUSED", "established": false, "last_state": "SYN_SENT",
                    "tx_bytes": 0, "rx_bytes": 0, "reset": "received"}),
        );
        Outcome::Passed
    })
}

/// The owner is who connected or accepted, not who closes; what nobody accepted is nobody's.
fn owners() -> Outcome {
    isolated(|| {
        let open = listener("127.0.0.1", 10);
        let to = local(&open);
        let tid = gettid();
        let tool = start("tcplife", &["-L", &to.port().to_string()]);
        let clients = start("tcplife", &["-D", &to.port().to_string()]);
        let way = tool.way().to_string();

        // Both sides are handed to a process that ends while it has them.
        let (client, server) = pair(&open, to);
        let handed = client.local_addr().expect("address");
        let mut child = Command::new("sleep")
            .arg("1000")
            .stdin(OwnedFd::from(client))
            .stdout(OwnedFd::from(server))
            .spawn()
            .expect("sleep");
        child.kill().expect("kill");
        child.wait().expect("wait");

        // Accepted by another thread than the one that listens.
        let (fd, result) = dial(to, false);
        result.expect("connect");
        let threaded = local(&fd);
        let server = thread::scope(|scope| {
            let accepting = scope.spawn(|| (accept_one(&open), gettid()));
            accepting.join().expect("thread")
        });
        let (server, acceptor) = server;
        end(TcpStream::from(fd), server);

        // Accepted by nobody.
        let (client, result) = dial(to, false);
        result.expect("connect");
        let abandoned = local(&client);
        drop(open);
        // A child that another test is just forking may hold the listener a little longer.
        let mut client = TcpStream::from(client);
        let refused = client.read(&mut [0]).expect_err("nobody has accepted");
        assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
        drop(client);

        let finished = tool.stop();
        let clients = clients.stop();
        finished.assert_clean();
        clients.assert_clean();
        assert_eq!((finished.of("event").count(), clients.of("event").count()), (3, 3));
        let me = std::process::id();
        check(find(&clients, "out", handed, to), &json!({"pid": me, "tid": tid}));
        check(find(&finished, "in", to, handed), &json!({"pid": me, "tid": tid}));
        check(find(&clients, "out", threaded, to), &json!({"pid": me, "tid": tid}));
        check(find(&finished, "in", to, threaded), &json!({"pid": me, "tid": acceptor}));
        assert_ne!(acceptor, tid);
        check(
            find(&finished, "in", to, abandoned),
            &json!({"pid": null, "tid": null, "comm": null, "uid": null, "reset": "sent"}),
        );
        check(find(&clients, "out", abandoned, to), &json!({"pid": me, "reset": "received"}));
        assert!(["fentry", "kprobe", "tp"].contains(&way.as_str()));
        Outcome::Passed
    })
}

/// 600 connections as fast as they can be made, by several threads: each side of each is there
/// once, with its owner and its bytes.
fn every_connection() -> Outcome {
    const EACH: usize = 200;
    isolated(|| {
        let tool = start("tcplife", &["--pid", &std::process::id().to_string()]);
        let mut all: Vec<(SocketAddr, SocketAddr, usize)> = thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|n| {
                    scope.spawn(move || {
                        let open = listener(["127.0.0.1", "::1"][n % 2], 10);
                        let to = local(&open);
                        (0..EACH)
                            .map(|i| {
                                let (mut client, mut server) = pair(&open, to);
                                client.write_all(&vec![1; i + 1]).expect("write");
                                server.write_all(&vec![1; 2 * i]).expect("write");
                                let from = client.local_addr().expect("address");
                                client.shutdown(Shutdown::Write).expect("shutdown");
                                assert_eq!(drain(&mut server), i as u64 + 1);
                                drop(server);
                                assert_eq!(drain(&mut client), 2 * i as u64);
                                (from, to, i)
                            })
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("thread")).collect()
        });
        let finished = tool.stop();
        finished.assert_clean();
        assert_eq!(finished.of("event").count(), 2 * 3 * EACH);
        let mut seen: Vec<_> = finished
            .of("event")
            .map(|event| {
                assert_eq!(event["pid"], std::process::id());
                let number = |name: &str| event[name].as_u64().expect("a number");
                let address = |ip: &str, port: &str| {
                    let ip: IpAddr = event[ip].as_str().expect("ip").parse().expect("an address");
                    SocketAddr::new(ip, u16::try_from(number(port)).expect("a port"))
                };
                let (here, there) = (address("laddr", "lport"), address("raddr", "rport"));
                let (tx, rx) = (number("tx_bytes"), number("rx_bytes"));
                match event["direction"].as_str() {
                    Some("out") => ((here, there, tx - 1), "out", rx == 2 * (tx - 1)),
                    Some("in") => ((there, here, rx - 1), "in", tx == 2 * (rx - 1)),
                    other => panic!("{other:?}"),
                }
            })
            .collect();
        seen.sort_unstable();
        all.sort_unstable();
        let wanted: Vec<_> = all
            .iter()
            .flat_map(|(from, to, i)| {
                ["in", "out"].map(|side| ((*from, *to, *i as u64), side, true))
            })
            .collect();
        assert_eq!(seen, wanted);
        Outcome::Passed
    })
}

fn ports_and_families() -> Outcome {
    isolated(|| {
        let v4: Vec<OwnedFd> = (0..3).map(|_| listener("127.0.0.1", 10)).collect();
        let v6 = listener("::1", 10);
        let ports: Vec<u64> = v4.iter().chain([&v6]).map(port_of).map(u64::from).collect();
        let tid = gettid().to_string();
        let run = |args: &[&str]| start("tcplife", &[&["--tid", &tid], args].concat());
        let by_local = run(&["-L", &ports[1].to_string()]);
        let many: Vec<String> =
            (1..=100u64).chain([ports[0], ports[3]]).map(|p| p.to_string()).collect();
        let by_remote = run(&["--remoteport", &many.join(",")]);
        let both = run(&["--localport", &ports[1].to_string(), "-D", &ports[1].to_string()]);
        let (only4, only6) = (run(&["-4"]), run(&["--ipv6"]));
        let mapped = address("::ffff:127.0.0.1", port_of(&v4[2]));
        let targets: Vec<_> =
            v4.iter().chain([&v6]).map(|fd| (fd, local(fd))).chain([(&v4[2], mapped)]).collect();
        for (listener, to) in targets {
            let (client, server) = pair(listener, to);
            end(client, server);
        }
        let seen = |tool: Running| -> Vec<(String, u64)> {
            let finished = tool.stop();
            finished.assert_clean();
            let mut all: Vec<_> = finished
                .of("event")
                .map(|event| {
                    let (direction, _, lport, rport) = side(event);
                    (direction.to_string(), if direction == "out" { rport } else { lport })
                })
                .collect();
            all.sort();
            all
        };
        let of = |direction: &str, ports: &[u64]| -> Vec<(String, u64)> {
            let mut all: Vec<_> = ports.iter().map(|port| (direction.to_string(), *port)).collect();
            all.sort();
            all
        };
        assert_eq!(seen(by_local), of("in", &[ports[1]]));
        assert_eq!(seen(by_remote), of("out", &[ports[0], ports[3]]));
        assert_eq!(seen(both), []);
        let four = [ports[0], ports[1], ports[2], ports[2]];
        assert_eq!(seen(only4), [of("in", &four), of("out", &four)].concat());
        assert_eq!(seen(only6), [of("in", &ports[3..]), of("out", &ports[3..])].concat());
        Outcome::Passed
    })
}

/// A shell that connects there and waits for the end, through bash's own /dev/tcp.
const CONNECT: &str = "exec 3<>\"/dev/tcp/127.0.0.1/$1\" && read -r -u 3; :";

/// Filters choose by the owner, whoever closes.
fn task_filters() -> Outcome {
    isolated(|| {
        let open = listener("127.0.0.1", 10);
        let port = port_of(&open);
        let cgroup = Cgroup::new("tcplife");
        let at = port.to_string();
        let run = |args: &[&str]| start("tcplife", args);
        let by_cgroup = run(&["--cgroup", cgroup.path.to_str().expect("UTF-8")]);
        let by_uid = run(&["--uid", "65534", "-D", &at]);
        let by_comm = run(&["--comm", "bash", "-D", &at]);
        let me = run(&["-p", &std::process::id().to_string(), "-L", &at]);
        let mut nobody = Command::new("setpriv");
        nobody.args(["--reuid", "65534", "--clear-groups", "bash"]);
        let pids: Vec<u64> = [nobody, cgroup.command("bash", &[])]
            .into_iter()
            .map(|mut shell| {
                let mut child = shell.args(["-c", CONNECT, "bash", &at]).spawn().expect("a shell");
                // This side ends first, so that the other one is closed by an interrupt.
                drop(accept_one(&open));
                assert!(child.wait().expect("wait").success());
                child.id().into()
            })
            .collect();
        let seen = |tool: Running| -> Vec<(String, u64)> {
            let finished = tool.stop();
            finished.assert_clean();
            finished
                .of("event")
                .map(|e| (side(e).0.to_string(), e["pid"].as_u64().expect("pid")))
                .collect()
        };
        let out = |pid: u64| ("out".to_string(), pid);
        assert_eq!(seen(by_uid), [out(pids[0])]);
        assert_eq!(seen(by_cgroup), [out(pids[1])]);
        assert_eq!(seen(by_comm), [out(pids[0]), out(pids[1])]);
        let own = ("in".to_string(), u64::from(std::process::id()));
        assert_eq!(seen(me), [own.clone(), own]);
        Outcome::Passed
    })
}

/// Runs tcplife in text form around one connection and returns its lines.
fn text_run(args: &[&str], listener: &OwnedFd, to: SocketAddr) -> (Vec<String>, SocketAddr) {
    let fd = to.port().to_string();
    // Both sides, the second of which ends the tool.
    let mut child = command("tcplife", &[args, &["--limit", "1", "-D", &fd]].concat())
        .stdout(Stdio::piped())
        .spawn()
        .expect("tcplife");
    let mut first = [0];
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut first).expect("a header");
    let (mut client, mut server) = pair(listener, to);
    let from = client.local_addr().expect("address");
    send(&mut client, &mut server, 1536);
    send(&mut server, &mut client, 100);
    end(client, server);
    let mut text = String::from(char::from(first[0]));
    stdout.read_to_string(&mut text).expect("UTF-8");
    assert!(child.wait().expect("wait").success());
    (text.lines().map(String::from).collect(), from)
}

fn text_columns() -> Outcome {
    isolated(|| {
        let v4 = listener("127.0.0.1", 10);
        let v6 = listener("::1", 10);
        let pid = std::process::id();
        let comm = std::fs::read_to_string(format!("/proc/self/task/{}/comm", gettid()));
        let comm = comm.expect("comm").trim_end().to_string();
        let (lines, from) = text_run(&[], &v4, local(&v4));
        assert_eq!(
            lines[0],
            "PID     COMM             LADDR           LPORT RADDR           RPORT TX_KB  RX_KB  MS"
        );
        let (lport, rport) = (from.port(), port_of(&v4));
        let start = format!(
            "{pid:<7} {comm:<16} 127.0.0.1       {lport:<5} 127.0.0.1       {rport:<5} 1.50   0.10   "
        );
        let ms = lines[1].strip_prefix(&start).unwrap_or_else(|| panic!("{lines:?}"));
        assert!(ms.parse::<f64>().is_ok() && ms.split_once('.').is_some_and(|(_, d)| d.len() == 2));
        assert_eq!(lines.len(), 2);

        let (lines, from) = text_run(&["-w", "-T", "-t"], &v6, local(&v6));
        let header = format!(
            "TIME     TIME(s)   PID     COMM             IP {:<39} LPORT {:<39} RPORT TX_KB  RX_KB  MS",
            "LADDR", "RADDR"
        );
        assert_eq!(lines[0], header);
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!((words[0].len(), words[1]), ("00:00:00".len(), "0.000000"));
        let rest = format!("{pid} {comm} 6 ::1 {} ::1 {} 1.50 0.10", from.port(), port_of(&v6));
        assert_eq!(words[2..words.len() - 1].join(" "), rest);
        let (lines, _) = text_run(&["--time"], &v4, local(&v4));
        assert!(lines[0].starts_with("TIME(s)  PID     COMM"), "{}", lines[0]);

        let (lines, _) = text_run(&["-s"], &v4, local(&v4));
        assert!(lines[0].starts_with("ts,boot_ns,pid,") && lines[0].contains(",tx_bytes,"));
        assert!(lines[1].contains(",1536,100,"), "{}", lines[1]);
        Outcome::Passed
    })
}

/// A buffer too small: see [`assert_counted`].
fn no_room() -> Outcome {
    isolated(|| {
        let open = listener("127.0.0.1", 10);
        let to = local(&open);
        // Both ends of each.
        assert_counted("tcplife", &["--tid", &gettid().to_string()], 200, || {
            for _ in 0..100 {
                let (client, server) = pair(&open, to);
                end(client, server);
            }
        });
        Outcome::Passed
    })
}
