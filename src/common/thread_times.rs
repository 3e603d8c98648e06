// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Times of threads as histograms: of all together, or of each process, thread, PID namespace,
//! cgroup or container. The kernel side is `bpf/thread_times.h`.

use std::collections::BTreeMap;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::ensure;
use libbpf_rs::MapCore;
use libbpf_rs::OpenObject;

use crate::escape;
use crate::escape::until_nul;
use crate::globals::set_constant;
use crate::histogram;
use crate::histogram::Histogram;
use crate::histogram::Intervals;
use crate::histogram::Unit;
use crate::maps;
use crate::output::Output;
use crate::pidns;
use crate::record::Kind;
use crate::shared::TimesBy;
use crate::swapped::Swapped;
use crate::value::Type;
use crate::value::Value;

/// Bytes of a command name, with its NUL.
const COMM: usize = 16;

/// What is told apart.
#[derive(clap::Args)]
#[group(multiple = false)]
// Each is a switch of its own on the command line.
#[allow(clippy::struct_excessive_bools)]
pub struct By {
    /// One histogram for each process
    #[arg(short = 'P', long)]
    pids: bool,
    /// One histogram for each thread
    #[arg(short = 'L', long)]
    tids: bool,
    /// One histogram for each PID namespace
    #[arg(long)]
    pidnss: bool,
    /// One histogram for each cgroup (v2)
    #[arg(long)]
    by_cgroup: bool,
    /// One histogram for each container
    #[arg(long)]
    by_container: bool,
}

impl By {
    fn kernel_side(&self) -> TimesBy {
        if self.pids {
            TimesBy::TIMES_BY_PID
        } else if self.tids {
            TimesBy::TIMES_BY_TID
        } else if self.pidnss {
            TimesBy::TIMES_BY_PIDNS
        } else if self.by_cgroup || self.by_container {
            TimesBy::TIMES_BY_CGROUP
        } else {
            TimesBy::TIMES_OF_ALL
        }
    }

    /// Whether names of cgroups or containers are shown.
    pub fn names_cgroups(&self) -> bool {
        self.by_cgroup || self.by_container
    }

    /// Tells the kernel side, before the load.
    ///
    /// # Errors
    /// Fails when the object has nothing of this.
    pub fn configure(&self, open: &mut OpenObject, unit: Unit) -> Result<()> {
        let by = self.kernel_side();
        let known = set_constant(open, "times_by", &by.0.to_ne_bytes())?
            && set_constant(open, "times_slot_ns", &unit.scale.to_ne_bytes())?;
        ensure!(known, "the object counts no times of threads");
        for mut map in open.maps_mut() {
            if map.name() == "times_first" || map.name() == "times_now" {
                map.set_autocreate(by != TimesBy::TIMES_OF_ALL)?;
            }
        }
        Ok(())
    }
}

/// A kind of histogram with the fields that say whose it is.
pub fn kind(name: &'static str) -> Kind {
    Kind::histogram(name)
        .field("pid", Type::Uint, "Process id, 0 = idle; null without --pids.")
        .field("tid", Type::Uint, "Thread id, 0 = idle; null without --tids.")
        .field(
            "pidns",
            Type::Id,
            "Inode of the PID namespace; null without --pidnss, and where the process was gone.",
        )
        .field(
            "comm",
            Type::String,
            "Command name of the process, of the thread, or of the first process of the PID \
             namespace; null without --pids, --tids and --pidnss.",
        )
        .field("cgroup_id", Type::Id, "Id of the cgroup (v2); null without --by-cgroup.")
        .field(
            "cgroup",
            Type::String,
            "Path of the cgroup below the hierarchy's root; null without --by-cgroup, and when it \
             is gone.",
        )
        .field(
            "container",
            Type::String,
            "Name of the container, or the first 12 digits of its id where no file tells the name; \
             null without --by-container, and for what is in no container.",
        )
        .field(
            "container_id",
            Type::String,
            "Id of the container, or its name if it has no id; null like container.",
        )
}

/// Of whom the times of one histogram are.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Whose {
    id: u64,
    comm: Vec<u8>,
}

/// The histograms, interval by interval.
pub struct Times<'a> {
    by: &'a By,
    all: &'a dyn MapCore,
    intervals: Intervals<u32>,
    swapped: Swapped<'a>,
}

impl<'a> Times<'a> {
    /// The maps are `times_of_all`, `times_now` and `times_first`.
    pub fn new(
        by: &'a By,
        all: &'a dyn MapCore,
        now: &'a dyn MapCore,
        first: &'a dyn MapCore,
    ) -> Self {
        let swapped = Swapped::new(now, first);
        Self { by, all, intervals: Intervals::default(), swapped }
    }

