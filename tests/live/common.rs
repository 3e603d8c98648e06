// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What holds for every tool: how it hooks in, how it ends, what it says when it cannot run, and
//! that events come soon, once, or are counted as lost.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use bpfscope::maps;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::MapHandle;
use libbpf_rs::MapType;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::support::Case;
use crate::support::Outcome;
use crate::support::PAUSE;
use crate::support::binary;
use crate::support::command;
use crate::support::gettid;
use crate::support::kernel;
use crate::support::may_lack;
use crate::support::needs;
use crate::support::patience;
use crate::support::scratch;
use crate::support::share;
use crate::support::start;
use crate::support::start_command;

pub const CASES: &[Case] = &[
    Case::new("each tool hooks in the expected way", ways),
    Case::new("each tool ends when its reader goes away", reader_goes_away),
    Case::new("each tool ends with its report on a signal", signals),
    Case::new("an ignored signal still ends a tool", inherited_ignore),
    Case::new("a second signal ends a stuck tool", second_signal),
    Case::new("duration and limit end a tool", duration_and_limit),
    Case::new("a full disk is an error", full_disk),
    Case::new("saved events look as they did live", saved),
    Case::new("filters on fields", field_filters),
    Case::new("no capabilities, no kernel types", cannot_run),
    Case::new("no tracefs, and a duration", no_tracefs),
    Case::new("what comes after ready is seen", ready_promise),
    // On fexit, a call that is under way when another tool attaches is not seen on some kernels.
    Case::alone("a brake", max_rate),
    Case::new("its own cost", own_cost),
    Case::new("each tool is ready before its command, and says what it cost", around_a_command),
    Case::new("a command line of its own", command_line),
    Case::new("behind sudo the command is the caller's", behind_sudo),
    // Any other tool that starts would remove it, too.
    Case::alone("what a killed tool left behind is removed", left_behind),
    Case::new("a map of 20,000 keys is read whole", whole_maps),
    Case::alone("single events come within 200 ms", single_events),
    Case::alone("a flooded tool ends within a second", flooded),
    Case::alone("shown and lost are all there was", loss),
];

/// A filter that nothing passes, so that a tool has nothing to do.
const IDLE: [&str; 2] = ["--comm", "no-such-command"];

/// The same with what the tool cannot do without.
fn idle(tool: &str) -> Vec<String> {
    needs(tool).into_iter().chain(IDLE.map(String::from)).collect()
}

fn tools() -> Vec<String> {
    let output = Command::new(binary()).arg("list").output().expect("bpfscope list");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let tools: Vec<String> =
        text.lines().filter_map(|line| line.split(' ').next().map(String::from)).collect();
    assert!(tools.contains(&"opensnoop".to_string()), "{text}");
    tools
}

/// The tools that run here: in the virtual machines all of them. What a machine's own kernel may
/// lack ends with status 3 and a line.
fn running() -> &'static [String] {
    static RUNNING: OnceLock<Vec<String>> = OnceLock::new();
    let runs = |tool: &String| kernel() != "own" || try_out(tool);
    RUNNING.get_or_init(|| tools().into_iter().filter(runs).collect())
}

/// What the doctor says of a tool here.
fn judged(tool: &str) -> serde_json::Value {
    let doctor =
        Command::new(binary()).args(["doctor", "--json", "--", tool]).args(idle(tool)).output();
    let text = String::from_utf8(doctor.expect("doctor").stdout).expect("UTF-8");
    let records = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    records
        .into_iter()
        .find(|record: &serde_json::Value| record["type"] == "tool")
        .expect("a line of the tool")
}

fn try_out(tool: &str) -> bool {
    let record = judged(tool);
    let runs = record["verdict"] == "runs";
    if !runs {
        assert!(may_lack(tool, &needs(tool)), "{record}");
        let idle = idle(tool);
        refused(command(tool, &idle.iter().map(String::as_str).collect::<Vec<_>>()), "");
    }
    runs
}

pub fn running_tools() -> impl Iterator<Item = &'static String> {
    running().iter()
}

/// Of the tools that run here those whose turn it is: for what the library does for each of them
/// alike. On a machine's own kernel that is all of them, on the others one of so many shares.
pub fn tools_in_turn(shares: usize) -> impl Iterator<Item = &'static String> {
    let share = share(shares);
    let mine = move |place: &usize| share.is_none_or(|share| place % shares == share);
    running_tools().enumerate().filter(move |(place, _)| mine(place)).map(|(_, tool)| tool)
}

