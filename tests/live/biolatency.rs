// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! biolatency against requests that the tests make, on devices of their own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use io_uring::IoUring;
use nix::libc;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::Running;
use crate::support::assert_time;
use crate::support::command;
use crate::support::debug_disk::DebugDisk;
use crate::support::disk::Direct;
use crate::support::disk::Disk;
use crate::support::disk::Range;
use crate::support::disk::ZONE;
use crate::support::disk::append;
use crate::support::disk::file_that_appends;
use crate::support::disk::read_at_once;
use crate::support::go;
use crate::support::kernel;
use crate::support::neighbours::Neighbours;
use crate::support::scratch;
use crate::support::start;
use crate::support::text::assert_usage_errors;
use crate::support::text::text_run;

pub const CASES: &[Case] = &[
    Case::new("every request once, by disk and flags", by_disk_and_flags),
    Case::new("as many as the kernel counts", as_the_kernel_counts),
    Case::new("requests belong to who submitted them", owners),
    Case::new("merged requests keep their owner", merges),
    Case::new("queued time", queued).in_turn(),
    Case::new("nothing is lost between reports", intervals).in_turn(),
    Case::new("latency", latency).timed(),
    Case::new("requests that are done by halves", in_halves).in_turn(),
    Case::new("operations on zones", zones).in_turn(),
    Case::new("a request of three processes", three_owners).in_turn(),
    Case::new("a partition", partition).in_turn(),
    Case::new("text", text).in_turn(),
    Case::new("CSV", csv).in_turn(),
    Case::new("usage errors", usage_errors).in_turn(),
];

/// All reports together: how many requests of each kind a disk had. Checks that the buckets of
/// each histogram hold what it says.
fn counts(finished: &Finished, disk: &Disk) -> BTreeMap<String, u64> {
    skipped(finished);
    let mut all = BTreeMap::new();
    for record in finished.of("histogram") {
        assert_eq!((&record["name"], &record["unit"]), (&"latency_ns".into(), &"ns".into()));
        let count = record["count"].as_u64().expect("count");
        let buckets = record["buckets"].as_array().expect("buckets");
        let inside: u64 = buckets.iter().map(|b| b["count"].as_u64().expect("count")).sum();
        assert_eq!(inside, count, "{record}");
        assert!(buckets.last().is_some_and(|b| b["count"] != 0), "{record}");
        if record["key"]["disk"] == disk.name.as_str() {
            let flags = record["key"]["flags"].as_str().unwrap_or("any").to_string();
            *all.entry(flags).or_default() += count;
        }
    }
    all
}

/// How many requests the kernel itself kept from the tool at the most, as the tool says. Newer
/// kernels (seen on 7.2) let a task be taken from its CPU in the middle of a program, and skip the
/// program for everybody else there until it goes on: `missed`. Since 5.11 they refuse to insert
/// into a map when that interrupts another insertion on the same CPU, full or not: `map_full`, a
/// rarity. Not each of them is a request that is not counted: the twin of a program that was
/// skipped does its work, and what was not remembered when it was queued is when it is issued. So
/// where there are none the count is exact, and where there are some no more may be missing.
fn skipped(finished: &Finished) -> u64 {
    let end = finished.end();
    let refused = end["map_full"].as_u64().expect("map_full");
    assert!(finished.status.success() && end["lost"] == 0, "{end}");
    assert!(refused == 0 || kernel() != "5.10", "{end}");
    end["missed"].as_u64().unwrap_or(0) + refused
}

/// Asserts that the tool counted these requests, and no other.
fn assert_counts<const N: usize>(finished: &Finished, seen: [u64; N], expected: [u64; N]) {
    let skipped = skipped(finished);
    let (sum, all) = (seen.iter().sum::<u64>(), expected.iter().sum::<u64>());
    let fewer = seen.iter().zip(&expected).all(|(seen, expected)| seen <= expected);
    assert!(
        seen == expected || fewer && all - sum <= skipped,
        "{seen:?} instead of {expected:?}; {:?}; {}",
        finished.of("histogram").map(|r| (&r["key"], &r["count"])).collect::<Vec<_>>(),
        finished.end()
    );
}

