// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! syscount: which system calls are made how often, by whom, and how long they take.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use bpfscope::cli;
use bpfscope::error::answer;
use bpfscope::escape;
use bpfscope::escape::until_nul;
use bpfscope::histogram;
use bpfscope::histogram::Intervals;
use bpfscope::maps;
use bpfscope::names;
use bpfscope::output::Form;
use bpfscope::pidns;
use bpfscope::prelude::*;
use bpfscope::swapped::Swapped;
use bpfscope::syscalls::Abi;
use libbpf_rs::MapCore;

bpf!("syscount");
use bpf::types;

/// Count system calls, with their latency and errors
#[derive(clap::Args)]
pub struct Args {
    /// Seconds between reports; 0 = one report at the end
    #[arg(short, long, value_name = "SECONDS", default_value = "0", value_parser = interval)]
    interval: Interval,
    /// Only calls that failed
    #[arg(short = 'x', long)]
    failures: bool,
    /// Only calls that failed with this error
    #[arg(short, long, value_name = "NAME|N", value_parser = errno)]
    errno: Option<u32>,
    /// Show how long the calls took, and sort by that
    #[arg(short = 'L', long)]
    latency: bool,
    /// Show times in milliseconds instead of microseconds
    #[arg(short, long)]
    milliseconds: bool,
    /// Count by process instead of by call
    #[arg(short = 'P', long)]
    process: bool,
    /// Count by cgroup instead of by call
    #[arg(long)]
    by_cgroup: bool,
    /// Count by call as well, with --process and --by-cgroup
    #[arg(long)]
    by_call: bool,
    /// Count failures by their error as well
    #[arg(long)]
    by_errno: bool,
    /// Show distributions of latency instead of a table
    #[arg(long)]
    histogram: bool,
    /// Only these calls (name or number)
    #[arg(long, value_name = "LIST", value_parser = calls)]
    syscall: Vec<Calls>,
    /// List the calls that have names, with their numbers
    #[arg(short, long)]
    list: bool,
    /// How many rows text shows.
    #[arg(skip)]
    top: usize,
}

/// The time between two reports; none = only one.
type Interval = Option<Duration>;

fn interval(text: &str) -> Result<Interval, String> {
    if text.trim_start_matches('0').is_empty() && !text.is_empty() {
        return Ok(None);
    }
    cli::seconds(text).map(Some)
}

fn errno(text: &str) -> Result<u32, String> {
    const LARGEST: u32 = 4095;
    if let Ok(number) = text.parse::<u32>() {
        return match number {
            1..=LARGEST => Ok(number),
            _ => Err(format!("an error is a number from 1 to {LARGEST}, or a name")),
        };
    }
    let name = text.to_ascii_uppercase();
    (1..=LARGEST)
        .find(|number| names::errno(i64::from(*number)) == Some(&name))
        .ok_or_else(|| "there is no error of this name".into())
}

/// Calls as `--syscall` names them: the places of their bits.
#[derive(Clone, Debug)]
struct Calls(Vec<usize>);

const CALLS: usize = 1024;
const SLOTS: usize = 2 * CALLS;

/// Where a call stands in arrays.
fn slot(abi: Abi, number: i32) -> Option<usize> {
    let number = usize::try_from(number).ok().filter(|number| *number < CALLS)?;
    Some(if abi == Abi::Compat { CALLS + number } else { number })
}

fn calls(text: &str) -> Result<Calls, String> {
    let mut slots = Vec::new();
    for word in text.split(',').map(str::trim) {
        let number = |abi: Abi| match word.parse::<i32>() {
            Ok(number) => Some(number),
            Err(_) => abi.number(word),
        };
        let found = Abi::ALL.into_iter().filter_map(|abi| slot(abi, number(abi)?));
        let before = slots.len();
        slots.extend(found);
        if slots.len() == before {
            return Err(format!("there is no call '{word}'; see --list"));
        }
    }
    Ok(Calls(slots))
}

/// What is one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    call: Option<(Abi, i32)>,
    pid: u32,
    cgroup_id: u64,
    error: u32,
}

