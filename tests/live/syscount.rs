// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! syscount against system calls that the tests make.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::ptr;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::libc;
use nix::unistd::ForkResult;
use nix::unistd::fork;
use nix::unistd::pipe;
use nix::unistd::write;
use serde_json::Value;
use serde_json::json;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::command;
use crate::support::gettid;
use crate::support::kernel;
use crate::support::start;
use crate::support::start_command;
use crate::support::usage_error;
use crate::support::wait_until_in_call;

pub const CASES: &[Case] = &[
    Case::alone("all of many on every CPU", many),
    Case::new("every call once", counts),
    Case::new("calls that wait or never return", waiting),
    Case::new("latency", latency),
    Case::new("failures and errors", failures).in_turn(),
    Case::new("by process and by cgroup", views).in_turn(),
    Case::new("32-bit callers", compat),
    Case::new("calls that seccomp refuses", seccomp).in_turn(),
    // Thousands of calls, none of which is to be skipped: see the limits of the manual.
    Case::alone("intervals", intervals).in_turn(),
    Case::new("text columns", text_columns).in_turn(),
    Case::new("the list, and usage errors", command_line).in_turn(),
];

/// A child that is not yet let go: it does `act` when it is, and exits with 0. `act` may only make
/// system calls: other threads of the tests may hold locks.
struct Held {
    pid: i32,
    go: std::os::fd::OwnedFd,
}

impl Held {
    fn new(act: impl FnOnce()) -> Self {
        let (wait, go) = pipe().expect("pipe");
        // SAFETY: the child makes system calls only.
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                let mut byte = 0u8;
                // SAFETY: one byte of room; then an end without running anything of the tests.
                unsafe {
                    libc::read(wait.as_raw_fd(), ptr::from_mut(&mut byte).cast(), 1);
                    act();
                    libc::_exit(0)
                }
            }
            ForkResult::Parent { child } => {
                // Not before it waits, so that what it does before is not counted.
                let pid = child.as_raw();
                wait_until_in_call(u64::try_from(pid).expect("pid"), libc::SYS_read);
                Self { pid, go }
            }
        }
    }

    fn let_go(&self) {
        write(&self.go, b"x").expect("write");
    }

    fn finish(self) {
        self.let_go();
        assert_eq!(self.collect(), 0);
    }

    /// Waits for its end: the status as wait() has it.
    fn collect(mut self) -> i32 {
        let mut status = 0;
        // SAFETY: the kernel writes to the status.
        assert_eq!(unsafe { libc::waitpid(self.pid, &mut status, 0) }, self.pid);
        self.pid = 0;
        status
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.pid != 0 {
            // SAFETY: a child that nobody has waited for, so that it is still this one.
            unsafe {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, ptr::null_mut(), 0);
            }
        }
    }
}

fn call(number: libc::c_long) -> i64 {
    // SAFETY: calls without arguments, or with ones that the kernel refuses.
    unsafe { libc::syscall(number, -1, 0, 0, 0, 0, 0) }
}

fn repeat(times: u64, number: libc::c_long) {
    (0..times).for_each(|_| {
        call(number);
    });
}

/// Over all reports, what `field` adds up to by what text calls the call.
fn sums(finished: &Finished, field: &str) -> BTreeMap<String, u64> {
    finished.assert_clean();
    let mut sums = BTreeMap::new();
    for row in finished.of("row") {
        let name = row["call"].as_str().unwrap_or("").to_string();
        *sums.entry(name).or_default() += row[field].as_u64().unwrap_or(0);
    }
    sums
}

/// How many hits of the tool's programs the kernel has skipped, which it does where a task can be
/// stopped inside of one.
fn missed(finished: &Finished) -> u64 {
    finished.end()["missed"].as_u64().unwrap_or(0)
}

/// The sums of a field are these; less only by what the tool says that it has missed.
fn all_but_missed(finished: &Finished, field: &str, wanted: &BTreeMap<String, u64>) {
    let (seen, missed) = (sums(finished, field), missed(finished));
    let lacking = |(call, count): (&String, &u64)| count.checked_sub(seen[call]);
    let lacking: Option<u64> = wanted.iter().map(lacking).sum();
    assert!(lacking.is_some_and(|lacking| lacking <= missed), "{seen:?}, {missed} missed");
    assert!(seen.keys().eq(wanted.keys()), "{seen:?}");
}

