// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Network namespaces and TCP sockets for live tests.

use std::fs;
use std::io::Read as _;
use std::io::Write as _;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sched::unshare;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::Backlog;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::accept4;
use nix::sys::socket::bind;
use nix::sys::socket::connect;
use nix::sys::socket::getsockname;
use nix::sys::socket::listen;
use nix::sys::socket::socket;

use super::Outcome;

/// Runs a test in a thread with a network namespace of its own, of which only lo is up.
pub fn isolated(test: impl FnOnce() -> Outcome + Send + 'static) -> Outcome {
    let thread = thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            return Outcome::Skipped(format!("no network namespace of its own: {error}"));
        }
        lo_up();
        // Or, through lo, a connection may get the ports of one that ended a second ago, and
        // tests know connections by their ports.
        fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "0").expect("tcp_tw_reuse");
        test()
    });
    thread.join().unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string));
        panic!("{}", text.unwrap_or_default())
    })
}

pub fn lo_up() {
    let fd = tcp(AddressFamily::Inet, false);
    // SAFETY: all zeros is a valid ifreq, and the kernel reads and writes no more than one.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed();
        }
        assert_eq!(libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request), 0);
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        assert_eq!(libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request), 0);
    }
}

/// Gives lo one more IPv6 address.
pub fn lo_address(address: &str) {
    ip(&["address", "add", &format!("{address}/128"), "dev", "lo", "nodad"]).expect("an address");
}

pub fn tcp(family: AddressFamily, nonblocking: bool) -> OwnedFd {
    let flags = if nonblocking { SockFlag::SOCK_NONBLOCK } else { SockFlag::empty() };
    socket(family, SockType::Stream, flags | SockFlag::SOCK_CLOEXEC, None).expect("socket")
}

pub fn address(text: &str, port: u16) -> SocketAddr {
    SocketAddr::new(text.parse().expect("an address"), port)
}

pub fn family(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub fn connect_to(fd: &OwnedFd, to: SocketAddr) -> Result<(), Errno> {
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
}

/// A socket of its family that was told to connect there, and what connect() said.
pub fn dial(to: SocketAddr, nonblocking: bool) -> (OwnedFd, Result<(), Errno>) {
    let fd = tcp(family(to), nonblocking);
    let result = connect_to(&fd, to);
    (fd, result)
}

pub fn local(fd: &OwnedFd) -> SocketAddr {
    let name: SockaddrStorage = getsockname(fd.as_raw_fd()).expect("getsockname");
    let v4 = name.as_sockaddr_in().map(|v4| SocketAddr::new(v4.ip().into(), v4.port()));
    let v6 = || name.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().into(), v6.port()));
    v4.or_else(v6).expect("an IP address")
}

/// A socket bound to a port that nobody else has.
pub fn bound(to: &str) -> OwnedFd {
    let to = address(to, 0);
    let fd = tcp(family(to), false);
    bind(fd.as_raw_fd(), &SockaddrStorage::from(to)).expect("bind");
    fd
}

pub fn listener(to: &str, backlog: i32) -> OwnedFd {
    let fd = bound(to);
    listen(&fd, Backlog::new(backlog).expect("backlog")).expect("listen");
    fd
}

pub fn port_of(fd: &OwnedFd) -> u16 {
    local(fd).port()
}

pub fn accept_one(listener: &OwnedFd) -> TcpStream {
    // Not for children, or it would not end here.
    let fd = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).expect("accept");
    // SAFETY: the kernel has just given it to us.
    unsafe { TcpStream::from_raw_fd(fd) }
}

/// A connection: the side that connected, and the other one.
pub fn pair(listener: &OwnedFd, to: SocketAddr) -> (TcpStream, TcpStream) {
    let (fd, result) = dial(to, false);
    result.expect("connect");
    (TcpStream::from(fd), accept_one(listener))
}

/// Reads until the other side ends; returns how much there was.
pub fn drain(stream: &mut TcpStream) -> u64 {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("read") as u64
}

/// Sends `size` bytes while `to` reads them.
pub fn send(from: &mut TcpStream, to: &mut TcpStream, size: usize) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = vec![0; size];
            to.read_exact(&mut bytes).expect("read");
        });
        from.write_all(&vec![7; size]).expect("write");
    });
}

/// Waits until the other side has acknowledged all that was sent.
pub fn wait_for_acknowledgement(stream: &TcpStream) {
    let mut left: libc::c_int = 1;
    while left > 0 {
        // SAFETY: the kernel writes one int.
        let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut left) };
        assert_eq!(result, 0);
        thread::yield_now();
    }
}

/// Ends a connection in good order, `first` first.
pub fn end(mut first: TcpStream, mut second: TcpStream) {
    first.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(drain(&mut second), 0);
    drop(second);
    assert_eq!(drain(&mut first), 0);
}

/// A second network namespace with a thread of its own, joined to the caller's by a pair of veth:
/// here 192.0.2.1 and 2001:db8::1, there 192.0.2.2 and 2001:db8::2.
pub struct Other {
    run: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Other {
    /// Makes it; the caller must be in a namespace of its own. Says why where it cannot be made.
    pub fn new() -> Result<Self, String> {
        let (run, jobs) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            let made = unshare(CloneFlags::CLONE_NEWNET).map(|()| super::gettid());
            tell.send(made).expect("the caller waits");
            jobs.iter().for_each(|job| job());
        });
        let other = Self { run: Some(run), thread: Some(thread) };
        let tid = told.recv().expect("the thread tells").map_err(|error| error.to_string())?;
        let name = format!("there{tid}");
        let here = format!("here{tid}");
        let tid = tid.to_string();
        ip(&["link", "add", &here, "type", "veth", "peer", "name", &name, "netns", &tid])?;
        addresses(&here, "1")?;
        other.run(move || addresses(&name, "2"))?;
        Ok(other)
    }

    /// Runs something in it, and waits for the result.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        let job = Box::new(move || tell.send(job()).expect("the caller waits"));
        self.run.as_ref().expect("not dropped").send(job).expect("it runs");
        told.recv().expect("it did not panic")
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.run = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(args).output().map_err(|error| format!("ip: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("ip {}: {text}", args.join(" "))) }
}

fn addresses(device: &str, last: &str) -> Result<(), String> {
    ip(&["address", "add", &format!("192.0.2.{last}/24"), "dev", device])?;
    // Without waiting for somebody else with the same address.
    ip(&["address", "add", &format!("2001:db8::{last}/64"), "dev", device, "nodad"])?;
    ip(&["link", "set", device, "up"])
}
