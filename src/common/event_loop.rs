// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The one place where a tool waits: for events, signals, deadlines, and for the reader of its
//! output to go away. When nothing happens, nothing wakes.

use std::io;
use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use nix::errno::Errno;
use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::sys::epoll::Epoll;
use nix::sys::epoll::EpollCreateFlags;
use nix::sys::epoll::EpollEvent;
use nix::sys::epoll::EpollFlags;
use nix::sys::epoll::EpollTimeout;
use nix::sys::eventfd::EventFd;

use crate::sys;
use crate::terminal;
use crate::terminal::Screen;

const SIGNAL: u64 = 0;
const STDOUT: u64 = 1;
const EVENTS: u64 = 2;
const CHILD: u64 = 3;
const SCREEN: u64 = 4;
const KEYS: u64 = 5;
const CGROUPS: u64 = 6;
const ASIDE: u64 = 7;

/// How long a reader that is fed pauses between two looks; also the longest that an event waits.
pub const PAUSE: Duration = Duration::from_millis(100);

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Data may have come, or the time is over.
    Look,
    /// A signal asked the tool to end.
    Signal,
    /// Nobody reads stdout any more.
    ReaderGone,
    /// The command of `--run` has ended.
    ChildEnded,
    /// What goes on beside the events wants attention: [`crate::aside`].
    Aside,
    /// The screen has to be drawn anew.
    Redraw,
    /// The user has pressed `q`.
    Quit,
}

/// Waits for everything at once.
pub struct Waiter {
    epoll: Epoll,
    _signals: EventFd,
}

impl Waiter {
    /// Catches signals from now on, and watches stdout.
    ///
    /// # Errors
    /// Fails when the system has no descriptors left.
    pub fn new() -> Result<Self> {
        let signals = sys::catch_signals()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("epoll_create")?;
        epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNAL)).context("epoll_ctl")?;
        // An empty mask still reports a closed pipe. Regular files cannot be watched (EPERM) and
        // have no reader that could go away.
        match epoll.add(io::stdout().as_fd(), EpollEvent::new(EpollFlags::empty(), STDOUT)) {
            Ok(()) | Err(Errno::EPERM | Errno::EBADF) => {}
            Err(error) => return Err(error).context("epoll_ctl on stdout"),
        }
        Ok(Self { epoll, _signals: signals })
    }

    /// Watches the ring buffer. Edge-triggered, so that data alone does not wake, only the kernel
    /// side's decision to: a level-triggered descriptor would report each event as it comes.
    ///
    /// # Errors
    /// Fails when the descriptor is no ring buffer.
    pub fn watch_events(&self, ring: BorrowedFd<'_>) -> Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        self.epoll.add(ring, EpollEvent::new(flags, EVENTS)).context("epoll_ctl on ring buffer")
    }

    /// Watches the ring buffer that cgroups are told in, in the same way.
    ///
    /// # Errors
    /// Fails when the descriptor is no ring buffer.
    pub fn watch_cgroups(&self, ring: BorrowedFd<'_>) -> Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        self.epoll.add(ring, EpollEvent::new(flags, CGROUPS)).context("epoll_ctl on ring buffer")
    }

    /// Watches a process descriptor, readable when the process has ended.
    ///
    /// # Errors
    /// Fails when it is not one.
    pub fn watch_child(&self, pidfd: BorrowedFd<'_>) -> Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, CHILD);
        self.epoll.add(pidfd, event).context("epoll_ctl on process")
    }

    /// Watches a descriptor of [`crate::aside`]; one that is watched already stays so.
    ///
    /// # Errors
    /// Fails when it cannot be watched.
    pub fn watch_aside(&self, fd: BorrowedFd<'_>) -> Result<()> {
        match self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, ASIDE)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error).context("epoll_ctl"),
        }
    }

    /// Watches the terminal: its size and its keys.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn watch_screen(&self, screen: &Screen) -> Result<()> {
        let event = |what| EpollEvent::new(EpollFlags::EPOLLIN, what);
        self.epoll.add(screen.wake(), event(SCREEN)).context("epoll_ctl on screen")?;
        if screen.has_keys() {
            // Edge-triggered: what a shell in the foreground is to read must not wake forever.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
            let keys = EpollEvent::new(flags, KEYS);
            self.epoll.add(io::stdin().as_fd(), keys).context("epoll_ctl on stdin")?;
        }
        Ok(())
    }

    /// Takes the keys that were pressed; whether `q` was among them. No more are watched when the
    /// terminal is gone.
    fn takes_quit(&self) -> bool {
        if !terminal::may_read_keys() {
            return false;
        }
        let mut keys = [0; 64];
        match nix::unistd::read(io::stdin().as_fd(), &mut keys) {
            Ok(0) | Err(Errno::EIO) => {
                // Was watched, or nothing would have been readable.
                let _ = self.epoll.delete(io::stdin().as_fd());
                false
            }
            Ok(count) => keys[..count].iter().any(|key| matches!(key, b'q' | b'Q')),
            Err(_) => false,
        }
    }

    /// Waits until something happens or `until`; `None` = for as long as it takes.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn wait(&self, until: Option<Instant>) -> Result<Wake> {
        loop {
            let timeout = match until {
                None => EpollTimeout::NONE,
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    // Up, so that a wait never ends before its time and spins.
                    let ms = left.as_nanos().div_ceil(1_000_000).min(60_000);
                    EpollTimeout::from(u16::try_from(ms).unwrap_or(60_000))
                }
            };
            let mut events = [EpollEvent::empty(); 16];
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                // The handler has made the signal descriptor readable.
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("epoll_wait"),
            };
            let seen = &events[..count];
            let has = |what: u64| seen.iter().any(|event| event.data() == what);
            if has(SIGNAL) {
                return Ok(Wake::Signal);
            }
            if has(STDOUT) {
                return Ok(Wake::ReaderGone);
            }
            if has(CHILD) {
                return Ok(Wake::ChildEnded);
            }
            if has(KEYS) && self.takes_quit() {
                return Ok(Wake::Quit);
            }
            if has(SCREEN) {
                return Ok(Wake::Redraw);
            }
            if has(ASIDE) {
                return Ok(Wake::Aside);
            }
            if has(EVENTS) || has(CGROUPS) || until.is_some_and(|until| until <= Instant::now()) {
                return Ok(Wake::Look);
            }
        }
    }
}

/// Waits until a descriptor that is in non-blocking mode takes data again.
///
/// # Errors
/// Fails when the descriptor cannot be polled.
pub fn wait_writable(fd: BorrowedFd<'_>) -> Result<()> {
    match poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("poll on stdout"),
    }
}
