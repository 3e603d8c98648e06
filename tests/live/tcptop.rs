// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! tcptop against connections that the tests make, each test in a network namespace of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::io::Write as _;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;

use serde_json::Value;
use serde_json::json;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::Running;
use crate::support::command;
use crate::support::gettid;
use crate::support::net::*;
use crate::support::pinned::Pinned;
use crate::support::runs;
use crate::support::start;
use crate::support::text::assert_usage_errors;

pub const CASES: &[Case] = &[
    Case::new("bytes of both families", bytes),
    Case::new("connections that are older", older),
    Case::new("connections that nobody has accepted", unaccepted),
    Case::new("many connections in one report", many),
    Case::new("owners", owners),
    Case::new("between namespaces", between_namespaces),
    Case::alone("nothing is lost between reports", intervals).in_turn(),
    Case::alone("more connections than there is room for", full).in_turn(),
    Case::new("filters", filters),
    Case::new("pinned maps", pinned_maps).in_turn(),
    Case::new("text", text).in_turn(),
    Case::new("usage errors", usage_errors).in_turn(),
];

/// One side of a connection: its own end, the other one.
type Side = (SocketAddr, SocketAddr);

/// Sent and received.
type Sum = (u64, u64);

fn side_of(row: &Value) -> Side {
    let end = |ip: &str, port: &str| {
        let port = row[port].as_u64().and_then(|port| port.try_into().ok()).expect("a port");
        SocketAddr::new(row[ip].as_str().expect("ip").parse().expect("an address"), port)
    };
    (end("laddr", "lport"), end("raddr", "rport"))
}

/// As the tool shows it: IPv4 through an IPv6 socket is IPv4.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn side(stream: &TcpStream) -> Side {
    (plain(stream.local_addr().expect("address")), plain(stream.peer_addr().expect("address")))
}

fn rows_of(finished: &Finished, side: Side) -> Vec<&Value> {
    finished.of("row").filter(|row| side_of(row) == side).collect()
}

/// What all reports together say of each side. No row is empty, and no side twice in one report.
fn sums(finished: &Finished) -> BTreeMap<Side, Sum> {
    finished.assert_clean();
    let mut all = BTreeMap::new();
    let mut seen = Vec::new();
    for row in finished.of("row") {
        let number = |field: &str| row[field].as_u64().expect("a number");
        let (tx, rx) = (number("tx_bytes"), number("rx_bytes"));
        assert!(tx > 0 || rx > 0, "{row}");
        seen.push((number("report"), side_of(row)));
        let sum: &mut Sum = all.entry(side_of(row)).or_default();
        *sum = (sum.0 + tx, sum.1 + rx);
    }
    let rows = seen.len();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), rows, "a connection twice in one report");
    all
}

fn is_about(row: &Value, side: Side) -> bool {
    row["type"] == "row" && side_of(row) == side
}

/// [`isolated`], if the tool runs at all: a machine's own kernel may refuse iterators to everybody.
fn where_it_runs(test: impl FnOnce() -> Outcome + Send + 'static) -> Outcome {
    match runs("tcptop", &[]) {
        Ok(()) => isolated(test),
        Err(reason) => Outcome::Skipped(reason),
    }
}

