// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! A tool while it runs: its links, its output, its losses, and the loop that it hands control to.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::anyhow;
use libbpf_rs::Link;
use libbpf_rs::MapCore;
use libbpf_rs::Object;
use libbpf_rs::RingBuffer;
use libbpf_rs::RingBufferBuilder;
use nix::sys::wait::WaitPidFlag;
use nix::sys::wait::WaitStatus;
use nix::sys::wait::waitpid;
use nix::time::ClockId;
use nix::time::clock_gettime;
use nix::unistd::Pid;
use plain::Plain;

use crate::aside::Aside;
use crate::aside::Asides;
use crate::aside::SharedSymbols;
use crate::cli::Common;
use crate::event_loop::PAUSE;
use crate::event_loop::Waiter;
use crate::event_loop::Wake;
use crate::filter::TREE_TWINS;
use crate::globals::ReaderState;
use crate::kretprobe::ReturnProbe;
use crate::loss::Loss;
use crate::output::Output;
use crate::output::Reader;
use crate::output::complain;
use crate::pidns;
use crate::record::Records;
use crate::shared::EventHead;
use crate::shared::ReaderState as State;
use crate::sys;
use crate::sys::Held;
use crate::sys::ProgramCounts;
use crate::tool::Way;

/// How many events are taken before their lines are written, and the loop looks at signals and
/// deadlines again. More would save nothing, and their lines would take memory.
const DRAIN: usize = 1024;

/// One record of the ring buffer.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    bytes: &'a [u8],
}

impl<'a> Event<'a> {
    /// When it happened and to whom; every event begins with it.
    ///
    /// # Errors
    /// Fails when the record is too short to be an event.
    pub fn head(&self) -> Result<&'a EventHead> {
        self.body()
    }

    /// The fixed part, as the tool's struct.
    ///
    /// # Errors
    /// Fails when the record is too short to be one.
    pub fn body<T: Plain>(&self) -> Result<&'a T> {
        plain::from_bytes(self.bytes)
            .map_err(|error| anyhow!("a record of {} bytes: {error:?}", self.bytes.len()))
    }

    /// What follows the fixed part. The ring buffer does not pad, so its length is exact.
    pub fn tail<T: Plain>(&self) -> &'a [u8] {
        self.bytes.get(size_of::<T>()..).unwrap_or(&[])
    }
}

/// The first `size` bytes of a record's tail, or as many as there are, and the rest.
pub fn split(bytes: &[u8], size: u32) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.len().min(size as usize))
}

/// A link and what is needed to ask how many hits it missed.
pub(crate) struct Attached {
    pub name: &'static str,
    pub link: Link,
    /// Behind the link, so that it is dropped after it.
    pub return_probe: Option<ReturnProbe>,
    pub program: OwnedFd,
    pub is_kprobe: bool,
}

/// What a tool has to do every so often.
pub struct Every<'a> {
    /// The interval; `None` = only once, at the end.
    pub interval: Option<Duration>,
    /// How many times; `None` = until something else ends the tool.
    pub count: Option<u64>,
    /// What to do.
    pub act: &'a mut dyn FnMut(&mut Output) -> Result<()>,
}

type OnEvent<'a> = &'a mut dyn FnMut(Event<'_>, &mut Output) -> Result<()>;

/// See the module.
pub struct Session<'a> {
    name: &'static str,
    /// The common options.
    pub common: &'a Common,
    /// Where records go.
    pub output: Output,
    /// The way that was taken.
    pub way: &'a Way,
    /// Names of addresses; see [`Asides::note_mappings`].
    pub symbols: SharedSymbols,
    asides: Vec<Box<dyn Aside>>,
    object: &'a Object,
    waiter: Waiter,
    attached: Vec<Attached>,
    reader_state: Option<ReaderState<'a>>,
    reported: Loss,
    reported_missed: Option<u64>,
    checked: Instant,
    started: Instant,
    reason: Option<String>,
    child: Option<(u32, OwnedFd)>,
    child_status: Option<i32>,
    /// Measures the programs' run time while it is open.
    run_time: Option<OwnedFd>,
    cost: Option<Cost>,
}

/// What the tool itself cost.
struct Cost {
    /// CPU time of the process.
    cpu: Duration,
    /// Of each program; none where the kernel may not be asked to measure it.
    programs: Vec<(&'static str, ProgramCounts)>,
}

/// What the runner has ready for a session.
pub(crate) struct Start<'a> {
    pub name: &'static str,
    pub common: &'a Common,
    pub way: &'a Way,
    pub object: &'a Object,
    pub output: Output,
    pub waiter: Waiter,
    pub attached: Vec<Attached>,
    pub asides: Asides,
    pub reader_state: Option<ReaderState<'a>>,
}