/// What a tool said beside what it says of this machine, and of hits that the kernel skipped: those
/// are everybody's, and where programs can be preempted there are always some.
fn beside(tool: &str, stderr: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(stderr).into_owned();
    let skipped = format!("{tool}: the kernel skipped ");
    let mut said: Vec<&str> = text.lines().filter(|line| !line.starts_with(&skipped)).collect();
    // Most say nothing, and to ask costs a start.
    if !said.is_empty() {
        let record = judged(tool);
        let remarks = record["remarks"].as_array().expect("remarks").iter();
        let remarks: Vec<String> =
            remarks.map(|remark| format!("{tool}: {}", remark.as_str().expect("text"))).collect();
        said.retain(|line| !remarks.iter().any(|remark| remark == line));
    }
    said.into_iter().map(String::from).collect()
}

/// The expected way of a tool under these arguments on this kernel, from tests/expect/NAME: lines
/// `KERNEL WAY [ARGUMENTS]`.
fn expected(tool: &str) -> BTreeMap<Vec<String>, String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expect").join(tool);
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split_whitespace().map(String::from);
            let kernel_name = words.next()?;
            let way = words.next()?;
            (kernel_name == kernel()).then(|| (words.collect(), way))
        })
        .collect()
}

/// What the verifier said of each program, in what a tool says under `-v`.
fn verified(stderr: &str) -> Vec<(String, u64)> {
    let of_line = |line: &str| {
        let (before, log) = line.split_once("': -- BEGIN PROG LOAD LOG --")?;
        let (_, program) = before.split_once("prog '")?;
        // Its lines, in one of ours: "processed 120 insns …"; newer kernels have others like it.
        let count = log.split("\\n").find_map(|line| line.strip_prefix("processed "))?;
        let count = count.split(' ').next()?.parse().expect("a number");
        Some((program.to_string(), count))
    };
    stderr.lines().filter_map(of_line).collect()
}

/// Holds what the verifier had to do against tests/verifier/NAME: no program may grow by more than
/// a quarter unseen.
fn assert_verified(tool: &str, programs: &BTreeMap<String, u64>) {
    assert!(!programs.is_empty(), "{tool}: the verifier's statistics are not in what -v says");
    let lines: String =
        programs.iter().map(|(name, count)| format!("{tool} {name} {count}\n")).collect();
    if std::env::var_os("BPFSCOPE_RECORD").is_some() {
        let results = std::env::var("BPFSCOPE_RESULTS").expect("where results are written");
        let path = format!("{results}.verifier");
        let mut file = File::options().append(true).create(true).open(path).expect("verifier");
        file.write_all(lines.as_bytes()).expect("verifier");
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/verifier").join(tool);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let known: BTreeMap<&str, u64> = text
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("{} ", kernel()))?.split_once(' '))
        .map(|(name, count)| (name, count.parse().expect("a number")))
        .collect();
    for (name, count) in programs {
        let Some(at_most) = known.get(name.as_str()).map(|known| known + known / 4) else {
            panic!("{} does not know {name} on {}: {count}", path.display(), kernel());
        };
        assert!(*count <= at_most, "{tool}: {name} has grown to {count}, a quarter above {text}");
    }
}

fn ways() -> Outcome {
    for tool in tools() {
        let expected = expected(&tool);
        if kernel() == "own" {
            // Any machine: whatever it takes, it must run.
            let needs = needs(&tool);
            let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
            if running_tools().any(|running| *running == tool) {
                start(&tool, &needs).stop().assert_clean();
            }
            continue;
        }
        assert!(!expected.is_empty(), "tests/expect/{tool} does not know {}", kernel());
        let mut programs = BTreeMap::new();
        for (args, way) in expected {
            let args: Vec<&str> =
                args.iter().map(String::as_str).chain(std::iter::once("--verbose")).collect();
            let running = start(&tool, &args);
            assert_eq!(running.way(), way, "{tool} {args:?}");
            let finished = running.stop();
            // Nothing is filtered here. What the other tests do comes by as well, and can be more
            // than there is room for: calls whose end was missed.
            assert!(finished.status.success(), "{}", finished.stderr);
            assert_eq!(finished.end()["lost"], 0, "{tool}");
            for (name, count) in verified(&finished.stderr) {
                let most = programs.entry(name).or_insert(0);
                *most = count.max(*most);
            }
        }
        assert_verified(&tool, &programs);
    }
    Outcome::Passed
}

