// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Measures what tools cost: ours beside the peer's, in one run. Meant for a machine whose clock
//! counts instructions (`bench/run` boots one); `bench/README.md` says what the figures mean.
//!
//! Usage: bench [--native RUNS] OURS PEER_DIR [TOOL…]

mod disk;
mod process;
mod programs;
mod report;
mod rows;
mod workloads;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;

use crate::process::Tool;
use crate::process::cpu_of_workload;
use crate::report::Report;
use crate::rows::ROWS;
use crate::rows::Row;
use crate::rows::Shown;
use crate::workloads::Act;
use crate::workloads::SYSTEM_CALLS;
use crate::workloads::Scene;
use crate::workloads::Workload;

/// How many operations a tool is shown before it is measured, so that nothing happens for the
/// first time.
const WARM_UP: u32 = 10;

/// How many paced operations are made where a pause takes its time.
const NATIVE_PACED: u32 = 500;

/// What a paced workload waits after each operation.
const PAUSE: Duration = Duration::from_millis(1);

/// Longer than any tool waits before it shows what it has.
const DRAIN: Duration = Duration::from_millis(500);

/// How many system calls of another kind are made.
const UNRELATED: u32 = 20_000;

/// What one pace of a workload took, in nanoseconds of CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pass {
    pub(crate) operations: u32,
    pub(crate) workload_ns: u64,
    pub(crate) tool_ns: u64,
    /// `None` = not to be counted.
    pub(crate) shown: Option<(u64, u64)>,
}

/// What was measured of one tool, or without one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) paced: Option<Pass>,
    pub(crate) burst: Option<Pass>,
    pub(crate) start_ns: u64,
    pub(crate) stop_ns: u64,
    pub(crate) report_ns: u64,
    pub(crate) anonymous_bytes: u64,
    pub(crate) map_bytes: u64,
    pub(crate) wakeups: u64,
    /// Of all the unrelated system calls.
    pub(crate) unrelated_ns: u64,
}

/// Where and how it is measured.
struct Bench {
    directory: PathBuf,
    /// How many runs the median is of; `None` = in a machine whose clock counts instructions, where
    /// time in which nothing happens costs nothing.
    native: Option<u32>,
}

impl Bench {
    fn shown(&self) -> PathBuf {
        self.directory.join("shown")
    }

    /// Runs a workload, beside a tool or alone.
    fn measure(&self, row: &Row, command: Option<&[String]>, warm_up: bool) -> Result<Figures> {
        let mut figures = Figures::default();
        if self.native.is_none() && !warm_up {
            thread::sleep(row.workload.rest);
        }
        let limit = |pace| match pace {
            _ if warm_up => WARM_UP,
            // Pauses are not skipped there.
            "paced" if self.native.is_some() => NATIVE_PACED,
            _ => u32::MAX,
        };
        let prepare = |pace, operations: u32| -> Result<Option<(u32, Act)>> {
            let scene = Scene { directory: self.directory.clone(), pace };
            let act = (operations > 0).then(|| (row.workload.prepare)(&scene)).transpose()?;
            Ok(act.map(|act| (operations.min(limit(pace)), act)))
        };
        // Before the tool is there: making a file system is an event, too.
        let mut paced = prepare("paced", row.workload.paced)?;
        let mut burst = prepare("burst", row.workload.burst)?;
        let tool = command
            .map(|command| {
                // A tool that outlives an ended run would be measured by the next one.
                let bound: &[&str] = match self.native {
                    Some(_) => &["setpriv", "--pdeathsig", "TERM"],
                    None => &[],
                };
                let words = bound.iter().map(|word| (*word).to_string());
                let words: Vec<String> = words.chain(command.iter().cloned()).collect();
                Tool::start(&words, &self.shown(), &self.directory.join("said"))
            })
            .transpose()?;
        if let Some(tool) = &tool {
            figures.start_ns = tool.start_ns;
            figures.wakeups = if warm_up { 0 } else { tool.idle_wakeups()? };
        }
        if !warm_up {
            figures.unrelated_ns = unrelated(row.workload)?;
        }
        let programs = programs::now();
        let mut passes = [
            paced.as_mut().map(|(operations, act)| pass(act, *operations, true, tool.as_ref())),
            burst.as_mut().map(|(operations, act)| pass(act, *operations, false, tool.as_ref())),
        ]
        .into_iter()
        .map(Option::transpose)
        .collect::<Result<Vec<_>>>()?;
        if let Some(command) = command.filter(|_| !programs.is_empty() && !warm_up) {
            println!("{}:", command.join(" "));
            programs::print_since(&programs, passes.iter().flatten().map(made_of).sum());
        }
        if let Some(tool) = tool {
            figures.anonymous_bytes = tool.anonymous_bytes()?;
            figures.map_bytes = tool.map_bytes()?;
            let end = tool.stop()?;
            figures.stop_ns = end.stop_ns;
            figures.report_ns = end.report_ns;
            let text = fs::read(self.shown())?;
            for (pass, act) in passes.iter_mut().zip([&paced, &burst]) {
                if let (Some(pass), Some((_, act))) = (pass, act) {
                    pass.shown = shown(row.shown, &text, &act.mark, pass.operations);
                }
            }
            // A histogram does not say which of them it counted.
            if let (Shown::Histogram, [Some(paced), Some(burst)]) = (row.shown, &mut passes[..]) {
                burst.shown = burst.shown.map(|(shown, made)| (shown, made + made_of(paced)));
                paced.shown = None;
            }
        }
        figures.paced = passes[0];
        figures.burst = passes[1];
        Ok(figures)
    }
}

