// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! exitsnoop against ends of processes and threads that the tests make.

use std::ffi::CStr;
use std::fs;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::libc;
use nix::sys::mman::MapFlags;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::mmap_anonymous;
use nix::time::ClockId;
use nix::time::clock_gettime;
use nix::unistd::ForkResult;
use nix::unistd::fork;
use nix::unistd::pipe;
use nix::unistd::write;
use serde_json::Value;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::command;
use crate::support::losses::assert_counted;
use crate::support::patience;
use crate::support::process;
use crate::support::scratch;
use crate::support::start;
use crate::support::start_command;

pub const CASES: &[Case] = &[
    Case::alone("every end of a burst once", burst),
    Case::new("reasons", reasons),
    Case::new("the first thread ends first", first_ends_first),
    Case::new("threads that end at the same time", at_once),
    Case::new("an exec by another thread is no end", exec_of_other).in_turn(),
    Case::new("age and what was used", used).in_turn(),
    Case::new("filters", filters),
    Case::new("a command of its own", own_command).in_turn(),
    Case::new("text columns", text_columns).in_turn(),
    Case::new("what does not fit is counted", no_room).in_turn(),
];

/// Runs `act` in a child process, which then exits with 77. `act` may only make system calls:
/// other threads of the tests may hold locks.
fn fork_child(act: impl FnOnce()) -> i32 {
    // SAFETY: the child makes system calls only.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            act();
            exit_group(77)
        }
        ForkResult::Parent { child } => child.as_raw(),
    }
}

/// Collects a child: its status as wait() has it, and what it has used.
fn collect(pid: i32) -> (i32, libc::rusage) {
    let mut status = 0;
    // SAFETY: any bit pattern is a valid rusage, and the kernel writes to what is given.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::wait4(pid, &mut status, 0, &mut usage), pid);
        (status, usage)
    }
}

fn exit_group(status: i32) -> ! {
    // SAFETY: ends the process without running anything of the tests.
    unsafe { libc::_exit(status) }
}

/// Ends the calling thread only.
fn exit_thread(status: i32) {
    // SAFETY: ends a thread that has nothing to clean up.
    unsafe { libc::syscall(libc::SYS_exit, status) };
}

fn set_name(name: &CStr) {
    // SAFETY: the kernel copies the name.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Waits until somebody writes to the pipe, or closes it.
fn wait_for_byte(fd: i32) {
    let mut byte = 0u8;
    // SAFETY: one byte of room.
    unsafe { libc::read(fd, ptr::from_mut(&mut byte).cast(), 1) };
}

fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("clock");
    u64::try_from(Duration::from(now).as_nanos()).expect("small")
}

const STACK: usize = 1 << 16;

/// Memory for `count` stacks, that a thread of a child can have.
fn stacks(count: usize) -> usize {
    let size = NonZeroUsize::new(STACK * count).expect("not zero");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh mapping.
    let memory = unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_PRIVATE) };
    memory.expect("mapping").as_ptr() as usize
}

/// Words that the child and the test share.
fn shared() -> &'static [AtomicU32; 16] {
    let size = NonZeroUsize::new(4096).expect("not zero");
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a fresh, zeroed mapping that is never unmapped.
    unsafe {
        let memory = mmap_anonymous(None, size, access, MapFlags::MAP_SHARED).expect("mapping");
        &*memory.as_ptr().cast()
    }
}

/// Starts a thread in the calling process that makes system calls only.
fn spawn_thread<T>(stack: usize, act: extern "C" fn(*mut libc::c_void) -> i32, argument: &T) {
    let flags = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM;
    let argument = ptr::from_ref(argument).cast_mut().cast();
    // SAFETY: the thread has a stack of its own, and `argument` stays until the process ends.
    unsafe { libc::clone(act, (stack + STACK) as *mut _, flags, argument) };
}

/// Waits until the first thread of a process has ended.
fn wait_until_zombie(pid: i32) {
    let until = Instant::now() + patience();
    let is_zombie = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
        stat.rsplit_once(") ").expect("a name").1.starts_with('Z')
    };
    while !is_zombie() {
        assert!(Instant::now() < until, "{pid} did not end");
        thread::yield_now();
    }
}

fn of_pid(finished: &Finished, pid: i32) -> Vec<&Value> {
    finished.of("event").filter(|event| event["pid"] == pid).collect()
}

fn only(finished: &Finished, pid: i32) -> &Value {
    let events = of_pid(finished, pid);
    assert_eq!(events.len(), 1, "{events:?}");
    events[0]
}

