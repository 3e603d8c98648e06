// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Names in one mapped file: an executable, a library, the vDSO.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::rc::Rc;

use blazesym::symbolize::Input;
use blazesym::symbolize::Symbolized;
use blazesym::symbolize::Symbolizer;
use blazesym::symbolize::source::Elf;
use blazesym::symbolize::source::Source;
use nix::sys::memfd::MFdFlags;
use nix::sys::memfd::memfd_create;

use crate::symbols::demangle::demangle;
use crate::symbols::elf;
use crate::symbols::maps::Line;
use crate::symbols::maps::exec_lines;
use crate::symbols::open;

/// How many names of one file are remembered.
const MOST_NAMES: usize = 1 << 16;
/// How many files are remembered, each with an open descriptor.
const MOST_FILES: usize = 4096;

/// The name of a function, and how far behind its start.
type Name = (Rc<str>, u64);

/// See the module.
pub struct Binary {
    /// What the process calls it.
    pub module: Rc<str>,
    file: Option<File>,
    tables: RefCell<Tables>,
    names: RefCell<HashMap<u64, Option<Name>>>,
}

#[derive(Default)]
enum Tables {
    #[default]
    Unread,
    None,
    Read(Box<Symbolizer>, File),
}

impl Binary {
    fn new(module: &str, file: Option<File>) -> Self {
        Self { module: module.into(), file, tables: RefCell::default(), names: RefCell::default() }
    }

    /// Whether the file itself could be opened.
    pub fn is_open(&self) -> bool {
        self.file.is_some()
    }

    /// The functions at these offsets in the file.
    pub fn names(&self, offsets: &[u64]) -> Vec<Option<Name>> {
        let mut known = self.names.borrow_mut();
        let mut unknown: Vec<u64> =
            offsets.iter().copied().filter(|offset| !known.contains_key(offset)).collect();
        unknown.sort_unstable();
        unknown.dedup();
        if known.len() + unknown.len() > MOST_NAMES {
            known.clear();
            unknown = offsets.to_vec();
        }
        if !unknown.is_empty() {
            let found = self.look_up(&unknown);
            known.extend(unknown.iter().copied().zip(found));
        }
        offsets.iter().map(|offset| known.get(offset).cloned().flatten()).collect()
    }

    fn look_up(&self, offsets: &[u64]) -> Vec<Option<Name>> {
        let mut tables = self.tables.borrow_mut();
        if let Tables::Unread = *tables {
            *tables = match self.file.as_ref().map(elf::tables) {
                Some(Ok(copy)) => {
                    let symbolizer =
                        Symbolizer::builder().enable_demangling(false).enable_auto_reload(false);
                    Tables::Read(Box::new(symbolizer.build()), copy)
                }
                _ => Tables::None,
            };
        }
        let none = || vec![None; offsets.len()];
        let Tables::Read(symbolizer, copy) = &*tables else { return none() };
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let source = Source::Elf(Elf { debug_syms: false, ..Elf::new(path) });
        let Ok(found) = symbolizer.symbolize(&source, Input::FileOffset(offsets)) else {
            return none();
        };
        let name = |symbolized: &Symbolized<'_>| {
            let sym = symbolized.as_sym()?;
            Some((demangle(&sym.name).into(), u64::try_from(sym.offset).ok()?))
        };
        found.iter().map(name).collect()
    }

    /// Gives back the memory of the tables; they are read again when they are needed.
    pub fn forget_tables(&self) {
        *self.tables.borrow_mut() = Tables::Unread;
    }
}

/// The vDSO, which every process has from the kernel: our own copy of it.
fn vdso() -> io::Result<File> {
    let maps = std::fs::read("/proc/self/maps")?;
    let line = exec_lines(&maps).find(|line| line.path == b"[vdso]");
    let line = line.ok_or(io::ErrorKind::NotFound)?;
    let mut bytes = vec![0u8; usize::try_from(line.end - line.start).unwrap_or(0)];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, line.start)?;
    let file = File::from(memfd_create(c"vdso", MFdFlags::MFD_CLOEXEC)?);
    file.write_all_at(&bytes, 0)?;
    Ok(file)
}

/// The files that have been seen, each once.
#[derive(Default)]
pub struct Binaries {
    /// By file system and inode, which nobody else gets as long as the file is open.
    files: HashMap<(u64, u64), Rc<Binary>>,
    /// Memory without a file, by what it is called.
    others: HashMap<Vec<u8>, Rc<Binary>>,
}

