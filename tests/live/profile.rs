// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! profile against a program whose functions take known shares of the time.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use crate::support::Case;
use crate::support::Cgroup;
use crate::support::Finished;
use crate::support::Outcome;
use crate::support::burner::Burning;
use crate::support::burner::burner;
use crate::support::burner::names;
use crate::support::burner::stripped;
use crate::support::command;
use crate::support::disk::Direct;
use crate::support::disk::Disk;
use crate::support::idle_ticks;
use crate::support::kernel;
use crate::support::pinned::Pinned;
use crate::support::scratch;
use crate::support::start;
use crate::support::usage_error;

pub const CASES: &[Case] = &[
    Case::alone("shares of the time", shares),
    Case::alone("a period instead of a frequency", period),
    Case::new("only one kind of stack", one_kind),
    Case::new("filters", filters),
    Case::alone("idle CPUs", idle),
    Case::new("text and folded", text).in_turn(),
    Case::new("images and profiles", files).in_turn(),
    Case::new("storage that is too small", small_storage).in_turn(),
    Case::new("usage", usage).in_turn(),
    Case::alone("names from a perf map", perf_map),
    Case::alone("names in another mount namespace", namespace),
    Case::alone("names of a process that has ended", ended),
    Case::alone("names of a kernel module", module),
    Case::new("hostile perf maps", hostile_maps).in_turn(),
    Case::new("a file that is cut short", cut_short).in_turn(),
    Case::new("hidden kernel addresses", hidden).in_turn(),
    Case::alone("a CPU that comes online", hotplug).in_turn(),
];

/// Samples in the program itself by the name of the leaf.
fn leaves(finished: &Finished, pid: u32) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let in_program = |row: &&Value| row["pid"] == pid && !row["kernel_stack"][0].is_object();
    for row in finished.of("row").filter(in_program) {
        let leaf = names(&row["user_stack"]).first().cloned().unwrap_or_default();
        *all.entry(leaf).or_default() += row["samples"].as_u64().expect("samples");
    }
    all
}

/// At least 95 of 100 leaves have a name, and `red` and `blue` stand 3 to 1, within four and a half
/// standard deviations, which chance alone exceeds once in 100,000 times. Returns how many samples
/// there were.
#[allow(clippy::cast_precision_loss)]
fn assert_shares(leaves: &BTreeMap<String, u64>, red: &str, blue: &str) -> u64 {
    let of = |name: &str| leaves.get(name).copied().unwrap_or(0);
    let total: u64 = leaves.values().sum();
    assert!(total >= 50, "too few samples: {leaves:?}");
    assert!(of("?") * 20 <= total, "leaves without a name: {leaves:?}");
    let burnt = of(red) + of(blue);
    assert!(burnt * 10 >= total * 9, "the program does nothing else: {leaves:?}");
    let n = burnt as f64;
    let sigma = (n * 0.75 * 0.25).sqrt();
    let off = (of(red) as f64 - 0.75 * n).abs();
    assert!(off <= 4.5 * sigma + 1.0, "{off} from three quarters, sigma {sigma}: {leaves:?}");
    total
}

/// Seconds that a process has had on CPUs.
#[allow(clippy::cast_precision_loss)]
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let (_, rest) = stat.rsplit_once(')').expect("comm");
    let words: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |i: usize| words[i].parse::<f64>().expect("ticks");
    (ticks(11) + ticks(12)) / 100.0
}

fn sample(args: &[&str]) -> Finished {
    let finished = start("profile", args).finish();
    finished.assert_clean();
    finished
}

