// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! `bpfscope doctor`: what tools need, what of it is here, and which of them run.
//!
//! A tool is tried by the ladder that it runs by (`runner::trial`), so that what is said here is
//! what it does.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::io::Write as _;
#[cfg(feature = "kernel-packages")]
use std::path::Path;
use std::path::PathBuf;

use anyhow::Result;
use clap::Arg;
use clap::ArgAction;
use clap::ArgMatches;
use clap::Command;
use clap::value_parser;
use libbpf_rs::set_print;
use nix::sys::utsname::uname;

use crate::error;
use crate::error::usage;
use crate::escape;
use crate::multi::Entry;
use crate::multi::find;
#[cfg(feature = "kernel-packages")]
use crate::package::InModule;
use crate::package::Package;
use crate::prerequisites;
use crate::prerequisites::Check;
use crate::prerequisites::State;
use crate::privileges;
use crate::probe::Kernel;
#[cfg(feature = "kernel-packages")]
use crate::runner::Judgement;
use crate::runner::Refusal;
#[cfg(feature = "kernel-packages")]
use crate::runner::refusals_in_words;
use crate::runner::refuse;
use crate::sys;
use crate::tool::Way;

/// Of the kernel's configuration, what decides about tools.
const OPTIONS: [&str; 25] = [
    "CONFIG_BPF_EVENTS",
    "CONFIG_BPF_JIT",
    "CONFIG_BPF_LSM",
    "CONFIG_BPF_SYSCALL",
    "CONFIG_CGROUPS",
    "CONFIG_DEBUG_INFO_BTF",
    "CONFIG_DEBUG_INFO_BTF_MODULES",
    "CONFIG_DYNAMIC_FTRACE",
    "CONFIG_DYNAMIC_FTRACE_WITH_ARGS",
    "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
    "CONFIG_DYNAMIC_FTRACE_WITH_REGS",
    "CONFIG_FPROBE",
    "CONFIG_FTRACE_SYSCALLS",
    "CONFIG_FUNCTION_TRACER",
    "CONFIG_KALLSYMS_ALL",
    "CONFIG_KPROBES",
    "CONFIG_KPROBE_EVENTS",
    "CONFIG_LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY",
    "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY",
    "CONFIG_PERF_EVENTS",
    "CONFIG_PREEMPT",
    "CONFIG_PREEMPT_DYNAMIC",
    "CONFIG_SECURITY_LOCKDOWN_LSM",
    "CONFIG_TASKS_RCU",
    "CONFIG_UPROBE_EVENTS",
];

/// Whether a tool runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Runs,
    /// Nothing speaks against it, and it could not be tried.
    Probably,
    No,
}

/// What is found about a tool.
struct Diagnosis {
    verdict: Verdict,
    way: Option<&'static str>,
    programs: Vec<&'static str>,
    /// Why it does not run.
    reason: Option<String>,
    refused: Vec<Refusal>,
    remarks: Vec<String>,
}

/// A tool with the arguments that it is looked at with.
struct Subject<'a> {
    tool: &'a Entry,
    /// The name that it was called by, and the arguments.
    args: Vec<OsString>,
}

fn command() -> Command {
    Command::new("bpfscope doctor")
        .about("What tools need, what of it is here, and which of them run")
        .after_help(
            "Each tool is hooked in for a moment and taken out again. Status 0 when every tool \
             that was asked for runs, else 3.",
        )
        .arg(
            Arg::new("json")
                .short('j')
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Write JSON, one object a line: docs/doctor.md"),
        )
        .arg(
            Arg::new("kernel")
                .long("kernel")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .conflicts_with("report")
                .help("Judge the kernel of an unpacked package instead, by what it has inside"),
        )
        .arg(
            Arg::new("report")
                .long("report")
                .action(ArgAction::SetTrue)
                .help("Write what a bug report needs; nothing that is private"),
        )
        .arg(
            Arg::new("tool")
                .value_name("TOOL")
                .num_args(0..)
                .help("Only these tools [default: all]"),
        )
        .arg(
            Arg::new("with")
                .value_names(["TOOL", "ARG"])
                .last(true)
                .num_args(1..)
                .value_parser(value_parser!(OsString))
                .help("One tool with arguments, which may change how it hooks in"),
        )
        .override_usage("bpfscope doctor [OPTIONS] [TOOL]... [-- TOOL ARG...]")
        .max_term_width(100)
}