impl Binaries {
    /// The file of a mapping; opened when it is seen for the first time. `None` for memory without
    /// file or name.
    pub fn of(&mut self, pid: u32, line: &Line<'_>) -> Option<Rc<Binary>> {
        let path = line.path.strip_suffix(b" (deleted)").unwrap_or(line.path);
        let name = String::from_utf8_lossy(path);
        if line.inode == 0 {
            if path.is_empty() || path.starts_with(b"//") || path.starts_with(b"[anon") {
                return None;
            }
            if self.others.len() > MOST_FILES {
                self.others.clear();
            }
            let make = || {
                let file = if path == b"[vdso]" { vdso().ok() } else { None };
                Rc::new(Binary::new(&name, file))
            };
            return Some(Rc::clone(self.others.entry(path.to_vec()).or_insert_with(make)));
        }
        let key = (line.device, line.inode);
        if let Some(known) = self.files.get(&key).filter(|known| known.is_open()) {
            return Some(Rc::clone(known));
        }
        if self.files.len() >= MOST_FILES {
            self.files.retain(|_, binary| Rc::strong_count(binary) > 1);
        }
        let path = Path::new(&*name);
        let same = |file: &File| {
            use std::os::unix::fs::MetadataExt as _;
            file.metadata().is_ok_and(|data| data.ino() == line.inode)
        };
        let file = open::mapped(pid, line.start, line.end)
            .or_else(|| open::in_process(pid, path).filter(same))
            .or_else(|| open::by_inode(path, line.inode))
            .filter(|_| self.files.len() < MOST_FILES);
        let binary = Rc::new(Binary::new(&name, file));
        self.files.insert(key, Rc::clone(&binary));
        Some(binary)
    }

    /// See [`Binary::forget_tables`].
    pub fn forget_tables(&self) {
        self.files.values().chain(self.others.values()).for_each(|binary| binary.forget_tables());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy_of(bytes: &[u8]) -> File {
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).expect("memfd"));
        file.write_all_at(bytes, 0).expect("write");
        file
    }

    /// The offset in our own executable of a function that has a name.
    fn own() -> (File, u64, u64) {
        let file = File::open("/proc/self/exe").expect("own executable");
        let maps = std::fs::read("/proc/self/maps").expect("maps");
        let address = own as *const () as usize as u64;
        let line = exec_lines(&maps).find(|line| (line.start..line.end).contains(&address));
        let line = line.expect("mapped");
        (file, address - line.start + line.offset, address)
    }

    #[test]
    fn functions_are_named() {
        let (file, offset, _) = own();
        let binary = Binary::new("x", Some(file));
        for _ in 0..2 {
            let names = binary.names(&[offset, offset + 1, 1]);
            let (name, off) = names[1].clone().expect("named");
            assert!(name.contains("binary::tests::own"), "{name}");
            assert_eq!((off, names[2].clone()), (1, None));
            binary.forget_tables();
        }
    }

    #[test]
    fn the_vdso_has_names() {
        let file = vdso().expect("vdso");
        assert!(elf::tables(&file).is_ok());
    }

    #[test]
    fn broken_files_name_nothing_and_break_nothing() {
        let (file, offset, _) = own();
        let bytes = std::fs::read("/proc/self/exe").expect("read");
        assert!(Binary::new("x", Some(copy_of(b"#!/bin/sh\n"))).names(&[1]) == [None]);
        assert!(Binary::new("x", Some(copy_of(b""))).names(&[1]) == [None]);
        // Cut at many places.
        for part in 1..40 {
            let cut = copy_of(&bytes[..bytes.len() / 40 * part]);
            Binary::new("x", Some(cut)).names(&[offset, 1, u64::MAX]);
        }
        // Headers with other bytes.
        let mut random = 1u64;
        let copy = elf::tables(&file).expect("tables");
        let length = file.metadata().expect("metadata").len();
        for _ in 0..300 {
            let broken = copy.try_clone().expect("clone");
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695);
            let headers = length - 64 * 40;
            let at =
                if random & 1 == 0 { (random >> 8) % 64 } else { headers + (random >> 8) % 2560 };
            let mut kept = [0];
            broken.read_exact_at(&mut kept, at).expect("read");
            broken.write_all_at(&[(random >> 40) as u8], at).expect("write");
            Binary::new("x", Some(broken)).names(&[offset, 1, u64::MAX]);
            copy.write_all_at(&kept, at).expect("write");
        }
        // Ten gigabytes of nothing, and an ELF header that points into it.
        let sparse = copy_of(&bytes[..64]);
        sparse.write_all_at(&(9u64 << 30).to_le_bytes(), 40).expect("write");
        sparse.set_len(10 << 30).expect("size");
        assert!(Binary::new("x", Some(sparse)).names(&[1]) == [None]);
    }
}