/// IPv4, IPv6 and IPv4 through IPv6 on either side; connections that end, that last, and that are
/// idle. In several reports, and all of it.
fn bytes() -> Outcome {
    where_it_runs(|| {
        let v4 = listener("127.0.0.1", 10);
        let v6 = listener("::1", 10);
        let any = listener("::", 10);
        let mut tool = start("tcptop", &["--tid", &gettid().to_string(), "0.1"]);
        let targets = [
            (&v4, local(&v4), 4, [false, false]),
            (&v6, local(&v6), 6, [false, false]),
            (&v4, address("::ffff:127.0.0.1", port_of(&v4)), 4, [true, false]),
            (&any, address("127.0.0.1", port_of(&any)), 4, [false, true]),
        ];
        let mut wanted = BTreeMap::new();
        let mut facts = Vec::new();
        let mut lasting = Vec::new();
        for (listener, to, ip, mapped) in targets {
            for (i, (sent, answered)) in
                [(0, 0), (1, 0), (0, 1), (1_234_567, 89), (3, 345_678)].into_iter().enumerate()
            {
                let (mut client, mut server) = pair(listener, to);
                let (here, there) = (side(&client), side(&server));
                send(&mut client, &mut server, sent);
                send(&mut server, &mut client, answered);
                let mut expected = (sent as u64, answered as u64);
                if i == 3 {
                    // The rest comes in another report.
                    tool.wait_for(|row| is_about(row, here));
                    send(&mut client, &mut server, 10);
                    expected.0 += 10;
                }
                if expected != (0, 0) {
                    wanted.insert(here, expected);
                    wanted.insert(there, (expected.1, expected.0));
                    facts.push((here, ip, mapped[0]));
                    facts.push((there, ip, mapped[1]));
                }
                match i {
                    0 | 1 => lasting.push((client, server)),
                    2 | 3 => end(client, server),
                    _ => end(server, client),
                }
            }
        }
        for (client, server) in &lasting {
            wait_for_acknowledgement(client);
            wait_for_acknowledgement(server);
        }
        let finished = tool.stop();
        drop(lasting);
        assert_eq!(sums(&finished), wanted);
        let pid = std::process::id();
        let comm = fs::read_to_string(format!("/proc/self/task/{}/comm", gettid()));
        let comm = comm.expect("comm");
        for (side, ip, mapped) in facts {
            for row in rows_of(&finished, side) {
                assert_eq!(
                    (&row["pid"], &row["comm"], &row["ip"], &row["v4_mapped"], &row["container"]),
                    (
                        &json!(pid),
                        &json!(comm.trim_end()),
                        &json!(ip),
                        &json!(mapped),
                        &Value::Null
                    )
                );
                assert!(row["cgroup_id"].is_string(), "{row}");
            }
        }
        Outcome::Passed
    })
}

/// Of what is older than the tool only what comes after its start counts, in either direction, also
/// where one side has ended before.
fn older() -> Outcome {
    where_it_runs(|| {
        let open = listener("::", 10);
        let to = |ip| address(ip, port_of(&open));
        let (mut client, mut server) = pair(&open, to("127.0.0.1"));
        send(&mut client, &mut server, 100_000);
        send(&mut server, &mut client, 50_000);
        let (mut half, mut other_half) = pair(&open, to("::1"));
        send(&mut half, &mut other_half, 7);
        half.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(drain(&mut other_half), 0);
        let (mut lasting, mut second) = pair(&open, to("::1"));
        send(&mut lasting, &mut second, 9);
        for stream in [&client, &server, &half, &other_half, &lasting] {
            wait_for_acknowledgement(stream);
        }
        let pid = std::process::id();
        let tool = start("tcptop", &["0.2"]);
        let mine = start("tcptop", &["-p", &pid.to_string(), "60"]);
        let other = start("tcptop", &["--comm", "tt-nobody", "0.2"]);
        let sides = [&client, &server, &half, &other_half, &lasting, &second].map(side);
        send(&mut client, &mut server, 1000);
        send(&mut server, &mut client, 200);
        send(&mut other_half, &mut half, 30);
        end(client, server);
        drop(other_half);
        assert_eq!(drain(&mut half), 0);
        send(&mut lasting, &mut second, 4);
        wait_for_acknowledgement(&lasting);
        let wanted = [(1000, 200), (200, 1000), (0, 30), (30, 0), (4, 0), (0, 4)];
        for finished in [tool.stop(), mine.stop()] {
            let sums = sums(&finished);
            let shown = sides.map(|side| sums.get(&side).copied().unwrap_or_default());
            assert_eq!(shown, wanted);
            for row in sides.iter().flat_map(|side| rows_of(&finished, *side)) {
                assert_eq!(row["pid"], pid, "{row}");
                assert!(row["comm"].is_string() && row["cgroup_id"].is_string(), "{row}");
            }
        }
        assert_eq!(sums(&other.stop()), BTreeMap::new());
        Outcome::Passed
    })
}

