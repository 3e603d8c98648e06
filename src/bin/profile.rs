// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! profile: which code the CPUs run, by sampling stacks.

use std::cell::OnceCell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use std::time::SystemTime;

use bpfscope::cli::seconds;
use bpfscope::cpus;
use bpfscope::cpus::Arrivals;
use bpfscope::maps;
use bpfscope::output::Form;
use bpfscope::perf;
use bpfscope::perf::Rate;
use bpfscope::perf::Source;
use bpfscope::prelude::*;
use bpfscope::shared::StackKey;
use bpfscope::stacks;
use bpfscope::stacks::Entry;
use bpfscope::stacks::Order;
use bpfscope::stacks::Shape;
use bpfscope::stacks::Stacks;
use bpfscope::stacks::Style;
use bpfscope::stacks::Taken;
use libbpf_rs::skel::OpenSkel as _;
use nix::errno::Errno;

bpf!("profile");

/// Sample which code runs on the CPUs, by stack
#[derive(clap::Args)]
pub struct Args {
    /// End after so many seconds; without it, at Ctrl-C
    #[arg(value_parser = seconds, conflicts_with = "duration")]
    seconds: Option<Duration>,
    /// Samples a second on each CPU
    #[arg(short = 'F', long, value_name = "HZ", conflicts_with = "count",
          value_parser = clap::value_parser!(u64).range(1..=100_000))]
    frequency: Option<u64>,
    /// A sample each N cycles, or nanoseconds where there is no counter of cycles
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1000..))]
    count: Option<u64>,
    /// Only this CPU
    #[arg(short = 'C', long, value_name = "N")]
    cpu: Option<u32>,
    /// Include idle CPUs
    #[arg(short = 'I', long)]
    include_idle: bool,
    /// Mark the kernel's functions with _[k] in folded output and images
    #[arg(short, long)]
    annotations: bool,
    /// Write a flame graph to this file, an SVG image
    #[cfg(feature = "flame-graph")]
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write a profile for pprof to this file
    #[cfg(feature = "pprof")]
    #[arg(long, value_name = "FILE")]
    pprof: Option<PathBuf>,
    #[command(flatten)]
    shape: Shape,
    /// Whom, and how long: of the common options, for the first line.
    #[arg(skip)]
    of: String,
    #[arg(skip)]
    until: String,
    /// What the moments are taken from, once that is known.
    #[arg(skip)]
    source: OnceCell<Source>,
}

const FREQUENCY: u64 = 49;

impl Args {
    fn rate(&self) -> Rate {
        match self.count {
            Some(count) => Rate::Period(count),
            None => Rate::Hertz(self.frequency.unwrap_or(FREQUENCY)),
        }
    }

    fn banner(&self) -> String {
        let rate = match self.rate() {
            Rate::Hertz(hertz) => format!("at {hertz} Hertz"),
            Rate::Period(count) => format!("every {count} events"),
        };
        let cpu = self.cpu.map(|cpu| format!(" on CPU#{cpu}")).unwrap_or_default();
        format!("Sampling {rate} of{} by {}{cpu}{}", self.of, self.shape.by(), self.until)
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let mut files: Vec<&PathBuf> = Vec::new();
        #[cfg(feature = "flame-graph")]
        files.extend(&self.svg);
        #[cfg(feature = "pprof")]
        files.extend(&self.pprof);
        files.into_iter()
    }
}

/// A list as upstream shows it: ` PID [1, 2]`.
fn listed(name: &str, ids: &[u32]) -> String {
    if ids.is_empty() { String::new() } else { format!(" {name} {ids:?}") }
}

/// The perf events that let the program run, one for each CPU.
struct Sampling {
    program: OwnedFd,
    /// The clock, where at least one CPU has no counter.
    source: Source,
    rate: Rate,
    only: Option<u32>,
    events: BTreeMap<u32, OwnedFd>,
    arrivals: Option<Arrivals>,
}

impl Sampling {
    /// Begins on all CPUs that are online, with the counter of cycles where there is one.
    fn start(program: BorrowedFd<'_>, rate: Rate, only: Option<u32>) -> Result<Self> {
        let mut sampling = Self {
            program: program.try_clone_to_owned()?,
            source: Source::Cycles,
            rate,
            only,
            events: BTreeMap::new(),
            // Before the others are listed, so that none comes in between.
            arrivals: Arrivals::listen().ok(),
        };
        let cpus = only.map_or_else(cpus::online, |cpu| vec![cpu]);
        for cpu in cpus {
            match sampling.add(cpu) {
                // It has gone offline just now.
                Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => {}
                other => other.with_context(|| format!("sampling on CPU {cpu}"))?,
            }
        }
        anyhow::ensure!(!sampling.events.is_empty(), "there is no CPU online to sample");
        Ok(sampling)
    }

