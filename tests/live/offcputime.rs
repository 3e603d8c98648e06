// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! offcputime against a program that sleeps known times in known functions.

use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use crate::support::Case;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::assert_time;
use crate::support::burner::Burning;
use crate::support::burner::around_naps;
use crate::support::burner::burner;
use crate::support::burner::names;
use crate::support::command;
use crate::support::idle_ticks;
use crate::support::patience;
use crate::support::start;
use crate::support::usage_error;

pub const CASES: &[Case] = &[
    Case::new("times and stacks", times).timed(),
    Case::new("shortest and longest time", limits),
    Case::new("states", states),
    Case::new("whose time", filters),
    Case::new("kernel threads and programs", kinds),
    Case::alone("idle threads", idle).in_turn(),
    Case::new("threads that do not come back", pending).in_turn(),
    Case::new("text and folded", text).in_turn(),
    Case::new("storage that is too small", small_storage).in_turn(),
    Case::new("usage", usage).in_turn(),
];

fn path() -> &'static str {
    burner().to_str().expect("UTF-8")
}

fn number(row: &Value, field: &str) -> u64 {
    row[field].as_u64().unwrap_or_else(|| panic!("{field}: {row}"))
}

/// The rows whose program was in take_nap().
fn naps(finished: &Finished) -> Vec<&Value> {
    let napping = |row: &&Value| names(&row["user_stack"]).contains(&"take_nap".into());
    finished.of("row").filter(napping).collect()
}

/// What the tool says of naps.
fn run(args: &[&str], ms: u32, count: u32) -> Finished {
    around_naps("offcputime", args, ms, count).finished
}

/// Twenty-five naps of twenty milliseconds, each counted once and none of them shorter. By the
/// time of the report, the program has ended.
fn times() -> Outcome {
    for extra in [&[][..], &["-U"], &["-K"]] {
        let args = [&["--state", "1"], extra].concat();
        let known = around_naps("offcputime", &args, 20, 25);
        let finished = known.finished;
        if extra == ["-K"] {
            assert!(finished.of("row").count() > 0);
            assert!(finished.of("row").all(|row| row["user_stack"].is_null()));
            continue;
        }
        let rows = naps(&finished);
        let times: u64 = rows.iter().map(|row| number(row, "times")).sum();
        assert_eq!(times, known.count, "{rows:?}");
        let off: u64 = rows.iter().map(|row| number(row, "off_ns")).sum();
        assert_time(Duration::from_nanos(off), known.least, known.most);
        for row in rows {
            assert_eq!(row["pid"], row["tid"]);
            assert_eq!((&row["comm"], &row["pending"]), (&"burner".into(), &false.into()));
            let user = names(&row["user_stack"]);
            assert!(user.contains(&"main".into()), "{row}");
            assert!(user.iter().take(1).all(|name| name != "?"), "{row}");
            if extra == ["-U"] {
                assert!(row["kernel_stack"].is_null());
                continue;
            }
            let kernel = names(&row["kernel_stack"]);
            // Nothing of the tracing itself, and nothing missing.
            assert_eq!(kernel[0], "__schedule", "{kernel:?}");
            assert!(kernel.iter().any(|name| name.contains("nanosleep")), "{kernel:?}");
            assert!(kernel.iter().all(|name| name != "?"), "{kernel:?}");
        }
    }
    Outcome::Passed
}

fn limits() -> Outcome {
    let long = run(&["--state", "1", "-m", "30000"], 60, 5);
    assert_eq!(naps(&long).iter().map(|row| number(row, "times")).sum::<u64>(), 5);
    let short = run(&["--state", "1", "-m", "30000"], 1, 5);
    // Under load a short nap may take longer; it is then a long one.
    assert!(short.of("row").all(|row| number(row, "off_ns") >= 30_000_000 * number(row, "times")));
    assert!(naps(&short).iter().map(|row| number(row, "times")).sum::<u64>() < 5);
    // A nap is a little shorter than it was asked to be: the alarm is set first, and to go to sleep
    // takes, under emulation, some milliseconds at times.
    let below = run(&["--state", "1", "-M", "40000"], 60, 5);
    assert_eq!(naps(&below).len(), 0);
    let below = run(&["--state", "1", "-M", "100000000"], 60, 5);
    assert_eq!(naps(&below).iter().map(|row| number(row, "times")).sum::<u64>(), 5);
    Outcome::Passed
}