#[derive(Clone, Debug, Default)]
struct Count {
    calls: u64,
    failures: u64,
    timed: u64,
    ns: u64,
    max_ns: u64,
    named_ns: u64,
    comm: [u8; 16],
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Counts system calls, and shows which were made most. -L adds up how long they took, and sorts by \
that. -P counts by process and --by-cgroup by cgroup; with --by-call also by call. -x counts only \
failures, -e only those with one error, and --by-errno says with which. -i makes a report at each \
interval; without it there is one, at the end.

A call is counted when it begins, so that those are there which still wait, and those that never \
return. With -x, -e and --by-errno it is when it ends. Its time is counted when it ends: TIME is \
the sum, and --fields +avg_ns,max_ns show more. A call that has not ended yet, or does not at all, \
has none; the field timed says how many have.

32-bit callers have numbers of their own, and are shown apart: read (i386) is not read. A number \
that has no name is shown as [unknown: N].

--histogram shows the distribution of latencies instead, of each call, process or cgroup.",
        examples: "\
Which calls does one process make?

    # syscount -p 1234 -d 10
    Tracing syscalls, printing top 10... Ctrl+C to quit.
    [09:14:32]
    SYSCALL                   COUNT
    read                      18231
    write                     18224
    epoll_wait                 9120
    futex                       211

In which calls does a command spend its time?

    # syscount -L -m -- make

Which processes make the most failing calls, and which are these?

    # syscount -x -P --by-call --by-errno -i 5

How are the latencies of fsync and fdatasync distributed?

