// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Threads that run and wait, and what the kernel itself counts of that.

use std::fs;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Instant;

use nix::libc;
use nix::sched::CpuSet;
use nix::sched::sched_getaffinity;
use nix::sched::sched_setaffinity;
use nix::unistd::Pid;
use nix::unistd::pipe;
use nix::unistd::read;
use nix::unistd::write;
use serde_json::Value;

use super::Finished;
use super::gettid;
use super::patience;
use super::wait_until_in_call;

/// What the kernel counts of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Nanoseconds on a CPU.
    pub ran_ns: u64,
    /// Nanoseconds in the queue of those that want one.
    pub waited_ns: u64,
    /// How often another came to its CPU. Of a thread that sleeps or has ended, that is as often as it
    /// came to one itself.
    ///
    /// The third number of schedstat is not that: a thread that is preempted when it has said that it
    /// is about to sleep, but is still in the queue, is not counted there when it goes on
    /// (`sched_info_depart()` in kernel/sched/stats.h). `__schedule()` counts each switch.
    pub times: u64,
}

impl Counts {
    /// Of this thread.
    pub fn of(tid: u64) -> Self {
        let read = |name: &str| {
            let path = format!("/proc/{tid}/{name}");
            fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let text = read("schedstat");
        let numbers: Vec<u64> =
            text.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        let [ran_ns, waited_ns, _] = numbers[..] else { panic!("schedstat of {tid}: {text}") };
        let status = read("status");
        let switches = |kind: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(kind));
            line.and_then(|rest| rest.trim_start_matches(':').trim().parse().ok())
                .unwrap_or_else(|| panic!("{kind} of {tid}: {status}"))
        };
        let times = switches("voluntary_ctxt_switches") + switches("nonvoluntary_ctxt_switches");
        if times != numbers[2] {
            eprintln!("DIFFER {tid}: {times} {text}");
        }
        Self { ran_ns, waited_ns, times }
    }

    /// What has come since.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            ran_ns: self.ran_ns - earlier.ran_ns,
            waited_ns: self.waited_ns - earlier.waited_ns,
            times: self.times - earlier.times,
        }
    }
}

/// cat(1), which runs when it gets a line and sleeps when it has answered.
pub struct Echo {
    /// Its process id.
    pub pid: u64,
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl Echo {
    /// A cat.
    pub fn new() -> Self {
        Self::start(&mut Command::new("cat"), |pid| pid)
    }

    /// Starts a command that becomes cat, or has it as the child that `find` finds.
    pub fn start(command: &mut Command, find: impl FnOnce(u64) -> u64) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a command");
        let stdin = child.stdin.take().expect("piped");
        let stdout = child.stdout.take().expect("piped");
        let mut echo = Self { pid: 0, child, stdin, stdout };
        // When it answers, it is cat.
        echo.round();
        echo.pid = find(echo.child.id().into());
        echo
    }

    fn round(&mut self) {
        self.stdin.write_all(b".").expect("write");
        self.stdin.flush().expect("write");
        self.stdout.read_exact(&mut [0]).expect("read");
    }

    /// Wakes it so many times.
    pub fn rounds(&mut self, rounds: u64) {
        for _ in 0..rounds {
            self.round();
            // So that each is a wake-up.
            wait_until_in_call(self.pid, libc::SYS_read);
        }
    }

    /// What the kernel has counted until it slept.
    pub fn counts(&self) -> Counts {
        wait_until_in_call(self.pid, libc::SYS_read);
        Counts::of(self.pid)
    }

    /// Lets it end; it is collected when this goes out of scope.
    pub fn end(self) -> Ended {
        Ended { pid: self.pid, child: self.child }
    }
}

/// A process that ends or has ended, and is not collected yet.
pub struct Ended {
    /// Its process id.
    pub pid: u64,
    child: Child,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.child.wait();
    }
}

/// A CPU on which this test may run.
fn a_cpu() -> usize {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("sched_getaffinity");
    (0..CpuSet::count()).rfind(|cpu| allowed.is_set(*cpu) == Ok(true)).expect("a CPU")
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &set).expect("sched_setaffinity");
}

/// Three threads on one CPU: two that hand a byte to and fro, and one that takes the CPU from them
/// as often as it can. What they do is all that they ever did.
pub struct Crew {
    /// Their thread ids; the last is that of the one that only runs.
    pub tids: Vec<u64>,
    /// They end when this is closed.
    hold: Option<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    /// Starts them, and waits until they have done so many rounds and sleep.
    pub fn work(rounds: usize) -> Self {
        let cpu = a_cpu();
        let (held, hold) = pipe().expect("pipe");
        let (to_one, from_two) = pipe().expect("pipe");
        let (to_two, from_one) = pipe().expect("pipe");
        let held = Arc::new(held);
        let over = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let mut began = Vec::new();
        let mut done = Vec::new();
        let mut worker = |act: Box<dyn FnOnce() + Send>| {
            let held = Arc::clone(&held);
            let (tell, told) = mpsc::channel();
            let (tell_done, told_done) = mpsc::channel();
            threads.push(thread::spawn(move || {
                pin(cpu);
                tell.send(gettid()).expect("told");
                act();
                tell_done.send(()).expect("told");
                let _ = read(&*held, &mut [0]);
            }));
            began.push(told);
            done.push(told_done);
        };
        worker(Box::new(move || {
            for _ in 0..rounds {
                write(&from_one, b".").expect("write");
                assert_eq!(read(&to_one, &mut [0]), Ok(1));
            }
        }));
        worker(Box::new(move || {
            for _ in 0..rounds {
                assert_eq!(read(&to_two, &mut [0]), Ok(1));
                write(&from_two, b".").expect("write");
            }
        }));
        let until = Arc::clone(&over);
        worker(Box::new(move || {
            while !until.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        }));
        let tids: Vec<u64> =
            began.iter().map(|told| told.recv_timeout(patience()).expect("a thread")).collect();
        for (i, told) in done.iter().enumerate() {
            if i == 2 {
                over.store(true, Ordering::Relaxed);
            }
            told.recv_timeout(patience()).expect("work");
            wait_until_in_call(tids[i], libc::SYS_read);
        }
        Self { tids, hold: Some(hold), threads }
    }

    /// What the kernel has counted of each.
    pub fn counts(&self) -> Vec<(u64, Counts)> {
        self.tids.iter().map(|tid| (*tid, Counts::of(*tid))).collect()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        drop(self.hold.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Count and sum of this histogram record; its buckets hold as many.
pub fn count_and_sum(record: &Value) -> (u64, u64) {
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{record}"));
    let buckets = record["buckets"].as_array().expect("buckets");
    let inside: u64 = buckets.iter().map(|bucket| number(&bucket["count"])).sum();
    assert_eq!(inside, number(&record["count"]), "{record}");
    (inside, number(&record["sum"]))
}

/// Count and sum of all histograms whose key this is, in all reports.
pub fn totals(finished: &Finished, is: impl Fn(&Value) -> bool) -> (u64, u64) {
    finished
        .of("histogram")
        .filter(|record| is(&record["key"]))
        .map(count_and_sum)
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

/// Waits until a process has ended, without collecting it.
pub fn until_zombie(pid: u64) {
    let until = Instant::now() + patience();
    let path = format!("/proc/{pid}/stat");
    while !fs::read_to_string(&path).expect("stat").contains(") Z ") {
        assert!(Instant::now() < until, "{pid} does not end");
        thread::yield_now();
    }
}
