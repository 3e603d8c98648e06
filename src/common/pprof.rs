// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Profiles in the format of pprof: the protobuf message `perftools.profiles.Profile`, gzipped.
//! <https://github.com/google/pprof/blob/main/proto/profile.proto>

use std::collections::HashMap;
use std::io;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::pidns;
use crate::stacks::Entry;
use crate::stacks::Stack;
use crate::stacks::comm;
use crate::value::Frame;

/// Protobuf by hand: fields of two kinds are enough.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.bytes.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        self.bytes.push((n & 0x7f) as u8);
    }

    /// An integer; 0 is what a missing one means.
    fn number(&mut self, field: u64, n: u64) -> &mut Self {
        if n != 0 {
            self.varint(field << 3);
            self.varint(n);
        }
        self
    }

    fn data(&mut self, field: u64, bytes: &[u8]) -> &mut Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn packed(&mut self, field: u64, numbers: &[u64]) -> &mut Self {
        let mut inner = Self::default();
        numbers.iter().for_each(|n| inner.varint(*n));
        self.data(field, &inner.bytes)
    }
}

/// The table of strings; the first is the empty one.
#[derive(Default)]
struct Strings {
    places: HashMap<String, u64>,
    all: Vec<String>,
}

impl Strings {
    fn of(&mut self, text: &str) -> u64 {
        if self.all.is_empty() {
            self.all.push(String::new());
            self.places.insert(String::new(), 0);
        }
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let place = self.all.len() as u64;
        self.all.push(text.into());
        self.places.insert(text.into(), place);
        place
    }
}

#[derive(Default)]
struct Builder {
    out: Message,
    strings: Strings,
    functions: HashMap<(String, String), u64>,
    mappings: HashMap<String, u64>,
    locations: HashMap<(u64, u64, u64), u64>,
}

const KERNEL: &str = "[kernel]";

impl Builder {
    fn mapping(&mut self, module: &str) -> u64 {
        if let Some(id) = self.mappings.get(module) {
            return *id;
        }
        let id = self.mappings.len() as u64 + 1;
        let name = self.strings.of(module);
        let mut message = Message::default();
        // 7: it has function names.
        message.number(1, id).number(5, name).number(7, 1);
        self.out.data(3, &message.bytes);
        self.mappings.insert(module.into(), id);
        id
    }

    fn function(&mut self, name: &str, module: &str) -> u64 {
        let key = (name.to_string(), module.to_string());
        if let Some(id) = self.functions.get(&key) {
            return *id;
        }
        let id = self.functions.len() as u64 + 1;
        let (name, file) = (self.strings.of(name), self.strings.of(module));
        let mut message = Message::default();
        message.number(1, id).number(2, name).number(3, name).number(4, file);
        self.out.data(5, &message.bytes);
        self.functions.insert(key, id);
        id
    }

    fn location(&mut self, frame: &Frame, kernel: bool) -> u64 {
        let module = frame.module.as_deref().unwrap_or(if kernel { KERNEL } else { "[unknown]" });
        let mut name = Vec::new();
        crate::value::frame_text(&mut name, frame);
        let function = self.function(&String::from_utf8_lossy(&name), module);
        let mapping = self.mapping(module);
        let key = (function, mapping, frame.addr);
        if let Some(id) = self.locations.get(&key) {
            return *id;
        }
        let id = self.locations.len() as u64 + 1;
        let mut line = Message::default();
        line.number(1, function);
        let mut message = Message::default();
        message.number(1, id).number(2, mapping).number(3, frame.addr).data(4, &line.bytes);
        self.out.data(4, &message.bytes);
        self.locations.insert(key, id);
        id
    }

    fn kind(&mut self, name: &str, unit: &str) -> Vec<u8> {
        let mut message = Message::default();
        message.number(1, self.strings.of(name)).number(2, self.strings.of(unit));
        message.bytes
    }
}

/// When the profile was taken, and what one sample stands for.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Start, in nanoseconds since 1970.
    pub start_ns: u64,
    /// How long it took.
    pub duration_ns: u64,
    /// Nanoseconds, or cycles, between two samples; `None` where that varies.
    pub period_ns: Option<u64>,
}

/// Encodes samples by stack.
///
/// # Errors
/// None that a caller could cause.
pub fn encode(entries: &[Entry<u64>], taken: Taken) -> io::Result<Vec<u8>> {
    let mut builder = Builder::default();
    let samples = builder.kind("samples", "count");
    builder.out.data(1, &samples);
    let cpu = builder.kind("cpu", "nanoseconds");
    if taken.period_ns.is_some() {
        builder.out.data(1, &cpu);
    }
    let (pid_key, comm_key) = (builder.strings.of("pid"), builder.strings.of("comm"));
    for entry in entries {
        let mut path: Vec<u64> = Vec::new();
        for (stack, kernel, missed) in [
            (&entry.kernel, true, "[Missed Kernel Stack]"),
            (&entry.user, false, "[Missed User Stack]"),
        ] {
            if *stack == Stack::Missed {
                let frame = Frame { sym: Some(missed.into()), ..Frame::default() };
                path.push(builder.location(&frame, kernel));
            }
            path.extend(stack.frames().iter().map(|frame| builder.location(frame, kernel)));
        }
        let mut values = vec![entry.value];
        values.extend(taken.period_ns.map(|period| entry.value.saturating_mul(period)));
        let comm = builder.strings.of(&crate::escape::printable(&comm(&entry.key)));
        let mut label = Message::default();
        label.number(1, comm_key).number(2, comm);
        let mut pid = Message::default();
        pid.number(1, pid_key).number(3, pidns::inside(entry.key.pid).unwrap_or(0).into());
        let mut message = Message::default();
        message.packed(1, &path).packed(2, &values).data(3, &label.bytes).data(3, &pid.bytes);
        builder.out.data(2, &message.bytes);
    }
    builder.out.number(9, taken.start_ns).number(10, taken.duration_ns);
    if let Some(period) = taken.period_ns {
        builder.out.data(11, &cpu).number(12, period);
    }
    for text in &builder.strings.all {
        builder.out.data(6, text.as_bytes());
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&builder.out.bytes)?;
    gzip.finish()
}