/// Runs `bpfscope doctor`; the first of `args` is that word. Returns the exit status.
///
/// # Errors
/// Usage errors; and where a kernel's package cannot be read.
pub fn main(tools: &[Entry], args: &[OsString]) -> Result<u8> {
    let matches = match command().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => return refuse(&error),
    };
    let subjects = subjects(tools, &matches)?;
    // libbpf's words go into what is said of each tool, or nowhere.
    set_print(None);
    let json = matches.get_flag("json");
    let mut paper = Paper { json, gone: false };
    let all_run = match matches.get_one::<PathBuf>("kernel") {
        Some(root) => elsewhere(&mut paper, root, &subjects)?,
        None => here(&mut paper, &subjects, matches.get_flag("report"))?,
    };
    let status = match all_run {
        _ if sys::caught().is_some() => 130,
        true => error::OK,
        false => error::UNSUPPORTED,
    };
    if json {
        paper.line(&format!("{{\"type\":\"end\",\"status\":{status}}}"));
    }
    Ok(status)
}

fn subjects<'a>(tools: &'a [Entry], matches: &ArgMatches) -> Result<Vec<Subject<'a>>> {
    let named = |args: Vec<OsString>| {
        let name = args.first().map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default();
        match find(tools, &name) {
            Some(tool) => {
                let args =
                    if args.len() == 1 && name == tool.name { with_needs(tool) } else { args };
                // Before anything is written.
                (tool.check)(args.clone())?;
                Ok(Subject { tool, args })
            }
            None => Err(usage(format!("there is no tool '{name}'; bpfscope list names them"))),
        }
    };
    let mut subjects = Vec::new();
    for name in matches.get_many::<String>("tool").into_iter().flatten() {
        subjects.push(named(vec![name.into()])?);
    }
    if let Some(args) = matches.get_many::<OsString>("with") {
        subjects.push(named(args.cloned().collect())?);
    }
    if subjects.is_empty() {
        subjects = tools.iter().map(|tool| Subject { tool, args: with_needs(tool) }).collect();
    }
    Ok(subjects)
}

/// A tool's name, and what it cannot do without.
fn with_needs(tool: &Entry) -> Vec<OsString> {
    std::iter::once(tool.name).chain(tool.needs.iter().copied()).map(OsString::from).collect()
}

