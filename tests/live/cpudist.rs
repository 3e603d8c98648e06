// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! cpudist against what the kernel itself counts of each thread (/proc/PID/schedstat and status): how
//! often it came to a CPU, and how long it ran.

use std::collections::HashSet;
use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Outcome;
use crate::support::burner::Burning;
use crate::support::burner::around_naps;
use crate::support::command;
use crate::support::idle_ticks;
use crate::support::sched::Counts;
use crate::support::sched::Crew;
use crate::support::sched::Echo;
use crate::support::sched::count_and_sum;
use crate::support::sched::totals;
use crate::support::sched::until_zombie;
use crate::support::start;
use crate::support::usage_error;

pub const CASES: &[Case] = &[
    Case::new("every stint of every thread", every_stint),
    Case::new("a stint that ends with the process", exit),
    Case::new("a stint that began before", under_way),
    Case::new("time off the CPU", off_cpu),
    Case::new("whose time", filters_and_keys),
    Case::alone("idle threads", idle).in_turn(),
    Case::new("intervals", intervals).in_turn(),
    Case::new("text", text).in_turn(),
    Case::new("usage errors", usage_errors).in_turn(),
];

fn ns(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).expect("ns")
}

/// Stints on the CPU that end with sleep and with preemption, each once, and as long as the kernel
/// says.
fn every_stint() -> Outcome {
    let on = start("cpudist", &["-L"]);
    let off = start("cpudist", &["-L", "-O"]);
    let began = Instant::now();
    let crew = Crew::work(100);
    let longest = ns(began);
    let truth = crew.counts();
    let [on, off] = [on, off].map(|tool| {
        let finished = tool.stop();
        finished.assert_clean();
        finished
    });
    for (tid, stat) in truth {
        let mine = |record: &&serde_json::Value| record["key"]["tid"] == tid;
        assert!(on.of("histogram").filter(mine).all(|record| record["name"] == "on_cpu_ns"));
        assert!(off.of("histogram").filter(mine).all(|record| record["name"] == "off_cpu_ns"));
        let (count, sum) = totals(&on, |key| key["tid"] == tid);
        assert_eq!(count, stat.times, "{tid}: {stat:?}");
        // The kernel leaves out what interrupts and the machine below took, and looks at the clock
        // a little before it switches.
        let slack = stat.ran_ns / 10 + 50_000 * stat.times;
        assert!(sum + slack >= stat.ran_ns, "{tid}: {sum}, {stat:?}");
        assert!(sum <= longest, "{tid}: {sum} of {longest}, {stat:?}");
        // Between two stints it is off the CPU; how long it was before the first, nobody knows.
        let (between, away) = totals(&off, |key| key["tid"] == tid);
        assert_eq!(between, stat.times - 1, "{tid}: {stat:?}");
        assert!(sum + away <= longest, "{tid}: {sum} and {away} of {longest}");
        let waited = stat.waited_ns - stat.waited_ns / 10;
        assert!(away + 50_000_000 >= waited, "{tid}: {away}, {stat:?}");
    }
    Outcome::Passed
}

/// The last stint ends when the process does.
fn exit() -> Outcome {
    let mut echo = Echo::new();
    let pid = echo.pid;
    let mut tool = start("cpudist", &["-P", "-p", &pid.to_string(), "0.2"]);
    let before = echo.counts();
    echo.rounds(3);
    let ended = echo.end();
    until_zombie(pid);
    // It may still be on the CPU.
    let mut seen = 0;
    while seen < Counts::of(pid).since(before).times {
        let record = tool.wait_for(|record| record["type"] == "histogram");
        assert_eq!((&record["key"]["pid"], &record["key"]["comm"]), (&pid.into(), &"cat".into()));
        seen += count_and_sum(&record).0;
    }
    let finished = tool.stop();
    finished.assert_clean();
    let times = Counts::of(pid).since(before).times;
    drop(ended);
    assert_eq!(totals(&finished, |_| true).0, times);
    Outcome::Passed
}

