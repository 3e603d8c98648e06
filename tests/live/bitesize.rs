// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! bitesize against requests of known sizes, by threads of known names.

use std::collections::BTreeMap;
use std::thread;

use crate::support::Case;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::debug_disk::DebugDisk;
use crate::support::debug_disk::IN_HALVES;
use crate::support::disk::BLOCK;
use crate::support::disk::Direct;
use crate::support::disk::Disk;
use crate::support::neighbours::Neighbours;
use crate::support::start;
use crate::support::text::assert_usage_errors;
use crate::support::text::text_run;

pub const CASES: &[Case] = &[
    Case::new("sizes by name", sizes),
    Case::new("intervals", intervals).in_turn(),
    Case::new("requests that are done by halves", in_halves).in_turn(),
    Case::new("a request of three processes", three_owners).in_turn(),
    Case::new("text", text).in_turn(),
    Case::new("usage errors", usage_errors).in_turn(),
];

/// For each name: how many requests from each lower edge on, and all bytes.
type Sizes = BTreeMap<String, (BTreeMap<u64, u64>, u64)>;

fn of(finished: &Finished) -> Sizes {
    finished.assert_clean();
    let mut all = Sizes::new();
    for record in finished.of("histogram") {
        assert_eq!((&record["name"], &record["unit"]), (&"size_bytes".into(), &"bytes".into()));
        let name = record["key"]["comm"].as_str().unwrap_or("?").to_string();
        let (buckets, sum) = all.entry(name).or_default();
        for bucket in record["buckets"].as_array().expect("buckets") {
            let count = bucket["count"].as_u64().expect("count");
            if count > 0 {
                *buckets.entry(bucket["ge"].as_u64().expect("ge")).or_default() += count;
            }
        }
        *sum += record["sum"].as_u64().expect("sum");
    }
    all
}

/// In a thread of this name: reads of 4, 16 and 64 KiB, so many of each, and then flushes.
fn reads(disk: &Disk, name: &'static str, each: [usize; 4]) {
    let path = disk.path();
    let work = move || {
        let direct = Direct::open(&path);
        for (blocks, count) in [1, 4, 16].into_iter().zip(each) {
            for i in 0..count {
                // Not neighbours, which would be one request with a scheduler.
                let read = direct.read_from((i * 64 * BLOCK) as u64, blocks);
                assert_eq!(read.expect("read"), blocks * BLOCK);
            }
        }
        (0..each[3]).for_each(|_| direct.flush());
    };
    thread::Builder::new().name(name.into()).spawn(work).expect("a thread").join().expect("reads");
}

fn buckets<const N: usize>(list: [(u64, u64); N]) -> BTreeMap<u64, u64> {
    list.into_iter().collect()
}

fn sizes() -> Outcome {
    let (disk, other) = (Disk::any(), Disk::any());
    // Where there is one: requests are then issued by a kernel thread.
    disk.scheduler("mq-deadline");
    let own = std::process::id().to_string();
    let tools = [
        start("bitesize", &["-d", &disk.name]),
        start("bitesize", &["--pid", &own, "--bytes", "-d", &disk.name]),
        start("bitesize", &["-c", "bz-o", "-d", &disk.name]),
        start("bitesize", &["--comm", "bz-two*", "-d", &disk.name]),
        start("bitesize", &["-c", "bz-nobody"]),
    ];
    reads(&disk, "bz-one", [7, 5, 3, 2]);
    reads(&disk, "bz-two", [0, 11, 0, 0]);
    // Not asked for by any of them.
    reads(&other, "bz-one", [3, 0, 0, 0]);
    let [all, mine, one, two, nobody] = tools.map(|tool| of(&tool.stop()));
    let kib = |n: u64| n << 10;
    // A flush is a request of no bytes.
    let first =
        (buckets([(0, 2), (kib(4), 7), (kib(16), 5), (kib(64), 3)]), kib(7 * 4 + 5 * 16 + 3 * 64));
    let second = (buckets([(kib(16), 11)]), kib(11 * 16));
    for seen in [&all, &mine] {
        assert_eq!((seen.get("bz-one"), seen.get("bz-two")), (Some(&first), Some(&second)));
    }
    assert_eq!(one, Sizes::from([("bz-one".into(), first)]));
    assert_eq!(two, Sizes::from([("bz-two".into(), second)]));
    assert_eq!(nobody, Sizes::new());
    Outcome::Passed
}