/// Looks at this machine.
fn here(paper: &mut Paper, subjects: &[Subject<'_>], report: bool) -> Result<bool> {
    // A signal between hooking a tool in and taking it out would leave something behind.
    let _wake = sys::catch_signals()?;
    let system = uname()?;
    let release = system.release().to_string_lossy().into_owned();
    let machine = system.machine().to_string_lossy().into_owned();
    let distribution = prerequisites::distribution();
    let config = prerequisites::config(&release);
    paper.head(&release, Some(&machine), distribution.as_deref());
    if report {
        paper.fact("build", &system.version().to_string_lossy());
        let cpus = libbpf_rs::num_possible_cpus()?;
        paper.fact("cpus", &cpus.to_string());
        if config.is_none() {
            paper.fact("config", "unknown: neither /proc/config.gz nor a file in /boot");
        }
        for name in config.iter().flat_map(|_| OPTIONS) {
            let value = config.as_ref().and_then(|config| config.get(name));
            paper.fact(name, value.map_or("n", String::as_str));
        }
    }
    for check in prerequisites::look(&Kernel::look(), config.as_ref()) {
        paper.check(&check);
    }
    let mut all_run = true;
    for subject in subjects {
        if sys::caught().is_some() {
            break;
        }
        let diagnosis = try_here(subject)?;
        all_run &= diagnosis.verdict != Verdict::No;
        paper.tool(subject, &diagnosis);
    }
    Ok(all_run)
}

fn try_here(subject: &Subject<'_>) -> Result<Diagnosis> {
    let trial = (subject.tool.trial)(subject.args.clone())?;
    let explained = |Refusal { way, reason }| {
        let hint = privileges::hint(&reason).map(|hint| format!(" ({hint})")).unwrap_or_default();
        Refusal { way, reason: reason + &hint }
    };
    let refused = trial.refused.into_iter().map(explained).collect();
    let (verdict, way, reason, remarks) = match trial.taken {
        Ok((way, remarks)) => (Verdict::Runs, Some(way), None, remarks),
        Err(error) => (Verdict::No, None, Some(format!("{error:#}")), Vec::new()),
    };
    Ok(Diagnosis {
        verdict,
        way: way.as_ref().map(|way| way.name),
        programs: way.iter().flat_map(Way::all).collect(),
        reason,
        refused,
        remarks,
    })
}

#[cfg(not(feature = "kernel-packages"))]
fn elsewhere(_: &mut Paper, _: &PathBuf, _: &[Subject<'_>]) -> Result<bool> {
    Err(error::unsupported("this bpfscope was built without the feature kernel-packages"))
}

/// Judges a kernel by its package.
#[cfg(feature = "kernel-packages")]
fn elsewhere(paper: &mut Paper, root: &Path, subjects: &[Subject<'_>]) -> Result<bool> {
    let (package, btf) = Package::open(root)?;
    let mut kernel = Kernel::of(btf);
    paper.head(&package.release, None, None);
    for check in package.checks(&kernel) {
        paper.check(&check);
    }
    let mut all_run = true;
    for subject in subjects {
        let diagnosis = judge(subject, &package, &mut kernel)?;
        all_run &= diagnosis.verdict != Verdict::No;
        paper.tool(subject, &diagnosis);
    }
    Ok(all_run)
}

#[cfg(feature = "kernel-packages")]
fn judge(subject: &Subject<'_>, package: &Package, kernel: &mut Kernel) -> Result<Diagnosis> {
    let judged = (subject.tool.judge)(subject.args.clone(), kernel)?;
    let (mut taken, mut refused) = best(&judged, package, kernel);
    let mut remarks = Vec::new();
    if taken.is_none() {
        // Only now: to read all modules takes its time.
        let found = package.from_modules(kernel, &judged.programs);
        for InModule { name, described, .. } in &found {
            kernel.learn(name.clone(), *described);
        }
        let again = (subject.tool.judge)(subject.args.clone(), kernel)?;
        (taken, refused) = best(&again, package, kernel);
        let in_module =
            |InModule { name, module, .. }: &InModule| format!("{name} is in module {module}");
        remarks.extend(found.iter().filter(|_| taken.is_some()).map(in_module));
    }
    let reason = taken
        .is_none()
        .then(|| format!("that kernel does not let it hook in: {}", refusals_in_words(&refused)));
    let verdict = if taken.is_some() { Verdict::Probably } else { Verdict::No };
    Ok(Diagnosis {
        verdict,
        way: taken.as_ref().map(|way| way.name),
        programs: taken.iter().flat_map(Way::all).collect(),
        reason,
        refused,
        remarks,
    })
}

/// The first of the ways that nothing in the package speaks against, and those before it.
#[cfg(feature = "kernel-packages")]
fn best(judged: &Judgement, package: &Package, kernel: &Kernel) -> (Option<Way>, Vec<Refusal>) {
    let mut refused = judged.refused.clone();
    for way in &judged.ways {
        let lacks = |name: &&str| {
            let program = judged.programs.iter().find(|program| program.name == **name)?;
            package.lacks(kernel, &program.section)
        };
        if let Some(reason) =
            way.programs.iter().chain(&way.by_hand).chain(&way.iterators).find_map(lacks)
        {
            refused.push(Refusal { way: way.name, reason });
            continue;
        }
        let optional = way.optional.iter().copied().filter(|name| lacks(name).is_none()).collect();
        let mut groups = way.groups.clone();
        groups.retain(|group| group.iter().find_map(lacks).is_none());
        if let (Some(group), true) = (way.groups.first(), groups.is_empty()) {
            let reason = group.iter().find_map(lacks).unwrap_or_default();
            refused.push(Refusal { way: way.name, reason });
            continue;
        }
        return (Some(Way { optional, groups, ..way.clone() }), refused);
    }
    (None, refused)
}

/// Where it is all written, line by line.
struct Paper {
    json: bool,
    /// Nobody reads any more.
    gone: bool,
}

fn quoted(text: &str) -> String {
    let mut out = b"\"".to_vec();
    escape::json(&mut out, text.as_bytes());
    out.push(b'"');
    String::from_utf8_lossy(&out).into_owned()
}

fn quoted_or_null(text: Option<&str>) -> String {
    text.map_or_else(|| "null".into(), quoted)
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", items.map(quoted).collect::<Vec<_>>().join(","))
}

impl Paper {
    fn line(&mut self, line: &str) {
        if self.gone {
            return;
        }
        let mut stdout = io::stdout();
        let written = stdout.write_all(format!("{line}\n").as_bytes());
        // What was found decides the status, whether or not anybody reads it.
        self.gone = written.and_then(|()| stdout.flush()).is_err();
    }

    fn text(&mut self, line: &str) {
        self.line(&escape::printable(line.as_bytes()));
    }

    fn head(&mut self, release: &str, machine: Option<&str>, distribution: Option<&str>) {
        let version = env!("CARGO_PKG_VERSION");
        if self.json {
            self.line(&format!(
                "{{\"type\":\"doctor\",\"schema\":1,\"version\":\"{version}\",\"kernel\":{},\
                 \"machine\":{},\"distribution\":{}}}",
                quoted(release),
                quoted_or_null(machine),
                quoted_or_null(distribution)
            ));
            return;
        }
        let mut line = format!("bpfscope {version}: Linux {release}");
        for more in [machine, distribution].into_iter().flatten() {
            let _ = write!(line, ", {more}");
        }
        self.text(&line);
    }

    fn fact(&mut self, name: &str, value: &str) {
        if self.json {
            self.line(&format!(
                "{{\"type\":\"fact\",\"name\":{},\"value\":{}}}",
                quoted(name),
                quoted(value)
            ));
        } else {
            self.text(&format!("{name}={value}"));
        }
    }

    fn check(&mut self, check: &Check) {
        let Check { name, state, found, stops } = check;
        if self.json {
            self.line(&format!(
                "{{\"type\":\"check\",\"name\":{},\"state\":\"{}\",\"found\":{},\"stops\":{}}}",
                quoted(name),
                state.name(),
                quoted(found),
                quoted_or_null(stops.as_deref())
            ));
            return;
        }
        let mut line = format!("{name:25} {:7} {found}", state.name());
        if let Some(stops) = stops {
            let verb = if *state == State::Missing { "stops" } else { "limits" };
            let _ = write!(line, "; {verb}: {stops}");
        }
        self.text(&line);
    }

    fn tool(&mut self, subject: &Subject<'_>, diagnosis: &Diagnosis) {
        let name = subject.tool.name;
        let args: Vec<String> =
            subject.args.iter().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
        let Diagnosis { verdict, way, programs, reason, refused, remarks } = diagnosis;
        if self.json {
            let verdict = match verdict {
                Verdict::Runs => "runs",
                Verdict::Probably => "probably",
                Verdict::No => "no",
            };
            let refused: Vec<String> = refused
                .iter()
                .map(|r| format!("{{\"way\":\"{}\",\"reason\":{}}}", r.way, quoted(&r.reason)))
                .collect();
            self.line(&format!(
                "{{\"type\":\"tool\",\"tool\":\"{name}\",\"args\":{},\"verdict\":\"{verdict}\",\
                 \"way\":{},\"programs\":{},\"reason\":{},\"refused\":[{}],\"remarks\":{}}}",
                list(args.iter().map(String::as_str)),
                quoted_or_null(*way),
                list(programs.iter().copied()),
                quoted_or_null(reason.as_deref()),
                refused.join(","),
                list(remarks.iter().map(String::as_str)),
            ));
            return;
        }
        let mut line = format!("{:25} ", [&[name.to_string()], args.as_slice()].concat().join(" "));
        let runs = if *verdict == Verdict::Probably { "probably runs" } else { "runs" };
        match (way, reason) {
            (Some(way), _) => {
                let _ = write!(line, "{runs} by {way} ({})", programs.join(" "));
                for refusal in refused {
                    let _ = write!(line, "; not by {}: {}", refusal.way, refusal.reason);
                }
                for remark in remarks {
                    let _ = write!(line, "; {remark}");
                }
            }
            (None, reason) => {
                let _ = write!(line, "does not run: {}", reason.as_deref().unwrap_or_default());
            }
        }
        self.text(&line);
    }
}
