// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Functions of libraries, in every copy of the library that processes have mapped or will map.
//!
//! A uprobe is at a place of a file, whoever maps it: containers have files of their own. So the
//! mappings of all processes are looked through at the start, and the kernel tells of new ones as
//! long as the tool runs. Files are opened through the mapping itself, which finds them in any mount
//! namespace and after they have been deleted.

use std::collections::HashSet;
use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::thread;

use anyhow::Context as _;
use anyhow::Result;
use libbpf_rs::Object;

use crate::aside::Aside;
use crate::cpus;
use crate::cpus::Arrivals;
use crate::perf;
use crate::perf::Record;
use crate::perf::Records;
use crate::symbols;
use crate::symbols::Line;

/// A function, and the programs for its beginning and its end.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// Its symbol.
    pub symbol: &'static str,
    /// The program at its beginning.
    pub enter: &'static str,
    /// The program at its end; empty = none.
    pub exit: &'static str,
}

/// The same with the loaded programs.
struct Hook {
    symbol: &'static str,
    enter: OwnedFd,
    exit: Option<OwnedFd>,
}

/// Chooses files by their names.
type Wanted = Box<dyn Fn(&[u8]) -> bool>;

/// Uprobes in every copy of a library; see the module.
pub struct Libraries {
    hooks: Vec<Hook>,
    /// Whether a file of this name may be such a library.
    is_wanted: Wanted,
    /// Only what these processes have mapped; empty = all.
    only: Vec<u32>,
    records: Vec<Records>,
    arrivals: Option<Arrivals>,
    /// File system, inode and process (or 0 for all) of what has been looked at.
    known: HashSet<(u64, u64, u32)>,
    probes: Vec<OwnedFd>,
    /// Why a file that has the functions could not be probed.
    refused: Option<io::Error>,
}

impl Libraries {
    /// Probes `functions` in one file, in all processes that use it or will.
    ///
    /// # Errors
    /// Fails when the file has none of the functions, or the kernel refuses.
    pub fn in_file(
        object: &Object,
        functions: &[Function],
        file: &File,
        only: &[u32],
    ) -> Result<Self> {
        let mut libraries = Self::new(object, functions, Box::new(|_| false), only)?;
        let pids = if only.is_empty() { vec![0] } else { only.to_vec() };
        for pid in pids {
            libraries.probe(file, pid).context("attaching uprobes")?;
        }
        anyhow::ensure!(!libraries.probes.is_empty(), "it has none of the functions");
        Ok(libraries)
    }

    /// Probes `functions` in each library that processes have mapped, or will map, and whose file
    /// name passes `is_wanted`; `only` in these processes, or in all.
    ///
    /// # Errors
    /// Fails where the kernel permits no uprobes.
    pub fn everywhere(
        object: &Object,
        functions: &[Function],
        is_wanted: impl Fn(&[u8]) -> bool + 'static,
        only: &[u32],
    ) -> Result<Self> {
        let mut libraries = Self::new(object, functions, Box::new(is_wanted), only)?;
        libraries.arrivals = Arrivals::listen().ok();
        // First the records, so that nothing can be mapped in between unseen.
        libraries.records = cpus::online().into_iter().map(Records::open).collect::<Result<_>>()?;
        let all = || -> Vec<u32> {
            let names = fs::read_dir("/proc").into_iter().flatten().flatten();
            names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
        };
        for pid in if only.is_empty() { all() } else { only.to_vec() } {
            libraries.look_at(pid);
        }
        match libraries.refused.take() {
            Some(error) if libraries.probes.is_empty() => Err(error).context("attaching uprobes"),
            _ => Ok(libraries),
        }
    }

    fn new(
        object: &Object,
        functions: &[Function],
        is_wanted: Wanted,
        only: &[u32],
    ) -> Result<Self> {
        let program = |name: &str| {
            let found = object.progs().find(|program| program.name() == name);
            let found = found.with_context(|| format!("there is no program {name}"))?;
            found.as_fd().try_clone_to_owned().context("a program's descriptor")
        };
        let hook = |function: &Function| {
            Ok(Hook {
                symbol: function.symbol,
                enter: program(function.enter)?,
                exit: match function.exit {
                    "" => None,
                    name => Some(program(name)?),
                },
            })
        };
        Ok(Self {
            hooks: functions.iter().map(hook).collect::<Result<_>>()?,
            is_wanted,
            only: only.to_vec(),
            records: Vec::new(),
            arrivals: None,
            known: HashSet::new(),
            probes: Vec::new(),
            refused: None,
        })
    }

