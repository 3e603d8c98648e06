// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! biotop against requests that the tests make, on devices of their own.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use crate::support::Case;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::assert_time;
use crate::support::command;
use crate::support::debug_disk::DebugDisk;
use crate::support::debug_disk::IN_HALVES;
use crate::support::disk::BLOCK;
use crate::support::disk::Direct;
use crate::support::disk::Disk;
use crate::support::disk::Range;
use crate::support::disk::ZONE;
use crate::support::disk::append;
use crate::support::disk::file_that_appends;
use crate::support::neighbours::Neighbours;
use crate::support::start;
use crate::support::text::assert_usage_errors;

pub const CASES: &[Case] = &[
    Case::new("by process, disk and direction", counts),
    Case::new("nothing is lost between intervals", intervals).in_turn(),
    Case::new("latency", latency).timed(),
    Case::new("requests that are done by halves", in_halves).in_turn(),
    Case::new("operations on zones", zones).in_turn(),
    Case::new("a request of three processes", three_owners).in_turn(),
    Case::new("one name is one row", names),
    Case::new("orders", orders).in_turn(),
    Case::new("text", text).in_turn(),
    Case::new("usage errors", usage_errors).in_turn(),
];

/// Requests and bytes, over all intervals, by process, disk and direction.
fn of(finished: &Finished) -> BTreeMap<(u64, String, String), (u64, u64)> {
    finished.assert_clean();
    let mut all = BTreeMap::new();
    for row in finished.of("row") {
        let text = |field: &str| row[field].as_str().unwrap_or("?").to_string();
        let number = |field: &str| row[field].as_u64().unwrap_or(0);
        let key = (number("pid"), text("disk"), text("direction"));
        let sum: &mut (u64, u64) = all.entry(key).or_default();
        sum.0 += number("requests");
        sum.1 += number("size_bytes");
        let [average, most, total] = ["avg_lat_ns", "max_lat_ns", "total_lat_ns"].map(number);
        assert!(average <= most && most <= total && average * number("requests") <= total, "{row}");
    }
    all
}

fn bytes(blocks: u64) -> u64 {
    blocks * BLOCK as u64
}

fn counts() -> Outcome {
    let (one, two) = (Disk::any(), Disk::any());
    // Where there is one: requests are then issued by a kernel thread.
    one.scheduler("mq-deadline");
    let pid = u64::from(std::process::id());
    let own = pid.to_string();
    let all = start("biotop", &["0.3"]);
    let mine = start("biotop", &["-p", &own, "0.3"]);
    let only = start("biotop", &["-p", &own, "-d", &two.name]);
    let nobody = start("biotop", &["--comm", "bt-nobody"]);
    let mut direct = Direct::open(&one.path());
    (0..31).for_each(|i| direct.write(i * 2));
    (0..47).for_each(|i| direct.read(i * 2));
    (0..5).for_each(|_| direct.flush());
    (0..3).for_each(|i| direct.discard(i * 64, 64));
    let mut other = Direct::open(&two.path());
    (0..23).for_each(|i| other.read(i));
    let dd = Command::new("dd")
        .arg(format!("if={}", two.path().display()))
        .args(["of=/dev/null", "bs=4k", "count=11", "iflag=direct", "status=none"])
        .spawn();
    let mut dd = dd.expect("dd");
    assert!(dd.wait().expect("wait").success());
    let [all, mine, only, nobody] = [all, mine, only, nobody].map(|tool| of(&tool.stop()));
    let key =
        |pid: u64, disk: &Disk, direction: &str| (pid, disk.name.clone(), direction.to_string());
    for seen in [&all, &mine] {
        assert_eq!(seen.get(&key(pid, &one, "W")), Some(&(31, bytes(31))));
        assert_eq!(seen.get(&key(pid, &one, "R")), Some(&(47, bytes(47))));
        assert_eq!(seen.get(&key(pid, &one, "O")), Some(&(8, bytes(3 * 64))));
    }
    let theirs = key(pid, &two, "R");
    for seen in [&all, &mine, &only] {
        assert_eq!(seen.get(&theirs), Some(&(23, bytes(23))));
    }
    let of_dd = key(dd.id().into(), &two, "R");
    assert_eq!(all.get(&of_dd), Some(&(11, bytes(11))));
    assert!(mine.keys().all(|(shown, ..)| *shown == pid), "{mine:?}");
    assert_eq!(only.into_keys().collect::<Vec<_>>(), [theirs]);
    assert!(nobody.is_empty(), "{nobody:?}");
    Outcome::Passed
}

