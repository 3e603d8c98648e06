// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! System calls that no crate of ours wraps: signal handlers, opening a cgroup by its id, and what
//! the kernel counts about a BPF program.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::io::Read as _;
use std::mem;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::ptr::NonNull;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use anyhow::Result;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::eventfd::EventFd;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap;
use nix::sys::mman::munmap;
use nix::sys::signal::SaFlags;
use nix::sys::signal::SigAction;
use nix::sys::signal::SigHandler;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use nix::sys::signal::sigaction;
use nix::unistd::ForkResult;
use nix::unistd::Uid;
use nix::unistd::pipe2;

use crate::escape::until_nul;
use crate::privileges;

/// The first signal that asked the tool to end; 0 = none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
/// The eventfd that the handler writes to.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// Async-signal-safe: atomics, write(2), tcsetattr(3) and _exit(2) only.
extern "C" fn on_signal(signal: libc::c_int) {
    if SIGNAL.swap(signal, Ordering::SeqCst) != 0 {
        crate::terminal::restore();
        // SAFETY: ends the process without running anything of it.
        unsafe { libc::_exit(130) };
    }
    let one = 1u64.to_ne_bytes();
    // SAFETY: the descriptor lives as long as the process; a failed write leaves the flag set.
    unsafe { libc::write(WAKE.load(Ordering::SeqCst), one.as_ptr().cast(), one.len()) };
}

/// Installs the handlers for the signals that end a tool, also where they were inherited as
/// ignored, as a shell does for background jobs. The first signal makes the returned descriptor
/// readable; a second one ends the process at once with status 130. System calls are not
/// restarted, so that a blocked write is interrupted.
///
/// # Errors
/// Fails when the system has no descriptors left.
pub fn catch_signals() -> Result<EventFd> {
    let wake = EventFd::new().context("eventfd")?;
    WAKE.store(wake.as_raw_fd(), Ordering::SeqCst);
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler is async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("sigaction")?;
    }
    Ok(wake)
}

/// Gives back to the system what the start needed and has freed: kernel types, megabytes of them.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: works on the C library's own lists, which are whole: nobody is inside the allocator.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The name of the signal that asked the tool to end.
pub fn caught() -> Option<&'static str> {
    let number = SIGNAL.load(Ordering::SeqCst);
    Signal::try_from(number).ok().map(Signal::as_str)
}

/// Takes over the descriptor `fd` that the parent process left open, as `--ready-fd` says.
///
/// # Errors
/// Fails when it is not open.
pub fn adopt_fd(fd: i32) -> io::Result<File> {
    // SAFETY: F_GETFD only asks.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: open, as was just seen, and nothing else in the process owns it: it was inherited,
    // and it is not one of the three standard descriptors (checked with the options).
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Opens a directory of the cgroup v2 hierarchy, mounted at `mount`, by its id. Needs
/// `CAP_DAC_READ_SEARCH`.
///
/// kernfs takes its 64-bit node id as a file handle of type `FILEID_KERNFS`
/// (include/linux/exportfs.h), since 5.5.
///
/// # Errors
/// Fails when the cgroup is gone (`ESTALE`) or the caller may not.
pub fn open_cgroup(mount: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    const FILEID_KERNFS: i32 = 0xfe;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: [u8; 8],
    }
    let handle = Handle { bytes: 8, kind: FILEID_KERNFS, id: id.to_ne_bytes() };
    // SAFETY: the handle has the layout of struct file_handle with 8 bytes of data, and lives
    // across the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            &raw const handle,
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel just returned it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel counts about a program.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProgramCounts {
    /// How often it was skipped because it was already running on that CPU; `None` where that is
    /// not counted (before 5.12).
    pub skipped: Option<u64>,
    /// How often it ran while [`enable_run_time`] was in force.
    pub runs: u64,
    /// How long these runs took together, in nanoseconds.
    pub run_ns: u64,
}

/// Asks what the kernel counts about a program; `None` where it does not answer.
pub fn program_counts(program: BorrowedFd<'_>) -> Option<ProgramCounts> {
    // SAFETY: all zeros is a valid bpf_prog_info: it asks for no arrays.
    let mut info: libbpf_sys::bpf_prog_info = unsafe { mem::zeroed() };
    let mut size = u32::try_from(size_of_val(&info)).ok()?;
    // SAFETY: the kernel fills at most `size` bytes of `info` and says how many in `size`.
    let err = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(
            program.as_raw_fd(),
            (&raw mut info).cast(),
            &raw mut size,
        )
    };
    if err != 0 {
        return None;
    }
    let needed = mem::offset_of!(libbpf_sys::bpf_prog_info, recursion_misses) + size_of::<u64>();
    let has_skipped = usize::try_from(size).ok()? >= needed;
    Some(ProgramCounts {
        skipped: has_skipped.then_some(info.recursion_misses),
        runs: info.run_cnt,
        run_ns: info.run_time_ns,
    })
}