    fn add(&mut self, cpu: u32) -> io::Result<()> {
        // The event of a CPU that was offline in between does nothing any more.
        self.events.remove(&cpu);
        // Each CPU by itself: some have several kinds of them, of which one has no such counter.
        let with = |source| perf::sample(cpu, source, self.rate, self.program.as_fd());
        let (source, event) = match with(Source::Cycles) {
            Ok(event) => (self.source, event),
            Err(error) if no_counter(&error) => (Source::Clock, with(Source::Clock)?),
            Err(error) => return Err(error),
        };
        self.source = source;
        self.events.insert(cpu, event);
        Ok(())
    }
}

/// Whether the machine has no such counter, or it is in use.
fn no_counter(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::ENODEV | Errno::EBUSY | Errno::ENXIO)
    )
}

impl Aside for Sampling {
    fn descriptors(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        if let Some(arrivals) = &self.arrivals {
            watch(arrivals.as_fd());
        }
    }

    fn act(&mut self) -> Result<()> {
        let arrived = self.arrivals.as_mut().map(Arrivals::take).unwrap_or_default();
        for cpu in arrived {
            if self.only.is_none_or(|only| only == cpu) {
                // Gone again.
                let _ = self.add(cpu);
            }
        }
        Ok(())
    }

    fn stop(&mut self) {
        self.events.clear();
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Looks at each CPU many times a second, and counts which thread runs there and which stack of \
functions it is in. At the end it shows each stack that was seen, the function that ran first and \
its callers below it: those of the kernel, then those of the program, then the command name, the \
process id and how often the stack was seen. What is seen twice as often takes twice as much time \
of the CPUs.

The moments are taken from the CPU's own counter of cycles. Where there is none (most virtual \
machines), a timer of the kernel takes its place; the field event says which. Code that runs with \
interrupts off is then charged to where they are on again. CPUs that come online while the tool \
runs are sampled too.

Each process is shown with its command name; its threads are one. A function that has no name is \
shown as the file and the offset there, or as an address. Names that programs like Java and node \
give to the code that they make while they run are taken from /tmp/perf-PID.map.

--svg FILE draws a flame graph, and --pprof FILE writes a profile for pprof.",
        examples: "\
What are the CPUs doing, for ten seconds?

    # profile 10

And what does one process do, for a second? The first stack of the output:

    # profile -p 792 1
    Sampling at 49 Hertz of PID [792] by user + kernel for 1 secs.
        rep_stos_alternative
        read_zero
        vfs_read
        ksys_read
        do_syscall_64
        entry_SYSCALL_64_after_hwframe
        read
        -                dd (792)
            40

Of 49 samples, 40 were in the kernel's rep_stos_alternative(), which fills memory: dd reads from \
/dev/zero.

Where does process 1234 spend its time? As a flame graph, at 199 samples a second:

    # profile -F 199 -p 1234 --svg flames.svg 30

Only what the program does itself, for another program that draws:

    # profile -fU -p 1234 30 > folded.txt",
        overhead: "\
Proportional to the rate and to the depth of the stacks, and nothing else: at 49 samples a second \
a few hundredths of a percent. A new stack is sent once to the tool; after that it is only \
counted. Names are looked up at the end.",
        limits: "\
The program's part of a stack is followed by frame pointers. Programs and libraries that are \
compiled without them (-fomit-frame-pointer, the default of many distributions) have right \
functions on top and wrong or missing callers. Inlined functions are not shown. Functions of the \
kernel lack names where kernel.kptr_restrict hides them. Processes that end before the report are \
named from what they were seen to map while they lived. A process id that is used again during \
the run counts as one process. Samples that fall into a BPF program or into an access to a BPF map \
from user space are left out by the kernel, uncounted.",
    };
    const QUESTION: Question =
        Question { heading: "CPU", question: "Which code are the CPUs running?" };
    const LETTERS: &'static [(&'static str, char)] = &[("pid", 'p'), ("tid", 'L')];
    const REFUSED: &'static [(&'static str, &'static str)] =
        &[("timestamp", "it counts, and shows no events")];

    fn ways(&self) -> Vec<Way> {
        vec![Way::new("perf", &[]).by_hand(&["sample__perf"])]
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        if let Some(cpu) = self.cpu
            && !cpus::online().contains(&cpu)
        {
            return Err(usage(format!("--cpu {cpu}: there is no such CPU online")));
        }
        for file in self.files() {
            // Better now than after an hour.
            File::options()
                .create(true)
                .append(true)
                .open(file)
                .map_err(|error| usage(format!("{}: {error}", file.display())))?;
        }
        common.duration = self.seconds.or(common.duration);
        self.of = listed("PID", &common.pid) + &listed("TID", &common.tid);
        if self.of.is_empty() {
            self.of = " all threads".into();
        }
        self.until = match common.duration {
            Some(duration) => format!(" for {} secs.", duration.as_secs_f64()),
            None => "... Hit Ctrl-C to end.".into(),
        };
        Ok(())
    }

    fn records(&self) -> Records {
        let kind = stacks::with_fields(
            Kind::row("stack")
                .field("pid", Type::Uint, "Process id; 0 = an idle CPU.")
                .field("comm", Type::String, "Command name of the thread.")
                .field("samples", Type::Uint, "How often this stack was seen."),
        )
        .field("event", Type::String, "What the moments are taken from: cycles or cpu-clock.")
        .columns([
            column("pid", "PID", 6),
            column("comm", "COMM", 16),
            column("samples", "SAMPLES", 8).right(),
            column("kernel_stack", "KERNEL", 0).when(false),
            column("user_stack", "USER", 0).when(false),
        ]);
        let records = Records::new([kind]);
        if self.shape.folded { records } else { records.banner(self.banner()) }
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        self.shape.configure(open.open_object_mut(), "samples")?;
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_idle = self.include_idle;
        Ok(())
    }

    fn attach(&self, skel: &bpf::Skel<'_>, common: &Common, asides: &mut Asides) -> Result<()> {
        if !self.shape.kernel_stacks_only
            && let Err(error) = asides.note_mappings(&common.pid)
            && common.verbose
        {
            asides.remark(format!("processes that end will lack names: {error:#}"));
        }
        let sampling = Sampling::start(skel.progs.sample__perf.as_fd(), self.rate(), self.cpu)?;
        if sampling.source == Source::Clock && common.choice.form == Form::Columns {
            asides.remark(
                "the CPU's counter of cycles is not available: a timer takes its place (cpu-clock)",
            );
        }
        self.source.get_or_init(|| sampling.source);
        asides.add(sampling);
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let stacks = RefCell::new(Stacks::default());
        let symbols = Rc::clone(&session.symbols);
        let style = self.shape.style(session.common.verbose);
        let began = SystemTime::now();
        let mut report = |out: &mut Output| -> Result<()> {
            let mut symbols = symbols.borrow_mut();
            let stacks = stacks.borrow();
            let counted = read(&skel.maps.samples)?;
            let mut entries = stacks.resolve(counted, Taken::AtInterrupt, &mut symbols);
            entries.sort_by(|a, b| b.value.cmp(&a.value).then_with(|| order(a).cmp(&order(b))));
            self.write_files(&entries, began)?;
            if self.shape.sort == Some(Order::Ascending) {
                entries.reverse();
            }
            for entry in &entries {
                self.show(out, entry, style);
            }
            out.report_done();
            stacks::complain_of("profile", &entries, &symbols);
            Ok(())
        };
        session.stream_and(
            &skel.maps.events,
            |record, _| stacks.borrow_mut().take(record),
            Every { interval: None, count: None, act: &mut report },
        )
    }
}

