// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! funclatency against calls that the tests make: of the kernel, from this process, and of a
//! program of their own.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::command;
use crate::support::gettid;
use crate::support::kernel;
use crate::support::scratch;
use crate::support::start;

pub const CASES: &[Case] = &[
    Case::new("every call of the kernel once", of_the_kernel),
    Case::new("how long a call takes", sleeps),
    Case::new("every call of a program once", of_programs),
    Case::new("nested calls", nested),
    Case::new("calls that do not return", without_return).in_turn(),
    Case::new("libraries of a process", libraries).in_turn(),
    Case::new("each process by itself", by_process).in_turn(),
    Case::new("filters", filters),
    Case::new("nothing is lost between reports", intervals).in_turn(),
    Case::new("names that people write", written_names).in_turn(),
    Case::new("text", text).in_turn(),
    Case::new("what is refused", refused).in_turn(),
];

/// Does what it is told to, a line each: WHAT [NUMBER], and answers with a line.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FUNCTION __attribute__((noinline, noclone))

static volatile int sink;
static jmp_buf back;

FUNCTION int work_short(int n)
{
	sink += n;
	return sink;
}

FUNCTION int work_other(int n)
{
	sink -= n;
	return sink;
}

FUNCTION int recurse(int depth)
{
	sink += depth;
	return depth > 1 ? recurse(depth - 1) + sink : sink;
}

FUNCTION void outer(void)
{
	work_short(1);
	work_other(1);
	sink++;
}

FUNCTION int leave(int n)
{
	sink += n;
	if (n)
		longjmp(back, 1);
	return sink;
}

/* From places of the stack that differ. */
FUNCTION int leave_deeper(int n)
{
	volatile char room[16 * (n % 8) + 16];

	room[0] = (char)n;
	leave(n);
	return room[0];
}

FUNCTION void *end_inside(void *unused)
{
	sink++;
	pthread_exit(unused);
}

FUNCTION void *one_call(void *unused)
{
	work_short(1);
	return unused;
}

static void in_threads(int count, void *(*what)(void *))
{
	for (int i = 0; i < count; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, what, NULL))
			exit(1);
		pthread_join(thread, NULL);
	}
}

int main(void)
{
	static char line[256], what[64];
	int n;

	setbuf(stdout, NULL);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		n = 1;
		sscanf(line, "%63s %d", what, &n);
		for (int i = 0; i < n; i++) {
			if (!strcmp(what, "short"))
				work_short(i);
			if (!strcmp(what, "other"))
				work_other(i);
			if (!strcmp(what, "outer"))
				outer();
			if (!strcmp(what, "getppid"))
				sink += getppid();
			if (!strcmp(what, "leave") && !setjmp(back))
				leave_deeper(i + 1);
			if (!strcmp(what, "stay"))
				leave(0);
		}
		if (!strcmp(what, "recurse"))
			recurse(n);
		if (!strcmp(what, "threads"))
			in_threads(n, one_call);
		if (!strcmp(what, "ends"))
			in_threads(n, end_inside);
		puts("done");
	}
	return 0;
}
"#;

/// The program above; a skipped test where there is no compiler.
fn build(directory: &Path) -> Result<PathBuf, Outcome> {
    let (source, program) = (directory.join("calls.c"), directory.join("calls"));
    fs::write(&source, PROGRAM).expect("source");
    let built = Command::new("cc")
        .args(["-O1", "-fno-optimize-sibling-calls", "-pthread", "-o"])
        .args([&program, &source])
        .output();
    let Ok(built) = built else { return Err(Outcome::Skipped("there is no C compiler".into())) };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Ok(program)
}

/// The program while it runs.
struct Calls {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Calls {
    fn start(program: &Path) -> Self {
        Self::run(&mut Command::new(program))
    }