fn map<const N: usize>(expected: [(&str, u64); N]) -> BTreeMap<String, u64> {
    expected.into_iter().map(|(name, count)| (name.to_string(), count)).collect()
}

/// Two threads at once, and what the kernel skips, if it does, is counted.
fn many() -> Outcome {
    const CALLS: u64 = 100_000;
    let own = std::process::id().to_string();
    let tool = start("syscount", &["-p", &own, "--syscall", "getppid,getuid"]);
    thread::scope(|scope| {
        for number in [libc::SYS_getppid, libc::SYS_getuid] {
            scope.spawn(move || repeat(CALLS, number));
        }
    });
    let finished = tool.stop();
    let missed = missed(&finished);
    let seen = sums(&finished, "count");
    let all: u64 = seen.values().sum();
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["getppid", "getuid"]);
    assert!(all <= 2 * CALLS && 2 * CALLS - all <= missed, "{seen:?}, {missed} missed");
    // Since 7.0 a thread can be stopped inside of the program, and what others do on its CPU is
    // skipped then. Emulated, the program is the larger part of a call.
    let most = if kernel() == "newest" { CALLS / 10 } else { 100 };
    assert!(missed < most, "{missed}");
    Outcome::Passed
}

/// A call that no table has.
const UNKNOWN: libc::c_long = 900;
/// And one that is too large for arrays.
const HUGE: libc::c_long = 70_000;

fn counts() -> Outcome {
    let child = Held::new(|| {
        repeat(37, libc::SYS_getppid);
        repeat(11, libc::SYS_gettid);
        repeat(5, UNKNOWN);
        repeat(3, HUGE);
        call(-1);
    });
    let pid = child.pid.to_string();
    let all = start("syscount", &["-p", &pid]);
    let some = start("syscount", &["-p", &pid, "--syscall", "getppid", "--syscall", "900,close"]);
    let own = std::process::id().to_string();
    let tids = format!("{pid},4194300");
    let by_tid = start("syscount", &["-t", &tids, "--ppid", &own, "--syscall", "gettid"]);
    let nobody = start("syscount", &["-p", &pid, "--ppid", "4194300"]);
    child.finish();
    let [all, some, by_tid, nobody] =
        [all, some, by_tid, nobody].map(super::support::Running::stop);
    let unknown = ("[unknown: 900]", 5);
    let expected =
        [("getppid", 37), ("gettid", 11), unknown, ("[unknown: 70000]", 3), ("exit_group", 1)];
    assert_eq!(sums(&all, "count"), map(expected));
    assert_eq!(sums(&some, "count"), map([("getppid", 37), unknown]));
    assert_eq!(sums(&by_tid, "count"), map([("gettid", 11)]));
    assert_eq!(sums(&nobody, "count"), map([]));
    let row = all.of("row").find(|row| row["call"] == "getppid").expect("a row");
    let known = (&row["syscall"], &row["syscall_raw"]);
    assert_eq!(known, (&json!("getppid"), &json!(libc::SYS_getppid)));
    assert_eq!(row["abi"], std::env::consts::ARCH);
    for null in ["pid", "comm", "cgroup_id", "error", "failures", "timed", "total_ns", "max_ns"] {
        assert_eq!(row[null], Value::Null, "{null}");
    }
    let row = all.of("row").find(|row| row["call"] == unknown.0).expect("a row");
    assert_eq!((&row["syscall"], &row["syscall_raw"]), (&Value::Null, &json!(900)));
    Outcome::Passed
}