fn shares() -> Outcome {
    let burning = Burning::new(&["burn"]);
    let pid = burning.pid();
    let before = cpu_seconds(pid);
    let tool = start("profile", &["-F", "199", "-p", &pid.to_string(), "4"]);
    let ready = cpu_seconds(pid);
    let finished = tool.finish();
    finished.assert_clean();
    let end = cpu_seconds(pid);
    let total = assert_shares(&leaves(&finished, pid), "burn_red", "burn_blue");
    // The tool begins between the first and the second look at the process, which can be far apart,
    // and ends before the third.
    #[allow(clippy::cast_precision_loss)]
    let (most, least, total) = ((end - before) * 199.0, (end - ready) * 199.0, total as f64);
    assert!(total <= most + 3.0 * most.sqrt(), "{total} of {most}");
    assert!(total >= least * 0.5 - 3.0 * least.sqrt(), "{total} of {least}");
    for row in finished.of("row") {
        assert_eq!((&row["pid"], &row["comm"]), (&pid.into(), &"burner".into()));
        let expected = if Path::new("/sys/bus/event_source/devices/cpu").exists() {
            "cycles"
        } else {
            "cpu-clock"
        };
        assert_eq!(row["event"], expected);
        let user = names(&row["user_stack"]);
        if user.first().is_some_and(|leaf| leaf.starts_with("burn_")) {
            assert!(user.iter().any(|name| name == "main"), "{row}");
            assert_eq!(row["user_stack"][0]["module"], burner().to_str().expect("UTF-8"));
        }
    }
    // Largest first.
    let counts: Vec<u64> = finished.of("row").filter_map(|row| row["samples"].as_u64()).collect();
    assert!(counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
    Outcome::Passed
}

fn period() -> Outcome {
    let burning = Burning::new(&["burn"]);
    let pid = burning.pid().to_string();
    // Five milliseconds of the clock, or as many cycles: at most a few times as often.
    let finished = sample(&["-c", "5000000", "-p", &pid, "2"]);
    assert_shares(&leaves(&finished, burning.pid()), "burn_red", "burn_blue");
    let ascending = sample(&["-F", "99", "--sort", "ascending", "-p", &pid, "1"]);
    let counts: Vec<u64> = ascending.of("row").filter_map(|row| row["samples"].as_u64()).collect();
    assert!(counts.is_sorted(), "{counts:?}");
    Outcome::Passed
}

fn one_kind() -> Outcome {
    let burning = Burning::new(&["burn"]);
    let pid = burning.pid().to_string();
    let user = sample(&["-U", "-F", "99", "-p", &pid, "1"]);
    assert!(user.of("row").count() > 0);
    assert!(user.of("row").all(|row| row["kernel_stack"].is_null()));
    assert!(user.of("row").any(|row| names(&row["user_stack"]).contains(&"burn_red".into())));
    let kernel = sample(&["-K", "-F", "99", "-p", &pid, "1"]);
    assert!(kernel.of("row").count() > 0);
    assert!(kernel.of("row").all(|row| row["user_stack"].is_null()));
    // One frame is all that is taken.
    let flat = sample(&["--perf-max-stack-depth", "1", "-F", "99", "-p", &pid, "1"]);
    assert!(flat.of("row").count() > 0);
    for row in flat.of("row") {
        assert!(names(&row["user_stack"]).len() <= 1 && names(&row["kernel_stack"]).len() <= 1);
    }
    Outcome::Passed
}

fn filters() -> Outcome {
    let one = Burning::new(&["burn"]);
    let other = Burning::new(&["burn"]);
    let (a, b) = (one.pid(), other.pid());
    let pids = |finished: &Finished| -> Vec<u64> {
        let mut pids: Vec<u64> =
            finished.of("row").map(|row| row["pid"].as_u64().expect("pid")).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    };
    let both = sample(&["-F", "99", "-p", &format!("{a},{b}"), "1"]);
    let mut expected = [u64::from(a), u64::from(b)];
    expected.sort_unstable();
    assert_eq!(pids(&both), expected);
    assert_eq!(pids(&sample(&["-F", "99", "-L", &a.to_string(), "1"])), [u64::from(a)]);
    assert_eq!(
        pids(&sample(&["-F", "99", "-p", &a.to_string(), "-L", &b.to_string(), "1"])),
        [0u64; 0]
    );

    let cgroup = Cgroup::new("profile");
    let program = burner().to_str().expect("UTF-8");
    let within = Burning::start(&mut cgroup.command(program, &["burn"]));
    let apart = Burning::start(Command::new("unshare").args(["--mount", program, "burn"]));
    let id = fs::metadata(&cgroup.path).expect("cgroup").ino();
    let namespace = fs::metadata(format!("/proc/{}/ns/mnt", apart.pid())).expect("namespace").ino();
    let namespace = u32::try_from(namespace).expect("32 bits");
    match (Pinned::new(&id.to_ne_bytes()), Pinned::new(&namespace.to_ne_bytes())) {
        (Ok(cgroups), Ok(namespaces)) => {
            let of =
                |option: &str, map: &Pinned| pids(&sample(&["-F", "99", option, &map.path(), "1"]));
            assert_eq!(of("--cgroupmap", &cgroups), [u64::from(within.pid())]);
            assert_eq!(of("--mntnsmap", &namespaces), [u64::from(apart.pid())]);
        }
        (Err(reason), _) | (_, Err(reason)) => return Outcome::Skipped(reason),
    }
    Outcome::Passed
}

fn idle() -> Outcome {
    let finished = sample(&["-F", "49", "1"]);
    assert!(finished.of("row").all(|row| row["pid"] != 0), "idle CPUs are not asked for");
    // Both of two CPUs, or the one, are idle for much of a second.
    let before = idle_ticks();
    let finished = sample(&["-I", "-F", "49", "2"]);
    let idle: Vec<&Value> = finished.of("row").filter(|row| row["pid"] == 0).collect();
    let mut comms: Vec<&str> = idle.iter().filter_map(|row| row["comm"].as_str()).collect();
    comms.sort_unstable();
    comms.dedup();
    let cpus = thread::available_parallelism().expect("CPUs").get();
    assert!(comms.iter().all(|comm| comm.starts_with("swapper/")), "{comms:?}");
    if comms.is_empty() && idle_ticks() == before {
        return Outcome::Skipped("no CPU was ever idle".into());
    }
    assert!(!comms.is_empty() && comms.len() <= cpus, "{comms:?}");
    let only = sample(&["-I", "-C", "0", "-F", "49", "2"]);
    let other: Vec<&Value> =
        only.of("row").filter(|row| row["pid"] == 0 && row["comm"] != "swapper/0").collect();
    assert!(other.is_empty(), "{other:?}");
    Outcome::Passed
}

/// What the tool writes as text.
fn shown(args: &[&str]) -> String {
    let output = command("profile", args).output().expect("run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn text() -> Outcome {
    let burning = Burning::new(&["burn"]);
    let pid = burning.pid().to_string();
    let plain = shown(&["-F", "199", "-p", &pid, "1"]);
    let banner = format!("Sampling at 199 Hertz of PID [{pid}] by user + kernel for 1 secs.\n");
    assert!(plain.starts_with(&banner), "{plain}");
    let whose = format!("    -                burner ({pid})\n        ");
    assert!(plain.contains("    burn_red\n") && plain.contains(&whose), "{plain}");
    assert!(plain.ends_with("\n\n") && !plain.contains("    --\n"), "{plain}");

    let verbose = shown(&["-v", "-F", "199", "-p", &pid, "1"]);
    let leaf = verbose.lines().find(|line| line.contains("burn_red+0x")).expect("burn_red");
    let module = format!("({}+0x", burner().display());
    assert!(leaf.starts_with("    #0  0x0000") && leaf.contains(&module), "{leaf}");
    let offset = shown(&["-s", "-F", "199", "-p", &pid, "1"]);
    let module = format!("({})", burner().display());
    let has = |text: &str, start: &str, end: &str| {
        text.lines().any(|line| line.starts_with(start) && line.ends_with(end))
    };
    assert!(has(&offset, "    burn_red+0x", &module), "{offset}");
    let address = shown(&["-A", "-F", "199", "-p", &pid, "1"]);
    assert!(has(&address, "    0x0000", " burn_red"), "{address}");

    let folded = shown(&["-f", "-U", "-F", "199", "-p", &pid, "1"]);
    assert!(folded.lines().all(|line| line.starts_with("burner")), "{folded}");
    let line = folded.lines().find(|line| line.contains(";burn_red ")).expect("burn_red");
    let (path, count) = line.rsplit_once(' ').expect("a count");
    assert!(path.contains(";main;") && count.parse::<u64>().is_ok(), "{line}");

    // A system call is in both parts.
    let mut reader = Burning::start(
        Command::new("sh").args(["-c", "echo ready; exec dd if=/dev/zero of=/dev/null bs=1M"]),
    );
    let pid = reader.pid().to_string();
    let delimited = shown(&["-d", "-F", "199", "-p", &pid, "1"]);
    assert!(delimited.contains("    --\n"), "{delimited}");
    let folded = shown(&["-f", "-d", "-a", "-F", "199", "-p", &pid, "1"]);
    let line = folded.lines().find(|line| line.contains(";-;")).expect("both parts");
    let (path, _) = line.rsplit_once(' ').expect("a count");
    assert!(path.starts_with("dd;") && path.ends_with("_[k]"), "{line}");
    reader.child.kill().expect("kill");

    let csv = shown(&["-o", "csv", "-F", "199", "-p", &burning.pid().to_string(), "1"]);
    let header = "ts,boot_ns,pid,comm,samples,kernel_stack,user_stack,event\n";
    assert!(csv.starts_with(header) && csv.contains("burn_red"), "{csv}");
    let table = shown(&["--fields", "pid,samples", "-F", "199", "-p", &pid, "0.2"]);
    assert!(!table.contains("    -  "), "{table}");
    Outcome::Passed
}

/// Reads the varint at `at`.
fn varint(bytes: &[u8], at: &mut usize) -> u64 {
    let mut n = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[*at];
        *at += 1;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return n;
        }
    }
    unreachable!("shifts do not end")
}

