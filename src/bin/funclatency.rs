// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! funclatency: how long functions of the kernel and of programs take, as histograms.

use std::cell::Cell;
use std::cell::OnceCell;
use std::time::Duration;

use bpfscope::cli::seconds;
use bpfscope::escape;
use bpfscope::function_probes::FunctionProbes;
use bpfscope::functions;
use bpfscope::functions::Binary;
use bpfscope::functions::Pattern;
use bpfscope::histogram;
use bpfscope::histogram::Histogram;
use bpfscope::histogram::Intervals;
use bpfscope::histogram::Unit;
use bpfscope::pidns;
use bpfscope::prelude::*;
use bpfscope::threads;
use libbpf_rs::MapFlags;

bpf!("funclatency");
use bpf::types;

/// Show how long functions of the kernel or of programs take, as a histogram
#[derive(clap::Args)]
// Each is a switch of its own on the command line.
#[allow(clippy::struct_excessive_bools)]
pub struct Args {
    /// What to time: FUNCTION of the kernel, LIBRARY:FUNCTION, PROGRAM:FUNCTION, /PATH:FUNCTION, or
    /// :FUNCTION of the program of --pid; with wildcards also several
    #[arg(value_name = "FUNCTION")]
    target: Option<String>,
    /// Seconds between reports; without it, one report at the end
    #[arg(short, long, value_parser = seconds)]
    interval: Option<Duration>,
    /// Count in microseconds instead of nanoseconds
    #[arg(short = 'u', long, conflicts_with = "milliseconds")]
    microseconds: bool,
    /// Count in milliseconds instead of nanoseconds
    #[arg(short, long)]
    milliseconds: bool,
    /// Use kprobes also where functions of the kernel have a cheaper way
    #[arg(short, long)]
    kprobes: bool,
    /// FUNCTION is a regular expression, which the whole name has to match
    #[arg(short, long)]
    regexp: bool,
    /// One histogram for each function; for those of programs, also for each process
    #[arg(short = 'F', long = "function")]
    by_function: bool,
    /// How deeply calls of these functions may be nested in one thread
    #[arg(short, long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=128))]
    level: u32,
    /// How many functions may match at the most
    #[arg(long, value_name = "N", default_value_t = 200,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_functions: u32,
    /// What --pid names.
    #[arg(skip)]
    pids: Vec<u32>,
    /// What FUNCTION turned out to be.
    #[arg(skip)]
    found: OnceCell<Found>,
    /// The way that is tried.
    #[arg(skip)]
    way: Cell<&'static str>,
}

/// The functions that are traced.
struct Found {
    /// Their names; a function's number is its place here.
    names: Vec<String>,
    /// Where they are, when they are not the kernel's: the file, and each function's number and
    /// offset in it.
    files: Vec<(Binary, Vec<(usize, u64)>)>,
    /// What is worth knowing about the choice.
    remark: Option<String>,
}

const NSECS: Unit = Unit { label: "nsec", scale: 1 };
const USECS: Unit = Unit { label: "usec", scale: 1_000 };
const MSECS: Unit = Unit { label: "msec", scale: 1_000_000 };

/// Histograms of processes take memory on every CPU.
const PROCESS_HISTOGRAMS: u32 = 1024;
/// At least so many threads can be in the middle of a call, beside those that have a place of their
/// own.
const FEWEST_THREADS: u32 = 1024;
const MOST_THREADS: u32 = 1 << 20;
/// Pages do not move when a program is loaded: what an address has below this is the same in every
/// process.
const IN_PAGE: u64 = 0xfff;

impl Args {
    fn unit(&self) -> Unit {
        match (self.microseconds, self.milliseconds) {
            (true, _) => USECS,
            (_, true) => MSECS,
            _ => NSECS,
        }
    }

    fn target(&self) -> Result<&str> {
        let missing = || usage("FUNCTION is missing: which function is to be timed? See --help");
        self.target.as_deref().ok_or_else(missing)
    }

