// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! tcptop against bytes that the tests send, each test in a network namespace of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::accept;
use nix::sys::socket::recv;
use nix::sys::socket::send;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::Running;
use crate::support::command;
use crate::support::gettid;
use crate::support::net::*;
use crate::support::scratch;
use crate::support::start;

// Alone: of calls that wait, fexit loses the end when another tool is attached meanwhile.
pub const CASES: &[Case] = &[
    Case::alone("bytes exactly", bytes),
    Case::alone("what is not copied", sendfile_and_splice),
    Case::alone("between namespaces", between_namespaces),
    Case::alone("intervals lose nothing", intervals),
    Case::alone("processes and filters", processes),
    Case::alone("order and rows", order_and_rows),
    Case::alone("text", text),
];

fn accept_one(listener: &OwnedFd) -> TcpStream {
    let fd = accept(listener.as_raw_fd()).expect("accept");
    // SAFETY: the kernel has just given it to us.
    unsafe { TcpStream::from_raw_fd(fd) }
}

/// A connection: the side that connected, and the other one.
fn pair(listener: &OwnedFd, to: SocketAddr) -> (TcpStream, TcpStream) {
    let (fd, result) = dial(to, false);
    result.expect("connect");
    (TcpStream::from(fd), accept_one(listener))
}

/// Local and remote end, as the kernel has them on the wire.
type Ends = (SocketAddr, SocketAddr);

fn ends(stream: &TcpStream) -> Ends {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (local, remote) = (stream.local_addr(), stream.peer_addr());
    (plain(local.expect("address")), plain(remote.expect("address")))
}

/// All bytes received and sent over all reports, by process and connection.
fn totals(finished: &Finished) -> BTreeMap<(u64, Ends), (u64, u64)> {
    let mut totals: BTreeMap<(u64, Ends), (u64, u64)> = BTreeMap::new();
    for row in finished.of("row") {
        let text = |name: &str| row[name].as_str().expect("text").to_string();
        let number = |name: &str| row[name].as_u64().expect("a number");
        let end = |name: &str| text(name).parse::<SocketAddr>().expect("an address and port");
        let (local, remote) = (end("local"), end("remote"));
        for (end, ip, port) in [(local, "laddr", "lport"), (remote, "raddr", "rport")] {
            assert_eq!((end.ip().to_string(), end.port().into()), (text(ip), number(port)));
        }
        let version = if local.is_ipv4() { 4 } else { 6 };
        assert_eq!((number("ip"), text("kind")), (version, format!("ipv{version}")));
        let sums = totals.entry((number("pid"), (local, remote))).or_default();
        sums.0 += number("rx_bytes");
        sums.1 += number("tx_bytes");
        assert!(number("rx_bytes") + number("tx_bytes") > 0, "an empty row: {row}");
    }
    totals
}

fn start_fast(args: &[&str]) -> Running {
    start("tcptop", &[args, &["0.2"]].concat())
}