/// The fields of a protobuf message: numbers, and bytes.
fn message(bytes: &[u8]) -> Vec<(u64, u64, &[u8])> {
    let mut fields = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let key = varint(bytes, &mut at);
        match key & 7 {
            0 => fields.push((key >> 3, varint(bytes, &mut at), &bytes[..0])),
            2 => {
                let size = usize::try_from(varint(bytes, &mut at)).expect("size");
                fields.push((key >> 3, 0, &bytes[at..at + size]));
                at += size;
            }
            kind => panic!("wire type {kind}"),
        }
    }
    fields
}

fn packed(bytes: &[u8]) -> Vec<u64> {
    let mut at = 0;
    let mut numbers = Vec::new();
    while at < bytes.len() {
        numbers.push(varint(bytes, &mut at));
    }
    numbers
}

fn files() -> Outcome {
    let burning = Burning::new(&["burn"]);
    let pid = burning.pid();
    let directory = scratch("profile");
    let at = |name: &str| directory.join(name).to_str().expect("UTF-8").to_string();
    let (svg, pprof) = (at("flames.svg"), at("profile.pb.gz"));
    let args = ["-F", "199", "-p", &pid.to_string(), "--svg", &svg, "--pprof", &pprof, "1"];
    let finished = sample(&args);
    let leaves = leaves(&finished, pid);
    let total = finished.of("row").filter_map(|row| row["samples"].as_u64()).sum::<u64>();
    let red = leaves["burn_red"];

    let image = fs::read_to_string(&svg).expect("svg");
    let title = format!("<title>all ({total} samples, 100.00%)</title>");
    assert!(image.contains(&title), "{title}");
    // A box for each of the callers that a stack was followed to.
    let boxes = image.split("<title>burn_red (").skip(1);
    let shown: u64 = boxes.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum();
    let through = |row: &&Value| names(&row["user_stack"]).contains(&"burn_red".into());
    let samples = finished.of("row").filter(through).map(|row| row["samples"].as_u64());
    assert_eq!(Some(shown), samples.sum());
    assert!(image.trim_end().ends_with("</svg>"));

    // Undone by programs that are not ours: gzip, and the decoder above.
    let unpacked = Command::new("gzip").args(["-dc", &pprof]).output().expect("gzip");
    assert!(unpacked.status.success());
    let profile = message(&unpacked.stdout);
    let all = |field: u64| profile.iter().filter(move |(of, ..)| *of == field);
    let strings: Vec<&str> =
        all(6).map(|(_, _, text)| std::str::from_utf8(text).expect("UTF-8")).collect();
    assert_eq!(strings[0], "");
    let number = |bytes: &[u8], field: u64| {
        message(bytes).iter().find(|(of, ..)| *of == field).map_or(0, |(_, n, _)| *n)
    };
    let named = |place: u64| strings[usize::try_from(place).expect("place")];
    let functions: BTreeMap<u64, &str> =
        all(5).map(|(_, _, bytes)| (number(bytes, 1), named(number(bytes, 2)))).collect();
    let locations: BTreeMap<u64, &str> = all(4)
        .map(|(_, _, bytes)| {
            let fields = message(bytes);
            let line = fields.iter().find(|(of, ..)| *of == 4).expect("a line").2;
            (number(bytes, 1), functions[&number(line, 1)])
        })
        .collect();
    let mut counted: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, _, bytes) in all(2) {
        let fields = message(bytes);
        let path = packed(fields.iter().find(|(of, ..)| *of == 1).expect("path").2);
        let values = packed(fields.iter().find(|(of, ..)| *of == 2).expect("values").2);
        assert_eq!(values[1], values[0] * (1_000_000_000 / 199));
        *counted.entry(locations[&path[0]]).or_default() += values[0];
    }
    assert_eq!((counted.values().sum::<u64>(), counted["burn_red"]), (total, red), "{counted:?}");
    let kinds: Vec<(&str, &str)> =
        all(1).map(|(_, _, kind)| (named(number(kind, 1)), named(number(kind, 2)))).collect();
    assert_eq!(kinds, [("samples", "count"), ("cpu", "nanoseconds")]);
    Outcome::Passed
}

