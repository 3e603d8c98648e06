// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! CPUs: which there are, and which come online while a tool runs.

use std::fs;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use anyhow::Context as _;
use anyhow::Result;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::NetlinkAddr;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::bind;
use nix::sys::socket::recv;
use nix::sys::socket::socket;

/// The CPUs of a list such as `0-3,8`, as sysfs has them.
fn list(text: &str) -> Vec<u32> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            cpus.extend(first..=last);
        }
    }
    cpus
}

fn from_sysfs(name: &str) -> Vec<u32> {
    list(&fs::read_to_string(format!("/sys/devices/system/cpu/{name}")).unwrap_or_default())
}

/// The CPUs that are online.
pub fn online() -> Vec<u32> {
    from_sysfs("online")
}

/// The CPUs that there can be.
pub fn possible() -> Vec<u32> {
    from_sysfs("possible")
}

/// Tells of CPUs that come online.
pub struct Arrivals {
    socket: OwnedFd,
}

impl Arrivals {
    /// Listens from now on. What is online is to be asked after this.
    ///
    /// # Errors
    /// Fails where there is no such socket: in other network namespaces it stays silent.
    pub fn listen() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )
        .context("netlink socket")?;
        // The kernel's own announcements.
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1)).context("netlink socket")?;
        Ok(Self { socket })
    }

    /// The CPUs that have come online since the last call.
    pub fn take(&mut self) -> Vec<u32> {
        let mut cpus = Vec::new();
        let mut message = [0u8; 4096];
        while let Ok(size) = recv(self.socket.as_raw_fd(), &mut message, MsgFlags::empty()) {
            cpus.extend(arrived(&message[..size]));
        }
        cpus
    }
}

impl AsFd for Arrivals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// `online@/devices/system/cpu/cpuN`, and what follows behind a NUL.
fn arrived(message: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(message.split(|b| *b == 0).next()?).ok()?;
    text.strip_prefix("online@/devices/system/cpu/cpu")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(list("0-2,5,7-8\n"), [0, 1, 2, 5, 7, 8]);
        assert_eq!((list(""), list("0\n")), (vec![], vec![0]));
        assert!(!online().is_empty() && possible().len() >= online().len());
    }

    #[test]
    fn announcements_are_read() {
        let online = b"online@/devices/system/cpu/cpu12\0ACTION=online\0SUBSYSTEM=cpu\0";
        assert_eq!(arrived(online), Some(12));
        assert_eq!(arrived(b"offline@/devices/system/cpu/cpu12\0"), None);
        assert_eq!(arrived(b"online@/devices/system/memory/memory1\0"), None);
        assert!(Arrivals::listen().expect("socket").take().len() < 1000);
    }
}
