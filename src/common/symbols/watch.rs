// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What processes have mapped, noted while they live, for those that end before their addresses
//! are named: the kernel's own records of mappings, executions, forks and ends, of every CPU.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use anyhow::Result;

use crate::cpus;
use crate::cpus::Arrivals;
use crate::perf::Record;
use crate::perf::Records;
use crate::symbols::binary::Binaries;
use crate::symbols::maps::Line;
use crate::symbols::maps::Maps;
use crate::symbols::perf_map::PerfMap;

/// How many processes are remembered after their end.
const MOST_ENDED: usize = 16_384;
/// How many perf maps are held open.
const MOST_PERF_MAPS: usize = 256;

#[derive(Clone, Default)]
struct Process {
    maps: Rc<Maps>,
    /// When it last executed another program: what is noted late of the time before is left out.
    executed: u64,
    ended: bool,
    perf_map: Option<Rc<RefCell<PerfMap>>>,
}

/// See the module.
pub struct Watch {
    cpus: Vec<Records>,
    arrivals: Option<Arrivals>,
    processes: HashMap<u32, Process>,
    ended: VecDeque<u32>,
    perf_maps: usize,
    /// Records that did not fit into the kernel's buffers.
    lost: u64,
}

impl Watch {
    /// Begins to note. Of processes that are there already, what they have mapped now; `only`
    /// these, or all where it is empty.
    ///
    /// # Errors
    /// Fails where the kernel does not permit it.
    pub fn start(only: &[u32], binaries: &mut Binaries) -> Result<Self> {
        let arrivals = Arrivals::listen().ok();
        let cpus = cpus::online().into_iter().map(Records::open).collect::<Result<_>>()?;
        let mut watch = Self {
            cpus,
            arrivals,
            processes: HashMap::new(),
            ended: VecDeque::new(),
            perf_maps: 0,
            lost: 0,
        };
        let all = || {
            let names = std::fs::read_dir("/proc").into_iter().flatten().flatten();
            names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        };
        let pids: Vec<u32> = if only.is_empty() { all() } else { only.to_vec() };
        for pid in pids {
            if let Some(maps) = Maps::of_process(pid, binaries) {
                let is_jit = maps.has_anonymous();
                let process = watch.processes.entry(pid).or_default();
                process.maps = Rc::new(maps);
                if is_jit {
                    watch.open_perf_map(pid);
                }
            }
        }
        Ok(watch)
    }

