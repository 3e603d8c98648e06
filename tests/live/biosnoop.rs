// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! biosnoop against requests that the tests make, on devices of their own.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use io_uring::IoUring;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::assert_time;
use crate::support::cgroup_root;
use crate::support::command;
use crate::support::debug_disk::DebugDisk;
use crate::support::debug_disk::IN_HALVES;
use crate::support::disk::BLOCK;
use crate::support::disk::Direct;
use crate::support::disk::Disk;
use crate::support::disk::Mounted;
use crate::support::disk::Range;
use crate::support::disk::ZONE;
use crate::support::disk::append;
use crate::support::disk::file_that_appends;
use crate::support::disk::read_at_once;
use crate::support::disk::read_timed;
use crate::support::gettid;
use crate::support::go;
use crate::support::kernel;
use crate::support::losses::assert_counted;
use crate::support::neighbours::FIRST_BLOCK;
use crate::support::neighbours::Neighbours;
use crate::support::process;
use crate::support::scratch;
use crate::support::start;
use crate::support::text::assert_usage_errors;
use crate::support::text::text_run;

pub const CASES: &[Case] = &[
    Case::new("every request once", every_request),
    Case::new("requests belong to who submitted them", owners),
    Case::new("merged requests are one", merges),
    Case::new("time in the queue", queued),
    Case::new("latency", latency).timed(),
    Case::new("pattern", pattern).in_turn(),
    Case::new("a partition", partition).in_turn(),
    Case::new("errors", errors).in_turn(),
    Case::new("a request that is done in parts", in_parts).in_turn(),
    Case::new("requests that are done by halves", in_halves).in_turn(),
    Case::new("operations on zones", zones).in_turn(),
    Case::new("zone append", zone_append).in_turn(),
    Case::new("zeroes", zeroes).in_turn(),
    Case::new("secure erase", secure_erase).in_turn(),
    Case::new("a request of three processes", three_owners).in_turn(),
    Case::new("writeback", writeback).in_turn(),
    Case::alone("a burst", burst),
    Case::new("text", text).in_turn(),
    Case::new("usage errors", usage_errors).in_turn(),
    Case::new("what does not fit is counted", no_room).in_turn(),
];

/// Operation, first sector, bytes.
type Io = (String, Option<u64>, u64);

fn io(op: &str, block: usize, blocks: usize) -> Io {
    (op.into(), Some((block * BLOCK / 512) as u64), (blocks * BLOCK) as u64)
}

fn flush() -> Io {
    ("Flush".into(), None, 0)
}

fn of(event: &Value) -> Io {
    let op = event["op"].as_str().expect("op").to_string();
    (op, event["sector"].as_u64(), event["size_bytes"].as_u64().expect("size_bytes"))
}

/// What the tool showed of this disk.
fn on<'a>(finished: &'a Finished, disk: &str) -> Vec<&'a Value> {
    finished.of("event").filter(|event| event["disk"] == disk).collect()
}

/// Asserts that exactly these were shown, in this order; only where the kernel itself skipped hits
/// and the tool says so, as many may be missing.
fn assert_shown(finished: &Finished, shown: &[Io], expected: &[Io]) {
    finished.assert_clean();
    if shown == expected {
        return;
    }
    let missed = finished.end()["missed"].as_u64().unwrap_or(0);
    let missing = expected.len().saturating_sub(shown.len());
    let mut rest = expected.iter();
    let stray = shown.iter().position(|io| !rest.any(|wanted| wanted == io));
    assert!(
        stray.is_none() && missing as u64 <= missed,
        "{} of {}, not expected: {:?}; {}",
        shown.len(),
        expected.len(),
        stray.map(|at| &shown[at]),
        finished.end()
    );
}

fn number(n: usize) -> u64 {
    u64::try_from(n).expect("small")
}