    fn run(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program");
        let stdout = child.stdout.take().expect("piped");
        let mut lines = BufReader::new(stdout).lines();
        assert_eq!(lines.next().expect("a line").expect("UTF-8"), "ready");
        Self { child, lines }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn call(&mut self, what: &str) {
        writeln!(self.child.stdin.as_ref().expect("piped"), "{what}").expect("it reads");
        assert_eq!(self.lines.next().expect("a line").expect("UTF-8"), "done");
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("wait").success());
    }
}

type Key = (Option<String>, Option<u64>);

/// How many calls of each function and process were counted, all reports together. Checks that the
/// buckets of each histogram hold what it says.
fn counts(finished: &Finished) -> BTreeMap<Key, u64> {
    let mut all = BTreeMap::new();
    for record in finished.of("histogram") {
        assert_eq!((&record["name"], &record["unit"]), (&"latency_ns".into(), &"ns".into()));
        let count = record["count"].as_u64().expect("count");
        let buckets = record["buckets"].as_array().expect("buckets");
        let inside: u64 = buckets.iter().map(|b| b["count"].as_u64().expect("count")).sum();
        assert_eq!(inside, count, "{record}");
        let key = &record["key"];
        let key = (key["function"].as_str().map(String::from), key["pid"].as_u64());
        *all.entry(key).or_default() += count;
    }
    all
}

fn key(function: &str) -> Key {
    (Some(function.to_string()), None)
}

/// All that was counted, whatever it belongs to.
fn total(finished: &Finished) -> u64 {
    counts(finished).values().sum()
}

/// What was counted of these processes. Other tests run programs of the same name.
fn counts_of(finished: &Finished, calls: &[&Calls]) -> BTreeMap<Key, u64> {
    let mut all = counts(finished);
    all.retain(|(_, pid), _| calls.iter().any(|calls| *pid == Some(calls.pid().into())));
    all
}

fn of(program: &Path, function: &str) -> String {
    format!("{}:{function}", program.display())
}

/// Why functions of the kernel cannot be traced on this machine, if it is one of which that need
/// not be known.
fn kernel_refuses() -> Option<Outcome> {
    if kernel() != "own" {
        return None;
    }
    let args = ["--output", "json", "--duration", "0.1", "vfs_mkdir"];
    let output = command("funclatency", &args).output().expect("funclatency");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(3) => {
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            Some(Outcome::Skipped(format!("functions of the kernel: {}", stderr.trim_end())))
        }
        status => {
            assert_eq!(status, Some(0), "{stderr}");
            None
        }
    }
}

/// Directories and FIFOs that this thread makes, counted at one function, at the same with
/// kprobes, and at several that call each other.
fn of_the_kernel() -> Outcome {
    if let Some(skipped) = kernel_refuses() {
        return skipped;
    }
    let directory = scratch("funclatency");
    let tid = gettid().to_string();
    let one = start("funclatency", &["vfs_mkdir", "--tid", &tid]);
    let by_kprobes = start("funclatency", &["-k", "vfs_mkdir", "--tid", &tid]);
    let of_several = ["-r", "vfs_mk(dir|nod)|(do|filename)_mkdirat", "--tid", &tid];
    let together = start("funclatency", &of_several);
    let each = start("funclatency", &[&["-F"], &of_several[..]].concat());
    let all = start("funclatency", &["-F", "vfs_mk*", "--tid", &tid]);
    assert!(by_kprobes.way().starts_with("kprobe") && each.way().starts_with("kprobe"));
    for i in 0..40 {
        fs::create_dir(directory.join(i.to_string())).expect("mkdir");
    }
    // Not counted: another thread's.
    thread::scope(|scope| {
        scope.spawn(|| fs::create_dir(directory.join("other")).expect("mkdir"));
    });
    for i in 0..30 {
        mkfifo(&directory.join(format!("fifo-{i}")), Mode::S_IRWXU).expect("mkfifo");
    }
    let ended = [one, by_kprobes, together, each, all].map(|tool| {
        let finished = tool.stop();
        finished.assert_clean();
        finished
    });
    let [one, by_kprobes, together, each, all] = &ended;
    assert_eq!(counts(one), BTreeMap::from([(key("vfs_mkdir"), 40)]));
    assert_eq!(counts(by_kprobes), BTreeMap::from([(key("vfs_mkdir"), 40)]));
    // The one that makes a directory calls vfs_mkdir() each time.
    assert_eq!(counts(together), BTreeMap::from([((None, None), 110)]));
    let mut each = counts(each);
    assert_eq!(each.remove(&key("vfs_mkdir")), Some(40));
    assert_eq!(each.remove(&key("vfs_mknod")), Some(30));
    assert_eq!(each.values().sum::<u64>(), 40, "{each:?}");
    assert_eq!(counts(all), BTreeMap::from([(key("vfs_mkdir"), 40), (key("vfs_mknod"), 30)]));
    let _ = fs::remove_dir_all(directory);
    Outcome::Passed
}

