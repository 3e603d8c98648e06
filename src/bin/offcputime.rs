// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! offcputime: how long threads are off the CPU, by stack.

use std::cell::Cell;
use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

use bpfscope::cli::seconds;
use bpfscope::maps;
use bpfscope::output::Form;
use bpfscope::output::complain;
use bpfscope::prelude::*;
use bpfscope::shared::StackKey;
use bpfscope::stacks;
use bpfscope::stacks::Entry;
use bpfscope::stacks::Order;
use bpfscope::stacks::Shape;
use bpfscope::stacks::Stacks;
use bpfscope::stacks::Style;
use bpfscope::stacks::Taken;
use bpfscope::threads;
use libbpf_rs::skel::OpenSkel as _;
use nix::time::ClockId;

bpf!("offcputime");
use bpf::types;

/// Sum up how long threads are off the CPU, by stack
#[derive(clap::Args)]
// Each is a switch of its own on the command line.
#[allow(clippy::struct_excessive_bools)]
pub struct Args {
    /// End after so many seconds; without it, at Ctrl-C
    #[arg(value_parser = seconds, conflicts_with = "duration")]
    seconds: Option<Duration>,
    /// Only threads of programs
    #[arg(short, long, conflicts_with = "kernel_threads_only")]
    user_threads_only: bool,
    /// Only threads of the kernel
    #[arg(short, long)]
    kernel_threads_only: bool,
    /// Include idle threads: what a CPU did while it was not idle
    #[arg(short = 'I', long)]
    include_idle: bool,
    /// Only times of at least so many microseconds
    #[arg(short, long, value_name = "US", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=u64::MAX / 1000))]
    min_block_time: u64,
    /// Only times of at most so many microseconds
    #[arg(short = 'M', long, value_name = "US",
          value_parser = clap::value_parser!(u64).range(1..=u64::MAX / 1000))]
    max_block_time: Option<u64>,
    /// Only threads that leave in one of the states of this bit mask: 1 = interruptible, 2 =
    /// uninterruptible; 0 = could go on (preempted)
    #[arg(long, value_name = "MASK", value_parser = clap::value_parser!(u32).range(..0x1_0000))]
    state: Option<u32>,
    /// Also show threads that are still off the CPU at the end, with the time until then
    #[arg(long)]
    pending: bool,
    #[command(flatten)]
    shape: Shape,
    /// Whom, and how long: of the common options, for the first line.
    #[arg(skip)]
    of: String,
    #[arg(skip)]
    until: String,
    /// When the tool stopped looking.
    #[arg(skip)]
    stopped: Rc<Cell<u64>>,
}

/// A list as upstream shows it: ` PID [1, 2]`.
fn listed(name: &str, ids: &[u32]) -> String {
    if ids.is_empty() { String::new() } else { format!(" {name} {ids:?}") }
}

/// Time that is still running ends when the tool stops looking, not when it has taken down its
/// probes, which can take a while.
struct Stop(Rc<Cell<u64>>);

impl Aside for Stop {
    fn descriptors(&self, _: &mut dyn FnMut(BorrowedFd<'_>)) {}

    fn act(&mut self) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self) {
        let now = ClockId::CLOCK_BOOTTIME.now().map(Duration::from).unwrap_or_default();
        self.0.set(u64::try_from(now.as_nanos()).unwrap_or(0));
    }
}

/// What is counted of a stack.
#[derive(Clone, Copy, Default)]
struct Off {
    ns: u64,
    times: u64,
    /// It was still off the CPU at the end.
    pending: bool,
}

impl std::ops::AddAssign for Off {
    fn add_assign(&mut self, other: Self) {
        self.ns += other.ns;
        self.times += other.times;
    }
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Measures the time from when a thread leaves the CPU until it is back on one, and sums it up by \
thread and by the stack that it left with. At the end it shows each stack, the function that gave \
up the CPU first and its callers below it: those of the kernel, then those of the program, then \
the command name, the thread id and the time in microseconds. The largest stands last.

Time off the CPU is waiting: for a disk, the network, a lock, a timer, another process; and also \
for a CPU, of a thread that could go on but was preempted. --state 0 shows only the latter, --state \
2 what waits uninterruptibly, which is mostly disks and locks of the kernel.

A thread that is still off the CPU at the end is not in the sums. How many there are is said; with \
--pending they are shown, marked, with the time until then. A time that began before the tool is \
not known and not shown.",
        examples: "\
What does process 1234 wait for, during ten seconds?