/// Each operation so many times, on a disk that was made when the tool was already running.
fn every_request() -> Outcome {
    let tool = start("biosnoop", &[]);
    let disk = Disk::any();
    let other = Disk::any();
    let only = start("biosnoop", &["--disk", &other.name]);
    let mut direct = Direct::open(&disk.path());
    let mut expected = Vec::new();
    for i in 0..31 {
        direct.write(i);
        expected.push(io("Write", i, 1));
    }
    for i in (0..47).rev() {
        direct.read(i);
        expected.push(io("Read", i, 1));
    }
    for _ in 0..5 {
        direct.flush();
        expected.push(flush());
    }
    for i in 0..3 {
        direct.discard(i * 64, 64);
        expected.push(io("Discard", i * 64, 64));
    }
    Direct::open(&other.path()).read(3);
    let (finished, only) = (tool.stop(), only.stop());

    let all = on(&finished, &disk.name);
    // While the disk was new its partitions were looked for, by others (udev) and by who made it.
    let own = all.iter().filter(|event| event["pid"] == std::process::id());
    let mine: Vec<_> = own.skip_while(|event| event["op"] == "Read").collect();
    assert_shown(&finished, &mine.iter().map(|e| of(e)).collect::<Vec<_>>(), &expected);
    let comm = fs::read_to_string("/proc/thread-self/comm").expect("comm");
    let parent = u64::from(std::os::unix::process::parent_id());
    let mut last = 0;
    for event in &mine {
        let process = process(event);
        assert_eq!(process, (u64::from(std::process::id()), gettid(), parent, 0), "{event}");
        assert_eq!(event["comm"], comm.trim(), "{event}");
        assert_eq!((&event["writeback"], &event["error"]), (&false.into(), &Value::Null));
        assert_eq!((&event["queue_ns"], &event["total_ns"]), (&Value::Null, &Value::Null));
        assert_eq!(event["pattern"], Value::Null);
        let boot: u64 = event["boot_ns"].as_str().expect("boot_ns").parse().expect("a number");
        // One after the other: it begins when the one before has ended.
        assert!(boot - event["lat_ns"].as_u64().expect("lat_ns") >= last, "{event}");
        last = boot;
        // Reads of a device file are synchronous only on newer kernels.
        let (rwbs, flags) = match event["op"].as_str().expect("op") {
            "Write" => (["WS"; 2], ["Idle|Sync"; 2]),
            "Read" => (["R", "RS"], ["0x0", "Sync"]),
            "Flush" => (["FF"; 2], ["PreFlush"; 2]),
            _ => (["DS"; 2], ["Sync"; 2]),
        };
        assert!(rwbs.contains(&event["rwbs"].as_str().expect("rwbs")), "{event}");
        assert!(flags.contains(&event["flags"].as_str().expect("flags")), "{event}");
    }
    let shown: Vec<_> = only.of("event").collect();
    assert!(shown.iter().all(|event| event["disk"] == other.name.as_str()));
    let own = shown.iter().filter(|e| e["pid"] == std::process::id()).map(|e| of(e));
    assert_shown(&only, &own.collect::<Vec<_>>(), &[io("Read", 3, 1)]);
    Outcome::Passed
}

/// A process that does nothing until [`go`], and then becomes `dd`.
fn dd(cgroup: Option<&Cgroup>, args: &[&str]) -> Child {
    let mut command = Command::new("sh");
    let adopt = cgroup.map_or(String::new(), |cgroup| {
        format!("echo $$ > '{}/cgroup.procs'; ", cgroup.path.display())
    });
    command.args(["-c", &format!("{adopt}read go; exec dd bs=4k status=none \"$@\""), "sh"]);
    command.args(args).stdin(Stdio::piped()).spawn().expect("sh")
}

