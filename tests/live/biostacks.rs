// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! biostacks against reads of which every one is known.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use crate::support::Case;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::assert_time;
use crate::support::burner::Burning;
use crate::support::burner::names;
use crate::support::command;
use crate::support::disk::Direct;
use crate::support::disk::Disk;
use crate::support::start;
use crate::support::usage_error;

pub const CASES: &[Case] = &[
    Case::new("who read, where, and how often", reads),
    Case::new("how long it took", latency).timed(),
    Case::new("filters", filters),
    Case::new("requests that are merged", merged),
    Case::new("intervals", intervals).in_turn(),
    Case::new("text", text).in_turn(),
    Case::new("storage that is too small", small_storage).in_turn(),
    Case::new("usage", usage).in_turn(),
];

/// Reads so many blocks in a process of their own. Returns its id.
fn read(disk: &Disk, count: u64) -> u32 {
    let path = disk.path();
    let args = ["read", path.to_str().expect("UTF-8"), &count.to_string()];
    let burning = Burning::new(&args);
    let pid = burning.pid();
    burning.finish();
    pid
}

/// The histograms of a disk.
fn of<'a>(finished: &'a Finished, disk: &Disk) -> Vec<&'a Value> {
    finished.of("histogram").filter(|row| row["key"]["disk"] == disk.name.as_str()).collect()
}

fn count(rows: &[&Value]) -> u64 {
    rows.iter().map(|row| row["count"].as_u64().expect("count")).sum()
}

fn reads() -> Outcome {
    let disk = Disk::any();
    let tool = start("biostacks", &[]);
    let pid = read(&disk, 300);
    let other = read(&disk, 20);
    let finished = tool.stop();
    finished.assert_clean();
    for (pid, expected) in [(pid, 300), (other, 20)] {
        let rows = of(&finished, &disk);
        let mine = |row: &&Value| row["key"]["pid"] == pid;
        let rows: Vec<&Value> = rows.into_iter().filter(mine).collect();
        assert_eq!(count(&rows), expected, "{rows:?}");
        // One stack, whichever of two programs took it.
        assert_eq!(rows.len(), 1, "{rows:?}");
        let row = rows[0];
        assert_eq!((&row["name"], &row["key"]["comm"]), (&"latency_ns".into(), &"burner".into()));
        let buckets = row["buckets"].as_array().expect("buckets");
        let sum: u64 = buckets.iter().filter_map(|bucket| bucket["count"].as_u64()).sum();
        assert_eq!(sum, expected);
        let stack = names(&row["key"]["kernel_stack"]);
        let index = |part: &str| stack.iter().position(|name| name.contains(part));
        let (submit, direct, read) =
            (index("submit_bio"), index("direct_IO"), index("vfs_read").or(index("pread64")));
        assert!(submit < direct && direct < read && submit.is_some(), "{stack:?}");
        assert!(!stack.iter().any(|name| name.contains("bpf") || name == "?"), "{stack:?}");
        assert!(!stack[0].contains("trace"), "{stack:?}");
    }
    Outcome::Passed
}