/// The BTF of a loaded module. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// Fails when the caller may not, and when the module is not loaded or has none.
pub fn module_btf(module: &str) -> io::Result<OwnedFd> {
    let mut id = 0;
    loop {
        // SAFETY: plain system calls; the first writes one number.
        let err = unsafe { libbpf_sys::bpf_btf_get_next_id(id, &raw mut id) };
        if err != 0 {
            return Err(io::Error::from_raw_os_error(-err));
        }
        // SAFETY: as above.
        let fd = unsafe { libbpf_sys::bpf_btf_get_fd_by_id(id) };
        if fd < 0 {
            // Gone since.
            continue;
        }
        // SAFETY: the kernel just returned it to us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut name = [0u8; 64];
        // SAFETY: all zeros is a valid bpf_btf_info: it asks for nothing.
        let mut info: libbpf_sys::bpf_btf_info = unsafe { mem::zeroed() };
        info.name = name.as_mut_ptr() as u64;
        info.name_len = u32::try_from(name.len()).unwrap_or(0);
        let mut size = u32::try_from(size_of_val(&info)).unwrap_or(0);
        // SAFETY: the kernel fills at most `size` bytes of `info`, and the name it points to.
        let err = unsafe {
            libbpf_sys::bpf_obj_get_info_by_fd(
                fd.as_raw_fd(),
                (&raw mut info).cast(),
                &raw mut size,
            )
        };
        if err == 0 && info.kernel_btf != 0 && until_nul(&name) == module.as_bytes() {
            return Ok(fd);
        }
    }
}

/// Lets the kernel measure how long programs run, until the descriptor is closed; each run then
/// costs some tens of nanoseconds more. Needs `CAP_SYS_ADMIN`.
///
/// # Errors
/// Fails when the caller may not.
pub fn enable_run_time() -> io::Result<OwnedFd> {
    // SAFETY: plain system call.
    let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel just returned it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// How many probe hits the kernel itself missed on a kprobe.multi link or on a perf-event link
/// (kprobe, kretprobe);
/// `None` where it does not tell: before 6.6 such links are not described at all (1b715e1b0ec5),
/// and 6.6 itself describes them without the count, which then reads as 0 (3acf8ace6823, 6.7).
pub fn link_misses(link: BorrowedFd<'_>) -> Option<u64> {
    const PERF_EVENT_KPROBE: u32 = 3;
    const PERF_EVENT_KRETPROBE: u32 = 4;
    // SAFETY: all zeros is a valid bpf_link_info: it asks for no strings.
    let mut info: libbpf_sys::bpf_link_info = unsafe { mem::zeroed() };
    let mut size = u32::try_from(size_of_val(&info)).ok()?;
    // SAFETY: as above.
    let err = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(link.as_raw_fd(), (&raw mut info).cast(), &raw mut size)
    };
    if err != 0 {
        return None;
    }
    if info.type_ == libbpf_sys::BPF_LINK_TYPE_KPROBE_MULTI {
        // SAFETY: the link type says which member of the union the kernel filled.
        return Some(unsafe { info.__bindgen_anon_1.kprobe_multi.missed });
    }
    if info.type_ != libbpf_sys::BPF_LINK_TYPE_PERF_EVENT {
        return None;
    }
    // SAFETY: the link type says which member of the union the kernel filled, and the event type
    // which member of the inner one; reading integers of a zeroed union is always defined.
    let (kind, missed) = unsafe {
        let event = info.__bindgen_anon_1.perf_event;
        (event.type_, event.__bindgen_anon_1.kprobe.missed)
    };
    matches!(kind, PERF_EVENT_KPROBE | PERF_EVENT_KRETPROBE).then_some(missed)
}

