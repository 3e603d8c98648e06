// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Tables: the rows of one report, sorted by a field and cut to a number.
//!
//! A tool that declares [`crate::tool::Tool::TABLE`] gives its rows to
//! [`crate::output::Output::row`] in any order, and `report_done()` shows them: on a terminal as a
//! screen that is drawn anew at each report, elsewhere as plain tables one after another.

use std::cmp::Ordering;
use std::net::IpAddr;

use anyhow::Result;

use crate::error::usage;
use crate::record::Class;
use crate::record::Kind;
use crate::value::Value;

/// A tool's tables, as far as the command line has to know: see
/// [`crate::tool::Tool::TABLE`].
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// What `--sort` is unless given: one of `sorts` or the name of a field.
    pub sort: &'static str,
    /// Upstream's own names for `--sort`, each with the fields whose sum it stands for.
    pub sorts: &'static [(&'static str, &'static [&'static str])],
    /// What `--rows` is unless given, where plain tables are printed. A screen has as many as fit,
    /// and JSON and CSV have all.
    pub rows: usize,
    /// Whether the time and the load average stand above each table.
    pub summary: bool,
    /// Whether the rows of each report follow those of the last one under the same header, as
    /// upstream prints them, and are never drawn over: there is no `--no-clear`.
    pub runs_on: bool,
    /// Upstream's long names of the options: `("no-clear", "noclear")`.
    pub names: &'static [(&'static str, &'static str)],
}

impl Table {
    /// A table that is sorted by `sort`, of 20 rows, under the time and the load average.
    pub const fn by(sort: &'static str) -> Self {
        Self { sort, sorts: &[], rows: 20, summary: true, runs_on: false, names: &[] }
    }

    /// All rows of each report below those of the last, sorted by `sort`.
    pub const fn running_on(sort: &'static str) -> Self {
        Self { rows: usize::MAX, summary: false, runs_on: true, ..Self::by(sort) }
    }
}

/// What the user chose about tables; [`crate::tool::Tool::check`] may change it.
#[derive(Clone, Debug)]
pub struct TableChoice {
    /// What the tool declares; `sort`, `rows` and `summary` may depend on its options.
    pub table: Table,
    /// `--sort`.
    pub sort: Option<String>,
    /// `--rows`.
    pub rows: Option<usize>,
    /// Whether a terminal shows one table at its top instead of one after another; not with
    /// `--no-clear`.
    pub clear: bool,
}

impl TableChoice {
    /// The fields of `kind` whose sum decides its rows' order; `None` when it has not all of them.
    fn fields(&self, kind: &Kind) -> Option<Vec<usize>> {
        let name = self.sort.as_deref().unwrap_or(self.table.sort);
        let named = self.table.sorts.iter().find(|(known, _)| *known == name);
        let index = |name: &str| kind.fields.iter().position(|field| field.name == name);
        match named {
            Some((_, fields)) => fields.iter().map(|field| index(field)).collect(),
            None => Some(vec![index(name)?]),
        }
    }
}

/// What rows are sorted by: numbers from the largest, texts from the smallest, and what could not
/// be read last.
#[derive(Debug, PartialEq, Eq)]
enum Key {
    Number(i128),
    Text(Vec<u8>),
    Missing,
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Number(a), Self::Number(b)) => b.cmp(a),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (a, b) => a.rank().cmp(&b.rank()),
        }
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Key {
    fn rank(&self) -> u8 {
        match self {
            Self::Number(_) => 0,
            Self::Text(_) => 1,
            Self::Missing => 2,
        }
    }

    fn of(value: &Value<'_>) -> Self {
        match *value {
            Value::Null | Value::Stack(_) => Self::Missing,
            Value::Bool(yes) => Self::Number(yes.into()),
            Value::Int(n) => Self::Number(n.into()),
            Value::Uint(n) | Value::Id(n) | Value::Flags(_, n) | Value::FlagNames(_, n) => {
                Self::Number(n.into())
            }
            Value::Errno(n) => Self::Number(i128::from(n).abs()),
            Value::Ip(IpAddr::V4(ip)) => Self::Text(ip.octets().to_vec()),
            Value::Ip(IpAddr::V6(ip)) => Self::Text(ip.octets().to_vec()),
            Value::Name(None, raw) => Self::Text(raw.to_string().into_bytes()),
            Value::Str(text) | Value::Name(Some(text), _) => {
                Self::Text(text.to_ascii_lowercase().into_bytes())
            }
            Value::Bytes(bytes) | Value::Cut(bytes) | Value::List(bytes, _) => {
                Self::Text(bytes.to_ascii_lowercase())
            }
        }
    }

    /// The sum of several values; of those that are numbers.
    fn sum(values: &[Value<'_>], fields: &[usize]) -> Self {
        if let [one] = fields {
            return Self::of(&values[*one]);
        }
        let numbers: Vec<i128> = fields
            .iter()
            .filter_map(|field| match Self::of(&values[*field]) {
                Self::Number(n) => Some(n),
                _ => None,
            })
            .collect();
        if numbers.is_empty() { Self::Missing } else { Self::Number(numbers.iter().sum()) }
    }
}

/// One row, as it will be printed.
#[derive(Debug)]
struct Row {
    kind: usize,
    key: Key,
    text: Vec<u8>,
}

/// The rows of a report while they come, and the report that was shown last.
pub(crate) struct Report {
    choice: TableChoice,
    /// For each kind of the tool, the fields that its rows are sorted by.
    fields: Vec<Option<Vec<usize>>>,
    /// The kind whose header stands above an empty table.
    first: Option<usize>,
    rows: Vec<Row>,
    /// Lines that the tool put above the table.
    lines: Vec<String>,
    summary: Option<String>,
    /// Whether it is complete: what is added next begins another.
    closed: bool,
}

/// A part of a table: the rows of one kind, below that kind's header.
pub(crate) struct Part<'a> {
    /// The kind.
    pub kind: usize,
    /// Its rows, each with its newline.
    pub rows: Vec<&'a [u8]>,
}

