// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! exitsnoop: which processes and threads end, and why.

use std::borrow::Cow;

use bpfscope::escape::until_nul;
use bpfscope::prelude::*;
use bpfscope::signals;
use nix::unistd::SysconfVar;
use nix::unistd::sysconf;

bpf!("exitsnoop");
use bpf::types;

/// Trace processes that end, with their age and the reason
#[derive(clap::Args)]
pub struct Args {
    /// Only those that failed: another status than 0, or a signal
    #[arg(short = 'x', long)]
    failed: bool,
    /// Show each thread instead of each process
    #[arg(short = 'T', long, visible_alias = "per-thread")]
    threaded: bool,
    /// Show the time of day in UTC, with milliseconds
    #[arg(long)]
    utc: bool,
    /// Show a column with this text
    #[arg(long, value_name = "TEXT", num_args = 0..=1, require_equals = true, default_missing_value = "exit")]
    label: Option<String>,
}

impl Tool for Args {
    type Bpf = bpf::Object;

    const DOC: Doc = Doc {
        description: "\
Shows each process that ends: its name, how long it has lived, and why it ended. EXIT_CODE is 0, \
code N for another status that it gave to exit(), or signal N for a signal that ended it, with core \
dumped if there is a core.

A process ends when its last thread does, which need not be the first one, and it is shown once, \
then, under the name of the first, with the status that its parent gets. With -T each thread is \
shown when it ends; the field process_ended tells which of them was the last.

PPID is the parent that is told of the end. Where the one that started it had ended before, that is \
the process that has taken over its children: usually 1, or the manager of a user's session.

The fields have more: signal, exit_status and core_dumped apart; when it was started \
(start_boot_ns); the parent's name; what the process has used, as getrusage() counts it. With -T \
that is what the thread has used.",
        examples: "\
Which processes fail, and how?

    # exitsnoop -x
    PCOMM            PID     PPID    TID     AGE(s)  EXIT_CODE
    false            4113    4099    4113    0.00    code 1
    sleep            4127    4099    4127    12.86   signal 15 (Terminated)
    crashes          4140    4099    4140    0.35    signal 11 (Segmentation fault), core dumped

How does one process end?

    # exitsnoop -p 1234 --limit 1

Which short processes take the most memory?

    # exitsnoop --fields comm,pid,age_ns,max_rss_bytes --filter 'max_rss_bytes > 100000000'",
        overhead: "\
A short program at the end of each thread, a small part of what its end costs.",
        limits: "\
CPU time is as of the last tick or switch, at most some milliseconds short; user and system time are \
its parts as the ticks found them, as in getrusage(). The largest memory is known when the last \
thread ends. What a process has used is not known (null) where other threads of it are being \
collected at the same moment, twice in a row, and of more than 64 threads that end at the same \
moment some may be missing in it. Who started an orphan is not known.",
    };
    const QUESTION: Question =
        Question { heading: "Processes", question: "Which processes end, and why?" };
    const LETTERS: &'static [(&'static str, char)] =
        &[("cgroup", 'c'), ("pid", 'p'), ("timestamp", 't')];

    fn ways(&self) -> Vec<Way> {
        vec![
            // With bpf_loop(), which no type tells of. The nearest is what inlines it, of 1ade23711971
            // "bpf: Inline calls to bpf_loop when callback is known" (6.0).
            Way::new("btf", &["exit__btf"])
                .twin("exit__btf", "exit_twin__btf")
                .only_where("bpf_insn_aux_data", "loop_inline_state"),
            Way::new("rawtp", &["exit__rawtp"]).twin("exit__rawtp", "exit_twin__rawtp"),
        ]
    }

    fn records(&self) -> Records {
        let time = match self.utc {
            true => time_column("TIME-UTC", 12, TimeFormat::Utc).decimals(3).when(true),
            false => time_column("TIME(s)", 8, TimeFormat::Wall),
        };
        let kind = Kind::event("exit")
            .field("label", Type::String, "The text of --label; null without it.")
            .field("age_ns", Type::Uint, "How long it has lived.")
            .field(
                "start_boot_ns",
                Type::Id,
                "When it was started, in nanoseconds of CLOCK_BOOTTIME.",
            )
            .field("exit_code", Type::String, "Why it ended, as the text has it.")
            .field(
                "exit_status",
                Type::Uint,
                "The status that it gave to exit(); null when a signal ended it.",
            )
            .field("signal", Type::Name, "The signal that ended it; null when it ended by itself.")
            .field("core_dumped", Type::Bool, "Whether there is a core.")
            .field("wait_status", Type::Uint, "All of it in one number, as wait() has it.")
            .field(
                "process_ended",
                Type::Bool,
                "Whether the process has ended with it: always without -T.",
            )
            .field("parent_comm", Type::String, "Command name of the parent.")
            .field("cpu_ns", Type::Uint, "Time that it has run on CPUs; null when it is not known.")
            .field("user_ns", Type::Uint, "The part of it in user space.")
            .field("system_ns", Type::Uint, "The part of it in the kernel.")
            .field(
                "max_rss_bytes",
                Type::Uint,
                "The most memory that the process had at a time; null when threads of it are left.",
            )
            .field("minor_faults", Type::Uint, "Page faults without I/O.")
            .field("major_faults", Type::Uint, "Page faults that waited for I/O.")
            .field("voluntary_switches", Type::Uint, "How often it waited for something.")
            .field("involuntary_switches", Type::Uint, "How often the CPU was taken from it.")
            .field(
                "read_bytes",
                Type::Uint,
                "What it has had read from storage; null where the kernel does not count that.",
            )
            .field("write_bytes", Type::Uint, "What it has had written to storage.")
            .columns([
                time,
                column("label", "LABEL", 6).when(self.label.is_some()),
                column("comm", "PCOMM", 16),
                column("pid", "PID", 7),
                column("ppid", "PPID", 7),
                column("tid", "TID", 7),
                column("age_ns", "AGE(s)", 7).format(Format::Seconds(2)),
                column("exit_code", "EXIT_CODE", 0),
            ]);
        Records::new([kind])
    }

    fn configure(&self, open: &mut bpf::OpenSkel<'_>, _way: &Way) -> Result<()> {
        let settings = open.maps.rodata_data.as_deref_mut().context("no .rodata")?;
        settings.want_threads = self.threaded;
        settings.want_failed_only = self.failed;
        Ok(())
    }

    fn run(&self, skel: &bpf::Skel<'_>, session: &mut Session<'_>) -> Result<()> {
        let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| u64::try_from(size).ok());
        let page = page.context("the size of a page is not known")?;
        let label = self.label.as_deref().map_or(Value::Null, |text| Value::Bytes(text.as_bytes()));
        session.stream(&skel.maps.events, |record, out| {
            let event: &types::event = record.body()?;
            let head = record.head()?;
            let end = End::of(event.status);
            let usage = &event.usage;
            let used =
                |value| if event.usage_known != 0 { Value::Uint(value) } else { Value::Null };
            let io = |value| if event.io_known != 0 { used(value) } else { Value::Null };
            let (user, system) = parts(usage.cpu_ns, usage.user_ns, usage.system_ns);
            let text = end.text();
            let signal = end.signal.map(signals::name);
            let parent = event.parent_comm.map(|c| c.to_ne_bytes()[0]);
            out.event(
                0,
                head,
                &[
                    label,
                    Value::Uint(head.boot_ns.saturating_sub(event.start_boot_ns)),
                    Value::Id(event.start_boot_ns),
                    Value::Str(&text),
                    end.status.map_or(Value::Null, |status| Value::Uint(status.into())),
                    match (&signal, end.signal) {
                        (Some(name), Some(number)) => Value::Name(name.as_deref(), number.into()),
                        _ => Value::Null,
                    },
                    Value::Bool(end.core),
                    Value::Uint(event.status.into()),
                    Value::Bool(event.process_ended != 0),
                    Value::Bytes(until_nul(&parent)),
                    used(usage.cpu_ns),
                    used(user),
                    used(system),
                    match event.process_ended {
                        0 => Value::Null,
                        _ => Value::Uint(event.max_rss_pages.saturating_mul(page)),
                    },
                    used(usage.minor_faults),
                    used(usage.major_faults),
                    used(usage.voluntary),
                    used(usage.involuntary),
                    io(usage.read_bytes),
                    io(usage.write_bytes),
                ],
            );
            Ok(())
        })
    }
}