fn wait(mut child: Child) -> Output {
    let until = Instant::now() + patience();
    let mut stderr = child.stderr.take().expect("piped");
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        text
    });
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            let stderr = reader.join().expect("stderr");
            return Output { status, stdout: Vec::new(), stderr };
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            panic!("it does not end: {}", String::from_utf8_lossy(&reader.join().expect("stderr")));
        }
        thread::sleep(PAUSE);
    }
}

/// `TOOL --output json | head -1`, while nothing happens.
fn reader_goes_away() -> Outcome {
    for tool in tools_in_turn(4) {
        let mut child = command(tool, &["--output", "json"])
            .args(idle(tool))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("spawn");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("one line");
        assert!(line.contains("\"ready\""), "{tool}: {line}");
        drop(stdout);
        let output = wait(child);
        assert_eq!(output.status.code(), Some(0), "{tool}");
        assert_eq!(beside(tool, &output.stderr), [""; 0], "{tool}");
    }
    Outcome::Passed
}

/// Each tool by each of them; where tools have turns, each by one.
fn signals() -> Outcome {
    const SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT];
    let all = share(4).is_none();
    for (place, tool) in tools_in_turn(4).enumerate() {
        let signals = if all { &SIGNALS[..] } else { &SIGNALS[place % 3..=place % 3] };
        for signal in signals {
            let idle = idle(tool);
            let idle: Vec<&str> = idle.iter().map(String::as_str).collect();
            let finished = start(tool, &idle).stop_with(*signal);
            finished.assert_clean();
            assert_eq!(finished.end()["reason"], signal.as_str(), "{tool}");
        }
    }
    Outcome::Passed
}

/// A script's background job has SIGINT ignored.
fn inherited_ignore() -> Outcome {
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' INT TERM HUP; exec \"$@\"", "sh"]);
    shell.arg(binary()).args(["opensnoop", "--output", "json"]).args(IDLE);
    let finished = start_command(shell).stop_with(Signal::SIGINT);
    finished.assert_clean();
    assert_eq!(finished.end()["reason"], "SIGINT");
    Outcome::Passed
}

