// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Log2 histograms: what the kernel side counts into (`bpf/histogram.h`), and how they look.

use std::collections::HashMap;
use std::hash::Hash;

use anyhow::Result;
use anyhow::ensure;
use libbpf_rs::MapCore;
use plain::Plain;

use crate::maps;
use crate::value::push_uint;

/// The unit of a histogram's slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its word in text.
    pub label: &'static str,
    /// How many JSON units (nanoseconds, bytes) it is.
    pub scale: u64,
}

/// Nanoseconds.
pub const NSECS: Unit = Unit { label: "nsecs", scale: 1 };
/// Microseconds.
pub const USECS: Unit = Unit { label: "usecs", scale: 1_000 };
/// Milliseconds.
pub const MSECS: Unit = Unit { label: "msecs", scale: 1_000_000 };
/// The unit of times under an option `--milliseconds`.
pub fn time_unit(milliseconds: bool) -> Unit {
    if milliseconds { MSECS } else { USECS }
}

/// Bytes.
pub const BYTES: Unit = Unit { label: "bytes", scale: 1 };
/// Units of 1,024 bytes.
pub const KBYTES: Unit = Unit { label: "Kbytes", scale: 1_024 };

/// A distribution over powers of two. Slot 0 counts the values 0 and 1, slot `i` those from `2^i`
/// to `2^(i+1) - 1`; the last slot of the kernel side takes everything larger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many values fell into each slot.
    pub slots: Vec<u64>,
    /// The sum of all values, in the unit of JSON (nanoseconds, bytes), not rounded to a slot.
    pub sum: u64,
}

impl Histogram {
    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.slots.iter().sum()
    }

    /// Adds another histogram, for example another CPU's part.
    pub fn add(&mut self, slots: &[u64], sum: u64) {
        if self.slots.len() < slots.len() {
            self.slots.resize(slots.len(), 0);
        }
        for (mine, theirs) in self.slots.iter_mut().zip(slots) {
            *mine += theirs;
        }
        self.sum = self.sum.wrapping_add(sum);
    }

    /// What has been counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let old = |i: usize| earlier.slots.get(i).copied().unwrap_or(0);
        Self {
            slots: self.slots.iter().enumerate().map(|(i, n)| n.saturating_sub(old(i))).collect(),
            sum: self.sum.wrapping_sub(earlier.sum),
        }
    }

    /// Average, total and count of one that is not empty, as a line with an empty one around it.
    pub fn summary(&self, unit: Unit) -> String {
        let (total, count, unit) = (self.sum / unit.scale, self.count(), unit.label);
        format!("\navg = {} {unit}, total: {total} {unit}, count: {count}\n", total / count.max(1))
    }

    fn used(&self) -> &[u64] {
        let used = self.slots.iter().rposition(|n| *n > 0).map_or(0, |last| last + 1);
        &self.slots[..used]
    }

    /// Appends the bars that every log2 tool of the field prints; nothing for an empty histogram.
    /// `label` is the unit, such as `usecs`.
    pub fn text(&self, out: &mut Vec<u8>, label: &str) {
        let used = self.used();
        let Some(largest) = used.iter().max().copied() else { return };
        // Wide numbers leave less room for the bars.
        let (indent, number, label_width, stars) =
            if used.len() > 33 { (15, 20, 29, 20) } else { (0, 10, 19, 40) };
        let mut line = format!("     {label:<label_width$} : count    distribution\n");
        for (i, count) in used.iter().enumerate() {
            let low = if i == 0 { 0 } else { 1u128 << i };
            let high = (1u128 << (i + 1)) - 1;
            let filled =
                usize::try_from(u128::from(*count) * stars / u128::from(largest)).unwrap_or(0);
            let bar =
                "*".repeat(filled) + &" ".repeat(usize::try_from(stars).unwrap_or(0) - filled);
            line.push_str(&format!(
                "{:indent$}{low:>number$} -> {high:<number$} : {count:<8} |{bar}|\n",
                ""
            ));
        }
        out.extend_from_slice(line.as_bytes());
    }

    /// Appends `[{"ge":…,"lt":…,"count":…},…]` from slot 0 to the highest used one. `scale` is how
    /// many JSON units (nanoseconds) one unit of the slots is.
    pub fn json_buckets(&self, out: &mut Vec<u8>, scale: u64) {
        out.push(b'[');
        for (i, count) in self.used().iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            let (ge, lt) = edges(i, scale);
            out.extend_from_slice(b"{\"ge\":");
            push_uint(out, ge);
            out.extend_from_slice(b",\"lt\":");
            push_uint(out, lt);
            out.extend_from_slice(b",\"count\":");
            push_uint(out, *count);
            out.push(b'}');
        }
        out.push(b']');
    }

    /// The used slots as (from, below, count), in JSON units.
    pub fn buckets(&self, scale: u64) -> impl Iterator<Item = (u64, u64, u64)> {
        self.used().iter().enumerate().map(move |(i, count)| {
            let (ge, lt) = edges(i, scale);
            (ge, lt, *count)
        })
    }
}