fn me() -> u64 {
    std::process::id().into()
}

fn my_comm() -> String {
    fs::read_to_string("/proc/thread-self/comm").expect("comm").trim_end().into()
}

/// 600 ends as fast as two threads can make them: each is there, once, with its status.
fn burst() -> Outcome {
    let tool = start("exitsnoop", &["--ppid", &me().to_string()]);
    let make = |from: i32| -> Vec<(i32, i32)> {
        (from..from + 300)
            .map(|i| {
                let pid = fork_child(|| exit_group(i % 256));
                let (status, _) = collect(pid);
                assert_eq!(status, (i % 256) << 8);
                (pid, status)
            })
            .collect()
    };
    let made = thread::scope(|scope| {
        let threads = [scope.spawn(|| make(0)), scope.spawn(|| make(300))];
        threads.into_iter().flat_map(|t| t.join().expect("thread")).collect::<Vec<_>>()
    });
    let finished = tool.stop();
    finished.assert_clean();
    assert_eq!(made.len(), 600);
    for (pid, status) in &made {
        let statuses: Vec<_> =
            of_pid(&finished, *pid).iter().map(|event| event["wait_status"].clone()).collect();
        // A number may have been given twice.
        let expected: Vec<Value> =
            made.iter().filter(|(p, _)| p == pid).map(|(_, status)| (*status).into()).collect();
        assert_eq!(statuses, expected, "{pid} {status}");
    }
    Outcome::Passed
}

/// Ends by this signal, with or without a core as the limit says.
fn die(signal: i32, core: u64) {
    let limit = libc::rlimit { rlim_cur: core, rlim_max: core };
    // SAFETY: system calls only.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &limit);
        libc::signal(signal, libc::SIG_DFL);
        libc::kill(libc::getpid(), signal);
    }
}

fn reasons() -> Outcome {
    let directory = scratch("cores");
    let directory = std::ffi::CString::new(directory.to_str().expect("UTF-8")).expect("no NUL");
    let tool = start("exitsnoop", &["--ppid", &me().to_string()]);
    let failed = start("exitsnoop", &["-x", "--ppid", &me().to_string()]);
    let mut made = Vec::new();
    for status in [0, 1, 7, 255, 256 + 3] {
        let low = status & 0xff;
        let text = if low == 0 { "0".into() } else { format!("code {low}") };
        made.push((fork_child(|| exit_group(status)), Some(low), None, text));
    }
    made.push((fork_child(|| exit_thread(9)), Some(9), None, "code 9".into()));
    for (signal, name, words) in [
        (libc::SIGKILL, "SIGKILL", "Killed"),
        (libc::SIGTERM, "SIGTERM", "Terminated"),
        (libc::SIGSEGV, "SIGSEGV", "Segmentation fault"),
        (36, "SIGRTMIN+2", "Real-time signal 2"),
    ] {
        let text = format!("signal {signal} ({words})");
        made.push((fork_child(|| die(signal, 0)), None, Some((signal, name)), text));
    }
    let dumps = fork_child(|| {
        // SAFETY: a system call on a string.
        unsafe { libc::chdir(directory.as_ptr()) };
        die(libc::SIGABRT, libc::RLIM_INFINITY);
    });
    made.push((dumps, None, Some((6, "SIGABRT")), "signal 6 (Aborted)".into()));
    let waited: Vec<i32> = made.iter().map(|(pid, ..)| collect(*pid).0).collect();
    let (finished, failed) = (tool.stop(), failed.stop());
    finished.assert_clean();
    failed.assert_clean();
    for ((pid, status, signal, text), waited) in made.into_iter().zip(waited) {
        let event = only(&finished, pid);
        let core = libc::WIFSIGNALED(waited) && libc::WCOREDUMP(waited);
        assert!(!core || pid == dumps);
        assert_eq!(event["wait_status"], waited, "{event}");
        assert_eq!(event["exit_status"], status.map_or(Value::Null, Value::from));
        assert_eq!(event["signal"], signal.map_or(Value::Null, |(_, name)| name.into()));
        assert_eq!(event["signal_raw"], signal.map_or(Value::Null, |(number, _)| number.into()));
        assert_eq!(event["core_dumped"], core);
        let core = if core { ", core dumped" } else { "" };
        assert_eq!(event["exit_code"], format!("{text}{core}"));
        let id = u64::try_from(pid).expect("pid");
        assert_eq!(process(event), (id, id, me(), 0));
        assert_eq!((&event["comm"], &event["parent_comm"]), (&my_comm().into(), &my_comm().into()));
        assert_eq!((&event["process_ended"], &event["label"]), (&true.into(), &Value::Null));
        assert_eq!(of_pid(&failed, pid).len(), usize::from(waited != 0));
    }
    Outcome::Passed
}