/// Nobody reads, so the tool is stuck in a write when the first signal comes.
fn second_signal() -> Outcome {
    let directory = scratch("stuck");
    let path = directory.join("file");
    let mut child = command("opensnoop", &["--output", "json", "--tid", &gettid().to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut stdout = BufReader::with_capacity(1, child.stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("ready");
    let pid = i32::try_from(child.id()).expect("pid");
    // Until it sleeps in a write to the full pipe.
    let until = Instant::now() + patience();
    let stuck = || {
        fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|at| at.contains("pipe_write"))
            || fs::read_to_string(format!("/proc/{pid}/syscall"))
                .is_ok_and(|call| call.starts_with("1 0x1 "))
    };
    while !stuck() {
        let _ = File::open(&path);
        assert!(Instant::now() < until, "the pipe does not fill");
    }
    kill(Pid::from_raw(pid), Signal::SIGINT).expect("kill");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("kill");
    let output = wait(child);
    assert_eq!((output.status.code(), output.status.signal()), (Some(130), None));
    drop(stdout);
    Outcome::Passed
}

fn duration_and_limit() -> Outcome {
    let started = Instant::now();
    let finished = start("opensnoop", &["--duration", "0.5", "--comm", "no-such-command"]).finish();
    finished.assert_clean();
    assert_eq!(finished.end()["reason"], "duration");
    assert!(started.elapsed() >= Duration::from_millis(500));

    let directory = scratch("limit");
    let tool = start("opensnoop", &["--limit", "3", "--tid", &gettid().to_string()]);
    for _ in 0..10 {
        let _ = File::open(directory.join("file"));
    }
    let finished = tool.finish();
    finished.assert_clean();
    assert_eq!(
        (finished.of("event").count(), finished.end()["reason"].as_str()),
        (3, Some("limit"))
    );
    Outcome::Passed
}

/// Two instances see the same: what the one saves is shown as the other has shown it live.
fn saved() -> Outcome {
    const WORK: &str = "read go; ls /tmp >/dev/null; cat /no/such/file; printf 'a\\033[2Jb' >/dev/null; \
                        cat \"$1\"; : 3<>/dev/tcp/127.0.0.1/9; exit 0";
    for tool in ["execsnoop", "opensnoop", "tcpconnect"] {
        let odd = scratch("saved").join("a\x1b\nb\\");
        let mut work = Command::new("bash");
        work.args(["-c", WORK, "bash"]).arg(&odd).stdin(Stdio::piped());
        let mut work = work.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("bash");
        let tree = work.id().to_string();
        let json = start(tool, &["--tree", &tree]);
        let mut text = command(tool, &["--tree", &tree])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("spawn");
        let mut stdout = BufReader::new(text.stdout.take().expect("piped"));
        let mut live = String::new();
        // The header: it is attached.
        stdout.read_line(&mut live).expect("a header");
        work.stdin.take().expect("piped").write_all(b"go\n").expect("write");
        work.wait().expect("wait");
        kill(Pid::from_raw(i32::try_from(text.id()).expect("pid")), Signal::SIGINT).expect("kill");
        stdout.read_to_string(&mut live).expect("UTF-8");
        assert!(wait(text).status.success());
        let finished = json.stop();
        finished.assert_clean();
        assert!(finished.of("event").count() > 0, "{tool} saw nothing");

        let lines: String = finished.records.iter().map(|record| format!("{record}\n")).collect();
        let file = scratch("saved").join("lines");
        fs::write(&file, &lines).expect("write");
        let again = command(tool, &["--from"]).arg(&file).output().expect("run");
        assert!(again.status.success() && again.stderr.is_empty(), "{again:?}");
        assert_eq!(String::from_utf8_lossy(&again.stdout), live, "{tool}");
        // And as JSON it is what it was, to the last field.
        let mut again = command(tool, &["--output", "json", "--from"]);
        let again = start_command(std::mem::replace(again.arg(&file), Command::new("true")));
        assert_eq!(again.finish().records, finished.records, "{tool}");
    }
    Outcome::Passed
}

/// What `--filter` leaves out is counted, and the limit counts what is shown.
fn field_filters() -> Outcome {
    let directory = scratch("filter");
    let tid = gettid().to_string();
    let missing = "error = ENOENT";
    let mine = format!("path ~ ^{}", directory.display());
    let args = ["--tid", &tid, "--filter", missing, "--filter", &mine, "--limit", "2"];
    let tool = start("opensnoop", &args);
    let there = directory.join("there");
    File::create(&there).expect("create");
    for _ in 0..3 {
        File::open(&there).expect("open");
        let _ = File::open(directory.join("missing"));
    }
    let finished = tool.finish();
    finished.assert_clean();
    let shown: Vec<&str> =
        finished.of("event").map(|event| event["path"].as_str().expect("path")).collect();
    assert_eq!(shown, [directory.join("missing").to_str().expect("UTF-8"); 2]);
    let end = finished.end();
    assert_eq!((end["reason"].as_str(), end["events"].as_u64()), (Some("limit"), Some(2)));
    // The creation, and two opens before the second one that failed.
    assert!(end["filtered"].as_u64().expect("a number") >= 3, "{end}");

    // Of a histogram it is the key that is tested.
    let pid = std::process::id();
    let run = |args: &[&str]| {
        let tool = start("cpudist", &[&["-P"], args].concat());
        // This one leaves the CPU to another one that does, too.
        let mut others = Command::new("true");
        assert!(others.status().expect("true").success());
        let finished = tool.stop();
        finished.assert_clean();
        let pids = finished.of("histogram").map(|h| h["key"]["pid"].as_u64().expect("a number"));
        let mut pids: Vec<u64> = pids.collect();
        pids.sort_unstable();
        pids.dedup();
        (pids, finished.end()["filtered"].as_u64().expect("a number"))
    };
    let (all, none_filtered) = run(&[]);
    assert!(all.len() > 1 && all.contains(&pid.into()) && none_filtered == 0, "{all:?}");
    let (one, filtered) = run(&["--filter", &format!("pid = {pid}")]);
    assert!(one == [u64::from(pid)] && filtered > 0, "{one:?} {filtered}");
    Outcome::Passed
}

fn full_disk() -> Outcome {
    for tool in tools_in_turn(4) {
        let output = command(tool, &["--output", "json"])
            .args(idle(tool))
            .stdout(File::options().write(true).open("/dev/full").expect("/dev/full"))
            .output()
            .expect("run");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{tool}: {stderr}");
        let said = beside(tool, &output.stderr);
        assert!(said.len() == 1 && said[0].contains("No space left"), "{tool}: {stderr}");
    }
    Outcome::Passed
}

/// Runs a command that must end by itself with status 3 and one line.
fn refused(mut command: Command, word: &str) {
    let output = command.stdin(Stdio::null()).output().expect("run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{command:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(stderr.lines().count() == 1 && stderr.contains(word), "{stderr}");
}

/// A shell in a mount namespace of its own, which runs `prepare` and then becomes what follows.
fn apart(prepare: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &format!("{prepare}; exec \"$@\""), "sh"]);
    command.arg(binary());
    command
}

fn cannot_run() -> Outcome {
    let types = scratch("btf").join("vmlinux");
    fs::copy("/sys/kernel/btf/vmlinux", &types).expect("the kernel's BTF");
    for tool in tools_in_turn(4) {
        let mut bare = Command::new("setpriv");
        bare.args(["--bounding-set=-all", "--inh-caps=-all"])
            .arg(binary())
            .arg(tool)
            .args(needs(tool));
        refused(bare, "CAP_BPF");
        let mut partly = Command::new("setpriv");
        partly
            .args(["--bounding-set=-all,+bpf", "--inh-caps=-all"])
            .arg(binary())
            .arg(tool)
            .args(needs(tool));
        refused(partly, "CAP_PERFMON");
        let hide = "mount -t tmpfs none /sys/kernel/btf";
        let mut untyped = apart(hide);
        untyped.arg(tool).args(needs(tool));
        refused(untyped, "CONFIG_DEBUG_INFO_BTF");
        // With types from a file, ways that need none of the kernel's own are left. Iterators need
        // them; a tool that has some has them in all of its ways.
        let mut typed = apart(hide);
        typed.args([tool.as_str(), "--output", "json", "--btf"]).arg(&types).args(idle(tool));
        let manual = Command::new(binary()).args(["man", tool]).output().expect("man");
        if String::from_utf8_lossy(&manual.stdout).contains("\n\\fBiterators\\fR\n") {
            refused(typed, "has no BTF to find iterator");
            continue;
        }
        let running = start_command(typed);
        let typed_ways = ["fexit", "btf", "tp_btf", "tpbtf"];
        assert!(!typed_ways.contains(&running.way()), "{tool}: {}", running.ready);
        running.stop().assert_clean();
    }
    Outcome::Passed
}

/// In 100 of 100 runs, an event made right after `ready` is shown. The emulated kernels have 100
/// between them.
fn ready_promise() -> Outcome {
    let path = scratch("ready").join("file");
    let tid = gettid().to_string();
    for _ in 0..if share(4).is_some() { 25 } else { 100 } {
        let tool = start("opensnoop", &["--tid", &tid, "--limit", "1"]);
        let _ = File::open(&path);
        let finished = tool.finish();
        finished.assert_clean();
        assert_eq!(finished.of("event").count(), 1);
    }
    Outcome::Passed
}

/// `--max-rate` lets so many through a second, and counts all others.
fn max_rate() -> Outcome {
    const OPENS: u64 = 5000;
    const RATE: u64 = 50;
    let path = scratch("rate").join("file");
    let tid = gettid().to_string();
    let tool = start("opensnoop", &["--tid", &tid, "--max-rate", &RATE.to_string()]);
    let begun = Instant::now();
    for _ in 0..OPENS {
        let _ = File::open(&path);
    }
    // Each second of the kernel's clock that has begun lets so many through.
    let seconds = begun.elapsed().as_secs() + 2;
    let finished = tool.stop();
    finished.assert_clean();
    let end = finished.end();
    let number = |name: &str| end[name].as_u64().expect("a number");
    assert_eq!(number("events") + number("rate_limited"), OPENS, "{end}");
    assert_eq!(number("events"), finished.of("event").count() as u64);
    assert!((RATE..=RATE * seconds).contains(&number("events")), "{seconds} s: {end}");
    let told: u64 = finished.of("lost").filter_map(|r| r["rate_limited"].as_u64()).sum();
    assert_eq!(told, number("rate_limited"));
    assert!(finished.stderr.contains("--max-rate"), "{}", finished.stderr);
    let refused = command("biolatency", &["--max-rate", "1"]).output().expect("run");
    assert_eq!(refused.status.code(), Some(2));
    Outcome::Passed
}

/// With `--verbose` the end says what the tool and each of its programs cost.
fn own_cost() -> Outcome {
    const OPENS: u64 = 200;
    let path = scratch("cost").join("file");
    let tool = start("opensnoop", &["--verbose", "--tid", &gettid().to_string()]);
    for _ in 0..OPENS {
        let _ = File::open(&path);
    }
    let finished = tool.stop();
    finished.assert_clean();
    let end = finished.end();
    assert!(end["cpu_ns"].as_u64().is_some_and(|ns| ns > 0), "{end}");
    let programs = end["programs"].as_array().expect("programs");
    let sum = |name: &str| programs.iter().filter_map(|p| p[name].as_u64()).sum::<u64>();
    assert!(sum("runs") >= OPENS && sum("run_ns") > 0, "{end}");
    assert!(finished.stderr.contains("of CPU time"), "{}", finished.stderr);
    Outcome::Passed
}

/// Of each tool, all that has to do with a command and with the end: when the command runs, whoever
/// watches `--ready-fd` has been told; its end is the tool's; `--verbose` adds the cost; `--strict`
/// finds nothing to complain of; `--max-rate` is taken by those that show events.
fn around_a_command() -> Outcome {
    for tool in tools_in_turn(2) {
        let told = scratch("told").join("ready");
        let run = format!("cat {}; exit 3", told.display());
        let mut args = vec!["--ready-fd", "9", "--run", &run, "--verbose", "--strict"];
        if has_events(tool) {
            args.extend(["--max-rate", "1000"]);
        }
        // The descriptor is opened by a shell that becomes the tool.
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" 9>\"$0\""]).arg(&told).arg(binary());
        shell.args([tool, "--output", "json"]).args(args).args(idle(tool));
        let finished = start_command(shell).finish();
        let (end, said) = (finished.end(), &finished.stderr);
        assert_eq!((&end["lost"], &end["map_full"]), (&0.into(), &0.into()), "{tool}: {end}");
        // Hits that the kernel skipped are lost, too; where it is preemptible there may be some.
        let strict = if end["missed"].as_u64().unwrap_or(0) > 0 { 4 } else { 0 };
        assert_eq!(finished.status.code(), Some(strict), "{tool}: {said}");
        assert!(said.lines().any(|line| line == "ready"), "{tool}: {said}");
        assert_eq!(fs::read_to_string(&told).expect("ready"), "ready\n", "{tool}");
        assert_eq!(
            (&end["reason"], &end["child_status"]),
            (&"command".into(), &3.into()),
            "{tool}"
        );
        assert!(end["cpu_ns"].as_u64().is_some_and(|ns| ns > 0), "{tool}: {end}");
        let programs = end["programs"].as_array().expect("programs");
        let named = |program: &serde_json::Value| {
            program["name"].is_string() && program["runs"].is_u64() && program["run_ns"].is_u64()
        };
        assert!(!programs.is_empty() && programs.iter().all(named), "{tool}: {end}");
        // Those of the way at least: there may be others, of filters and of cgroups.
        let ready = &finished.records[0]["programs"];
        for wanted in ready.as_array().expect("programs") {
            assert!(
                programs.iter().any(|known| known["name"] == *wanted),
                "{tool} {wanted}: {end}"
            );
        }
        assert!(said.contains("of CPU time"), "{tool}: {said}");
        assert_eq!(end["rate_limited"], 0, "{tool}");
    }
    Outcome::Passed
}