/// Sleeps of a known length: the sum is at least that, and not more than this thread has seen.
fn sleeps() -> Outcome {
    const SLEEP: Duration = Duration::from_millis(40);
    if let Some(skipped) = kernel_refuses() {
        return skipped;
    }
    let tid = gettid().to_string();
    let tools = [&["hrtimer_nanosleep"][..], &["-m", "-k", "hrtimer_nanosleep"]]
        .map(|args| start("funclatency", &[args, &["--tid", &tid]].concat()));
    let begin = Instant::now();
    for _ in 0..6 {
        thread::sleep(SLEEP);
    }
    let passed = begin.elapsed();
    for (tool, is_milliseconds) in tools.into_iter().zip([false, true]) {
        let finished = tool.stop();
        finished.assert_clean();
        let records: Vec<&Value> = finished.of("histogram").collect();
        let [record] = records.as_slice() else { panic!("{records:?}") };
        assert_eq!(record["count"], 6);
        let sum = Duration::from_nanos(record["sum"].as_u64().expect("sum"));
        assert!(sum >= SLEEP * 6 && sum <= passed, "{sum:?} of {passed:?}");
        for bucket in record["buckets"].as_array().expect("buckets") {
            let edges = ["ge", "lt"].map(|edge| bucket[edge].as_u64().expect("an edge"));
            // In milliseconds each row is so many of them; in nanoseconds the first is two.
            assert_eq!(
                edges.iter().all(|edge| edge % 1_000_000 == 0),
                is_milliseconds,
                "{edges:?}"
            );
            assert!(bucket["count"] == 0 || edges[1] > 40_000_000, "{record}");
        }
    }
    Outcome::Passed
}

/// By path, by process, by wildcards and by regular expression.
fn of_programs() -> Outcome {
    let directory = scratch("funclatency");
    let program = match build(&directory) {
        Ok(program) => program,
        Err(skipped) => return skipped,
    };
    let mut calls = Calls::start(&program);
    let mut other = Calls::start(&program);
    let pid = calls.pid().to_string();
    let by_path = start("funclatency", &[&of(&program, "work_short")]);
    let by_pid = start("funclatency", &["-p", &pid, ":work_short"]);
    let wild = start("funclatency", &["-F", "-p", &pid, &of(&program, "work_*")]);
    let regular = start("funclatency", &["-r", "-p", &pid, ":work_(short|other)"]);
    calls.call("short 500");
    calls.call("other 70");
    calls.call("threads 5");
    other.call("short 20");
    let ended = [by_path, by_pid, wild, regular].map(|tool| {
        let finished = tool.stop();
        finished.assert_clean();
        counts(&finished)
    });
    let [by_path, by_pid, wild, regular] = ended;
    assert_eq!(by_path, BTreeMap::from([(key("work_short"), 525)]));
    assert_eq!(by_pid, BTreeMap::from([(key("work_short"), 505)]));
    assert_eq!(wild, BTreeMap::from([(key("work_short"), 505), (key("work_other"), 70)]));
    assert_eq!(regular, BTreeMap::from([((None, None), 575)]));
    calls.end();
    other.end();
    Outcome::Passed
}

