// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Names of kernel addresses, from /proc/kallsyms: the kernel itself, its modules, BPF programs,
//! trampolines.
//!
//! The file is read when the first address is to be named, in one pass into three flat tables: some
//! seven megabytes that a tool which names nothing never has.

use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;

use crate::value::Frame;

/// Functions are shorter. An address farther behind a symbol lies in none.
const LONGEST: u64 = 1 << 20;

/// How the kernel answers.
#[derive(Default)]
enum State {
    #[default]
    Unread,
    Read(Table),
    Hidden(String),
}

#[derive(Default)]
struct Table {
    /// Address, place of the name, number of the module; by address.
    symbols: Vec<(u64, u32, u16)>,
    /// The names, each ended by a NUL.
    names: Vec<u8>,
    /// Module names; the first is that of the kernel itself, which has none.
    modules: Vec<String>,
}

/// Names kernel addresses.
#[derive(Default)]
pub struct Kernel {
    state: State,
}

impl Table {
    fn read(lines: impl BufRead) -> io::Result<Self> {
        let mut table = Self { modules: vec![String::new()], ..Self::default() };
        for line in lines.split(b'\n') {
            table.add(&line?);
        }
        // Each part of the file is in order, the whole is not. Stable: of several names for one
        // address, the first is kept.
        table.symbols.sort_by_key(|symbol| symbol.0);
        table.symbols.dedup_by_key(|symbol| symbol.0);
        table.symbols.shrink_to_fit();
        table.names.shrink_to_fit();
        Ok(table)
    }

    /// `ADDRESS TYPE NAME[\t[MODULE]]`
    fn add(&mut self, line: &[u8]) {
        let mut words = line.splitn(3, |b| *b == b' ');
        let (Some(addr), Some(kind), Some(rest)) = (words.next(), words.next(), words.next())
        else {
            return;
        };
        if !matches!(kind, b"t" | b"T" | b"w" | b"W") {
            return;
        }
        let addr = std::str::from_utf8(addr).ok().and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let Some(addr) = addr.filter(|addr| *addr != 0) else { return };
        let mut parts = rest.splitn(2, |b| *b == b'\t');
        let name = parts.next().unwrap_or_default();
        let module = parts.next().map(|text| {
            let text = text.strip_prefix(b"[").unwrap_or(text);
            String::from_utf8_lossy(text.strip_suffix(b"]").unwrap_or(text)).into_owned()
        });
        let module = module.map_or(0, |module| {
            // A module's symbols stand together.
            if self.modules.last() != Some(&module) {
                self.modules.push(module);
            }
            self.modules.len() - 1
        });
        let (Ok(at), Ok(module)) = (u32::try_from(self.names.len()), u16::try_from(module)) else {
            return;
        };
        self.names.extend_from_slice(name);
        self.names.push(0);
        self.symbols.push((addr, at, module));
    }

    fn frame(&self, addr: u64, lookup: u64) -> Frame {
        let unnamed = Frame { addr, ..Frame::default() };
        let behind = self.symbols.partition_point(|symbol| symbol.0 <= lookup);
        let Some((start, at, module)) = behind.checked_sub(1).map(|i| self.symbols[i]) else {
            return unnamed;
        };
        if lookup - start > LONGEST {
            return unnamed;
        }
        let name = &self.names[at as usize..];
        let name = &name[..name.iter().position(|b| *b == 0).unwrap_or(0)];
        let module = &self.modules[usize::from(module)];
        Frame {
            addr,
            sym: Some(String::from_utf8_lossy(name).into_owned()),
            off: addr - start,
            module: (!module.is_empty()).then(|| module.clone()),
            module_off: None,
        }
    }
}