/// Each report has what is new, and together they have all.
fn intervals() -> Outcome {
    let disk = Disk::any();
    let own = std::process::id().to_string();
    let mut tool = start("bitesize", &["-d", &disk.name, "--pid", &own, "0.2"]);
    for round in 1..=3 {
        reads(&disk, "bz-rounds", [round, 0, 0, 0]);
        // A busy machine may need more than one interval for them.
        let (mut count, mut sum) = (0, 0);
        while count < round {
            let record = tool.wait_for(|record| record["type"] == "histogram");
            let number = |field: &str| record[field].as_u64().expect("a number") as usize;
            (count, sum) = (count + number("count"), sum + number("sum"));
        }
        assert_eq!((count, sum), (round, round * BLOCK));
        tool.wait_for(|record| record["type"] == "report");
    }
    let finished = tool.stop();
    assert_eq!(of(&finished)["bz-rounds"].1, 6 * BLOCK as u64);
    let counted = start("bitesize", &["-d", &disk.name, "0.1", "2"]).finish();
    assert_eq!((counted.of("report").count(), &counted.end()["reason"]), (2, &"count".into()));
    Outcome::Passed
}

/// Requests of which the device does one half, and then is given the other half: each is of its
/// whole size, and counts once.
fn in_halves() -> Outcome {
    let disk = match DebugDisk::get() {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let own = std::process::id().to_string();
    let tool = start("bitesize", &["-d", &disk.name, "--pid", &own]);
    disk.read_in_halves(6);
    let size = (IN_HALVES * BLOCK) as u64;
    let seen: Vec<_> = of(&tool.stop()).into_values().collect();
    assert_eq!(seen, [(buckets([(size, 6)]), 6 * size)]);
    Outcome::Passed
}

/// A request of three processes counts once, for the one that it was made for.
fn three_owners() -> Outcome {
    let mut neighbours = match Neighbours::new() {
        Ok(neighbours) => neighbours,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let disk = neighbours.disk.name.clone();
    let pids = neighbours.pids();
    let tools = pids.map(|pid| start("bitesize", &["--pid", &pid.to_string(), "-d", &disk]));
    neighbours.read();
    let [first, second, third] = tools.map(|tool| of(&tool.stop()));
    let size = 3 * BLOCK as u64;
    let first: Vec<_> = first.into_values().collect();
    assert_eq!(first, [(buckets([(8192, 1)]), size)]);
    assert_eq!((second, third), (Sizes::new(), Sizes::new()));
    Outcome::Passed
}

fn text() -> Outcome {
    const BANNER: &str = "Tracing block device I/O... Hit Ctrl-C to end.";
    let disk = Disk::any();
    let own = std::process::id().to_string();
    for (args, unit, row) in [
        (
            &["-T"][..],
            "Kbytes",
            "         4 -> 7          : 3        |****************************************|",
        ),
        (
            &["--bytes"],
            "bytes",
            "      4096 -> 8191       : 3        |****************************************|",
        ),
    ] {
        let args = [args, &["-d", &disk.name, "--pid", &own]].concat();
        let act = || reads(&disk, "bz-t\x1bxt", [3, 0, 0, 0]);
        let mut lines = text_run("bitesize", &args, 1, act);
        assert_eq!(lines[..2], [BANNER, ""], "{lines:?}");
        if args[0] == "-T" {
            let time: Vec<_> = lines.remove(2).split(':').map(str::len).collect();
            assert_eq!(time, [2, 2, 2], "{lines:?}");
        }
        let head = format!("     {unit:<19} : count    distribution");
        assert_eq!(lines[2..5], ["", "Process Name = bz-t\\x1bxt", &head], "{lines:?}");
        assert_eq!(lines.last().map(String::as_str), Some(row), "{lines:?}");
        assert_eq!(lines.len(), 5 + if unit == "Kbytes" { 3 } else { 13 }, "{lines:?}");
    }
    Outcome::Passed
}

fn usage_errors() -> Outcome {
    assert_usage_errors(
        "bitesize",
        &[
            &["0"][..],
            &["abc"],
            &["-1"],
            &["1", "0"],
            &["-c", ""],
            &["-c", "sixteen-letters-"],
            &["-d", "no-such-disk"],
        ],
    );
    Outcome::Passed
}
