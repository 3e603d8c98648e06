// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Names for addresses.

use blazesym::Pid;
use blazesym::symbolize::Input;
use blazesym::symbolize::Symbolized;
use blazesym::symbolize::Symbolizer;
use blazesym::symbolize::source::Process;
use blazesym::symbolize::source::Source;

use crate::value::Frame;

/// Names addresses of processes. Keeps what it has read, so one serves a whole run.
#[derive(Default)]
pub struct Symbols {
    symbolizer: Option<Symbolizer>,
}

impl Symbols {
    /// Names `addrs`, return addresses in the process `pid`, leaf first. What cannot be named (the
    /// process has ended, the file has no symbols) keeps its address.
    pub fn user(&mut self, pid: u32, addrs: &[u64]) -> Vec<Frame> {
        let unnamed = |addr: &u64| Frame { addr: *addr, ..Frame::default() };
        let symbolizer = self.symbolizer.get_or_insert_with(Symbolizer::new);
        let source = Source::Process(Process {
            // The process is not to be trusted: /tmp/perf-PID.map is a name that it chooses.
            perf_map: false,
            // Also right for processes in containers and for deleted files.
            map_files: true,
            ..Process::new(Pid::from(pid))
        });
        let Ok(named) = symbolizer.symbolize(&source, Input::AbsAddr(addrs)) else {
            return addrs.iter().map(unnamed).collect();
        };
        addrs
            .iter()
            .zip(named)
            .map(|(addr, symbolized)| match symbolized {
                Symbolized::Sym(sym) => Frame {
                    addr: *addr,
                    sym: Some(sym.name.into_owned()),
                    off: u64::try_from(sym.offset).unwrap_or(0),
                    module: sym.module.map(|module| module.to_string_lossy().into_owned()),
                },
                Symbolized::Unknown(_) => unnamed(addr),
            })
            .collect()
    }
}
