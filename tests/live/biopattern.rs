// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! biopattern against requests whose order is known.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use crate::support::Case;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::debug_disk::DebugDisk;
use crate::support::debug_disk::IN_HALVES;
use crate::support::disk::BLOCK;
use crate::support::disk::Direct;
use crate::support::disk::Disk;
use crate::support::gettid;
use crate::support::neighbours::Neighbours;
use crate::support::start;
use crate::support::text::assert_usage_errors;
use crate::support::text::text_run;

pub const CASES: &[Case] = &[
    Case::new("random and sequential", patterns),
    Case::new("nothing is forgotten between reports", intervals),
    Case::new("a partition", partition).in_turn(),
    Case::new("requests that are done by halves", in_halves).in_turn(),
    Case::new("a request of three processes", three_owners).in_turn(),
    Case::new("order of disks", order).in_turn(),
    Case::new("text", text).in_turn(),
    Case::new("usage errors", usage_errors).in_turn(),
];

/// Requests, sequential, random, bytes: all reports together.
fn of(finished: &Finished, disk: &str) -> [u64; 4] {
    finished.assert_clean();
    let mut all = [0; 4];
    for row in finished.of("row").filter(|row| row["disk"] == disk) {
        let fields = ["requests", "sequential", "random", "size_bytes"];
        for (sum, field) in all.iter_mut().zip(fields) {
            *sum += row[field].as_u64().expect("a number");
        }
    }
    all
}

fn bytes(blocks: usize) -> u64 {
    (blocks * BLOCK) as u64
}

fn own() -> String {
    std::process::id().to_string()
}

/// Two disks that are used in turn, each in an order of its own.
fn patterns() -> Outcome {
    let (one, two) = (Disk::any(), Disk::any());
    // Only this process: udev looks at new disks when it likes.
    let both = start("biopattern", &["-p", &own()]);
    let only = start("biopattern", &["-p", &own(), "-d", &two.name]);
    let nobody = start("biopattern", &["--comm", "bp-nobody"]);
    let (mut first, mut second) = (Direct::open(&one.path()), Direct::open(&two.path()));
    for i in 0..40 {
        first.read(i);
        second.write(i * 7 % 41);
        if i % 10 == 0 {
            // No place and no size.
            first.flush();
        }
    }
    // It begins where the last one ended.
    first.discard(40, 24);
    first.read(64);
    first.read(10);
    let (both, only, nobody) = (both.stop(), only.stop(), nobody.stop());
    assert_eq!(of(&both, &one.name), [43, 41, 1, bytes(42 + 24)]);
    for finished in [&both, &only] {
        assert_eq!(of(finished, &two.name), [40, 0, 39, bytes(40)]);
    }
    assert_eq!((of(&only, &one.name), of(&nobody, &two.name)), ([0; 4], [0; 4]));
    let row = both.of("row").find(|row| row["disk"] == one.name.as_str()).expect("a row");
    assert_eq!((&row["random_percent"], &row["sequential_percent"]), (&2.into(), &98.into()));
    Outcome::Passed
}

/// The last sector outlives the report, and so does no count.
fn intervals() -> Outcome {
    let disk = Disk::any();
    let mut tool = start("biopattern", &["-p", &own(), "-d", &disk.name, "0.2"]);
    let mut direct = Direct::open(&disk.path());
    let mut row = |blocks: &[usize]| {
        blocks.iter().for_each(|block| direct.read(*block));
        let row = tool.wait_for(|record| record["type"] == "row");
        tool.wait_for(|record| record["type"] == "report");
        let fields = ["requests", "sequential", "random", "random_percent"];
        fields.map(|field| row[field].clone())
    };
    let expected = |row: [u64; 4]| row.map(Value::from);
    let first = row(&[5]);
    assert_eq!(first, [1.into(), 0.into(), 0.into(), Value::Null]);
    assert_eq!(row(&[6]), expected([1, 1, 0, 0]));
    assert_eq!(row(&[9]), expected([1, 0, 1, 100]));
    tool.stop().assert_clean();
    let counted = start("biopattern", &["-d", &disk.name, "0.1", "2"]).finish();
    assert_eq!((counted.of("report").count(), &counted.end()["reason"]), (2, &"count".into()));
    Outcome::Passed
}

fn partition() -> Outcome {
    let disk = Disk::any();
    let first = disk.partition(1, 2048, 4096);
    let tool = start("biopattern", &["-d", &first, "-p", &own()]);
    let mut direct = Direct::open(&Path::new("/dev").join(&first));
    direct.read(0);
    direct.read(1);
    let mut all = Direct::open(&disk.path());
    all.read(3000);
    direct.read(2);
    direct.read(9);
    // What is outside does not come between.
    assert_eq!(of(&tool.stop(), &disk.name), [4, 2, 1, bytes(4)]);
    Outcome::Passed
}