/// What has begun is there although it has not ended; what had begun before is not.
fn waiting() -> Outcome {
    let (never, writer) = pipe().expect("pipe");
    let fd = never.as_raw_fd();
    let child = Held::new(|| {
        let mut byte = 0u8;
        let room: *mut u8 = &mut byte;
        // SAFETY: one byte of room.
        unsafe { libc::read(fd, room.cast(), 1) };
    });
    let pid = child.pid;
    let text = pid.to_string();
    let plain = start("syscount", &["-p", &text, "-i", "0"]);
    let timed = start("syscount", &["-p", &text, "-L"]);
    child.let_go();
    // It was in another read() before: in this one it waits for what nobody writes.
    let until = Instant::now() + crate::support::patience();
    let stuck = format!("{} 0x{fd:x} ", libc::SYS_read);
    let file = format!("/proc/{pid}/syscall");
    while !std::fs::read_to_string(&file).is_ok_and(|text| text.starts_with(&stuck)) {
        assert!(Instant::now() < until, "it did not come to wait");
        thread::yield_now();
    }
    let (plain, timed) = (plain.stop(), timed.stop());
    assert_eq!(sums(&plain, "count"), map([("read", 1)]));
    // Here the first one counts as well, since its end was seen, but it has no time.
    assert_eq!(sums(&timed, "count"), map([("read", 2)]));
    assert_eq!(sums(&timed, "timed"), map([("read", 0)]));
    write(&writer, b"x").expect("write");
    assert_eq!(child.collect(), 0);

    // exit() of a thread and exit_group(), sigreturn, and execveat, each under its own name.
    let exit = Held::new(|| {
        call(libc::SYS_exit);
    });
    let text = exit.pid.to_string();
    let ends = [&[][..], &["-L"]].map(|args| start("syscount", &[&["-p", &text], args].concat()));
    exit.let_go();
    assert_eq!(exit.collect(), 255 << 8);
    let [plain, timed] = ends.map(super::support::Running::stop);
    assert_eq!(sums(&plain, "count"), map([("exit", 1)]));
    assert_eq!(sums(&timed, "count"), map([("exit", 1), ("read", 1)]));
    let output =
        command("syscount", &["--output", "json", "--syscall", "rt_sigreturn,execve", "--"])
            .args(["sh", "-c", "trap : USR1; kill -USR1 $$; exec true"])
            .output()
            .expect("syscount");
    let rows: Vec<Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .filter(|record: &Value| record["type"] == "row")
        .collect();
    let count = |name: &str| rows.iter().find(|row| row["call"] == name).map(|row| &row["count"]);
    assert_eq!(count("rt_sigreturn"), Some(&json!(1)), "{rows:?}");
    assert!(count("execve").is_some_and(|count| count.as_u64() >= Some(2)), "{rows:?}");
    Outcome::Passed
}

fn latency() -> Outcome {
    const PAUSE: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 30_000_000 };
    let child = Held::new(|| {
        for _ in 0..5 {
            // SAFETY: the kernel reads the time.
            unsafe { libc::syscall(libc::SYS_nanosleep, &PAUSE, ptr::null::<u8>()) };
        }
        repeat(20, libc::SYS_getppid);
        // A new task comes out of a call that it has not made.
        // SAFETY: both only make system calls.
        unsafe {
            if libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) == 0 {
                libc::_exit(0);
            }
            libc::wait4(-1, ptr::null_mut(), 0, ptr::null_mut());
        }
    });
    let pid = child.pid.to_string();
    let started = Instant::now();
    let args = ["--tree", &pid, "--syscall", "nanosleep,getppid,clone,exit_group"];
    let tool = start("syscount", &[&args[..], &["-L"]].concat());
    let slopes = start("syscount", &[&args[..], &["--histogram", "-m"]].concat());
    child.finish();
    let waited = started.elapsed();
    let (finished, slopes) = (tool.stop(), slopes.stop());
    let made = map([("clone", 1), ("exit_group", 2), ("getppid", 20), ("nanosleep", 5)]);
    all_but_missed(&finished, "count", &made);
    let ended = map([("clone", 1), ("exit_group", 0), ("getppid", 20), ("nanosleep", 5)]);
    all_but_missed(&finished, "timed", &ended);
    let rows: Vec<&Value> = finished.of("row").collect();
    assert_eq!(rows[0]["call"], "nanosleep", "sorted by time: {rows:?}");
    let number = |field: &str| rows[0][field].as_u64().expect("number");
    let ns = |field: &str| Duration::from_nanos(number(field));
    let pause = Duration::from_millis(30);
    let timed = u32::try_from(number("timed")).expect("few");
    assert!(ns("total_ns") >= timed * pause && ns("total_ns") <= waited, "{}", rows[0]);
    assert!(ns("avg_ns") >= pause && ns("avg_ns") <= ns("max_ns") && ns("max_ns") <= waited);
    assert_eq!(rows[0]["failures"], 0);
    slopes.assert_clean();
    assert_eq!(slopes.of("row").count(), 0);
    let of_sleep = slopes.of("histogram").find(|h| h["key"]["call"] == "nanosleep").expect("one");
    assert_eq!(of_sleep["name"], "latency_ns");
    let (count, missed) = (of_sleep["count"].as_u64().expect("number"), missed(&slopes));
    assert!(count <= 5 && count + missed >= 5, "{of_sleep}, {missed} missed");
    for bucket in of_sleep["buckets"].as_array().expect("buckets") {
        // Powers of two of milliseconds: 30 is in 16 to 31.
        let below = bucket["lt"].as_u64() <= Some(16_000_000);
        assert!(!below || bucket["count"] == 0, "{of_sleep}");
    }
    assert_eq!(slopes.of("histogram").count(), 3);
    Outcome::Passed
}