/// What calls return counts, in both directions and all families: not what they ask for, not what
/// fails, not what is peeked at, and what is waited for in parts once.
fn bytes() -> Outcome {
    isolated(|| {
        let v4 = listener("127.0.0.1", 10);
        let v6 = listener("::1", 10);
        let targets = [
            (&v4, local(&v4)),
            (&v6, local(&v6)),
            (&v4, address("::ffff:127.0.0.1", port_of(&v4))),
        ];
        let tool = start_fast(&["--tid", &gettid().to_string()]);
        let mut wanted = BTreeMap::new();
        let mut mapped = Vec::new();
        for (listener, to) in targets {
            let (client, server) = pair(listener, to);
            if to.ip().to_canonical() != to.ip() {
                mapped.push(ends(&client));
            }
            let (client_fd, server_fd) = (client.as_raw_fd(), server.as_raw_fd());
            // As much as fits, asked for in pieces of which the last ones do not.
            client.set_nonblocking(true).expect("non-blocking");
            let piece = vec![0; 1 << 20];
            let mut sent = 0;
            loop {
                match send(client_fd, &piece, MsgFlags::empty()) {
                    Ok(n) => sent += n,
                    Err(error) => {
                        assert_eq!(error, Errno::EAGAIN);
                        break;
                    }
                }
            }
            let mut buffer = vec![0; 1 << 20];
            let mut received = 0;
            for _ in 0..3 {
                assert_eq!(recv(server_fd, &mut buffer[..100], MsgFlags::MSG_PEEK), Ok(100));
            }
            while received < sent {
                received += recv(server_fd, &mut buffer, MsgFlags::empty()).expect("recv");
            }
            // The other way, in two parts, for which one call waits.
            server.set_nodelay(true).expect("TCP_NODELAY");
            client.set_nonblocking(false).expect("blocking");
            assert_eq!(send(server_fd, &[1; 1000], MsgFlags::empty()), Ok(1000));
            let late = thread::spawn(move || {
                // The call is to wait by then; if it does not yet, nothing else changes.
                thread::sleep(Duration::from_millis(50));
                send(server_fd, &[2; 500], MsgFlags::empty())
            });
            assert_eq!(recv(client_fd, &mut buffer[..1500], MsgFlags::MSG_WAITALL), Ok(1500));
            assert_eq!(late.join().expect("thread"), Ok(500));
            wanted.insert(ends(&client), (1500, sent as u64));
            // The other thread's part is its own.
            wanted.insert(ends(&server), (sent as u64, 1000));
            drop(server);
            assert_eq!(recv(client_fd, &mut buffer, MsgFlags::empty()), Ok(0));
        }
        let finished = tool.stop();
        finished.assert_clean();
        let wanted: BTreeMap<_, _> = wanted
            .into_iter()
            .map(|(ends, sums)| ((u64::from(std::process::id()), ends), sums))
            .collect();
        assert_eq!(totals(&finished), wanted);
        for row in finished.of("row") {
            let is_mapped = mapped.iter().any(|(from, _)| row["local"] == from.to_string());
            assert_eq!(row["v4_mapped"], is_mapped, "{row}");
            assert_eq!(row["uid"], 0);
        }
        Outcome::Passed
    })
}

/// sendfile(), and splice() out of and into a socket.
fn sendfile_and_splice() -> Outcome {
    isolated(|| {
        let tool = start_fast(&["--tid", &gettid().to_string()]);
        if tool.way() == "tp" {
            tool.stop().assert_clean();
            return Outcome::Skipped(
                "without functions, splice() from a socket is not seen".into(),
            );
        }
        let open = listener("127.0.0.1", 10);
        let (client, server) = pair(&open, local(&open));
        let path = scratch("tcptop").join("file");
        std::fs::write(&path, vec![3; 300_000]).expect("a file");
        let file = File::open(&path).expect("the file");
        let reader = thread::spawn({
            let mut server = server.try_clone().expect("dup");
            move || {
                let mut all = vec![0; 300_000];
                server.read_exact(&mut all).expect("read");
            }
        });
        let mut left = 300_000;
        while left > 0 {
            // SAFETY: two descriptors of ours, and no offset.
            let n = unsafe {
                libc::sendfile(client.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), left)
            };
            assert!(n > 0, "sendfile");
            left -= n as usize;
        }
        reader.join().expect("thread");
        let (from_pipe, to_pipe) = nix::unistd::pipe().expect("pipe");
        let splice = |from: i32, to: i32, size: usize| {
            // SAFETY: two descriptors of ours, and no offsets.
            let n = unsafe {
                libc::splice(from, std::ptr::null_mut(), to, std::ptr::null_mut(), size, 0)
            };
            assert_eq!(usize::try_from(n), Ok(size), "splice");
        };
        let to_pipe = to_pipe.as_raw_fd();
        let from_pipe = from_pipe.as_raw_fd();
        assert_eq!(nix::unistd::write(&server, &[4; 777]), Ok(777));
        splice(client.as_raw_fd(), to_pipe, 777);
        splice(from_pipe, server.as_raw_fd(), 777);
        let finished = tool.stop();
        finished.assert_clean();
        let me = u64::from(std::process::id());
        let wanted = BTreeMap::from([
            ((me, ends(&client)), (777, 300_000)),
            // 777 written, and 777 spliced; what was read, another thread read.
            ((me, ends(&server)), (0, 1554)),
        ]);
        assert_eq!(totals(&finished), wanted);
        Outcome::Passed
    })
}