impl Kernel {
    fn read(&mut self) {
        if !matches!(self.state, State::Unread) {
            return;
        }
        let table = File::open("/proc/kallsyms")
            .and_then(|file| Table::read(BufReader::with_capacity(64 << 10, file)));
        self.state = match table {
            Ok(table) if !table.symbols.is_empty() => State::Read(table),
            Ok(_) => {
                let level = std::fs::read_to_string("/proc/sys/kernel/kptr_restrict");
                State::Hidden(match level.as_deref().map(str::trim) {
                    Ok(level @ ("1" | "2")) => format!(
                        "the kernel hides its addresses (kernel.kptr_restrict is {level}{}), so \
                         kernel functions have no names",
                        if level == "1" { ", and CAP_SYSLOG is missing" } else { "" }
                    ),
                    _ => "the kernel hides its addresses (CAP_SYSLOG is missing), so kernel \
                          functions have no names"
                        .into(),
                })
            }
            Err(error) => State::Hidden(format!(
                "/proc/kallsyms cannot be read ({error}), so kernel functions have no names"
            )),
        };
    }

    /// Names a stack, leaf first. All but the leaf are return addresses, and the call may be the
    /// last instruction of its function.
    pub fn frames(&mut self, addrs: &[u64]) -> Vec<Frame> {
        self.read();
        let lookup = |(i, addr): (usize, &u64)| (*addr, addr.saturating_sub(u64::from(i > 0)));
        match &self.state {
            State::Read(table) => addrs
                .iter()
                .enumerate()
                .map(lookup)
                .map(|(addr, lookup)| table.frame(addr, lookup))
                .collect(),
            _ => addrs.iter().map(|addr| Frame { addr: *addr, ..Frame::default() }).collect(),
        }
    }

    /// What is to be told about names that are missing.
    pub fn complaint(&self) -> Option<&str> {
        match &self.state {
            State::Hidden(why) => Some(why),
            _ => None,
        }
    }
}

/// How many leading frames are those of tracing itself, where a program was attached to a
/// tracepoint: the program, what called it, the tracepoint.
pub fn tracing_frames(frames: &[Frame]) -> usize {
    const DEEPEST: usize = 16;
    let is_tracing = |frame: &Frame| {
        let by_name = |name: &str| {
            ["__traceiter_", "__bpf_trace_", "bpf_trace_run", "bpf_trampoline_", "perf_trace_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
                || name == "trace_call_bpf"
        };
        frame.module.as_deref() == Some("bpf") || frame.sym.as_deref().is_some_and(by_name)
    };
    let near = &frames[..frames.len().min(DEEPEST)];
    near.iter().rposition(is_tracing).map_or(0, |last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"ffffffff81000000 T _text\n\
        ffffffff81000100 t first\n\
        ffffffff81000100 T another_name\n\
        ffffffff81000180 D not_code\n\
        ffffffff81000200 W last\n\
        garbage\n\
        ffffffffc0000000 t init_mod\t[mod_a]\n\
        ffffffffc0000040 t work\t[mod_a]\n\
        ffffffffa0000000 t bpf_prog_1234_handle\t[bpf]\n";

    fn named(addr: u64, lookup: u64) -> (Option<String>, u64, Option<String>) {
        let table = Table::read(TEXT).expect("read");
        let frame = table.frame(addr, lookup);
        (frame.sym, frame.off, frame.module)
    }

    #[test]
    fn addresses_are_named() {
        let at = |addr| named(addr, addr);
        assert_eq!(at(0xffff_ffff_8100_01f0), (Some("first".into()), 0xf0, None));
        let work = (Some("work".into()), 0x10, Some("mod_a".into()));
        assert_eq!(at(0xffff_ffff_c000_0050), work);
        assert_eq!(at(0x1000), (None, 0, None));
        assert_eq!(at(0xffff_ffff_9000_0000), (None, 0, None));
        // A call at the very end of `first` returns to where `last` begins.
        assert_eq!(
            named(0xffff_ffff_8100_0200, 0xffff_ffff_8100_01ff),
            (Some("first".into()), 0x100, None)
        );
    }

    #[test]
    fn tracing_is_cut_off() {
        let frame = |sym: &str, module: Option<&str>| Frame {
            sym: Some(sym.into()),
            module: module.map(Into::into),
            ..Frame::default()
        };
        let stack = [
            frame("bpf_prog_1_x", Some("bpf")),
            frame("bpf_trace_run4", None),
            frame("__traceiter_sched_switch", None),
            frame("__schedule", None),
            frame("do_nanosleep", None),
        ];
        assert_eq!((tracing_frames(&stack), tracing_frames(&stack[3..])), (3, 0));
    }
}