/// Three processes at the same device at the same time, with a scheduler, so that kernel threads
/// issue their requests: each is shown with its own, and filters let exactly those through.
fn owners() -> Outcome {
    let disk = Disk::any();
    disk.scheduler("mq-deadline");
    let cgroup = Cgroup::new("bs");
    let path = disk.path();
    let path = path.to_str().expect("UTF-8");
    let (input, output) = (format!("if={path}"), format!("of={path}"));
    let mut writer =
        dd(None, &["if=/dev/zero", &output, "oflag=direct", "conv=fsync,notrunc", "count=37"]);
    let mut reader = dd(None, &[&input, "of=/dev/null", "iflag=direct", "skip=4000", "count=53"]);
    let mut within =
        dd(Some(&cgroup), &[&input, "of=/dev/null", "iflag=direct", "skip=8000", "count=59"]);
    // Those that run before are not looked at: the disk is in use from here on.
    let parent = std::process::id().to_string();
    let (pid, other) = (writer.id().to_string(), reader.id().to_string());
    let both = format!("{pid},{other}");
    let group = cgroup.path.to_str().expect("UTF-8");
    let tools: Vec<_> = [
        (vec!["-d", &disk.name], [true; 3]),
        (vec!["-p", &pid], [true, false, false]),
        (vec!["--pid", &both, "-Q"], [true, true, false]),
        (vec!["-c", group], [false, false, true]),
        (vec!["--ppid", &parent, "--comm", "dd"], [true; 3]),
        (vec!["--comm", "bs-nobody"], [false; 3]),
    ]
    .into_iter()
    .map(|(args, expected)| (start("biosnoop", &args), expected))
    .collect();
    let pids = [writer.id(), reader.id(), within.id()];
    for child in [&mut writer, &mut reader, &mut within] {
        go(child);
    }
    for child in [&mut writer, &mut reader, &mut within] {
        assert!(child.wait().expect("wait").success());
    }
    let mut made: [Vec<Io>; 3] = [
        (0..37).map(|i| io("Write", i, 1)).collect(),
        (4000..4053).map(|i| io("Read", i, 1)).collect(),
        (8000..8059).map(|i| io("Read", i, 1)).collect(),
    ];
    made[0].push(flush());
    for (tool, expected) in tools {
        let finished = tool.stop();
        let events = on(&finished, &disk.name);
        for ((pid, made), expected) in pids.iter().zip(&made).zip(expected) {
            let mine: Vec<_> = events.iter().filter(|event| event["pid"] == *pid).collect();
            let shown: Vec<_> = mine.iter().map(|event| of(event)).collect();
            assert_shown(&finished, &shown, if expected { made } else { &[] });
            for event in mine {
                assert_eq!(
                    (&event["comm"], &event["ppid"]),
                    (&"dd".into(), &std::process::id().into())
                );
            }
        }
        // udev may look at the disk at any time; filters keep it out.
        let known = events.iter().filter(|e| pids.iter().any(|pid| e["pid"] == *pid)).count();
        assert!(known == events.len() || expected == [true; 3], "{events:?}");
        let inside = events.iter().filter(|event| event["pid"] == pids[2]);
        let name = cgroup.path.file_name().expect("a name").to_str().expect("UTF-8");
        for event in inside {
            assert!(event["cgroup"].as_str().is_some_and(|path| path.ends_with(name)), "{event}");
        }
    }
    Outcome::Passed
}

/// Reads that are submitted at once, from the last block to the first and from the first to the
/// last, are merged: as many requests as the kernel counts, and together all bytes.
fn merges() -> Outcome {
    let disk = Disk::any();
    let mut ring = match IoUring::new(32) {
        Ok(ring) => ring,
        Err(error) => return Outcome::Skipped(format!("io_uring is not available: {error}")),
    };
    let direct = Direct::open(&disk.path());
    let own = std::process::id().to_string();
    let tools = [
        start("biosnoop", &["-d", &disk.name, "-p", &own]),
        start("biosnoop", &["-Qd", &disk.name, "-p", &own]),
        start("biosnoop", &["-d", &disk.name, "--comm", "bs-nobody"]),
    ];
    let (before, merged_before) = disk.statistics();
    for i in 0..10 {
        let mut blocks: Vec<usize> = (0..32).collect();
        if i % 2 == 0 {
            blocks.reverse();
        }
        read_at_once(&mut ring, &direct, &blocks);
    }
    let (after, merged_after) = disk.statistics();
    let (requests, merged) = (after[0] - before[0], merged_after[0] - merged_before[0]);
    assert_eq!(requests + merged, 320, "the kernel's own statistics");
    for (tool, expected) in tools.into_iter().zip([true, true, false]) {
        let finished = tool.stop();
        finished.assert_clean();
        if !expected {
            assert_eq!(finished.of("event").count(), 0);
            continue;
        }
        let missed = finished.end()["missed"].as_u64().unwrap_or(0);
        let shown = number(finished.of("event").count());
        assert!(shown <= requests && requests - shown <= missed, "{shown} of {requests}");
        let mut sectors = BTreeMap::new();
        for event in finished.of("event") {
            let (_, sector, bytes) = of(event);
            for sector in (sector.expect("a sector")..).take(bytes as usize / 512) {
                *sectors.entry(sector).or_insert(0) += 1;
            }
        }
        if missed == 0 {
            let each: Vec<_> = (0..number(32 * BLOCK / 512)).map(|sector| (sector, 10)).collect();
            assert_eq!(sectors.into_iter().collect::<Vec<_>>(), each);
        }
    }
    Outcome::Passed
}