    # syscount --histogram --syscall fsync,fdatasync",
        overhead: "\
While it runs, all system calls of the machine take the slower path that tracing needs. Counting by \
call alone adds a few dozen instructions to each, other counts a lookup in a table, and -L a second \
program at the end of each call. Calls that are short and made a million times a second are slowed \
down visibly.",
        limits: "\
What a seccomp filter refuses does not begin: it is counted only with -x, -e, --by-errno and -L. \
Calls that had begun before the tool are counted when they end where that is looked at, without a \
time. Interrupted calls that the kernel will restart fail with ERESTARTSYS and the like, which \
programs never see. Calls that io_uring makes for a program, and those of the vDSO, are none. An \
interval has room for 10,240 rows of -P, --by-cgroup, -L and --by-errno; more are counted as \
map_full. From Linux 7.0 on, a thread can be stopped in the middle of counting, and the calls that \
others make on its CPU until it goes on are not counted; how many those were is said at the end.",
    };
    const QUESTION: Question = Question {
        heading: "Processes",
        question: "Which system calls are made, by whom, and how long do they take?",
    };
    const LETTERS: &'static [(&'static str, char)] =
        &[("cgroup", 'c'), ("duration", 'd'), ("pid", 'p'), ("rows", 'T'), ("tid", 't')];
    const TABLE: Option<Table> =
        Some(Table { rows: 10, summary: false, names: &[("rows", "top")], ..Table::by("count") });
    const REFUSED: &'static [(&'static str, &'static str)] =
        &[("no-clear", "its tables stand one after another")];

    fn ways(&self) -> Vec<Way> {
        if self.latency {
            return vec![
                // For tracing since a10787e6d58c "bpf: Enable task local storage for tracing
                // programs" (5.12); the member came with 4cf1bc1f1045 (5.11).
                Way::new("storage", &["call_end__storage", "call_begin__storage"])
                    .only_where("task_struct", "bpf_storage"),
                Way::new("hash", &["call_end__hash", "task_end__hash", "call_begin__hash"]),
            ];
        }
        match self.failures {
            false => vec![Way::new("enter", &["call__enter"])],
            true => vec![Way::new("exit", &["call__exit"])],
        }
    }

    fn check(&mut self, common: &mut Common) -> Result<()> {
        if self.list {
            return Err(answer(list()));
        }
        if self.by_call && !self.process && !self.by_cgroup {
            return Err(usage(
                "--by-call goes with --process or --by-cgroup; alone it is the default",
            ));
        }
        self.latency |= self.histogram;
        self.failures |= self.by_errno || self.errno.is_some();
        if let Some(table) = &mut common.choice.table {
            table.clear = false;
            if self.latency {
                table.table.sort = "total_ns";
            }
            self.top = table.rows.unwrap_or(table.table.rows);
        }
        if self.histogram {
            common.choice.table = None;
        }
        Ok(())
    }

    fn records(&self) -> Records {
        let (time, unit) = match self.milliseconds {
            true => ("TIME (ms)", Format::Millis(3)),
            false => ("TIME (us)", Format::Micros(3)),
        };
        let keys = |kind: Kind| {
            kind.field(
                "call",
                Type::String,
                "The call as text has it; null where calls are not told apart.",
            )
            .field("syscall", Type::Name, "The call; null where calls are not told apart.")
            .field("abi", Type::String, "Whose numbers: x86_64 or i386, aarch64 or arm.")
            .field("pid", Type::Uint, "Process id; null without --process.")
            .field("comm", Type::String, "Command name of the process.")
            .field("cgroup_id", Type::Id, "Id of the cgroup; null without --by-cgroup.")
            .field("cgroup", Type::String, "Path of the cgroup; null when it is gone.")
            .field("error", Type::Name, "The error; null without --by-errno.")
        };
        let row = keys(Kind::row("calls"))
            .field("count", Type::Uint, "How many calls.")
            .field(
                "failures",
                Type::Uint,
                "How many failed; null where their ends are not looked at.",
            )
            .field("timed", Type::Uint, "How many have a time; null without --latency.")
            .field("total_ns", Type::Uint, "Their times added up.")
            .field("avg_ns", Type::Uint, "Their average time; null when none has one.")
            .field("max_ns", Type::Uint, "The longest.")
            .columns([
                column("pid", "PID", 6).when(self.process),
                column("comm", "COMM", 15).when(self.process),
                column("cgroup", "CGROUP", 22).when(self.by_cgroup),
                column("call", "SYSCALL", 22).when(self.tells_calls()),
                column("error", "ERROR", 15).when(self.by_errno),
                column("count", "COUNT", 8).right(),
                column("total_ns", time, 16).right().format(unit).when(self.latency),
                column("avg_ns", "AVG", 12).right().format(unit).null("-").when(false),
                column("max_ns", "MAX", 12).right().format(unit).null("-").when(false),
            ]);
        let kinds = [row, keys(Kind::histogram("latency_ns"))];
        let failed = if self.failures { "failed " } else { "" };
        Records::new(kinds).banner(match self.histogram {
            true => format!("Tracing {failed}syscalls... Ctrl+C to quit."),
            false => {
                format!("Tracing {failed}syscalls, printing top {}... Ctrl+C to quit.", self.top)
            }
        })
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, way: &Way) -> Result<()> {
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_by_call = self.tells_calls();
        settings.want_by_process = self.process;
        settings.want_by_cgroup = self.by_cgroup;
        settings.want_by_error = self.by_errno;
        settings.want_failures = self.failures;
        settings.want_error = self.errno.unwrap_or(0);
        settings.want_array = self.in_array();
        settings.want_histograms = self.histogram;
        settings.ns_per_slot_unit = self.unit().scale;
        settings.want_some_calls = !self.syscall.is_empty();
        for slot in self.syscall.iter().flat_map(|calls| &calls.0) {
            settings.want_calls[slot / 64] |= 1 << (slot % 64);
        }
        let maps = &mut open.maps;
        maps.counts.set_max_entries(u32::try_from(libbpf_rs::num_possible_cpus()?)?)?;
        maps.counts.set_autocreate(self.in_array())?;
        if self.in_array() {
            // Only for numbers that no call has.
            maps.first_interval.set_max_entries(1024)?;
        }
        maps.latencies.set_max_entries(HISTOGRAMS)?;
        maps.latencies.set_autocreate(self.histogram)?;
        maps.begun__storage.set_autocreate(way.name == "storage")?;
        maps.begun__hash.set_autocreate(way.name == "hash")?;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let mut source = Source {
            intervals: Swapped::new(&skel.maps.intervals, &skel.maps.first_interval),
            array: self.in_array().then_some(&skel.maps.counts),
            counted: vec![0; SLOTS],
            failures: self.failures,
            tells_calls: self.tells_calls(),
        };
        let mut distributions = Intervals::default();
        let mut comms = BTreeMap::new();
        let mut report = |out: &mut Output| -> Result<()> {
            let rows = source.end_interval()?;
            if out.form() == Form::Columns && rows.is_empty() {
                return Ok(());
            }
            let now = out.clock.now();
            let mut time = b"[".to_vec();
            out.clock.push(&mut time, now, TimeFormat::Wall, 0);
            out.line(&format!("{}]", String::from_utf8_lossy(&time)));
            if self.histogram {
                // Who ended before this interval is in no row of it, but in no histogram either.
                comms.extend(rows.iter().map(|(key, count)| (key.pid, count.comm)));
                let all = histogram::read(&skel.maps.latencies, |key| self.key(key))?;
                for (key, histogram) in distributions.next(all) {
                    let comm = comms.get(&key.pid).copied().unwrap_or_default();
                    self.with_key(&key, until_nul(&comm), out, |out, values, title| {
                        out.line("");
                        out.histogram(1, Some(title), values, &histogram, self.unit());
                    });
                }
                out.line("");
            } else {
                for (key, count) in &rows {
                    self.row(key, count, out);
                }
            }
            out.report_done();
            Ok(())
        };
        session.every(Every { interval: self.interval, count: None, act: &mut report })
    }
}