    /// Looks through what a process has mapped.
    fn look_at(&mut self, pid: u32) {
        let Ok(text) = fs::read(format!("/proc/{pid}/maps")) else { return };
        for line in symbols::exec_lines(&text) {
            self.consider(pid, &line);
        }
    }

    /// Probes a mapped file, if it is wanted and has not been probed yet.
    fn consider(&mut self, pid: u32, line: &Line<'_>) {
        let path = line.path.strip_suffix(b" (deleted)").unwrap_or(line.path);
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
        if line.inode == 0 || !(self.is_wanted)(name) {
            return;
        }
        if !self.only.is_empty() && !self.only.contains(&pid) {
            return;
        }
        let of = if self.only.is_empty() { 0 } else { pid };
        let key = (line.device, line.inode, of);
        if self.known.contains(&key) {
            return;
        }
        // Unmapped again meanwhile, or the process has ended: the next one will be looked at.
        let Some(file) = symbols::open_mapped(pid, line.start, line.end) else { return };
        self.known.insert(key);
        if let Err(error) = self.probe(&file, of) {
            self.refused = Some(error);
        }
    }

    /// Attaches to all functions that the file has. A file that is no library has none.
    fn probe(&mut self, file: &File, pid: u32) -> io::Result<()> {
        let names: Vec<&str> = self.hooks.iter().map(|hook| hook.symbol).collect();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        for (index, offset) in function_offsets(file, &names).unwrap_or_default() {
            let hook = &self.hooks[index];
            // The end first: of a call whose beginning is seen the end is seen too.
            let programs = hook.exit.iter().map(|exit| (exit, true)).chain([(&hook.enter, false)]);
            for (program, is_return) in programs {
                self.probes.push(perf::uprobe(&path, offset, is_return, pid, program.as_fd())?);
            }
        }
        Ok(())
    }

    /// How many programs are attached.
    pub fn count(&self) -> usize {
        self.probes.len()
    }
}

impl Aside for Libraries {
    fn descriptors(&self, watch: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.records.iter().map(Records::as_fd).for_each(&mut *watch);
        self.arrivals.iter().map(Arrivals::as_fd).for_each(watch);
    }