/// Whether a tool shows events when it is not told otherwise: then they are its first kind.
fn has_events(tool: &str) -> bool {
    let schema = Command::new(binary()).args(["schema", tool]).output().expect("schema");
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).expect("JSON");
    let records = schema["oneOf"].as_array().expect("records");
    let ty = |record: &serde_json::Value| {
        record["properties"]["type"]["const"].as_str().unwrap_or_default().to_string()
    };
    let own = ["event", "row", "histogram"];
    records.iter().map(ty).find(|ty| own.contains(&ty.as_str())).is_some_and(|ty| ty == "event")
}

/// `--run` takes a line for the shell; its processes are traced, and what it prints is not in the
/// tool's own output.
fn command_line() -> Outcome {
    let path = scratch("run").join("file");
    let path = path.display();
    let line = format!("echo said; cat {path} 2> /dev/null; exit 3");
    let finished = start("opensnoop", &["--run", &line]).finish();
    finished.assert_clean();
    let wanted = |event: &&serde_json::Value| event["path"] == path.to_string();
    let events: Vec<_> = finished.of("event").filter(wanted).collect();
    assert_eq!(events.len(), 1, "{:?}", finished.records);
    assert_eq!(events[0]["comm"], "cat");
    assert_eq!(finished.end()["reason"], "command");
    assert_eq!(finished.end()["child_status"], 3);
    assert_eq!(finished.stderr, "said\n");
    let both = command("opensnoop", &["--run", "true", "--", "true"]).output().expect("run");
    assert_eq!(both.status.code(), Some(2));
    Outcome::Passed
}