impl Report {
    /// Tables of these kinds.
    ///
    /// # Errors
    /// A usage error when no table has what is to be sorted by.
    pub fn new(choice: &TableChoice, kinds: &[Kind]) -> Result<Self> {
        let tables = || kinds.iter().filter(|kind| kind.class == Class::Row);
        if tables().all(|kind| choice.fields(kind).is_none()) {
            let names: Vec<&str> = choice.table.sorts.iter().map(|(name, _)| *name).collect();
            let mut names = names;
            for field in tables().flat_map(|kind| &kind.fields) {
                if !names.contains(&field.name) {
                    names.push(field.name);
                }
            }
            let name = choice.sort.as_deref().unwrap_or(choice.table.sort);
            let names = names.join(", ");
            return Err(usage(format!("--sort: there is no '{name}' here; there are {names}")));
        }
        Ok(Self {
            fields: kinds.iter().map(|kind| choice.fields(kind)).collect(),
            first: kinds.iter().position(|kind| kind.class == Class::Row),
            choice: choice.clone(),
            rows: Vec::new(),
            lines: Vec::new(),
            summary: None,
            closed: false,
        })
    }

    /// Forgets a report that is complete.
    fn begin(&mut self) {
        if std::mem::take(&mut self.closed) {
            self.rows.clear();
            self.lines.clear();
        }
    }

