// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Three processes whose reads the kernel makes one request of.

use std::fs;
use std::io::PipeWriter;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use nix::libc;

use super::disk::BLOCK;
use super::disk::Direct;
use super::disk::Disk;
use super::gettid;
use super::patience;
use super::wait_until_in_call;

/// The first block of the request.
pub const FIRST_BLOCK: usize = 100;

/// The processes and their disk, which does one request at a time and takes two seconds for it.
pub struct Neighbours {
    /// The disk.
    pub disk: Disk,
    readers: Vec<Reader>,
}

/// A process that reads one block when it is told to.
struct Reader {
    pid: libc::pid_t,
    go: PipeWriter,
    ended: bool,
}

impl Reader {
    /// A copy of this process. Becoming a program takes longer on an emulated machine than the disk
    /// is busy.
    fn new(direct: &Direct, block: usize) -> Self {
        let (wait, go) = std::io::pipe().expect("a pipe");
        let mut memory = vec![0u8; 2 * BLOCK];
        let at = memory.as_ptr().align_offset(BLOCK);
        let to = memory[at..].as_mut_ptr();
        let (disk, wait) = (direct.file.as_raw_fd(), wait.as_raw_fd());
        let offset = libc::off_t::try_from(block * BLOCK).expect("small");
        // SAFETY: other threads of this process may hold any lock, but the copy makes nothing but
        // system calls, into memory that it has.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: see above.
            unsafe {
                // What others wait to see closed.
                (3..4096).filter(|fd| ![disk, wait].contains(fd)).for_each(|fd| {
                    libc::close(fd);
                });
                let mut byte = 0u8;
                let told = libc::read(wait, (&raw mut byte).cast(), 1);
                let read = libc::pread(disk, to.cast(), BLOCK, offset);
                libc::_exit(i32::from(told != 1 || read != BLOCK.cast_signed()));
            }
        }
        assert!(pid > 0, "fork");
        Self { pid, go, ended: false }
    }

    fn id(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Whether it has read its block.
    fn wait(&mut self) -> bool {
        let mut status = 0;
        // SAFETY: takes one number.
        let waited = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        self.ended = true;
        waited == self.pid && status == 0
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if !self.ended {
            // SAFETY: takes no memory; the process is this one's child and not waited for yet.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            self.wait();
        }
    }
}

impl Neighbours {
    /// Processes that wait, or why there can be none.
    pub fn new() -> Result<Self, String> {
        let settings = [
            ("irqmode", "2"),
            ("completion_nsec", "2000000000"),
            ("hw_queue_depth", "1"),
            ("submit_queues", "1"),
        ];
        let disk = Disk::null(&settings)?;
        if !disk.scheduler("mq-deadline") {
            return Err("this kernel has no mq-deadline".into());
        }
        // In the scheduler there is twice the room of the device, which is not enough here.
        fs::write(disk.sys("queue/nr_requests"), "16").expect("nr_requests");
        let direct = Direct::open(&disk.path());
        // In this order: the first block, the last, and the one between them, with which the
        // scheduler sees that what it has are neighbours.
        let readers = [0, 2, 1].map(|block| Reader::new(&direct, FIRST_BLOCK + block));
        Ok(Self { disk, readers: readers.into() })
    }

    /// The process that reads the first block and does it first, and the two others.
    pub fn pids(&self) -> [u32; 3] {
        [0, 1, 2].map(|i| self.readers[i].id())
    }

    /// Lets them read, one after the other, while this process keeps the disk busy.
    pub fn read(&mut self) {
        let (before, merged_before) = self.disk.statistics();
        let (disk, readers) = (&self.disk, &mut self.readers);
        thread::scope(|scope| {
            for block in [3000, 5000] {
                let (send, tid) = mpsc::channel();
                scope.spawn(move || {
                    let mut direct = Direct::open(&disk.path());
                    send.send(gettid()).expect("the test waits");
                    direct.read(block);
                });
                wait_until_in_call(tid.recv().expect("a thread"), libc::SYS_pread64);
            }
            // The second one has left the scheduler and waits for the device; until it has had its
            // turn, the scheduler keeps what it has.
            let waiting = format!("/sys/kernel/debug/block/{}/hctx0/dispatch", disk.name);
            let until = Instant::now() + patience();
            while fs::read_to_string(&waiting).expect("debugfs").is_empty() {
                assert!(Instant::now() < until, "no request waits for the device");
                thread::yield_now();
            }
            for reader in &mut *readers {
                reader.go.write_all(b"\n").expect("go");
                wait_until_in_call(reader.id().into(), libc::SYS_pread64);
            }
        });
        assert!(readers.iter_mut().all(Reader::wait), "a reader failed");
        let (after, merged) = disk.statistics();
        let kernel = (after[0] - before[0], merged[0] - merged_before[0]);
        assert_eq!(kernel, (3, 2), "requests and merges, by the kernel's own statistics");
    }
}
