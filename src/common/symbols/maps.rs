// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What a process has mapped to execute, and which file an address lies in.

use std::rc::Rc;

use crate::perf::device;
use crate::symbols::binary::Binaries;
use crate::symbols::binary::Binary;

/// A process can make as many mappings as it likes.
const MOST_MAPPINGS: usize = 1 << 16;

/// One line of /proc/PID/maps, or what perf says of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// First address.
    pub start: u64,
    /// Address behind the last.
    pub end: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Number of the file system.
    pub device: u64,
    /// Inode; 0 = no file.
    pub inode: u64,
    /// Path, or what the kernel calls it.
    pub path: &'a [u8],
}

/// The executable mappings of a /proc/PID/maps.
pub fn exec_lines(text: &[u8]) -> impl Iterator<Item = Line<'_>> {
    text.split(|b| *b == b'\n').filter_map(line).take(MOST_MAPPINGS)
}

/// `START-END PERMS OFFSET MAJOR:MINOR INODE          PATH`
fn line(line: &[u8]) -> Option<Line<'_>> {
    let mut words = line.splitn(6, |b| *b == b' ');
    let mut word = || std::str::from_utf8(words.next()?).ok();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = word()?.split_once('-')?;
    if !word()?.contains('x') {
        return None;
    }
    let offset = hex(word()?)?;
    let (major, minor) = word()?.split_once(':')?;
    let device = device(u32::try_from(hex(major)?).ok()?, u32::try_from(hex(minor)?).ok()?);
    let inode = word()?.parse().ok()?;
    let path = words.next().unwrap_or_default().trim_ascii_start();
    Some(Line { start: hex(start)?, end: hex(end)?, offset, device, inode, path })
}

/// One executable mapping.
#[derive(Clone)]
pub struct Mapping {
    start: u64,
    end: u64,
    offset: u64,
    binary: Option<Rc<Binary>>,
    /// When it was made, where that is known; of two that overlap the later one counts.
    time: u64,
}

/// The executable mappings of one process.
#[derive(Clone, Default)]
pub struct Maps {
    mappings: Vec<Mapping>,
}

/// Where an address lies.
pub struct Place<'a> {
    /// The file, unless it is memory without one.
    pub binary: Option<&'a Rc<Binary>>,
    /// Offset in the file.
    pub offset: u64,
}

impl Maps {
    /// Those of a process that lives. `None` when it does not, or has none.
    pub fn of_process(pid: u32, binaries: &mut Binaries) -> Option<Self> {
        let text = std::fs::read(format!("/proc/{pid}/maps")).ok()?;
        let mut maps = Self::default();
        for line in exec_lines(&text) {
            maps.add(pid, &line, 0, binaries);
        }
        (!maps.mappings.is_empty()).then_some(maps)
    }

    /// Adds a mapping.
    pub fn add(&mut self, pid: u32, line: &Line<'_>, time: u64, binaries: &mut Binaries) {
        if self.mappings.len() >= MOST_MAPPINGS {
            self.mappings.remove(0);
        }
        let binary = binaries.of(pid, line);
        let Line { start, end, offset, .. } = *line;
        // A JIT maps the same memory again and again.
        self.mappings.retain(|old| old.start < start || old.end > end || old.time > time);
        self.mappings.push(Mapping { start, end, offset, binary, time });
    }

    /// Whether there is code without a file: compiled while the program runs.
    pub fn has_anonymous(&self) -> bool {
        self.mappings.iter().any(|map| map.binary.is_none())
    }

    /// Where an address lies; `None` outside of everything executable.
    pub fn place(&self, addr: u64) -> Option<Place<'_>> {
        let inside = self.mappings.iter().filter(|map| (map.start..map.end).contains(&addr));
        let map = inside.max_by_key(|map| map.time)?;
        Some(Place {
            binary: map.binary.as_ref(),
            offset: (addr - map.start).saturating_add(map.offset),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let text = b"00400000-00452000 r-xp 00001000 08:02 173521      /usr/bin/a b\n\
            00651000-00652000 r--p 00051000 08:02 173521 /usr/bin/x\n\
            7f00-7f10 rwxp 00000000 00:00 0 \n\
            garbage\n\
            7fff-8000 r-xp 00000000 00:00 0                  [vdso]\n";
        let lines: Vec<_> = exec_lines(text).collect();
        let first = Line {
            start: 0x40_0000,
            end: 0x45_2000,
            offset: 0x1000,
            device: device(8, 2),
            inode: 173_521,
            path: b"/usr/bin/a b",
        };
        assert_eq!(lines[0], first);
        assert_eq!((lines.len(), lines[1].path, lines[2].path), (3, &b""[..], &b"[vdso]"[..]));
    }

    #[test]
    fn the_latest_mapping_counts() {
        let mut maps = Maps::default();
        let mut binaries = Binaries::default();
        let mut add = |start, end, offset, time| {
            let line = Line { start, end, offset, device: 0, inode: 0, path: b"" };
            maps.add(0, &line, time, &mut binaries);
        };
        add(0x1000, 0x5000, 0, 10);
        add(0x2000, 0x3000, 0x9000, 20);
        add(0x4000, 0x5000, 0x7000, 5);
        let offset = |addr| maps.place(addr).map(|place| place.offset);
        assert_eq!(offset(0x2010), Some(0x9010));
        assert_eq!(offset(0x4010), Some(0x3010));
        assert_eq!((offset(0x1000), offset(0x5000)), (Some(0), None));
    }
}
