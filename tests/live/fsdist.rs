// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! fsdist against operations of which each is known, and a file system that takes as long as it is
//! told to.

use std::collections::BTreeMap;
use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::support::Case;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::command;
use crate::support::file_system::load;
use crate::support::file_system::mounted;
use crate::support::file_system::operations;
use crate::support::file_system::read_unwaited;
use crate::support::fuse::Slow;
use crate::support::gettid;
use crate::support::runs;
use crate::support::start;
use crate::support::usage_error;

pub const CASES: &[Case] = &[
    Case::new("operations on ext4", || operations_on("ext4")),
    Case::new("operations on xfs", || operations_on("xfs")),
    Case::new("operations on btrfs", || operations_on("btrfs")),
    Case::new("latency and intervals", slow),
    Case::new("text", text).in_turn(),
    Case::new("usage errors", usage_errors).in_turn(),
];

/// Of each operation: how many, and how long together; and the edges of the buckets they are in.
type Counted = BTreeMap<String, (u64, u64, Vec<u64>)>;

fn counted(finished: &Finished, kind: &str) -> Counted {
    finished.assert_clean();
    let mut all = Counted::new();
    for record in finished.of("histogram") {
        assert_eq!((&record["name"], &record["unit"]), (&"latency_ns".into(), &"ns".into()));
        assert_eq!(record["key"]["fs"], kind, "{record}");
        let op = record["key"]["op"].as_str().expect("op").to_string();
        let (count, sum, edges) = all.entry(op).or_default();
        *count += record["count"].as_u64().expect("count");
        *sum += record["sum"].as_u64().expect("sum");
        let buckets = record["buckets"].as_array().expect("buckets").iter();
        let used = buckets.filter(|bucket| bucket["count"] != 0);
        edges.extend(used.map(|bucket| bucket["ge"].as_u64().expect("ge")));
    }
    all
}

fn skipped(kind: &str) -> Option<Outcome> {
    load(kind);
    runs("fsdist", &["-t", kind]).err().map(Outcome::Skipped)
}

/// Each operation is counted once, also one inside another, and one that nobody waits for.
fn operations_on(kind: &'static str) -> Outcome {
    const UNWAITED: usize = 2;
    if let Some(skipped) = skipped(kind) {
        return skipped;
    }
    let at = mounted(kind);
    let tid = gettid().to_string();
    let tool = start("fsdist", &["-t", kind, "--tid", &tid]);
    // Only where another one is held against it.
    let nobody =
        (kind == "ext4").then(|| start("fsdist", &["-t", kind, "-p", &tool.pid().to_string()]));
    let begun = Instant::now();
    let (path, operations) = operations(&at, &format!("{kind}-dist"));
    let took = u64::try_from(begun.elapsed().as_nanos()).expect("short");
    read_unwaited(&path, UNWAITED);
    let seen = counted(&tool.stop(), kind);
    let mut expected = BTreeMap::from([("read", UNWAITED as u64), ("open", 1)]);
    for (op, ..) in &operations {
        *expected.entry(op).or_default() += 1;
    }
    let counts: BTreeMap<&str, u64> =
        seen.iter().map(|(op, (count, ..))| (op.as_str(), *count)).collect();
    assert_eq!(counts, expected);
    for (op, (_, sum, _)) in &seen {
        // Reads go on after that.
        assert!(*sum > 0 && (op == "read" || *sum <= took), "{op}: {sum} of {took}");
    }
    if let Some(nobody) = nobody {
        assert_eq!(counted(&nobody.stop(), kind), Counted::new());
    }
    Outcome::Passed
}

