// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Reports by call stack: what the kernel side counted (`bpf/stack.h`), with names, in upstream's
//! form, folded, or as fields.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::ops::AddAssign;
use std::rc::Rc;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::ensure;
use clap::ValueEnum;
use libbpf_rs::OpenObject;

use crate::escape::until_nul;
use crate::globals::set_constant;
use crate::output::complain;
use crate::pidns;
use crate::record::Kind;
use crate::session::Event;
use crate::shared::StackId;
use crate::shared::StackKey;
use crate::symbols::Symbols;
use crate::symbols::tracing_frames;
use crate::value::Frame;
use crate::value::Type;
use crate::value::Value;
use crate::value::frame_text;

/// `STACK_FRAMES` of `bpf/stack.h`.
const STACK_FRAMES: u32 = 1024;

// A doc comment on a struct that is flattened would become the tool's own description.
#[allow(missing_docs)]
#[derive(clap::Args, Clone, Debug)]
pub struct Storage {
    /// How many different stacks there can be
    #[arg(long, value_name = "N", default_value_t = 16_384, help_heading = "Stacks",
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub stack_storage_size: u32,
    /// How many frames are taken of a stack; more than kernel.perf_event_max_stack takes raising it
    #[arg(long, value_name = "N", default_value_t = 127, help_heading = "Stacks",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(STACK_FRAMES)))]
    pub perf_max_stack_depth: u32,
}

/// In which order a report stands.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Smallest first, so that the largest stands next to the prompt.
    Ascending,
    /// Largest first.
    Descending,
}

// As above.
#[allow(missing_docs)]
#[derive(clap::Args, Clone, Debug)]
#[allow(clippy::struct_excessive_bools)]
pub struct Shape {
    /// Only user stacks
    #[arg(short = 'U', long, help_heading = "Stacks", conflicts_with = "kernel_stacks_only")]
    pub user_stacks_only: bool,
    /// Only kernel stacks
    #[arg(short = 'K', long, help_heading = "Stacks")]
    pub kernel_stacks_only: bool,
    /// Put -- between the kernel's frames and the user's
    #[arg(short, long, help_heading = "Stacks")]
    pub delimited: bool,
    /// One line a stack, from the root to the leaf, as flame graph programs read it
    #[arg(short, long, help_heading = "Stacks")]
    pub folded: bool,
    /// Show how far behind its start a function was, and its module
    #[arg(short = 's', long, help_heading = "Stacks")]
    pub offset: bool,
    /// Show each frame's address
    #[arg(short = 'A', long, help_heading = "Stacks")]
    pub address: bool,
    /// How many different combinations of stacks and threads there can be
    #[arg(long, value_name = "N", default_value_t = 40_960, help_heading = "Stacks",
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub hash_storage_size: u32,
    /// Order of the report: ascending or descending
    #[arg(long, value_name = "ORDER", help_heading = "Stacks", hide_possible_values = true)]
    pub sort: Option<Order>,
    #[command(flatten)]
    pub storage: Storage,
}

impl Storage {
    /// Tells the kernel side; before the load.
    ///
    /// # Errors
    /// Fails when the object is not made with `bpf/stack.h`.
    pub fn configure(&self, open: &mut OpenObject) -> Result<()> {
        let limit = std::fs::read_to_string("/proc/sys/kernel/perf_event_max_stack");
        let limit = limit.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(127);
        if self.perf_max_stack_depth > limit {
            return Err(crate::error::usage(format!(
                "--perf-max-stack-depth {}: kernel.perf_event_max_stack is {limit}",
                self.perf_max_stack_depth
            )));
        }
        let mut seed = [0u8; 8];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut seed))
            .context("/dev/urandom")?;
        let known = set_constant(open, "stack_seed", &seed)?
            && set_constant(open, "stack_depth", &self.perf_max_stack_depth.to_ne_bytes())?;
        ensure!(known, "the object keeps no stacks");
        for mut map in open.maps_mut() {
            if map.name() == "stacks_sent" {
                map.set_max_entries(self.stack_storage_size)?;
            }
        }
        Ok(())
    }
}