fn between_namespaces() -> Outcome {
    isolated(|| {
        let other = match Other::new() {
            Ok(other) => other,
            Err(reason) => return Outcome::Skipped(reason),
        };
        let tids = format!("{},{}", gettid(), other.run(gettid));
        let tool = start_fast(&["--tid", &tids]);
        let me = u64::from(std::process::id());
        let mut wanted = BTreeMap::new();
        for at in ["192.0.2.2", "2001:db8::2"] {
            let there = other.run(move || listener(at, 10));
            let (fd, result) = dial(local(&there), false);
            result.expect("connect");
            let mut client = TcpStream::from(fd);
            client.write_all(&[1; 12_345]).expect("write");
            let server = other.run(move || {
                let mut server = accept_one(&there);
                server.read_exact(&mut [0; 12_345]).expect("read");
                server.write_all(&[1; 6_789]).expect("write");
                server
            });
            client.read_exact(&mut [0; 6_789]).expect("read");
            wanted.insert((me, ends(&client)), (6_789, 12_345));
            wanted.insert((me, ends(&server)), (12_345, 6_789));
        }
        let finished = tool.stop();
        finished.assert_clean();
        assert_eq!(totals(&finished), wanted);
        Outcome::Passed
    })
}

/// Several threads send without a pause while twenty intervals go by: the sum is what was sent.
fn intervals() -> Outcome {
    isolated(|| {
        let mut tool = start("tcptop", &["--pid", &std::process::id().to_string(), "0.1"]);
        let stop = Instant::now() + Duration::from_secs(60);
        let done = std::sync::atomic::AtomicBool::new(false);
        let wanted: BTreeMap<_, _> = thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|n| {
                    let done = &done;
                    scope.spawn(move || {
                        let open = listener(["127.0.0.1", "::1"][n % 2], 10);
                        let (mut client, mut server) = pair(&open, local(&open));
                        let mut sent = 0u64;
                        let mut buffer = [0; 512];
                        while !done.load(std::sync::atomic::Ordering::Relaxed) {
                            let size = 1 + usize::try_from(sent % 511).expect("small");
                            client.write_all(&buffer[..size]).expect("write");
                            server.read_exact(&mut buffer[..size]).expect("read");
                            sent += size as u64;
                        }
                        [(ends(&client), (0, sent)), (ends(&server), (sent, 0))]
                    })
                })
                .collect();
            for _ in 0..20 {
                tool.wait_for(|record| record["type"] == "report");
                assert!(Instant::now() < stop + crate::support::patience(), "it takes too long");
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            threads.into_iter().flat_map(|thread| thread.join().expect("thread")).collect()
        });
        let finished = tool.stop();
        finished.assert_clean();
        let me = u64::from(std::process::id());
        let wanted: BTreeMap<_, _> =
            wanted.into_iter().map(|(ends, sums)| ((me, ends), sums)).collect();
        assert_eq!(totals(&finished), wanted);
        assert!(finished.of("report").count() >= 20);
        Outcome::Passed
    })
}