/// Requests of which the device does one half, and then is given the other half: that is no request
/// of its own, which would follow on the first.
fn in_halves() -> Outcome {
    let disk = match DebugDisk::get() {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    // Without a filter, too: with one, the second half would have no owner any more.
    let tools = [
        start("biopattern", &["-d", &disk.name]),
        start("biopattern", &["-p", &own(), "-d", &disk.name]),
    ];
    disk.read_in_halves(6);
    for tool in tools {
        assert_eq!(of(&tool.stop(), &disk.name), [6, 5, 0, bytes(6 * IN_HALVES)]);
    }
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
    let tools = pids.map(|pid| start("biopattern", &["-p", &pid.to_string(), "-d", &disk]));
    neighbours.read();
    let seen = tools.map(|tool| of(&tool.stop(), &disk));
    assert_eq!(seen, [[1, 0, 0, bytes(3)], [0; 4], [0; 4]]);
    Outcome::Passed
}

/// By name, or by what was asked for; under one header, however many reports there are.
fn order() -> Outcome {
    let disks = [Disk::any(), Disk::any(), Disk::any()];
    let read = || {
        for (disk, count) in disks.iter().zip([2, 5, 3]) {
            let mut direct = Direct::open(&disk.path());
            (0..count).for_each(|block| direct.read(block));
        }
    };
    // Other tests of this process have disks, too.
    let tid = gettid().to_string();
    let [two, five, three] = disks.each_ref().map(|disk| disk.name.clone());
    let mut by_name = vec![two.clone(), five.clone(), three.clone()];
    by_name.sort_unstable();
    let orders = [
        (&[][..], by_name),
        (&["--sort", "requests"][..], vec![five.clone(), three.clone(), two.clone()]),
        (&["--sort", "size_bytes", "--rows", "2"][..], vec![five.clone(), three.clone()]),
    ];
    let args = |more: &[&'static str]| [more, &["--tid", &tid]].concat();
    let tools = orders.each_ref().map(|(more, _)| start("biopattern", &args(more)));
    read();
    for (tool, (more, expected)) in tools.into_iter().zip(&orders) {
        let finished = tool.stop();
        finished.assert_clean();
        let disks = finished.of("row").map(|row| row["disk"].as_str().expect("a name"));
        assert_eq!(disks.collect::<Vec<_>>(), *expected, "{more:?}");
    }
    // Reports without a request add nothing.
    let args = args(&["--sort", "requests", "0.2"]);
    let lines = text_run("biopattern", &args, 1, read);
    let headers = lines.iter().filter(|line| line.starts_with("DISK")).count();
    assert_eq!(headers, 1, "{lines:?}");
    let mut counts = HashMap::new();
    for line in &lines[2..] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let count: u64 = words[3].parse().expect("a number");
        *counts.entry(words[0].to_string()).or_insert(0) += count;
    }
    assert_eq!(counts, HashMap::from([(two, 2), (five, 5), (three, 3)]), "{lines:?}");
    Outcome::Passed
}

fn text() -> Outcome {
    let disk = Disk::any();
    for (args, header) in [
        (&[][..], "DISK     %RND  %SEQ    COUNT     KBYTES"),
        (&["-T"][..], "TIME      DISK     %RND  %SEQ    COUNT     KBYTES"),
    ] {
        let own = own();
        let args = [args, &["-d", &disk.name, "-p", &own]].concat();
        let lines = text_run("biopattern", &args, 1, || {
            let mut direct = Direct::open(&disk.path());
            [3, 4, 5, 9, 10].into_iter().for_each(|block| direct.read(block));
        });
        let banner = "Tracing block device I/O requested seeks... Hit Ctrl-C to end.";
        assert_eq!(lines[..2], [banner, header], "{lines:?}");
        assert_eq!(lines.len(), 3, "{lines:?}");
        let row = format!("{:<7} {:>5} {:>5} {:>8} {:>10}", disk.name, 25, 75, 5, 20);
        assert!(lines[2].ends_with(&row), "{lines:?}");
        let time = lines[2].strip_suffix(&row).expect("a row");
        let parts: Vec<_> = time.trim().split(':').map(str::len).collect();
        let expected = if args[0] == "-T" { vec![2, 2, 2] } else { vec![0] };
        assert_eq!(parts, expected, "{lines:?}");
    }
    Outcome::Passed
}

fn usage_errors() -> Outcome {
    assert_usage_errors(
        "biopattern",
        &[&["0"][..], &["abc"], &["-1"], &["1", "0"], &["-d", "no-such-disk"]],
    );
    Outcome::Passed
}