/// What the second thread of a child does.
struct Second {
    go: i32,
    status: i32,
    /// exit_group() instead of exit().
    all: bool,
    tid: &'static AtomicU32,
}

extern "C" fn second(argument: *mut libc::c_void) -> i32 {
    // SAFETY: given by `first_thread_ends`.
    let given = unsafe { &*argument.cast::<Second>() };
    set_name(c"ex-second");
    // SAFETY: a system call.
    given.tid.store(unsafe { libc::syscall(libc::SYS_gettid) } as u32, Ordering::SeqCst);
    wait_for_byte(given.go);
    if given.all {
        exit_group(given.status);
    }
    exit_thread(given.status);
    0
}

/// A child whose first thread ends with 3, and whose second one lives until a byte comes.
fn first_thread_ends(go: &OwnedFd, status: i32, all: bool, tid: &'static AtomicU32) -> i32 {
    let stack = stacks(1);
    let given = Second { go: go.as_raw_fd(), status, all, tid };
    let pid = fork_child(|| {
        set_name(c"ex-first");
        spawn_thread(stack, second, &given);
        exit_thread(3);
    });
    wait_until_zombie(pid);
    pid
}

fn first_ends_first() -> Outcome {
    let tool = start("exitsnoop", &["--ppid", &me().to_string()]);
    let threads = start("exitsnoop", &["-T", "--ppid", &me().to_string()]);
    let by_first = start("exitsnoop", &["--comm", "ex-first"]);
    let by_second = start("exitsnoop", &["--comm", "ex-second"]);
    let tids = shared();
    let mut made = Vec::new();
    for (tid, (status, all)) in tids.iter().zip([(5, false), (9, true)]) {
        let (go, release) = pipe().expect("pipe");
        let pid = first_thread_ends(&go, status, all, tid);
        let released = boot_ns();
        write(&release, b"x").expect("write");
        let (waited, _) = collect(pid);
        // The status is that of who ended all of them; else the first thread's, or the last one's
        // since 6.0 ("signal: Guarantee that SIGNAL_GROUP_EXIT is set on process exit").
        assert!(waited == status << 8 || (!all && waited == 3 << 8), "{waited}");
        made.push((pid, tid.load(Ordering::SeqCst), status, waited, released));
    }
    let [tool, threads, by_first, by_second] =
        [tool, threads, by_first, by_second].map(super::support::Running::stop);
    for finished in [&tool, &threads, &by_first, &by_second] {
        finished.assert_clean();
    }
    for (pid, tid, status, waited, released) in made {
        for finished in [&tool, &by_first] {
            let event = only(finished, pid);
            assert_eq!((&event["tid"], &event["comm"]), (&pid.into(), &"ex-first".into()));
            assert_eq!(
                (&event["wait_status"], &event["process_ended"]),
                (&waited.into(), &true.into())
            );
            let at: u64 = event["boot_ns"].as_str().expect("text").parse().expect("number");
            assert!(at >= released, "{event}");
        }
        assert!(of_pid(&by_second, pid).is_empty());
        let seen: Vec<_> = of_pid(&threads, pid)
            .iter()
            .map(|e| {
                (
                    e["tid"].clone(),
                    e["comm"].clone(),
                    e["wait_status"].clone(),
                    e["process_ended"].clone(),
                )
            })
            .collect();
        let row = |tid: i64, comm: &str, status: i32, ended: bool| {
            (Value::from(tid), Value::from(comm), Value::from(status << 8), Value::from(ended))
        };
        let rows =
            [row(pid.into(), "ex-first", 3, false), row(tid.into(), "ex-second", status, true)];
        assert_eq!(seen, rows);
    }
    Outcome::Passed
}

struct Many {
    go: &'static AtomicU32,
    ready: &'static AtomicU32,
    all: bool,
}

extern "C" fn one_of_many(argument: *mut libc::c_void) -> i32 {
    // SAFETY: given by `at_once`.
    let given = unsafe { &*argument.cast::<Many>() };
    given.ready.fetch_add(1, Ordering::SeqCst);
    while given.go.load(Ordering::SeqCst) == 0 {
        // SAFETY: a system call.
        unsafe { libc::sched_yield() };
    }
    if given.all {
        exit_group(6);
    }
    exit_thread(1);
    0
}

