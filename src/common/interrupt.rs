// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Tells the kernel side where each CPU counts the interrupts that it serves: `bpf/interrupt.h`.

use std::fs::File;
use std::io::BufRead as _;
use std::io::BufReader;

use anyhow::Result;
use libbpf_rs::OpenObject;

use crate::globals::set_constant;

/// The offsets of the CPUs' own memory, and the word in it, which has had two names.
const OFFSETS: &str = "__per_cpu_offset";
const WORDS: [&str; 2] = ["__preempt_count", "pcpu_hot"];

/// Sets the constants; before the load. Returns whether the kernel side can tell: not where the
/// kernel hides its addresses.
///
/// # Errors
/// Fails when the object is not made with `bpf/interrupt.h`.
pub fn configure(open: &mut OpenObject) -> Result<bool> {
    // There each task has a word of its own.
    if cfg!(target_arch = "aarch64") {
        return Ok(true);
    }
    let Some((offsets, word)) = File::open("/proc/kallsyms")
        .ok()
        .and_then(|file| find(BufReader::with_capacity(1 << 16, file).split(b'\n').flatten()))
    else {
        return Ok(false);
    };
    let known = set_constant(open, "interrupt_cpu_offsets", &offsets.to_ne_bytes())?
        && set_constant(open, "interrupt_word", &word.to_ne_bytes())?;
    anyhow::ensure!(known, "the object does not ask for interrupts");
    Ok(true)
}

/// Both addresses, from the lines of /proc/kallsyms.
fn find(lines: impl Iterator<Item = Vec<u8>>) -> Option<(u64, u64)> {
    let (mut offsets, mut word) = (None, None);
    for line in lines {
        let Ok(line) = std::str::from_utf8(&line) else { continue };
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some(_), Some(name), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let address = || u64::from_str_radix(address, 16).ok();
        if name == OFFSETS {
            // Hidden addresses are zeros.
            offsets = address().filter(|address| *address != 0);
        } else if WORDS.contains(&name) {
            // This one may be 0 or close to it: an offset in the memory of a CPU.
            word = address();
        }
        if offsets.is_some() && word.is_some() {
            break;
        }
    }
    offsets.zip(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_are_found_or_none() {
        let find = |text: &str| find(text.lines().map(|line| line.as_bytes().to_vec()));
        let text = "0000000000021fc0 A pcpu_hot\nffffffff82a1c400 D __per_cpu_offset\n";
        assert_eq!(find(text), Some((0xffff_ffff_82a1_c400, 0x21fc0)));
        assert_eq!(find("0 A __preempt_count\n0 D __per_cpu_offset\n"), None);
        assert_eq!(find("ffffffff82a1c400 D __per_cpu_offset\n"), None);
        assert_eq!(find("1 D __per_cpu_offset\t[mod]\n2 D pcpu_hot\n"), None);
    }
}