fn failures() -> Outcome {
    let child = Held::new(|| {
        repeat(7, libc::SYS_close);
        repeat(4, libc::SYS_fsync);
        repeat(30, libc::SYS_getppid);
        repeat(2, UNKNOWN);
        // SAFETY: a path that is not there.
        unsafe { libc::syscall(libc::SYS_chdir, c"/no/such/directory".as_ptr()) };
        repeat(3, libc::SYS_dup);
    });
    let pid = child.pid.to_string();
    let run = |args: &[&str]| start("syscount", &[&["-p", &pid], args].concat());
    let failed = run(&["-x"]);
    let bad = run(&["-e", "EBADF"]);
    let number = run(&["--errno", "38", "-L"]);
    let errors = run(&["--by-errno"]);
    let timed = run(&["-x", "-L", "-P"]);
    child.finish();
    let [failed, bad, number, errors, timed] =
        [failed, bad, number, errors, timed].map(super::support::Running::stop);
    let unknown = ("[unknown: 900]", 2);
    let all = [("close", 7), ("fsync", 4), unknown, ("chdir", 1), ("dup", 3)];
    assert_eq!(sums(&failed, "count"), map(all));
    assert_eq!(sums(&failed, "failures"), map(all));
    assert_eq!(sums(&bad, "count"), map([("close", 7), ("fsync", 4), ("dup", 3)]));
    assert_eq!(sums(&number, "count"), map([unknown]));
    assert_eq!(sums(&number, "timed"), map([unknown]));
    errors.assert_clean();
    let mut rows: Vec<_> = errors
        .of("row")
        .map(|row| {
            (
                row["call"].clone(),
                row["error"].clone(),
                row["error_raw"].clone(),
                row["count"].clone(),
            )
        })
        .collect();
    rows.sort_by_key(|row| row.0.to_string());
    let row = |call: &str, error: &str, raw: i32, count: u64| {
        (json!(call), json!(error), json!(raw), json!(count))
    };
    assert_eq!(
        rows,
        [
            row("[unknown: 900]", "ENOSYS", 38, 2),
            row("chdir", "ENOENT", 2, 1),
            row("close", "EBADF", 9, 7),
            row("dup", "EBADF", 9, 3),
            row("fsync", "EBADF", 9, 4),
        ]
    );
    timed.assert_clean();
    let rows: Vec<&Value> = timed.of("row").collect();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((&rows[0]["count"], &rows[0]["timed"]), (&json!(17), &json!(17)));
    Outcome::Passed
}

/// A shell that waits until a line comes.
fn shell(script: &str, cgroup: Option<&Cgroup>) -> Child {
    let script = format!("read line; {script}");
    let mut command = match cgroup {
        Some(cgroup) => cgroup.command("sh", &["-c", &script]),
        None => Command::new("sh"),
    };
    if cgroup.is_none() {
        command.args(["-c", &script]);
    }
    let child = command.stdin(Stdio::piped()).spawn().expect("sh");
    wait_until_in_call(child.id().into(), libc::SYS_read);
    child
}