/// Of each interval what is new, in the bucket that it belongs to.
fn slow() -> Outcome {
    const DELAY: Duration = Duration::from_millis(70);
    if let Some(skipped) = skipped("fuse") {
        return skipped;
    }
    let fs = match Slow::mount(DELAY) {
        Ok(fs) => fs,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let tid = gettid().to_string();
    let file = fs::File::open(&fs.file).expect("open");
    let mut tool = start("fsdist", &["-t", "fuse", "--tid", &tid, "0.2"]);
    let mut took = 0;
    for _ in 0..2 {
        let begun = Instant::now();
        file.read_exact_at(&mut [0; 512], 0).expect("read");
        took += u64::try_from(begun.elapsed().as_nanos()).expect("short");
        let record = tool.wait_for(|record| record["type"] == "histogram");
        assert_eq!((&record["count"], &record["key"]["op"]), (&1.into(), &"read".into()));
        tool.wait_for(|record| record["type"] == "report");
    }
    let delay = u64::try_from(DELAY.as_nanos()).expect("short");
    let in_buckets = |finished: &Finished, count: u64, least: u64, took: u64| {
        let seen = counted(finished, "fuse");
        let (shown, sum, edges) = &seen["read"];
        assert_eq!((seen.len(), *shown), (1, count), "{seen:?}");
        assert!((count * delay..=took).contains(sum), "{sum} of {took}");
        let fits = |edge: &u64| (least..=took).contains(edge) && edge.is_multiple_of(least);
        assert!(edges.iter().all(fits), "{edges:?}");
    };
    // 70 ms are in the bucket from 65.536 ms on.
    in_buckets(&tool.stop(), 2, 65_536_000, took);

    // Or from 64 where they are counted in milliseconds; and two reports are enough.
    let tool = start("fsdist", &["-m", "-t", "fuse", "--tid", &tid, "1", "2"]);
    let begun = Instant::now();
    file.read_exact_at(&mut [0; 512], 0).expect("read");
    let took = u64::try_from(begun.elapsed().as_nanos()).expect("short");
    let finished = tool.finish();
    assert_eq!((finished.of("report").count(), &finished.end()["reason"]), (2, &"count".into()));
    in_buckets(&finished, 1, 64_000_000, took);
    Outcome::Passed
}

fn text() -> Outcome {
    if let Some(skipped) = skipped("ext4") {
        return skipped;
    }
    let path = mounted("ext4").join("dist-text");
    fs::write(&path, "text").expect("write");
    let tid = gettid().to_string();
    for (name, args, unit) in [
        ("fsdist", &["-t", "ext4", "-T"][..], "usecs"),
        // By its other name, as a link would call it.
        ("ext4dist", &["-m"], "msecs"),
    ] {
        let args = [args, &["--tid", &tid]].concat();
        let mut child = command(name, &args).stdout(Stdio::piped()).spawn().expect("spawn");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut said = String::new();
        // The banner comes when everything is attached.
        stdout.read_line(&mut said).expect("the banner");
        let file = fs::File::open(&path).expect("open");
        assert_eq!(file.read_at(&mut [0; 9], 0).expect("read"), 4);
        kill(Pid::from_raw(i32::try_from(child.id()).expect("pid")), Signal::SIGTERM)
            .expect("kill");
        stdout.read_to_string(&mut said).expect("text");
        assert!(child.wait().expect("wait").success());
        let mut lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..2], ["Tracing FS operation latency... Hit Ctrl-C to end.", ""]);
        if args.contains(&"-T") {
            let time: Vec<_> = lines.remove(2).split(':').map(str::len).collect();
            assert_eq!(time, [2, 2, 2], "{said}");
        }
        let head = format!("     {unit:<19} : count    distribution");
        let parts: Vec<&[&str]> = lines[2..].split(|line| line.is_empty()).collect();
        assert_eq!(parts.len(), 3, "{said}");
        for (part, op) in parts.iter().zip(["read", "open"]) {
            assert_eq!(part[..2], [&format!("operation = '{op}'"), &head], "{said}");
            let last = part.last().expect("rows");
            assert!(
                last.contains(" : 1        |****************************************|"),
                "{said}"
            );
        }
    }
    Outcome::Passed
}

fn usage_errors() -> Outcome {
    for args in [
        &[][..],
        &["-t", "ext5"],
        &["-t", "ext4", "0"],
        &["-t", "ext4", "abc"],
        &["-t", "ext4", "1", "0"],
        &["-t", "ext4", "-p", "x"],
    ] {
        usage_error("fsdist", args, "");
    }
    Outcome::Passed
}
