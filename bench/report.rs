// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Figures as tables, and as a JSON object a line.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::Value;
use serde_json::json;

use crate::Figures;
use crate::Pass;
use crate::UNRELATED;
use crate::rows::Row;
use crate::rows::Shown;
use crate::workloads::SYSTEM_CALLS;

/// The middle one of each figure. What was shown is the least.
pub fn median(all: &[Figures]) -> Figures {
    let of = |figure: &dyn Fn(&Figures) -> u64| {
        let mut values: Vec<u64> = all.iter().map(figure).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    };
    let pass = |get: fn(&Figures) -> Option<Pass>| {
        let first = all.first().and_then(get)?;
        let least = all.iter().filter_map(|figures| get(figures)?.shown).min();
        Some(Pass {
            operations: first.operations,
            workload_ns: of(&|figures| get(figures).map_or(0, |pass| pass.workload_ns)),
            tool_ns: of(&|figures| get(figures).map_or(0, |pass| pass.tool_ns)),
            shown: least,
        })
    };
    Figures {
        paced: pass(|figures| figures.paced),
        burst: pass(|figures| figures.burst),
        start_ns: of(&|figures| figures.start_ns),
        stop_ns: of(&|figures| figures.stop_ns),
        report_ns: of(&|figures| figures.report_ns),
        anonymous_bytes: of(&|figures| figures.anonymous_bytes),
        map_bytes: of(&|figures| figures.map_bytes),
        wakeups: of(&|figures| figures.wakeups),
        unrelated_ns: of(&|figures| figures.unrelated_ns),
    }
}

/// One side's line of the second table.
struct Itself {
    tool: &'static str,
    workload: &'static str,
    by: String,
    figures: Figures,
    unrelated: Option<i64>,
}

