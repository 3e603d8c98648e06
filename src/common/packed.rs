// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The objects of the kernel side, as the binary has them: packed by build.rs, since there is one
//! for each tool, and unpacked they would be most of the multi-call binary.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::cell::RefCell;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::MapFlags;
use nix::sys::mman::MmapAdvise;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::madvise;
use nix::sys::mman::mmap_anonymous;

/// Functions of the kernel side that are there for an option, by the beginning of their names.
/// Numbers as in `calls` of build.rs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Optional {
    /// `filter_`: not called where no filter on tasks is set (bpf/filter.h).
    Filters = 1,
    /// `pidns_`: not called outside of PID namespaces (bpf/pidns.h).
    PidNamespaces = 2,
}

thread_local! {
    /// Bits of the [`Optional`] functions that the next object is to be without.
    static WITHOUT: Cell<u32> = const { Cell::new(0) };
    /// What this thread has unpacked and may still read.
    static UNPACKED: RefCell<Vec<&'static [u8]>> = const { RefCell::new(Vec::new()) };
}

/// Says which functions the objects that this thread unpacks from now on shall be without, where
/// their constants say that nobody calls them. libbpf does not load what is not called.
pub fn leave_out(functions: &[Optional]) {
    WITHOUT.set(functions.iter().fold(0, |bits, function| bits | 1 << *function as u32));
}

/// `BPF_ALU64 | BPF_MOV`, with 0 for register 0: what a function that is not there returns.
const RETURNED_0: [u8; 8] = [0xb7, 0, 0, 0, 0, 0, 0, 0];
/// Bytes of `Elf64_Rel`, and where `Elf64_Shdr` has the size of a section.
const RELOCATION: usize = 16;
const SECTION_SIZE: usize = 32;

/// Takes the calls out of an object that it shall be without. `calls` is the table of build.rs.
fn without(object: &mut [u8], calls: &[u8], groups: u32) -> Option<()> {
    for call in calls.chunks_exact(16) {
        let words: Vec<u32> = call
            .chunks_exact(4)
            .map(|word| word.try_into().map(u32::from_le_bytes))
            .collect::<Result<_, _>>()
            .ok()?;
        let [group, instruction, relocation, header] = words[..] else { return None };
        if groups & 1 << group == 0 {
            continue;
        }
        object.get_mut(instruction as usize..)?.get_mut(..8)?.copy_from_slice(&RETURNED_0);
        if relocation == 0 {
            continue;
        }
        // The last of its section takes its place: libbpf puts them in order. Later ones than this
        // have been taken out already.
        let (relocation, header) = (relocation as usize, header as usize);
        let place = header + SECTION_SIZE;
        let size = u64::from_le_bytes(object.get(place..place + 8)?.try_into().ok()?);
        let start = u64::from_le_bytes(object.get(place - 8..place)?.try_into().ok()?);
        let shorter = size.checked_sub(RELOCATION as u64)?;
        let last = usize::try_from(start + shorter).ok()?;
        object.get(last.max(relocation)..)?.get(..RELOCATION)?;
        object.copy_within(last..last + RELOCATION, relocation);
        object[place..place + 8].copy_from_slice(&shorter.to_le_bytes());
    }
    Some(())
}

/// Unpacks an object: its size and the number of calls that can be taken out in four bytes each, and
/// then the object and the table of calls, deflated. It stands there until [`discard`].
///
/// # Errors
/// Fails when there is no memory for it, and when it was not packed by build.rs.
pub fn unpack(packed: &'static [u8]) -> io::Result<&'static [u8]> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "a packed object is broken");
    let (size, rest) = packed.split_first_chunk().ok_or_else(broken)?;
    let (calls, deflated) = rest.split_first_chunk().ok_or_else(broken)?;
    let size = u32::from_le_bytes(*size) as usize;
    let all = size + u32::from_le_bytes(*calls) as usize * 16;
    let length = NonZeroUsize::new(all).ok_or_else(broken)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // Pages of its own, and not the allocator's memory: what the skeleton refers to for good has to
    // stay mapped, and shall take no memory.
    // SAFETY: a new mapping at a place that the kernel chooses, of zeros, which stays.
    let bytes = unsafe {
        let start = mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE)?;
        std::slice::from_raw_parts_mut(start.cast::<u8>().as_ptr(), all)
    };
    let input = std::iter::once(deflated);
    if miniz_oxide::inflate::decompress_slice_iter_to_slice(bytes, input, false, true) != Ok(all) {
        return Err(broken());
    }
    let (object, calls) = bytes.split_at_mut(size);
    without(object, calls, WITHOUT.get()).ok_or_else(broken)?;
    let bytes: &'static [u8] = bytes;
    UNPACKED.with_borrow_mut(|all| all.push(bytes));
    Ok(&bytes[..size])
}