fn states() -> Outcome {
    assert_eq!(naps(&run(&["--state", "2"], 1, 5)).len(), 0);
    assert_eq!(naps(&run(&["--state", "0"], 1, 5)).len(), 0);
    // Any of several bits.
    assert!(!naps(&run(&["--state", "3"], 1, 5)).is_empty());
    // Two that want the same CPU take turns.
    let pinned = || {
        let mut command = Command::new("taskset");
        Burning::start(command.args(["-c", "0"]).args([path(), "burn"]))
    };
    let (one, _other) = (pinned(), pinned());
    let pid = one.pid().to_string();
    let preempted = start("offcputime", &["--state", "0", "-p", &pid, "2"]).finish();
    preempted.assert_clean();
    let burnt = preempted
        .of("row")
        .filter(|row| names(&row["user_stack"]).iter().any(|name| name.starts_with("burn_")));
    assert!(burnt.map(|row| number(row, "off_ns")).sum::<u64>() > 0, "{:?}", preempted.records);
    let waiting = start("offcputime", &["--state", "3", "-p", &pid, "1"]).finish();
    assert_eq!(waiting.of("row").count(), 0, "{:?}", waiting.records);
    Outcome::Passed
}

fn filters() -> Outcome {
    let one = Burning::new(&["nap", "1", "1000000"]);
    let other = Burning::new(&["nap", "1", "1000000"]);
    let pids = |args: &[&str]| -> Vec<u64> {
        let finished = start("offcputime", &[args, &["1"]].concat()).finish();
        finished.assert_clean();
        let mut pids: Vec<u64> = finished.of("row").map(|row| number(row, "pid")).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    };
    let (a, b) = (one.pid(), other.pid());
    let mut both = [u64::from(a), u64::from(b)];
    both.sort_unstable();
    assert_eq!(pids(&["-p", &format!("{a},{b}")]), both);
    assert_eq!(pids(&["-t", &a.to_string()]), [u64::from(a)]);
    assert_eq!(pids(&["-p", &a.to_string(), "-t", &b.to_string()]), [0u64; 0]);
    Outcome::Passed
}

fn kinds() -> Outcome {
    let is_kernel = |row: &Value| {
        // Bit PF_KTHREAD of the flags. A thread that has ended is not asked.
        let stat = fs::read_to_string(format!("/proc/{}/stat", row["pid"])).ok()?;
        let flags = stat.rsplit_once(')')?.1.split_whitespace().nth(6)?.parse::<u32>().ok()?;
        Some(flags & 0x20_0000 != 0)
    };
    for (option, order, wanted) in [("-k", "descending", true), ("-u", "ascending", false)] {
        let _napping = Burning::new(&["nap", "1", "1000000"]);
        let finished = start("offcputime", &[option, "--sort", order, "1.5"]).finish();
        finished.assert_clean();
        let rows: Vec<&Value> = finished.of("row").collect();
        assert!(!rows.is_empty(), "{option}");
        let mut times: Vec<u64> = rows.iter().map(|row| number(row, "off_ns")).collect();
        if order == "descending" {
            times.reverse();
        }
        assert!(times.is_sorted(), "{order}: {times:?}");
        for row in rows {
            assert!(is_kernel(row).is_none_or(|kernel| kernel == wanted), "{option}: {row}");
            assert!(!wanted || row["user_stack"] == serde_json::json!([]), "{row}");
        }
    }
    Outcome::Passed
}

fn idle() -> Outcome {
    let _napping = Burning::new(&["nap", "1", "1000000"]);
    let without = start("offcputime", &["0.5"]).finish();
    assert!(without.of("row").all(|row| row["pid"] != 0));
    let before = idle_ticks();
    let with = start("offcputime", &["-I", "1"]).finish();
    let mut comms: Vec<&str> = with
        .of("row")
        .filter(|row| row["pid"] == 0)
        .filter_map(|row| row["comm"].as_str())
        .collect();
    comms.sort_unstable();
    comms.dedup();
    let cpus = thread::available_parallelism().expect("CPUs").get();
    if comms.is_empty() && idle_ticks() == before {
        return Outcome::Skipped("no CPU was ever idle".into());
    }
    assert!(!comms.is_empty() && comms.len() <= cpus, "{comms:?}");
    assert!(comms.iter().all(|comm| comm.starts_with("swapper/")), "{comms:?}");
    Outcome::Passed
}

/// Waits until a process sleeps.
fn until_asleep(pid: u32) {
    let until = Instant::now() + patience();
    let asleep = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        // clock_nanosleep: 230 on x86-64, 115 on arm64.
        stat.contains(") S ") && (call.starts_with("230 ") || call.starts_with("115 "))
    };
    while !asleep() {
        assert!(Instant::now() < until, "it does not sleep");
        thread::yield_now();
    }
}