/// What waits to be accepted when the tool comes is nobody's, and then its who accepts it.
fn unaccepted() -> Outcome {
    where_it_runs(|| {
        let open = listener("127.0.0.1", 10);
        let mut clients: Vec<TcpStream> = (0..3)
            .map(|_| {
                let (fd, result) = dial(local(&open), false);
                result.expect("connect");
                TcpStream::from(fd)
            })
            .collect();
        for client in &mut clients {
            client.write_all(b"before").expect("write");
            wait_for_acknowledgement(client);
        }
        let mut tool = start("tcptop", &["0.1"]);
        let way = tool.way().to_string();
        let mine = start("tcptop", &["--tid", &gettid().to_string(), "0.1"]);
        let sides: Vec<Side> =
            clients.iter().map(side).map(|(here, there)| (there, here)).collect();
        clients[0].write_all(b"and after").expect("write");
        tool.wait_for(|row| is_about(row, sides[0]) && row["pid"].is_null());
        let mut servers: Vec<TcpStream> = (0..2).map(|_| accept_one(&open)).collect();
        let mut text = [0; 15];
        servers[0].read_exact(&mut text).expect("read");
        for server in &mut servers {
            server.write_all(b"four").expect("write");
            wait_for_acknowledgement(server);
        }
        let finished = tool.stop();
        let shown = sums(&finished);
        let of = |sums: &BTreeMap<Side, Sum>, i: usize| sums.get(&sides[i]).copied();
        assert_eq!(
            [of(&shown, 0), of(&shown, 1), of(&shown, 2)],
            [Some((4, 9)), Some((4, 0)), None]
        );
        let last = rows_of(&finished, sides[0]).pop().expect("a row").clone();
        assert_eq!((&last["pid"], &last["tx_bytes"]), (&json!(std::process::id()), &json!(4)));
        let mine = sums(&mine.stop());
        // The clients are older, and not this thread's but the process's.
        assert_eq!([of(&mine, 0), of(&mine, 1), of(&mine, 2)], [Some((4, 9)), Some((4, 0)), None]);
        assert!(["fentry", "kprobe", "tp"].contains(&way.as_str()));
        Outcome::Passed
    })
}

/// Many in one report, of which most begin and end between two.
fn many() -> Outcome {
    where_it_runs(|| {
        let open = listener("::1", 10);
        let tool = start("tcptop", &["--tid", &gettid().to_string(), "60"]);
        let mut wanted = BTreeMap::new();
        for i in 1..200 {
            let (mut client, mut server) = pair(&open, local(&open));
            let (here, there) = (side(&client), side(&server));
            client.write_all(&vec![1; i]).expect("write");
            server.write_all(&vec![1; 2 * i]).expect("write");
            client.shutdown(Shutdown::Write).expect("shutdown");
            assert_eq!(drain(&mut server), i as u64);
            drop(server);
            assert_eq!(drain(&mut client), 2 * i as u64);
            wanted.insert(here, (i as u64, 2 * i as u64));
            wanted.insert(there, (2 * i as u64, i as u64));
        }
        // Of those that last, more than the kernel keeps for a reader at a time.
        let lasting: Vec<(TcpStream, TcpStream)> = (0..350)
            .map(|_| {
                let (mut client, server) = pair(&open, local(&open));
                client.write_all(b"abc").expect("write");
                wait_for_acknowledgement(&client);
                wanted.insert(side(&client), (3, 0));
                wanted.insert(side(&server), (0, 3));
                (client, server)
            })
            .collect();
        let finished = tool.stop();
        drop(lasting);
        assert_eq!(finished.of("report").count(), 1);
        let shown = sums(&finished);
        assert_eq!(shown.len(), wanted.len());
        for (side, sum) in &wanted {
            assert_eq!(shown.get(side), Some(sum), "{side:?}");
        }
        Outcome::Passed
    })
}

/// A child that writes `size` bytes to this connection and waits to be told to end.
fn writer(stream: TcpStream, size: usize) -> std::process::Child {
    Command::new("sh")
        .args(["-c", &format!("head -c {size} /dev/zero; read -r line")])
        .stdin(Stdio::piped())
        .stdout(OwnedFd::from(stream))
        .spawn()
        .expect("sh")
}