/// Two processes that use one socket are two rows; filters choose one.
fn processes() -> Outcome {
    isolated(|| {
        let v4 = listener("127.0.0.1", 10);
        let v6 = listener("::1", 10);
        let cgroup = Cgroup::new("tcptop");
        let tid = gettid();
        let (client4, server4) = pair(&v4, local(&v4));
        let (client6, server6) = pair(&v6, local(&v6));
        let by_cgroup = start_fast(&["-c", cgroup.path.to_str().expect("UTF-8")]);
        let by_comm = start_fast(&["--comm", "bash"]);
        let only4 = start_fast(&["-4", "--tid", &tid.to_string()]);
        let only6 = start_fast(&["--ipv6", "--tid", &tid.to_string()]);
        let mut shell = cgroup
            .command("bash", &["-c", "printf 12345; read -r line"])
            .stdout(OwnedFd::from(client4.try_clone().expect("dup")))
            .stdin(OwnedFd::from(client6.try_clone().expect("dup")))
            .spawn()
            .expect("bash");
        let child = u64::from(shell.id());
        let by_pid = start_fast(&["-p", &child.to_string()]);
        assert_eq!(nix::unistd::write(&client4, b"1234567"), Ok(7));
        assert_eq!(nix::unistd::write(&client6, b"12345678"), Ok(8));
        let mut all = [0; 12];
        (&server4).read_exact(&mut all).expect("read");
        (&server6).read_exact(&mut all[..8]).expect("read");
        assert_eq!(nix::unistd::write(&server6, b"line\n"), Ok(5));
        assert!(shell.wait().expect("wait").success());
        let seen = |tool: Running| {
            let finished = tool.stop();
            finished.assert_clean();
            totals(&finished)
        };
        let me = u64::from(std::process::id());
        let (four, six) = (ends(&client4), ends(&client6));
        let childs = BTreeMap::from([((child, four), (0, 5)), ((child, six), (5, 0))]);
        assert_eq!(seen(by_cgroup), childs);
        assert_eq!(seen(by_comm), childs);
        // Whatever it did after the tool was there.
        let late = seen(by_pid);
        assert_eq!(late.get(&(child, six)), Some(&(5, 0)));
        assert_eq!(
            seen(only4),
            BTreeMap::from([((me, four), (0, 7)), ((me, ends(&server4)), (12, 0))])
        );
        assert_eq!(
            seen(only6),
            BTreeMap::from([((me, six), (0, 8)), ((me, ends(&server6)), (8, 5))])
        );
        Outcome::Passed
    })
}

/// A client that sends and a server that receives this much, over a connection each.
fn traffic(listener: &OwnedFd, sent: usize, answered: usize) -> (TcpStream, TcpStream) {
    let (mut client, mut server) = pair(listener, local(listener));
    client.write_all(&vec![0; sent]).expect("write");
    server.read_exact(&mut vec![0; sent]).expect("read");
    server.write_all(&vec![0; answered]).expect("write");
    client.read_exact(&mut vec![0; answered]).expect("read");
    (client, server)
}

fn order_and_rows() -> Outcome {
    isolated(|| {
        let v4 = listener("127.0.0.1", 10);
        let v6 = listener("::1", 10);
        let tid = gettid().to_string();
        let port = port_of(&v4).to_string();
        let filter = format!("rport = {port}");
        let run = |args: &[&str]| start("tcptop", &[&["--tid", &tid], args, &["1000"]].concat());
        let plain = run(&[]);
        let sent = run(&["--sort", "sent", "--filter", &filter]);
        let received = run(&["-s", "received", "--filter", &filter]);
        let two = run(&["-r", "2"]);
        let mut open = Vec::new();
        for (sent, answered) in [(1000, 10), (2000, 5000), (30, 6000), (4000, 1)] {
            open.push(traffic(&v4, sent, answered));
        }
        open.push(traffic(&v6, 40_000, 1));
        let rows = |tool: Running| -> Vec<(u64, u64)> {
            let finished = tool.stop();
            finished.assert_clean();
            assert_eq!(finished.of("report").count(), 1);
            let number = |row: &serde_json::Value, name: &str| row[name].as_u64().expect("bytes");
            finished
                .of("row")
                .map(|row| (number(row, "rx_bytes"), number(row, "tx_bytes")))
                .collect()
        };
        // Client and server of one connection have the same sum; IPv6 below IPv4.
        let all = rows(plain);
        assert_eq!(all.len(), 10);
        let sums: Vec<u64> = all.iter().map(|(rx, tx)| rx + tx).collect();
        assert_eq!(sums, [7000, 7000, 6030, 6030, 4001, 4001, 1010, 1010, 40_001, 40_001]);
        // Of the clients alone.
        assert_eq!(rows(sent), [(1, 4000), (5000, 2000), (10, 1000), (6000, 30)]);
        assert_eq!(rows(received), [(6000, 30), (5000, 2000), (10, 1000), (1, 4000)]);
        // Those with most, whichever table they are in.
        let two = rows(two);
        assert_eq!(two.iter().map(|(rx, tx)| rx + tx).collect::<Vec<_>>(), [40_001, 40_001]);
        Outcome::Passed
    })
}