fn release(mut child: Child) {
    child.stdin.take().expect("piped").write_all(b"x\n").expect("write");
    assert!(child.wait().expect("wait").success());
}

fn views() -> Outcome {
    let child = Held::new(|| {
        // SAFETY: the kernel copies the name.
        unsafe { libc::prctl(libc::PR_SET_NAME, c"sc-before".as_ptr()) };
        repeat(9, libc::SYS_getppid);
        // SAFETY: the same.
        unsafe { libc::prctl(libc::PR_SET_NAME, c"sc-after".as_ptr()) };
        repeat(6, libc::SYS_gettid);
    });
    let other = Held::new(|| repeat(4, libc::SYS_getppid));
    let cgroup = Cgroup::new("calls");
    let within = shell("cd /; cd /; cd /", Some(&cgroup));
    let pids = format!("{},{}", child.pid, other.pid);
    let by_process = start("syscount", &["-P", "-p", &pids]);
    let split = start("syscount", &["-P", "--by-call", "-p", &pids, "--syscall", "getppid,gettid"]);
    let path = cgroup.path.to_str().expect("UTF-8");
    let by_cgroup = start("syscount", &["--by-cgroup", "-c", path, "--syscall", "chdir"]);
    let (pid, second) = (child.pid, other.pid);
    child.finish();
    other.finish();
    release(within);
    let [by_process, split, by_cgroup] =
        [by_process, split, by_cgroup].map(super::support::Running::stop);
    for finished in [&by_process, &split, &by_cgroup] {
        finished.assert_clean();
    }
    let rows: Vec<_> = by_process
        .of("row")
        .map(|row| {
            (row["pid"].clone(), row["comm"].clone(), row["count"].clone(), row["call"].clone())
        })
        .collect();
    // With two calls that set the name, and exit_group(). The name is the last one.
    let my_comm = std::fs::read_to_string("/proc/thread-self/comm").expect("comm");
    let expected = [
        (json!(pid), json!("sc-after"), json!(18), Value::Null),
        (json!(second), json!(my_comm.trim_end()), json!(5), Value::Null),
    ];
    assert_eq!(rows, expected);
    let mut rows: Vec<_> = split
        .of("row")
        .map(|row| (row["pid"] == second, row["call"].clone(), row["count"].clone()))
        .collect();
    rows.sort_by_key(|row| (row.0, row.1.to_string()));
    let expected = [
        (false, json!("getppid"), json!(9)),
        (false, json!("gettid"), json!(6)),
        (true, json!("getppid"), json!(4)),
    ];
    assert_eq!(rows, expected);
    let rows: Vec<&Value> = by_cgroup.of("row").collect();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let name = cgroup.path.file_name().expect("name").to_str().expect("UTF-8");
    assert!(rows[0]["cgroup"].as_str().is_some_and(|path| path.ends_with(name)), "{}", rows[0]);
    assert!(rows[0]["cgroup_id"].is_string());
    assert_eq!((&rows[0]["count"], &rows[0]["call"]), (&json!(3), &Value::Null));
    Outcome::Passed
}