/// A new connection is its who connected or accepted, whoever writes; an older one is its who has
/// it.
fn owners() -> Outcome {
    where_it_runs(|| {
        let open = listener("127.0.0.1", 10);
        let own = std::process::id();
        let (client, mut server) = pair(&open, local(&open));
        let inherited = side(&client);
        // This process has it no more; the child writes when it is told to.
        let mut heir = Command::new("sh")
            .args(["-c", "read -r line; head -c 500 /dev/zero; read -r line"])
            .stdin(Stdio::piped())
            .stdout(OwnedFd::from(client))
            .spawn()
            .expect("sh");
        let tool = start("tcptop", &["0.2"]);
        let heirs = start("tcptop", &["-p", &heir.id().to_string(), "0.2"]);
        let mut stdin = heir.stdin.take().expect("piped");
        stdin.write_all(b"\n").expect("go");
        server.read_exact(&mut [0; 500]).expect("read");

        let (client, mut second) = pair(&open, local(&open));
        let lent = side(&client);
        let mut child = writer(client, 300);
        second.read_exact(&mut [0; 300]).expect("read");
        drop(stdin);
        drop(child.stdin.take());
        assert!(heir.wait().is_ok() && child.wait().is_ok());
        assert_eq!((drain(&mut server), drain(&mut second)), (0, 0));
        drop((server, second));

        let finished = tool.stop();
        let shown = sums(&finished);
        let heirs = sums(&heirs.stop());
        assert_eq!((shown.get(&inherited), shown.get(&lent)), (Some(&(500, 0)), Some(&(300, 0))));
        let pids = |side| -> Vec<Value> {
            rows_of(&finished, side).iter().map(|row| row["pid"].clone()).collect()
        };
        assert!(pids(inherited).iter().all(|pid| *pid == heir.id()), "{:?}", pids(inherited));
        assert!(pids(lent).iter().all(|pid| *pid == own), "{:?}", pids(lent));
        assert_eq!(heirs.into_iter().collect::<Vec<_>>(), [(inherited, (500, 0))]);
        Outcome::Passed
    })
}

/// Over a pair of network devices, the other end in a namespace that is not the tool's.
fn between_namespaces() -> Outcome {
    where_it_runs(|| {
        let other = match Other::new() {
            Ok(other) => other,
            Err(reason) => return Outcome::Skipped(reason),
        };
        let mut all = Vec::new();
        let mut connect = |at: &'static str| {
            let there = other.run(move || listener(at, 10));
            let (fd, result) = dial(local(&there), false);
            result.expect("connect");
            let client = TcpStream::from(fd);
            let server = other.run(move || accept_one(&there));
            all.push((side(&client), side(&server)));
            (client, server)
        };
        let (mut client, mut server) = connect("192.0.2.2");
        send(&mut client, &mut server, 20_000);
        wait_for_acknowledgement(&client);
        let tool = start("tcptop", &["-p", &std::process::id().to_string(), "0.1"]);
        send(&mut client, &mut server, 100_000);
        send(&mut server, &mut client, 300_000);
        end(server, client);
        let (mut client, mut server) = connect("2001:db8::2");
        send(&mut client, &mut server, 1_000_000);
        send(&mut server, &mut client, 3);
        end(client, server);
        let shown = sums(&tool.stop());
        let wanted = [(100_000, 300_000), (1_000_000, 3)];
        for ((here, there), (sent, answered)) in all.into_iter().zip(wanted) {
            assert_eq!(shown.get(&here), Some(&(sent, answered)));
            assert_eq!(shown.get(&there), Some(&(answered, sent)));
        }
        Outcome::Passed
    })
}

/// Data that flows without a pause through many short intervals: all of it, once.
fn intervals() -> Outcome {
    where_it_runs(|| {
        let own = std::process::id().to_string();
        let v4 = listener("127.0.0.1", 10);
        let v6 = listener("::1", 10);
        let early = pair(&v4, local(&v4));
        let mut tool = start("tcptop", &["-p", &own, "0.02"]);
        let late = pair(&v6, local(&v6));
        let watched = side(&late.0);
        let enough = Arc::new(AtomicBool::new(false));
        let flows: Vec<JoinHandle<(TcpStream, TcpStream, u64)>> = [early, late]
            .into_iter()
            .map(|(mut client, mut server)| {
                let enough = Arc::clone(&enough);
                thread::spawn(move || {
                    let mut page = [0; 4096];
                    let mut pages = 0;
                    while !enough.load(Ordering::Relaxed) {
                        client.write_all(&page).expect("write");
                        server.read_exact(&mut page).expect("read");
                        server.write_all(&page[..7]).expect("write");
                        client.read_exact(&mut page[..7]).expect("read");
                        pages += 1;
                    }
                    (client, server, pages)
                })
            })
            .collect();
        // It is shown while it flows.
        for _ in 0..10 {
            tool.wait_for(|row| is_about(row, watched));
        }
        enough.store(true, Ordering::Relaxed);
        let mut wanted = BTreeMap::new();
        let mut streams = Vec::new();
        for flow in flows {
            let (client, server, pages) = flow.join().expect("a flow");
            wanted.insert(side(&client), (4096 * pages, 7 * pages));
            wanted.insert(side(&server), (7 * pages, 4096 * pages));
            streams.push((client, server));
        }
        // One ends, one does not.
        let (client, server) = streams.pop().expect("two");
        end(client, server);
        let (client, server) = &streams[0];
        wait_for_acknowledgement(client);
        wait_for_acknowledgement(server);
        let finished = tool.stop();
        assert_eq!(sums(&finished), wanted);
        let counted = start("tcptop", &["-p", &own, "0.1", "2"]).finish();
        assert_eq!((counted.of("report").count(), &counted.end()["reason"]), (2, &"count".into()));
        Outcome::Passed
    })
}

