// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Measures what a tool costs: ours beside the peer's, in one run. Meant for a machine whose clock
//! counts instructions (`bench/run` boots one); `bench/README.md` says what the figures mean.
//!
//! Usage: bench OURS PEER_DIR [TOOL…]

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::Read as _;
use std::io::Seek as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::time::ClockId;
use nix::time::clock_getcpuclockid;
use nix::time::clock_gettime;
use nix::unistd::Pid;

/// What one operation of a workload is, how many are made, and the pause after each.
struct Workload {
    name: &'static str,
    tool: &'static str,
    operations: u32,
    pause: Option<Duration>,
    act: fn(&Path),
    /// What a line of the tool's output contains when it shows one of these operations.
    mark: &'static str,
}

const WORKLOADS: [Workload; 2] = [
    Workload {
        name: "open, paced",
        tool: "opensnoop",
        operations: 4000,
        pause: Some(Duration::from_millis(1)),
        act: |path| drop(File::open(path)),
        mark: "bench-opened",
    },
    Workload {
        name: "open, burst",
        tool: "opensnoop",
        operations: 20_000,
        pause: None,
        act: |path| drop(File::open(path)),
        mark: "bench-opened",
    },
];

/// What was measured; times in nanoseconds of CPU.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    workload: u64,
    tool: u64,
    start: u64,
    stop: u64,
    rss_anon_kb: u64,
    shown: usize,
}

fn cpu_of(pid: Option<u32>) -> Result<u64> {
    let clock = match pid {
        None => ClockId::CLOCK_PROCESS_CPUTIME_ID,
        Some(pid) => clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?))?,
    };
    let time = clock_gettime(clock)?;
    Ok(u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?)
}

/// Waits until the tool sleeps in a wait for events: it is then attached. Peers do not say so.
fn wait_until_ready(child: &mut Child) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(300);
    // Opened once: each open would be an event that wakes the tool.
    let mut call_file = File::open(format!("/proc/{}/syscall", child.id()))?;
    let mut quiet = 0;
    while quiet < 3 {
        ensure!(Instant::now() < until, "the tool does not get ready");
        if let Some(status) = child.try_wait()? {
            bail!("the tool ended with {status}");
        }
        // epoll_wait and epoll_pwait of x86-64 and arm64.
        let mut call = String::new();
        call_file.rewind()?;
        call_file.read_to_string(&mut call)?;
        let waits = ["232 ", "281 ", "22 "].iter().any(|number| call.starts_with(number));
        quiet = if waits { quiet + 1 } else { 0 };
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn rss_anon_kb(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Runs the workload, beside a tool or alone.
fn measure(workload: &Workload, tool: Option<&[String]>, directory: &Path) -> Result<Figures> {
    let shown = directory.join("shown");
    let target = directory.join(workload.mark);
    fs::write(&target, "")?;
    let mut figures = Figures::default();
    let mut running = None;
    if let Some(command) = tool {
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(File::create(&shown)?)
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| command.join(" "))?;
        wait_until_ready(&mut child)?;
        figures.start = cpu_of(Some(child.id()))?;
        running = Some(child);
    }
    let before = cpu_of(None)?;
    for _ in 0..workload.operations {
        (workload.act)(&target);
        if let Some(pause) = workload.pause {
            thread::sleep(pause);
        }
    }
    figures.workload = cpu_of(None)? - before;
    if let Some(mut child) = running {
        // Until it has shown what it has: it sleeps again, and longer than any of them pauses.
        thread::sleep(Duration::from_millis(500));
        figures.tool = cpu_of(Some(child.id()))? - figures.start;
        figures.rss_anon_kb = rss_anon_kb(child.id());
        let asked = Instant::now();
        kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
        child.wait()?;
        figures.stop = u64::try_from(asked.elapsed().as_nanos())?;
        let text = fs::read(&shown)?;
        let mark = workload.mark.as_bytes();
        figures.shown = text.split(|b| *b == b'\n').filter(|line| contains(line, mark)).count();
    }
    Ok(figures)
}

fn contains(line: &[u8], mark: &[u8]) -> bool {
    line.windows(mark.len()).any(|window| window == mark)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let ours = args.next().context("usage: bench OURS PEER_DIR [TOOL…]")?;
    let peer = PathBuf::from(args.next().context("usage: bench OURS PEER_DIR [TOOL…]")?);
    let wanted: Vec<String> = args.collect();
    let directory = PathBuf::from("/tmp/bpfscope-bench");
    fs::create_dir_all(&directory)?;
    println!(
        "{:<14} {:<12} {:>9} {:>9} {:>7} {:>9} {:>8} {:>8} {:>15}",
        "workload",
        "tool",
        "cost ns",
        "of it in",
        "ratio",
        "start ms",
        "stop ms",
        "RssAnon",
        "shown"
    );
    for workload in &WORKLOADS {
        if !wanted.is_empty() && !wanted.iter().any(|tool| tool == workload.tool) {
            continue;
        }
        let commands: BTreeMap<&str, Vec<String>> = BTreeMap::from([
            ("bpfscope", vec![ours.clone(), workload.tool.into()]),
            ("peer", vec![peer.join(workload.tool).display().to_string()]),
        ]);
        // Once beforehand, so that caches and lazily made kernel objects are there for all.
        measure(workload, None, &directory)?;
        let base = measure(workload, None, &directory)?;
        let mut cost = BTreeMap::new();
        for (name, command) in commands.iter().rev() {
            // The first start reads the program from disk, which is not what is compared.
            let brief = Workload { operations: 10, ..*workload };
            measure(&brief, Some(command), &directory)?;
            let figures = measure(workload, Some(command), &directory)?;
            let each = |ns: u64| ns / u64::from(workload.operations);
            let total = each((figures.workload + figures.tool).saturating_sub(base.workload));
            cost.insert(*name, total);
            let ratio = match (cost.get("bpfscope"), cost.get("peer")) {
                (Some(ours), Some(theirs)) if *theirs > 0 => {
                    format!("{}.{:02}", ours / theirs, ours * 100 / theirs % 100)
                }
                _ => "-".into(),
            };
            println!(
                "{:<14} {:<12} {total:>9} {:>9} {ratio:>7} {:>9} {:>8} {:>5} kB {:>7}/{}",
                workload.name,
                name,
                each(figures.tool),
                figures.start / 1_000_000,
                figures.stop / 1_000_000,
                figures.rss_anon_kb,
                figures.shown,
                workload.operations
            );
            println!(
                "{{\"workload\":\"{}\",\"tool\":\"{}\",\"by\":\"{name}\",\"operations\":{},\
                 \"cost_ns\":{total},\"tool_ns\":{},\"base_ns\":{},\"start_ns\":{},\"stop_ns\":{},\
                 \"rss_anon_kb\":{},\"shown\":{}}}",
                workload.name,
                workload.tool,
                workload.operations,
                each(figures.tool),
                each(base.workload),
                figures.start,
                figures.stop,
                figures.rss_anon_kb,
                figures.shown
            );
        }
    }
    Ok(())
}