fn text() -> Outcome {
    isolated(|| {
        let v4 = listener("127.0.0.1", 10);
        let v6 = listener("::1", 10);
        let run = |args: &[&str]| {
            let tid = gettid().to_string();
            let mut child = command("tcptop", &[args, &["--tid", &tid, "1000"]].concat())
                .stdout(Stdio::piped())
                .spawn()
                .expect("tcptop");
            let mut stdout = child.stdout.take().expect("piped");
            let mut first = [0];
            // The banner says that it is ready.
            stdout.read_exact(&mut first).expect("a banner");
            let four = traffic(&v4, 3000, 2048);
            let six = traffic(&v6, 1023, 1);
            let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
            assert!(status.expect("kill").success());
            let mut text = String::from(char::from(first[0]));
            stdout.read_to_string(&mut text).expect("UTF-8");
            assert!(child.wait().expect("wait").success());
            let lines: Vec<String> = text.lines().map(String::from).collect();
            (lines, ends(&four.0), ends(&six.0))
        };
        let pid = std::process::id();
        let comm = std::fs::read_to_string(format!("/proc/self/task/{}/comm", gettid()));
        let comm = comm.expect("comm").trim_end().to_string();
        let row = |ends: Ends, width: usize, rx: u64, tx: u64| {
            let (local, remote) = (ends.0.to_string(), ends.1.to_string());
            format!("{pid:<6} {comm:<12} {local:<width$} {remote:<width$} {rx:>6} {tx:>6}")
        };
        let (lines, four, six) = run(&["-C"]);
        assert_eq!(lines[0], "Tracing... Output every 1000 secs. Hit Ctrl-C to end");
        let (time, load) = lines[1].split_once(" loadavg: ").expect("a load average");
        assert!(time.len() == 8 && !load.is_empty(), "{}", lines[1]);
        assert_eq!(lines[2], "");
        let header = |local: &str, remote: &str, width: usize| {
            format!("PID    COMM         {local:<width$} {remote:<width$}  RX_KB  TX_KB")
        };
        assert_eq!(lines[3], header("LADDR", "RADDR", 21));
        let mut rows = [row(four, 21, 2, 2), row((four.1, four.0), 21, 2, 2)];
        rows.sort();
        let mut seen = [lines[4].clone(), lines[5].clone()];
        seen.sort();
        assert_eq!(seen, rows);
        assert_eq!(lines[6..8], [String::new(), header("LADDR6", "RADDR6", 51)]);
        assert!(lines[8..10].contains(&row(six, 51, 0, 0)), "{lines:?}");
        assert_eq!((lines.len(), lines[10].as_str()), (11, ""));
        let (lines, ..) = run(&["--noclear", "--nosummary"]);
        assert_eq!(lines[1], header("LADDR", "RADDR", 21));
        Outcome::Passed
    })
}