    fn act(&mut self) -> Result<()> {
        if let Some(arrivals) = &mut self.arrivals {
            let new = arrivals.take().into_iter().filter_map(|cpu| Records::open(cpu).ok());
            self.records.extend(new);
        }
        let mut records = Vec::new();
        self.records.iter_mut().for_each(|cpu| cpu.drain(&mut records));
        for record in records {
            match record {
                Record::Map { pid, start, end, offset, device, inode, path, .. } => {
                    self.consider(pid, &Line { start, end, offset, device, inode, path: &path });
                }
                // Whoever mapped what was not told.
                Record::Lost(_) => {
                    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
                    let pids = names.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
                    pids.for_each(|pid| self.look_at(pid));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn stop(&mut self) {
        // Taking one away waits for a grace period of the kernel, a quarter of a second each; they
        // can all wait at once.
        thread::scope(|scope| {
            for probe in self.probes.drain(..) {
                scope.spawn(move || drop(probe));
            }
        });
    }
}

/// Tables of a size that no library has are not read.
const MOST_BYTES: u64 = 32 << 20;

/// The machine that we run on, as ELF numbers it.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    number(bytes, at).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    number(bytes, at).map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    number(bytes, at).map(u64::from_ne_bytes)
}

fn part(file: &File, start: u64, size: u64) -> Option<Vec<u8>> {
    if size > MOST_BYTES {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    file.read_exact_at(&mut bytes, start).ok()?;
    Some(bytes)
}

/// Where in the file these functions begin: each with its index in `names`, and each place once.
fn function_offsets(file: &File, names: &[&str]) -> Option<Vec<(usize, u64)>> {
    let mut found: Vec<(usize, u64)> = Vec::new();
    for_each_function(file, &mut |name, offset| {
        let index = names.iter().position(|known| known.as_bytes() == name);
        if let Some(index) = index
            && !found.iter().any(|(_, known)| *known == offset)
        {
            found.push((index, offset));
        }
    })?;
    Some(found)
}

/// Calls `each` with the name of every function of a file and where in the file it begins: from the
/// tables of symbols of a 64-bit ELF file; `None` for what is none. A function may have several
/// names. The file is read, not mapped, because its owner may make it shorter at any time.
pub fn for_each_function(file: &File, each: &mut dyn FnMut(&[u8], u64)) -> Option<()> {
    const LOAD: u32 = 1;
    const TABLES: [u32; 2] = [2, 11];
    const FUNCTION: u8 = 2;
    let head = part(file, 0, 64)?;
    // Magic number, 64 bits, and this machine's order of bytes.
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    if head.get(..6)? != [0x7f, b'E', b'L', b'F', 2, order] || u16_at(&head, 18)? != MACHINE {
        return None;
    }
    let table = |start: usize, count: usize, size: u64| {
        part(file, u64_at(&head, start)?, u64::from(u16_at(&head, count)?) * size)
    };
    let (segments, sections) = (table(32, 56, 56)?, table(40, 60, 64)?);
    let place = |address: u64| {
        segments.chunks_exact(56).find_map(|segment| {
            let inside = address.checked_sub(u64_at(segment, 16)?)?;
            let holds = u32_at(segment, 0)? == LOAD && inside < u64_at(segment, 32)?;
            holds.then(|| u64_at(segment, 8)?.checked_add(inside)).flatten()
        })
    };
    for section in sections.chunks_exact(64) {
        if !TABLES.contains(&u32_at(section, 4)?) {
            continue;
        }
        let content = |section: &[u8]| part(file, u64_at(section, 24)?, u64_at(section, 32)?);
        let texts = sections.chunks_exact(64).nth(u32_at(section, 40)? as usize)?;
        let (Some(symbols), Some(texts)) = (content(section), content(texts)) else { continue };
        for symbol in symbols.chunks_exact(24) {
            let is_function = symbol[4] & 15 == FUNCTION && u16_at(symbol, 6)? != 0;
            let text = texts.get(u32_at(symbol, 0)? as usize..).filter(|_| is_function);
            let Some(text) = text else { continue };
            if let Some(offset) = place(u64_at(symbol, 8)?) {
                each(text.split(|b| *b == 0).next().unwrap_or_default(), offset);
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_of_our_own_libc_are_found() {
        let maps = fs::read("/proc/self/maps").expect("maps");
        let libc = symbols::exec_lines(&maps)
            .find(|line| line.path.ends_with(b"libc.so.6"))
            .map(|line| String::from_utf8_lossy(line.path).into_owned());
        // Another C library has another name.
        let Some(path) = libc else { return };
        let file = File::open(path).expect("libc");
        let found = function_offsets(&file, &["getaddrinfo", "no_such_function", "gethostbyname"]);
        let mut indices: Vec<usize> = found.expect("ELF").iter().map(|(index, _)| *index).collect();
        indices.sort_unstable();
        assert_eq!(indices, [0, 2]);
    }

    #[test]
    fn what_is_no_library_has_no_functions() {
        let directory = std::env::temp_dir().join(format!("bpfscope-elf-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("directory");
        let path = directory.join("file");
        let own = fs::read("/proc/self/exe").expect("ourselves");
        let mut broken = own[..4096].to_vec();
        broken[40..48].copy_from_slice(&u64::MAX.to_ne_bytes());
        for bytes in [&b""[..], b"\x7fELF", b"#!/bin/sh\n", &own[..64], &own[..4096], &broken] {
            fs::write(&path, bytes).expect("file");
            let file = File::open(&path).expect("file");
            assert!(function_offsets(&file, &["main"]).is_none_or(|found| found.is_empty()));
        }
        // As large as it says, and nothing in it.
        File::create(&path).expect("file").set_len(10 << 30).expect("sparse");
        assert!(function_offsets(&File::open(&path).expect("file"), &["main"]).is_none());
        fs::remove_dir_all(directory).expect("clean up");
    }
}