/// What the number that wait() has says.
#[derive(Debug, PartialEq, Eq)]
struct End {
    status: Option<u32>,
    signal: Option<u32>,
    core: bool,
}

impl End {
    fn of(number: u32) -> Self {
        match number & 0x7f {
            0 => Self { status: Some(number >> 8 & 0xff), signal: None, core: false },
            signal => Self { status: None, signal: Some(signal), core: number & 0x80 != 0 },
        }
    }

    fn text(&self) -> Cow<'static, str> {
        let Some(signal) = self.signal else {
            return match self.status.unwrap_or(0) {
                0 => "0".into(),
                status => format!("code {status}").into(),
            };
        };
        let core = if self.core { ", core dumped" } else { "" };
        format!("signal {signal} ({}){core}", signals::description(signal)).into()
    }
}

/// CPU time by where the ticks were: the kernel's cputime_adjust().
fn parts(cpu_ns: u64, user_ticks: u64, system_ticks: u64) -> (u64, u64) {
    if system_ticks == 0 {
        return (cpu_ns, 0);
    }
    let all = u128::from(user_ticks) + u128::from(system_ticks);
    let system = u128::from(cpu_ns) * u128::from(system_ticks) / all;
    let system = u64::try_from(system).unwrap_or(cpu_ns);
    (cpu_ns - system, system)
}

fn main() -> ExitCode {
    bpfscope::main::<Args>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_in_words() {
        let text = |number| End::of(number).text().into_owned();
        assert_eq!((text(0).as_str(), text(0x700).as_str()), ("0", "code 7"));
        assert_eq!(text(0xff00), "code 255");
        assert_eq!(text(9), "signal 9 (Killed)");
        assert_eq!(text(0x80 | 11), "signal 11 (Segmentation fault), core dumped");
        assert_eq!(End::of(0x80 | 6), End { status: None, signal: Some(6), core: true });
    }

    #[test]
    fn times_are_divided_as_the_ticks_were() {
        assert_eq!(
            (parts(10, 0, 0), parts(10, 3, 0), parts(10, 0, 3)),
            ((10, 0), (10, 0), (0, 10))
        );
        assert_eq!(parts(1000, 4, 12), (250, 750));
        assert_eq!(parts(u64::MAX, u64::MAX, u64::MAX).1, u64::MAX / 2);
    }
}