impl Shape {
    /// Tells the kernel side; before the load. `results` is the map that counts by stack.
    ///
    /// # Errors
    /// Fails when the object is not made with `bpf/stack.h`.
    pub fn configure(&self, open: &mut OpenObject, results: &str) -> Result<()> {
        self.storage.configure(open)?;
        set_constant(open, "want_user_stacks", &[u8::from(!self.kernel_stacks_only)])?;
        set_constant(open, "want_kernel_stacks", &[u8::from(!self.user_stacks_only)])?;
        for mut map in open.maps_mut() {
            if map.name() == results {
                map.set_max_entries(self.hash_storage_size)?;
            }
        }
        Ok(())
    }

    /// What is collected, for the first line of the output.
    pub fn by(&self) -> &'static str {
        if self.user_stacks_only {
            "user"
        } else if self.kernel_stacks_only {
            "kernel"
        } else {
            "user + kernel"
        }
    }
}

/// Adds the fields of both parts of a stack, as [`Stack::value`] gives them.
#[must_use]
pub fn with_fields(kind: Kind) -> Kind {
    kind.field(
        "kernel_stack",
        Type::Stack,
        "The kernel's part; empty when the program itself ran, null when it was not asked for or \
         could not be kept.",
    )
    .field(
        "user_stack",
        Type::Stack,
        "The program's part; empty for kernel threads, null when it was not asked for or could not \
         be kept.",
    )
}

/// The stacks that the kernel side has sent.
#[derive(Default)]
pub struct Stacks {
    frames: HashMap<u64, Box<[u64]>>,
}

/// A stack of a report.
#[derive(Clone, Debug, PartialEq)]
pub enum Stack {
    /// There is none, or it was not asked for.
    None,
    /// There was one, and it could not be kept.
    Missed,
    /// Its frames, leaf first.
    Frames(Rc<[Frame]>),
}

impl Stack {
    /// The frames, if there are any.
    pub fn frames(&self) -> &[Frame] {
        match self {
            Self::Frames(frames) => frames,
            Self::None | Self::Missed => &[],
        }
    }

    /// As a field; null for one that was missed, and where none was `asked` for.
    pub fn value(&self, asked: bool) -> Value<'_> {
        match self {
            Self::Missed => Value::Null,
            Self::None | Self::Frames(_) if asked => Value::Stack(self.frames()),
            Self::None | Self::Frames(_) => Value::Null,
        }
    }
}

/// One line of a report: a thread or process, its stacks, and what was counted.
#[derive(Clone, Debug)]
pub struct Entry<V> {
    /// Whose it is.
    pub key: StackKey,
    /// The kernel's part.
    pub kernel: Stack,
    /// The program's part.
    pub user: Stack,
    /// What was counted.
    pub value: V,
}

/// How a stack was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Where the CPU was when it was interrupted.
    AtInterrupt,
    /// By a program on a tracepoint: the frames of tracing itself are on top.
    AtTracepoint,
}

/// Whether a record of the ring buffer is a stack, in a tool that also sends events: its number
/// has a bit that no time has (`STACK_MARK` of `bpf/stack.h`).
pub fn is_stack(record: Event<'_>) -> bool {
    record.body::<u64>().is_ok_and(|first| first >> 63 == 1)
}