    /// Shows the interval that has just ended. Returns the sum of all histograms that are shown.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub fn show(&mut self, out: &mut Output, kind: usize, unit: Unit) -> Result<Histogram> {
        let mut sum = Histogram::default();
        if self.by.kernel_side() == TimesBy::TIMES_OF_ALL {
            let all = histogram::read(self.all, |index: &u32| *index)?;
            for (_, all) in self.intervals.next(all) {
                if out.histogram(kind, None, &[const { Value::Null }; 8], &all, unit) {
                    sum = all;
                }
            }
            return Ok(sum);
        }
        let mut rows = BTreeMap::new();
        for (key, values) in self.swapped.end_interval()?.iter() {
            let (histogram, comm) = read(values.first().context("a time without a value")?)?;
            // Just made on some CPU, and nothing added yet.
            if histogram.count() > 0 {
                rows.insert(Whose { id: maps::copy(key)?, comm }, histogram);
            }
        }
        if self.by.by_container {
            return Ok(by_container(out, kind, &rows, unit));
        }
        for (whose, histogram) in &rows {
            if self.show_one(out, kind, whose, histogram, unit) {
                sum.add(&histogram.slots, histogram.sum);
            }
        }
        Ok(sum)
    }

    /// Returns whether it was shown.
    fn show_one(
        &self,
        out: &mut Output,
        kind: usize,
        whose: &Whose,
        of: &Histogram,
        unit: Unit,
    ) -> bool {
        // Above the number of a thread stands the CPU, for idle ones.
        let id = if self.by.tids { whose.id & u64::from(u32::MAX) } else { whose.id };
        let shown = escape::printable(&whose.comm);
        let mut key = [const { Value::Null }; 8];
        if self.by.by_cgroup {
            let (path, _) = out.cgroup(id);
            let shown = path.as_deref().map_or("?".into(), escape::printable);
            key[4] = Value::Id(id);
            key[5] = path.as_deref().map_or(Value::Null, Value::Bytes);
            return out.histogram(kind, Some(&format!("\ncgroup = {shown}")), &key, of, unit);
        }
        key[3] = Value::Bytes(&whose.comm);
        let number = || u32::try_from(id).map_or_else(|_| "?".into(), pidns::shown);
        let title = if self.by.pids {
            key[0] = Value::Uint(id);
            format!("\npid = {} {shown}", number())
        } else if self.by.tids {
            key[1] = Value::Uint(id);
            format!("\ntid = {} {shown}", number())
        } else if id == 0 {
            key[3] = Value::Null;
            "\npidns = ?".into()
        } else {
            key[2] = Value::Id(id);
            format!("\npidns = {id} {shown}")
        };
        out.histogram(kind, Some(&title), &key, of, unit)
    }
}

/// `struct times`.
fn read(value: &[u8]) -> Result<(Histogram, Vec<u8>)> {
    let (words, comm) =
        value.split_at_checked(value.len().saturating_sub(COMM)).unwrap_or_default();
    let words: Vec<u64> = words
        .chunks_exact(8)
        .map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()))
        .collect();
    let (sum, slots) = words.split_first().context("a time without a sum")?;
    Ok((Histogram { slots: slots.to_vec(), sum: *sum }, until_nul(comm).to_vec()))
}

/// A container has a cgroup of its own and many below it. Returns the sum of what is shown.
fn by_container(
    out: &mut Output,
    kind: usize,
    rows: &BTreeMap<Whose, Histogram>,
    unit: Unit,
) -> Histogram {
    let mut shown = Histogram::default();
    let mut sums: BTreeMap<Option<(String, String)>, Histogram> = BTreeMap::new();
    for (whose, histogram) in rows {
        let container = out.cgroup(whose.id).1.container;
        let container = container.map(|of| (of.shown().to_string(), of.id.clone()));
        sums.entry(container).or_default().add(&histogram.slots, histogram.sum);
    }
    for (container, histogram) in &sums {
        let mut key = [const { Value::Null }; 8];
        let mut title = "\ncontainer = -".to_string();
        if let Some((shown, id)) = container {
            title = format!("\ncontainer = {}", escape::printable(shown.as_bytes()));
            key[6] = Value::Bytes(shown.as_bytes());
            key[7] = Value::Bytes(id.as_bytes());
        }
        if out.histogram(kind, Some(&title), &key, histogram, unit) {
            shown.add(&histogram.slots, histogram.sum);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_the_kernel_side() {
        let mut bytes = Vec::new();
        for word in [70u64, 1, 0, 2] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(b"name\0after it\0..");
        let (histogram, comm) = read(&bytes).expect("a value");
        assert_eq!((histogram.slots, histogram.sum), (vec![1, 0, 2], 70));
        assert_eq!(comm, b"name");
        assert!(read(&[0; 10]).is_err());
    }
}