    /// The file and the function in it, when it is one of a program.
    fn of_program(&self) -> Option<(&str, &str)> {
        self.target.as_deref()?.split_once(':')
    }

    /// Without a process, each that uses a library is shown for itself, as is each with -F.
    fn by_process(&self) -> bool {
        let is_library = |name: &str| {
            let base = name.rsplit('/').next().unwrap_or(name);
            base.contains(".so") || (!name.contains('/') && !functions::is_program(name))
        };
        self.of_program()
            .is_some_and(|(file, _)| self.pids.is_empty() && (self.by_function || is_library(file)))
    }

    fn find(&self) -> Result<&Found> {
        if let Some(found) = self.found.get() {
            return Ok(found);
        }
        let found = match self.of_program() {
            Some((file, function)) => self.in_files(file, function)?,
            None => self.in_kernel()?,
        };
        let most = self.max_functions as usize;
        if found.names.len() > most {
            return Err(usage(format!(
                "{} functions match '{}', and at most {most} are traced: --max-functions takes \
                 more, which slows down all that call them",
                found.names.len(),
                self.target()?,
            )));
        }
        Ok(self.found.get_or_init(|| found))
    }

    fn in_kernel(&self) -> Result<Found> {
        let text = self.target()?;
        let pattern = Pattern::new(text, self.regexp)?;
        let (mut names, mut remark) = (Vec::new(), None);
        if let Some(name) = pattern.name() {
            if functions::serves_tracing(name) {
                return Err(usage(format!(
                    "{name} is not traced: the kernel needs it itself while it traces"
                )));
            }
            names.push(name.to_string());
        } else {
            let found = functions::of_kernel(&pattern)?;
            let mut left_out = Vec::new();
            if found.denied > 0 {
                left_out.push(format!("{} that tracing needs itself", found.denied));
            }
            if found.ambiguous > 0 {
                left_out.push(format!("{} whose names are not unique", found.ambiguous));
            }
            if found.names.is_empty() {
                let but = if left_out.is_empty() { "" } else { " but " };
                anyhow::bail!(
                    "no function of the kernel that can be traced matches '{text}'{but}{}",
                    left_out.join(" and ")
                );
            }
            if !left_out.is_empty() {
                remark = Some(format!("functions left out: {}", left_out.join(", ")));
            }
            names = found.names;
        }
        Ok(Found { names, files: Vec::new(), remark })
    }

    fn in_files(&self, file: &str, function: &str) -> Result<Found> {
        let pattern = Pattern::new(function, self.regexp)?;
        let mut names: Vec<String> = Vec::new();
        let mut files = Vec::new();
        for binary in functions::binaries(file, &self.pids)? {
            let here = functions::of_file(&binary.file, &pattern)
                .with_context(|| self.target.clone().unwrap_or_default())?;
            let mut places = Vec::with_capacity(here.len());
            for function in here {
                let known = names.iter().position(|name| *name == function.name);
                let number = known.unwrap_or_else(|| {
                    names.push(function.name);
                    names.len() - 1
                });
                places.push((number, function.offset));
            }
            if places.is_empty() {
                anyhow::bail!("no function '{function}' has a symbol in '{file}'");
            }
            files.push((binary, places));
        }
        Ok(Found { names, files, remark: None })
    }

    /// Whether calls of several functions have to be told apart.
    fn tells_functions_apart(&self, found: &Found) -> bool {
        found.names.len() > 1 && (self.by_function || self.by_process())
    }