/// Calls of a function by itself, and of one by another: each is counted, with a time that holds
/// those of all that it called; as deeply as --level says.
fn nested() -> Outcome {
    let directory = scratch("funclatency");
    let program = match build(&directory) {
        Ok(program) => program,
        Err(skipped) => return skipped,
    };
    let mut calls = Calls::start(&program);
    let pid = calls.pid().to_string();
    let recursion = start("funclatency", &["-p", &pid, ":recurse"]);
    let cut = start("funclatency", &["-l", "4", "-p", &pid, ":recurse"]);
    let several = start("funclatency", &["-F", "-r", "-p", &pid, ":outer|work_.*"]);
    calls.call("recurse 10");
    calls.call("recurse 3");
    calls.call("outer 8");
    let (recursion, cut, several) = (recursion.stop(), cut.stop(), several.stop());
    recursion.assert_clean();
    assert_eq!(counts(&recursion), BTreeMap::from([(key("recurse"), 13)]));
    // Of ten calls the four outermost, and all of three.
    assert_eq!(total(&cut), 7);
    let end = cut.end();
    assert_eq!((end["map_full"].as_u64(), end["lost"].as_u64()), (Some(6), Some(0)), "{end}");
    several.assert_clean();
    let expected =
        ["outer", "work_other", "work_short"].map(|name| (key(name), 8)).into_iter().collect();
    assert_eq!(counts(&several), expected);
    let sum = |name: &str| -> u64 {
        let mine = several.of("histogram").filter(|record| record["key"]["function"] == name);
        mine.map(|record| record["sum"].as_u64().expect("sum")).sum()
    };
    assert!(sum("outer") > sum("work_short") + sum("work_other"));
    calls.end();
    Outcome::Passed
}

/// Calls that are left by a jump, or whose thread ends in them, are not counted, take no place
/// from others, and what was kept of a thread is gone with it.
fn without_return() -> Outcome {
    let directory = scratch("funclatency");
    let program = match build(&directory) {
        Ok(program) => program,
        Err(skipped) => return skipped,
    };
    let mut calls = Calls::start(&program);
    let pid = calls.pid().to_string();
    let left = start("funclatency", &["-p", &pid, ":leave"]);
    let around = start("funclatency", &["-l", "2", "-F", "-p", &pid, ":leave*"]);
    // More threads than the tool can keep at a time.
    let ended = start("funclatency", &["-r", "-p", &pid, ":end_inside|one_call"]);
    calls.call("leave 60");
    calls.call("stay 7");
    calls.call("ends 3300");
    calls.call("threads 9");
    let (left, around, ended) = (left.stop(), around.stop(), ended.stop());
    for finished in [&left, &around, &ended] {
        finished.assert_clean();
    }
    assert_eq!(total(&left), 7);
    assert_eq!(counts(&around), BTreeMap::from([(key("leave"), 7)]));
    assert_eq!(total(&ended), 9);
    calls.end();
    Outcome::Passed
}

/// The path of the C library that this program has mapped.
fn libc_path() -> Option<String> {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let path = maps.split_whitespace().find(|word| word.ends_with("/libc.so.6"))?;
    Some(path.to_string())
}