    /// The descriptors that become readable when there is something to note.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let arrivals = self.arrivals.iter().map(Arrivals::as_fd);
        self.cpus.iter().map(Records::as_fd).chain(arrivals)
    }

    /// Notes what has happened.
    pub fn drain(&mut self, binaries: &mut Binaries) {
        let mut records = Vec::new();
        if let Some(arrivals) = &mut self.arrivals {
            // One that was online before has records of its own, which have come to their end.
            self.cpus.extend(arrivals.take().into_iter().filter_map(|cpu| Records::open(cpu).ok()));
        }
        for cpu in &mut self.cpus {
            cpu.drain(&mut records);
        }
        // Each CPU has its own order; a process may have changed the CPU between two of them.
        records.sort_by_key(|record| match record {
            Record::Map { time, .. } | Record::Exec { time, .. } | Record::Fork { time, .. } => {
                *time
            }
            Record::Exit { .. } | Record::Lost(_) => u64::MAX,
        });
        for record in records {
            self.note(record, binaries);
        }
    }

    fn note(&mut self, record: Record, binaries: &mut Binaries) {
        match record {
            Record::Map { pid, start, end, offset, device, inode, path, time } => {
                let process = self.processes.entry(pid).or_default();
                if time < process.executed {
                    return;
                }
                let line = Line { start, end, offset, device, inode, path: &path };
                Rc::make_mut(&mut process.maps).add(pid, &line, time, binaries);
                if inode == 0 && path.starts_with(b"//anon") {
                    self.open_perf_map(pid);
                }
            }
            Record::Exec { pid, time } => {
                let process = self.processes.entry(pid).or_default();
                process.executed = process.executed.max(time);
            }
            Record::Fork { pid, parent, time } => {
                let parent = self.processes.get(&parent).cloned().unwrap_or_default();
                let child = self.processes.entry(pid).or_default();
                // What it did since may have been noted before; an older one of this id is gone.
                if child.ended || child.executed < time {
                    *child = Process { ended: false, executed: 0, ..parent };
                }
            }
            Record::Exit { pid } => {
                let process = self.processes.entry(pid).or_default();
                if !std::mem::replace(&mut process.ended, true) {
                    self.ended.push_back(pid);
                }
                if self.ended.len() > MOST_ENDED
                    && let Some(oldest) = self.ended.pop_front()
                    && self.processes.get(&oldest).is_some_and(|process| process.ended)
                {
                    self.processes.remove(&oldest);
                }
            }
            Record::Lost(count) => self.lost += count,
        }
    }

    fn open_perf_map(&mut self, pid: u32) {
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if process.perf_map.is_none() && self.perf_maps < MOST_PERF_MAPS {
            process.perf_map = PerfMap::open(pid).map(|map| Rc::new(RefCell::new(map)));
            self.perf_maps += usize::from(process.perf_map.is_some());
        }
    }

    /// What a process had mapped, as far as it was seen.
    pub fn maps(&self, pid: u32) -> Option<Rc<Maps>> {
        self.processes.get(&pid).map(|process| Rc::clone(&process.maps))
    }

    /// Names that a process gave to its code, where they were found while it lived.
    pub fn perf_map_names(&self, pid: u32, addrs: &[u64]) -> Option<Vec<Option<(String, u64)>>> {
        let map = self.processes.get(&pid)?.perf_map.as_ref()?;
        Some(map.borrow_mut().names(addrs))
    }

    /// How many of the kernel's records were lost.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        Watch {
            cpus: Vec::new(),
            arrivals: None,
            processes: HashMap::new(),
            ended: VecDeque::new(),
            perf_maps: 0,
            lost: 0,
        }
    }

    fn map(pid: u32, start: u64, time: u64) -> Record {
        let path = b"/no/such/file".to_vec();
        let end = start + 0x1000;
        Record::Map { pid, start, end, offset: 0, device: 1, inode: start, path, time }
    }

    #[test]
    fn children_inherit_and_programs_replace() {
        let mut binaries = Binaries::default();
        let mut watch = watch();
        for record in [
            map(1, 0x1000, 10),
            Record::Fork { pid: 2, parent: 1, time: 20 },
            map(1, 0x9000, 25),
            Record::Exec { pid: 2, time: 30 },
            map(2, 0x5000, 31),
            Record::Exit { pid: 2 },
        ] {
            watch.note(record, &mut binaries);
        }
        let has = |pid, addr| watch.maps(pid).is_some_and(|maps| maps.place(addr).is_some());
        assert!(has(1, 0x1000) && has(1, 0x9000) && has(2, 0x5000), "own mappings");
        assert!(has(2, 0x1000), "samples of before the exec");
        assert!(!has(2, 0x9000) && !has(3, 0x1000));
    }

    #[test]
    fn an_id_that_is_used_again_begins_anew() {
        let mut binaries = Binaries::default();
        let mut watch = watch();
        watch.note(map(2, 0x5000, 5), &mut binaries);
        watch.note(Record::Exit { pid: 2 }, &mut binaries);
        watch.note(Record::Fork { pid: 2, parent: 1, time: 9 }, &mut binaries);
        assert!(watch.maps(2).is_some_and(|maps| maps.place(0x5000).is_none()));
        for pid in 10..10 + u32::try_from(MOST_ENDED).expect("small") + 10 {
            watch.note(Record::Exit { pid }, &mut binaries);
        }
        assert!(watch.processes.len() <= MOST_ENDED + 2);
    }
}