/// What does not fit is counted, said, and marked; nothing of it is simply gone.
fn small_storage() -> Outcome {
    let burning = Burning::new(&["burn"]);
    let pid = burning.pid().to_string();
    let args = ["--stack-storage-size", "1", "-F", "199", "-p", &pid, "1"];
    let finished = start("profile", &args).finish();
    assert!(finished.end()["map_full"].as_u64() > Some(0), "{}", finished.end());
    let missed = finished
        .of("row")
        .filter(|row| row["user_stack"].is_null() || row["kernel_stack"].is_null());
    assert!(missed.count() > 0);
    assert!(finished.stderr.contains("Consider increasing --stack-storage-size."));
    let text = command("profile", &args).output().expect("run");
    assert!(String::from_utf8_lossy(&text.stdout).contains("    [Missed User Stack]\n"));
    let args = ["--hash-storage-size", "1", "-F", "199", "-p", &pid, "1"];
    let finished = start("profile", &args).finish();
    assert!(finished.of("row").count() == 1 && finished.end()["map_full"].as_u64() > Some(0));
    Outcome::Passed
}

fn usage() -> Outcome {
    for (args, word) in [
        (&["0"][..], "seconds"),
        (&["-F", "0"], "frequency"),
        (&["-F", "99", "-c", "5000"], "count"),
        (&["-U", "-K"], "only"),
        (&["-C", "4095"], "4095"),
        (&["1", "--duration", "2"], "duration"),
        (&["--svg", "/no/such/directory/x"], "/no/such/directory/x"),
        (&["--pprof", "/no/such/directory/x"], "/no/such/directory/x"),
        (&["--perf-max-stack-depth", "1000"], "perf_event_max_stack"),
    ] {
        usage_error("profile", args, word);
    }
    Outcome::Passed
}