/// As sudo leaves it: root, with the caller's ids in the environment.
fn behind_sudo() -> Outcome {
    const IDS: &str = "echo $(id -u) $(id -g) $(id -G)";
    let said = |args: &[&str], sudo: bool| {
        let mut command = command("opensnoop", &[&["--output", "json"], args].concat());
        command.env_remove("SUDO_UID").env_remove("SUDO_GID");
        if sudo {
            command.envs([("SUDO_UID", "65533"), ("SUDO_GID", "65532")]);
        }
        let output = command.output().expect("opensnoop");
        assert!(output.status.success(), "{}", output.status);
        // The tool may have something to say as well: of what others did, and it missed.
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.lines().filter(|line| !line.starts_with("opensnoop: ")).collect::<String>()
    };
    let both = [&["--run", IDS][..], &["--", "sh", "-c", IDS]];
    for args in both {
        assert_eq!(said(args, true), "65533 65532 65532", "{args:?}");
        let own = said(args, false);
        assert!(own.starts_with("0 0 "), "{args:?}: {own}");
    }
    Outcome::Passed
}

/// A tool that is killed leaves its return probes in tracefs; the next one removes them.
fn left_behind() -> Outcome {
    let of = |pid: u32| {
        let list = fs::read_to_string("/sys/kernel/tracing/kprobe_events").unwrap_or_default();
        list.lines().filter(|line| line.contains(&format!(":bpfscope/p{pid}_"))).count()
    };
    let first = start("execsnoop", &["-x"]);
    let pid = first.pid();
    if of(pid) == 0 {
        first.stop();
        return Outcome::Skipped("its way here has no return probes".into());
    }
    first.stop_with(Signal::SIGKILL);
    assert_ne!(of(pid), 0);
    let second = start("execsnoop", &["-x"]);
    assert_eq!(of(pid), 0);
    let pid = second.pid();
    assert_ne!(of(pid), 0);
    second.stop().assert_clean();
    assert_eq!(of(pid), 0);
    Outcome::Passed
}