/// Distributions that there is room for.
const HISTOGRAMS: u32 = 4096;

impl Args {
    fn tells_calls(&self) -> bool {
        self.by_call || (!self.process && !self.by_cgroup)
    }

    /// Whether the kernel side counts in an array.
    fn in_array(&self) -> bool {
        !(self.process || self.by_cgroup || self.by_errno || self.latency)
    }

    fn unit(&self) -> histogram::Unit {
        histogram::time_unit(self.milliseconds)
    }

    fn key(&self, key: &types::call_key) -> Key {
        key_of(key, self.tells_calls())
    }

    /// Gives `show` the values that say what a row or histogram is about, and the same as a title.
    fn with_key(
        &self,
        key: &Key,
        comm: &[u8],
        out: &mut Output,
        show: impl FnOnce(&mut Output, &[Value<'_>], &str),
    ) {
        let path = if self.by_cgroup { out.cgroup(key.cgroup_id).0 } else { None };
        let call = key.call.map(|(abi, number)| abi.shown(number));
        let mut title = Vec::new();
        if self.process {
            title.push(format!("pid = {} {}", pidns::shown(key.pid), escape::printable(comm)));
        }
        if self.by_cgroup {
            let path = path.as_deref().map_or_else(|| "?".into(), escape::printable);
            title.push(format!("cgroup = {path}"));
        }
        if let Some(call) = &call {
            title.push(format!("syscall = {call}"));
        }
        let error = i64::from(key.error);
        if self.by_errno {
            let name = names::errno(error).map_or_else(|| error.to_string(), String::from);
            title.push(format!("error = {name}"));
        }
        let when = |wanted, value| if wanted { value } else { Value::Null };
        let values = [
            call.as_deref().map_or(Value::Null, Value::Str),
            key.call.map_or(Value::Null, |(abi, n)| Value::Name(abi.call(n), n.into())),
            key.call.map_or(Value::Null, |(abi, _)| Value::Str(abi.name())),
            when(self.process, Value::Uint(key.pid.into())),
            when(self.process && !comm.is_empty(), Value::Bytes(comm)),
            when(self.by_cgroup, Value::Id(key.cgroup_id)),
            path.as_deref().map_or(Value::Null, Value::Bytes),
            when(self.by_errno, Value::Name(names::errno(error), error)),
        ];
        show(out, &values, &title.join(", "));
    }

    fn row(&self, key: &Key, count: &Count, out: &mut Output) {
        let timed = |value| if self.latency { Value::Uint(value) } else { Value::Null };
        let measured = [
            Value::Uint(count.calls),
            if self.failures || self.latency { Value::Uint(count.failures) } else { Value::Null },
            timed(count.timed),
            timed(count.ns),
            count.ns.checked_div(count.timed).map_or(Value::Null, Value::Uint),
            if count.timed > 0 { Value::Uint(count.max_ns) } else { Value::Null },
        ];
        self.with_key(key, until_nul(&count.comm), out, |out, values, _| {
            let values: Vec<Value<'_>> = values.iter().chain(&measured).copied().collect();
            out.row(0, &values);
        });
    }
}

fn key_of(key: &types::call_key, tells_calls: bool) -> Key {
    let abi = if key.is_32bit != 0 { Abi::Compat } else { Abi::Native };
    Key {
        call: tells_calls.then_some((abi, key.number)),
        pid: key.pid,
        cgroup_id: key.cgroup_id,
        error: key.error,
    }
}

/// What the kernel side has counted.
struct Source<'a> {
    intervals: Swapped<'a>,
    array: Option<&'a dyn MapCore>,
    /// What the array had at the end of the last interval.
    counted: Vec<u64>,
    failures: bool,
    tells_calls: bool,
}

impl Source<'_> {
    fn end_interval(&mut self) -> Result<BTreeMap<Key, Count>> {
        let mut rows: BTreeMap<Key, Count> = BTreeMap::new();
        for (key, parts) in self.intervals.end_interval()?.iter() {
            let key = key_of(&maps::copy::<types::call_key>(key)?, self.tells_calls);
            let sum = rows.entry(key).or_default();
            for part in parts {
                let part = maps::copy::<types::call_count>(part)?;
                sum.calls += part.calls;
                sum.failures += part.failures;
                sum.timed += part.timed;
                sum.ns += part.ns;
                sum.max_ns = sum.max_ns.max(part.max_ns);
                if part.named_ns > sum.named_ns {
                    sum.named_ns = part.named_ns;
                    sum.comm = part.comm.map(|c| c.to_ne_bytes()[0]);
                }
            }
        }
        let Some(array) = self.array else { return Ok(rows) };
        let mut now = vec![0u64; SLOTS];
        for (_, values) in maps::read_all(array)?.iter() {
            let words = values.iter().flat_map(|value| value.chunks_exact(8));
            for (sum, word) in now.iter_mut().zip(words) {
                *sum += u64::from_ne_bytes(word.try_into().unwrap_or_default());
            }
        }
        for (slot, (now, before)) in now.iter().zip(&self.counted).enumerate() {
            let calls = now - before;
            if calls > 0 {
                let abi = if slot < CALLS { Abi::Native } else { Abi::Compat };
                let call = Some((abi, i32::try_from(slot % CALLS)?));
                let failures = if self.failures { calls } else { 0 };
                let key = Key { call, pid: 0, cgroup_id: 0, error: 0 };
                rows.insert(key, Count { calls, failures, ..Count::default() });
            }
        }
        self.counted = now;
        Ok(rows)
    }
}

