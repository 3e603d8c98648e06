// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! runqlat against what the kernel itself counts of each thread (/proc/PID/schedstat and status): how
//! often it came to a CPU, and how long it had waited for it.

use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Outcome;
use crate::support::cgroup_root;
use crate::support::command;
use crate::support::sched::Crew;
use crate::support::sched::Echo;
use crate::support::sched::totals;
use crate::support::start;
use crate::support::usage_error;

pub const CASES: &[Case] = &[
    Case::new("every wait of every thread", every_wait),
    Case::new("filters mean who waits", filters),
    Case::new("whose waits", keys),
    Case::new("intervals", intervals).in_turn(),
    Case::new("text", text).in_turn(),
    Case::new("usage errors", usage_errors).in_turn(),
];

/// Threads that sleep and are woken, that are new, and that are preempted: each wait once, and as
/// long as the kernel says.
fn every_wait() -> Outcome {
    let tool = start("runqlat", &["-L"]);
    let crew = Crew::work(100);
    let truth = crew.counts();
    let finished = tool.stop();
    finished.assert_clean();
    // A thread that wakes itself up just before it sleeps does so with interrupts on: what one of
    // them wakes up in that moment is skipped by the kernel, and counted.
    // Kernels before 5.12 do not count.
    let missed = finished.end()["missed"].as_u64().unwrap_or(0);
    for (tid, stat) in truth {
        let (count, sum) = totals(&finished, |key| key["tid"] == tid);
        let at_least = stat.times.saturating_sub(missed);
        assert!((at_least..=stat.times).contains(&count), "{tid}: {count}, {missed}, {stat:?}");
        // The two clocks are read at different places of the same switch.
        let far = stat.waited_ns / 10 + 50_000_000;
        assert!(sum.abs_diff(stat.waited_ns) < far, "{tid}: {sum}, {stat:?}");
    }
    Outcome::Passed
}

/// Of a process that others wake: a filter on the waker would see nothing, and without one there is
/// more.
fn filters() -> Outcome {
    let cgroup = Cgroup::new("runqlat");
    let mut echo = Echo::start(&mut cgroup.command("cat", &[]), |pid| pid);
    let before = echo.counts();
    let pid = echo.pid.to_string();
    let path = cgroup.path.to_str().expect("UTF-8");
    let tools = [
        start("runqlat", &["-p", &pid]),
        start("runqlat", &["-c", path]),
        start("runqlat", &["--ppid", &std::process::id().to_string(), "--comm", "cat"]),
        start("runqlat", &["-p", &pid, "--comm", "no-cat"]),
    ];
    echo.rounds(40);
    let times = echo.counts().since(before).times;
    assert!(times >= 40);
    let [by_pid, by_cgroup, by_name, nobody] = tools.map(|tool| {
        let finished = tool.stop();
        finished.assert_clean();
        totals(&finished, |key| key["tid"].is_null() && key["pid"].is_null()).0
    });
    assert_eq!((by_pid, by_cgroup), (times, times));
    // Other tests have cats, too.
    assert!(by_name >= times, "{by_name} of {times}");
    assert_eq!(nobody, 0);
    Outcome::Passed
}

/// A process that is alone in its PID namespace, and in a cgroup as docker makes them.
fn keys() -> Outcome {
    let id = format!("{:064x}", 0xb5_0000_0000_u64 + u64::from(std::process::id()));
    let id: String = id.chars().rev().collect();
    let name = format!("docker-{id}.scope");
    let cgroup = Cgroup { path: cgroup_root().expect("a cgroup v2 hierarchy").join(&name) };
    fs::create_dir(&cgroup.path).expect("a cgroup");
    let inode = fs::metadata(&cgroup.path).expect("stat").ino();
    let mut unshare = cgroup.command("unshare", &["--pid", "--fork", "--kill-child", "cat"]);
    let procs = cgroup.path.join("cgroup.procs");
    let mut echo = Echo::start(&mut unshare, |parent| {
        let procs = fs::read_to_string(&procs).expect("cgroup.procs");
        let mut pids = procs.lines().map(|line| line.parse().expect("a number"));
        pids.find(|pid| *pid != parent).expect("a child")
    });
    let before = echo.counts();
    let link = fs::read_link(format!("/proc/{}/ns/pid", echo.pid)).expect("a namespace");
    let link = link.to_str().expect("UTF-8");
    let pidns = link.trim_start_matches("pid:[").trim_end_matches(']').to_string();
    let tools = ["-P", "-L", "--pidnss", "--by-cgroup", "--by-container"]
        .map(|option| start("runqlat", &[option]));
    echo.rounds(40);
    let times = echo.counts().since(before).times;
    let [by_pid, by_tid, by_pidns, by_cgroup, by_container] = tools.map(|tool| {
        let finished = tool.stop();
        finished.assert_clean();
        finished
    });
    let null = Value::Null;
    let key = |key: [Value; 8]| {
        let names =
            ["pid", "tid", "pidns", "comm", "cgroup_id", "cgroup", "container", "container_id"];
        Value::Object(names.into_iter().map(String::from).zip(key).collect())
    };
    let n = || null.clone();
    let pid = || Value::from(echo.pid);
    let cat = || Value::from("cat");
    for (finished, wanted) in [
        (by_pid, key([pid(), n(), n(), cat(), n(), n(), n(), n()])),
        (by_tid, key([n(), pid(), n(), cat(), n(), n(), n(), n()])),
        (by_pidns, key([n(), n(), pidns.into(), cat(), n(), n(), n(), n()])),
        (
            by_cgroup,
            key([
                n(),
                n(),
                n(),
                n(),
                inode.to_string().into(),
                format!("/{name}").into(),
                n(),
                n(),
            ]),
        ),
        (by_container, key([n(), n(), n(), n(), n(), n(), id[..12].into(), id.clone().into()])),
    ] {
        let all = || finished.of("histogram").map(|record| &record["key"]).collect::<Vec<_>>();
        assert_eq!(totals(&finished, |key| *key == wanted).0, times, "{wanted}: {:?}", all());
        // There is always somebody else: the one that wakes it.
        assert!(all().len() > 1, "{:?}", all());
    }
    Outcome::Passed
}