/// What is under way when the tool starts, on each CPU and off it, is not counted: all times that
/// are shown together are no longer than the tool ran. A guess would be as long as the machine is up.
fn under_way() -> Outcome {
    let sleeping = Echo::new();
    let before = sleeping.counts();
    let began = Instant::now();
    let on = start("cpudist", &["-I"]);
    let off = start("cpudist", &["-P", "-O", "-p", &sleeping.pid.to_string()]);
    thread::sleep(Duration::from_millis(300));
    let on = on.stop();
    let longest = ns(began);
    let off = off.stop();
    on.assert_clean();
    off.assert_clean();
    let stat = fs::read_to_string("/proc/stat").expect("stat");
    let cpus = stat.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    let most = longest * u64::try_from(cpus.count()).expect("CPUs");
    let (count, sum) = totals(&on, |_| true);
    assert!(count > 0 && sum <= most, "{count} times, {sum} of {most}");
    assert_eq!(sleeping.counts(), before);
    assert_eq!(totals(&off, |_| true).0, 0);
    Outcome::Passed
}

/// Naps of a known length.
fn off_cpu() -> Outcome {
    let known = around_naps("cpudist", &["--offcpu", "-P"], 20, 25);
    let finished = known.finished;
    let key = |key: &serde_json::Value| key["comm"] == "burner";
    let naps = finished.of("histogram").filter(|record| key(&record["key"]));
    let long: u64 = naps
        .flat_map(|record| record["buckets"].as_array().expect("buckets"))
        // 16.4 ms: the power of two below 20.
        .filter(|bucket| bucket["ge"].as_u64() >= Some(16_384_000))
        .map(|bucket| bucket["count"].as_u64().expect("count"))
        .sum();
    let whole = Duration::from_millis(20) * u32::try_from(known.count).expect("naps");
    // Each nap that is below that bucket has lost so much of its time to something else.
    let short = whole.checked_sub(known.least).unwrap().as_micros() / 3616;
    let least = known.count.saturating_sub(u64::try_from(short).expect("naps"));
    // Under load it may also be kept from running for as long.
    assert!(long >= least, "{long} of {least}: {:?}", finished.records);
    let (_, sum) = totals(&finished, key);
    let range = known.least.as_nanos()..known.most.as_nanos();
    assert!(range.contains(&u128::from(sum)), "{sum}, {range:?}");
    Outcome::Passed
}

fn filters_and_keys() -> Outcome {
    let cgroup = Cgroup::new("cpudist");
    let mut echo = Echo::start(&mut cgroup.command("cat", &[]), |pid| pid);
    let before = echo.counts();
    let pid = echo.pid.to_string();
    let path = cgroup.path.to_str().expect("UTF-8");
    let name = format!("/{}", cgroup.path.file_name().and_then(|n| n.to_str()).expect("a name"));
    let tools = [
        start("cpudist", &["-p", &pid]),
        start("cpudist", &["-c", path]),
        start("cpudist", &["-O", "-p", &pid]),
        start("cpudist", &["-O", "-c", path, "--tids"]),
        start("cpudist", &["--by-cgroup"]),
        start("cpudist", &["-p", &pid, "--comm", "no-cat"]),
    ];
    echo.rounds(40);
    let times = echo.counts().since(before).times;
    assert!(times >= 40);
    let [on, on_in, off, off_in, by_cgroup, nobody] = tools.map(|tool| {
        let finished = tool.stop();
        finished.assert_clean();
        finished
    });
    let anybody = |key: &serde_json::Value| key["tid"].is_null() && key["pid"].is_null();
    assert_eq!(totals(&on, anybody).0, times);
    assert_eq!(totals(&on_in, anybody).0, times);
    // It slept when the tool came, and nobody knows since when.
    assert_eq!(totals(&off, anybody).0, times - 1);
    let key = |key: &serde_json::Value| key["tid"] == echo.pid && key["comm"] == "cat";
    assert_eq!(totals(&off_in, key).0, times - 1);
    assert_eq!(totals(&off_in, |_| true).0, times - 1);
    assert_eq!(totals(&by_cgroup, |key| key["cgroup"] == name).0, times);
    assert_eq!(totals(&nobody, |_| true).0, 0);
    Outcome::Passed
}