/// Gives the memory of all objects that this thread has unpacked back to the system, after they were
/// opened: libbpf copies what it needs while it does that (`bpf_object_open()` ends with
/// `bpf_object__elf_finish()`).
pub fn discard() {
    for bytes in UNPACKED.take() {
        // SAFETY: pages that unpack() has mapped, and that stay mapped. Whoever still has a
        // reference, as a skeleton has, does not read what it refers to.
        let given =
            unsafe { madvise(NonNull::from(bytes).cast(), bytes.len(), MmapAdvise::MADV_DONTNEED) };
        debug_assert!(given.is_ok(), "madvise: {given:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_unpacked_whole_and_go() {
        let object: Vec<u8> = (0..300_000u32).map(|i| (i / 7 % 251) as u8).collect();
        let size = u32::try_from(object.len()).expect("size").to_le_bytes();
        let deflated = miniz_oxide::deflate::compress_to_vec(&object, 6);
        let packed = [&size[..], &[0; 4], &deflated].concat();
        assert!(packed.len() < object.len() / 10);
        let cut: &[u8] = packed[..packed.len() - 9].to_vec().leak();
        assert!(unpack(cut).is_err());
        let longer: &[u8] = [&(300_001u32.to_le_bytes())[..], &packed[4..]].concat().leak();
        assert!(unpack(longer).is_err());
        assert!(unpack(&[]).is_err());
        let unpacked = unpack(packed.leak()).expect("an object");
        assert_eq!(unpacked, object);
        let at = NonNull::from(unpacked).cast::<u8>();
        discard();
        // SAFETY: still mapped. Read as what it is now, not through the reference from before.
        assert!((0..object.len()).all(|i| unsafe { at.add(i).read_volatile() } == 0));
    }
    #[test]
    fn calls_are_taken_out_with_their_relocations() {
        // Instructions, three relocations at 24, and the header of their section at 72.
        let mut object = vec![0x85; 24];
        object.extend((0..48).map(|i| i / 16));
        object.extend([0; 24]);
        object.extend([24u64, 48].iter().flat_map(|word| word.to_le_bytes()));
        object.extend([0; 24]);
        let calls = [[1, 16, 56, 72], [2, 8, 40, 72], [1, 0, 24, 72], [1, 8, 0, 0]];
        let calls: Vec<u8> =
            calls.iter().flatten().flat_map(|word: &u32| word.to_le_bytes()).collect();
        let size = |object: &[u8]| object[104];

        let mut none = object.clone();
        assert_eq!(without(&mut none, &calls, 0), Some(()));
        assert_eq!(none, object);

        let mut one = object.clone();
        assert_eq!(without(&mut one, &calls[16..32], 1 << 2), Some(()));
        assert_eq!(
            (&one[..8], &one[8..16], &one[16..24]),
            (&[0x85; 8][..], &RETURNED_0[..], &[0x85; 8][..])
        );
        assert_eq!((size(&one), one[24], one[40]), (32, 0, 2));

        let mut two = object.clone();
        assert_eq!(without(&mut two, &calls, 1 << 1), Some(()));
        assert_eq!((size(&two), two[24]), (16, 1));
        assert_eq!(two[..24], RETURNED_0.repeat(3));

        let mut all = object.clone();
        assert_eq!(without(&mut all, &calls, 1 << 1 | 1 << 2), Some(()));
        assert_eq!(size(&all), 0);
        // Where the table is of another object.
        assert_eq!(without(&mut object[..60].to_vec(), &calls, 1 << 1), None);
    }
}
