// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! fsslower against operations of which each is known, and a file system that takes as long as it
//! is told to.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;
use serde_json::json;

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
use crate::support::losses::assert_counted;
use crate::support::runs;
use crate::support::start;
use crate::support::tried;
use crate::support::usage_error;

pub const CASES: &[Case] = &[
    Case::new("operations on ext4", || operations_on("ext4")),
    Case::new("operations on xfs", || operations_on("xfs")),
    Case::new("operations on btrfs", || operations_on("btrfs")),
    Case::new("thresholds and latency", slow),
    Case::new("filters", filters),
    Case::new("text columns", text).in_turn(),
    Case::new("csv", csv).in_turn(),
    Case::new("modules", modules).in_turn(),
    Case::new("usage errors", usage_errors).in_turn(),
    Case::new("what does not fit is counted", no_room).in_turn(),
];

/// Leaves a test where the tool does not run.
macro_rules! or_skip {
    ($kind:expr) => {
        load($kind);
        if let Err(reason) = runs("fsslower", &["-t", $kind]) {
            return Outcome::Skipped(reason);
        }
    };
}

fn shown<'a>(finished: &'a Finished, path: &Path) -> Vec<&'a Value> {
    let name = path.file_name().expect("a name").to_str().expect("UTF-8");
    finished.of("event").filter(|event| event["file"] == name).collect()
}

/// Each operation once, with what it did and to which file; what it is inside of as well. Reads that
/// go on after their submission last until they are done, and are their submitter's.
fn operations_on(kind: &'static str) -> Outcome {
    const READS: usize = 16;
    or_skip!(kind);
    let at = mounted(kind);
    let tid = gettid();
    let tool = start("fsslower", &["-t", kind, "-m", "0", "--tid", &tid.to_string()]);
    let begun = Instant::now();
    let (path, expected) = operations(&at, &format!("{kind}-slower"));
    let took = u64::try_from(begun.elapsed().as_nanos()).expect("short");
    let unwaited = at.join("unwaited");
    fs::write(&unwaited, vec![1; READS * 4096]).expect("write");
    fs::File::open(&unwaited).expect("open").sync_all().expect("fsync");
    read_unwaited(&unwaited, READS);
    let finished = tool.stop();
    finished.assert_clean();
    let reads: Vec<&Value> =
        shown(&finished, &unwaited).into_iter().filter(|event| event["op"] == "read").collect();
    let mut offsets: Vec<u64> =
        reads.iter().map(|event| event["offset_bytes"].as_u64().expect("offset")).collect();
    offsets.sort_unstable();
    let blocks: Vec<u64> = (0..READS as u64).map(|i| i * 4096).collect();
    assert_eq!(offsets, blocks, "{}", finished.end());
    for event in &reads {
        let process = (&event["tid"], &event["size_bytes"], &event["error"]);
        assert_eq!(process, (&tid.into(), &4096.into(), &Value::Null), "{event}");
    }
    // One that is done before its submission is over has not gone on; that is not the rule.
    assert!(reads.iter().any(|event| event["async"] == true), "{reads:?}");

    let events = shown(&finished, &path);
    let expected: Vec<Value> = expected
        .iter()
        .map(|(op, size, offset, error)| json!([kind, op, size, offset, error, false]))
        .collect();
    let seen: Vec<Value> = events
        .iter()
        .map(|event| {
            let field = |name: &str| event[name].clone();
            ["fs", "op", "size_bytes", "offset_bytes", "error", "async"].map(field).to_vec().into()
        })
        .collect();
    assert_eq!(seen, expected);
    let mut sum = 0;
    for event in &events {
        assert_eq!((&event["path"], &event["tid"]), (&Value::Null, &tid.into()), "{event}");
        let letters = json!({"read": "R", "write": "W", "open": "O", "fsync": "F", "getattr": "G"});
        assert_eq!(event["letter"], letters[event["op"].as_str().expect("op")], "{event}");
        sum += event["lat_ns"].as_u64().expect("latency");
    }
    // The sync in the write counts twice.
    let nested = events.iter().position(|event| event["size_bytes"] == 9).expect("the sync");
    let latency = |i: usize| events[i]["lat_ns"].as_u64().expect("latency");
    assert!(latency(nested) > 0 && latency(nested) < latency(nested + 1), "{events:?}");
    assert!(sum - latency(nested) <= took, "{sum} of {took}");
    Outcome::Passed
}