impl Stacks {
    /// Keeps a stack from the ring buffer: its number, and the frames behind it.
    ///
    /// # Errors
    /// Fails when the record is too short.
    pub fn take(&mut self, record: Event<'_>) -> Result<()> {
        let id: &u64 = record.body()?;
        let words = record.tail::<u64>().chunks_exact(8);
        let frames = words.map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()));
        self.frames.insert(*id, frames.collect());
        Ok(())
    }

    fn get(&self, id: u64) -> Result<&[u64], Stack> {
        match self.frames.get(&id) {
            Some(frames) => Ok(frames),
            None if id == u64::from(StackId::STACK_NONE.0) => Err(Stack::None),
            None => Err(Stack::Missed),
        }
    }

    /// Names a kernel stack.
    pub fn kernel(&self, id: u64, taken: Taken, symbols: &mut Symbols) -> Stack {
        match self.get(id) {
            Err(other) => other,
            Ok(addrs) => {
                let mut frames = symbols.kernel(addrs);
                if taken == Taken::AtTracepoint {
                    frames.drain(..tracing_frames(&frames));
                }
                Stack::Frames(frames.into())
            }
        }
    }

    /// Names everything that was counted. Entries that differ only in the frames of tracing are
    /// one.
    pub fn resolve<V: AddAssign>(
        &self,
        counted: Vec<(StackKey, V)>,
        taken: Taken,
        symbols: &mut Symbols,
    ) -> Vec<Entry<V>> {
        let mut kernel: HashMap<u64, Stack> = HashMap::new();
        let mut by_pid: HashMap<u32, HashSet<u64>> = HashMap::new();
        for (key, _) in &counted {
            kernel.entry(key.kernel).or_insert_with(|| self.kernel(key.kernel, taken, symbols));
            if self.frames.contains_key(&key.user) {
                by_pid.entry(key.pid).or_default().insert(key.user);
            }
        }
        let mut user: HashMap<(u32, u64), Stack> = HashMap::new();
        for (pid, ids) in by_pid {
            let ids: Vec<u64> = ids.into_iter().collect();
            let stacks: Vec<&[u64]> =
                ids.iter().map(|id| self.get(*id).unwrap_or_default()).collect();
            // A process that the tool's PID namespace does not see is in no /proc here.
            let named = symbols.user_stacks(pidns::inside(pid).unwrap_or(0), &stacks);
            user.extend(ids.iter().zip(named).map(|(id, f)| ((pid, *id), Stack::Frames(f.into()))));
        }
        symbols.forget_tables();

        let mut entries: Vec<Entry<V>> = Vec::new();
        let mut places: HashMap<(Same, Vec<u64>), usize> = HashMap::new();
        for (key, value) in counted {
            let kernel = kernel.get(&key.kernel).cloned().unwrap_or(Stack::Missed);
            let user = user
                .get(&(key.pid, key.user))
                .cloned()
                .or_else(|| self.get(key.user).err())
                .unwrap_or(Stack::Missed);
            let addrs: Vec<u64> = kernel.frames().iter().map(|frame| frame.addr).collect();
            let same = (key.pid, key.tid, key.user, key.comm, kernel == Stack::Missed);
            match places.get(&(same, addrs.clone())) {
                Some(place) => entries[*place].value += value,
                None => {
                    places.insert((same, addrs), entries.len());
                    entries.push(Entry { key, kernel, user, value });
                }
            }
        }
        entries
    }
}

/// What makes two entries one: process, thread, user stack, name, and whether the kernel's stack
/// is missing.
type Same = (u32, u32, u64, [i8; 16], bool);

/// The command name of a key.
pub fn comm(key: &StackKey) -> Vec<u8> {
    until_nul(&key.comm.map(|c| c.to_ne_bytes()[0])).to_vec()
}

/// How many stacks of these entries could not be kept.
pub fn missed<V>(entries: &[Entry<V>]) -> usize {
    let stacks = entries.iter().flat_map(|entry| [&entry.kernel, &entry.user]);
    stacks.filter(|stack| **stack == Stack::Missed).count()
}

/// Says what a report lacks.
pub fn complain_of<V>(tool: &str, entries: &[Entry<V>], symbols: &Symbols) {
    complain_of_missing(tool, missed(entries), symbols);
}