impl<'a> Session<'a> {
    pub(crate) fn new(start: Start<'a>) -> Self {
        Self {
            name: start.name,
            common: start.common,
            output: start.output,
            way: start.way,
            symbols: start.asides.symbols,
            asides: start.asides.all,
            object: start.object,
            waiter: start.waiter,
            attached: start.attached,
            reader_state: start.reader_state,
            reported: Loss::default(),
            reported_missed: None,
            checked: Instant::now(),
            started: Instant::now(),
            reason: None,
            child: None,
            child_status: None,
            run_time: start.common.verbose.then(|| sys::enable_run_time().ok()).flatten(),
            cost: None,
        }
    }

    /// Everything is attached: says so, and lets the command of `-- COMMAND` start.
    pub(crate) fn ready(&mut self, records: &Records, held: Option<Held>) -> Result<()> {
        if let Some(ring) = self.output.cgroups.news() {
            self.waiter.watch_cgroups(ring)?;
        }
        self.output.clock.restart();
        self.output.report_begins();
        self.started = Instant::now();
        let programs: Vec<String> =
            self.way.all().iter().map(|name| format!("\"{name}\"")).collect();
        let namespace =
            pidns::own().map_or_else(String::new, |inode| format!(",\"pid_namespace\":{inode}"));
        // Of the very moment that times since the start are counted from.
        let now = self.output.fields_at(self.output.clock.start());
        let ready = format!(
            "{{\"type\":\"ready\",\"schema\":1,\"tool\":\"{}\",\"version\":\"{}\",\"way\":\"{}\",\
             \"programs\":[{}]{namespace}{now}}}",
            self.name,
            env!("CARGO_PKG_VERSION"),
            self.way.name,
            programs.join(",")
        );
        self.output.json_line(&ready);
        if self.common.command.is_empty()
            && let Some(screen) = self.output.start_screen()?
        {
            self.waiter.watch_screen(screen)?;
        }
        self.output.begin(records);
        self.output.flush()?;
        sys::trim_memory();
        if let Some(fd) = self.common.ready_fd {
            let told = sys::adopt_fd(fd).and_then(|mut file| file.write_all(b"ready\n"));
            told.with_context(|| format!("--ready-fd {fd}"))?;
        }
        if let Some(held) = held {
            let pid = held.pid;
            let pidfd = held
                .release()
                .with_context(|| format!("cannot run {}", self.common.command[0].display()))?;
            self.waiter.watch_child(pidfd.as_fd())?;
            self.child = Some((pid, pidfd));
        }
        Ok(())
    }