/// Calls by int 0x80, with the numbers of i386, which mean something else to 64-bit callers.
#[cfg(target_arch = "x86_64")]
fn compat() -> Outcome {
    fn int80(number: u64) -> i64 {
        let mut result = number;
        // SAFETY: calls without arguments. The kernel clears r8 to r11 for them.
        unsafe {
            std::arch::asm!("int 0x80", inout("rax") result, out("r8") _, out("r9") _,
                out("r10") _, out("r11") _);
        }
        i64::from(result as u32 as i32)
    }
    // Without 32-bit callers in the kernel int 0x80 is a fault: tried in a child.
    // SAFETY: the child makes one call.
    let there = match unsafe { fork() }.expect("fork") {
        // SAFETY: ends it without running anything of the tests.
        ForkResult::Child => unsafe { libc::_exit(i32::from(int80(20) <= 0)) },
        ForkResult::Parent { child } => nix::sys::wait::waitpid(child, None).expect("waitpid"),
    };
    if !matches!(there, nix::sys::wait::WaitStatus::Exited(_, 0)) {
        return Outcome::Skipped("this kernel has no 32-bit callers".into());
    }
    // getpid is 20, which is writev; getppid 64, which is semget; close 6, which is lstat.
    let child = Held::new(|| {
        (0..8).for_each(|_| _ = int80(20));
        (0..5).for_each(|_| _ = int80(64));
        int80(901);
        repeat(3, libc::SYS_getppid);
    });
    let pid = child.pid.to_string();
    let run = |args: &[&str]| start("syscount", &[&["-p", &pid], args].concat());
    let (all, some) = (run(&[]), run(&["--syscall", "getppid"]));
    let (timed, failed) = (run(&["-L"]), run(&["-x"]));
    child.finish();
    let [all, some, timed, failed] = [all, some, timed, failed].map(super::support::Running::stop);
    let unknown = ("[unknown: 901] (i386)", 1);
    let (getpid, getppid) = (("getpid (i386)", 8), ("getppid (i386)", 5));
    let expected = [getpid, getppid, unknown, ("getppid", 3), ("exit_group", 1)];
    assert_eq!(sums(&all, "count"), map(expected));
    assert_eq!(sums(&some, "count"), map([getppid, ("getppid", 3)]));
    let mut with_read = map(expected);
    with_read.insert("read".into(), 1);
    assert_eq!(sums(&timed, "count"), with_read);
    assert_eq!(sums(&failed, "count"), map([unknown]));
    let row = all.of("row").find(|row| row["call"] == getpid.0).expect("a row");
    let seen = (&row["syscall"], &row["syscall_raw"], &row["abi"]);
    assert_eq!(seen, (&json!("getpid"), &json!(20), &json!("i386")));
    Outcome::Passed
}

#[cfg(not(target_arch = "x86_64"))]
fn compat() -> Outcome {
    Outcome::Skipped("no 32-bit calls from 64-bit programs here".into())
}

/// What a filter refuses does not begin, and ends nevertheless.
fn seccomp() -> Outcome {
    let child = Held::new(|| {
        let load = |k| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k };
        let returns = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
        let number = u32::try_from(libc::SYS_getppid).unwrap_or(0);
        let mut filter = [
            load(0),
            libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: number },
            returns(0x0005_0000 | libc::EXDEV as u32),
            returns(0x7fff_0000),
        ];
        let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
        // SAFETY: the kernel copies the program.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program);
        }
        repeat(6, libc::SYS_getppid);
    });
    let pid = child.pid.to_string();
    let run = |args: &[&str]| {
        start("syscount", &[&["-p", &pid, "--syscall", "getppid,prctl"], args].concat())
    };
    let (plain, timed, failed) = (run(&[]), run(&["-L"]), run(&["-e", "EXDEV"]));
    child.finish();
    let [plain, timed, failed] = [plain, timed, failed].map(super::support::Running::stop);
    assert_eq!(sums(&plain, "count"), map([("prctl", 2)]));
    assert_eq!(sums(&timed, "count"), map([("prctl", 2), ("getppid", 6)]));
    assert_eq!(sums(&timed, "timed"), map([("prctl", 2), ("getppid", 0)]));
    assert_eq!(sums(&failed, "count"), map([("getppid", 6)]));
    Outcome::Passed
}

/// What happens between two reports is in one of them.
fn intervals() -> Outcome {
    let own = gettid().to_string();
    let only = ["--syscall", "getppid", "-i", "0.05"];
    let run = |args: &[&str]| start("syscount", &[&["-t", &own], &only[..], args].concat());
    let mut tools = [run(&[]), run(&["-P"])];
    let mut made = 0;
    for tool in &mut tools {
        for _ in 0..3 {
            repeat(1000, libc::SYS_getppid);
            made += 1000;
            tool.wait_for(|record| record["type"] == "report");
        }
    }
    repeat(500, libc::SYS_getppid);
    made += 500;
    for finished in tools.map(super::support::Running::stop) {
        assert!(finished.of("report").count() >= 4);
        assert_eq!(sums(&finished, "count").into_values().sum::<u64>(), made);
    }
    Outcome::Passed
}

