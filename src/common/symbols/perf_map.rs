// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! /tmp/perf-PID.map: names that a program which compiles while it runs (Java, node, .NET, Python)
//! gives to its code. A line is `START SIZE NAME`, hexadecimal.

use std::fs;
use std::fs::File;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Seek as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use crate::symbols::open;

/// A larger file is not read: it is no table of functions.
const LARGEST: u64 = 64 << 20;
/// A longer line is no function.
const LONGEST_LINE: u64 = 4096;
/// How often an address gets a name, all together: entries that overlap again and again would take
/// forever.
const MOST_NAMES: usize = 4 << 20;

/// An open perf map.
pub struct PerfMap {
    file: File,
}

/// The uids of a process, and its id in its own PID namespace.
fn identity(pid: u32) -> Option<(Vec<u32>, u32)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let words = |name: &str| -> Option<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
    };
    let own = words("NSpid:").and_then(|pids| pids.last().copied()).unwrap_or(pid);
    Some((words("Uid:")?, own))
}

impl PerfMap {
    /// Opens the map of a process, if there is one that can be trusted to be its own: made by its
    /// user or by root.
    pub fn open(pid: u32) -> Option<Self> {
        let (uids, own_pid) = identity(pid)?;
        let path = PathBuf::from(format!("/tmp/perf-{own_pid}.map"));
        let file = open::in_process(pid, &path)?;
        let data = file.metadata().ok()?;
        let trusted = data.uid() == 0 || uids.contains(&data.uid());
        (trusted && data.len() <= LARGEST).then_some(Self { file })
    }

    /// The function of each address, and where in it. The map may have grown since the last call;
    /// of several entries for an address, the last counts.
    pub fn names(&mut self, addrs: &[u64]) -> Vec<Option<(String, u64)>> {
        let mut order: Vec<usize> = (0..addrs.len()).collect();
        order.sort_by_key(|i| addrs[*i]);
        let mut names = vec![None; addrs.len()];
        if self.file.rewind().is_err() {
            return names;
        }
        let mut reader = BufReader::new((&self.file).take(LARGEST));
        let mut line = Vec::new();
        let mut given = 0;
        loop {
            line.clear();
            match (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line) {
                Ok(size) if size > 0 => {}
                _ => return names,
            }
            let Some((start, size, name)) = entry(&line) else { continue };
            let first = order.partition_point(|i| addrs[*i] < start);
            for i in &order[first..] {
                let off = addrs[*i] - start;
                if off >= size {
                    break;
                }
                names[*i] = Some((name.clone(), off));
                given += 1;
                if given > MOST_NAMES {
                    return names;
                }
            }
        }
    }
}

fn entry(line: &[u8]) -> Option<(u64, u64, String)> {
    let line = line.strip_suffix(b"\n")?;
    let mut words = line.splitn(3, |b| *b == b' ');
    let mut number = || {
        let word = std::str::from_utf8(words.next()?).ok()?;
        u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()
    };
    let (start, size) = (number()?, number()?);
    let name = String::from_utf8_lossy(words.next()?).into_owned();
    (!name.is_empty()).then_some((start, size, name))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(text: &[u8], addrs: &[u64]) -> Vec<Option<(String, u64)>> {
        let path = std::env::temp_dir().join(format!(
            "bpfscope-perfmap-{}-{}",
            std::process::id(),
            text.len()
        ));
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.as_mut().expect("file");
        file.write_all(text).expect("write");
        std::fs::remove_file(path).expect("remove");
        PerfMap { file: file.try_clone().expect("clone") }.names(addrs)
    }

    #[test]
    fn the_last_entry_counts_and_garbage_does_not() {
        let mut text = b"1000 100 one\n1080 10 inner name\nnonsense\n10 zz x\n2000 10\n".to_vec();
        text.extend(vec![0; 20_000]);
        text.extend(b"\n3000 10 after\nffffffffffffffff ffffffffffffffff huge\n5000 10 cut off");
        let some = |name: &str, off| Some((name.to_string(), off));
        let addrs = [0x3005, 0x1085, 0x1000, 0x1100, 0x2000, 0x5000];
        assert_eq!(
            names(&text, &addrs),
            [some("after", 5), some("inner name", 5), some("one", 0), None, None, None]
        );
    }
}