    /// Shows events until the end: calls `on_event` for each record of the ring buffer.
    ///
    /// # Errors
    /// Those of `on_event`, and of writing.
    pub fn stream(
        &mut self,
        ring: &dyn MapCore,
        mut on_event: impl FnMut(Event<'_>, &mut Output) -> Result<()>,
    ) -> Result<()> {
        self.turn(Some((ring, &mut on_event)), None)
    }

    /// Acts at intervals until the end, and once more at the end unless the last interval was
    /// complete.
    ///
    /// # Errors
    /// Those of the action, and of writing.
    pub fn every(&mut self, every: Every<'_>) -> Result<()> {
        self.turn(None, Some(every))
    }

    /// Both: takes events and acts at intervals.
    ///
    /// # Errors
    /// Those of `on_event` and the action, and of writing.
    pub fn stream_and(
        &mut self,
        ring: &dyn MapCore,
        mut on_event: impl FnMut(Event<'_>, &mut Output) -> Result<()>,
        every: Every<'_>,
    ) -> Result<()> {
        self.turn(Some((ring, &mut on_event)), Some(every))
    }

    fn turn(
        &mut self,
        source: Option<(&dyn MapCore, OnEvent<'_>)>,
        mut every: Option<Every<'_>>,
    ) -> Result<()> {
        if let Some((ring, _)) = &source {
            self.waiter.watch_events(ring.as_fd())?;
        }
        self.watch_asides()?;
        // The callback of the ring buffer needs the output, and so does the loop around it.
        let mut output = self.take_output()?;
        let failure: RefCell<Option<anyhow::Error>> = RefCell::new(None);
        let result = {
            let shared = RefCell::new(&mut output);
            let ring = match source {
                None => None,
                Some((ring, on_event)) => {
                    let mut builder = RingBufferBuilder::new();
                    builder.add(ring, |bytes: &[u8]| {
                        let mut output = shared.borrow_mut();
                        let mut failed = failure.borrow_mut();
                        // A negative return would stop the drain and come back as an error of
                        // libbpf's; ours says more.
                        if failed.is_none() && !output.full {
                            *failed = on_event(Event { bytes }, *output).err();
                        }
                        0
                    })?;
                    Some(builder.build().context("ring buffer")?)
                }
            };
            self.turns(ring.as_ref(), &shared, &failure, &mut every)
        };
        self.output = output;
        result
    }

    fn watch_asides(&self) -> Result<()> {
        let mut result = Ok(());
        for aside in &self.asides {
            aside.descriptors(&mut |fd| {
                if let Err(error) = self.waiter.watch_aside(fd) {
                    result = Err(error);
                }
            });
        }
        result
    }

    /// Swaps the output out, so that the callback can own it for the time of the loop.
    fn take_output(&mut self) -> Result<Output> {
        let none = Records::new([]);
        let choice = crate::output::Choice {
            fields: None,
            filters: Vec::new(),
            table: None,
            ..self.common.choice.clone()
        };
        let placeholder = Output::new(&none, &choice)?;
        Ok(std::mem::replace(&mut self.output, placeholder))
    }

    fn turns(
        &mut self,
        ring: Option<&RingBuffer<'_>>,
        output: &RefCell<&mut Output>,
        failure: &RefCell<Option<anyhow::Error>>,
        every: &mut Option<Every<'_>>,
    ) -> Result<()> {
        let deadline = self.common.duration.map(|duration| self.started + duration);
        let interval = every.as_ref().and_then(|every| every.interval);
        let mut next_act = interval.map(|interval| self.started + interval);
        let mut acted = 0u64;
        let mut phase = Phase::Pausing;
        let drain = || -> Result<usize> {
            let Some(ring) = ring else { return Ok(0) };
            let taken = ring.consume_raw_n(DRAIN);
            if let Some(error) = failure.borrow_mut().take() {
                return Err(error);
            }
            usize::try_from(taken).map_err(|_| anyhow!("reading the ring buffer: {taken}"))
        };

        loop {
            let undecided = output.borrow_mut().cgroups.catch_up()?;
            let drained = drain()?;
            output.borrow_mut().flush()?;
            if output.borrow().reader() == Reader::Gone {
                self.end("reader");
            } else if output.borrow().full {
                self.end("limit");
            }
            let now = Instant::now();
            if drained > 0 && now.duration_since(self.checked) >= Duration::from_secs(1) {
                self.report_loss(*output.borrow_mut())?;
            }
            if let (Some(every), Some(due)) = (every.as_mut(), next_act)
                && self.reason.is_none()
                && now >= due
            {
                (every.act)(*output.borrow_mut())?;
                output.borrow_mut().flush()?;
                self.report_loss(*output.borrow_mut())?;
                acted += 1;
                // From the last due time, not from now: intervals do not drift. Those that went by
                // while this one was served are one with the next.
                let served = Instant::now();
                next_act = interval.map(|interval| {
                    let mut next = due + interval;
                    while next <= served {
                        next += interval;
                    }
                    next
                });
                if every.count.is_some_and(|count| acted >= count) {
                    self.end("count");
                    *next_act.get_or_insert(now) = now;
                    break;
                }
                continue;
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                self.end("duration");
            }
            if self.reason.is_some() {
                break;
            }

            let due = [deadline, next_act, undecided].into_iter().flatten().min();
            let until = if ring.is_none() {
                due
            } else if drained == DRAIN {
                Some(now)
            } else {
                phase = phase.after(drained);
                if let Some(state) = &self.reader_state {
                    state.set(phase.state());
                }
                match phase {
                    Phase::Pausing | Phase::Settling => {
                        Some(due.map_or(now + PAUSE, |due| due.min(now + PAUSE)))
                    }
                    Phase::Armed => Some(now),
                    Phase::Waiting => due,
                }
            };
            match self.waiter.wait(until)? {
                Wake::Look => {}
                Wake::Signal => self.end(sys::caught().unwrap_or("signal")),
                Wake::ReaderGone => self.end("reader"),
                Wake::Aside => {
                    self.asides.iter_mut().try_for_each(|aside| aside.act())?;
                    self.watch_asides()?;
                }
                Wake::ChildEnded => {
                    self.collect_child();
                    self.end("command");
                }
                Wake::Redraw => output.borrow_mut().redraw(),
                Wake::Quit => self.end("quit"),
            }
        }

        // What the programs did before this moment counts; nothing after it.
        self.asides.iter_mut().for_each(|aside| aside.stop());
        let missed = self.missed();
        if self.common.verbose {
            self.cost = Some(self.cost());
        }
        // What was attached first goes last: ends are behind beginnings here as well.
        while self.attached.pop().is_some() {}
        if self.reason.as_deref() != Some("reader") {
            while drain()? > 0 {
                output.borrow_mut().flush()?;
            }
            // A screen keeps the last complete table rather than a short one.
            let complete = self.reason.as_deref() == Some("count")
                || (acted > 0 && output.borrow().has_screen());
            if let Some(every) = every.as_mut().filter(|_| !complete) {
                (every.act)(*output.borrow_mut())?;
            }
        }
        output.borrow_mut().flush()?;
        self.report_loss_with(*output.borrow_mut(), missed)
    }

    fn cost(&self) -> Cost {
        let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from);
        let mut programs = Vec::new();
        if self.run_time.is_some() {
            let counts = |attached: &Attached| {
                Some((attached.name, sys::program_counts(attached.program.as_fd())?))
            };
            programs.extend(self.attached.iter().filter_map(counts));
            // Those that the tool itself attaches, and those that run when it reads them.
            let others = self.way.by_hand.iter().chain(&self.way.iterators);
            programs.extend(others.filter_map(|name| {
                let program = self.object.progs().find(|program| program.name() == *name)?;
                Some((*name, sys::program_counts(program.as_fd())?))
            }));
        }
        Cost { cpu: cpu.unwrap_or_default(), programs }
    }

    fn end(&mut self, reason: &str) {
        self.reason.get_or_insert_with(|| reason.to_string());
    }

    fn collect_child(&mut self) {
        let Some((pid, _)) = &self.child else { return };
        let Ok(pid) = i32::try_from(*pid) else { return };
        self.child_status = match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, status)) => Some(status),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32),
            _ => None,
        };
    }

    /// Hits that the kernel itself skipped. Where it does not count them all, those that it does
    /// count, or `None` when there were none of these.
    fn missed(&self) -> Option<u64> {
        // Of perf events the kernel does not say how often a program was already running.
        let by_asides: Vec<u64> = self.asides.iter().filter_map(|aside| aside.missed()).collect();
        let mut all_counted = self.way.by_hand.is_empty() || !by_asides.is_empty();
        let mut known = |count: Option<u64>| {
            all_counted &= count.is_some();
            count.unwrap_or(0)
        };
        let mut of = |attached: &Attached| {
            let more = match &attached.return_probe {
                Some(probe) => known(probe.missed()),
                None if attached.is_kprobe => known(sys::link_misses(attached.link.as_fd())),
                None => 0,
            };
            more + known(
                sys::program_counts(attached.program.as_fd()).and_then(|counts| counts.skipped),
            )
        };
        let twins = || self.way.twins.iter().chain([&TREE_TWINS]);
        let mut sum = by_asides.iter().sum();
        for attached in &self.attached {
            // Counted with its twin: at most the smaller number was skipped by both.
            if twins().any(|(first, _)| *first == attached.name) {
                continue;
            }
            let first = twins().find(|(_, twin)| *twin == attached.name).map(|(first, _)| first);
            let first = first.and_then(|name| self.attached.iter().find(|a| a.name == *name));
            let own = of(attached);
            sum += first.map_or(own, |first| of(first).min(own));
        }
        (all_counted || sum > 0).then_some(sum)
    }

    fn report_loss(&mut self, output: &mut Output) -> Result<()> {
        let missed = self.missed();
        self.report_loss_with(output, missed)
    }

    fn report_loss_with(&mut self, output: &mut Output, missed: Option<u64>) -> Result<()> {
        self.checked = Instant::now();
        let total = Loss::read(self.object)?;
        let new = total - self.reported;
        let new_missed = missed.map(|n| n.saturating_sub(self.reported_missed.unwrap_or(0)));
        if new == Loss::default() && new_missed.unwrap_or(0) == 0 {
            self.reported_missed = missed.or(self.reported_missed);
            return Ok(());
        }
        let now = output.now_fields();
        output.json_line(&format!(
            "{{\"type\":\"lost\",\"lost\":{},\"map_full\":{},\"missed\":{},\
             \"rate_limited\":{}{now}}}",
            new.lost,
            new.map_full,
            or_null(new_missed),
            new.rate_limited
        ));
        let mut parts = Vec::new();
        if new.lost > 0 {
            parts.push(format!("lost {} events (--buffer-size makes the buffer larger)", new.lost));
        }
        if new.map_full > 0 {
            parts.push(format!(
                "{} map insertions were refused: what they were for is missing",
                new.map_full
            ));
        }
        if let Some(missed) = new_missed.filter(|missed| *missed > 0) {
            parts.push(format!("the kernel skipped {missed} probe hits"));
        }
        if new.rate_limited > 0 {
            parts.push(format!("left out {} events, as --max-rate says", new.rate_limited));
        }
        output.notice(self.name, &parts.join("; "));
        self.reported = total;
        self.reported_missed = missed.or(self.reported_missed);
        output.flush()
    }

    /// The last record. Returns whether events were lost.
    pub(crate) fn finish(&mut self) -> Result<bool> {
        let total = self.reported;
        let missed = self.reported_missed;
        let now = self.output.now_fields();
        let mut end = format!(
            "{{\"type\":\"end\",\"reason\":\"{}\",\"events\":{},\"filtered\":{},\"lost\":{},\
             \"map_full\":{},\"missed\":{},\"rate_limited\":{}",
            self.reason.as_deref().unwrap_or("done"),
            self.output.shown,
            self.output.filtered,
            total.lost,
            total.map_full,
            or_null(missed),
            total.rate_limited
        );
        if let Some(cost) = &self.cost {
            let programs: Vec<String> = cost
                .programs
                .iter()
                .map(|(name, counts)| {
                    let ProgramCounts { runs, run_ns, .. } = counts;
                    format!("{{\"name\":\"{name}\",\"runs\":{runs},\"run_ns\":{run_ns}}}")
                })
                .collect();
            let _ = write!(
                end,
                ",\"cpu_ns\":{},\"programs\":[{}]",
                cost.cpu.as_nanos(),
                programs.join(",")
            );
        }
        if self.child.is_some() {
            let status = self.child_status.map(|s| u64::try_from(s).unwrap_or(0));
            let _ = write!(end, ",\"child_status\":{}", or_null(status));
        }
        let _ = write!(end, "{now}}}");
        self.output.json_line(&end);
        self.output.flush()?;
        self.output.end_screen(self.name);
        if self.common.verbose {
            complain(
                self.name,
                &format!(
                    "ended by {}: {} shown, {} lost, {} map insertions refused",
                    self.reason.as_deref().unwrap_or("itself"),
                    self.output.shown,
                    total.lost,
                    total.map_full
                ),
            );
            if let Some(cost) = &self.cost {
                let runs: u64 = cost.programs.iter().map(|(_, counts)| counts.runs).sum();
                let run_ns: u64 = cost.programs.iter().map(|(_, counts)| counts.run_ns).sum();
                complain(
                    self.name,
                    &format!(
                        "took {:.1} ms of CPU time; its programs ran {runs} times, {:.3} ms",
                        cost.cpu.as_secs_f64() * 1e3,
                        Duration::from_nanos(run_ns).as_secs_f64() * 1e3
                    ),
                );
            }
        }
        Ok(total.any() || missed.unwrap_or(0) > 0)
    }
}