/// A process whose library is another file in its own mount namespace, as in a container: --pid
/// finds that one, by name and by path.
fn libraries() -> Outcome {
    let directory = scratch("funclatency");
    let program = match build(&directory) {
        Ok(program) => program,
        Err(skipped) => return skipped,
    };
    let Some(libc) = libc_path() else {
        return Outcome::Skipped("the C library here is not GNU's".into());
    };
    let copy = directory.join("copy");
    let script = format!(
        "set -e; cp '{libc}' '{0}'; mount --bind '{0}' '{libc}'; exec '{1}'",
        copy.display(),
        program.display()
    );
    let mut apart = Calls::run(Command::new("unshare").args(["--mount", "sh", "-c", &script]));
    let mut plain = Calls::start(&program);
    let both = format!("{},{}", apart.pid(), plain.pid());
    let pid = apart.pid().to_string();
    let by_name = start("funclatency", &["-p", &pid, "c:getppid"]);
    let by_path = start("funclatency", &["-p", &pid, &format!("{libc}:getppid")]);
    let of_both = start("funclatency", &["-p", &both, "libc.so.6:getppid"]);
    let of_host = start("funclatency", &["--comm", "calls", &format!("{libc}:getppid")]);
    apart.call("getppid 12");
    plain.call("getppid 5");
    let ended = [by_name, by_path, of_both, of_host].map(|tool| {
        let finished = tool.stop();
        finished.assert_clean();
        finished
    });
    assert_eq!([0, 1, 2].map(|i| total(&ended[i])), [12, 12, 17]);
    let of_host = counts_of(&ended[3], &[&apart, &plain]);
    let plain_only = (Some("getppid".to_string()), Some(u64::from(plain.pid())));
    assert_eq!(of_host, BTreeMap::from([(plain_only, 5)]));
    assert_eq!(counts(&ended[0]), BTreeMap::from([(key("getppid"), 12)]));
    apart.end();
    plain.end();
    Outcome::Passed
}

/// Of a library without --pid, and of a program with -F, each process has histograms of its own.
fn by_process() -> Outcome {
    let directory = scratch("funclatency");
    let program = match build(&directory) {
        Ok(program) => program,
        Err(skipped) => return skipped,
    };
    if libc_path().is_none() {
        return Outcome::Skipped("the C library here is not GNU's".into());
    }
    let (mut one, mut two) = (Calls::start(&program), Calls::start(&program));
    let library = start("funclatency", &["--comm", "calls", "c:getppid"]);
    let functions = start("funclatency", &["-F", &of(&program, "work_*")]);
    one.call("getppid 3");
    two.call("getppid 4");
    one.call("short 5");
    two.call("other 6");
    let (library, functions) = (library.stop(), functions.stop());
    library.assert_clean();
    functions.assert_clean();
    let key = |name: &str, calls: &Calls| (Some(name.to_string()), Some(u64::from(calls.pid())));
    assert_eq!(
        counts_of(&library, &[&one, &two]),
        BTreeMap::from([(key("getppid", &one), 3), (key("getppid", &two), 4)])
    );
    assert_eq!(
        counts(&functions),
        BTreeMap::from([(key("work_short", &one), 5), (key("work_other", &two), 6)])
    );
    one.end();
    two.end();
    Outcome::Passed
}

fn filters() -> Outcome {
    let directory = scratch("funclatency");
    let program = match build(&directory) {
        Ok(program) => program,
        Err(skipped) => return skipped,
    };
    let cgroup = Cgroup::new("funclatency");
    let mut inside = Calls::run(&mut cgroup.command(program.to_str().expect("UTF-8"), &[]));
    let mut outside = Calls::start(&program);
    let function = of(&program, "work_short");
    let path = cgroup.path.to_str().expect("UTF-8").to_string();
    let by_cgroup = start("funclatency", &["-c", &path, &function]);
    let by_tree = start("funclatency", &["--tree", &outside.pid().to_string(), &function]);
    inside.call("short 11");
    outside.call("short 13");
    let (by_cgroup, by_tree) = (by_cgroup.stop(), by_tree.stop());
    by_cgroup.assert_clean();
    by_tree.assert_clean();
    assert_eq!((total(&by_cgroup), total(&by_tree)), (11, 13));
    inside.end();
    outside.end();
    Outcome::Passed
}