/// Processes that come and go while intervals do: each with all of its requests.
fn intervals() -> Outcome {
    let disk = Disk::any();
    let parent = std::process::id().to_string();
    let tool = start("biotop", &["--ppid", &parent, "--comm", "dd", "-d", &disk.name, "0.05"]);
    let pids: Vec<u64> = (0..40)
        .map(|_| {
            let dd = Command::new("dd")
                .arg(format!("if={}", disk.path().display()))
                .args(["of=/dev/null", "bs=4k", "count=70", "iflag=direct", "status=none"])
                .spawn();
            let mut dd = dd.expect("dd");
            assert!(dd.wait().expect("wait").success());
            dd.id().into()
        })
        .collect();
    let finished = tool.stop();
    assert!(finished.of("report").count() > 2, "too few intervals");
    let seen = of(&finished);
    let missed = finished.end()["missed"].as_u64().unwrap_or(0);
    let sum: u64 = seen.values().map(|(requests, _)| requests).sum();
    assert!(sum <= 2800 && 2800 - sum <= missed, "{sum} of 2800, {missed} missed");
    for pid in pids.iter().filter(|_| missed == 0) {
        let own = seen.get(&(*pid, disk.name.clone(), "R".into()));
        assert_eq!(own, Some(&(70, bytes(70))), "{pid}");
    }
    let counted = start("biotop", &["-d", &disk.name, "0.1", "2"]).finish();
    assert_eq!((counted.of("report").count(), &counted.end()["reason"]), (2, &"count".into()));
    Outcome::Passed
}

