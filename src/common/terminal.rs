// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The terminal under a screen: keys without Enter, its size, and that it is left as it was found
//! on every way out: the end, an error, a panic, a signal, and Ctrl-Z.

#![allow(unsafe_code)]

use std::io;
use std::io::IsTerminal as _;
use std::mem;
use std::os::fd::AsRawFd as _;
use std::panic;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use anyhow::Result;
use nix::libc;
use nix::sys::eventfd::EfdFlags;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::SaFlags;
use nix::sys::signal::SigAction;
use nix::sys::signal::SigHandler;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signal::sigaction;

/// How the terminal was found.
static FOUND: OnceLock<libc::termios> = OnceLock::new();
/// Whether it is changed now.
static CHANGED: AtomicBool = AtomicBool::new(false);
/// The eventfd that the handlers write to.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// Long lines wrap; a frame switches that off for its own duration.
const WRAP: &[u8] = b"\x1b[?7h";

/// Whether a screen can be drawn: stdout is a terminal that can move its cursor, and this process
/// is in the foreground of it.
pub fn is_usable() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    io::stdout().is_terminal() && !dumb && in_foreground(libc::STDOUT_FILENO)
}

/// Whether keys may be read: in the background that would stop this process.
pub fn may_read_keys() -> bool {
    in_foreground(libc::STDIN_FILENO)
}

/// Async-signal-safe.
fn in_foreground(fd: libc::c_int) -> bool {
    // SAFETY: both only ask.
    unsafe { libc::tcgetpgrp(fd) == libc::getpgrp() }
}

/// Puts the terminal back as it was found, if it is changed. Async-signal-safe: tcsetattr and
/// write only.
pub fn restore() {
    if let Some(found) = FOUND.get().filter(|_| CHANGED.swap(false, Ordering::SeqCst)) {
        // In the background the terminal is somebody else's, and asking would stop this process.
        if !in_foreground(libc::STDIN_FILENO) {
            return;
        }
        // SAFETY: `found` was filled by tcgetattr and is never changed; a failed write is nothing
        // that could be mended here.
        unsafe {
            libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, found);
            libc::write(libc::STDOUT_FILENO, WRAP.as_ptr().cast(), WRAP.len());
        }
    }
}

/// Keys come one by one and are not shown; Ctrl-C and Ctrl-Z stay what they are. Async-signal-safe.
fn change() {
    if let Some(found) = FOUND.get().filter(|_| in_foreground(libc::STDIN_FILENO)) {
        let mut raw = *found;
        raw.c_lflag &= !(libc::ICANON | libc::ECHO);
        raw.c_cc[libc::VMIN] = 1;
        raw.c_cc[libc::VTIME] = 0;
        CHANGED.store(true, Ordering::SeqCst);
        // SAFETY: `raw` is a valid termios; a failure leaves the terminal as it is.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const raw) };
    }
}

/// The size has changed, or the process is about to be stopped and later continued. After that
/// the screen is drawn anew.
extern "C" fn on_signal(signal: libc::c_int) {
    if signal == libc::SIGTSTP {
        restore();
        // SAFETY: stops this process until it is continued.
        unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
        change();
    }
    let one = 1u64.to_ne_bytes();
    // SAFETY: the descriptor lives as long as the screen; a failed write costs one redraw.
    unsafe { libc::write(WAKE.load(Ordering::SeqCst), one.as_ptr().cast(), one.len()) };
}

/// A terminal that is used as a screen; going out of scope puts it back.
pub struct Screen {
    wake: EventFd,
    keys: bool,
}

impl Screen {
    /// Takes the terminal over.
    ///
    /// # Errors
    /// Fails when the system has no descriptors left.
    pub fn start() -> Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .context("eventfd")?;
        WAKE.store(wake.as_raw_fd(), Ordering::SeqCst);
        let action =
            SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
        for signal in [Signal::SIGWINCH, Signal::SIGTSTP] {
            // SAFETY: the handler is async-signal-safe.
            unsafe { sigaction(signal, &action) }.context("sigaction")?;
        }
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            before(info);
        }));
        // Keys come from stdin, if that is a terminal too.
        let mut found = mem::MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the kernel fills `found` when it returns 0, and only then is it taken.
        let keys = unsafe {
            let is_terminal = libc::tcgetattr(libc::STDIN_FILENO, found.as_mut_ptr()) == 0;
            if is_terminal {
                FOUND.get_or_init(|| found.assume_init());
            }
            is_terminal && in_foreground(libc::STDIN_FILENO)
        };
        if keys {
            change();
        }
        Ok(Self { wake, keys })
    }

    /// Readable when the screen has to be drawn anew.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Whether there is a keyboard to watch.
    pub fn has_keys(&self) -> bool {
        self.keys
    }

    /// Whether the terminal is ours at the moment: not while a shell has put this process into the
    /// background. When it is again, keys come as before.
    pub fn is_shown(&self) -> bool {
        let shown = in_foreground(libc::STDOUT_FILENO);
        if shown && self.keys && !CHANGED.load(Ordering::SeqCst) {
            change();
        }
        shown
    }

    /// Lines of the terminal; 24 where it does not tell.
    pub fn height(&self) -> usize {
        // SAFETY: all zeros is a valid winsize, and the kernel fills in another.
        let size = unsafe {
            let mut size: libc::winsize = mem::zeroed();
            libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size);
            size
        };
        if size.ws_row == 0 { 24 } else { size.ws_row.into() }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
        WAKE.store(-1, Ordering::SeqCst);
    }
}