/// No tool of those that exist needs tracefs: they hook by BTF and by perf's own probes, only that
/// return probes then have little room.
///
/// Each ends by itself, as all do with `--duration`.
fn no_tracefs() -> Outcome {
    for tool in tools_in_turn(4) {
        let hide = "for at in /sys/kernel/tracing /sys/kernel/debug; do \
                    while mountpoint -q $at; do umount -l $at; done; done; \
                    test ! -e /sys/kernel/tracing/events";
        let mut command = apart(hide);
        command.args([tool, "--output", "json", "--duration", "0.1"]).args(idle(tool));
        let finished = start_command(command).finish();
        finished.assert_clean();
        assert_eq!(finished.end()["reason"], "duration", "{tool}");
    }
    Outcome::Passed
}

fn whole_maps() -> Outcome {
    const KEYS: u32 = 20_000;
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let cpus = libbpf_rs::num_possible_cpus().expect("CPUs");
    for kind in [MapType::Hash, MapType::PercpuHash] {
        let map =
            MapHandle::create(kind, Some("twenty_thousand"), 4, 12, KEYS, &options).expect("map");
        for key in 0..KEYS {
            let mut value = vec![0u8; 12];
            value[..4].copy_from_slice(&key.to_ne_bytes());
            let bytes = key.to_ne_bytes();
            if kind == MapType::Hash {
                map.update(&bytes, &value, MapFlags::ANY).expect("update");
            } else {
                map.update_percpu(&bytes, &vec![value; cpus], MapFlags::ANY).expect("update");
            }
        }
        let entries = maps::read_all(&map).expect("read");
        assert_eq!(entries.len(), KEYS as usize);
        let mut seen = vec![false; KEYS as usize];
        for (key, values) in entries.iter() {
            let number = u32::from_ne_bytes(key.try_into().expect("four bytes"));
            assert!(!std::mem::replace(&mut seen[number as usize], true), "{number} twice");
            assert_eq!(values.len(), if kind == MapType::Hash { 1 } else { cpus });
            assert!(values.iter().all(|value| value.len() == 12 && value[..4] == *key));
        }
        assert!(seen.iter().all(|seen| *seen));
    }
    Outcome::Passed
}

