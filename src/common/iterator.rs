// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Iterators: programs that the kernel runs for each thing of a kind (each open file, each entry of
//! a map) while somebody reads their output.

use std::io::ErrorKind;
use std::io::Read as _;

use anyhow::Context as _;
use anyhow::Result;
use libbpf_rs::Iter;
use libbpf_rs::Link;

/// What the kernel gives at a time, which is as much as it keeps for a reader.
const CHUNK: usize = 64 << 10;

/// Runs an iterator once, from its first thing to its last, and hands on what it wrote: whole
/// records of `size` bytes.
///
/// # Errors
/// Fails when the kernel refuses.
pub fn read(link: &Link, size: usize, mut on_record: impl FnMut(&[u8])) -> Result<()> {
    let mut iterator = Iter::new(link).context("starting an iterator")?;
    let mut chunk = vec![0; CHUNK];
    let mut kept = 0;
    loop {
        match iterator.read(&mut chunk[kept..]) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                let end = kept + read;
                let whole = end / size * size;
                chunk[..whole].chunks_exact(size).for_each(&mut on_record);
                chunk.copy_within(whole..end, 0);
                kept = end - whole;
            }
            // It has gone through a million things without a word, and goes on.
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("reading an iterator"),
        }
    }
}