    # offcputime -p 1234 10

The same for one second of a shell that runs a loop; the largest stack stands last:

    # offcputime -p 777 1
    Tracing off-CPU time (us) of PID [777] for 1 secs.
        __schedule
        schedule
        do_wait
        kernel_wait4
        __do_sys_wait4
        do_syscall_64
        entry_SYSCALL_64_after_hwframe
        wait4
        -                bash (777)
            976515

Of the second, 977 ms went by in wait4(): the shell waits for the programs that it has started.

Waits of a program of more than a millisecond, as input for a flame graph:

    # offcputime -u -m 1000 -f 30 > folded.txt

Who hangs, and where, for at least ten seconds?

    # offcputime --pending -m 10000000 15",
        overhead: "\
A program at each change of threads on each CPU, which walks the stacks of the thread that leaves: \
several microseconds a change, which a machine that changes threads 100,000 times a second will \
feel. The filters (-p, -t, -u, -k, --state and the common ones) are tested before stacks are \
walked; -m and -M can only be tested after. Names are looked up at the end.",
        limits: "\
The program's part of a stack is followed by frame pointers. Programs and libraries that are \
compiled without them (-fomit-frame-pointer, the default of many distributions, and of most C \
libraries) have wrong or missing callers. Functions of the kernel lack names where \
kernel.kptr_restrict hides them. Processes that end before the report are named from what they \
were seen to map while they lived.",
    };
    const QUESTION: Question =
        Question { heading: "CPU", question: "What are threads waiting for?" };
    const LETTERS: &'static [(&'static str, char)] = &[("pid", 'p'), ("tid", 't')];
    const REFUSED: &'static [(&'static str, &'static str)] =
        &[("timestamp", "it sums up, and shows no events")];

    fn ways(&self) -> Vec<Way> {
        vec![Way::new("btf", &["switch__btf"]), Way::new("rawtp", &["switch__rawtp"])]
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        if self.max_block_time.is_some_and(|max| max < self.min_block_time) {
            return Err(usage("--max-block-time is less than --min-block-time"));
        }
        common.duration = self.seconds.or(common.duration);
        self.of = listed("PID", &common.pid) + &listed("TID", &common.tid);
        if self.of.is_empty() {
            self.of = match (self.user_threads_only, self.kernel_threads_only) {
                (true, _) => " user threads",
                (_, true) => " kernel threads",
                _ => " all threads",
            }
            .into();
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
                .field("pid", Type::Uint, "Process id; 0 = an idle thread.")
                .field("tid", Type::Uint, "Thread id.")
                .field("comm", Type::String, "Command name of the thread.")
                .field(
                    "off_ns",
                    Type::Uint,
                    "How long it was off the CPU with this stack, all times together.",
                )
                .field("times", Type::Uint, "How often.")
                .field(
                    "pending",
                    Type::Bool,
                    "Whether it was still off the CPU at the end; only with --pending.",
                ),
        )
        .columns([
            column("pid", "PID", 6),
            column("tid", "TID", 6),
            column("comm", "COMM", 16),
            column("off_ns", "OFF(ms)", 12).right().format(Format::Millis(3)),
            column("times", "TIMES", 8).right(),
        ]);
        let records = Records::new([kind]);
        if self.shape.folded {
            return records;
        }
        let by = if self.shape.user_stacks_only || self.shape.kernel_stacks_only {
            format!(" by {} stack", self.shape.by())
        } else {
            String::new()
        };
        records.banner(format!("Tracing off-CPU time (us) of{}{by}{}", self.of, self.until))
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        self.shape.configure(open.open_object_mut(), "off_times")?;
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_user_threads = self.user_threads_only;
        settings.want_kernel_threads = self.kernel_threads_only;
        settings.want_idle = self.include_idle;
        settings.want_some_states = self.state.is_some();
        settings.want_states = self.state.unwrap_or(0);
        settings.want_min_ns = self.min_block_time * 1000;
        settings.want_max_ns = self.max_ns();
        open.maps.threads.set_max_entries(threads::room())?;
        Ok(())
    }

    fn attach(&self, _: &bpf::Skel<'_>, common: &Common, asides: &mut Asides) -> Result<()> {
        if !self.shape.kernel_stacks_only
            && !self.kernel_threads_only
            && let Err(error) = asides.note_mappings(&common.pid)
            && common.verbose
        {
            asides.remark(format!("processes that end will lack names: {error:#}"));
        }
        asides.add(Stop(Rc::clone(&self.stopped)));
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let stacks = RefCell::new(Stacks::default());
        let symbols = Rc::clone(&session.symbols);
        let style = self.shape.style(session.common.verbose);
        let mut report = |out: &mut Output| -> Result<()> {
            let mut symbols = symbols.borrow_mut();
            let stacks = stacks.borrow();
            let pending = self.still_off(&skel.maps.threads)?;
            let waiting = pending.len();
            let mut entries =
                stacks.resolve(sums(&skel.maps.off_times)?, Taken::AtTracepoint, &mut symbols);
            if self.pending {
                entries.extend(stacks.resolve(pending, Taken::AtTracepoint, &mut symbols));
            } else if waiting > 0 && out.form() == Form::Columns {
                complain(
                    "offcputime",
                    &format!("{waiting} threads are still off the CPU (--pending shows them)"),
                );
            }
            entries.sort_by_key(|entry| (entry.value.ns, entry.key.tid, entry.key.user));
            if self.shape.sort == Some(Order::Descending) {
                entries.reverse();
            }
            for entry in &entries {
                self.show(out, entry, style);
            }
            out.report_done();
            stacks::complain_of("offcputime", &entries, &symbols);
            Ok(())
        };
        session.stream_and(
            &skel.maps.events,
            |record, _| stacks.borrow_mut().take(record),
            Every { interval: None, count: None, act: &mut report },
        )
    }
}