/// The lines of text about a command that makes known calls.
fn text(args: &[&str]) -> Vec<String> {
    let script = "cd /; cd /; cd /; cd /no-such-directory; umask; exit 0";
    let only = ["--syscall", "chdir,umask"];
    let args = [args, &only, &["--", "sh", "-c", script]].concat();
    let output = command("syscount", &args).output().expect("syscount");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(String::from).collect()
}

fn is_time(line: &str) -> bool {
    line.len() == 10 && line.starts_with('[') && line.ends_with(']') && line[3..].starts_with(':')
}

fn text_columns() -> Outcome {
    let lines = text(&[]);
    assert_eq!(lines[0], "Tracing syscalls, printing top 10... Ctrl+C to quit.");
    assert!(is_time(&lines[1]), "{lines:?}");
    assert_eq!(lines[2], "SYSCALL                   COUNT");
    assert_eq!(lines[3], "chdir                         4");
    // The shell asks for the mask by setting it twice.
    assert_eq!(lines[4], "umask                         2");
    assert_eq!((lines.len(), lines[5].as_str()), (6, ""));
    let few = text(&["-T", "1", "-d", "600"]);
    assert_eq!((few.len(), few[0].contains(" top 1... ")), (5, true), "{few:?}");
    let few = text(&["--top", "1", "--sort", "call"]);
    assert!(few[3].starts_with("chdir "), "{few:?}");
    let failed = text(&["-x", "--by-errno"]);
    assert_eq!(failed[0], "Tracing failed syscalls, printing top 10... Ctrl+C to quit.");
    assert_eq!(failed[2], "SYSCALL                ERROR              COUNT");
    assert_eq!(failed[3], "chdir                  ENOENT                 1");
    let words = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
    let timed = text(&["-L"]);
    assert_eq!(timed[2], "SYSCALL                   COUNT        TIME (us)");
    let row = timed.iter().find(|line| line.starts_with("chdir ")).expect("a row");
    assert_eq!((row.len(), words(row)[1].as_str()), (timed[2].len(), "4"));
    assert_eq!(words(row)[2].split_once('.').map(|(_, decimals)| decimals.len()), Some(3));
    let timed = text(&["-L", "-m", "-P"]);
    assert_eq!(timed[2], "PID    COMM               COUNT        TIME (ms)");
    assert_eq!(words(&timed[3])[1..3], ["sh", "6"]);
    assert_eq!(words(&timed[3])[3].split_once('.').map(|(_, decimals)| decimals.len()), Some(3));
    let slopes = text(&["--histogram"]);
    assert_eq!(slopes[0], "Tracing syscalls... Ctrl+C to quit.");
    let title = slopes.iter().position(|line| line == "syscall = chdir").expect("a title");
    assert_eq!(slopes[title + 1], "     usecs               : count    distribution");
    // A report without anything is none.
    let nothing = command("syscount", &["-p", "4194300", "-i", "0.1", "-d", "0.5"]).output();
    let nothing = String::from_utf8(nothing.expect("syscount").stdout).expect("UTF-8");
    assert_eq!(nothing, "Tracing syscalls, printing top 10... Ctrl+C to quit.\n");
    Outcome::Passed
}

fn command_line() -> Outcome {
    let output = command("syscount", &["-l"]).output().expect("syscount");
    assert!(output.status.success() && output.stderr.is_empty());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.starts_with(&format!("{}:\n  0: ", std::env::consts::ARCH)), "{text}");
    assert_eq!(text.matches("\n462: mseal\n").count(), 2);
    for args in [
        &["-e", "ENOSUCH"][..],
        &["-e", "0"],
        &["-i", "-1"],
        &["-T", "0"],
        &["--syscall", "nosuch"],
        &["--by-call"],
        &["--no-clear"],
        &["-d", "0"],
    ] {
        usage_error("syscount", args, "");
    }
    // A command of its own, alone.
    let mut own = command("syscount", &["--output", "json", "--syscall", "exit_group", "--"]);
    own.args(["sh", "-c", "exit 3"]);
    let finished = start_command(own).finish();
    assert_eq!(sums(&finished, "count"), map([("exit_group", 1)]));
    assert_eq!(finished.end()["child_status"], 3);
    Outcome::Passed
}