    /// Numbers of functions by address, where the kernel passes no cookies.
    fn know_addresses(&self, skel: &bpf::Skel<'_>, found: &Found) -> Result<()> {
        let mut numbers: Vec<(u64, usize)> = Vec::new();
        if found.files.is_empty() {
            let addresses = functions::addresses(&found.names)?;
            let address = |name| addresses.get(name).copied();
            numbers.extend(
                found.names.iter().enumerate().filter_map(|(i, name)| Some((address(name)?, i))),
            );
        }
        for (_, places) in &found.files {
            numbers.extend(places.iter().map(|(number, offset)| (offset & IN_PAGE, *number)));
        }
        numbers.sort_unstable();
        numbers.dedup();
        if let Some(pair) = numbers.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            anyhow::bail!(
                "this kernel cannot tell {} from {}: trace them without -F, or one at a time",
                found.names[pair[0].1],
                found.names[pair[1].1]
            );
        }
        for (address, number) in numbers {
            let number = u32::try_from(number)?.to_ne_bytes();
            skel.maps.functions.update(&address.to_ne_bytes(), &number, MapFlags::ANY)?;
        }
        Ok(())
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Counts how long calls of a function take, from its beginning until it returns, in a histogram whose \
rows are powers of two. The time includes all that the function calls, and the time that the thread \
sleeps in it or waits for a CPU.

FUNCTION is a function of the kernel, or one of a program or library: LIBRARY:FUNCTION (c:malloc, \
libssl.so.3:SSL_read), PROGRAM:FUNCTION for a program in the PATH, /PATH:FUNCTION for any file, and \
:FUNCTION for the program that the process of --pid runs. With --pid, libraries and paths are those \
that this process sees, also in a container, and also when they have been deleted. Functions of C++ \
and Rust go by the names that people write (space::name), with or without the types of the \
arguments, or by those of the linker.

With * and ? in the name, or with -r, several functions are traced together; -F shows each for \
itself. Calls can be nested: each has its own time, whichever function called which, as deeply as \
--level says. Of a library that is traced without --pid, each process has a histogram of its own.

Below the histograms stand the average, the sum and the number of all calls of the report.",
        examples: "\
How long do reads take, all together?

    # funclatency vfs_read
    Tracing vfs_read.  Hit Ctrl-C to exit
    ^C
         nsec                : count    distribution
             0 -> 1          : 0        |                                        |
             2 -> 3          : 0        |                                        |
             4 -> 7          : 0        |                                        |
             8 -> 15         : 0        |                                        |
            16 -> 31         : 0        |                                        |
            32 -> 63         : 0        |                                        |
            64 -> 127        : 0        |                                        |
           128 -> 255        : 12       |**                                      |
           256 -> 511        : 191      |****************************************|
           512 -> 1023       : 38       |*******                                 |
          1024 -> 2047       : 5        |*                                       |

    avg = 409 nsec, total: 100701 nsec, count: 246

    Exiting trace of vfs_read

Most reads were served within half a microsecond, none had to wait for a disk.

Which of the file system's operations is slow, in microseconds, every five seconds?

    # funclatency -u -F -i 5 'vfs_*'

How long does one server wait for its TLS library, which lies in its container?

    # funclatency -p 4242 libssl.so.3:SSL_read

How long do lookups of host names take, for each process?

    # funclatency -m c:getaddrinfo

The memory allocations of one command:

    # funclatency -u c:malloc -- ls -l /usr/bin",
        overhead: "\
Two short programs a call, which count in the kernel. A function of the kernel that is traced by \
itself costs a few hundred nanoseconds a call, one of several a little more; one of a program some \
microseconds, because the program enters the kernel twice. A function that is called millions of \
times a second slows down all that call it. To attach and detach takes up to 100 ms for each \
function where the kernel cannot take many at once; so more than --max-functions are refused.",
        limits: "\
Functions that the compiler put into their callers are not seen, nor all calls of those that it has \
split: where /proc/kallsyms has NAME.part.0 beside NAME (vfs_rmdir on Debian's 5.10), callers in the \
same file go there. Nor are those that the kernel does not let anybody probe. What the kernel needs itself for tracing is refused. Of functions of the kernel \
that share a name, wildcards leave out all. A call that is under way when the tool starts or ends is \
not counted; nor is one that never returns because its thread ends, or because a program jumps out \
of it (longjmp, exceptions). Calls nested more deeply than --level are not counted; they are \
reported as refused map insertions. Filters are asked when a call begins. What the kernel does in an \
interrupt counts for the thread that was interrupted. Programs that move their stacks while they \
run (Go) must not be traced by their functions: a probe at the return of one ends the program. 32-bit \
programs have no symbols here. Of a library without --pid, only the copy of the host is traced, \
those of containers need --pid. Where a kernel before 5.15 cannot tell functions of a program apart \
that lie at the same place of a page, -F says so and ends.",
    };
    const QUESTION: Question = Question {
        heading: "Processes",
        question: "How long does a function of the kernel or of a program take?",
    };
    const NEEDS: &'static [&'static str] = &["c:fsync"];
    const LETTERS: &'static [(&'static str, char)] =
        &[("cgroup", 'c'), ("duration", 'd'), ("pid", 'p'), ("timestamp", 'T')];

    fn check(&mut self, common: &mut Common) -> Result<()> {
        self.pids.clone_from(&common.pid);
        if let Some((file, function)) = self.of_program() {
            Pattern::new(function, self.regexp)?;
            if file.is_empty() && self.pids.is_empty() {
                return Err(usage("':FUNCTION' means the program of a process: it needs --pid"));
            }
            if self.kprobes {
                return Err(usage("--kprobes is for functions of the kernel"));
            }
        } else if let Some(text) = &self.target {
            Pattern::new(text, self.regexp)?;
        }
        Ok(())
    }

    fn ways(&self) -> Vec<Way> {
        let way =
            |name, programs: &[&'static str]| Way::new(name, &["thread_free"]).by_hand(programs);
        if self.of_program().is_some() {
            return vec![
                way("uprobe_multi", &["exit__uprobe_multi", "enter__uprobe_multi"]),
                way("uprobe", &["exit__uprobe", "enter__uprobe"]),
            ];
        }
        let mut ways = vec![
            way("kprobe_multi", &["exit__kprobe_multi", "enter__kprobe_multi"]),
            way("kprobe", &["exit__kprobe", "enter__kprobe"]),
        ];
        let is_one = !self.regexp && self.target.as_deref().is_none_or(|t| !t.contains(['*', '?']));
        if is_one && !self.kprobes {
            let programs =
                ["exit__fentry", "exit_twin__fentry", "enter__fentry", "enter_twin__fentry"];
            let fentry = Way::new("fentry", &["exit__fentry"])
                .twin("exit__fentry", "exit_twin__fentry")
                .with(true, &["enter__fentry"])
                .twin("enter__fentry", "enter_twin__fentry")
                .with(true, &["thread_free"]);
            // Without a function it is only asked what there would be.
            let function = self.target.as_deref().unwrap_or_default();
            ways.insert(0, programs.iter().fold(fentry, |way, name| way.aim(name, function, "")));
        }
        ways
    }

    fn records(&self) -> Records {
        let kind = Kind::histogram("latency_ns")
            .field(
                "function",
                Type::String,
                "The function; null where several are counted together.",
            )
            .field("pid", Type::Uint, "The process; null where all are counted together.");
        Records::new([kind])
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, way: &Way) -> Result<()> {
        self.way.set(way.name);
        let found = self.find()?;
        let apart = self.tells_functions_apart(found);
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.levels = self.level;
        settings.want_functions = apart && way.name != "fentry";
        settings.of_programs = !found.files.is_empty();
        settings.want_processes = self.by_process();
        settings.ns_per_slot_unit = self.unit().scale;
        if !found.files.is_empty() {
            settings.address_mask = IN_PAGE;
        }
        let functions = u32::try_from(found.names.len())?;
        let call = u32::try_from(size_of::<types::call>())?;
        open.maps.threads.set_value_size(8 + self.level * call)?;
        open.maps.near_threads.set_value_size(8 + self.level * call)?;
        open.maps.threads.set_max_entries(threads::twice(FEWEST_THREADS, MOST_THREADS))?;
        open.maps.latencies.set_max_entries(if apart { functions } else { 1 })?;
        open.maps.functions.set_max_entries(functions)?;
        if self.by_process() {
            open.maps.process_latencies.set_max_entries(PROCESS_HISTOGRAMS)?;
        }
        Ok(())
    }

    fn attach(&self, skel: &bpf::Skel<'_>, _: &Common, asides: &mut Asides) -> Result<()> {
        use libbpf_rs::skel::Skel as _;
        let (found, way) = (self.find()?, self.way.get());
        if let Some(remark) = &found.remark {
            asides.remark(remark.clone());
        }
        if way == "fentry" {
            return Ok(());
        }
        let (enter, exit) = (format!("enter__{way}"), format!("exit__{way}"));
        let mut probes = FunctionProbes::new(skel.object(), &enter, &exit)?;
        match way {
            "kprobe_multi" => probes.kernel_at_once(&found.names)?,
            "kprobe" => probes.kernel(&found.names),
            _ => {
                for (binary, places) in &found.files {
                    match way {
                        "uprobe_multi" => probes.file_at_once(&binary.file, binary.pid, places)?,
                        _ => probes.file(&binary.file, binary.pid, places)?,
                    }
                }
            }
        }
        if let Some((function, reason)) = probes.refused.first() {
            if probes.count() == 0 {
                anyhow::bail!("{function}: {reason}");
            }
            let more = probes.refused.len() - 1;
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            asides.remark(format!("functions that the kernel refused: {function}{more}"));
        }
        if let Some(reason) = &probes.narrow {
            asides.remark(format!(
                "tracefs: {reason}: when many calls are under way at once, some are missed"
            ));
        }
        if !probes.has_cookies && self.tells_functions_apart(found) {
            self.know_addresses(skel, found)?;
        }
        asides.add(probes.while_running()?);
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let found = self.find()?;
        let target = escape::printable(self.target()?.as_bytes());
        let unit = self.unit();
        let timestamp = session.common.choice.timestamp;
        let mut intervals = Intervals::default();
        let apart = self.tells_functions_apart(found);
        session.output.line(&if found.names.len() > 1 {
            format!(
                "Tracing {} functions for \"{target}\"... Hit Ctrl-C to end.",
                found.names.len()
            )
        } else {
            format!("Tracing {target}.  Hit Ctrl-C to exit")
        });
        let mut report = |out: &mut Output| -> Result<()> {
            out.line("");
            if timestamp {
                out.time_line();
            }
            let latencies = if self.by_process() {
                histogram::read(&skel.maps.process_latencies, |key: &types::function_process| {
                    (key.function, Some(key.pid))
                })?
            } else {
                histogram::read(&skel.maps.latencies, |key: &u32| (*key, None))?
            };
            let mut all = Histogram::default();
            for ((number, pid), latency) in intervals.next(latencies) {
                let name = found.names.get(number as usize).map(String::as_str);
                let name = name.filter(|_| apart || found.names.len() == 1);
                let shown = escape::printable(name.unwrap_or(&target).as_bytes());
                let title = match pid {
                    Some(pid) => Some(format!("Function = {shown} [{}]", pidns::shown(pid))),
                    None => self.by_function.then(|| format!("Function = {shown}")),
                };
                if all.count() > 0 {
                    out.line("");
                }
                let key = [
                    name.map_or(Value::Null, Value::Str),
                    pid.map_or(Value::Null, |pid| Value::Uint(pid.into())),
                ];
                if out.histogram(0, title.as_deref(), &key, &latency, unit) {
                    all.add(&latency.slots, latency.sum);
                }
            }
            if all.count() > 0 {
                let total = all.sum / unit.scale;
                out.line(&format!(
                    "\navg = {} {unit}, total: {total} {unit}, count: {}\n",
                    total / all.count(),
                    all.count(),
                    unit = unit.label,
                ));
            }
            out.report_done();
            Ok(())
        };
        session.every(Every { interval: self.interval, count: None, act: &mut report })?;
        session.output.line(&format!("Exiting trace of {target}"));
        Ok(())
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