/// The sum of the kinds whose name ends so.
fn ending(counts: &BTreeMap<String, u64>, op: &str) -> u64 {
    counts.iter().filter(|(name, _)| name.ends_with(op)).map(|(_, count)| count).sum()
}

fn number(n: usize) -> u64 {
    u64::try_from(n).expect("small")
}

/// Each operation so many times on one device, reads on another: exactly these, and with -d only
/// those of one device.
fn by_disk_and_flags() -> Outcome {
    let (one, two) = (Disk::any(), Disk::any());
    let both = start("biolatency", &["-D", "-F"]);
    let only = start("biolatency", &["-DF", "--disk", &two.name]);
    let queued = start("biolatency", &["-DFQ", "-d", one.path().to_str().expect("UTF-8")]);

    let mut direct = Direct::open(&one.path());
    (0..31).for_each(|i| direct.write(i));
    (0..47).for_each(|i| direct.read(i));
    (0..5).for_each(|_| direct.flush());
    (0..3).for_each(|i| direct.discard(i * 64, 64));
    let mut other = Direct::open(&two.path());
    (0..23).for_each(|i| other.read(i));

    let (both, only, queued) = (both.stop(), only.stop(), queued.stop());
    for (finished, disk) in [(&both, &one), (&queued, &one)] {
        let seen = counts(finished, disk);
        // Reads of a device file are Sync only on newer kernels; the rest never differed.
        let kinds = ["Idle-Sync-Write", "PreFlush-Flush", "Sync-Discard"];
        let [writes, flushes, discards] = kinds.map(|kind| seen.get(kind).copied().unwrap_or(0));
        let reads = ["Read", "Sync-Read"].iter().filter_map(|kind| seen.get(*kind)).sum();
        assert_counts(finished, [writes, flushes, discards, reads], [31, 5, 3, 47]);
        assert_eq!(seen.values().sum::<u64>(), writes + flushes + discards + reads, "{seen:?}");
    }
    assert_counts(&both, [ending(&counts(&both, &two), "Read")], [23]);
    assert_counts(&only, [ending(&counts(&only, &two), "Read")], [23]);
    for (finished, disk) in [(&only, &two), (&queued, &one)] {
        assert!(
            finished.of("histogram").all(|r| r["key"]["disk"] == disk.name.as_str()),
            "-d lets another disk through"
        );
    }
    Outcome::Passed
}

/// Buffered reads with readahead, buffered writes that are merged and written back, direct ones
/// from several threads at once, with a scheduler and without: as many as the kernel's own
/// statistics say, however many that is.
fn as_the_kernel_counts() -> Outcome {
    let disk = Disk::any();
    for scheduler in ["none", "mq-deadline"] {
        if !disk.scheduler(scheduler) {
            assert_eq!(scheduler, "mq-deadline", "every kernel can do without a scheduler");
            continue;
        }
        let plain = start("biolatency", &["-D", "-F", "-d", &disk.name]);
        let queued = start("biolatency", &["-D", "-F", "-Q", "-d", &disk.name]);
        let own = std::process::id().to_string();
        let owned = start("biolatency", &["-D", "-F", "-Q", "--pid", &own]);
        let (before, _) = disk.statistics();
        thread::scope(|scope| {
            for thread in 0..3 {
                let path = disk.path();
                scope.spawn(move || {
                    let mut direct = Direct::open(&path);
                    (0..60).for_each(|i| direct.write(thread * 100 + i));
                    (0..60).for_each(|i| direct.read(thread * 100 + i));
                });
            }
            scope.spawn(|| {
                let file = File::options().read(true).write(true).open(disk.path()).expect("disk");
                let mut data = vec![1; 1 << 20];
                for i in 8..24 {
                    file.write_all_at(&data, i << 20).expect("write");
                }
                // Not fdatasync: its flush, which has no data, is a write in the statistics.
                // SAFETY: takes no memory.
                let written = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, 7) };
                assert_eq!(written, 0, "sync_file_range");
                for i in 32..48 {
                    file.read_exact_at(&mut data, i << 20).expect("read");
                }
            });
        });
        let (after, _) = disk.statistics();
        let (plain, queued, owned) = (plain.stop(), queued.stop(), owned.stop());
        let expected = [after[0] - before[0], after[1] - before[1]];
        assert!(expected[0] > 180 && expected[1] > 180, "{expected:?}");
        for finished in [&plain, &queued] {
            let seen = counts(finished, &disk);
            assert_counts(finished, ["Read", "Write"].map(|op| ending(&seen, op)), expected);
        }
        // Dirty pages may be written back by the kernel before the flush: those are not ours.
        let seen = counts(&owned, &disk);
        assert_counts(&owned, [ending(&seen, "Read")], [expected[0]]);
        assert_counts(&owned, [ending(&seen, "Idle-Sync-Write")], [180]);
        assert!(ending(&seen, "Write") <= expected[1], "{seen:?}");
    }
    Outcome::Passed
}