/// See the module.
#[derive(Default)]
pub struct Report {
    /// The peer's costs in the row that is under way: workload, pace, cost.
    peer: Vec<(&'static str, &'static str, &'static str, i64)>,
    itself: Vec<Itself>,
    cannot: Vec<String>,
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Nanoseconds for each operation, also below 0: noise is not cut off.
fn each(ns: i64, operations: u32) -> i64 {
    let operations = i64::from(operations);
    (ns + operations / 2).div_euclid(operations)
}

fn emit(value: &Value) {
    println!("{value}");
}

impl Report {
    /// The header of the first table.
    pub fn begin(&mut self) {
        println!(
            "{:<14} {:<14} {:<5} {:<8} {:>9} {:>9} {:>9} {:>6} {:>6} {:>15}",
            "tool",
            "workload",
            "pace",
            "by",
            "alone ns",
            "cost ns",
            "of it in",
            "ratio",
            "budget",
            "shown"
        );
    }

    /// Something that cannot be measured here.
    pub fn cannot(&mut self, row: &Row, by: &str, error: &anyhow::Error) {
        let sentence = format!("{}, {}, {by}: {error:#}", row.tool, row.workload.name);
        emit(&json!({
            "type": "cannot", "tool": row.tool, "workload": row.workload.name, "by": by,
            "why": format!("{error:#}"),
        }));
        self.cannot.push(sentence);
    }

    /// What one side costs in a row.
    pub fn add(&mut self, row: &Row, by: &str, base: &Figures, figures: &Figures) {
        for (pace, alone, pass) in
            [("paced", base.paced, figures.paced), ("burst", base.burst, figures.burst)]
        {
            if let (Some(alone), Some(pass)) = (alone, pass) {
                self.pass(row, by, pace, &alone, &pass);
            }
        }
        let unrelated = (row.workload.name != SYSTEM_CALLS.name)
            .then(|| each(signed(figures.unrelated_ns) - signed(base.unrelated_ns), UNRELATED));
        emit(&json!({
            "type": "itself", "tool": row.tool, "workload": row.workload.name, "by": by,
            "start_ns": figures.start_ns, "stop_ns": figures.stop_ns,
            "report_ns": figures.report_ns, "anonymous_bytes": figures.anonymous_bytes,
            "map_bytes": figures.map_bytes, "idle_wakeups": figures.wakeups,
            "getppid_ns": unrelated,
        }));
        self.itself.push(Itself {
            tool: row.tool,
            workload: row.workload.name,
            by: by.into(),
            figures: *figures,
            unrelated,
        });
    }

    fn pass(&mut self, row: &Row, by: &str, pace: &'static str, alone: &Pass, pass: &Pass) {
        let cost = each(
            signed(pass.workload_ns) + signed(pass.tool_ns) - signed(alone.workload_ns),
            pass.operations,
        );
        let tool = each(signed(pass.tool_ns), pass.operations);
        let alone = each(signed(alone.workload_ns), pass.operations);
        let place = (row.tool, row.workload.name, pace);
        let mut ratio = None;
        if by == "peer" {
            self.peer.push((place.0, place.1, place.2, cost));
        } else {
            let peer =
                self.peer.iter().find(|(tool, workload, of, _)| (*tool, *workload, *of) == place);
            #[expect(clippy::cast_precision_loss, reason = "a ratio of two decimals")]
            let of = peer.filter(|peer| peer.3 > 0).map(|peer| cost as f64 / peer.3 as f64);
            ratio = of;
        }
        // Bursts of streams show what is lost, and who loses events does not pay for them.
        let is_judged = pace == "paced" || !matches!(row.shown, Shown::Lines(_));
        let budget = is_judged.then(|| f64::from(row.budget) / 100.0);
        let shown = pass.shown.map_or("-".into(), |(shown, made)| format!("{shown}/{made}"));
        println!(
            "{:<14} {:<14} {pace:<5} {by:<8} {alone:>9} {cost:>9} {tool:>9} {:>6} {:>6} {shown:>15}",
            row.tool,
            row.workload.name,
            ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
            ratio.and(budget).map_or("-".into(), |budget| format!("{budget:.2}")),
        );
        emit(&json!({
            "type": "cost", "tool": row.tool, "workload": row.workload.name, "pace": pace,
            "by": by, "operations": pass.operations, "alone_ns": alone, "cost_ns": cost,
            "tool_ns": tool, "ratio": ratio, "budget": budget,
            "shown": pass.shown.map(|(shown, _)| shown), "made": pass.shown.map(|(_, made)| made),
        }));
    }

    /// The second table, and what could not be measured.
    pub fn end(&self) {
        println!();
        println!(
            "{:<14} {:<14} {:<8} {:>8} {:>8} {:>9} {:>10} {:>11} {:>8} {:>10}",
            "tool",
            "workload",
            "by",
            "start ms",
            "stop ms",
            "report ms",
            "RssAnon kB",
            "maps kB",
            "wake-ups",
            "getppid ns"
        );
        for itself in &self.itself {
            let Itself { tool, workload, by, figures, unrelated } = itself;
            println!(
                "{tool:<14} {workload:<14} {by:<8} {:>8} {:>8} {:>9} {:>10} {:>11} {:>8} {:>10}",
                figures.start_ns / 1_000_000,
                figures.stop_ns / 1_000_000,
                figures.report_ns / 1_000_000,
                figures.anonymous_bytes >> 10,
                figures.map_bytes >> 10,
                figures.wakeups,
                unrelated.map_or("-".into(), |ns| format!("{ns:+}")),
            );
        }
        if !self.cannot.is_empty() {
            println!();
        }
        for sentence in &self.cannot {
            println!("not measured: {sentence}");
        }
    }
}

/// What the suites take on disk: our one binary, and each of the peer's programs once, without the
/// libraries that they share.
pub fn sizes(ours: &Path, peer: &Path) {
    let ours = fs::metadata(ours).map_or(0, |metadata| metadata.len());
    let mut seen = BTreeSet::new();
    let mut theirs = 0;
    for entry in fs::read_dir(peer.join("../root/usr/sbin")).into_iter().flatten().flatten() {
        // Not of what a link points to: that is an alias.
        if let Ok(metadata) = entry.metadata()
            && metadata.is_file()
            && seen.insert(metadata.ino())
        {
            theirs += metadata.len();
        }
    }
    println!();
    println!(
        "on disk: bpfscope {} kB, peer {} kB in {} programs",
        ours >> 10,
        theirs >> 10,
        seen.len()
    );
    emit(&json!({
        "type": "size", "ours_bytes": ours, "peer_bytes": theirs, "peer_programs": seen.len(),
    }));
}