/// Room is for 65,536 sides: what finds none is counted, and the others are shown as ever.
fn full() -> Outcome {
    const ROOM: usize = 65_536;
    const LISTENERS: usize = 6;
    const EACH: usize = 5_600;
    const SPEAKING: usize = 50;
    where_it_runs(|| {
        let own = std::process::id().to_string();
        let files =
            Command::new("prlimit").args(["--pid", &own, "--nofile=100000:100000"]).status();
        if !files.is_ok_and(|status| status.success()) {
            return Outcome::Skipped("100,000 open files are not permitted".into());
        }
        let tool = start("tcptop", &["-p", &own, "60"]);
        // For one of them there are not enough ports, and the last ones are long looked for.
        let listeners: Vec<OwnedFd> = (0..LISTENERS).map(|_| listener("127.0.0.1", 10)).collect();
        let mut all: Vec<(TcpStream, TcpStream)> = Vec::new();
        for open in &listeners {
            all.extend((0..EACH).map(|_| pair(open, local(open))));
        }
        let last = all.len() - SPEAKING;
        let mut wanted = Vec::new();
        for (i, (client, server)) in all.iter_mut().enumerate() {
            if i < SPEAKING || i >= last {
                client.write_all(b"abc").expect("write");
                wait_for_acknowledgement(client);
            }
            if i < SPEAKING {
                wanted.extend([side(client), side(server)]);
            }
        }
        let finished = tool.stop();
        let end = finished.end();
        assert!(finished.status.success() && end["lost"] == 0, "{end}");
        let refused = end["map_full"].as_u64().expect("a number");
        assert!(refused >= (2 * LISTENERS * EACH - ROOM) as u64, "{end}");
        assert!(finished.stderr.contains("map insertions were refused"), "{}", finished.stderr);
        let mut shown: Vec<Side> = finished.of("row").map(side_of).collect();
        shown.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(shown, wanted);
        Outcome::Passed
    })
}

/// A shell that connects there, sends so much and waits for the end, through bash's own /dev/tcp.
const CONNECT: &str =
    "exec 3<>\"/dev/tcp/$1/$2\" && head -c \"$3\" /dev/zero >&3 && cat <&3 >/dev/null";

/// Accepts, reads so much, answers so much and ends; for each of the exchanges.
fn serve(listener: OwnedFd, exchanges: Vec<(usize, usize)>) -> JoinHandle<()> {
    thread::spawn(move || {
        for (size, answer) in exchanges {
            let mut stream = accept_one(&listener);
            stream.read_exact(&mut vec![0; size]).expect("read");
            stream.write_all(&vec![1; answer]).expect("write");
        }
    })
}

/// Process, bytes sent and received of the rows that have one of these ports: other tests that are
/// under way have others.
fn shown(tool: Running, ports: &[u16]) -> Vec<(u64, Sum)> {
    let finished = tool.stop();
    finished.assert_clean();
    let number = |row: &Value, field: &str| row[field].as_u64().expect("a number");
    let rows = finished.of("row").filter(|row| {
        let (here, there) = side_of(row);
        ports.contains(&here.port()) || ports.contains(&there.port())
    });
    rows.map(|row| (number(row, "pid"), (number(row, "tx_bytes"), number(row, "rx_bytes"))))
        .collect()
}