fn pending() -> Outcome {
    let tool = start("offcputime", &["--pending", "--comm", "burner"]);
    let blocked = Burning::new(&["block"]);
    until_asleep(blocked.pid());
    let asleep = Instant::now();
    thread::sleep(Duration::from_millis(300));
    let least = u64::try_from(asleep.elapsed().as_nanos()).expect("ns");
    let finished = tool.stop();
    finished.assert_clean();
    let mine = |row: &&&Value| row["pid"] == blocked.pid() && row["pending"] == true;
    let rows = naps(&finished);
    let rows: Vec<&&Value> = rows.iter().filter(mine).collect();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let off = number(rows[0], "off_ns");
    assert!(off >= least && number(rows[0], "times") == 1, "{off} of {least}");

    // Without the option it is not among the sums.
    let tool = start("offcputime", &["--comm", "burner"]);
    let other = Burning::new(&["block"]);
    until_asleep(other.pid());
    let finished = tool.stop();
    assert!(finished.of("row").all(|row| row["pending"] == false));
    assert!(!naps(&finished).iter().any(|row| row["pid"] == other.pid()));
    Outcome::Passed
}

fn shown(args: &[&str]) -> (String, String) {
    let output = command("offcputime", args).output().expect("run");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{stderr}");
    (String::from_utf8(output.stdout).expect("UTF-8"), stderr)
}

fn text() -> Outcome {
    let napping = Burning::new(&["nap", "2", "1000000"]);
    let pid = napping.pid().to_string();
    let (plain, _) = shown(&["-p", &pid, "1"]);
    let banner = format!("Tracing off-CPU time (us) of PID [{pid}] for 1 secs.\n");
    assert!(plain.starts_with(&banner), "{plain}");
    assert!(plain.contains("    take_nap\n") && plain.contains("    __schedule\n"), "{plain}");
    let whose = format!("    -                burner ({pid})\n        ");
    assert!(plain.contains(&whose) && plain.ends_with("\n\n"), "{plain}");
    let (delimited, _) = shown(&["-d", "-s", "-p", &pid, "1"]);
    assert!(delimited.contains("    --\n") && delimited.contains("    take_nap+0x"), "{delimited}");
    let (kernel, _) = shown(&["-K", "-v", "-p", &pid, "2"]);
    let by = format!("Tracing off-CPU time (us) of PID [{pid}] by kernel stack for 2 secs.\n");
    assert!(kernel.contains(&by) && !kernel.contains("take_nap"), "{kernel}");
    assert!(kernel.contains("    #0  0xffff") && kernel.contains(" __schedule+0x"), "{kernel}");
    let (folded, _) = shown(&["-f", "--state", "1", "-p", &pid, "2"]);
    let line = folded.lines().find(|line| line.contains(";take_nap;")).expect("take_nap");
    let (path, us) = line.rsplit_once(' ').expect("a number");
    assert!(path.starts_with("burner;") && path.ends_with(";__schedule"), "{line}");
    assert!(us.parse::<u64>().expect("us") >= 2000, "{line}");
    let (address, _) = shown(&["-A", "-U", "-p", &pid, "0.5"]);
    let is_nap = |line: &str| line.starts_with("    0x0000") && line.ends_with(" take_nap");
    assert!(address.lines().any(is_nap), "{address}");
    Outcome::Passed
}

fn small_storage() -> Outcome {
    let napping = Burning::new(&["nap", "1", "1000000"]);
    let pid = napping.pid().to_string();
    let finished = start("offcputime", &["--stack-storage-size", "1", "-p", &pid, "1"]).finish();
    assert!(finished.end()["map_full"].as_u64() > Some(0), "{}", finished.end());
    assert!(finished.stderr.contains("Consider increasing --stack-storage-size."));
    // The time itself is not lost.
    assert!(finished.of("row").map(|row| number(row, "off_ns")).sum::<u64>() > 0);
    // Two threads, and room for one; of its stacks a frame each.
    let other = Burning::new(&["nap", "1", "1000000"]);
    let both = format!("{pid},{}", other.pid());
    let small = ["--hash-storage-size", "1", "--perf-max-stack-depth", "1", "-p", &both, "1"];
    let finished = start("offcputime", &small).finish();
    assert!(finished.end()["map_full"].as_u64() > Some(0), "{}", finished.end());
    let rows: Vec<&Value> = finished.of("row").collect();
    assert_eq!(rows.len(), 1, "{rows:?}");
    for stack in ["user_stack", "kernel_stack"] {
        assert!(names(&rows[0][stack]).len() <= 1, "{rows:?}");
    }
    Outcome::Passed
}

fn usage() -> Outcome {
    for (args, word) in [
        (&["0"][..], "seconds"),
        (&["-u", "-k"], "only"),
        (&["-U", "-K"], "only"),
        (&["-m", "5", "-M", "4"], "--max-block-time"),
        (&["-m", "0"], "min-block-time"),
        (&["--state", "x"], "state"),
        (&["1", "--duration", "2"], "duration"),
    ] {
        usage_error("offcputime", args, word);
    }
    Outcome::Passed
}
