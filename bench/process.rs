// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! A tool that runs: when it is ready, what it takes, and its end.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io::Read as _;
use std::io::Seek as _;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use nix::sys::resource::UsageWho;
use nix::sys::resource::getrusage;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::time::ClockId;
use nix::time::clock_getcpuclockid;
use nix::time::clock_gettime;
use nix::unistd::Pid;

/// The numbers of the system calls that a tool waits in: epoll, poll, sleep, pause.
#[cfg(target_arch = "x86_64")]
const WAITS: [u32; 8] = [232, 281, 441, 7, 271, 35, 230, 34];
#[cfg(not(target_arch = "x86_64"))]
const WAITS: [u32; 5] = [22, 441, 73, 101, 115];

/// Longer than any tool takes to start, on a machine that emulates.
const PATIENCE: Duration = Duration::from_secs(600);

/// CPU time of a clock, in nanoseconds.
fn read_clock(clock: ClockId) -> Result<u64> {
    let time = clock_gettime(clock)?;
    Ok(u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?)
}

/// CPU time of this process and of its children that have ended.
pub fn cpu_of_workload() -> Result<u64> {
    Ok(read_clock(ClockId::CLOCK_PROCESS_CPUTIME_ID)? + cpu_of_children()?)
}

fn cpu_of_children() -> Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
    Ok(u64::try_from(micros(usage.user_time()) + micros(usage.system_time()))? * 1000)
}

/// A tool that is ready.
pub struct Tool {
    child: Child,
    /// CPU time until it was.
    pub start_ns: u64,
}

/// What became of a tool that was told to end.
pub struct End {
    /// Time until it was gone; by the machine's clock.
    pub stop_ns: u64,
    /// CPU time for that: the last report is made then.
    pub report_ns: u64,
}

impl Tool {
    /// Starts a tool, and waits until it sleeps in a wait for events or for an interval: it is then
    /// attached. Peers do not say so.
    ///
    /// # Errors
    /// Fails when it ends instead, with what it said.
    pub fn start(command: &[String], shown: &Path, said: &Path) -> Result<Self> {
        let child = Command::new(&command[0])
            .args(&command[1..])
            .env("TERM", "dumb")
            .stdin(Stdio::null())
            .stdout(File::create(shown)?)
            .stderr(File::create(said)?)
            .spawn()
            .with_context(|| command.join(" "))?;
        let mut tool = Self { child, start_ns: 0 };
        if let Err(error) = tool.wait_until_ready(said) {
            // It may have ended by itself.
            let _ = tool.child.kill();
            let _ = tool.child.wait();
            return Err(error);
        }
        tool.start_ns = tool.cpu()?;
        Ok(tool)
    }

    fn wait_until_ready(&mut self, said: &Path) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        // Opened once: each open would be an event that wakes the tool.
        let mut call_file = File::open(format!("/proc/{}/syscall", self.child.id()))?;
        let mut quiet = 0;
        while quiet < 3 {
            if Instant::now() >= until {
                bail!("it does not get ready");
            }
            if let Some(status) = self.child.try_wait()? {
                let said = fs::read_to_string(said).unwrap_or_default();
                bail!("{}", said.lines().last().unwrap_or(&status.to_string()).trim());
            }
            let mut call = String::new();
            call_file.rewind()?;
            // The process may be going at this moment.
            let _ = call_file.read_to_string(&mut call);
            let number = call.split_whitespace().next().and_then(|number| number.parse().ok());
            let waits = number.is_some_and(|number: u32| WAITS.contains(&number));
            quiet = if waits { quiet + 1 } else { 0 };
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// CPU time so far.
    ///
    /// # Errors
    /// Fails when it has ended.
    pub fn cpu(&self) -> Result<u64> {
        read_clock(clock_getcpuclockid(Pid::from_raw(i32::try_from(self.child.id())?))?)
    }

    /// How many times it goes to sleep in a second in which nothing happens.
    ///
    /// # Errors
    /// Fails when it has ended.
    pub fn idle_wakeups(&self) -> Result<u64> {
        // Opened beforehand: see wait_until_ready. What was under way before is over by then.
        let mut files = Vec::new();
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            files.push(File::open(thread?.path().join("status"))?);
        }
        thread::sleep(Duration::from_millis(1500));
        let mut read = || -> Result<u64> {
            let mut sum = 0;
            for file in &mut files {
                let mut text = String::new();
                file.rewind()?;
                file.read_to_string(&mut text)?;
                sum += number_after(&text, "voluntary_ctxt_switches:");
            }
            Ok(sum)
        };
        let before = read()?;
        thread::sleep(Duration::from_secs(1));
        Ok(read()?.saturating_sub(before))
    }

    /// Its anonymous memory.
    ///
    /// # Errors
    /// Fails when it has ended.
    pub fn anonymous_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        Ok(number_after(&status, "RssAnon:") << 10)
    }

    /// Memory of its maps, ring buffers among them, and of perf's buffers.
    ///
    /// # Errors
    /// Fails when it has ended.
    pub fn map_bytes(&self) -> Result<u64> {
        let mut maps = BTreeMap::new();
        for info in fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()))? {
            // A descriptor may be closed meanwhile.
            let text = fs::read_to_string(info?.path()).unwrap_or_default();
            if text.contains("map_id:") {
                maps.insert(number_after(&text, "map_id:"), number_after(&text, "memlock:"));
            }
        }
        let mapped = fs::read_to_string(format!("/proc/{}/maps", self.child.id()))?;
        let perf = mapped.lines().filter(|line| line.contains("[perf_event]"));
        let sizes = perf.filter_map(|line| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            Some(u64::from_str_radix(end, 16).ok()? - u64::from_str_radix(start, 16).ok()?)
        });
        Ok(maps.values().sum::<u64>() + sizes.sum::<u64>())
    }

    /// Ends it as Ctrl-C does.
    ///
    /// # Errors
    /// Fails when it has ended before.
    pub fn stop(mut self) -> Result<End> {
        let used = self.cpu()?;
        let children = cpu_of_children()?;
        let asked = Instant::now();
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        self.child.wait()?;
        let stop_ns = u64::try_from(asked.elapsed().as_nanos())?;
        // In microseconds, and so the last nanoseconds of the start may be missing.
        Ok(End { stop_ns, report_ns: (cpu_of_children()? - children).saturating_sub(used) })
    }
}

/// The number behind a name at the beginning of a line, or 0.
fn number_after(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
