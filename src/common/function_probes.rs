// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Two programs, at the beginnings and at the ends of functions that are chosen when the tool
//! starts: by the links that take many functions at once, or by one probe each.
//!
//! A program that serves several functions is told which one by a cookie, the function's place in
//! the list; where the kernel has none (before 5.15), only its address tells.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::thread;

use anyhow::Context as _;
use anyhow::Result;
use libbpf_rs::KprobeMultiOpts;
use libbpf_rs::KprobeOpts;
use libbpf_rs::Link;
use libbpf_rs::Object;
use libbpf_rs::ProgramMut;
use libbpf_rs::UprobeMultiOpts;
use libbpf_rs::UprobeOpts;

use crate::aside::Aside;
use crate::kretprobe::ReturnProbe;
use crate::sys;

/// How many are taken away at the same time.
const AT_ONCE: usize = 32;

struct Probe {
    link: Link,
    /// Behind the link, so that it is dropped after it.
    return_probe: Option<ReturnProbe>,
    is_kprobe: bool,
    /// Whether it is where functions begin.
    is_entry: bool,
}

impl Probe {
    fn new(link: Link, is_kprobe: bool, is_entry: bool) -> Self {
        Self { link, return_probe: None, is_kprobe, is_entry }
    }
}

/// See the module.
pub struct FunctionProbes<'o> {
    enter: ProgramMut<'o>,
    exit: ProgramMut<'o>,
    probes: Vec<Probe>,
    /// Whether the kernel passes cookies.
    pub has_cookies: bool,
    /// Functions that the kernel refused, each with the reason.
    pub refused: Vec<(String, String)>,
    /// Why a return probe has no room for many calls.
    pub narrow: Option<String>,
}

/// A cookie that is never 0, which would be none.
fn cookie(index: usize) -> u64 {
    1 << 32 | index as u64
}

fn program<'o>(object: &'o Object, name: &str) -> Result<ProgramMut<'o>> {
    let found = object.progs_mut().find(|program| program.name() == name);
    found.with_context(|| format!("there is no program {name}"))
}

impl<'o> FunctionProbes<'o> {
    /// With these programs for the beginning and the end.
    ///
    /// # Errors
    /// Fails when the object has no such programs.
    pub fn new(object: &'o Object, enter: &str, exit: &str) -> Result<Self> {
        Ok(Self {
            enter: program(object, enter)?,
            exit: program(object, exit)?,
            probes: Vec::new(),
            has_cookies: true,
            refused: Vec::new(),
            narrow: None,
        })
    }

    /// All functions of the kernel at once (kprobe.multi).
    ///
    /// # Errors
    /// Fails where the kernel has no such links, or refuses one of the functions.
    pub fn kernel_at_once(&mut self, functions: &[String]) -> Result<()> {
        // The end first: of a call whose beginning is seen the end is seen too.
        for (program, retprobe) in [(&self.exit, true), (&self.enter, false)] {
            let link = program.attach_kprobe_multi_with_opts(KprobeMultiOpts {
                symbols: functions.to_vec(),
                cookies: (0..functions.len()).map(cookie).collect(),
                retprobe,
                ..KprobeMultiOpts::default()
            })?;
            self.probes.push(Probe::new(link, true, !retprobe));
        }
        Ok(())
    }

    /// Two probes for each function of the kernel. What the kernel refuses is in `refused`.
    pub fn kernel(&mut self, functions: &[String]) {
        for (index, function) in functions.iter().enumerate() {
            if let Err(error) = self.kernel_function(function, index) {
                let error = format!("{error:#}").replace('\n', " ");
                self.refused.push((function.clone(), error));
            }
        }
    }

    fn kernel_function(&mut self, function: &str, index: usize) -> Result<()> {
        let (link, return_probe) = match ReturnProbe::attach(&self.exit, function) {
            Ok((link, probe)) => (link, Some(probe)),
            Err(error) => {
                let link = self.exit.attach_kprobe(true, function)?;
                self.narrow.get_or_insert_with(|| format!("{error:#}"));
                (link, None)
            }
        };
        let with = |cookie| {
            let opts = KprobeOpts { cookie, ..KprobeOpts::default() };
            self.enter.attach_kprobe_with_opts(false, function, opts)
        };
        let entry = match self.has_cookies.then(|| with(cookie(index))) {
            Some(Ok(link)) => link,
            _ => {
                let link = with(0)?;
                self.has_cookies = false;
                link
            }
        };
        self.probes.push(Probe { link, return_probe, is_kprobe: true, is_entry: false });
        self.probes.push(Probe::new(entry, true, true));
        Ok(())
    }