/// A device that takes 20 ms for everything.
fn latency() -> Outcome {
    let disk = match Disk::null(&[("irqmode", "2"), ("completion_nsec", "20000000")]) {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let own = std::process::id().to_string();
    let tool = start("biotop", &["-p", &own, "-d", &disk.name, "60"]);
    let mut direct = Direct::open(&disk.path());
    let waited: Vec<Duration> = (0..10)
        .map(|i| {
            let started = Instant::now();
            direct.read(i);
            started.elapsed()
        })
        .collect();
    let finished = tool.stop();
    let rows: Vec<_> = finished.of("row").collect();
    assert_eq!((rows.len(), &rows[0]["requests"]), (1, &10.into()), "{rows:?}");
    let fields = ["avg_lat_ns", "max_lat_ns", "total_lat_ns"];
    let [average, most, total] =
        fields.map(|field| Duration::from_nanos(rows[0][field].as_u64().expect("a number")));
    let longest = waited.iter().max().expect("ten");
    assert!(average <= most);
    assert_time(average, Duration::from_millis(20), *longest);
    assert_time(most, Duration::from_millis(20), *longest);
    assert_time(total, Duration::from_millis(200), waited.iter().sum());
    Outcome::Passed
}

/// Requests of which the device does one half, and then is given the other half: each counts once,
/// with all its bytes, and its time goes on until the last of them.
fn in_halves() -> Outcome {
    let disk = match DebugDisk::get() {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let own = std::process::id().to_string();
    let tool = start("biotop", &["-p", &own, "-d", &disk.name, "60"]);
    let reads = disk.read_in_halves(6);
    let finished = tool.stop();
    let key = (u64::from(std::process::id()), disk.name.clone(), "R".to_string());
    let sums = (6, bytes(6 * IN_HALVES as u64));
    assert_eq!(of(&finished), BTreeMap::from([(key, sums)]), "{}", finished.end());
    let row = finished.of("row").next().expect("a row");
    let fields = ["max_lat_ns", "total_lat_ns"];
    let [most, total] =
        fields.map(|field| Duration::from_nanos(row[field].as_u64().expect("a number")));
    let (least, waited) =
        (reads.iter().map(|read| read.least), reads.iter().map(|read| read.waited));
    assert_time(total, least.clone().sum(), waited.clone().sum());
    assert_time(most, least.max().expect("six"), waited.max().expect("six"));
    Outcome::Passed
}

/// Data that the device appends to a zone is written, and what is done to zones is neither read nor
/// written.
fn zones() -> Outcome {
    let disk = match Disk::zoned() {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let (mounted, file) = match file_that_appends(&disk) {
        Ok(file) => file,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let own = std::process::id().to_string();
    let appending = start("biotop", &["-p", &own, "-d", &disk.name, "60"]);
    append(&file, 7);
    let appending = of(&appending.stop());
    drop((file, mounted));
    let direct = Direct::open(&disk.path());
    let managing = start("biotop", &["-p", &own, "-d", &disk.name, "60"]);
    for range in [Range::RESET_ZONES, Range::OPEN_ZONES, Range::CLOSE_ZONES, Range::FINISH_ZONES] {
        direct.range(range, 2 * ZONE, 2 * ZONE).expect("zones");
    }
    let managing = of(&managing.stop());
    let key =
        |direction: &str| (u64::from(std::process::id()), disk.name.clone(), direction.to_string());
    assert_eq!(appending.get(&key("W")), Some(&(7, bytes(7))), "{appending:?}");
    assert_eq!(managing, BTreeMap::from([(key("O"), (8, 0))]));
    Outcome::Passed
}

/// A request of three processes counts once, with all its bytes, for the one that it was made for.
fn three_owners() -> Outcome {
    let mut neighbours = match Neighbours::new() {
        Ok(neighbours) => neighbours,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let pids = neighbours.pids();
    let disk = neighbours.disk.name.clone();
    let tools = pids.map(|pid| start("biotop", &["-p", &pid.to_string(), "-d", &disk, "60"]));
    let all = start("biotop", &["-d", &disk, "60"]);
    neighbours.read();
    let mut all = of(&all.stop());
    let key = |pid: u32| (u64::from(pid), disk.clone(), "R".to_string());
    // This process kept the disk busy.
    assert_eq!(all.remove(&key(std::process::id())), Some((2, bytes(2))));
    let one = BTreeMap::from([(key(pids[0]), (1, bytes(3)))]);
    assert_eq!(all, one);
    let [first, second, third] = tools.map(|tool| of(&tool.stop()));
    assert_eq!((first, second, third), (one, BTreeMap::new(), BTreeMap::new()));
    Outcome::Passed
}

/// A thread that changes its name between reads: what a longer name leaves behind is no part of the
/// next one.
fn names() -> Outcome {
    let disk = Disk::any();
    let tool = start("biotop", &["-d", &disk.name, "-p", &std::process::id().to_string(), "60"]);
    let path = disk.path();
    let work = move || {
        let mut direct = Direct::open(&path);
        let rename = |name: &str| fs::write("/proc/thread-self/comm", name).expect("comm");
        for i in 0..10 {
            rename(&format!("bt-{}-long", "x".repeat(i % 5)));
            direct.read(2 * i);
            rename("bt-b");
            direct.read(2 * i + 1);
        }
    };
    thread::spawn(work).join().expect("reads");
    let finished = tool.stop();
    finished.assert_clean();
    let rows = |comm: &str| -> Vec<u64> {
        let rows = finished.of("row").filter(|row| row["comm"] == comm);
        rows.map(|row| row["requests"].as_u64().expect("a number")).collect()
    };
    assert_eq!(rows("bt-b"), [10]);
    for i in 0..5 {
        assert_eq!(rows(&format!("bt-{}-long", "x".repeat(i))), [2]);
    }
    Outcome::Passed
}

/// The words of the rows that are shown of two commands: one reads 128 KiB in two requests, the
/// other 36 KiB in nine.
fn table(disk: &Disk, args: &[&str]) -> Vec<Vec<String>> {
    const HEADER: &str = "PID     COMM             D MAJ MIN DISK       I/O  Kbytes  AVGms";
    let dd = |arguments| {
        format!("dd if={} of=/dev/null iflag=direct status=none {arguments}", disk.path().display())
    };
    let script = format!("{}; {}", dd("bs=64k count=2"), dd("bs=4k count=9 skip=100"));
    let args = [&["-d", &disk.name], args, &["60", "--", "sh", "-c", &script]].concat();
    let output = command("biotop", &args).output().expect("biotop");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Of what was lost or missed it would tell.
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].contains(" loadavg: ") && lines[0].as_bytes()[2] == b':', "{text}");
    assert_eq!(lines[1..3], ["", HEADER], "{text}");
    let rows = lines[3..].iter().take_while(|line| !line.is_empty());
    rows.map(|line| line.split_whitespace().map(String::from).collect()).collect()
}

/// One slow request on one disk, and many quick ones on another: time decides, alone and in the sum
/// of all, since it is so many nanoseconds.
fn orders() -> Outcome {
    let slow = match Disk::null(&[("irqmode", "2"), ("completion_nsec", "300000000")]) {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let quick = match Disk::null(&[("irqmode", "0")]) {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let own = std::process::id().to_string();
    let orders = [
        ("all", &["requests", "size_bytes", "total_lat_ns"][..], &slow),
        ("time", &["total_lat_ns"], &slow),
        ("io", &["requests"], &quick),
        ("bytes", &["size_bytes"], &quick),
    ];
    let tools = orders.map(|(sort, ..)| start("biotop", &["-p", &own, "--sort", sort, "60"]));
    let mut direct = Direct::open(&slow.path());
    direct.read(0);
    let mut other = Direct::open(&quick.path());
    (0..7).for_each(|i| other.read(i));
    for (tool, (sort, fields, first)) in tools.into_iter().zip(orders) {
        let finished = tool.stop();
        finished.assert_clean();
        // Other tests of this process have disks of their own.
        let is_mine = |row: &&serde_json::Value| {
            row["disk"] == slow.name.as_str() || row["disk"] == quick.name.as_str()
        };
        let rows: Vec<_> = finished.of("row").filter(is_mine).collect();
        let disks: Vec<_> = rows.iter().map(|row| row["disk"].as_str().expect("a disk")).collect();
        assert_eq!((disks.len(), disks[0]), (2, first.name.as_str()), "{sort}: {rows:?}");
        let sum = |row: &&serde_json::Value| -> u64 {
            fields.iter().map(|field| row[*field].as_u64().expect("a number")).sum()
        };
        assert!(sum(&rows[0]) >= sum(&rows[1]), "{sort}: {rows:?}");
    }
    Outcome::Passed
}

fn text() -> Outcome {
    let disk = Disk::any();
    let number = fs::read_to_string(disk.sys("dev")).expect("dev");
    let (major, minor) = number.trim().split_once(':').expect("two numbers");
    let row = |io, kbytes| ["dd", "R", major, minor, &disk.name, io, kbytes].map(String::from);
    let (large, many) = (row("2", "128"), row("9", "36"));
    let orders = [
        (&["-s", "bytes"][..], vec![&large, &many]),
        (&["--sort", "io"], vec![&many, &large]),
        (&["--noclear", "-s", "bytes", "-r", "1"], vec![&large]),
        (&["-C", "-s", "io", "--rows", "1"], vec![&many]),
        (&["-s", "io", "--maxrows", "1"], vec![&many]),
    ];
    for (args, expected) in orders {
        let rows = table(&disk, args);
        let shown: Vec<_> = rows.iter().map(|row| row[1..8].to_vec()).collect();
        assert_eq!(shown, expected, "{args:?}: {rows:?}");
        for row in &rows {
            assert!(row[0].parse::<u32>().is_ok_and(|pid| pid > 1), "{row:?}");
            assert_eq!(row[8].split('.').nth(1).map(str::len), Some(2), "{row:?}");
        }
    }
    for sort in ["all", "time"] {
        let rows = table(&disk, &["-s", sort]);
        assert_eq!(rows.len(), 2, "{rows:?}");
    }
    Outcome::Passed
}

fn usage_errors() -> Outcome {
    assert_usage_errors(
        "biotop",
        &[
            &["0"][..],
            &["abc"],
            &["-1"],
            &["1", "0"],
            &["-s", "no-such"],
            &["-r", "0"],
            &["-d", "x"],
        ],
    );
    Outcome::Passed
}
