// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Global variables of a BPF object by name, for those that every tool has: filters and the state
//! of the reader. A tool's own globals are typed in its skeleton.

#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::ensure;
use libbpf_rs::AsRawLibbpf as _;
use libbpf_rs::MapCore as _;
use libbpf_rs::Object;
use libbpf_rs::OpenObject;
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::DataSec;
use libbpf_rs::btf::types::Var;

use crate::btf::KernelBtf;

/// Offset and size of a variable in a section; `None` when the object has no such variable.
fn find(open: &OpenObject, section: &str, name: &str) -> Result<Option<(usize, usize)>> {
    // SAFETY: the pointer is that of a live object, which outlives the reference.
    let object = unsafe { open.as_libbpf_object().as_ref() };
    let Some(btf) = Btf::from_bpf_object(object).context("reading the object's BTF")? else {
        return Ok(None);
    };
    let Some(data) = btf.type_by_name::<DataSec<'_>>(section) else { return Ok(None) };
    for info in data.iter() {
        let var = btf.type_by_id::<Var<'_>>(info.ty);
        if var.and_then(|var| var.name().map(|n| n == name)).unwrap_or(false) {
            return Ok(Some((info.offset as usize, info.size)));
        }
    }
    Ok(None)
}

/// The object's own BTF, raw.
pub fn object_btf(open: &OpenObject) -> Option<KernelBtf> {
    let mut size = 0;
    // SAFETY: a live object; libbpf returns its BTF, if any, and then the bytes of it, both of
    // which live as long as the object.
    let bytes = unsafe {
        let btf = libbpf_sys::bpf_object__btf(open.as_libbpf_object().as_ptr());
        if btf.is_null() {
            return None;
        }
        let start = libbpf_sys::btf__raw_data(btf, &raw mut size);
        if start.is_null() {
            return None;
        }
        std::slice::from_raw_parts(start.cast::<u8>(), size as usize)
    };
    KernelBtf::parse(bytes.to_vec())
}

/// Sets a constant of the kernel side before the load. Objects without this constant are left
/// alone: not every tool has every filter.
///
/// # Errors
/// Fails when the constant has another size than `value`.
pub fn set_constant(open: &mut OpenObject, name: &str, value: &[u8]) -> Result<bool> {
    let Some((offset, size)) = find(open, ".rodata", name)? else { return Ok(false) };
    ensure!(size == value.len(), "{name} has {size} bytes, not {}", value.len());
    for mut map in open.maps_mut() {
        if map.name().to_string_lossy().ends_with(".rodata") {
            let data = map.initial_value_mut().context("no initial .rodata")?;
            let place = data.get_mut(offset..offset + size).context(".rodata is too short")?;
            place.copy_from_slice(value);
            return Ok(true);
        }
    }
    Ok(false)
}

/// `reader_state` of `bpf/events.h`, shared with the kernel through the mapped `.bss`.
pub struct ReaderState<'obj> {
    word: &'obj AtomicU32,
}

impl<'obj> ReaderState<'obj> {
    /// Where the variable lies, asked before the load; `None` for objects without events.
    ///
    /// # Errors
    /// Fails when the object's BTF is broken.
    pub fn offset(open: &OpenObject) -> Result<Option<usize>> {
        Ok(find(open, ".bss", "reader_state")?.map(|(offset, _)| offset))
    }

    /// The variable of a loaded object.
    ///
    /// # Errors
    /// Fails when the object has no mapped `.bss`.
    pub fn of(object: &'obj Object, offset: usize) -> Result<Self> {
        for map in object.maps() {
            if !map.name().to_string_lossy().ends_with(".bss") {
                continue;
            }
            let mut size = 0;
            // SAFETY: a live map of a live object; libbpf returns the start of its mapping and
            // how long that is.
            let start = unsafe {
                libbpf_sys::bpf_map__initial_value(map.as_libbpf_object().as_ptr(), &raw mut size)
            };
            let start = NonNull::new(start.cast::<u8>()).context(".bss is not mapped")?;
            ensure!(offset + 4 <= usize::try_from(size)?, ".bss is too short");
            // SAFETY: inside the mapping, which lives as long as the object; aligned, because C
            // aligned it; shared with the kernel, which is what an atomic is for.
            let word = unsafe { AtomicU32::from_ptr(start.add(offset).cast::<u32>().as_ptr()) };
            return Ok(Self { word });
        }
        anyhow::bail!("the object has no .bss")
    }

    /// Tells the kernel side what the reader is doing.
    pub fn set(&self, state: crate::shared::ReaderState) {
        self.word.store(state.0, Ordering::SeqCst);
    }
}