/// A process that does nothing until [`go`], and then becomes `program`.
fn waiting(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a child")
}

fn shell(script: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).args(args);
    command
}

/// Two processes at the same device at the same time: each tool counts only those of the one it
/// was told, also where a kernel thread issues them and completions interrupt anybody.
fn owners() -> Outcome {
    let disk = Disk::any();
    // Where there is one: requests are then issued by a kernel thread.
    disk.scheduler("mq-deadline");
    let directory = scratch("owners");
    let reader = directory.join("bl-reader");
    symlink("/bin/dd", &reader).expect("link");
    let cgroup = Cgroup::new("bl");
    let path = disk.path();
    let path = path.to_str().expect("UTF-8");
    let (input, output) = (format!("if={path}"), format!("of={path}"));
    // Each has a place of its own: neighbours would be merged into one request of one of them.

    let dd = ["bs=4k", "status=none"];
    let mut by_pid = waiting(shell(
        "read go; exec dd \"$@\"",
        &[&dd[..], &["if=/dev/zero", &output, "oflag=direct", "conv=fsync,notrunc", "count=37"]]
            .concat(),
    ));
    let name = reader.to_str().expect("UTF-8");
    let mut by_comm = waiting(shell(
        "read go; exec \"$@\"",
        &[&[name], &dd[..], &[&input, "of=/dev/null", "iflag=direct", "skip=4000", "count=101"]]
            .concat(),
    ));
    let mut within = Command::new("sh");
    within.args(["-c", "echo $$ > \"$0/cgroup.procs\"; read go; exec dd \"$@\""]);
    within.arg(&cgroup.path).args(dd).args([
        &input,
        "of=/dev/null",
        "iflag=direct",
        "skip=8000",
        "count=59",
    ]);
    let mut within = waiting(within);

    let pid = by_pid.id().to_string();
    let parent = std::process::id().to_string();
    let tools: Vec<(Running, [u64; 3])> = [
        (vec!["--pid", &pid], [0, 37, 1]),
        (vec!["--pid", &pid, "-Q"], [0, 37, 1]),
        (vec!["--comm", "bl-read*"], [101, 0, 0]),
        (vec!["-c", cgroup.path.to_str().expect("UTF-8")], [59, 0, 0]),
        (vec!["--ppid", &parent, "-Q"], [160, 37, 1]),
        (vec!["--comm", "bl-nobody"], [0, 0, 0]),
    ]
    .into_iter()
    .map(|(args, expected)| {
        (start("biolatency", &[&["-D", "-F", "-d", &disk.name], &args[..]].concat()), expected)
    })
    .collect();

    for child in [&mut by_pid, &mut by_comm, &mut within] {
        go(child);
    }
    // This process is at it as well, and none of it counts.
    let mut direct = Direct::open(&disk.path());
    (0..50).for_each(|i| direct.read(12_000 + i));
    direct.flush();
    for child in [&mut by_pid, &mut by_comm, &mut within] {
        assert!(child.wait().expect("wait").success());
    }
    for (tool, expected) in tools {
        let finished = tool.stop();
        let seen = counts(&finished, &disk);
        let ops = ["Read", "Write", "Flush"].map(|op| ending(&seen, op));
        assert_counts(&finished, ops, expected);
    }
    Outcome::Passed
}