/// Threads that all end in the same moment are one end of a process.
fn at_once() -> Outcome {
    const THREADS: u32 = 6;
    let stack = stacks(THREADS as usize);
    let tool = start("exitsnoop", &["--ppid", &me().to_string()]);
    let threads = start("exitsnoop", &["-T", "--ppid", &me().to_string()]);
    let made: Vec<(i32, i32, bool)> = (0..30)
        .map(|i| {
            let words = shared();
            let given = Many { go: &words[0], ready: &words[1], all: i % 2 == 1 };
            let pid = fork_child(|| {
                for thread in 0..THREADS as usize {
                    spawn_thread(stack + thread * STACK, one_of_many, &given);
                }
                while given.ready.load(Ordering::SeqCst) < THREADS {
                    // SAFETY: a system call.
                    unsafe { libc::sched_yield() };
                }
                given.go.store(1, Ordering::SeqCst);
                exit_thread(0);
            });
            (pid, collect(pid).0, given.all)
        })
        .collect();
    let (tool, threads) = (tool.stop(), threads.stop());
    tool.assert_clean();
    threads.assert_clean();
    for (pid, waited, all) in made {
        assert!(if all { waited == 6 << 8 } else { [0, 1 << 8].contains(&waited) }, "{waited}");
        assert_eq!(only(&tool, pid)["wait_status"], waited);
        let events = of_pid(&threads, pid);
        assert_eq!(events.len(), THREADS as usize + 1, "{events:?}");
        let last = events.iter().filter(|event| event["process_ended"] == true);
        assert_eq!(last.count(), 1, "{events:?}");
    }
    Outcome::Passed
}

extern "C" fn execute(_: *mut libc::c_void) -> i32 {
    let path = c"/bin/true".as_ptr();
    let (argv, environment) = ([path, ptr::null()], [ptr::null()]);
    // SAFETY: the kernel checks its pointers.
    unsafe { libc::execve(path, argv.as_ptr(), environment.as_ptr()) };
    0
}

/// The first thread ends when another one executes a program, and the process goes on.
fn exec_of_other() -> Outcome {
    let stack = stacks(1);
    let tool = start("exitsnoop", &["--ppid", &me().to_string()]);
    let before = boot_ns();
    let pid = fork_child(|| {
        spawn_thread(stack, execute, &());
        loop {
            // SAFETY: a system call.
            unsafe { libc::pause() };
        }
    });
    assert_eq!(collect(pid).0, 0);
    let finished = tool.stop();
    finished.assert_clean();
    let event = only(&finished, pid);
    assert_eq!((&event["comm"], &event["tid"]), (&"true".into(), &pid.into()));
    let started: u64 = event["start_boot_ns"].as_str().expect("text").parse().expect("number");
    assert!(started >= before, "{event}");
    Outcome::Passed
}

fn io_of(pid: i32) -> Option<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let number = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
    };
    Some((number("read_bytes:")?, number("write_bytes:")?))
}