/// Reports at intervals add up to all calls; -d ends by itself, with the rest in a last report.
fn intervals() -> Outcome {
    let directory = scratch("funclatency");
    let program = match build(&directory) {
        Ok(program) => program,
        Err(skipped) => return skipped,
    };
    let mut calls = Calls::start(&program);
    let function = of(&program, "work_short");
    let mut tool = start("funclatency", &["-i", "1", &function]);
    let short = start("funclatency", &["-d", "0.5", &function]);
    calls.call("short 100");
    let first = tool.wait_for(|record| record["type"] == "report");
    calls.call("short 50");
    let second = tool.wait_for(|record| record["type"] == "report");
    calls.call("short 25");
    let finished = tool.stop();
    finished.assert_clean();
    assert_eq!(total(&finished), 175);
    assert_eq!((&first["report"], &second["report"]), (&0.into(), &1.into()));
    assert!(finished.of("report").count() >= 2);
    assert_eq!(short.finish().end()["reason"], "duration");
    calls.end();
    Outcome::Passed
}

#[inline(never)]
extern "C" fn called_by_its_rust_name(n: u64) -> u64 {
    std::hint::black_box(n + 1)
}

/// A function of this very program, and one of a program in C++.
fn written_names() -> Outcome {
    let directory = scratch("funclatency");
    let own = std::env::current_exe().expect("this program");
    let name = format!("{}::called_by_its_rust_name", module_path!());
    let rust = start("funclatency", &[&of(&own, &name)]);
    for n in 0..33 {
        called_by_its_rust_name(n);
    }
    let rust = rust.stop();
    rust.assert_clean();
    assert_eq!(counts(&rust), BTreeMap::from([(key(&name), 33)]));

    let source = r#"
        #include <cstdio>
        namespace space {
        struct Thing {
            __attribute__((noinline)) int act(int n) { asm volatile("" : : "r"(n)); return n; }
            __attribute__((noinline)) int act(char c) { asm volatile("" : : "r"(c)); return c; }
        };
        }
        int main()
        {
            space::Thing thing;
            setbuf(stdout, NULL);
            puts("ready");
            while (getchar() != EOF) {
                for (int i = 0; i < 5; i++)
                    thing.act(i);
                thing.act('x');
                puts("done");
            }
            return 0;
        }"#;
    let (file, program) = (directory.join("written.cc"), directory.join("written"));
    fs::write(&file, source).expect("source");
    let built = Command::new("c++").args(["-O1", "-o"]).args([&program, &file]).output();
    let Ok(built) = built else { return Outcome::Skipped("there is no C++ compiler".into()) };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let mut calls = Calls::start(&program);
    let names = ["space::Thing::act", "space::Thing::act(char)", "_ZN5space5Thing3actEi"];
    let tools = names.map(|name| start("funclatency", &[&of(&program, name)]));
    // The line's letters and its end.
    calls.call("");
    let seen = tools.map(|tool| {
        let finished = tool.stop();
        finished.assert_clean();
        counts(&finished)
    });
    let expected = [6, 1, 5].into_iter().zip(names);
    let expected: Vec<_> = expected.map(|(n, name)| BTreeMap::from([(key(name), n)])).collect();
    assert_eq!(seen.to_vec(), expected);
    calls.end();
    Outcome::Passed
}

/// What a tool that is stopped when `act` is done has printed.
fn printed(args: &[&str], act: impl FnOnce()) -> Vec<String> {
    let mut tool = command("funclatency", args).stdout(Stdio::piped()).spawn().expect("spawn");
    let mut stdout = BufReader::new(tool.stdout.take().expect("piped"));
    let mut text = String::new();
    stdout.read_line(&mut text).expect("a line");
    act();
    kill(Pid::from_raw(i32::try_from(tool.id()).expect("a pid")), Signal::SIGINT).expect("kill");
    stdout.read_to_string(&mut text).expect("text");
    assert!(tool.wait().expect("wait").success());
    text.lines().map(String::from).collect()
}