/// Each report has what is new, and together they have all.
fn intervals() -> Outcome {
    for option in [&[][..], &["-L"]] {
        let mut echo = Echo::new();
        let pid = echo.pid.to_string();
        let mut before = echo.counts();
        let mut tool = start("runqlat", &[&["-p", &pid, "0.3"], option].concat());
        let first = before;
        for _ in 0..3 {
            echo.rounds(5);
            // An interval may have ended meanwhile.
            let times = echo.counts().since(before).times;
            before = echo.counts();
            let mut seen = 0;
            while seen < times {
                let record = tool.wait_for(|record| record["type"] == "histogram");
                seen += record["count"].as_u64().expect("count");
            }
            assert_eq!(seen, times);
        }
        let finished = tool.stop();
        finished.assert_clean();
        assert_eq!(totals(&finished, |_| true).0, echo.counts().since(first).times);
    }
    let counted = start("runqlat", &["0.1", "2"]).finish();
    assert_eq!((counted.of("report").count(), &counted.end()["reason"]), (2, &"count".into()));
    Outcome::Passed
}

fn text() -> Outcome {
    const BANNER: &str = "Tracing run queue latency... Hit Ctrl-C to end.";
    let mut echo = Echo::new();
    let pid = echo.pid.to_string();
    for (args, unit, title) in [
        (&["-T", "-m"][..], "msecs", None),
        (&["-P"], "usecs", Some(format!("pid = {pid} cat"))),
        (&["--tids"], "usecs", Some(format!("tid = {pid} cat"))),
    ] {
        let args = [args, &["-p", &pid]].concat();
        let mut child = command("runqlat", &args).stdout(Stdio::piped()).spawn().expect("spawn");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut said = String::new();
        // The banner comes when everything is attached.
        stdout.read_line(&mut said).expect("the banner");
        let before = echo.counts();
        echo.rounds(3);
        let times = echo.counts().since(before).times;
        kill(Pid::from_raw(i32::try_from(child.id()).expect("pid")), Signal::SIGTERM)
            .expect("kill");
        stdout.read_to_string(&mut said).expect("text");
        assert!(child.wait().expect("wait").success());
        let mut lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..2], [BANNER, ""], "{said}");
        lines.drain(..2);
        if args[0] == "-T" {
            let time: Vec<_> = lines.remove(0).split(':').map(str::len).collect();
            assert_eq!(time, [2, 2, 2], "{said}");
        }
        if let Some(title) = title {
            assert_eq!(lines[..2], ["", &title], "{said}");
            lines.drain(..2);
        }
        assert_eq!(lines[0], format!("     {unit:<19} : count    distribution"), "{said}");
        assert!(lines[1].starts_with("         0 -> 1          : "), "{said}");
        let count = |line: &&str| -> u64 {
            let count = line.split(':').nth(1).and_then(|rest| rest.split('|').next());
            count.expect("a count").trim().parse().expect("a number")
        };
        assert_eq!(lines[1..].iter().map(count).sum::<u64>(), times, "{said}");
    }
    Outcome::Passed
}

fn usage_errors() -> Outcome {
    for args in [
        &["0"][..],
        &["abc"],
        &["5x"],
        &["-1"],
        &["1", "0"],
        &["-P", "-L"],
        &["--pidnss", "--pids"],
        &["--by-cgroup", "--by-container"],
        &["-c", "/no/such/cgroup"],
        &["-p", "abc"],
    ] {
        usage_error("runqlat", args, "");
    }
    Outcome::Passed
}