fn used() -> Outcome {
    const MEMORY: usize = 16 << 20;
    let directory = scratch("used");
    let path = directory.join("written");
    let path = std::ffi::CString::new(path.to_str().expect("UTF-8")).expect("no NUL");
    let content = vec![7u8; 1 << 20];
    let (go, release) = pipe().expect("pipe");
    let done = shared();
    let tool = start("exitsnoop", &["--ppid", &me().to_string()]);
    let before = boot_ns();
    let pid = fork_child(|| {
        // SAFETY: system calls, and writes to a fresh mapping.
        unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let memory = libc::mmap(ptr::null_mut(), MEMORY, access, flags, -1, 0).cast::<u8>();
            for page in (0..MEMORY).step_by(4096) {
                memory.add(page).write_volatile(1);
            }
            let fd = libc::open(path.as_ptr(), libc::O_CREAT | libc::O_WRONLY, 0o600);
            libc::write(fd, content.as_ptr().cast(), content.len());
            let mut usage: libc::rusage = std::mem::zeroed();
            let ms = |time: libc::timeval| time.tv_sec * 1000 + time.tv_usec / 1000;
            while ms(usage.ru_utime) < 150 {
                (0..20_000).for_each(|i| memory.add(i).write_volatile(1));
                libc::getrusage(libc::RUSAGE_SELF, &mut usage);
            }
        }
        done[0].store(1, Ordering::SeqCst);
        wait_for_byte(go.as_raw_fd());
        // SAFETY: system calls, of which one fills what it is given.
        let waits = unsafe {
            // The byte may have been there before it was waited for.
            libc::usleep(10_000);
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_SELF, &mut usage);
            usage.ru_nvcsw
        };
        done[1].store(u32::try_from(waits).unwrap_or(0), Ordering::SeqCst);
        exit_group(0);
    });
    let after = boot_ns();
    let until = Instant::now() + patience();
    while done[0].load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < until);
        thread::yield_now();
    }
    let io = io_of(pid);
    let released = boot_ns();
    write(&release, b"x").expect("write");
    let (_, usage) = collect(pid);
    let waited = boot_ns();
    let finished = tool.stop();
    finished.assert_clean();
    let event = only(&finished, pid);
    let number = |name: &str| event[name].as_u64().unwrap_or_else(|| panic!("{name}: {event}"));
    let started: u64 = event["start_boot_ns"].as_str().expect("text").parse().expect("number");
    // The kernel takes the time of a start from a coarser look at the same clock.
    assert!((before..=after).contains(&started), "{before} {after} {event}");
    assert!(number("age_ns") >= released - after && number("age_ns") <= waited - before);
    let ns = |time: libc::timeval| {
        u64::try_from(time.tv_sec * 1_000_000 + time.tv_usec).expect("time") * 1000
    };
    let whole = ns(usage.ru_utime) + ns(usage.ru_stime);
    let cpu = number("cpu_ns");
    assert!(cpu <= whole + 2000 && cpu + whole / 4 >= whole, "{cpu} of {whole}");
    assert_eq!(number("user_ns") + number("system_ns"), cpu);
    // It went on until it had used 150 milliseconds.
    assert!(number("user_ns") >= 140_000_000, "{event}");
    let count = |n: libc::c_long| u64::try_from(n).expect("not negative");
    assert_eq!(number("max_rss_bytes"), count(usage.ru_maxrss) * 1024);
    assert!(number("max_rss_bytes") >= MEMORY as u64);
    assert_eq!(number("minor_faults"), count(usage.ru_minflt));
    assert!(number("minor_faults") >= 1, "{event}");
    assert_eq!(number("major_faults"), count(usage.ru_majflt));
    // After its last look it may have to wait to end, and after that to be collected.
    let waits = u64::from(done[1].load(Ordering::SeqCst));
    assert!(waits >= 1, "{event}");
    assert!(
        (waits..=count(usage.ru_nvcsw)).contains(&number("voluntary_switches")),
        "{waits} to {} {event}",
        usage.ru_nvcsw
    );
    assert!(number("involuntary_switches") <= count(usage.ru_nivcsw));
    match io {
        Some(io) => assert_eq!((number("read_bytes"), number("write_bytes")), io),
        None => {
            assert_eq!((&event["read_bytes"], &event["write_bytes"]), (&Value::Null, &Value::Null));
        }
    }
    Outcome::Passed
}

fn filters() -> Outcome {
    let (go, release) = pipe().expect("pipe");
    let child = |status| {
        fork_child(|| {
            set_name(c"ex-filter");
            wait_for_byte(go.as_raw_fd());
            exit_group(status);
        })
    };
    let (good, bad) = (child(0), child(2));
    let cgroup = Cgroup::new("exits");
    let by_pid = start("exitsnoop", &["-p", &good.to_string(), "--limit", "1"]);
    let by_tid = start("exitsnoop", &["--tid", &bad.to_string()]);
    let by_comm = start("exitsnoop", &["--comm", "ex-fil*", "--ppid", &me().to_string()]);
    let by_cgroup = start("exitsnoop", &["-c", cgroup.path.to_str().expect("UTF-8")]);
    let by_condition =
        start("exitsnoop", &["--ppid", &me().to_string(), "--filter", "exit_status = 2"]);
    write(&release, b"xx").expect("write");
    collect(good);
    collect(bad);
    // Ends by itself with the process that it was asked for.
    let by_pid = by_pid.finish();
    let mut within = cgroup.command("sh", &["-c", "exit 4"]).spawn().expect("sh");
    assert_eq!(within.wait().expect("wait").code(), Some(4));
    let pids = |finished: &Finished| -> Vec<i64> {
        finished.assert_clean();
        finished.of("event").map(|event| event["pid"].as_i64().expect("pid")).collect()
    };
    assert_eq!(pids(&by_pid), [i64::from(good)]);
    assert_eq!(by_pid.end()["reason"], "limit");
    assert_eq!(pids(&by_tid.stop()), [i64::from(bad)]);
    let mut both = pids(&by_comm.stop());
    both.sort_unstable();
    let mut expected = [i64::from(good), i64::from(bad)];
    expected.sort_unstable();
    assert_eq!(both, expected);
    assert_eq!(pids(&by_cgroup.stop()), [i64::from(within.id())]);
    let by_condition = by_condition.stop();
    assert!(pids(&by_condition).contains(&bad.into()));
    assert!(by_condition.of("event").all(|event| event["exit_status"] == 2));
    Outcome::Passed
}