/// A device that takes twenty milliseconds for each request.
fn latency() -> Outcome {
    let settings = [("irqmode", "2"), ("completion_nsec", "20000000"), ("queue_mode", "2")];
    let disk = match Disk::null(&settings) {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let tool = start("biostacks", &["-d", &disk.name]);
    let began = Instant::now();
    read(&disk, 25);
    let longest = began.elapsed();
    let finished = tool.stop();
    finished.assert_clean();
    let rows = of(&finished, &disk);
    assert_eq!(count(&rows), 25);
    let sum: u64 = rows.iter().map(|row| row["sum"].as_u64().expect("sum")).sum();
    assert_time(Duration::from_nanos(sum), Duration::from_millis(25 * 20), longest);
    for row in rows {
        for bucket in row["buckets"].as_array().expect("buckets") {
            let below = bucket["lt"].as_u64() <= Some(16_384_000);
            assert!(!below || bucket["count"] == 0, "{row}");
        }
    }
    Outcome::Passed
}

fn filters() -> Outcome {
    let (disk, other) = (Disk::any(), Disk::any());
    let tool = start("biostacks", &["-d", &disk.name]);
    read(&disk, 10);
    read(&other, 10);
    let finished = tool.stop();
    finished.assert_clean();
    assert_eq!((count(&of(&finished, &disk)), of(&finished, &other).len()), (10, 0));

    let tool = start("biostacks", &["-d", &disk.name, "--comm", "no-such-command"]);
    read(&disk, 10);
    assert_eq!(tool.stop().of("histogram").count(), 0);
    let own = std::process::id().to_string();
    let tool = start("biostacks", &["-d", &disk.name, "-p", &own]);
    let mut direct = Direct::open(&disk.path());
    direct.read(1);
    read(&disk, 10);
    let finished = tool.stop();
    let rows = of(&finished, &disk);
    assert_eq!(count(&rows), 1, "{rows:?}");
    assert_eq!(rows[0]["key"]["pid"], std::process::id());
    Outcome::Passed
}

/// As many as the kernel itself counts: what was merged into another is a part of that one.
fn merged() -> Outcome {
    let disk = Disk::any();
    if !disk.scheduler("mq-deadline") {
        return Outcome::Skipped("this kernel has no mq-deadline".into());
    }
    let file = disk.path();
    let tool = start("biostacks", &["-d", &disk.name]);
    let ([reads, writes], _) = disk.statistics();
    let path = file.to_str().expect("UTF-8");
    let output = format!("of={path}");
    let args = ["if=/dev/zero", &output, "bs=1M", "count=8", "conv=fsync,notrunc"];
    let status = Command::new("dd").args(args).stderr(Stdio::null()).status().expect("dd");
    assert!(status.success());
    let ([reads_after, writes_after], _) = disk.statistics();
    let finished = tool.stop();
    finished.assert_clean();
    let expected = reads_after - reads + (writes_after - writes);
    assert_eq!(count(&of(&finished, &disk)), expected);
    Outcome::Passed
}

fn intervals() -> Outcome {
    let disk = Disk::any();
    let mut tool = start("biostacks", &["-i", "0.5", "-d", &disk.name]);
    read(&disk, 10);
    let first = tool.wait_for(|record| record["type"] == "histogram");
    tool.wait_for(|record| record["type"] == "report");
    read(&disk, 7);
    let finished = tool.stop();
    finished.assert_clean();
    // Each request is in one report.
    assert_eq!(count(&of(&finished, &disk)), 17);
    assert!(first["count"].as_u64() <= Some(10));
    assert!(finished.of("report").count() >= 2);
    Outcome::Passed
}

fn text() -> Outcome {
    let disk = Disk::any();
    let path = disk.path();
    let run = |args: &[&str]| {
        let script = format!("dd if={} of=/dev/null bs=4k count=5 iflag=direct", path.display());
        let all = [args, &["-d", &disk.name, "--", "sh", "-c", &script]].concat();
        let output = command("biostacks", &all).output().expect("run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let shown = run(&[]);
    let mut lines = shown.lines();
    assert_eq!(lines.next(), Some("Tracing block I/O with init stacks. Hit Ctrl-C to end."));
    let title = lines.next().expect("a title");
    assert!(title.starts_with("dd             ") && title.contains(&disk.name), "{title:?}");
    let words: Vec<&str> = title.split_whitespace().collect();
    assert!(words.len() == 3 && words[1].parse::<u32>().is_ok(), "{title:?}");
    let leaf = lines.next().expect("a function");
    assert!(!leaf.starts_with(' ') && !leaf.contains('+'), "{leaf:?}");
    let bars = shown.lines().find(|line| line.contains("distribution")).expect("bars");
    assert!(bars.starts_with("     usecs"), "{bars:?}");
    assert!(shown.ends_with("|\n\n"), "{shown:?}");
    assert!(run(&["-m"]).contains("     msecs"));
    let stamped = run(&["-T"]);
    let second = stamped.lines().nth(1).expect("a time");
    assert!(second.len() == 8 && second.matches(':').count() == 2, "{stamped}");
    assert!(run(&["-v"]).contains("#0  0xffff"));
    Outcome::Passed
}

fn small_storage() -> Outcome {
    let disk = Disk::any();
    let tool = start("biostacks", &["-d", &disk.name, "--stack-storage-size", "1"]);
    read(&disk, 5);
    let mut direct = Direct::open(&disk.path());
    direct.write(1);
    direct.read(1);
    let finished = tool.stop();
    assert!(finished.end()["map_full"].as_u64() > Some(0), "{}", finished.end());
    let rows = of(&finished, &disk);
    // Counted all the same.
    assert_eq!(count(&rows), 7);
    assert!(rows.iter().any(|row| row["key"]["kernel_stack"].is_null()), "{rows:?}");

    let tool = start("biostacks", &["-d", &disk.name, "--perf-max-stack-depth", "4"]);
    direct.read(2);
    let finished = tool.stop();
    finished.assert_clean();
    let rows = of(&finished, &disk);
    assert_eq!(count(&rows), 1);
    // Less is left where the frames of tracing itself are among them.
    assert!(names(&rows[0]["key"]["kernel_stack"]).len() <= 4, "{rows:?}");
    Outcome::Passed
}

fn usage() -> Outcome {
    assert!(Path::new("/proc/diskstats").exists() && fs::metadata("/sys/block").is_ok());
    for (args, word) in [
        (&["0"][..], "seconds"),
        (&["-i", "x"], "interval"),
        (&["-d", "no-such-disk"], "no-such-disk"),
        (&["1", "--duration", "2"], "duration"),
    ] {
        usage_error("biostacks", args, word);
    }
    let finished = start("biostacks", &["0.3", "--comm", "bs-nobody"]).finish();
    assert_eq!(finished.end()["reason"], "duration");
    Outcome::Passed
}