/// By the owner, who connects or accepts, and by family.
fn filters() -> Outcome {
    where_it_runs(|| {
        let (v4, v6) = (listener("127.0.0.1", 10), listener("::1", 10));
        let ports = [port_of(&v4), port_of(&v6)];
        let outer = Cgroup::new("tcptop");
        let run = |args: &[&str]| start("tcptop", &[args, &["60"]].concat());
        let path = outer.path.to_str().expect("UTF-8");
        let by_cgroup = run(&["-c", path]);
        let by_uid = run(&["--uid", "65534", "--comm", "bash"]);
        let me = run(&["--pid", &std::process::id().to_string()]);
        let (only4, only6) = (run(&["-4", "--comm", "bash"]), run(&["--ipv6", "--comm", "bash"]));
        // Made when the tools run already.
        let inner = outer.path.join("inner");
        fs::create_dir(&inner).expect("a cgroup");
        let serving = [serve(v4, vec![(100, 0)]), serve(v6, vec![(200, 5)])];
        let script = format!("echo $$ >{}/cgroup.procs; {CONNECT}", inner.display());
        let mut nobody = Command::new("setpriv");
        nobody.args(["--reuid", "65534", "--clear-groups", "bash", "-c", CONNECT, "bash"]);
        nobody.args(["127.0.0.1", &ports[0].to_string(), "100"]);
        let mut inside = Command::new("bash");
        inside.args(["-c", &script, "bash", "::1", &ports[1].to_string(), "200"]);
        let pids: Vec<u64> = [nobody, inside]
            .into_iter()
            .map(|mut shell| {
                let mut child = shell.spawn().expect("a shell");
                assert!(child.wait().expect("wait").success());
                child.id().into()
            })
            .collect();
        serving.into_iter().for_each(|thread| thread.join().expect("served"));
        let shown = |tool: Running| shown(tool, &ports);
        let (of_nobody, of_inside) = ((pids[0], (100, 0)), (pids[1], (200, 5)));
        assert_eq!(shown(by_uid), [of_nobody]);
        assert_eq!(shown(by_cgroup), [of_inside]);
        assert_eq!(shown(only4), [of_nobody]);
        assert_eq!(shown(only6), [of_inside]);
        let own = u64::from(std::process::id());
        assert_eq!(shown(me), [(own, (5, 200)), (own, (0, 100))]);
        fs::remove_dir(&inner).expect("rmdir");
        Outcome::Passed
    })
}

/// A cgroup and a mount namespace that somebody else has put on a list.
fn pinned_maps() -> Outcome {
    where_it_runs(|| {
        let cgroup = Cgroup::new("tcptop-listed");
        let id = fs::metadata(&cgroup.path).expect("cgroup").ino().to_ne_bytes();
        let namespace = fs::metadata("/proc/self/ns/mnt").expect("namespace").ino();
        let namespace = u32::try_from(namespace).expect("32 bits").to_ne_bytes();
        let (cgroups, namespaces) = match (Pinned::new(&id), Pinned::new(&namespace)) {
            (Ok(cgroups), Ok(namespaces)) => (cgroups, namespaces),
            (Err(reason), _) | (_, Err(reason)) => return Outcome::Skipped(reason),
        };
        let open = listener("127.0.0.1", 10);
        let port = port_of(&open);
        let by_cgroup = start("tcptop", &["--cgroupmap", &cgroups.path(), "60"]);
        let by_namespace =
            start("tcptop", &["--mntnsmap", &namespaces.path(), "--comm", "bash", "60"]);
        let serving = serve(open, vec![(100, 0), (50, 0)]);
        let arguments =
            |size| ["-c", CONNECT, "bash", "127.0.0.1", &port.to_string(), size].map(String::from);
        // The one in the cgroup is in another namespace.
        let mut apart = cgroup.command("unshare", &["--mount", "bash"]);
        apart.args(arguments("100"));
        let mut plain = Command::new("bash");
        plain.args(arguments("50"));
        let pids = [apart, plain].map(|mut shell| {
            let mut child = shell.spawn().expect("a shell");
            assert!(child.wait().expect("wait").success());
            u64::from(child.id())
        });
        serving.join().expect("served");
        assert_eq!(shown(by_cgroup, &[port]), [(pids[0], (100, 0))]);
        assert_eq!(shown(by_namespace, &[port]), [(pids[1], (50, 0))]);
        Outcome::Passed
    })
}

