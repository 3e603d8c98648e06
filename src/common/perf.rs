// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Perf events: moments at which a program runs, and what processes map and execute.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::ffi::c_void;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use anyhow::Result;
use libbpf_sys::perf_event_attr;
use nix::libc;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap;
use nix::sys::mman::munmap;

// include/uapi/linux/perf_event.h
const TYPE_HARDWARE: u32 = 0;
const TYPE_SOFTWARE: u32 = 1;
const HW_CPU_CYCLES: u64 = 0;
const SW_CPU_CLOCK: u64 = 0;
const SW_DUMMY: u64 = 9;
const SAMPLE_TIME: u64 = 1 << 2;
const FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
const IOC_ENABLE: libc::c_ulong = 0x2400;
const IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
const RECORD_LOST: u32 = 2;
const RECORD_COMM: u32 = 3;
const RECORD_EXIT: u32 = 4;
const RECORD_FORK: u32 = 7;
const RECORD_MMAP2: u32 = 10;
const MISC_COMM_EXEC: u16 = 1 << 13;
const PROT_EXEC: u32 = 4;

fn open(attr: &mut perf_event_attr, cpu: u32) -> io::Result<OwnedFd> {
    open_in(attr, -1, i32::try_from(cpu).unwrap_or(-1))
}

fn open_in(attr: &mut perf_event_attr, pid: i32, cpu: i32) -> io::Result<OwnedFd> {
    attr.size = u32::try_from(size_of::<perf_event_attr>()).unwrap_or(0);
    // SAFETY: the kernel reads `size` bytes of `attr`, which lives across the call, and refuses
    // what it does not know.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_mut(attr),
            pid,
            cpu,
            -1,
            FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel just returned it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attr(kind: u32, config: u64) -> perf_event_attr {
    perf_event_attr { type_: kind, config, ..perf_event_attr::default() }
}

fn ioctl(event: &OwnedFd, request: libc::c_ulong, argument: libc::c_int) -> io::Result<()> {
    // SAFETY: both requests that are made here take an integer.
    if unsafe { libc::ioctl(event.as_raw_fd(), request as _, argument) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How often a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// So many times a second that the CPU is busy.
    Hertz(u64),
    /// Whenever so many cycles, or nanoseconds of the clock, have passed.
    Period(u64),
}

/// What the moments are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The CPU's counter of cycles; it also sees code that runs with interrupts off.
    Cycles,
    /// A timer of the kernel.
    Clock,
}

impl Source {
    /// The event's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cycles => "cycles",
            Self::Clock => "cpu-clock",
        }
    }
}

/// Lets `program` run on one CPU at this rate, until the descriptor is closed.
///
/// # Errors
/// `ENODEV` where the CPU is offline, `ENOENT` or `EOPNOTSUPP` where there is no such event.
pub fn sample(
    cpu: u32,
    source: Source,
    rate: Rate,
    program: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let mut attr = match source {
        Source::Cycles => attr(TYPE_HARDWARE, HW_CPU_CYCLES),
        Source::Clock => attr(TYPE_SOFTWARE, SW_CPU_CLOCK),
    };
    match rate {
        Rate::Hertz(hertz) => {
            attr.set_freq(1);
            attr.__bindgen_anon_1.sample_freq = hertz;
        }
        Rate::Period(period) => attr.__bindgen_anon_1.sample_period = period,
    }
    attr.set_disabled(1);
    let event = open(&mut attr, cpu)?;
    ioctl(&event, IOC_SET_BPF, program.as_raw_fd())?;
    ioctl(&event, IOC_ENABLE, 0)?;
    Ok(event)
}

/// Lets `program` run whenever a file's code is executed at this offset, or when the function that
/// begins there returns, until the descriptor is closed; in one process, or in all where `pid` is 0.
///
/// # Errors
/// Fails when the kernel refuses: it has no uprobes, or cannot probe this instruction.
pub fn uprobe(
    path: &str,
    offset: u64,
    is_return: bool,
    pid: u32,
    program: BorrowedFd<'_>,
) -> io::Result<OwnedFd> {
    let unknown = || io::Error::from(io::ErrorKind::Unsupported);
    let number = |name: &str, before: &str| -> io::Result<u32> {
        let text = fs::read_to_string(format!("/sys/bus/event_source/devices/uprobe/{name}"))?;
        text.trim().strip_prefix(before).and_then(|n| n.parse().ok()).ok_or_else(unknown)
    };
    let mut attr = attr(number("type", "")?, 0);
    if is_return {
        attr.config = 1 << number("format/retprobe", "config:")?;
    }
    let path = CString::new(path)?;
    attr.__bindgen_anon_3.config1 = u64::try_from(path.as_ptr().addr()).unwrap_or(0);
    attr.__bindgen_anon_4.config2 = offset;
    // On some CPU, for all processes; or in one process, wherever it runs.
    let (pid, cpu) = match i32::try_from(pid) {
        Ok(pid) if pid > 0 => (pid, -1),
        _ => (-1, 0),
    };
    let event = open_in(&mut attr, pid, cpu)?;
    ioctl(&event, IOC_SET_BPF, program.as_raw_fd())?;
    ioctl(&event, IOC_ENABLE, 0)?;
    Ok(event)
}