/// `-- COMMAND`: the command, and what it starts.
fn own_command() -> Outcome {
    let mut command = command("exitsnoop", &["--per-thread", "--output", "json", "--", "sh", "-c"]);
    command.arg("sh -c 'exit 5'; sh -c 'kill -KILL $$'; exit 3");
    let finished = start_command(command).finish();
    finished.assert_clean();
    let seen: Vec<_> = finished.of("event").map(|event| event["exit_code"].clone()).collect();
    assert_eq!(seen, ["code 5", "signal 9 (Killed)", "code 3"]);
    assert_eq!(finished.end()["child_status"], 3);
    Outcome::Passed
}

/// The lines of text about a command.
fn text(args: &[&str]) -> Vec<String> {
    let args = [args, &["--", "sh", "-c", "sh -c 'exit 5'; kill -TERM $$"]].concat();
    let output = command("exitsnoop", &args).env("TZ", "XYZ-7").output().expect("exitsnoop");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(String::from).collect()
}

fn of_day(text: &str) -> u64 {
    let parts: Vec<u64> = text[..8].split(':').map(|part| part.parse().expect("number")).collect();
    parts[0] * 3600 + parts[1] * 60 + parts[2]
}

fn text_columns() -> Outcome {
    const HEADER: &str = "PCOMM            PID     PPID    TID     AGE(s)  EXIT_CODE";
    let lines = text(&[]);
    assert_eq!((lines.len(), lines[0].as_str()), (3, HEADER), "{lines:?}");
    let words = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
    let (inner, outer) = (words(&lines[1]), words(&lines[2]));
    assert_eq!((inner[0].as_str(), &inner[2], &inner[3]), ("sh", &outer[1], &inner[1]));
    assert_eq!(lines[1][HEADER.find("EXIT_CODE").expect("header")..], *"code 5");
    assert_eq!(lines[2][HEADER.find("EXIT_CODE").expect("header")..], *"signal 15 (Terminated)");
    let age = inner[4].split_once('.').expect("a point");
    assert!(age.0.parse::<u64>().is_ok() && age.1.len() == 2, "{age:?}");
    let failed = text(&["-x", "-t"]);
    assert_eq!((failed.len(), failed[0].as_str()), (3, format!("TIME(s)  {HEADER}").as_str()));
    let before = Instant::now();
    let utc = text(&["--utc", "--label"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("now");
    assert_eq!(utc[0], format!("TIME-UTC     LABEL  {HEADER}"));
    let (time, rest) = utc[1].split_once(' ').expect("a time");
    assert_eq!((time.len(), &rest[..7]), (12, "exit   "));
    // Between the start and now, by the clock of UTC; the zone is seven hours ahead.
    let passed = (now.as_secs() % 86_400 + 86_400 - of_day(time)) % 86_400;
    assert!(passed <= before.elapsed().as_secs() + 1, "{time} {passed}");
    let local = of_day(&text(&["-t"])[1]);
    let ahead = (local + 86_400 - of_day(time)) % 86_400;
    assert!((7 * 3600..7 * 3600 + 600).contains(&ahead), "{ahead}");
    let named = text(&["--label=my text"]);
    assert_eq!(named[0], format!("LABEL  {HEADER}"));
    assert!(named[1].starts_with("my text "), "{named:?}");
    Outcome::Passed
}

/// A buffer too small: see [`assert_counted`].
fn no_room() -> Outcome {
    let program = scratch("no-room").join("no-room-exit");
    symlink("/bin/true", &program).expect("a link");
    assert_counted("exitsnoop", &["--comm", "no-room-exit"], 60, || {
        (0..60).for_each(|_| assert!(Command::new(&program).status().expect("true").success()));
    });
    Outcome::Passed
}