/// The lines of one table: of a shell that first sends 200 KiB and gets 10, and then, over IPv6,
/// sends 50 KiB and gets 100.
fn table(args: &[&str], v6: &str) -> (Vec<String>, [String; 2]) {
    let (v4, at) = (listener("127.0.0.1", 10), v6);
    let v6 = listener(at, 10);
    let ends = [local(&v4), local(&v6)].map(|end| end.to_string());
    let ports = [port_of(&v4), port_of(&v6)].map(|port| port.to_string());
    let kib = |n: usize| n * 1024;
    let serving =
        [serve(v4, vec![(kib(200), kib(10))]), serve(v6, vec![(kib(50) + 1023, kib(100))])];
    let script = format!(
        "connect() {{ {CONNECT}; }}; connect 127.0.0.1 {} {}; connect {at} {} {}",
        ports[0],
        kib(200),
        ports[1],
        kib(50) + 1023
    );
    let all = [args, &["60", "--", "bash", "-c", &script]].concat();
    let output = command("tcptop", &all).output().expect("tcptop");
    serving.into_iter().for_each(|thread| thread.join().expect("served"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    (text.lines().map(String::from).collect(), ends)
}

fn text() -> Outcome {
    where_it_runs(|| {
        let header = |width: usize| {
            format!(
                "PID     COMM             {:width$} {:width$}  RX_KB  TX_KB",
                "LADDR",
                "RADDR",
                width = width
            )
        };
        let orders = [
            (&[][..], vec![0, 1]),
            (&["-s", "all"], vec![0, 1]),
            (&["--sort", "sent"], vec![0, 1]),
            (&["-s", "received", "-C"], vec![1, 0]),
            (&["-s", "received", "--rows", "1", "--noclear"], vec![1]),
            (&["-r", "1"], vec![0]),
        ];
        for (args, order) in orders {
            let (lines, ends) = table(args, "::1");
            assert!(lines[0].contains(" loadavg: ") && lines[0].as_bytes()[2] == b':', "{lines:?}");
            assert_eq!(lines[1..3], [String::new(), header(21)], "{args:?}");
            let rows: Vec<&String> =
                lines[3..].iter().take_while(|line| !line.is_empty()).collect();
            assert_eq!(rows.len(), order.len(), "{args:?}: {rows:?}");
            for (row, index) in rows.into_iter().zip(order) {
                let words: Vec<&str> = row.split_whitespace().collect();
                let amounts = [["10", "200"], ["100", "50"]][index];
                assert_eq!(words[1], "bash");
                assert!(words[0].parse::<u32>().is_ok_and(|pid| pid > 1), "{row}");
                assert_eq!(words[3..], [&ends[index], amounts[0], amounts[1]], "{args:?}");
                let host = ["127.0.0.1:", "[::1]:"][index];
                let port = words[2].strip_prefix(host).unwrap_or_else(|| panic!("{row}"));
                assert!(port.parse::<u16>().is_ok(), "{row}");
                // Under their headers, the last ones to the right.
                assert_eq!((row.find(words[2]), row.len()), (Some(25), header(21).len()), "{row}");
            }
        }
        for args in [&["-S"][..], &["--nosummary"]] {
            let (lines, _) = table(args, "::1");
            assert_eq!(lines[0], header(21), "{args:?}");
        }
        // The longest address is whole, and the columns are under their headers.
        let long = "2001:db8:1111:2222:3333:4444:5555:6666";
        lo_address(long);
        let (lines, ends) = table(&["-S"], long);
        assert_eq!(lines[0], header(long.len() + "[]:12345".len()));
        for (line, end) in lines[1..3].iter().zip(&ends) {
            assert_eq!((line.len(), line.find(end)), (lines[0].len(), lines[0].find("RADDR")));
        }
        let (lines, _) = table(&["-S", "--fields", "+container"], "::1");
        let words: Vec<Vec<&str>> =
            lines.iter().take(2).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!((words[0][5], words[1][5]), ("CONTAINER", "-"), "{lines:?}");
        Outcome::Passed
    })
}

fn usage_errors() -> Outcome {
    assert_usage_errors(
        "tcptop",
        &[
            &["0"][..],
            &["abc"],
            &["-1"],
            &["1", "0"],
            &["-4", "-6"],
            &["--ipv4", "--ipv6"],
            &["-s", "no-such"],
            &["-r", "0"],
            &["-p", "x"],
            &["--max-rate", "5"],
            &["-c", "/no/such/cgroup"],
        ],
    );
    Outcome::Passed
}