/// What has become of a process. Times are nanoseconds of the kernel's scheduler clock, for
/// comparison with each other only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// It mapped executable memory.
    Map {
        /// Process id.
        pid: u32,
        /// First address.
        start: u64,
        /// Address behind the last.
        end: u64,
        /// Offset in the file.
        offset: u64,
        /// The number of the file's file system.
        device: u64,
        /// The file's inode number; 0 for memory without a file.
        inode: u64,
        /// The file's path, or `//anon` and the like.
        path: Vec<u8>,
        /// When.
        time: u64,
    },
    /// It executed another program.
    Exec {
        /// Process id.
        pid: u32,
        /// When.
        time: u64,
    },
    /// It began.
    Fork {
        /// Process id.
        pid: u32,
        /// Whose copy it is.
        parent: u32,
        /// When.
        time: u64,
    },
    /// It ended.
    Exit {
        /// Process id.
        pid: u32,
    },
    /// So many records did not fit.
    Lost(u64),
}

/// One number for a major and a minor one.
pub(crate) fn device(major: u32, minor: u32) -> u64 {
    u64::from(major) << 32 | u64::from(minor)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// One record with its header, as include/uapi/linux/perf_event.h lays it out, and the time at its
/// end. `None` for what is of no interest.
fn parse(bytes: &[u8]) -> Option<Record> {
    let misc = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let time = word(bytes, bytes.len().checked_sub(8)?)?;
    let pid = half(bytes, 8)?;
    match half(bytes, 0)? {
        RECORD_MMAP2 if half(bytes, 64)? & PROT_EXEC != 0 => {
            let start = word(bytes, 16)?;
            let text = bytes.get(72..bytes.len() - 8)?;
            let path = text.split(|b| *b == 0).next()?.to_vec();
            Some(Record::Map {
                pid,
                start,
                end: start.checked_add(word(bytes, 24)?)?,
                offset: word(bytes, 32)?,
                device: device(half(bytes, 40)?, half(bytes, 44)?),
                inode: word(bytes, 48)?,
                path,
                time,
            })
        }
        RECORD_COMM if misc & MISC_COMM_EXEC != 0 => Some(Record::Exec { pid, time }),
        // pid, ppid, tid, ptid, time; a thread is made by its own process.
        RECORD_FORK if half(bytes, 12)? != pid => {
            Some(Record::Fork { pid, parent: half(bytes, 12)?, time: word(bytes, 24)? })
        }
        // The process has ended when its first thread has.
        RECORD_EXIT if half(bytes, 16)? == pid => Some(Record::Exit { pid }),
        RECORD_LOST => Some(Record::Lost(word(bytes, 16)?)),
        _ => None,
    }
}

/// Room for some hundred records on each CPU.
const RING: usize = 64 << 10;

/// The records of one CPU.
pub struct Records {
    event: OwnedFd,
    /// The control page, and the ring behind it.
    start: NonNull<u8>,
    length: NonZeroUsize,
    page: usize,
}

/// Where struct `perf_event_mmap_page` has its `data_head`; `data_tail` follows.
const DATA_HEAD: usize = 1024;

impl Records {
    /// Watches what happens on a CPU from now on.
    ///
    /// # Errors
    /// Fails where the kernel does not permit it, or the CPU is offline.
    pub fn open(cpu: u32) -> Result<Self> {
        let mut attr = attr(TYPE_SOFTWARE, SW_DUMMY);
        attr.sample_type = SAMPLE_TIME;
        attr.set_sample_id_all(1);
        attr.set_mmap(1);
        attr.set_mmap2(1);
        attr.set_comm(1);
        attr.set_comm_exec(1);
        attr.set_task(1);
        // At once: files can be opened only as long as somebody has them. (A number of events
        // would count samples only.)
        attr.set_watermark(1);
        attr.__bindgen_anon_2.wakeup_watermark = 1;
        let event = open(&mut attr, cpu).context("perf_event_open")?;
        let page = usize::try_from(
            nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.unwrap_or(0),
        )?;
        let length = NonZeroUsize::new(page + RING).context("page size")?;
        let flags = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at a place that the kernel chooses.
        let start = unsafe { mmap(None, length, flags, MapFlags::MAP_SHARED, &event, 0) }
            .context("mapping perf records")?;
        Ok(Self { event, start: start.cast(), length, page })
    }

    fn position(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: inside the control page, which is mapped as long as `self` lives; aligned; and
        // shared with the kernel, which is what an atomic is for.
        unsafe { AtomicU64::from_ptr(self.start.add(offset).cast::<u64>().as_ptr()) }
    }

    /// Copies out of the ring, around its end where needed.
    fn copy(&self, at: u64, size: usize) -> Vec<u8> {
        let from = usize::try_from(at % RING as u64).unwrap_or(0);
        let first = size.min(RING - from);
        let mut bytes = vec![0u8; size];
        // SAFETY: both parts lie in the ring (size is at most RING), and the kernel does not write
        // between the tail and the head that was read before.
        unsafe {
            let ring = self.start.add(self.page);
            std::ptr::copy_nonoverlapping(ring.add(from).as_ptr(), bytes.as_mut_ptr(), first);
            let rest = bytes.as_mut_ptr().add(first);
            std::ptr::copy_nonoverlapping(ring.as_ptr(), rest, size - first);
        }
        bytes
    }

    /// Takes what has come.
    pub fn drain(&mut self, into: &mut Vec<Record>) {
        let head = self.position(DATA_HEAD).load(Ordering::Acquire);
        let tail = self.position(DATA_HEAD + 8);
        let mut at = tail.load(Ordering::Relaxed);
        while head.wrapping_sub(at) >= 8 {
            let header = self.copy(at, 8);
            let size = u16::from_ne_bytes([header[6], header[7]]);
            if size < 8 || u64::from(size) > head.wrapping_sub(at) {
                break;
            }
            into.extend(parse(&self.copy(at, usize::from(size))));
            at = at.wrapping_add(u64::from(size));
        }
        tail.store(head, Ordering::Release);
    }
}

impl AsFd for Records {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        // SAFETY: mapped by us, and nothing that was borrowed from it outlives `self`.
        let _ = unsafe { munmap(self.start.cast::<c_void>(), self.length.get()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_parsed() {
        let record = |kind: u32, misc: u16, body: &[&[u8]]| {
            let body = body.concat();
            let size = u16::try_from(8 + body.len()).expect("small");
            [&kind.to_ne_bytes()[..], &misc.to_ne_bytes(), &size.to_ne_bytes(), &body].concat()
        };
        let n = |n: u64| n.to_ne_bytes();
        let h = |n: u32| n.to_ne_bytes();
        let map = |prot: u32| {
            let ids = [&h(7)[..], &h(8), &n(0x1000), &n(0x2000), &n(0x3000), &h(1), &h(2)].concat();
            record(10, 0, &[&ids, &n(99), &n(0), &h(prot), &h(0), b"/bin/x\0\0", &n(5)])
        };
        let expected = Record::Map {
            pid: 7,
            start: 0x1000,
            end: 0x3000,
            offset: 0x3000,
            device: 1 << 32 | 2,
            inode: 99,
            path: b"/bin/x".to_vec(),
            time: 5,
        };
        assert_eq!((parse(&map(5)), parse(&map(3))), (Some(expected), None));
        let exec = record(3, MISC_COMM_EXEC, &[&h(7), &h(7), b"sh\0\0\0\0\0\0", &n(6)]);
        assert_eq!(parse(&exec), Some(Record::Exec { pid: 7, time: 6 }));
        let task = |kind, pid, parent, tid| {
            record(kind, 0, &[&h(pid), &h(parent), &h(tid), &h(1), &n(9), &n(9)])
        };
        assert_eq!(parse(&task(7, 8, 7, 8)), Some(Record::Fork { pid: 8, parent: 7, time: 9 }));
        assert_eq!(parse(&task(7, 8, 8, 9)), None);
        assert_eq!(parse(&task(4, 8, 7, 8)), Some(Record::Exit { pid: 8 }));
        assert_eq!(parse(&task(4, 8, 7, 9)), None);
        assert_eq!(parse(&[0; 8]), None);
        let cut = map(5);
        for end in 0..cut.len() {
            // Whatever it makes of them, it does not panic.
            let _ = parse(&cut[..end]);
        }
    }
}