/// Reads that are submitted at once from the last block to the first are merged, each in front of
/// what is there: still the submitter's, still one request.
fn merges() -> Outcome {
    let disk = Disk::any();
    let mut ring = match IoUring::new(32) {
        Ok(ring) => ring,
        Err(error) => return Outcome::Skipped(format!("io_uring is not available: {error}")),
    };
    let direct = Direct::open(&disk.path());
    let own = std::process::id().to_string();
    let tools = [
        start("biolatency", &["-D", "-d", &disk.name, "--pid", &own]),
        start("biolatency", &["-D", "-d", &disk.name, "--pid", &own, "-Q"]),
        start("biolatency", &["-D", "-d", &disk.name, "-Q"]),
        start("biolatency", &["-D", "-d", &disk.name, "--comm", "bl-nobody"]),
    ];
    let (before, merged_before) = disk.statistics();
    for _ in 0..10 {
        read_at_once(&mut ring, &direct, &(0..32).rev().collect::<Vec<_>>());
    }
    let (after, merged_after) = disk.statistics();
    let (requests, merged) = (after[0] - before[0], merged_after[0] - merged_before[0]);
    assert_eq!(requests + merged, 320, "the kernel's own statistics");
    for (tool, expected) in tools.into_iter().zip([requests, requests, requests, 0]) {
        let finished = tool.stop();
        assert_counts(&finished, [ending(&counts(&finished, &disk), "any")], [expected]);
    }
    if merged == 0 {
        return Outcome::Skipped("this kernel merged none of them".into());
    }
    Outcome::Passed
}

/// The sum of latencies and their number.
fn total(finished: &Finished) -> (Duration, u64) {
    skipped(finished);
    finished.of("histogram").fold((Duration::ZERO, 0), |(sum, count), record| {
        let ns = record["sum"].as_u64().expect("sum");
        (sum + Duration::from_nanos(ns), count + record["count"].as_u64().expect("count"))
    })
}

/// A device that does one request at a time, and four requests at once: without -Q each takes its
/// own time, with -Q also that of those before it. Without a scheduler there is no queue to wait
/// in, but every request counts all the same.
fn queued() -> Outcome {
    const EACH: Duration = Duration::from_millis(60);
    let nanoseconds = EACH.as_nanos().to_string();
    let slow = [
        ("irqmode", "2"),
        ("completion_nsec", nanoseconds.as_str()),
        ("hw_queue_depth", "1"),
        ("submit_queues", "1"),
    ];
    let disk = match Disk::null(&slow) {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    for scheduler in ["mq-deadline", "none"] {
        assert!(disk.scheduler(scheduler), "{scheduler}");
        let issued = start("biolatency", &["-d", &disk.name]);
        let waited = start("biolatency", &["-Q", "-d", &disk.name]);
        let readers: Duration = thread::scope(|scope| {
            let readers = [0, 1, 2, 3].map(|thread| {
                let path = disk.path();
                scope.spawn(move || {
                    let mut direct = Direct::open(&path);
                    let started = Instant::now();
                    (0..3).for_each(|i| direct.read(thread * 100 + i));
                    started.elapsed()
                })
            });
            readers.into_iter().map(|reader| reader.join().expect("a reader")).sum()
        });
        let (issued, waited) = (issued.stop(), waited.stop());
        let ((device, issued_count), (all, waited_count)) = (total(&issued), total(&waited));
        assert_counts(&issued, [issued_count], [12]);
        assert_counts(&waited, [waited_count], [12]);
        if issued_count + waited_count < 24 {
            return Outcome::Skipped("the kernel skipped probes".into());
        }
        assert!(device >= EACH * 12 && all >= EACH * 12, "{scheduler}: {device:?}, {all:?}");
        // By the readers' own clocks, of which each waits for nothing but its requests.
        assert!(device <= readers && all <= readers, "{scheduler}: {all:?} of {readers:?}");
        if scheduler == "mq-deadline" {
            // The queue has twice the room of the device: all but the first wait for one other,
            // and the last perhaps for a part of it.
            assert!(all >= device + EACH * 10, "{device:?} of {all:?} at the device");
        }
    }
    Outcome::Passed
}

/// Two threads read without a pause over many reports: all reports together have as many as one
/// tool that only reports at the end.
fn intervals() -> Outcome {
    let disk = Disk::any();
    // Neighbours would be merged in a scheduler's queue.
    assert!(disk.scheduler("none"));
    let mut tool = start("biolatency", &["-D", "-d", &disk.name, "0.2"]);
    let witness = start("biolatency", &["-D", "-d", &disk.name]);
    let stop = AtomicBool::new(false);
    let reads: usize = thread::scope(|scope| {
        let readers = [0, 1].map(|thread| {
            let (stop, path) = (&stop, disk.path());
            scope.spawn(move || {
                let mut direct = Direct::open(&path);
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    direct.read(thread * 5000 + done % 1000);
                    done += 1;
                }
                done
            })
        });
        // A busy machine may not let the readers run in every interval.
        let filled = Cell::new(0);
        tool.wait_for(|record| {
            filled.set(filled.get() + u32::from(record["type"] == "histogram"));
            filled.get() == 10
        });
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().expect("a reader")).sum()
    });
    let (finished, witness) = (tool.stop(), witness.stop());
    let [all, seen] = [&finished, &witness].map(|run| ending(&counts(run, &disk), "any"));
    let missed = [&finished, &witness].map(skipped);
    assert!(all.abs_diff(seen) <= missed[0] + missed[1], "{all} and {seen}, missed {missed:?}");
    let reads = number(reads);
    // See the burst of biosnoop's tests.
    let unknown = if kernel() == "own" { 4 + reads / 50_000 } else { 0 };
    let unseen = missed[0] + unknown;
    assert!(all <= reads && reads - all <= unseen, "{all} of {reads}, missed {missed:?}");
    let reports: Vec<_> = finished.of("report").map(|r| r["report"].as_u64()).collect();
    let expected: Vec<_> = (0..number(reports.len())).map(Some).collect();
    assert_eq!(reports, expected);

    let counted = start("biolatency", &["-d", &disk.name, "0.1", "3"]).finish();
    assert_eq!((counted.of("report").count(), &counted.end()["reason"]), (3, &"count".into()));
    Outcome::Passed
}

