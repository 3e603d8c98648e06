// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! A private copy of what names are found in: headers, symbol tables, their strings.
//!
//! The files belong to the traced process, which may cut them short or change them at any moment;
//! a mapping of such a file ends the tool with SIGBUS. So the few sections that matter are read
//! into memory of our own, at the same offsets, and nothing else is: of a browser of 200 MB that is
//! a few.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;

use nix::sys::memfd::MFdFlags;
use nix::sys::memfd::memfd_create;

/// Of one section. A symbol table of this size has two million functions.
const LARGEST_SECTION: u64 = 64 << 20;
/// Of all sections of a file.
const LARGEST_COPY: u64 = 160 << 20;
const MOST_SECTIONS: u64 = 1 << 16;
/// How much is read at once.
const CHUNK: usize = 64 << 10;

const SYMTAB: u32 = 2;
const STRTAB: u32 = 3;
const DYNSYM: u32 = 11;
/// Compressed symbols of distributions that strip them otherwise.
const DEBUGDATA: &[u8] = b".gnu_debugdata";

struct Copy<'a> {
    from: &'a File,
    to: File,
    length: u64,
    left: u64,
}

impl Copy<'_> {
    /// Copies a part of the file, as much of it as there is. Zeros stay holes.
    fn part(&mut self, start: u64, size: u64) -> io::Result<()> {
        let end = start.saturating_add(size).min(self.length);
        let mut at = start;
        let mut chunk = vec![0u8; CHUNK];
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            if self.left < wanted as u64 {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            let read = self.from.read_at(&mut chunk[..wanted], at)?;
            if read == 0 {
                break;
            }
            self.left -= read as u64;
            if chunk[..read].iter().any(|b| *b != 0) {
                self.to.write_all_at(&chunk[..read], at)?;
            }
            at += read as u64;
        }
        Ok(())
    }
}

/// What of an ELF header and its section headers is needed, of either class.
struct Header {
    wide: bool,
    program_headers: (u64, u64),
    section_headers: u64,
    section_size: u64,
    sections: u64,
    names: u64,
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let part = bytes.get(at..at + size)?;
    let mut word = [0; 8];
    word[..size].copy_from_slice(part);
    Some(u64::from_le_bytes(word))
}

fn header(bytes: &[u8]) -> Option<Header> {
    // Little endian, as are the machines that this runs on.
    if !bytes.starts_with(b"\x7fELF") || bytes.get(5) != Some(&1) {
        return None;
    }
    let wide = match bytes.get(4)? {
        1 => false,
        2 => true,
        _ => return None,
    };
    let field = |narrow: (usize, usize), at_wide: (usize, usize)| {
        let (at, size) = if wide { at_wide } else { narrow };
        number(bytes, at, size)
    };
    let program_size = field((42, 2), (54, 2))?.checked_mul(field((44, 2), (56, 2))?)?;
    Some(Header {
        wide,
        program_headers: (field((28, 4), (32, 8))?, program_size),
        section_headers: field((32, 4), (40, 8))?,
        section_size: field((46, 2), (58, 2))?,
        sections: field((48, 2), (60, 2))?,
        names: field((50, 2), (62, 2))?,
    })
}

/// One section: name's place, type, offset, size.
fn section(header: &Header, bytes: &[u8]) -> Option<(u64, u32, u64, u64)> {
    let name = number(bytes, 0, 4)?;
    let kind = u32::try_from(number(bytes, 4, 4)?).ok()?;
    let (offset, size) = if header.wide {
        (number(bytes, 24, 8)?, number(bytes, 32, 8)?)
    } else {
        (number(bytes, 16, 4)?, number(bytes, 20, 4)?)
    };
    Some((name, kind, offset, size))
}

/// Whether compressed data of this file may be unpacked: a few kilobytes can become gigabytes. It
/// is when root has installed it where this program's own system has its programs.
fn is_installed(file: &File) -> bool {
    let Ok(data) = file.metadata() else { return false };
    let ours = std::fs::metadata("/usr").is_ok_and(|usr| usr.dev() == data.dev());
    ours && data.uid() == 0 && data.mode() & 0o022 == 0
}

/// Copies what names are found in, into memory that only this process has.
///
/// # Errors
/// Fails for what is no ELF file, or has no symbols of a size that makes sense.
pub fn tables(file: &File) -> io::Result<File> {
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let mut start = [0u8; 64];
    let read = file.read_at(&mut start, 0)?;
    let header = header(&start[..read]).ok_or_else(invalid)?;
    let minimum = if header.wide { 64 } else { 40 };
    if header.section_size != minimum {
        return Err(invalid());
    }
    let length = file.metadata()?.len();
    let to = File::from(memfd_create(c"symbols", MFdFlags::MFD_CLOEXEC)?);
    to.set_len(length)?;
    let mut copy = Copy { from: file, to, length, left: LARGEST_COPY };
    copy.part(0, start.len() as u64)?;
    copy.part(header.program_headers.0, header.program_headers.1)?;

    // With very many sections, their number stands in the first one.
    let one = |at: u64| -> io::Result<Vec<u8>> {
        let mut bytes = vec![0u8; usize::try_from(header.section_size).unwrap_or(0)];
        let at = header.section_headers.checked_add(at * header.section_size);
        file.read_exact_at(&mut bytes, at.ok_or_else(invalid)?)?;
        Ok(bytes)
    };
    let count = if header.sections == 0 {
        section(&header, &one(0)?).ok_or_else(invalid)?.3
    } else {
        header.sections
    };
    if count > MOST_SECTIONS {
        return Err(invalid());
    }
    let mut headers = vec![0u8; usize::try_from(count * header.section_size).unwrap_or(0)];
    file.read_exact_at(&mut headers, header.section_headers)?;
    copy.part(header.section_headers, headers.len() as u64)?;
    let sections: Vec<_> = headers
        .chunks_exact(usize::try_from(header.section_size).unwrap_or(1))
        .filter_map(|bytes| section(&header, bytes))
        .collect();
    let names = usize::try_from(header.names).ok().and_then(|index| sections.get(index));
    let names = names.map_or(0, |(_, _, offset, _)| *offset);
    for (name, kind, offset, size) in sections {
        let wanted = match kind {
            SYMTAB | DYNSYM | STRTAB => true,
            _ => {
                let mut text = [0u8; DEBUGDATA.len()];
                let at = names.checked_add(name).unwrap_or(0);
                file.read_exact_at(&mut text, at).is_ok()
                    && text == *DEBUGDATA
                    && is_installed(file)
            }
        };
        if wanted && size <= LARGEST_SECTION {
            copy.part(offset, size)?;
        }
    }
    Ok(copy.to)
}