fn perf_map() -> Outcome {
    let program = stripped("jit");
    let burning = Burning::start(Command::new(&program).arg("map"));
    let pid = burning.pid();
    let finished = sample(&["-U", "-F", "199", "-p", &pid.to_string(), "2"]);
    let found = leaves(&finished, pid);
    let _ = fs::remove_file(format!("/tmp/perf-{pid}.map"));
    assert_shares(&found, "jit_red", "jit_blue");
    Outcome::Passed
}

/// The program lies in a file system that only its own mount namespace has.
fn namespace() -> Outcome {
    let directory = scratch("namespace");
    let script = "mount -t tmpfs none \"$1\" && cp \"$2\" \"$1/hidden\" && exec \"$1/hidden\" burn";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).args([directory.as_path(), burner()]);
    let burning = Burning::start(&mut command);
    assert!(!directory.join("hidden").exists(), "nobody else sees it");
    let pid = burning.pid();
    let finished = sample(&["-U", "-F", "199", "-p", &pid.to_string(), "2"]);
    assert_shares(&leaves(&finished, pid), "burn_red", "burn_blue");
    Outcome::Passed
}

/// One that was there before the tool, one that began after it, and one that began after it in a
/// file that is deleted before the report. A file that is gone can be opened as long as the process
/// lives, so the tool has to get a CPU in time: some kernels let it wait for seconds beside three
/// that compute.
fn ended() -> Outcome {
    let before = Burning::new(&["burn"]);
    before.give_way();
    let tool = start("profile", &["-U", "-F", "499"]);
    let rounds = if kernel() == "own" { "10000" } else { "3000" };
    let after = Burning::new(&["burn", rounds]);
    after.give_way();
    let deleted = scratch("deleted").join("deleted");
    fs::copy(burner(), &deleted).expect("copy");
    let gone = Burning::start(Command::new(&deleted).args(["burn", rounds]));
    gone.give_way();
    fs::remove_file(&deleted).expect("remove");
    let pids = [before.pid(), after.pid(), gone.pid()];
    after.finish();
    gone.finish();
    drop(before);
    let finished = tool.stop();
    finished.assert_clean();
    for pid in pids {
        assert_shares(&leaves(&finished, pid), "burn_red", "burn_blue");
    }
    Outcome::Passed
}