/// What `--list` says.
fn list() -> String {
    let mut text = String::new();
    for abi in Abi::ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}:", abi.name());
        for (number, name) in abi.calls() {
            let _ = writeln!(text, "{number:>3}: {name}");
        }
    }
    text
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked() {
        assert_eq!((interval("0"), interval("2")), (Ok(None), Ok(Some(Duration::from_secs(2)))));
        assert!(interval("").is_err() && interval("x").is_err() && interval("-1").is_err());
        assert_eq!((errno("ENOENT"), errno("2"), errno("enoent")), (Ok(2), Ok(2), Ok(2)));
        assert_eq!(errno("ERESTARTSYS"), Ok(512));
        assert!(errno("0").is_err() && errno("4096").is_err() && errno("ENO").is_err());
    }

    #[test]
    fn calls_by_name_and_number() {
        let slots = |text: &str| calls(text).map(|calls| calls.0);
        let native =
            |name| usize::try_from(Abi::Native.number(name).expect("known")).expect("small");
        let read = Abi::Compat.number("read").and_then(|n| slot(Abi::Compat, n)).expect("known");
        assert_eq!(slots("read"), Ok(vec![native("read"), read]));
        assert_eq!(slots("600, 3"), Ok(vec![600, CALLS + 600, 3, CALLS + 3]));
        assert!(slots("no_such_call").is_err() && slots("").is_err() && slots("1024").is_err());
        assert!(list().contains("\n462: mseal\n"));
    }
}