/// Opens the tracepoint with this number, for programs: whichever CPU hits it.
///
/// # Errors
/// Fails when the kernel refuses.
pub fn open_tracepoint(id: u64) -> io::Result<OwnedFd> {
    // SAFETY: all zeros is a valid perf_event_attr.
    let mut attr: libbpf_sys::perf_event_attr = unsafe { mem::zeroed() };
    attr.type_ = libbpf_sys::PERF_TYPE_TRACEPOINT;
    attr.size = u32::try_from(size_of_val(&attr)).unwrap_or(0);
    attr.config = id;
    let (every_task, cpu, no_group) = (-1, 0, -1);
    // SAFETY: the kernel reads the attributes and keeps nothing of ours.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            every_task,
            cpu,
            no_group,
            libbpf_sys::PERF_FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel just returned it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A command that has been forked and waits for its go.
pub struct Held {
    /// Its process id.
    pub pid: u32,
    go: OwnedFd,
    failed: File,
}

/// Forks a process that will become `command` once it is released. Its stdout is our stderr, so
/// that our own stdout stays clean; behind sudo it runs as the user who called sudo.
///
/// # Errors
/// Fails when the system cannot fork, or an argument holds a NUL byte.
pub fn hold_command(command: &[OsString]) -> Result<Held> {
    let args: Vec<CString> = command
        .iter()
        .map(|arg| CString::new(arg.as_bytes()).context("an argument with a NUL byte"))
        .collect::<Result<_>>()?;
    let mut pointers: Vec<*const libc::c_char> = args.iter().map(|arg| arg.as_ptr()).collect();
    pointers.push(std::ptr::null());
    let (wait, go) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
    let (failed, fail) = pipe2(OFlag::O_CLOEXEC).context("pipe")?;
    let sudo = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let memory = privileges::first_locked_memory();
    let caller = sudo("SUDO_UID").zip(sudo("SUDO_GID")).filter(|_| Uid::effective().is_root());

    // SAFETY: the process has one thread, and the child calls only async-signal-safe functions.
    match unsafe { nix::unistd::fork() }.context("fork")? {
        ForkResult::Parent { child } => {
            Ok(Held { pid: child.as_raw().unsigned_abs(), go, failed: File::from(failed) })
        }
        // SAFETY: everything that is passed was made before the fork and is still alive.
        ForkResult::Child => unsafe {
            let mut byte = 0u8;
            // Our own copy of the other end, which would keep the pipe open for ever. A way that is
            // refused leaves the command that it has held.
            libc::close(go.as_raw_fd());
            // Nothing to read: our side has ended before it was ready.
            if libc::read(wait.as_raw_fd(), (&raw mut byte).cast(), 1) != 1 {
                libc::_exit(126);
            }
            libc::dup2(2, 1);
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
                libc::signal(signal, libc::SIG_DFL);
            }
            // What we need of it is not for the command.
            if let Some((soft, hard)) = memory {
                let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
                libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit);
            }
            let allowed = caller.is_none_or(|(uid, gid)| {
                libc::setgroups(0, std::ptr::null()) == 0
                    && libc::setgid(gid) == 0
                    && libc::setuid(uid) == 0
            });
            if allowed {
                libc::execvp(pointers[0], pointers.as_ptr());
            }
            let errno = Errno::last_raw().to_ne_bytes();
            libc::write(fail.as_raw_fd(), errno.as_ptr().cast(), errno.len());
            libc::_exit(127)
        },
    }
}

impl Held {
    /// Lets the command start, and returns a descriptor that becomes readable when it has ended.
    ///
    /// # Errors
    /// Fails with the reason when it cannot be executed.
    pub fn release(mut self) -> Result<OwnedFd> {
        // SAFETY: plain system call; the process is our child and not yet waited for.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("pidfd_open");
        }
        // SAFETY: the kernel just returned it to us.
        let pidfd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) };
        nix::unistd::write(&self.go, &[1]).context("starting the command")?;
        let mut errno = [0; 4];
        // The pipe closes at exec; bytes come only when that failed.
        if self.failed.read(&mut errno).context("starting the command")? == errno.len() {
            let error = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
            return Err(anyhow::Error::new(error));
        }
        Ok(pidfd)
    }
}

/// A file of the kernel's that never changes, as memory.
pub struct Mapped {
    start: NonNull<u8>,
    length: NonZeroUsize,
}

impl Mapped {
    /// Maps a whole file. It has to be one that nobody can write to or make shorter.
    ///
    /// # Errors
    /// Fails when the file is empty or cannot be mapped.
    pub fn new(file: &File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).ok().and_then(NonZeroUsize::new);
        let length = length.ok_or(io::ErrorKind::UnexpectedEof)?;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let start =
            unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, file, 0)? };
        Ok(Self { start: start.cast(), length })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped as long as `self` lives, and nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length.get()) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: what was mapped in new(), and nothing refers to it any more.
        let unmapped = unsafe { munmap(self.start.cast(), self.length.get()) };
        debug_assert!(unmapped.is_ok());
    }
}