fn sums(off_times: &dyn libbpf_rs::MapCore) -> Result<Vec<(StackKey, Off)>> {
    let entries = maps::read_all(off_times)?;
    let sum = |(key, values): (&[u8], Vec<&[u8]>)| {
        let value = values.first().context("a sum without a value")?;
        let time: types::off_time = maps::copy(value)?;
        let off = Off { ns: time.ns, times: time.times, pending: false };
        Ok((maps::copy::<StackKey>(key)?, off))
    };
    let all: Result<Vec<_>> = entries.iter().map(sum).collect();
    // Just made on some CPU, and nothing added yet.
    all.map(|all| all.into_iter().filter(|(_, off)| off.times > 0).collect())
}

impl Args {
    fn max_ns(&self) -> u64 {
        self.max_block_time.map_or(u64::MAX, |us| us * 1000)
    }

    /// The threads that have left the CPU and not come back.
    fn still_off(&self, threads: &dyn libbpf_rs::MapCore) -> Result<Vec<(StackKey, Off)>> {
        let mut all = Vec::new();
        for (_, values) in maps::read_all(threads)?.iter() {
            let value = values.first().context("a thread without a value")?;
            let thread: types::off_thread = maps::copy(value)?;
            let ns = self.stopped.get().saturating_sub(thread.since_ns);
            if thread.since_ns > 0 && (self.min_block_time * 1000..=self.max_ns()).contains(&ns) {
                let key = thread.key;
                let key = StackKey {
                    kernel: key.kernel,
                    user: key.user,
                    pid: key.pid,
                    tid: key.tid,
                    comm: key.comm,
                };
                all.push((key, Off { ns, times: 1, pending: true }));
            }
        }
        Ok(all)
    }

    fn show(&self, out: &mut Output, entry: &Entry<Off>, style: Style) {
        let comm = stacks::comm(&entry.key);
        let values = [
            Value::Uint(entry.key.pid.into()),
            Value::Uint(entry.key.tid.into()),
            Value::Bytes(&comm),
            Value::Uint(entry.value.ns),
            Value::Uint(entry.value.times),
            Value::Bool(entry.value.pending),
            entry.kernel.value(!self.shape.user_stacks_only),
            entry.user.value(!self.shape.kernel_stacks_only),
        ];
        let us = entry.value.ns / 1000;
        out.entry(0, &values, |buffer| {
            let delimited = self.shape.delimited;
            if self.shape.folded {
                stacks::folded_line(buffer, &stacks::path(entry, delimited, false), us);
            } else {
                let note = if entry.value.pending { " (still off the CPU)" } else { "" };
                let value = format!("{us}{note}");
                stacks::lines(buffer, entry, style, delimited, entry.key.tid, &value);
            }
        });
    }
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}
