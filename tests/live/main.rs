// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The privileged tests: each starts a tool, causes a known number of known things, and compares.
//!
//! `cargo build --bin bpfscope --example live && target/debug/examples/live [WORD…]` runs those
//! whose name (`tool::test`) contains a word, on the machine's own kernel; `tests/run` runs them in
//! the VMs as well. With `BPFSCOPE_RESULTS=FILE` a line for each is appended there: kernel, file,
//! test, outcome, reason (tab separated). A test that failed beside others and passed when it was
//! run again alone has a reason, too: why it had failed.
//! `BPFSCOPE_ICOUNT` says that the clock is exact here; then those run whose times are known, one
//! after another. `--list` only names what would run. Some tests have their turn on every other
//! kernel (`Case::in_turn`); where words select, and with `BPFSCOPE_ALL`, on each.

// Tests make system calls that no safe wrapper makes, wrong ones among them.
#![allow(unsafe_code)]

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::Command;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use support::Case;
use support::Outcome;

include!(concat!(env!("OUT_DIR"), "/live_tests.rs"));

/// How many tests run side by side.
const THREADS: usize = 4;

/// Of those that fail beside others, so many are run again alone. More are no accident.
const AGAIN: usize = 3;

struct Job {
    file: &'static str,
    case: &'static Case,
}

impl Job {
    fn name(&self) -> String {
        format!("{}::{}{}", self.file, self.case.name, clock())
    }
}

fn clock() -> &'static str {
    if support::exact_time() { " by an exact clock" } else { "" }
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
}

fn main() -> ExitCode {
    // Tests of what the library does for tools that do not exist yet start this program as one.
    if std::env::var_os(support::AS_TOOLS).is_some() {
        return bpfscope::multi::main(table::TOOLS);
    }
    check_list();
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |job: &Job| {
        let name = format!("{}::{}", job.file, job.case.name);
        words.is_empty() || words.iter().any(|word| name.contains(word))
    };
    let jobs: Vec<Job> = ALL
        .iter()
        .flat_map(|(file, cases)| cases.iter().map(move |case| Job { file, case }))
        .filter(wanted)
        .filter(|job| job.case.timed || !support::exact_time())
        .collect();
    let all = jobs.len();
    let jobs = if words.is_empty() { whose_turn_it_is(jobs) } else { jobs };
    if std::env::args().any(|arg| arg == "--list") {
        jobs.iter().for_each(|job| println!("{}::{}", job.file, job.case.name));
        return ExitCode::SUCCESS;
    }
    if jobs.len() < all {
        let others = all - jobs.len();
        println!("{}: {others} tests have their turn on other kernels", support::kernel());
    }
    let (alone, together): (Vec<Job>, Vec<Job>) =
        jobs.into_iter().partition(|job| job.case.alone || support::exact_time());

    // The message of a panic is printed with the test that failed, not when it happens.
    panic::set_hook(Box::new(|info| {
        MESSAGES.with_borrow_mut(|messages| messages.push(info.to_string()));
    }));
    if support::kernel() != "own" {
        // There are tools that hook into a file system, and into loop devices where these are. Both
        // are modules that nobody uses yet; other tests would load the second sooner or later.
        let _ = Command::new("modprobe").args(["-qa", "ext4", "loop"]).status();
    }
    let mut tally = Tally::default();
    for job in &alone {
        tally.add(job, run(job), None);
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new((tally, Vec::new()));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(job) = together.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = run(job);
                    let mut done = done.lock().expect("no test holds it");
                    match result {
                        Ran::Failed(why) => done.1.push((job, why)),
                        other => done.0.add(job, other, None),
                    }
                }
            });
        }
    });

    // Tests that run side by side share the CPUs, and children that one forks hold for a moment
    // what another one has just closed. Whether that was it shows when the test has the machine for
    // itself; the failure is reported in any case.
    let (mut tally, failed) = done.into_inner().expect("no test holds it");
    let accidents = failed.len() <= AGAIN;
    for (job, why) in failed {
        if accidents {
            println!("{} {} again, alone: {why}", support::kernel(), job.name());
            tally.add(job, run(job), Some(why));
        } else {
            tally.add(job, Ran::Failed(why), None);
        }
    }

    for failed in &tally.failed {
        println!("failed on {}: {failed}", support::kernel());
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed.len(), tally.skipped);
    if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

thread_local! {
    static MESSAGES: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

enum Ran {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Of those that run on every other kernel, this kernel's.
fn whose_turn_it_is(jobs: Vec<Job>) -> Vec<Job> {
    let share = support::share(2);
    let mut place = 0;
    let is_here = |job: &Job| {
        place += usize::from(job.case.in_turn);
        !job.case.in_turn || share.is_none_or(|share| place % 2 == share)
    };
    jobs.into_iter().filter(is_here).collect()
}

/// Runs a test and prints what came of it.
fn run(job: &Job) -> Ran {
    let started = Instant::now();
    let result = panic::catch_unwind(AssertUnwindSafe(job.case.run));
    let messages = MESSAGES.take().join("; ");
    let took = started.elapsed().as_secs_f32();
    let print = |word: &str, why: &str| {
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        println!("{} {} {word} ({took:.1} s){why}", support::kernel(), job.name());
    };
    match result {
        Ok(Outcome::Passed) => {
            print("passed", "");
            Ran::Passed
        }
        Ok(Outcome::Skipped(reason)) => {
            print("skipped", &reason);
            Ran::Skipped(reason)
        }
        Err(_) => {
            print("FAILED", &messages);
            Ran::Failed(messages)
        }
    }
}

impl Tally {
    /// Counts a test and writes it to the file of results. `before`: why it failed beside others.
    fn add(&mut self, job: &Job, ran: Ran, before: Option<String>) {
        let (word, reason) = match ran {
            Ran::Passed => {
                self.passed += 1;
                ("passed", before.unwrap_or_default())
            }
            Ran::Skipped(reason) => {
                self.skipped += 1;
                ("skipped", reason)
            }
            Ran::Failed(reason) => {
                self.failed.push(job.name());
                ("FAILED", reason)
            }
        };
        if let Ok(path) = std::env::var("BPFSCOPE_RESULTS") {
            let reason = reason.replace(['\n', '\t'], " ");
            let name = format!("{}{}", job.case.name, clock());
            let line = format!("{}\t{}\t{name}\t{word}\t{reason}\n", support::kernel(), job.file);
            let mut file =
                OpenOptions::new().append(true).create(true).open(path).expect("results");
            file.write_all(line.as_bytes()).expect("results");
        }
    }
}

/// The list of files was made when build.rs last ran: a file that was added since must not be
/// forgotten silently.
fn check_list() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/live");
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let listed = name == "main" || ALL.iter().any(|(file, _)| *file == name);
        assert!(listed, "tests/live/{name}.rs is new: touch build.rs and build again");
    }
}