/// A device that takes 20 ms for everything.
fn latency() -> Outcome {
    let disk = match Disk::null(&[("irqmode", "2"), ("completion_nsec", "20000000")]) {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let micro = start("biolatency", &["-d", &disk.name]);
    let milli = start("biolatency", &["-m", "-d", &disk.name]);
    let mut direct = Direct::open(&disk.path());
    let started = Instant::now();
    (0..10).for_each(|i| direct.read(i));
    let took = started.elapsed();
    // From 2^14 microseconds (16.4 ms) on, or 2^4 milliseconds.
    for (tool, lowest) in [(micro, 16_384_000), (milli, 16_000_000)] {
        let finished = tool.stop();
        let (sum, count) = total(&finished);
        assert_counts(&finished, [count], [10]);
        let least = Duration::from_millis(20) * u32::try_from(count).expect("small");
        assert_time(sum, least, took);
        let records: Vec<_> = finished.of("histogram").collect();
        assert_eq!(records.len(), 1);
        assert_eq!(records[0]["key"], serde_json::json!({"disk": null, "flags": null}));
        for bucket in records[0]["buckets"].as_array().expect("buckets") {
            let slow = bucket["ge"].as_u64().expect("ge") >= lowest;
            assert!(slow || bucket["count"] == 0, "{}", records[0]);
        }
    }
    Outcome::Passed
}

/// Requests of which the device does one half, and then is given the other half: each counts once,
/// and its time goes on until its last byte.
fn in_halves() -> Outcome {
    let disk = match DebugDisk::get() {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let own = std::process::id().to_string();
    let tools = [&[][..], &["-Q"]]
        .map(|args| start("biolatency", &[&["-d", &disk.name, "--pid", &own], args].concat()));
    let reads = disk.read_in_halves(6);
    for tool in tools {
        let finished = tool.stop();
        let (sum, count) = total(&finished);
        assert_eq!((count, skipped(&finished)), (6, 0), "{}", finished.end());
        let least = reads.iter().map(|read| read.least).sum();
        assert_time(sum, least, reads.iter().map(|read| read.waited).sum());
    }
    Outcome::Passed
}

/// Operations on zones and data that the device appends to one, each by its name.
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
    let start = || start("biolatency", &["-DF", "-d", &disk.name, "--pid", &own]);
    let appending = start();
    append(&file, 7);
    let appending = appending.stop();
    drop((file, mounted));
    // What flags a direct write has differs from file system to file system.
    assert_counts(&appending, [ending(&counts(&appending, &disk), "-ZoneAppend")], [7]);

    let direct = Direct::open(&disk.path());
    let managing = start();
    let steps = [
        (Range::RESET_ZONES, 2, 4),
        (Range::OPEN_ZONES, 2, 1),
        (Range::CLOSE_ZONES, 2, 1),
        (Range::FINISH_ZONES, 2, 2),
        (Range::RESET_ZONES, 0, 64),
    ];
    for (range, first, zones) in steps {
        direct.range(range, first * ZONE, zones * ZONE).expect("zones");
    }
    let managing = managing.stop();
    let seen = counts(&managing, &disk);
    let ops = ["Reset", "Open", "Close", "Finish", "ResetAll"];
    let each = ops.map(|op| seen.get(&format!("Sync-Zone{op}")).copied().unwrap_or(0));
    assert_counts(&managing, each, [4, 1, 1, 2, 1]);
    assert_eq!(seen.values().sum::<u64>(), each.iter().sum::<u64>(), "{seen:?}");
    Outcome::Passed
}

/// A request of three processes counts once, for the one that it was made for.
fn three_owners() -> Outcome {
    let mut neighbours = match Neighbours::new() {
        Ok(neighbours) => neighbours,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let tools = neighbours.pids().map(|pid| {
        let (disk, pid) = (&neighbours.disk.name, pid.to_string());
        [&[][..], &["-Q"]]
            .map(|args| start("biolatency", &[&["-D", "-d", disk, "--pid", &pid], args].concat()))
    });
    let all = start("biolatency", &["-D", "-d", &neighbours.disk.name]);
    neighbours.read();
    let all = all.stop();
    // Two more kept the disk busy.
    assert_counts(&all, [ending(&counts(&all, &neighbours.disk), "any")], [3]);
    for (tools, expected) in tools.into_iter().zip([1, 0, 0]) {
        for tool in tools {
            let finished = tool.stop();
            let seen = ending(&counts(&finished, &neighbours.disk), "any");
            assert_counts(&finished, [seen], [expected]);
        }
    }
    Outcome::Passed
}

fn partition() -> Outcome {
    let disk = Disk::any();
    let first = disk.partition(1, 2048, 4096);
    let second = disk.partition(2, 6144, 4096);
    let tools =
        [first.as_str(), &second, &disk.name].map(|name| start("biolatency", &["-D", "-d", name]));
    let open = |name: &str| Direct::open(&Path::new("/dev").join(name));
    let (mut one, mut two, mut all) = (open(&first), open(&second), open(&disk.name));
    // The last block of the first partition, the first of the second.
    (0..7).for_each(|i| one.read(511 - i));
    (0..11).for_each(|i| two.read(i));
    // Past the partitions, and inside of the first by way of the whole disk.
    (0..17).for_each(|i| all.read(2000 + i));
    (0..3).for_each(|i| all.read(256 + i));
    for (tool, expected) in tools.into_iter().zip([10, 11, 38]) {
        let finished = tool.stop();
        assert_counts(&finished, [ending(&counts(&finished, &disk), "any")], [expected]);
    }
    Outcome::Passed
}

/// A line for each bucket, with the key before it: the same as the JSON has.
fn csv() -> Outcome {
    let disk = Disk::any();
    let dd = |arguments: &str| {
        format!("dd {arguments} bs=4k status=none").replace("DISK", &disk.path().to_string_lossy())
    };
    let reads = dd("if=DISK of=/dev/null iflag=direct count=9");
    let writes = dd("if=/dev/zero of=DISK oflag=direct count=5");
    let script = format!("{reads}; {writes}");
    let args = ["-DF", "-d", &disk.name, "--output", "csv", "--", "sh", "-c", &script];
    let output = command("biolatency", &args).output().expect("biolatency");
    let stderr = String::from_utf8_lossy(&output.stderr);
    // Of what was lost or missed it would tell.
    assert!(output.status.success() && !stderr.contains("missed"), "{stderr}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().expect("a header").split(',').collect();
    assert!(header.ends_with(&["ge", "lt", "count"]), "{text}");
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    for line in lines {
        let values: Vec<&str> = line.split(',').collect();
        assert_eq!(values.len(), header.len(), "{text}");
        let value = |name: &str| {
            let at = header.iter().position(|field| *field == name);
            values[at.unwrap_or_else(|| panic!("no {name}: {text}"))]
        };
        let number = |name: &str| value(name).parse::<u64>().expect("a number");
        assert_eq!(value("disk"), disk.name);
        let op = if value("flags").ends_with("Read") { "read" } else { "write" };
        // Each bucket begins where the one before it ended.
        let end = ends.insert(value("flags").into(), number("lt"));
        assert!(number("lt") > number("ge"), "{text}");
        assert_eq!(number("ge"), end.unwrap_or(0), "{text}");
        *counts.entry(op.into()).or_default() += number("count");
    }
    assert_eq!(counts, BTreeMap::from([("read".into(), 9), ("write".into(), 5)]), "{text}");
    Outcome::Passed
}

fn text() -> Outcome {
    const BANNER: &str = "Tracing block device I/O... Hit Ctrl-C to end.";
    let disk = Disk::any();
    let mut direct = Direct::open(&disk.path());
    let head = |unit| format!("     {unit:<19} : count    distribution");
    let rows = |lines: &[String]| -> u64 {
        lines
            .iter()
            .filter(|line| line.contains(" -> "))
            .map(|row| {
                let count = row.split(':').nth(1).expect("a count").split('|').next();
                count.expect("a count").trim().parse::<u64>().expect("a number")
            })
            .sum()
    };

    let plain =
        text_run("biolatency", &["-d", &disk.name], 1, || (0..9).for_each(|i| direct.read(i)));
    assert_eq!(plain[..4], [BANNER, "", "", &head("usecs")], "{plain:?}");
    assert_eq!(rows(&plain), 9);

    let args = ["-TmeDF", "-d", &disk.name];
    let keyed = text_run("biolatency", &args, 1, || {
        (0..4).for_each(|i| direct.write(i));
        direct.flush();
    });
    assert_eq!(keyed[..2], [BANNER, ""]);
    let time: Vec<_> = keyed[2].split(':').map(str::len).collect();
    assert_eq!(time, [2, 2, 2], "{keyed:?}");
    for (kind, count) in [("Idle-Sync-Write", 4), ("PreFlush-Flush", 1)] {
        let title = format!("disk = {}\tflags = {kind}", disk.name);
        let at = keyed.iter().position(|line| *line == title);
        let at = at.unwrap_or_else(|| panic!("no {title:?} in {keyed:?}"));
        assert_eq!(keyed[at + 1], head("msecs"));
        let to = keyed[at + 1..].iter().position(|l| l.starts_with("disk") || l.is_empty());
        assert_eq!(rows(&keyed[at..at + 1 + to.expect("an end")]), count, "{keyed:?}");
    }
    let last = keyed.iter().rev().find(|line| !line.is_empty()).expect("a line");
    let words: Vec<&str> = last.split([' ', ',']).filter(|word| !word.is_empty()).collect();
    assert_eq!(words[..2], ["avg", "="], "{last}");
    assert_eq!(words[3..5], ["msecs", "total:"], "{last}");
    assert_eq!(words[6..], ["msecs", "count:", "5"], "{last}");

    // -D alone ends its line with the tab.
    let by_disk = text_run("biolatency", &["-D", "-d", &disk.name], 1, || direct.read(0));
    assert_eq!(by_disk[2], format!("disk = {}\t", disk.name), "{by_disk:?}");

    let json = text_run("biolatency", &["-j", "-d", &disk.name], 1, || direct.read(0));
    let types: Vec<_> = json
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect(line)["type"].clone())
        .collect();
    assert_eq!(types, ["ready", "histogram", "report", "end"], "{json:?}");
    Outcome::Passed
}

fn usage_errors() -> Outcome {
    assert_usage_errors(
        "biolatency",
        &[
            &["0"][..],
            &["abc"],
            &["-1"],
            &["5x"],
            &["1", "0"],
            &["1", "-2"],
            &["-d", "no-such-disk"],
            &["-d", ""],
            &["-d", "../block"],
        ],
    );
    Outcome::Passed
}