    /// Adds a row; `text` is what will be printed of it.
    pub fn add(&mut self, kind: usize, values: &[Value<'_>], text: Vec<u8>) {
        self.begin();
        let key = match &self.fields[kind] {
            Some(fields) => Key::sum(values, fields),
            None => Key::Missing,
        };
        self.rows.push(Row { kind, key, text });
    }

    /// Adds a line above the table.
    pub fn add_line(&mut self, text: &str) {
        self.begin();
        self.lines.push(text.to_string());
    }

    /// All rows are there: brings them into order. `time` and `load` (the load average, where it is
    /// known) are for the line above.
    pub fn close(&mut self, time: &str, load: Option<&str>) {
        self.begin();
        self.closed = true;
        self.summary = self.choice.table.summary.then(|| {
            load.map_or_else(|| time.into(), |load| format!("{time} loadavg: {}", load.trim_end()))
        });
        // What is equal has the same order in each report.
        self.rows
            .sort_unstable_by(|a, b| (&a.key, a.kind, &a.text).cmp(&(&b.key, b.kind, &b.text)));
    }

    /// The lines above the table.
    pub fn head(&self) -> impl Iterator<Item = &str> {
        let gap = self.summary.is_some().then_some("");
        self.summary.as_deref().into_iter().chain(gap).chain(self.lines.iter().map(String::as_str))
    }

    /// How many rows a plain table has.
    pub fn plain_rows(&self) -> usize {
        self.choice.rows.unwrap_or(self.choice.table.rows)
    }

    /// How many rows JSON and CSV have: as many as there are unless the user wants fewer.
    pub fn data_rows(&self) -> usize {
        self.choice.rows.unwrap_or(usize::MAX)
    }

    /// How many rows fit on a screen of `height` lines, the last of which stays free.
    pub fn screen_rows(&self, height: usize) -> usize {
        let mut kinds: Vec<usize> = self.rows.iter().map(|row| row.kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        // A header each, and an empty line between two.
        let headers = (2 * kinds.len()).saturating_sub(1).max(1);
        let fit = height.saturating_sub(1 + self.head().count() + headers);
        fit.min(self.choice.rows.unwrap_or(usize::MAX))
    }

    /// Whether a terminal is to show one table at its top.
    pub fn clears(&self) -> bool {
        self.choice.clear && !self.runs_on()
    }

    /// Whether rows follow those of the last report without a header of their own.
    pub fn runs_on(&self) -> bool {
        self.choice.table.runs_on
    }

    /// The first `rows` of all, by kind: an empty table if there are none.
    pub fn parts(&self, rows: usize) -> Vec<Part<'_>> {
        let shown = &self.rows[..rows.min(self.rows.len())];
        let mut parts: Vec<Part<'_>> = (0..self.fields.len())
            .map(|kind| {
                let of_kind = shown.iter().filter(|row| row.kind == kind);
                Part { kind, rows: of_kind.map(|row| row.text.as_slice()).collect() }
            })
            .collect();
        parts.retain(|part| !part.rows.is_empty());
        if let (true, Some(kind)) = (parts.is_empty(), self.first) {
            parts.push(Part { kind, rows: Vec::new() });
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Type;

    fn kinds() -> Vec<Kind> {
        let kind = |name| {
            Kind::row(name).field("comm", Type::String, "").field("reads", Type::Uint, "").field(
                "writes",
                Type::Uint,
                "",
            )
        };
        vec![Kind::event("e"), kind("four"), kind("six").field("only_six", Type::Uint, "")]
    }

    fn choice(sort: Option<&str>, rows: Option<usize>) -> TableChoice {
        let table = Table { sorts: &[("all", &["reads", "writes"])], ..Table::by("all") };
        TableChoice { table, sort: sort.map(String::from), rows, clear: true }
    }

    fn report(choice: &TableChoice) -> Report {
        let mut report = Report::new(choice, &kinds()).expect("valid");
        let mut add = |kind, comm: &str, reads, writes| {
            let mut values = vec![Value::Bytes(comm.as_bytes()), reads, writes];
            if kind == 2 {
                values.push(Value::Null);
            }
            report.add(kind, &values, format!("{comm}\n").into_bytes());
        };
        add(1, "b", Value::Uint(1), Value::Uint(u64::MAX));
        add(2, "C", Value::Uint(9), Value::Uint(1));
        add(1, "unread", Value::Null, Value::Null);
        add(1, "a", Value::Uint(2), Value::Uint(2));
        report.close("12:00:00", Some("0.1 0.2 0.3"));
        report
    }

    fn shown(report: &Report, rows: usize) -> String {
        let text = |part: &Part<'_>| part.rows.concat();
        let parts = report.parts(rows).iter().map(text).collect::<Vec<_>>().join(&b"--\n"[..]);
        String::from_utf8(parts).expect("UTF-8").replace('\n', " ")
    }

    #[test]
    fn rows_are_sorted_and_cut() {
        let all = report(&choice(None, None));
        assert_eq!(shown(&all, 9), "b a unread -- C ");
        assert_eq!(shown(&all, 2), "b -- C ");
        assert_eq!(shown(&all, 1), "b ");
        assert_eq!(shown(&report(&choice(Some("reads"), None)), 1), "C ");
        assert_eq!(shown(&report(&choice(Some("reads"), None)), 3), "a b -- C ");
        assert_eq!(shown(&report(&choice(Some("comm"), None)), 3), "a b -- C ");
        // What has not the field comes last, and never fails.
        assert_eq!(shown(&report(&choice(Some("only_six"), None)), 9), "a b unread -- C ");
    }

    #[test]
    fn the_number_of_rows_depends_on_where_they_go() {
        let default = report(&choice(None, None));
        assert_eq!((default.plain_rows(), default.data_rows()), (20, usize::MAX));
        // Time, gap, header, gap, header, and the free line.
        assert_eq!((default.screen_rows(24), default.screen_rows(3)), (18, 0));
        let five = report(&choice(None, Some(5)));
        assert_eq!((five.plain_rows(), five.data_rows(), five.screen_rows(24)), (5, 5, 5));
        assert_eq!(five.screen_rows(8), 2);
    }

    #[test]
    fn an_empty_table_has_its_header() {
        let mut empty = report(&choice(None, None));
        assert!(empty.head().next().is_some_and(|line| line.starts_with("12:00:00 loadavg: ")));
        empty.add_line("title");
        empty.close("12:00:01", None);
        assert_eq!(empty.head().skip(1).collect::<Vec<_>>(), ["", "title"]);
        // Nothing is left of the report before.
        empty.close("12:00:02", None);
        assert_eq!(empty.head().skip(1).collect::<Vec<_>>(), [""]);
        let parts = empty.parts(9);
        assert_eq!((parts.len(), parts[0].kind, parts[0].rows.len()), (1, 1, 0));
    }

    #[test]
    fn unknown_names_are_refused() {
        let error = Report::new(&choice(Some("nope"), None), &kinds()).err().expect("refused");
        let text = error.to_string();
        assert!(text.contains("'nope'") && text.contains("all, comm, reads, writes"), "{text}");
    }
}