/// The same, for so many stacks that are missing.
pub fn complain_of_missing(tool: &str, missed: usize, symbols: &Symbols) {
    if missed > 0 {
        complain(
            tool,
            &format!(
                "WARNING: {missed} stack traces could not be displayed. Consider increasing \
                 --stack-storage-size."
            ),
        );
    }
    for complaint in symbols.complaints() {
        complain(tool, &complaint);
    }
}

/// How frames are shown in text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Number, address, name, offset, module: `-v`.
    pub verbose: bool,
    /// The address before the name.
    pub address: bool,
    /// Offset and module behind the name.
    pub offset: bool,
}

impl Shape {
    /// How this shape shows frames.
    pub fn style(&self, verbose: bool) -> Style {
        Style { verbose, address: self.address, offset: self.offset }
    }
}

fn frame_line(out: &mut Vec<u8>, number: usize, frame: &Frame, style: Style) {
    out.extend_from_slice(b"    ");
    if style.verbose {
        out.extend_from_slice(format!("#{number:<2} 0x{:016x} ", frame.addr).as_bytes());
    } else if style.address {
        out.extend_from_slice(format!("0x{:016x} ", frame.addr).as_bytes());
    }
    frame_text(out, frame);
    if frame.sym.is_some() && (style.verbose || style.offset) {
        out.extend_from_slice(format!("+0x{:x}", frame.off).as_bytes());
        if let Some(module) = &frame.module {
            out.extend_from_slice(b" (");
            crate::escape::text(out, module.as_bytes());
            if let Some(off) = frame.module_off.filter(|_| style.verbose) {
                out.extend_from_slice(format!("+0x{off:x}").as_bytes());
            }
            out.push(b')');
        }
    }
    out.push(b'\n');
}

fn stack_lines(out: &mut Vec<u8>, stack: &Stack, missed: &str, style: Style) {
    if *stack == Stack::Missed {
        out.extend_from_slice(format!("    [{missed}]\n").as_bytes());
    }
    for (number, frame) in stack.frames().iter().enumerate() {
        frame_line(out, number, frame, style);
    }
}

/// Writes a kernel stack, a frame a line.
fn kernel_lines(out: &mut Vec<u8>, stack: &Stack, style: Style) {
    stack_lines(out, stack, "Missed Kernel Stack", style);
}

/// Writes a kernel stack, a function a line, without anything before it.
pub fn bare_lines(out: &mut Vec<u8>, stack: &Stack, style: Style) {
    let mut lines = Vec::new();
    kernel_lines(&mut lines, stack, style);
    for line in lines.split_inclusive(|b| *b == b'\n') {
        out.extend_from_slice(line.strip_prefix(b"    ").unwrap_or(line));
    }
}

/// Writes an entry as upstream does: the kernel's frames, the program's, whose they are, the value.
/// `id` is the process or thread, by the host's number.
pub fn lines<V>(
    out: &mut Vec<u8>,
    entry: &Entry<V>,
    style: Style,
    delimited: bool,
    id: u32,
    value: &str,
) {
    kernel_lines(out, &entry.kernel, style);
    if delimited && entry.kernel != Stack::None && entry.user != Stack::None {
        out.extend_from_slice(b"    --\n");
    }
    stack_lines(out, &entry.user, "Missed User Stack", style);
    out.extend_from_slice(b"    -                ");
    crate::escape::text(out, &comm(&entry.key));
    let id = pidns::shown(id);
    out.extend_from_slice(format!(" ({id})\n        {value}\n\n").as_bytes());
}

/// The name of a frame in folded output, where `;` and the line's end have a meaning.
fn folded_name(frame: &Frame) -> String {
    let mut out = Vec::new();
    frame_text(&mut out, frame);
    String::from_utf8_lossy(&out).replace(';', ":")
}

