// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Names for addresses, of the kernel and of processes.
//!
//! Nothing is read before an address is to be named. A frame that cannot be named keeps its module
//! and the offset there, or its address: none is dropped.

mod binary;
mod demangle;
mod elf;
mod kernel;
mod maps;
mod open;
mod perf_map;
mod watch;

use std::os::fd::BorrowedFd;
use std::rc::Rc;

use anyhow::Result;

pub use demangle::demangle;
pub use kernel::tracing_frames;
pub(crate) use maps::Line;
pub(crate) use maps::exec_lines;
pub(crate) use open::executable as open_executable;
pub(crate) use open::followed as open_in_process;
pub(crate) use open::mapped as open_mapped;

use crate::value::Frame;
use binary::Binaries;
use binary::Binary;
use kernel::Kernel;
use maps::Maps;
use maps::Place;
use perf_map::PerfMap;
use watch::Watch;

/// Names addresses. Keeps what it has read, so one serves a whole run.
#[derive(Default)]
pub struct Symbols {
    kernel: Kernel,
    binaries: Binaries,
    watch: Option<Watch>,
}

impl Symbols {
    /// From now on notes what processes map, so that those which have ended can be named too.
    /// `only` these processes, or all where it is empty.
    ///
    /// # Errors
    /// Fails where the kernel does not permit it; then only processes that still live are named.
    pub fn watch(&mut self, only: &[u32]) -> Result<()> {
        self.watch = Some(Watch::start(only, &mut self.binaries)?);
        Ok(())
    }

    /// The descriptors that become readable when there is something to note.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.watch.iter().flat_map(Watch::descriptors)
    }

    /// Notes what has happened since the last call.
    pub fn note(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.drain(&mut self.binaries);
        }
    }

    /// Names a kernel stack, leaf first.
    pub fn kernel(&mut self, addrs: &[u64]) -> Vec<Frame> {
        self.kernel.frames(addrs)
    }

    /// Names `addrs`, a stack of the process `pid`, leaf first.
    pub fn user(&mut self, pid: u32, addrs: &[u64]) -> Vec<Frame> {
        self.user_stacks(pid, &[addrs]).pop().unwrap_or_default()
    }

    /// Names several stacks of one process, with one look at it.
    pub fn user_stacks(&mut self, pid: u32, stacks: &[&[u64]]) -> Vec<Vec<Frame>> {
        let live = Maps::of_process(pid, &mut self.binaries);
        let noted = self.watch.as_ref().and_then(|watch| watch.maps(pid));
        // All but the leaf are return addresses, and a call may be a function's last instruction.
        let lookup = |i: usize, addr: u64| addr.saturating_sub(u64::from(i > 0));
        let place = |addr: u64| -> Option<Place<'_>> {
            // What it was before it executed another program is only in what was noted.
            let noted = || noted.as_ref().and_then(|maps| maps.place(addr));
            live.as_ref().and_then(|maps| maps.place(addr)).or_else(noted)
        };
        let mut frames: Vec<Vec<Frame>> = Vec::with_capacity(stacks.len());
        let mut wanted: Vec<Wanted> = Vec::new();
        for (stack, addrs) in stacks.iter().enumerate() {
            frames.push(Vec::with_capacity(addrs.len()));
            for (i, addr) in addrs.iter().enumerate() {
                let lookup = lookup(i, *addr);
                let mut frame = Frame { addr: *addr, ..Frame::default() };
                let mut binary = None;
                let mut offset = 0;
                if let Some(place) = place(lookup) {
                    offset = place.offset;
                    if let Some(found) = place.binary {
                        frame.module = Some(found.module.to_string());
                        frame.off = offset + (*addr - lookup);
                        frame.module_off = Some(frame.off);
                        binary = Some(Rc::clone(found));
                    }
                }
                frames[stack].push(frame);
                wanted.push(Wanted { stack, frame: i, lookup, offset, binary });
            }
        }
        name_by_binary(&mut wanted, &mut frames);
        self.name_by_perf_map(pid, &wanted, &mut frames);
        frames
    }

    /// What the process itself says about its code, for what is still without a name.
    fn name_by_perf_map(&mut self, pid: u32, wanted: &[Wanted], frames: &mut [Vec<Frame>]) {
        let rest: Vec<&Wanted> =
            wanted.iter().filter(|one| frames[one.stack][one.frame].sym.is_none()).collect();
        if rest.is_empty() {
            return;
        }
        let addrs: Vec<u64> = rest.iter().map(|one| one.lookup).collect();
        let names = match PerfMap::open(pid) {
            Some(mut map) => Some(map.names(&addrs)),
            None => self.watch.as_ref().and_then(|watch| watch.perf_map_names(pid, &addrs)),
        };
        for (one, name) in rest.iter().zip(names.unwrap_or_default()) {
            if let Some((name, off)) = name {
                let frame = &mut frames[one.stack][one.frame];
                frame.off = off + (frame.addr - one.lookup);
                frame.sym = Some(name);
            }
        }
    }

    /// Gives back what can be read again.
    pub fn forget_tables(&mut self) {
        self.binaries.forget_tables();
    }

    /// What is to be told about names that are missing, if anything.
    pub fn complaints(&self) -> Vec<String> {
        let mut all: Vec<String> = self.kernel.complaint().map(String::from).into_iter().collect();
        let lost = self.watch.as_ref().map_or(0, Watch::lost);
        if lost > 0 {
            all.push(format!(
                "the kernel lost {lost} records of what processes mapped: some that have ended \
                 may lack names"
            ));
        }
        all
    }
}

/// A frame whose name is looked for.
struct Wanted {
    stack: usize,
    frame: usize,
    lookup: u64,
    offset: u64,
    binary: Option<Rc<Binary>>,
}

fn name_by_binary(wanted: &mut [Wanted], frames: &mut [Vec<Frame>]) {
    let which = |one: &Wanted| one.binary.as_ref().map(|binary| Rc::as_ptr(binary) as usize);
    wanted.sort_by_key(which);
    for group in wanted.chunk_by(|a, b| which(a) == which(b)) {
        let Some(binary) = group.first().and_then(|one| one.binary.as_ref()) else { continue };
        let offsets: Vec<u64> = group.iter().map(|one| one.offset).collect();
        for (one, name) in group.iter().zip(binary.names(&offsets)) {
            if let Some((name, off)) = name {
                let frame = &mut frames[one.stack][one.frame];
                frame.off = off + (frame.addr - one.lookup);
                frame.sym = Some(name.to_string());
            }
        }
    }
}