fn or_null(number: Option<u64>) -> String {
    number.map_or_else(|| "null".into(), |n| n.to_string())
}

/// Where the reader stands between two looks at the ring buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Events flow: it looks again in 100 ms, or when the kernel side says that much has come.
    Pausing,
    /// Nothing came: it has just asked to be woken for the next event, and looks once more for
    /// one that was sent before the kernel side could know.
    Armed,
    /// Nothing came then either: one that is being sent at this moment arrives within 100 ms.
    Settling,
    /// Nothing is under way: it sleeps until it is woken.
    Waiting,
}

impl Phase {
    fn after(self, drained: usize) -> Self {
        match self {
            _ if drained > 0 => Self::Pausing,
            Self::Pausing => Self::Armed,
            Self::Settling => Self::Waiting,
            // Woken, and nothing there: an event that was begun before the one that woke it, and
            // that nobody wakes it for, may still be under way in front of it.
            Self::Armed | Self::Waiting => Self::Settling,
        }
    }

    fn state(self) -> State {
        match self {
            Self::Pausing => State::READER_PAUSING,
            Self::Armed | Self::Settling | Self::Waiting => State::READER_WAITING,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reader_sleeps_only_after_three_empty_looks() {
        let mut phase = Phase::Pausing;
        for expected in [Phase::Armed, Phase::Settling, Phase::Waiting, Phase::Settling] {
            phase = phase.after(0);
            assert_eq!(phase, expected);
            assert_eq!(phase.state(), State::READER_WAITING);
        }
        assert_eq!(phase.after(1), Phase::Pausing);
    }
}