fn idle() -> Outcome {
    let _napping = Burning::new(&["nap", "1", "1000000"]);
    for way in ["--tids", "--offcpu"] {
        let without = start("cpudist", &["-L", way, "0.3", "1"][usize::from(way == "--tids")..]);
        let without = without.finish();
        assert!(without.of("histogram").count() > 0);
        assert_eq!(totals(&without, |key| key["tid"] == 0).0, 0);
    }
    let before = idle_ticks();
    let with = start("cpudist", &["-L", "-I", "1", "1"]).finish();
    with.assert_clean();
    let comms: Vec<&str> = with
        .of("histogram")
        .filter(|record| record["key"]["tid"] == 0)
        .filter_map(|record| record["key"]["comm"].as_str())
        .collect();
    if comms.is_empty() && idle_ticks() == before {
        return Outcome::Skipped("no CPU was ever idle".into());
    }
    // Each CPU's has a name of its own.
    let names: HashSet<&str> = comms.iter().copied().collect();
    let cpus = thread::available_parallelism().expect("CPUs").get();
    assert!(!names.is_empty() && names.len() <= cpus, "{comms:?}");
    assert_eq!(names.len(), comms.len(), "{comms:?}");
    assert!(names.iter().all(|name| name.starts_with("swapper/")), "{comms:?}");
    Outcome::Passed
}

fn intervals() -> Outcome {
    let mut echo = Echo::new();
    let pid = echo.pid.to_string();
    let before = echo.counts();
    let mut tool = start("cpudist", &["-p", &pid, "0.3"]);
    let mut seen = 0;
    for _ in 0..3 {
        echo.rounds(5);
        let times = echo.counts().since(before).times;
        while seen < times {
            seen += count_and_sum(&tool.wait_for(|record| record["type"] == "histogram")).0;
        }
        assert_eq!(seen, times);
    }
    let finished = tool.stop();
    finished.assert_clean();
    assert_eq!(totals(&finished, |_| true).0, seen);
    let counted = start("cpudist", &["0.1", "2"]).finish();
    assert_eq!((counted.of("report").count(), &counted.end()["reason"]), (2, &"count".into()));
    Outcome::Passed
}

fn text() -> Outcome {
    let mut echo = Echo::new();
    let pid = echo.pid.to_string();
    for (args, which, unit) in [
        (&["-T", "-m", "-e"][..], "on", "msecs"),
        (&["-O", "-P", "--extension"], "off", "usecs"),
        (&["-L"], "on", "usecs"),
    ] {
        let args = [args, &["-p", &pid]].concat();
        let mut child = command("cpudist", &args).stdout(Stdio::piped()).spawn().expect("spawn");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut said = String::new();
        // The banner comes when everything is attached.
        stdout.read_line(&mut said).expect("the banner");
        let before = echo.counts();
        echo.rounds(3);
        let mut times = echo.counts().since(before).times;
        if which == "off" {
            times -= 1;
        }
        kill(Pid::from_raw(i32::try_from(child.id()).expect("pid")), Signal::SIGTERM)
            .expect("kill");
        stdout.read_to_string(&mut said).expect("text");
        assert!(child.wait().expect("wait").success());
        let mut lines: Vec<&str> = said.lines().collect();
        let banner = format!("Tracing {which}-CPU time... Hit Ctrl-C to end.");
        assert_eq!(lines[..2], [&banner, ""], "{said}");
        lines.drain(..2);
        if args[0] == "-T" {
            let time: Vec<_> = lines.remove(0).split(':').map(str::len).collect();
            assert_eq!(time, [2, 2, 2], "{said}");
        } else {
            let title = if which == "off" { "pid" } else { "tid" };
            assert_eq!(lines[..2], ["", &format!("{title} = {pid} cat")], "{said}");
            lines.drain(..2);
        }
        assert_eq!(lines[0], format!("     {unit:<19} : count    distribution"), "{said}");
        if args[0] != "-L" {
            assert_eq!((lines.pop(), lines.len() > 3), (Some(""), true), "{said}");
            let (sums, empty) = (lines.pop().expect("a line"), lines.pop());
            assert_eq!(empty, Some(""), "{said}");
            let words: Vec<&str> = sums.split_whitespace().collect();
            let number = |i: usize| words[i].trim_end_matches(',').parse::<u64>().expect("number");
            let (average, total) = (number(2), number(5));
            let unit_ = format!("{unit},");
            assert_eq!((words[0], words[3], words[6]), ("avg", unit_.as_str(), unit_.as_str()));
            assert_eq!((words[1], words[4], words[7]), ("=", "total:", "count:"), "{said}");
            assert_eq!((number(8), total / times), (times, average), "{said}");
        }
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
        &["--by-cgroup", "-P"],
        &["-c", "/no/such/cgroup"],
    ] {
        usage_error("cpudist", args, "");
    }
    Outcome::Passed
}