fn text() -> Outcome {
    let directory = scratch("funclatency");
    let program = match build(&directory) {
        Ok(program) => program,
        Err(skipped) => return skipped,
    };
    let mut calls = Calls::start(&program);
    let function = of(&program, "work_short");
    let lines = printed(&[&function], || calls.call("short 21"));
    assert_eq!(lines[0], format!("Tracing {function}.  Hit Ctrl-C to exit"));
    assert_eq!(lines[1], "");
    assert_eq!(lines[2], "     nsec                : count    distribution");
    let rows = lines.iter().filter(|line| line.contains('|')).count();
    assert!(rows > 5 && lines[3].starts_with("         0 -> 1          : 0        |"));
    let average = lines.iter().find(|line| line.starts_with("avg = ")).expect("an average");
    let words: Vec<&str> = average.split_whitespace().collect();
    let (avg, sum): (u64, u64) = (words[2].parse().expect("avg"), words[5].parse().expect("sum"));
    assert_eq!((words[3], words[4], words[6]), ("nsec,", "total:", "nsec,"), "{average}");
    assert_eq!((words[7], words[8], avg), ("count:", "21", sum / 21), "{average}");
    assert_eq!(lines.last().expect("a line"), &format!("Exiting trace of {function}"));

    let wild = of(&program, "work_*");
    let pid = calls.pid().to_string();
    let args = ["-T", "-u", "-F", "-p", &pid, &wild];
    let lines = printed(&args, || calls.call("outer 2"));
    assert_eq!(lines[0], format!("Tracing 2 functions for \"{wild}\"... Hit Ctrl-C to end."));
    let time: Vec<&str> = lines[2].split(':').collect();
    assert!(time.len() == 3 && lines[2].len() == 8, "{lines:?}");
    for title in ["Function = work_other", "Function = work_short"] {
        let at = lines.iter().position(|line| line == title).expect(title);
        assert_eq!(lines[at + 1], "     usec                : count    distribution");
    }
    let lines = printed(&["-m", "-F", &wild], || calls.call("outer 2"));
    assert!(lines.contains(&format!("Function = work_other [{pid}]")), "{lines:?}");
    assert!(lines.contains(&"     msec                : count    distribution".to_string()));
    calls.end();
    Outcome::Passed
}

fn refused() -> Outcome {
    let pid = std::process::id().to_string();
    let usage: &[(&[&str], &str)] = &[
        (&[], "FUNCTION is missing"),
        (&[""], "the name of a function"),
        (&["-u", "-m", "c:fsync"], "--milliseconds"),
        (&[":main"], "--pid"),
        (&["-r", "vfs_("], "regular expression"),
        (&["-k", "c:fsync"], "--kprobes"),
        (&["-l", "0", "c:fsync"], "--level"),
        (&["-l", "129", "c:fsync"], "--level"),
        (&["-i", "0", "c:fsync"], "--interval"),
        (&["-d", "x", "c:fsync"], "--duration"),
        (&["rcu_note_context_switch"], "while it traces"),
        (&["vfs_*", "--max-functions", "2"], "--max-functions takes more"),
        (&["c:*open*", "--max-functions", "2"], "--max-functions takes more"),
    ];
    let failures: &[(&[&str], &str)] = &[
        (&["no_such_*"], "no function of the kernel"),
        (&["c:no_such_function"], "no_such_function"),
        (&["no-such-library:x"], "no program or library no-such-library"),
        (&["/no/such/file:x"], "/no/such/file"),
        (&["/etc/passwd:x"], "no program or library"),
        (&["-p", &pid, "no-such-library:x"], "has mapped no library or program"),
        (&["-p", &pid, "/etc/passwd:x"], "no program or library"),
        (&["-p", &pid, "/dev/null:x"], "sees no file"),
    ];
    let cases = usage.iter().map(|case| (case, 2)).chain(failures.iter().map(|case| (case, 1)));
    for ((args, word), status) in cases {
        let output = command("funclatency", args).output().expect("funclatency");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains(word), "{args:?}: {stderr}");
    }
    // Whether it exists is only known when it is to be probed.
    let output = command("funclatency", &["no_such_function"]).output().expect("funclatency");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(3), 1), "{stderr}");
    Outcome::Passed
}