/// An entry from the root to the leaf: the command name, the program's frames, the kernel's. With
/// `delimited`, a `-` between the two; with `annotated`, `_[k]` behind the kernel's.
pub fn path<V>(entry: &Entry<V>, delimited: bool, annotated: bool) -> Vec<String> {
    let mut path = vec![crate::escape::printable(&comm(&entry.key)).replace(';', ":")];
    if entry.user == Stack::Missed {
        path.push("[Missed User Stack]".into());
    }
    path.extend(entry.user.frames().iter().rev().map(folded_name));
    if delimited && entry.kernel != Stack::None && entry.user != Stack::None {
        path.push("-".into());
    }
    if entry.kernel == Stack::Missed {
        path.push("[Missed Kernel Stack]".into());
    }
    let suffix = if annotated { "_[k]" } else { "" };
    path.extend(entry.kernel.frames().iter().rev().map(|frame| folded_name(frame) + suffix));
    path
}

/// Writes an entry in one line: its path, and the value.
pub fn folded_line(out: &mut Vec<u8>, path: &[String], value: u64) {
    out.extend_from_slice(path.join(";").as_bytes());
    out.extend_from_slice(format!(" {value}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(sym: &str, addr: u64) -> Frame {
        Frame { addr, sym: Some(sym.into()), off: 4, ..Frame::default() }
    }

    fn entry() -> Entry<u64> {
        let mut comm = [0i8; 16];
        comm[..3].copy_from_slice(&[b'a' as i8, b';' as i8, b'\n' as i8]);
        let unknown = Frame {
            addr: 0x7f00,
            off: 0x30,
            module: Some("/lib/x y.so".into()),
            module_off: Some(0x30),
            sym: None,
        };
        Entry {
            key: StackKey { pid: 7, comm, ..StackKey::default() },
            kernel: Stack::Frames([frame("leaf_k", 1), frame("root_k", 2)].into()),
            user: Stack::Frames([frame("f(a; b)", 3), unknown].into()),
            value: 9,
        }
    }

    fn text(entry: &Entry<u64>, style: Style, delimited: bool) -> String {
        let mut out = Vec::new();
        lines(&mut out, entry, style, delimited, entry.key.pid, &entry.value.to_string());
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn entries_look_as_they_do_upstream() {
        assert_eq!(
            text(&entry(), Style::default(), true),
            "    leaf_k\n    root_k\n    --\n    f(a; b)\n    /lib/x y.so+0x30\n    \
             -                a;\\n (7)\n        9\n\n"
        );
        let verbose = text(&entry(), Style { verbose: true, ..Style::default() }, false);
        assert!(verbose.starts_with("    #0  0x0000000000000001 leaf_k+0x4\n"), "{verbose}");
        let missed = Entry { kernel: Stack::Missed, user: Stack::None, ..entry() };
        assert!(
            text(&missed, Style::default(), true).starts_with("    [Missed Kernel Stack]\n    -")
        );
    }

    #[test]
    fn folded_lines_cannot_be_broken_by_names() {
        let mut out = Vec::new();
        folded_line(&mut out, &path(&entry(), true, true), 9);
        assert_eq!(
            String::from_utf8_lossy(&out),
            "a:\\n;/lib/x y.so+0x30;f(a: b);-;root_k_[k];leaf_k_[k] 9\n"
        );
    }

    #[test]
    fn missing_stacks_are_counted_and_equal_ones_are_one() {
        let mut stacks = Stacks::default();
        stacks.frames.insert(100, [0x10u64, 0x20].into());
        stacks.frames.insert(101, [0x10u64, 0x20].into());
        let key = |kernel, user| StackKey { kernel, user, ..StackKey::default() };
        let counted = vec![(key(100, 0), 1u64), (key(101, 0), 2), (key(999, 1), 4)];
        let entries = stacks.resolve(counted, Taken::AtTracepoint, &mut Symbols::default());
        let values: Vec<u64> = entries.iter().map(|entry| entry.value).collect();
        assert_eq!((values, missed(&entries)), (vec![3, 4], 2));
        assert_eq!(entries[0].user, Stack::None);
    }
}