/// A device that does one request at a time, each in 60 ms, and five at once that cannot be merged
/// and have room in the queue: the times in the queue, in the device and in all lie between what
/// the device needs at the least for those before and what the reader's own clock says.
fn queued() -> Outcome {
    const EACH: Duration = Duration::from_millis(60);
    let nanoseconds = EACH.as_nanos().to_string();
    let settings = [
        ("irqmode", "2"),
        ("completion_nsec", nanoseconds.as_str()),
        ("hw_queue_depth", "1"),
        ("submit_queues", "1"),
    ];
    let disk = match Disk::null(&settings) {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let mut ring = match IoUring::new(8) {
        Ok(ring) => ring,
        Err(error) => return Outcome::Skipped(format!("io_uring is not available: {error}")),
    };
    if !disk.scheduler("mq-deadline") {
        return Outcome::Skipped("this kernel has no mq-deadline".into());
    }
    fs::write(disk.sys("queue/nr_requests"), "16").expect("nr_requests");
    let direct = Direct::open(&disk.path());
    let tool = start("biosnoop", &["--queued", "-d", &disk.name]);
    let (submission, waited) = read_timed(&mut ring, &direct, &[100, 300, 500, 700, 900]);
    let finished = tool.stop();
    let events: Vec<_> = finished.of("event").collect();
    assert_eq!(events.len(), 5, "{events:?}");
    let ns = |event: &Value, field: &str| Duration::from_nanos(event[field].as_u64().expect(field));
    let mut before = Duration::ZERO;
    for (event, (block, waited)) in events.iter().zip(waited) {
        assert_eq!(of(event), io("Read", block, 1));
        let [queue, device, total] = ["queue_ns", "lat_ns", "total_ns"].map(|f| ns(event, f));
        assert_eq!(queue + device, total, "{event}");
        // It may have entered the queue when the first one was already with the device, but not
        // after the submission.
        let least = before.saturating_sub(submission);
        assert!(queue >= least && queue + EACH <= waited, "{event}: {least:?} to {waited:?}");
        // Those before it took their time, whenever the kernel says that they ended.
        assert!(device >= EACH && before + device <= waited, "{event}: {before:?}, {waited:?}");
        assert!(total >= least + EACH && total <= waited, "{event}: {least:?} to {waited:?}");
        before += EACH;
    }
    Outcome::Passed
}

/// A device that takes 20 ms for everything: each latency lies between that and what the reader
/// waited.
fn latency() -> Outcome {
    let disk = match Disk::null(&[("irqmode", "2"), ("completion_nsec", "20000000")]) {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let all = start("biosnoop", &["-d", &disk.name]);
    let slow = start("biosnoop", &["-d", &disk.name, "-m", "19.5"]);
    let none = start("biosnoop", &["-d", &disk.name, "--min", "1000000"]);
    let mut direct = Direct::open(&disk.path());
    let waited: Vec<Duration> = (0..10)
        .map(|i| {
            let started = Instant::now();
            direct.read(i);
            started.elapsed()
        })
        .collect();
    let (all, slow, none) = (all.stop(), slow.stop(), none.stop());
    let expected: Vec<_> = (0..10).map(|i| io("Read", i, 1)).collect();
    for finished in [&all, &slow] {
        let shown: Vec<_> = finished.of("event").map(of).collect();
        assert_shown(finished, &shown, &expected);
    }
    assert_eq!(none.of("event").count(), 0);
    for (event, waited) in all.of("event").zip(&waited) {
        let latency = Duration::from_nanos(event["lat_ns"].as_u64().expect("lat_ns"));
        assert_time(latency, Duration::from_millis(20), *waited);
    }
    Outcome::Passed
}

/// Whether each begins where the one before it ended, also where that one is not shown.
fn pattern() -> Outcome {
    let disk = Disk::any();
    let tool = start("biosnoop", &["-Pd", &disk.name]);
    let mut direct = Direct::open(&disk.path());
    let blocks = [10, 11, 12, 5, 6, 100, 101, 101];
    for block in blocks {
        direct.read(block);
    }
    // It has no place, and so changes nothing.
    direct.flush();
    direct.write(102);
    let finished = tool.stop();
    finished.assert_clean();
    let own = finished.of("event").filter(|event| event["pid"] == std::process::id());
    let shown: Vec<_> = own.map(|event| event["pattern"].as_str().unwrap_or("?")).collect();
    if shown.len() != 10 || finished.of("event").count() != 10 {
        return Outcome::Skipped("somebody else used the disk".into());
    }
    assert_eq!(shown, ["?", "S", "S", "R", "S", "R", "S", "R", "?", "S"]);
    Outcome::Passed
}

fn partition() -> Outcome {
    let disk = Disk::any();
    let first = disk.partition(1, 2048, 4096);
    let second = disk.partition(2, 6144, 4096);
    let tool = start("biosnoop", &["-d", &second, "-p", &std::process::id().to_string()]);
    let open = |name: &str| Direct::open(&Path::new("/dev").join(name));
    open(&first).read(511);
    let mut two = open(&second);
    (0..3).for_each(|i| two.read(i));
    two.read(511);
    open(&disk.name).read(6144 / 8 + 512);
    let finished = tool.stop();
    let shown: Vec<_> = on(&finished, &disk.name).into_iter().map(of).collect();
    let expected: Vec<_> = [0, 1, 2, 511].map(|i| io("Read", 6144 / 8 + i, 1)).into();
    assert_shown(&finished, &shown, &expected);
    Outcome::Passed
}

/// A device with a bad sector.
fn errors() -> Outcome {
    let settings = [("memory_backed", "1"), ("badblocks", "+80-87")];
    let disk = match Disk::null(&settings) {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let tool = start("biosnoop", &["-d", &disk.name, "-p", &std::process::id().to_string()]);
    let mut direct = Direct::open(&disk.path());
    direct.read(9);
    let failed = direct.read_from(10 * BLOCK as u64, 1);
    assert_eq!(failed.expect_err("a bad sector").raw_os_error(), Some(libc::EIO));
    direct.read(11);
    let finished = tool.stop();
    finished.assert_clean();
    let shown: Vec<_> =
        finished.of("event").map(|e| (e["sector"].as_u64(), e["error"].as_str())).collect();
    assert_eq!(shown, [(Some(72), None), (Some(80), Some("EIO")), (Some(88), None)]);
    Outcome::Passed
}

/// A request of which the device does a part before it fails is one request, with all its bytes.
fn in_parts() -> Outcome {
    const FIRST: u64 = 0x1230;
    let disk = match DebugDisk::get() {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    disk.goes_bad();
    let tool = start("biosnoop", &["-d", &disk.name, "-p", &std::process::id().to_string()]);
    let direct = Direct::open(&disk.path());
    let read = direct.read_from(FIRST * 512, 2);
    assert!(read.is_err(), "{read:?}");
    let finished = tool.stop();
    finished.assert_clean();
    let shown: Vec<_> = finished.of("event").map(|e| (of(e), e["error"].is_null())).collect();
    assert_eq!(shown, [(("Read".to_string(), Some(FIRST), 2 * BLOCK as u64), false)]);
    Outcome::Passed
}

/// Requests of which the device does one half, and then is given the other half: each is shown
/// once, with all its bytes, and its time goes on until the last of them.
fn in_halves() -> Outcome {
    let disk = match DebugDisk::get() {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let own = std::process::id().to_string();
    let tools = [&[][..], &["-Q"], &["-m", "59"]]
        .map(|args| start("biosnoop", &[&["-d", &disk.name, "-p", &own], args].concat()));
    let reads = disk.read_in_halves(6);
    for (tool, least) in tools.into_iter().zip([0, 0, 59]) {
        let least = Duration::from_millis(least);
        let finished = tool.stop();
        let events: Vec<_> = finished.of("event").collect();
        let shown: Vec<_> = events.iter().map(|event| of(event)).collect();
        let expected: Vec<_> = reads.iter().filter(|read| read.least >= least).collect();
        let io = |sector| ("Read".to_string(), Some(sector), number(IN_HALVES * BLOCK));
        let ios: Vec<_> = expected.iter().map(|read| io(read.sector)).collect();
        assert_eq!(shown, ios, "{}", finished.end());
        for (event, read) in events.into_iter().zip(expected) {
            let latency = Duration::from_nanos(event["lat_ns"].as_u64().expect("lat_ns"));
            assert_time(latency, read.least, read.waited);
            assert_eq!(event["error"], Value::Null);
        }
    }
    Outcome::Passed
}

/// Operations on zones, each by its name, so many times, at its place.
fn zones() -> Outcome {
    let disk = match Disk::zoned() {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let direct = Direct::open(&disk.path());
    let tool = start("biosnoop", &["-d", &disk.name, "-p", &std::process::id().to_string()]);
    let mut expected = Vec::new();
    let steps = [
        (Range::OPEN_ZONES, "ZoneOpen", "ZOS", 2, 1),
        (Range::CLOSE_ZONES, "ZoneClose", "ZCS", 2, 1),
        (Range::FINISH_ZONES, "ZoneFinish", "ZFS", 2, 2),
        (Range::RESET_ZONES, "ZoneReset", "ZRS", 2, 3),
    ];
    for (range, op, letters, first, zones) in steps {
        direct.range(range, first * ZONE, zones * ZONE).expect(op);
        // A request for each.
        expected.extend((first..first + zones).map(|zone| (op, letters, zone)));
    }
    direct.range(Range::RESET_ZONES, 0, 64 * ZONE).expect("all zones");
    expected.push(("ZoneResetAll", "ZRAS", 0));
    let finished = tool.stop();
    let shown: Vec<_> = finished.of("event").map(of).collect();
    let ios = expected.iter().map(|(op, _, zone)| io(op, zone * ZONE, 0)).collect::<Vec<_>>();
    assert_shown(&finished, &shown, &ios);
    for event in finished.of("event") {
        let letters = expected.iter().find(|(op, ..)| event["op"] == *op).map(|of| of.1);
        assert_eq!((event["rwbs"].as_str(), &event["error"]), (letters, &Value::Null), "{event}");
    }
    Outcome::Passed
}

/// Data that the device itself appends to a zone.
fn zone_append() -> Outcome {
    let disk = match Disk::zoned() {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let (_mounted, file) = match file_that_appends(&disk) {
        Ok(file) => file,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let tool = start("biosnoop", &["-d", &disk.name, "-p", &std::process::id().to_string()]);
    append(&file, 7);
    let finished = tool.stop();
    let appended: Vec<_> = finished.of("event").filter(|e| e["op"] == "ZoneAppend").collect();
    let missed = finished.end()["missed"].as_u64().unwrap_or(0);
    assert!(number(7 - appended.len()) <= missed, "{appended:?}; {}", finished.end());
    finished.assert_clean();
    for event in appended {
        // Where in the zone it comes to lie the device decides.
        let (_, sector, bytes) = of(event);
        let in_zone = sector.expect("a sector") % number(ZONE * BLOCK / 512);
        assert_eq!((in_zone, bytes, &event["rwbs"]), (0, 4096, &"ZAS".into()), "{event}");
    }
    // Metadata is written some other way and at some other time, but the data is in nothing else.
    let writes = finished.of("event").filter(|event| event["op"] == "Write");
    assert_eq!(writes.filter(|event| event["size_bytes"] == 4096).count(), 0);
    Outcome::Passed
}

/// Writing zeroes is no write, and not a discard either.
fn zeroes() -> Outcome {
    let own = kernel() == "own";
    // A file of the machines' /tmp cannot do it.
    let (in_file, debug) = if own {
        (Some(Disk::in_file()), None)
    } else {
        match DebugDisk::get() {
            Ok(disk) => (None, Some(disk)),
            Err(reason) => return Outcome::Skipped(reason),
        }
    };
    let name = in_file.as_ref().map(|disk| &disk.name);
    let name = name.or(debug.as_ref().map(|disk| &disk.name)).expect("one of them");
    let direct = Direct::open(&Path::new("/dev").join(name));
    let tool = start("biosnoop", &["-d", name, "-p", &std::process::id().to_string()]);
    for i in 0..5 {
        direct.range(Range::ZEROES, i * 64, 16).expect("BLKZEROOUT");
    }
    let finished = tool.stop();
    if own && finished.of("event").any(|event| event["error"] == "EOPNOTSUPP") {
        return Outcome::Skipped("the file system of /tmp cannot write zeroes".into());
    }
    let shown: Vec<_> = finished.of("event").map(of).collect();
    let expected: Vec<_> = (0..5).map(|i| io("WriteZeroes", i * 64, 16)).collect();
    assert_shown(&finished, &shown, &expected);
    Outcome::Passed
}

/// No disk that can be had in a test takes secure erases: those on cards (mmc), and virtual ones of
/// Xen and virtio, whose other side QEMU does not have. That they are refused is seen.
fn secure_erase() -> Outcome {
    let disk = Disk::any();
    let direct = Direct::open(&disk.path());
    let tool = start("biosnoop", &["-d", &disk.name, "-p", &std::process::id().to_string()]);
    let refused = direct.range(Range::SECURE_ERASE, 0, 16).expect_err("no disk can do it");
    assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));
    let finished = tool.stop();
    finished.assert_clean();
    assert_eq!(finished.of("event").count(), 0);
    Outcome::Skipped("no device here takes secure erases, only cards and some virtual disks".into())
}

/// A request of three processes is that of the one that it was made for, who is not the last to be
/// merged into it; for the filters, too.
fn three_owners() -> Outcome {
    let mut neighbours = match Neighbours::new() {
        Ok(neighbours) => neighbours,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let pids = neighbours.pids();
    let [first, second, third] = pids.map(|pid| pid.to_string());
    let all = format!("{first},{second},{third}");
    let tools =
        [(&all, true), (&first, true), (&second, false), (&third, false)].map(|(pid, expected)| {
            (start("biosnoop", &["-Q", "-d", &neighbours.disk.name, "-p", pid]), expected)
        });
    let unfiltered = start("biosnoop", &["-d", &neighbours.disk.name]);
    neighbours.read();
    for (tool, expected) in tools.into_iter().chain([(unfiltered, true)]) {
        let finished = tool.stop();
        let events = finished.of("event").filter(|event| event["pid"] != std::process::id());
        let shown: Vec<_> = events.map(|event| (of(event), event["pid"].clone())).collect();
        let one = (io("Read", FIRST_BLOCK, 3), Value::from(pids[0]));
        assert_eq!(shown, if expected { vec![one] } else { vec![] }, "{}", finished.end());
    }
    Outcome::Passed
}

/// What a process of a cgroup left in memory is written by a kernel thread, in its cgroup's name.
fn writeback() -> Outcome {
    let root = cgroup_root().expect("a cgroup v2 hierarchy");
    let charged = fs::write(root.join("cgroup.subtree_control"), "+io +memory").is_ok();
    let disk = Disk::any();
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-O", "^has_journal"]).arg(disk.path());
    match mkfs.status() {
        Ok(status) if status.success() => {}
        _ => return Outcome::Skipped("there is no mkfs.ext4".into()),
    }
    let mounted = match Mounted::new("ext4", &disk) {
        Ok(mounted) => mounted,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let directory = mounted.0.clone();
    let cgroup = Cgroup::new("bs-wb");
    let group = cgroup.path.to_str().expect("UTF-8");
    let all = start("biosnoop", &["-d", &disk.name]);
    let within = start("biosnoop", &["-d", &disk.name, "--cgroup", group]);
    let file = directory.join("file");
    let of_file = format!("of={}", file.display());
    let mut child =
        cgroup.command("dd", &["if=/dev/zero", &of_file, "bs=64k", "count=64", "status=none"]);
    assert!(child.status().expect("dd").success());
    // The kernel's flusher writes for syncfs().
    let file = File::open(&directory).expect("directory");
    // SAFETY: takes no memory.
    assert_eq!(unsafe { libc::syncfs(file.as_raw_fd()) }, 0, "syncfs");
    drop(file);
    let (all, within) = (all.stop(), within.stop());
    drop(mounted);
    for finished in [&all, &within] {
        finished.assert_clean();
    }
    let written = |finished: &Finished, ours: bool| -> u64 {
        let name = cgroup.path.file_name().expect("a name").to_str().expect("UTF-8");
        let events = finished.of("event").filter(|e| e["op"] == "Write" && e["writeback"] == true);
        let events =
            events.filter(|e| !ours || e["cgroup"].as_str().is_some_and(|c| c.ends_with(name)));
        events.map(|e| e["size_bytes"].as_u64().expect("size_bytes")).sum()
    };
    for event in all.of("event").filter(|event| event["writeback"] == true) {
        let comm = event["comm"].as_str().expect("comm");
        assert!(comm.starts_with("kworker/"), "{event}");
    }
    let bytes = written(&all, false);
    assert!(bytes >= 64 << 16, "{bytes} bytes were written back");
    if !charged {
        return Outcome::Skipped("writeback is not charged to cgroups here".into());
    }
    let (ours, filtered) = (written(&all, true), written(&within, true));
    assert!(ours >= 64 << 16, "{ours} of {bytes} bytes in the cgroup's name");
    assert_eq!((filtered, written(&within, false)), (ours, ours));
    Outcome::Passed
}

/// As many reads as a disk can do: what is shown and what is counted as lost are all.
fn burst() -> Outcome {
    const READS: usize = 100_000;
    let disk = Disk::any();
    let directory = scratch("burst");
    // To a file: a reader that cannot keep up would be measured instead of the tool.
    let shown = directory.join("shown");
    let own = std::process::id().to_string();
    let mut child = command("biosnoop", &["--output", "json", "-d", &disk.name, "-p", &own])
        .stdout(File::create(&shown).expect("file"))
        .spawn()
        .expect("biosnoop");
    let until = Instant::now() + crate::support::patience();
    while !fs::read_to_string(&shown).expect("file").contains('\n') {
        assert!(Instant::now() < until, "not ready in time");
        std::thread::yield_now();
    }
    let mut direct = Direct::open(&disk.path());
    let (before, _) = disk.statistics();
    (0..READS).for_each(|i| direct.read(i % 4096));
    let (after, _) = disk.statistics();
    assert!(after[0] - before[0] >= number(READS), "the kernel's own statistics");
    kill(Pid::from_raw(i32::try_from(child.id()).expect("pid")), Signal::SIGINT).expect("kill");
    assert!(child.wait().expect("wait").success());
    let text = fs::read_to_string(&shown).expect("UTF-8");
    let end: Value = serde_json::from_str(text.lines().last().expect("lines")).expect("JSON");
    let count = text.lines().filter(|line| line.starts_with("{\"type\":\"event\"")).count();
    let of_end = |field: &str| end[field].as_u64().unwrap_or(0);
    assert_eq!((of_end("events"), of_end("map_full")), (number(count), 0), "{end}");
    let counted = number(count) + of_end("lost");
    // What the kernel skipped it counts, and the twin may have dealt with it all the same. Only of
    // a machine's own kernel that is not known: on one of 6.18 all tools at once do not see one or
    // two of these requests, and no program of theirs has missed anything.
    let unknown = if kernel() == "own" { 4 } else { 0 };
    let unseen = of_end("missed") + unknown;
    assert!(counted <= number(READS) && number(READS) - counted <= unseen, "{end}");
    fs::remove_file(&shown).expect("removed");
    Outcome::Passed
}

fn text() -> Outcome {
    let disk = Disk::any();
    let mut direct = Direct::open(&disk.path());
    let own = std::process::id().to_string();
    let lines = text_run("biosnoop", &["-d", &disk.name, "-p", &own], 1, || {
        direct.write(2);
        direct.flush();
    });
    assert_eq!(
        lines[0],
        "TIME(s)     COMM           PID     DISK    T    SECTOR     BYTES   LAT(ms)"
    );
    let words = |line: &str| line.split_whitespace().map(String::from).collect::<Vec<_>>();
    let comm = fs::read_to_string("/proc/thread-self/comm").expect("comm");
    let expected = |rest: &[&str]| {
        let comm = words(&comm);
        let head: Vec<_> =
            comm.iter().map(String::as_str).chain([own.as_str(), &disk.name]).collect();
        [&head, rest].concat().into_iter().map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, rest) in lines[1..].iter().zip([&["WS", "16", "4096"], &["FF", "0", "0"]]) {
        let words = words(line);
        let (first, last) = (words.first().expect("time"), words.last().expect("latency"));
        assert_eq!(words[1..words.len() - 1], expected(rest), "{line}");
        assert!(first.len() == 8 && first.starts_with("0."), "{line}");
        assert_eq!(last.split('.').nth(1).map(str::len), Some(3), "{line}");
    }
    assert!(lines[1].starts_with("0.000000    "), "{lines:?}");

    let lines = text_run("biosnoop", &["-tQP", "-d", &disk.name, "-p", &own], 1, || direct.read(7));
    assert_eq!(
        lines[0],
        "TIMESTAMP    COMM           PID     DISK    T    SECTOR     BYTES   P QUE(ms) LAT(ms)"
    );
    let words = words(&lines[1]);
    let parts: Vec<_> = words[0].split([':', '.']).map(str::len).collect();
    assert_eq!(parts, [2, 2, 2, 3], "{lines:?}");
    assert_eq!(words[words.len() - 5..words.len() - 2], ["56", "4096", "?"], "{lines:?}");
    assert_eq!(words[words.len() - 2].split('.').nth(1).map(str::len), Some(3), "{lines:?}");
    Outcome::Passed
}

fn usage_errors() -> Outcome {
    assert_usage_errors(
        "biosnoop",
        &[
            &["0"][..],
            &["abc"],
            &["-1"],
            &["5x"],
            &["5", "6"],
            &["5", "--duration", "6"],
            &["-m", "0"],
            &["-m", "x"],
            &["-m", "-1"],
            &["-d", "no-such-disk"],
            &["-d", ""],
            &["-c", "/no/such/cgroup"],
        ],
    );
    // The positional number is the duration.
    let started = Instant::now();
    let finished = start("biosnoop", &["0.3", "--comm", "bs-nobody"]).finish();
    assert_eq!(finished.end()["reason"], "duration");
    assert!(started.elapsed() >= Duration::from_millis(300));
    Outcome::Passed
}

/// A buffer too small: see [`assert_counted`].
fn no_room() -> Outcome {
    let disk = Disk::any();
    let mut direct = Direct::open(&disk.path());
    let own = std::process::id().to_string();
    assert_counted("biosnoop", &["-d", &disk.name, "-p", &own], 200, || {
        (0..200).for_each(|block| direct.read(block));
    });
    Outcome::Passed
}