fn edges(slot: usize, scale: u64) -> (u64, u64) {
    let at =
        |power: usize| 1u64.checked_shl(u32::try_from(power).unwrap_or(64)).unwrap_or(u64::MAX);
    let ge = if slot == 0 { 0 } else { at(slot).saturating_mul(scale) };
    (ge, at(slot + 1).saturating_mul(scale))
}

/// Reads every histogram of a map that `HISTOGRAMS()` of `bpf/histogram.h` made, all CPUs added up,
/// by what `key` makes of the kernel side's key.
///
/// # Errors
/// Fails when the kernel refuses, or when the map holds something else.
pub fn read<C, K>(map: &dyn MapCore, key: impl Fn(&C) -> K) -> Result<HashMap<K, Histogram>>
where
    C: Plain + Copy,
    K: Eq + Hash,
{
    let entries = maps::read_all(map)?;
    let mut histograms: HashMap<K, Histogram> = HashMap::with_capacity(entries.len());
    for (kernel_key, values) in entries.iter() {
        let histogram = histograms.entry(key(&maps::copy::<C>(kernel_key)?)).or_default();
        for value in values {
            let words: Vec<u64> = value
                .chunks_exact(8)
                .map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()))
                .collect();
            ensure!(words.len() > 1, "map {:?} holds no histograms", map.name());
            histogram.add(&words[1..], words[0]);
        }
    }
    Ok(histograms)
}

/// Turns cumulative histograms into those of an interval: nothing is ever reset in the kernel, so
/// nothing is lost between reading and resetting.
#[derive(Debug)]
pub struct Intervals<K> {
    seen: HashMap<K, Histogram>,
}

impl<K> Default for Intervals<K> {
    fn default() -> Self {
        Self { seen: HashMap::new() }
    }
}

impl<K: Eq + Hash + Clone + Ord> Intervals<K> {
    /// What each key has counted since the last call, without keys that counted nothing, by key.
    pub fn next(&mut self, now: HashMap<K, Histogram>) -> Vec<(K, Histogram)> {
        let mut out: Vec<(K, Histogram)> = now
            .iter()
            .map(|(key, total)| {
                let part = match self.seen.get(key) {
                    Some(earlier) => total.since(earlier),
                    None => total.clone(),
                };
                (key.clone(), part)
            })
            .filter(|(_, part)| part.count() > 0)
            .collect();
        out.sort_by(|a, b| a.0.cmp(&b.0));
        self.seen = now;
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_familiar_bars() {
        let histogram = Histogram { slots: vec![0, 2, 4, 0, 1, 0], sum: 30 };
        let mut out = Vec::new();
        histogram.text(&mut out, "usecs");
        let text = String::from_utf8(out).expect("ASCII");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "     usecs               : count    distribution");
        let row = |low, high, count: u64, stars: usize| {
            format!("{low:>10} -> {high:<10} : {count:<8} |{:<40}|", "*".repeat(stars))
        };
        assert_eq!(lines[1], row(0, 1, 0, 0));
        assert_eq!(lines[2], row(2, 3, 2, 20));
        assert_eq!(lines[3], row(4, 7, 4, 40));
        assert_eq!(lines[5], row(16, 31, 1, 10));
        assert_eq!(lines.len(), 6);
        let mut empty = Vec::new();
        Histogram::default().text(&mut empty, "usecs");
        assert!(empty.is_empty());
    }

    #[test]
    fn wide_histograms_change_their_layout() {
        let mut slots = vec![0; 40];
        slots[35] = 1;
        let mut out = Vec::new();
        Histogram { slots, sum: 0 }.text(&mut out, "nsecs");
        let text = String::from_utf8(out).expect("ASCII");
        assert!(text.starts_with("     nsecs                         : count"));
        assert!(text.lines().all(|line| line.chars().count() <= 100));
        assert_eq!(text.lines().count(), 37);
    }

    #[test]
    fn buckets_are_scaled_and_cover_everything() {
        let histogram = Histogram { slots: vec![1, 0, 3], sum: 9 };
        let buckets: Vec<_> = histogram.buckets(1000).collect();
        assert_eq!(buckets, [(0, 2000, 1), (2000, 4000, 0), (4000, 8000, 3)]);
        assert_eq!(edges(63, 1), (1 << 63, u64::MAX));
    }

    #[test]
    fn intervals_are_differences() {
        let mut intervals = Intervals::default();
        let hist = |n| Histogram { slots: vec![n], sum: n };
        let first = intervals.next(HashMap::from([("a", hist(2)), ("b", hist(1))]));
        assert_eq!(first, [("a", hist(2)), ("b", hist(1))]);
        let second = intervals.next(HashMap::from([("a", hist(5)), ("b", hist(1))]));
        assert_eq!(second, [("a", hist(3))]);
    }
}