fn made_of(pass: &Pass) -> u64 {
    u64::from(pass.operations)
}

/// One pace of a workload, until the tool has shown what it has.
fn pass(act: &mut Act, operations: u32, paced: bool, tool: Option<&Tool>) -> Result<Pass> {
    let tool_before = tool.map(Tool::cpu).transpose()?;
    let before = cpu_of_workload()?;
    for _ in 0..operations {
        (act.once)()?;
        if paced {
            thread::sleep(PAUSE);
        }
    }
    let workload_ns = cpu_of_workload()? - before;
    let mut tool_ns = 0;
    if let (Some(tool), Some(before)) = (tool, tool_before) {
        thread::sleep(DRAIN);
        tool_ns = tool.cpu()? - before;
    }
    Ok(Pass { operations, workload_ns, tool_ns, shown: None })
}

/// CPU time of system calls that the workload does not make.
fn unrelated(workload: &Workload) -> Result<u64> {
    if workload.name == SYSTEM_CALLS.name {
        return Ok(0);
    }
    let scene = Scene { directory: PathBuf::new(), pace: "burst" };
    Ok(pass(&mut (SYSTEM_CALLS.prepare)(&scene)?, UNRELATED, false, None)?.workload_ns)
}

/// How many events the output shows, of how many.
fn shown(how: Shown, text: &[u8], mark: &str, operations: u32) -> Option<(u64, u64)> {
    let text = String::from_utf8_lossy(text);
    let operations = u64::from(operations);
    match how {
        Shown::Not => None,
        Shown::Lines(each) => {
            let lines = text.lines().filter(|line| line.contains(mark)).count();
            Some((lines as u64, operations * u64::from(each)))
        }
        Shown::Number => {
            let numbers = text.lines().filter_map(|line| line.trim().strip_prefix(mark));
            let sum =
                numbers.filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
            Some((sum.sum(), operations))
        }
        Shown::Histogram => {
            let bars = text.lines().filter(|line| line.contains(" -> "));
            let counts = bars.filter_map(|line| {
                line.split_once(':')?.1.split_whitespace().next()?.parse::<u64>().ok()
            });
            Some((counts.sum(), operations))
        }
    }
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

const USAGE: &str = "usage: bench [--native RUNS] OURS PEER_DIR [TOOL…]";

fn run() -> Result<()> {
    let mut args = std::env::args().skip(1).peekable();
    let mut native = None;
    if args.next_if(|arg| arg == "--native").is_some() {
        native = Some(args.next().and_then(|runs| runs.parse().ok()).context(USAGE)?);
    }
    let ours = args.next().context(USAGE)?;
    let peer = PathBuf::from(args.next().context(USAGE)?);
    let wanted: Vec<String> = args.collect();
    let listed = Command::new(&ours).arg("list").output().with_context(|| ours.clone())?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let there: BTreeSet<&str> =
        listed.lines().filter_map(|line| line.split_whitespace().next()).collect();
    for tool in &wanted {
        if !ROWS.iter().any(|row| row.tool == tool) {
            bail!("{tool}: no workload is for this tool");
        }
    }

    programs::begin()?;
    let directory = PathBuf::from("/tmp/bpfscope-bench");
    fs::create_dir_all(&directory)?;
    let bench = Bench { directory, native };
    let mut report = Report::default();
    report.begin();
    for row in ROWS {
        let asked = wanted.is_empty() || wanted.iter().any(|tool| tool == row.tool);
        if asked && there.contains(row.tool) {
            bench.row(row, &ours, &peer, &mut report);
        }
    }
    report.end();
    report::sizes(Path::new(&ours), &peer);
    Ok(())
}

impl Bench {
    /// Measures a row: without a tool, then beside each.
    fn row(&self, row: &Row, ours: &str, peer: &Path, report: &mut Report) {
        let ours = [vec![ours.to_string(), row.tool.into()], row.words(false)].concat();
        let program = peer.join(row.tool);
        let theirs = [vec![program.display().to_string()], row.words(true)].concat();
        // The first start reads the program from disk, and the kernel makes some things when they
        // are used for the first time; neither is what is compared.
        let ready = self.measure(row, None, true).and_then(|_| self.measure(row, None, false));
        if let Err(error) = ready {
            report.cannot(row, "the workload", &error);
            return;
        }
        let mut sides = Vec::new();
        for (by, command) in [("peer", theirs), ("bpfscope", ours)] {
            if by == "peer" && !program.exists() {
                report.cannot(row, by, &anyhow::anyhow!("there is no such tool"));
                continue;
            }
            match self.measure(row, Some(&command), true) {
                Ok(_) => sides.push((by, command, Vec::new())),
                Err(error) => report.cannot(row, by, &error),
            }
        }
        let mut bases = Vec::new();
        for _ in 0..self.native.unwrap_or(1) {
            match self.measure(row, None, false) {
                Ok(figures) => bases.push(figures),
                Err(error) => return report.cannot(row, "the workload", &error),
            }
            for (by, command, figures) in &mut sides {
                match self.measure(row, Some(command), false) {
                    Ok(measured) => figures.push(measured),
                    Err(error) => report.cannot(row, by, &error),
                }
            }
        }
        let base = report::median(&bases);
        for (by, _, figures) in sides {
            if !figures.is_empty() {
                report.add(row, by, &base, &report::median(&figures));
            }
        }
    }
}