/// Frames in the range of addresses that a module has, as the kernel tells it, are in that module
/// and have names.
fn module() -> Outcome {
    // One that keeps what is written copies it, in functions of its own.
    let settings = [("irqmode", "0"), ("queue_mode", "2"), ("memory_backed", "1")];
    let disk = match Disk::null(&settings) {
        Ok(disk) => disk,
        Err(reason) => return Outcome::Skipped(reason),
    };
    let modules = fs::read_to_string("/proc/modules").expect("modules");
    let line = modules.lines().find(|line| line.starts_with("null_blk ")).expect("null_blk");
    let words: Vec<&str> = line.split_whitespace().collect();
    let size: u64 = words[1].parse().expect("size");
    let base = u64::from_str_radix(words[5].trim_start_matches("0x"), 16).expect("base");
    assert!(base > 0, "{line}");

    // Not of one process: a scheduler may leave it to a worker to hand requests to the driver.
    let tool = start("profile", &["-K", "-F", "999"]);
    let mut device = Direct::open(&disk.path());
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        for block in 0..1000 {
            device.write(block);
            device.read(block);
        }
    }
    let finished = tool.stop();
    finished.assert_clean();
    let (mut inside, mut named) = (0u64, 0u64);
    for row in finished.of("row") {
        let samples = row["samples"].as_u64().expect("samples");
        for frame in row["kernel_stack"].as_array().expect("frames") {
            let addr: u64 = frame["addr"].as_str().expect("addr").parse().expect("a number");
            if (base..base + size).contains(&addr) {
                inside += samples;
                let is_named = frame["module"] == "null_blk" && frame["sym"].is_string();
                named += if is_named { samples } else { 0 };
            }
        }
    }
    assert!(inside > 0, "the driver was never seen");
    assert!(named * 20 >= inside * 19, "{named} of {inside}");
    Outcome::Passed
}