/// What stands first among equals.
fn order(entry: &Entry<u64>) -> (u32, [i8; 16], u64, u64) {
    let key = &entry.key;
    (key.pid, key.comm, key.user, key.kernel)
}

fn read(samples: &dyn libbpf_rs::MapCore) -> Result<Vec<(StackKey, u64)>> {
    let entries = maps::read_all(samples)?;
    entries
        .iter()
        .map(|(key, values)| {
            let value = values.first().context("a sample without a count")?;
            Ok((maps::copy::<StackKey>(key)?, maps::copy::<u64>(value)?))
        })
        .collect()
}

impl Args {
    fn show(&self, out: &mut Output, entry: &Entry<u64>, style: Style) {
        let comm = stacks::comm(&entry.key);
        let values = [
            Value::Uint(entry.key.pid.into()),
            Value::Bytes(&comm),
            Value::Uint(entry.value),
            entry.kernel.value(!self.shape.user_stacks_only),
            entry.user.value(!self.shape.kernel_stacks_only),
            Value::Str(self.source.get().map_or("cpu-clock", |source| source.name())),
        ];
        out.entry(0, &values, |buffer| {
            if self.shape.folded {
                let path = stacks::path(entry, self.shape.delimited, self.annotations);
                stacks::folded_line(buffer, &path, entry.value);
            } else {
                let delimited = self.shape.delimited;
                let count = entry.value.to_string();
                stacks::lines(buffer, entry, style, delimited, entry.key.pid, &count);
            }
        });
    }

    /// The files that were asked for.
    fn write_files(&self, entries: &[Entry<u64>], began: SystemTime) -> Result<()> {
        #[cfg(feature = "flame-graph")]
        if let Some(file) = &self.svg {
            let paths: Vec<(Vec<String>, u64)> = entries
                .iter()
                .map(|entry| (stacks::path(entry, self.shape.delimited, true), entry.value))
                .collect();
            let image = bpfscope::flame_graph::svg("Flame graph", "samples", &paths);
            std::fs::write(file, image).with_context(|| format!("--svg {}", file.display()))?;
        }
        #[cfg(feature = "pprof")]
        if let Some(file) = &self.pprof {
            let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            let taken = bpfscope::pprof::Taken {
                start_ns: began.duration_since(SystemTime::UNIX_EPOCH).map_or(0, ns),
                duration_ns: began.elapsed().map_or(0, ns),
                period_ns: match (self.rate(), self.source.get()) {
                    (Rate::Hertz(hertz), _) => Some(1_000_000_000 / hertz),
                    (Rate::Period(period), Some(Source::Clock)) => Some(period),
                    (Rate::Period(_), _) => None,
                },
            };
            let profile = bpfscope::pprof::encode(entries, taken).context("pprof")?;
            std::fs::write(file, profile).with_context(|| format!("--pprof {}", file.display()))?;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
