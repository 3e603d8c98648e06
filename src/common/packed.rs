// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The objects of the kernel side, as the binary has them: packed by build.rs, since there is one
//! for each tool, and unpacked they would be most of the multi-call binary.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::sys::mman::MapFlags;
use nix::sys::mman::MmapAdvise;
use nix::sys::mman::ProtFlags;
use nix::sys::mman::madvise;
use nix::sys::mman::mmap_anonymous;

thread_local! {
    /// What this thread has unpacked and may still read.
    static UNPACKED: RefCell<Vec<&'static [u8]>> = const { RefCell::new(Vec::new()) };
}

/// Unpacks an object: its size in four bytes, and then the object, deflated. It stands there until
/// [`discard`].
///
/// # Errors
/// Fails when there is no memory for it, and when it was not packed by build.rs.
pub fn unpack(packed: &'static [u8]) -> io::Result<&'static [u8]> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "a packed object is broken");
    let (size, deflated) = packed.split_first_chunk().ok_or_else(broken)?;
    let size = u32::from_le_bytes(*size) as usize;
    let length = NonZeroUsize::new(size).ok_or_else(broken)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // Pages of its own, and not the allocator's memory: what the skeleton refers to for good has to
    // stay mapped, and shall take no memory.
    // SAFETY: a new mapping at a place that the kernel chooses, of zeros, which stays.
    let bytes = unsafe {
        let start = mmap_anonymous(None, length, access, MapFlags::MAP_PRIVATE)?;
        std::slice::from_raw_parts_mut(start.cast::<u8>().as_ptr(), size)
    };
    let input = std::iter::once(deflated);
    if miniz_oxide::inflate::decompress_slice_iter_to_slice(bytes, input, false, true) != Ok(size) {
        return Err(broken());
    }
    let bytes: &'static [u8] = bytes;
    UNPACKED.with_borrow_mut(|all| all.push(bytes));
    Ok(bytes)
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
        let packed = [&size[..], &miniz_oxide::deflate::compress_to_vec(&object, 6)].concat();
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
}
