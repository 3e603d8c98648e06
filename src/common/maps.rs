// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Reading whole BPF maps in batches.
//!
//! libbpf-rs 0.27's own batch iterators take a short batch for the end, hide errors and refuse
//! per-CPU maps, so the system call is made here.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::hash::Hash;
use std::os::fd::AsRawFd as _;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::bail;
use anyhow::ensure;
use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::MapType;
use nix::errno::Errno;
use plain::Plain;

/// How many entries one system call reads: large batches have caused soft lockups
/// (85136bf22404 "bpf: Avoid soft lockup in __htab_map_lookup_and_delete_batch").
const BATCH: u32 = 4096;

/// Entries of a map as raw bytes: each key with its value, or with one value per possible CPU.
pub struct Entries {
    key_size: usize,
    value_size: usize,
    /// CPUs with a value of their own; `None` for maps with one value for all.
    cpus: Option<usize>,
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Entries {
    /// Every key with the bytes of its value on each CPU (one, unless the map is per CPU).
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Vec<&[u8]>)> {
        let stride = stride(self.value_size, self.cpus);
        let values = self.values.chunks_exact(stride * self.cpus.unwrap_or(1));
        self.keys.chunks_exact(self.key_size).zip(values).map(move |(key, value)| {
            (key, value.chunks_exact(stride).map(|one| &one[..self.value_size]).collect())
        })
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len() / self.key_size.max(1)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// The kernel pads the values of per-CPU maps to eight bytes.
fn stride(value_size: usize, cpus: Option<usize>) -> usize {
    if cpus.is_some() { value_size.next_multiple_of(8) } else { value_size }
}

/// Reads every entry that is in the map throughout the call. Entries that come or go meanwhile
/// may or may not be among them; none is returned twice unless it was deleted and made again.
///
/// # Errors
/// Fails when the kernel refuses.
pub fn read_all(map: &dyn MapCore) -> Result<Entries> {
    let cpus = match map.map_type() {
        MapType::PercpuHash | MapType::LruPercpuHash | MapType::PercpuArray => {
            Some(libbpf_rs::num_possible_cpus().context("counting CPUs")?)
        }
        _ => None,
    };
    let key_size = map.key_size() as usize;
    let value_size = map.value_size() as usize;
    ensure!(key_size > 0, "{:?} has no keys to read", map.name());
    let mut entries = Entries { key_size, value_size, cpus, keys: Vec::new(), values: Vec::new() };

    // Arrays of all kinds are small here, and per-CPU arrays have no batch operations on 5.10.
    if matches!(map.map_type(), MapType::Array | MapType::PercpuArray) {
        for index in 0..map.max_entries() {
            let key = index.to_ne_bytes();
            entries.keys.extend_from_slice(&key);
            entries.values.extend_from_slice(&array_value(map, &key, cpus)?);
        }
        return Ok(entries);
    }

    let value_stride = stride(value_size, cpus) * cpus.unwrap_or(1);
    let mut capacity = BATCH.min(map.max_entries().max(1));
    let mut token: Option<u32> = None;
    loop {
        let room = capacity as usize;
        let keys_before = entries.keys.len();
        let values_before = entries.values.len();
        entries.keys.resize(keys_before + room * key_size, 0);
        entries.values.resize(values_before + room * value_stride, 0);
        let mut count = capacity;
        let mut next = 0u32;
        // SAFETY: the key and value buffers have room for `count` entries as the kernel lays them
        // out; for hash maps the position token is a u32.
        let err = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                map.as_fd().as_raw_fd(),
                token.as_mut().map_or(std::ptr::null_mut(), |t| std::ptr::from_mut(t).cast()),
                (&raw mut next).cast(),
                entries.keys[keys_before..].as_mut_ptr().cast(),
                entries.values[values_before..].as_mut_ptr().cast(),
                &raw mut count,
                std::ptr::null(),
            )
        };
        let errno = if err == 0 { None } else { Some(Errno::from_raw(-err)) };
        let read = match errno {
            None | Some(Errno::ENOENT) => count as usize,
            // One bucket holds more entries than the batch has room for.
            Some(Errno::ENOSPC) => 0,
            Some(error) => bail!("reading map {:?}: {error}", map.name()),
        };
        entries.keys.truncate(keys_before + read * key_size);
        entries.values.truncate(values_before + read * value_stride);
        match errno {
            Some(Errno::ENOENT) => return Ok(entries),
            Some(Errno::ENOSPC) => {
                ensure!(capacity < 1 << 20, "a bucket of map {:?} does not end", map.name());
                capacity *= 2;
            }
            _ => token = Some(next),
        }
    }
}

fn array_value(map: &dyn MapCore, key: &[u8], cpus: Option<usize>) -> Result<Vec<u8>> {
    let missing = || format!("reading map {:?}", map.name());
    if cpus.is_none() {
        return map.lookup(key, MapFlags::ANY)?.with_context(missing);
    }
    let values = map.lookup_percpu(key, MapFlags::ANY)?.with_context(missing)?;
    let mut out = Vec::new();
    for mut value in values {
        value.resize(stride(value.len(), cpus), 0);
        out.append(&mut value);
    }
    Ok(out)
}

/// Reads a per-CPU map and folds each key's values into one.
///
/// # Errors
/// Fails when the kernel refuses, or when `K` and `V` are not what the map holds.
pub fn fold<K, V, T>(map: &dyn MapCore, add: impl Fn(&mut T, &V)) -> Result<HashMap<K, T>>
where
    K: Plain + Copy + Eq + Hash,
    V: Plain + Copy,
    T: Default,
{
    let entries = read_all(map)?;
    let mut folded: HashMap<K, T> = HashMap::with_capacity(entries.len());
    for (key, values) in entries.iter() {
        let total = folded.entry(copy::<K>(key)?).or_default();
        for value in values {
            add(total, &copy::<V>(value)?);
        }
    }
    Ok(folded)
}

/// Copies a plain struct out of bytes of any alignment.
///
/// # Errors
/// Fails when there are too few bytes.
pub fn copy<T: Plain + Copy>(bytes: &[u8]) -> Result<T> {
    ensure!(bytes.len() >= size_of::<T>(), "{} bytes for {}", bytes.len(), size_of::<T>());
    // SAFETY: enough bytes, and any bit pattern is a valid T because it is Plain.
    Ok(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