/// What a hostile process puts where a perf map is expected: the tool neither hangs nor tells what
/// is in a file that the process may not read.
fn hostile_maps() -> Outcome {
    let program = stripped("hostile");
    let secret = scratch("secret").join("secret");
    fs::write(&secret, "0 ffffffffffffffff top_secret\n").expect("secret");
    type Plant<'a> = &'a dyn Fn(&Path);
    let plants: [(&str, Plant<'_>); 5] = [
        ("FIFO", &|path| mkfifo(path, Mode::S_IRWXU).expect("fifo")),
        ("link", &|path| symlink(&secret, path).expect("link")),
        ("shadow", &|path| symlink("/etc/shadow", path).expect("link")),
        ("sparse", &|path| {
            File::create(path).expect("file").set_len(10 << 30).expect("size");
        }),
        ("somebody else's", &|path| {
            fs::write(path, "0 ffffffffffffffff top_secret\n").expect("file");
            std::os::unix::fs::chown(path, Some(12_345), None).expect("chown");
        }),
    ];
    for (what, plant) in plants {
        let burning = Burning::start(Command::new(&program).arg("burn"));
        let pid = burning.pid();
        let path = format!("/tmp/perf-{pid}.map");
        plant(Path::new(&path));
        let finished = sample(&["-U", "-F", "99", "-p", &pid.to_string(), "0.5"]);
        fs::remove_file(&path).expect("remove");
        let rows: Vec<&Value> = finished.of("row").collect();
        assert!(!rows.is_empty(), "{what}");
        for row in rows {
            // Without a name, but neither without a module nor dropped.
            let leaf = &row["user_stack"][0];
            assert!(leaf["sym"].is_null(), "{what}: {row}");
            assert_eq!(leaf["module"], program.to_str().expect("UTF-8"), "{what}");
        }
    }
    Outcome::Passed
}

/// A mapped file becomes shorter while the tool runs, which ends whoever has mapped it.
fn cut_short() -> Outcome {
    let copy = scratch("short").join("copy");
    fs::copy(burner(), &copy).expect("copy");
    let path = copy.to_str().expect("UTF-8");
    let mut burning = Burning::new(&["copy", path]);
    let tool = start("profile", &["-U", "-F", "99", "-p", &burning.pid().to_string()]);
    File::options().write(true).open(&copy).expect("copy").set_len(100).expect("size");
    let status = burning.child.wait().expect("wait");
    assert!(!status.success(), "it ends with SIGBUS");
    tool.stop().assert_clean();
    // The whole copy, for comparison: it is named by the file that is mapped.
    fs::copy(burner(), &copy).expect("copy");
    let burning = Burning::new(&["copy", path]);
    let finished = sample(&["-U", "-F", "99", "-p", &burning.pid().to_string(), "1"]);
    let mapped = finished.of("row").filter(|row| row["user_stack"][0]["module"] == path);
    assert!(mapped.map(|row| &row["user_stack"][0]["sym"]).any(|sym| sym == "burn_red"));
    // Garbage in place of its headers: it goes on, without names.
    let file = File::options().write(true).open(&copy).expect("copy");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 24], 40).expect("write");
    let finished = sample(&["-U", "-F", "99", "-p", &burning.pid().to_string(), "1"]);
    let leaves: Vec<&Value> = finished.of("row").map(|row| &row["user_stack"][0]).collect();
    assert!(!leaves.is_empty() && leaves.iter().all(|leaf| leaf["module"] == path), "{leaves:?}");
    assert!(leaves.iter().all(|leaf| leaf["sym"].is_null()), "{leaves:?}");
    Outcome::Passed
}

/// kptr_restrict is said, and frames keep their addresses.
fn hidden() -> Outcome {
    let setting = Path::new("/proc/sys/kernel/kptr_restrict");
    if kernel() == "own" {
        return Outcome::Skipped("it would change a setting of this machine".into());
    }
    let old = fs::read_to_string(setting).expect("kptr_restrict");
    fs::write(setting, "2").expect("kptr_restrict");
    let reader = Burning::start(
        Command::new("sh").args(["-c", "echo ready; exec dd if=/dev/zero of=/dev/null bs=1M"]),
    );
    let finished = start("profile", &["-K", "-F", "199", "-p", &reader.pid().to_string(), "1"]);
    let finished = finished.finish();
    fs::write(setting, old.trim()).expect("kptr_restrict");
    assert!(finished.stderr.contains("kptr_restrict is 2"), "{}", finished.stderr);
    let frames: Vec<&Value> = finished
        .of("row")
        .flat_map(|row| row["kernel_stack"].as_array().expect("frames"))
        .collect();
    assert!(!frames.is_empty());
    assert!(frames.iter().all(|frame| frame["sym"].is_null() && frame["addr"] != "0"));
    Outcome::Passed
}

fn hotplug() -> Outcome {
    let switch = "/sys/devices/system/cpu/cpu1/online";
    if kernel() == "own" || !Path::new(switch).exists() {
        return Outcome::Skipped("it would take a CPU from this machine".into());
    }
    fs::write(switch, "0").expect("offline");
    let tool = start("profile", &["-F", "199"]);
    fs::write(switch, "1").expect("online");
    let run = |rounds: &str| {
        let mut command = Command::new("taskset");
        let burning =
            Burning::start(command.args(["-c", "1"]).arg(burner()).args(["burn", rounds]));
        let pid = burning.pid();
        burning.finish();
        pid
    };
    let first = run("3000");
    // Once more, now for a CPU that had its event before.
    fs::write(switch, "0").expect("offline");
    fs::write(switch, "1").expect("online");
    let second = run("3000");
    let finished = tool.stop();
    finished.assert_clean();
    for pid in [first, second] {
        assert_shares(&leaves(&finished, pid), "burn_red", "burn_blue");
    }
    Outcome::Passed
}