    /// All these places of a file at once (uprobe.multi), each with its function's index.
    ///
    /// # Errors
    /// Fails where the kernel has no such links, or refuses one of the places.
    pub fn file_at_once(&mut self, file: &File, pid: u32, places: &[(usize, u64)]) -> Result<()> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let offsets = places.iter().map(|(_, offset)| usize::try_from(*offset));
        let offsets: Vec<usize> = offsets.collect::<Result<_, _>>()?;
        for (program, retprobe) in [(&self.exit, true), (&self.enter, false)] {
            let opts = UprobeMultiOpts {
                offsets: offsets.clone(),
                cookies: places.iter().map(|(index, _)| cookie(*index)).collect(),
                retprobe,
                ..UprobeMultiOpts::default()
            };
            let link = program.attach_uprobe_multi_with_opts(process(pid)?, &path, "", opts)?;
            self.probes.push(Probe::new(link, false, !retprobe));
        }
        Ok(())
    }

    /// Two probes for each of these places of a file.
    ///
    /// # Errors
    /// Fails when the kernel refuses one of them.
    pub fn file(&mut self, file: &File, pid: u32, places: &[(usize, u64)]) -> Result<()> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let pid = process(pid)?;
        for (index, offset) in places {
            let offset = usize::try_from(*offset)?;
            let attach = |program: &ProgramMut<'_>, retprobe, cookie| {
                let opts = UprobeOpts { cookie, retprobe, ..UprobeOpts::default() };
                program.attach_uprobe_with_opts(pid, &path, offset, opts)
            };
            let link = attach(&self.exit, true, 0)?;
            self.probes.push(Probe::new(link, false, false));
            let with = self.has_cookies.then(|| attach(&self.enter, false, cookie(*index)));
            let entry = match with {
                Some(Ok(link)) => link,
                _ => {
                    let link = attach(&self.enter, false, 0)?;
                    self.has_cookies = false;
                    link
                }
            };
            self.probes.push(Probe::new(entry, false, true));
        }
        Ok(())
    }

    /// How many probes and links there are.
    pub fn count(&self) -> usize {
        self.probes.len()
    }

    /// Keeps them while the tool runs.
    ///
    /// # Errors
    /// Fails when the system has no descriptors left.
    pub fn while_running(self) -> Result<AttachedProbes> {
        let own = |program: &ProgramMut<'_>| program.as_fd().try_clone_to_owned();
        let programs = vec![own(&self.enter)?, own(&self.exit)?];
        Ok(AttachedProbes { probes: self.probes, programs, at_the_end: None })
    }
}

fn process(pid: u32) -> Result<i32> {
    Ok(if pid == 0 { -1 } else { i32::try_from(pid)? })
}

/// Probes that stay until the tool ends.
pub struct AttachedProbes {
    probes: Vec<Probe>,
    programs: Vec<OwnedFd>,
    /// What had been missed when they were taken away.
    at_the_end: Option<(u64, bool)>,
}

impl AttachedProbes {
    /// How many hits were skipped, as far as the kernel says so, and whether it says all.
    fn count(&self) -> (u64, bool) {
        let mut sum = 0;
        let mut all = true;
        let mut add = |count: Option<u64>| {
            all &= count.is_some();
            sum += count.unwrap_or(0);
        };
        for probe in &self.probes {
            match &probe.return_probe {
                Some(probe) => add(probe.missed()),
                None if probe.is_kprobe => add(sys::link_misses(probe.link.as_fd())),
                // Of uprobes nothing is skipped but by the program itself.
                None => {}
            }
        }
        for program in &self.programs {
            add(sys::program_counts(program.as_fd()).and_then(|counts| counts.skipped));
        }
        (sum, all)
    }
}

impl Aside for AttachedProbes {
    fn descriptors(&self, _watch: &mut dyn FnMut(BorrowedFd<'_>)) {}

    fn act(&mut self) -> Result<()> {
        Ok(())
    }

    fn missed(&self) -> Option<u64> {
        let (sum, all) = self.at_the_end.unwrap_or_else(|| self.count());
        (all || sum > 0).then_some(sum)
    }

    fn stop(&mut self) {
        self.at_the_end = Some(self.count());
        // Beginnings first: one that is seen without its end would stay a call for ever.
        let (begins, ends) = self.probes.drain(..).partition(|probe: &Probe| probe.is_entry);
        take_away(begins);
        take_away(ends);
    }
}

/// Taking one away waits for a grace period of the kernel; many can wait together.
fn take_away(mut rest: Vec<Probe>) {
    let share = rest.len().div_ceil(AT_ONCE).max(1);
    thread::scope(|scope| {
        while !rest.is_empty() {
            let part = rest.split_off(rest.len().saturating_sub(share));
            scope.spawn(move || drop(part));
        }
    });
}