/// What takes long is shown with how long, what does not is left out.
fn slow() -> Outcome {
    const DELAY: Duration = Duration::from_millis(400);
    or_skip!("fuse");
    let fs = match Slow::mount(DELAY) {
        Ok(fs) => fs,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let tid = gettid().to_string();
    let all = start("fsslower", &["-t", "fuse", "-m", "0", "--tid", &tid]);
    let some = start("fsslower", &["-t", "fuse", "300.5", "--tid", &tid]);
    let mut took: Vec<(&str, u64)> = Vec::new();
    let mut timed = |op, act: &mut dyn FnMut()| {
        let begun = Instant::now();
        act();
        took.push((op, u64::try_from(begun.elapsed().as_nanos()).expect("short")));
    };
    let mut file = None;
    timed("open", &mut || {
        file = Some(OpenOptions::new().read(true).write(true).open(&fs.file).expect("open"));
    });
    let file = file.expect("open");
    timed("write", &mut || file.write_all_at(&[1; 100], 0).expect("write"));
    timed("read", &mut || file.read_exact_at(&mut [0; 512], 1024).expect("read"));
    timed("fsync", &mut || file.sync_all().expect("fsync"));
    timed("getattr", &mut || {
        fs::metadata(&fs.file).expect("stat");
    });
    drop(file);
    let delay = u64::try_from(DELAY.as_nanos()).expect("short");
    let latency = |event: &Value| event["lat_ns"].as_u64().expect("latency");

    let all = all.stop();
    all.assert_clean();
    let events = shown(&all, &fs.file);
    let names: Vec<_> = events.iter().map(|event| event["op"].as_str().expect("op")).collect();
    assert_eq!(names, took.iter().map(|(op, _)| *op).collect::<Vec<_>>());
    for (event, (op, took)) in events.iter().zip(&took) {
        assert!(latency(event) <= *took, "{took}: {event}");
        let is_slow = !["open", "write"].contains(op);
        assert!(!is_slow || latency(event) >= delay, "{event}");
    }

    const LEAST: u64 = 300_500_000;
    let some = some.stop();
    some.assert_clean();
    let events = shown(&some, &fs.file);
    assert!(events.iter().all(|event| latency(event) > LEAST), "{events:?}");
    for (op, took) in &took {
        let is_shown = events.iter().any(|event| event["op"] == *op);
        let is_slow = !["open", "write"].contains(op);
        // The quick ones only where the machine was slow.
        assert!(if is_slow { is_shown } else { !is_shown || *took > LEAST }, "{op}: {took}");
    }
    Outcome::Passed
}

/// The process that asks for the operation counts, and nobody else.
fn filters() -> Outcome {
    or_skip!("ext4");
    let path = mounted("ext4").join("filters");
    fs::write(&path, "text").expect("write");
    let mut shell = Command::new("sh");
    shell.args(["-c", "read go; exec cat \"$1\"", "sh"]).arg(&path);
    let mut cat = shell.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("sh");
    let pid = cat.id();
    let tool = start("fsslower", &["-t", "ext4", "-m", "0", "-p", &pid.to_string()]);
    assert_eq!(fs::read_to_string(&path).expect("read"), "text");
    drop(cat.stdin.take().expect("piped").write_all(b"\n"));
    assert!(cat.wait().expect("wait").success());
    let finished = tool.stop();
    finished.assert_clean();
    let events = shown(&finished, &path);
    assert!(events.iter().all(|event| event["pid"] == pid && event["comm"] == "cat"), "{events:?}");
    let count = |op: &str| events.iter().filter(|event| event["op"] == op).count();
    // It reads until there is nothing left.
    assert_eq!((count("open"), count("read"), count("write")), (1, 2, 0), "{events:?}");
    Outcome::Passed
}

/// The lines of text that a tool writes while `act` runs.
fn text_run(args: &[&str], lines_before: usize, act: impl FnOnce()) -> Vec<String> {
    let mut child = command("fsslower", args).stdout(Stdio::piped()).spawn().expect("fsslower");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut text = String::new();
    // The header comes when everything is attached.
    for _ in 0..lines_before {
        stdout.read_line(&mut text).expect("the header");
    }
    act();
    let pid = i32::try_from(child.id()).expect("pid");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("kill");
    stdout.read_to_string(&mut text).expect("text");
    assert!(child.wait().expect("wait").success());
    text.lines().map(String::from).collect()
}

fn text() -> Outcome {
    or_skip!("ext4");
    let at = mounted("ext4");
    let tid = gettid().to_string();
    let mut expected = Vec::new();
    let args = ["-t", "ext4", "-m", "0", "-d", "3000", "--tid", &tid];
    let lines = text_run(&args, 2, || {
        expected = operations(&at, "ext4-text").1;
    });
    assert_eq!(lines[0], "Tracing FS operations for 3000 secs.");
    assert_eq!(lines[1], "TIME     COMM             PID     T BYTES   OFF_KB   LAT(ms) FILENAME");
    let letters = json!({"read": "R", "write": "W", "open": "O", "fsync": "F", "getattr": "G"});
    let comm = fs::read_to_string("/proc/thread-self/comm").expect("comm");
    assert_eq!(lines.len() - 2, expected.len(), "{lines:?}");
    for (line, (op, size, offset, _)) in lines[2..].iter().zip(&expected) {
        let letter = letters[op].as_str().expect("a letter");
        let size = size.map_or("LL_MAX".into(), |size| size.to_string());
        let middle = format!(
            " {:<16} {:<7} {letter} {size:<7} {:<8} ",
            comm.trim_end(),
            std::process::id(),
            offset / 1024
        );
        let (time, rest) = line.split_at(8);
        assert_eq!(time.split(':').map(str::len).collect::<Vec<_>>(), [2, 2, 2], "{line}");
        let rest = rest.strip_prefix(&middle).unwrap_or_else(|| panic!("{line}\n{middle}"));
        let (latency, name) = rest.trim_start().split_once(' ').expect("a name");
        assert_eq!(latency.split('.').nth(1).map(str::len), Some(2), "{line}");
        assert_eq!(name, "a-name-of-more-than-thirty-one-bytes-\\x1b[2J-and-more");
    }
    // Where nothing is traced, the threshold that would be taken is shown all the same.
    let saved = crate::support::scratch("slower").join("saved");
    fs::write(&saved, r#"{"type":"ready","schema":1,"tool":"fsslower"}"#).expect("write");
    let output = command("fsslower", &["--from"]).arg(&saved).output().expect("run");
    let said = String::from_utf8_lossy(&output.stdout);
    let banner = "Tracing FS operations slower than 10 ms... Hit Ctrl-C to end.";
    assert_eq!(said.lines().next(), Some(banner), "{output:?}");
    Outcome::Passed
}

fn csv() -> Outcome {
    or_skip!("ext4");
    let path = mounted("ext4").join("csv");
    fs::write(&path, "text").expect("write");
    let tid = gettid().to_string();
    let fields = "pid,op,size_bytes,offset_bytes,file,path";
    let args = ["-t", "ext4", "-Fc", "-m", "0", "--tid", &tid, "--fields", fields];
    let lines = text_run(&args, 1, || {
        let file = fs::File::open(&path).expect("open");
        assert_eq!(file.read_at(&mut [0; 9], 1).expect("read"), 3);
    });
    let (own, path) = (std::process::id(), path.display());
    let expected = [
        fields.to_string(),
        format!("{own},open,0,0,csv,{path}"),
        format!("{own},read,3,1,csv,{path}"),
    ];
    assert_eq!(lines, expected);
    Outcome::Passed
}

/// Each function that is there is hooked; what is not there is said.
fn modules() -> Outcome {
    or_skip!("ext4");
    // By its other name, as a link would call it.
    let alias = start("ext4slower", &["-m", "0", "--comm", "no-such-command"]);
    assert_eq!(alias.ready["tool"], "fsslower");
    alias.stop().assert_clean();

    if load("nfs") && load("nfsv4") {
        let tool = start("fsslower", &["-t", "nfs", "--comm", "no-such-command"]);
        let programs = tool.ready["programs"].to_string();
        for role in [
            "read_enter",
            "write_enter",
            "open_exit",
            "open_too_exit",
            "fsync",
            "getattr",
            "commit",
        ] {
            assert!(programs.contains(&format!("\"{role}")), "{role}: {programs}");
        }
        tool.stop().assert_clean();
    }

    let gone = Command::new("modprobe").args(["-rq", "f2fs"]).status();
    if !gone.is_ok_and(|status| status.success()) || Path::new("/sys/module/f2fs").exists() {
        return Outcome::Skipped("f2fs cannot be unloaded here".into());
    }
    let said = tried("fsslower", &["-t", "f2fs"]).expect_err("f2fs is not loaded");
    // In the order in which this kernel tries them.
    let ways = ["fexit, kprobe", "kprobe, fexit"];
    let told = ways.map(|ways| format!("{ways}: the module f2fs is not loaded"));
    assert!(told.iter().any(|told| said.ends_with(told)), "{said}");
    Outcome::Passed
}

fn usage_errors() -> Outcome {
    for args in [
        &[][..],
        &["-t", "ext5"],
        &["-t", "ext4", "-m", "-1"],
        &["-t", "ext4", "-m", "x"],
        &["-t", "ext4", "-m", ""],
        &["-t", "ext4", "5", "-m", "5"],
        &["-t", "ext4", "5", "6"],
        &["-t", "ext4", "-d", "0"],
    ] {
        usage_error("fsslower", args, "");
    }
    Outcome::Passed
}

/// A buffer too small: see [`assert_counted`].
fn no_room() -> Outcome {
    or_skip!("ext4");
    let path = mounted("ext4").join("no-room");
    fs::write(&path, "text").expect("write");
    let file = File::open(&path).expect("a file");
    let tid = gettid().to_string();
    assert_counted("fsslower", &["-t", "ext4", "-m", "0", "--tid", &tid], 200, || {
        (0..200).for_each(|_| assert_eq!(file.read_at(&mut [0; 4], 0).expect("read"), 4));
    });
    Outcome::Passed
}