/// How many times slower the emulated machines are than the promise allows for a real one.
fn emulation() -> u32 {
    if kernel() == "own" { 1 } else { 10 }
}

fn single_events() -> Outcome {
    let directory = scratch("single");
    let mut tool = start("opensnoop", &["--tid", &gettid().to_string()]);
    // A multiplicative generator: the pauses differ, and are the same in every run.
    let mut random = 12_345u64;
    let mut slowest = Duration::ZERO;
    for i in 0..30 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // The pause is what is tested: from none to longer than the reader's own.
        thread::sleep(Duration::from_millis((random >> 33) % 260));
        let path = directory.join(format!("single-{i}"));
        let _ = File::open(&path);
        let opened = Instant::now();
        let path = path.to_str().expect("UTF-8");
        tool.wait_for(|record| record["path"] == path);
        slowest = slowest.max(opened.elapsed());
    }
    tool.stop().assert_clean();
    let limit = Duration::from_millis(200) * emulation();
    assert!(slowest < limit, "the slowest event took {slowest:?}");
    Outcome::Passed
}

fn flooded() -> Outcome {
    let directory = scratch("flood");
    // To a file: a reader that cannot keep up would be measured instead of the tool.
    let shown = directory.join("shown");
    let child = command("opensnoop", &["--output", "json"])
        .stdout(File::create(&shown).expect("file"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    let stop = AtomicBool::new(false);
    let (took, output) = thread::scope(|scope| {
        for i in 0..2 {
            let path = directory.join(format!("opened-{i}"));
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = File::open(&path);
                }
            });
        }
        // It is under way when much has come.
        let until = Instant::now() + patience();
        while fs::metadata(&shown).expect("file").len() < 1 << 20 {
            assert!(Instant::now() < until, "the flood does not reach the tool");
            thread::yield_now();
        }
        kill(Pid::from_raw(i32::try_from(child.id()).expect("pid")), Signal::SIGINT).expect("kill");
        let asked = Instant::now();
        let output = wait(child);
        stop.store(true, Ordering::Relaxed);
        (asked.elapsed(), output)
    });
    assert!(output.status.success());
    let text = fs::read_to_string(&shown).expect("UTF-8");
    let end: serde_json::Value =
        serde_json::from_str(text.lines().last().expect("lines")).expect("JSON");
    assert_eq!((end["type"].as_str(), end["reason"].as_str()), (Some("end"), Some("SIGINT")));
    let limit = Duration::from_secs(1) * emulation();
    assert!(took < limit, "it took {took:?}");
    Outcome::Passed
}

/// A tiny buffer loses events; what is shown and what is counted as lost are together exactly what
/// was made.
fn loss() -> Outcome {
    const OPENS: u64 = 20_000;
    let directory = scratch("loss");
    let path = directory.join("file");
    let args = ["--buffer-size", "4k", "--strict", "--tid", &gettid().to_string()];
    let tool = start("opensnoop", &args);
    for _ in 0..OPENS {
        let _ = File::open(&path);
    }
    let finished = tool.stop();
    let wanted = path.to_str().expect("UTF-8");
    let shown = finished.of("event").filter(|event| event["path"] == wanted).count() as u64;
    let end = finished.end();
    let lost = end["lost"].as_u64().expect("lost");
    assert_eq!(shown + lost, OPENS, "{end}");
    assert!(lost > 0, "nothing was lost, so nothing was tested");
    let reported: u64 = finished.of("lost").filter_map(|record| record["lost"].as_u64()).sum();
    assert_eq!(reported, lost);
    assert_eq!(finished.status.code(), Some(4), "--strict");
    assert!(finished.stderr.contains("lost"), "{}", finished.stderr);
    Outcome::Passed
}
