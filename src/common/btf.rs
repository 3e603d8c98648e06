// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What the running kernel has, asked from its BTF in one linear pass per question, without
//! building libbpf's index of every type.
//!
//! Layout: include/uapi/linux/btf.h.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fs;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memchr::memmem;

use crate::sys::Mapped;

/// Where the kernel shows BTF: its own, and that of each module by its name.
pub const DIRECTORY: &str = "/sys/kernel/btf";
/// Where the kernel shows its own BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The bytes of BTF.
enum Bytes {
    Read(Vec<u8>),
    Mapped(Mapped),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Read(bytes) => bytes,
            Self::Mapped(bytes) => bytes,
        }
    }
}

/// Raw BTF of a kernel.
pub struct KernelBtf {
    data: Bytes,
    types: (usize, usize),
    strings: (usize, usize),
    /// Where each type stands, by its id less one.
    places: Vec<u32>,
}

/// Kinds of types: `BTF_KIND_*`.
pub(crate) mod kind {
    pub const INT: u32 = 1;
    pub const PTR: u32 = 2;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// One type, undecoded.
pub(crate) struct Entry<'a> {
    /// Its name's offset in the strings.
    pub name: u32,
    /// Kind, number of members and a flag, as one word.
    pub info: u32,
    pub kind: u32,
    /// Size in bytes, or the type that it refers to.
    pub size_or_type: u32,
    /// Members, parameters, values: what follows the first three words.
    pub members: &'a [u8],
}

impl Entry<'_> {
    /// The word at `index` of each record of `size` bytes behind the type.
    pub fn words(&self, size: usize, index: usize) -> impl Iterator<Item = u32> + '_ {
        self.members.chunks_exact(size).filter_map(move |record| word(record, index * 4))
    }
}

fn not_btf() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not BTF")
}

/// What was asked for and exists, by name, with its type id.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found<'n> {
    /// Functions.
    pub functions: HashMap<&'n str, u32>,
    /// Tracepoints.
    pub tracepoints: HashMap<&'n str, u32>,
}

impl KernelBtf {
    /// Reads raw BTF from a file.
    ///
    /// # Errors
    /// Fails when the file cannot be read or is no BTF.
    pub fn read(path: &Path) -> io::Result<Self> {
        Self::of(Bytes::Read(fs::read(path)?)).ok_or_else(not_btf)
    }

    /// The running kernel's own.
    ///
    /// # Errors
    /// Fails when the kernel does not show it.
    pub fn of_kernel() -> io::Result<Self> {
        // Each read() copies one page of some 1,400. Since 6.16 the file can be mapped: a539e2a6d51d
        // "btf: Allow mmap of vmlinux btf".
        match File::open(VMLINUX).and_then(|file| Mapped::new(&file)) {
            Ok(mapped) => Self::of(Bytes::Mapped(mapped)).ok_or_else(not_btf),
            Err(_) => Self::read(Path::new(VMLINUX)),
        }
    }

    /// Takes raw BTF; `None` when it is none.
    pub fn parse(data: Vec<u8>) -> Option<Self> {
        Self::of(Bytes::Read(data))
    }

    fn of(data: Bytes) -> Option<Self> {
        if word16(&data, 0)? != 0xeb9f {
            return None;
        }
        let header = word(&data, 4)? as usize;
        let section = |at: usize| -> Option<(usize, usize)> {
            let start = header.checked_add(word(&data, at)? as usize)?;
            let end = start.checked_add(word(&data, at + 4)? as usize)?;
            (end <= data.len()).then_some((start, end))
        };
        let (types, strings) = (section(8)?, section(16)?);
        let mut places = Vec::with_capacity((types.1 - types.0) / 20);
        let mut at = types.0;
        while at + 12 <= types.1 {
            let end = at + 12 + bytes_behind(word(&data, at + 4)?);
            if end > data.len() {
                break;
            }
            places.push(u32::try_from(at).ok()?);
            at = end;
        }
        Some(Self { types, strings, data, places })
    }

    /// The offset of a name in the string section.
    fn name_offset(&self, name: &str) -> Option<u32> {
        let strings = &self.data[self.strings.0..self.strings.1];
        let mut wanted = vec![0u8];
        wanted.extend_from_slice(name.as_bytes());
        wanted.push(0);
        u32::try_from(memmem::find(strings, &wanted)? + 1).ok()
    }

    /// The string at an offset, without its NUL.
    pub(crate) fn string(&self, offset: u32) -> &[u8] {
        let strings = &self.data[self.strings.0..self.strings.1];
        let rest = strings.get(offset as usize..).unwrap_or(&[]);
        &rest[..memchr::memchr(0, rest).unwrap_or(rest.len())]
    }

    /// The type that stands at this place of the data.
    pub(crate) fn type_at(&self, at: usize) -> Option<Entry<'_>> {
        if at + 12 > self.types.1 {
            return None;
        }
        let name = word(&self.data, at)?;
        let info = word(&self.data, at + 4)?;
        let size_or_type = word(&self.data, at + 8)?;
        let members = self.data.get(at + 12..at + 12 + bytes_behind(info))?;
        Some(Entry { name, info, kind: kind_of(info), size_or_type, members })
    }

    /// Every type, in the order of their ids, which count from 1.
    pub(crate) fn types(&self) -> impl Iterator<Item = Entry<'_>> {
        self.places.iter().filter_map(|at| self.type_at(*at as usize))
    }

    /// The type with this id; `None` for void and for ids that do not exist.
    pub(crate) fn by_id(&self, id: u32) -> Option<Entry<'_>> {
        self.type_at(*self.places.get((id as usize).checked_sub(1)?)? as usize)
    }

    /// Every type as its id, its kind and where its name stands: for a look at all 150,000.
    pub(crate) fn outlines(&self) -> impl Iterator<Item = (u32, u32, u32)> {
        (1u32..).zip(&self.places).filter_map(|(id, at)| {
            let head = self.data.get(*at as usize..)?.first_chunk::<8>()?;
            Some((id, kind_of(word(head, 4)?), word(head, 0)?))
        })
    }

    /// The first three bytes of the string at an offset, with zeros behind its end.
    pub(crate) fn first_bytes(&self, offset: u32) -> [u8; 3] {
        let at = self.strings.0 + offset as usize;
        match self.data.get(at..).and_then(|rest| rest.first_chunk::<3>()) {
            Some([0, ..]) | None => [0; 3],
            Some([first, 0, _]) => [*first, 0, 0],
            Some(bytes) => *bytes,
        }
    }

    /// The types whose names stand at one of these offsets, each with its id.
    fn named(&self, names: &[u32]) -> impl Iterator<Item = (u32, Entry<'_>)> {
        // Most of the names differ from all wanted ones in the lower half of their offsets.
        let mut lower_halves = vec![false; 1 << 16];
        names.iter().for_each(|name| lower_halves[(name & 0xffff) as usize] = true);
        let named = move |(_, at): &(u32, &u32)| {
            word(&self.data, **at as usize).is_some_and(|name| {
                lower_halves[(name & 0xffff) as usize] && name != 0 && names.contains(&name)
            })
        };
        let places = (1u32..).zip(&self.places);
        places.filter(named).filter_map(|(id, at)| Some((id, self.type_at(*at as usize)?)))
    }

    /// Which of these names the kernel describes as functions (not yet that they can be probed)
    /// and, for tracepoints, as `btf_trace_NAME`, each with the type's id; in one pass for all of
    /// them. Of several functions of a name the first counts, as for libbpf.
    pub fn find<'n>(&self, functions: &[&'n str], tracepoints: &[&'n str]) -> Found<'n> {
        let function = |name: &&'n str| Some((kind::FUNC, self.name_offset(name)?, *name));
        let tracepoint = |name: &&'n str| {
            Some((kind::TYPEDEF, self.name_offset(&format!("btf_trace_{name}"))?, *name))
        };
        let wanted: Vec<(u32, u32, &str)> = functions
            .iter()
            .filter_map(function)
            .chain(tracepoints.iter().filter_map(tracepoint))
            .collect();
        let offsets: Vec<u32> = wanted.iter().map(|(_, offset, _)| *offset).collect();
        let mut found = Found::default();
        for (id, entry) in self.named(&offsets) {
            let same =
                |(kind, name, _): &&(u32, u32, &str)| entry.name == *name && entry.kind == *kind;
            let Some((_, _, name)) = wanted.iter().find(same) else { continue };
            let of_kind = match entry.kind {
                kind::FUNC => &mut found.functions,
                _ => &mut found.tracepoints,
            };
            of_kind.entry(*name).or_insert(id);
        }
        found
    }

    /// Whether the kernel has a per-CPU variable of this name; BTF describes no others.
    pub fn has_variable(&self, name: &str) -> bool {
        let Some(offset) = self.name_offset(name) else { return false };
        self.named(&[offset]).any(|(_, entry)| entry.kind == kind::VAR)
    }

    /// The name of a type of a module, whose names continue those of the kernel proper, which
    /// `self` is.
    fn name_in_module<'a>(&'a self, module: &'a KernelBtf, entry: &Entry<'_>) -> &'a [u8] {
        let length = u32::try_from(self.strings.1 - self.strings.0).unwrap_or(u32::MAX);
        match entry.name.checked_sub(length) {
            Some(offset) => module.string(offset),
            None => self.string(entry.name),
        }
    }

    /// Which of these names are functions or tracepoints of a module with this BTF.
    pub fn find_in_module(&self, module: &KernelBtf, names: &HashSet<&str>) -> Vec<String> {
        let name = |entry: &Entry<'_>| {
            let text = std::str::from_utf8(self.name_in_module(module, entry)).ok()?;
            match entry.kind {
                kind::FUNC => Some(text.to_string()),
                kind::TYPEDEF => text.strip_prefix("btf_trace_").map(String::from),
                _ => None,
            }
        };
        module
            .types()
            .filter_map(|entry| name(&entry))
            .filter(|name| names.contains(name.as_str()))
            .collect()
    }

    /// The type id of a function of a module with this BTF, whose ids continue those of the kernel
    /// proper.
    pub fn function_in_module(&self, module: &KernelBtf, name: &str) -> Option<u32> {
        let is_it = |entry: &Entry<'_>| {
            entry.kind == kind::FUNC && self.name_in_module(module, entry) == name.as_bytes()
        };
        let place = module.types().position(|entry| is_it(&entry))?;
        u32::try_from(self.places.len() + place + 1).ok()
    }

    /// Whether the kernel proper has a function of this name.
    pub fn describes_function(&self, name: &str) -> bool {
        !self.find(&[name], &[]).functions.is_empty()
    }

    /// Whether a struct of this name exists, and if so whether it has this member, itself or in a
    /// struct or union without a name.
    pub fn struct_has(&self, name: &str, member: &str) -> Option<bool> {
        let name = self.name_offset(name)?;
        let (_, found) = self.named(&[name]).find(|(_, entry)| entry.kind == kind::STRUCT)?;
        let Some(member) = self.name_offset(member) else { return Some(false) };
        Some(self.has_member(&found, member))
    }

    fn has_member(&self, entry: &Entry<'_>, member: u32) -> bool {
        entry.words(12, 0).zip(entry.words(12, 1)).any(|(name, ty)| {
            if name != 0 {
                return name == member;
            }
            // A nameless bit field is no struct and has no members.
            self.by_id(ty)
                .filter(|inner| matches!(inner.kind, kind::STRUCT | kind::UNION))
                .is_some_and(|inner| self.has_member(&inner, member))
        })
    }
}

fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// How many bytes belong to a type with this info word, behind the three words that each has.
fn bytes_behind(info: u32) -> usize {
    let count = (info & 0xffff) as usize;
    match kind_of(info) {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => count * 12,
        kind::ENUM | kind::FUNC_PROTO => count * 8,
        _ => 0,
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

fn word16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tiny BTF: int "x"; func "probe_me"; typedef "btf_trace_tp"; struct "s" { x }.
    fn tiny() -> Vec<u8> {
        let strings = b"\0x\0probe_me\0btf_trace_tp\0s\0";
        let types: Vec<u32> = vec![
            1,
            1 << 24,
            4,
            32, // int x
            3,
            12 << 24,
            1, // func probe_me
            12,
            8 << 24,
            1, // typedef btf_trace_tp
            25,
            4 << 24 | 1,
            4,
            1,
            1,
            0, // struct s { int x }
            3,
            4 << 24 | 1,
            4,
            0,
            4,
            0, // struct probe_me { struct s; }
        ];
        let type_bytes: Vec<u8> = types.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let mut out = 0xeb9fu16.to_ne_bytes().to_vec();
        out.extend([1, 0]);
        let length = |n: usize| u32::try_from(n).expect("small");
        for w in [24, 0, length(type_bytes.len()), length(type_bytes.len()), length(strings.len())]
        {
            out.extend(w.to_ne_bytes());
        }
        out.extend(type_bytes);
        out.extend(strings);
        out
    }

    #[test]
    fn names_are_found_by_kind() {
        let btf = KernelBtf::parse(tiny()).expect("BTF");
        let found = btf.find(&["probe_me", "probe", "x", "missing", "tp"], &["probe_me", "tp"]);
        assert_eq!(found.functions, HashMap::from([("probe_me", 2)]));
        assert_eq!(found.tracepoints, HashMap::from([("tp", 3)]));
        assert_eq!(btf.struct_has("s", "x"), Some(true));
        assert_eq!(btf.struct_has("s", "probe_me"), Some(false));
        assert_eq!(btf.struct_has("probe_me", "x"), Some(true), "through a nameless member");
        assert_eq!(btf.struct_has("t", "x"), None);
    }

    /// Func "of_module" and func "probe_me", whose names stand in its own strings and in those of
    /// the kernel.
    #[test]
    fn names_of_a_module_continue_those_of_the_kernel() {
        let kernel = KernelBtf::parse(tiny()).expect("BTF");
        let length = u32::try_from(kernel.strings.1 - kernel.strings.0).expect("small");
        let words = [length + 1, 12 << 24, 1, 3, 12 << 24, 1];
        let mut out = 0xeb9fu16.to_ne_bytes().to_vec();
        out.extend([1, 0]);
        for word in [24u32, 0, 24, 24, 11].into_iter().chain(words) {
            out.extend(word.to_ne_bytes());
        }
        out.extend(b"\0of_module\0");
        let module = KernelBtf::parse(out).expect("BTF");
        let wanted = HashSet::from(["of_module", "probe_me", "x", "other"]);
        assert_eq!(kernel.find_in_module(&module, &wanted), ["of_module", "probe_me"]);
        // The kernel proper has five types.
        assert_eq!(kernel.function_in_module(&module, "of_module"), Some(6));
        assert_eq!(kernel.function_in_module(&module, "probe_me"), Some(7));
        assert_eq!(kernel.function_in_module(&module, "x"), None);
    }

    #[test]
    fn what_is_not_btf_is_refused() {
        assert!(KernelBtf::parse(vec![]).is_none());
        assert!(KernelBtf::parse(b"\x7fELF............................".to_vec()).is_none());
        let mut cut = tiny();
        cut.truncate(40);
        assert!(KernelBtf::parse(cut).is_none());
    }
}
