// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! From values to stdout: text columns, JSON lines or CSV, all from one declaration of records.

use std::io;
use std::io::IsTerminal as _;
use std::io::Write as _;
use std::os::fd::AsFd as _;

use anyhow::Context as _;
use anyhow::Result;
use nix::errno::Errno;

use crate::cgroup::CgroupNames;
use crate::error::usage;
use crate::escape;
use crate::histogram::Histogram;
use crate::histogram::Unit;
use crate::record::Class;
use crate::record::Column;
use crate::record::Kind;
use crate::record::Records;
use crate::record::Source;
use crate::record::column;
use crate::shared::EventHead;
use crate::time::Clock;
use crate::time::TimeFormat;
use crate::value::Frame;
use crate::value::Type;
use crate::value::Value;
use crate::value::frame_text;
use crate::value::push_uint;

/// The form of stdout; `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Aligned text for people.
    Columns,
    /// One JSON object a line.
    Json,
    /// A header and comma-separated lines.
    Csv,
}

/// Which fields the user wants; `--fields`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// These, in this order.
    These(Vec<String>),
    /// The default, with some added and some left out.
    Changed {
        /// Names after `+`.
        add: Vec<String>,
        /// Names after `-`.
        remove: Vec<String>,
    },
}

impl Selection {
    /// Parses `a,b` or `+a,-b`.
    ///
    /// # Errors
    /// A mixture of both forms, or an empty name, is a usage error.
    pub fn parse(text: &str) -> Result<Self, String> {
        let names: Vec<&str> = text.split(',').map(str::trim).collect();
        if names.iter().any(|name| name.trim_start_matches(['+', '-']).is_empty()) {
            return Err("an empty field name".into());
        }
        let signed = names.iter().filter(|name| name.starts_with(['+', '-'])).count();
        if signed == 0 {
            return Ok(Self::These(names.into_iter().map(str::to_string).collect()));
        }
        if signed < names.len() {
            return Err("either plain names (these fields) or names with + and - (the default, \
                        changed), not both"
                .into());
        }
        let with = |sign: char| {
            names.iter().filter_map(|name| name.strip_prefix(sign)).map(str::to_string).collect()
        };
        Ok(Self::Changed { add: with('+'), remove: with('-') })
    }
}

/// What the user chose about output, from the command line.
#[derive(Clone, Debug)]
pub struct Choice {
    /// `--output`.
    pub form: Form,
    /// `--fields`.
    pub fields: Option<Selection>,
    /// `--timestamp`.
    pub timestamp: bool,
    /// `--time-format`.
    pub time_format: Option<TimeFormat>,
    /// `--limit`.
    pub limit: Option<u64>,
}

/// What one kind of record looks like under the user's choice.
struct Plan {
    kind: Kind,
    /// Text columns that are shown.
    columns: Vec<(Source, Column)>,
    /// JSON and CSV fields that are shown.
    fields: Vec<(Source, &'static str, Type)>,
}

impl Plan {
    fn new(kind: &Kind, choice: &Choice) -> Result<Self> {
        let mut columns: Vec<Column> = kind.columns.clone();
        if choice.timestamp && kind.class != Class::Histogram {
            let shown = columns.iter().any(|c| c.field == "ts" && c.shown);
            match columns.iter_mut().find(|c| c.field == "ts") {
                Some(column) => column.shown |= !shown,
                None => columns.insert(
                    0,
                    Column {
                        shown: true,
                        ..crate::record::time_column("TIME", 8, TimeFormat::Wall)
                    },
                ),
            }
        }
        if let Some(format) = choice.time_format {
            for column in &mut columns {
                if let Some((_, decimals)) = column.time {
                    column.time = Some((format, decimals));
                }
            }
        }

        let all = kind.all_fields();
        let mut shown: Vec<&'static str> = all.iter().map(|(_, field)| field.name).collect();
        let known = |name: &String| -> Result<&'static str> {
            all.iter()
                .map(|(_, field)| field.name)
                .find(|known| known == name)
                .ok_or_else(|| usage(unknown_field(name, &all)))
        };
        // A field without a column of its own gets one that is named after it.
        let made = |name: &'static str, columns: &[Column]| -> Column {
            let declared = columns.iter().find(|c| c.field == name).cloned();
            let fresh = || {
                let header: &'static str = name.to_uppercase().leak();
                let time = (name == "ts").then_some((TimeFormat::Iso, 9));
                Column { time, ..column(name, header, header.len()) }
            };
            Column { shown: true, ..declared.unwrap_or_else(fresh) }
        };
        match &choice.fields {
            None => columns.retain(|c| c.shown),
            Some(Selection::These(names)) => {
                shown = names.iter().map(known).collect::<Result<_>>()?;
                columns = shown.iter().map(|name| made(name, &columns)).collect();
            }
            Some(Selection::Changed { add, remove }) => {
                let add: Vec<_> = add.iter().map(known).collect::<Result<_>>()?;
                let remove: Vec<_> = remove.iter().map(known).collect::<Result<_>>()?;
                for name in add {
                    if !columns.iter().any(|c| c.field == name && c.shown) {
                        let extra = made(name, &columns);
                        columns.retain(|c| c.field != name);
                        // Before the last column, which is often long and never padded.
                        let at = columns.iter().rposition(|c| c.shown).unwrap_or(0);
                        columns.insert(at, extra);
                    }
                }
                columns.retain(|c| c.shown && !remove.contains(&c.field));
                shown.retain(|name| !remove.contains(name));
            }
        }

        let source = |name: &str| kind.source(name).context("a column of no field");
        let columns =
            columns.into_iter().map(|c| Ok((source(c.field)?, c))).collect::<Result<_>>()?;
        let fields = shown
            .into_iter()
            .map(|name| {
                let ty = all.iter().find(|(_, field)| field.name == name).map(|(_, f)| f.ty);
                Ok((source(name)?, name, ty.unwrap_or(Type::String)))
            })
            .collect::<Result<_>>()?;
        Ok(Self { kind: kind.clone(), columns, fields })
    }
}

fn unknown_field(name: &str, all: &[(Source, crate::record::Field)]) -> String {
    let names: Vec<&str> = all.iter().map(|(_, field)| field.name).collect();
    format!("--fields: there is no field '{name}'; there are {}", names.join(", "))
}

/// Whether stdout still takes what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// It does.
    There,
    /// The other end of the pipe is closed.
    Gone,
}

/// Writes a tool's records to stdout. Nothing is written before [`Output::flush`].
pub struct Output {
    form: Form,
    plans: Vec<Plan>,
    several_kinds: bool,
    header_of: Option<usize>,
    buffer: Vec<u8>,
    cell: Vec<u8>,
    /// Where event times are mapped to wall-clock time.
    pub clock: Clock,
    cgroups: CgroupNames,
    limit: Option<u64>,
    /// Records shown so far: events, rows and histograms.
    pub shown: u64,
    /// Events that reached user space and did not pass a filter there.
    pub filtered: u64,
    /// Whether the limit is reached: the loop ends.
    pub full: bool,
    report: u64,
    reader: Reader,
    fields_chosen: bool,
}

impl Output {
    /// Prepares output of `records` as chosen.
    ///
    /// # Errors
    /// A usage error for a field that does not exist.
    pub fn new(records: &Records, choice: &Choice) -> Result<Self> {
        // With several kinds, a field need only exist in one of them.
        let mut plans = Vec::new();
        let mut refused = None;
        for kind in &records.kinds {
            match Plan::new(kind, choice) {
                Ok(plan) => plans.push(plan),
                Err(error) => {
                    refused = Some(error);
                    plans.push(Plan::new(kind, &Choice { fields: None, ..choice.clone() })?);
                }
            }
        }
        let all_refused = records.kinds.iter().all(|kind| Plan::new(kind, choice).is_err());
        if let Some(error) = refused.filter(|_| all_refused) {
            return Err(error);
        }
        Ok(Self {
            form: choice.form,
            several_kinds: plans.len() > 1,
            plans,
            header_of: None,
            buffer: Vec::with_capacity(16 << 10),
            cell: Vec::new(),
            clock: Clock::new(),
            cgroups: CgroupNames::default(),
            limit: choice.limit,
            shown: 0,
            filtered: 0,
            full: false,
            report: 0,
            reader: Reader::There,
            fields_chosen: choice.fields.is_some(),
        })
    }

    /// The form of stdout.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Adds a line of text that is not a record; left out of JSON and CSV.
    pub fn line(&mut self, text: &str) {
        if self.form == Form::Columns {
            self.buffer.extend_from_slice(text.as_bytes());
            self.buffer.push(b'\n');
        }
    }

    /// Adds `indent` and one line a frame below the event that was just shown; text only, since
    /// JSON has the stack as a field.
    pub fn frames(&mut self, indent: &str, frames: &[Frame]) {
        if self.form == Form::Columns {
            for frame in frames {
                self.buffer.extend_from_slice(indent.as_bytes());
                frame_text(&mut self.buffer, frame);
                self.buffer.push(b'\n');
            }
        }
    }

    /// Adds a JSON object as it is; left out of the other forms.
    pub fn json_line(&mut self, object: &str) {
        if self.form == Form::Json {
            self.buffer.extend_from_slice(object.as_bytes());
            self.buffer.push(b'\n');
        }
    }

    /// The header line of a kind of record, if it is not the last one printed.
    pub fn header(&mut self, kind: usize) {
        if self.header_of == Some(kind) {
            return;
        }
        self.header_of = Some(kind);
        let plan = &self.plans[kind];
        match self.form {
            Form::Json => {}
            Form::Columns => {
                for (i, (_, column)) in plan.columns.iter().enumerate() {
                    let last = i + 1 == plan.columns.len();
                    pad(&mut self.buffer, column, last, |out| {
                        out.extend_from_slice(column.header.as_bytes());
                        column.header.len()
                    });
                }
                self.buffer.push(b'\n');
            }
            Form::Csv => {
                let mut names: Vec<String> = Vec::new();
                for (_, name, ty) in &plan.fields {
                    names.push((*name).to_string());
                    if ty.has_raw() {
                        names.push(format!("{name}_raw"));
                    }
                }
                if plan.kind.class == Class::Histogram {
                    names.extend(["ge", "lt", "count"].map(String::from));
                }
                self.buffer.extend_from_slice(names.join(",").as_bytes());
                self.buffer.push(b'\n');
            }
        }
    }

    fn take(&mut self) -> bool {
        if self.limit.is_some_and(|limit| self.shown >= limit) {
            self.full = true;
            return false;
        }
        self.shown += 1;
        self.full = self.limit.is_some_and(|limit| self.shown >= limit);
        true
    }

    /// Shows one event: `kind` is its index in [`Records::kinds`], `values` are its own fields in
    /// their declared order. Returns whether it was shown (`--limit`).
    pub fn event(&mut self, kind: usize, head: &EventHead, values: &[Value<'_>]) -> bool {
        self.record(kind, head.boot_ns, Some(head), values)
    }

    /// Shows one line of a table.
    pub fn row(&mut self, kind: usize, values: &[Value<'_>]) -> bool {
        let now = self.clock.now();
        self.record(kind, now, None, values)
    }

    /// Shows one entry of a report that is not a line of a table: as text what `text` writes,
    /// unless the user asked for certain fields.
    pub fn entry(&mut self, kind: usize, values: &[Value<'_>], text: impl FnOnce(&mut Vec<u8>)) {
        if self.form != Form::Columns || self.fields_chosen {
            self.row(kind, values);
        } else if self.take() {
            text(&mut self.buffer);
        }
    }

    fn record(
        &mut self,
        kind: usize,
        boot_ns: u64,
        head: Option<&EventHead>,
        values: &[Value<'_>],
    ) -> bool {
        if !self.take() {
            return false;
        }
        if self.form != Form::Json {
            self.header(kind);
        }
        let plan = &self.plans[kind];
        assert_eq!(values.len(), plan.kind.fields.len(), "values of {}", plan.kind.name);
        debug_assert!(
            plan.kind.fields.iter().zip(values).all(|(field, value)| field.ty.holds(value)),
            "{}: a value is not of its field's type: {values:?}",
            plan.kind.name
        );
        match self.form {
            Form::Columns => {
                for (i, (source, column)) in plan.columns.iter().enumerate() {
                    let last = i + 1 == plan.columns.len();
                    pad(&mut self.buffer, column, last, |out| {
                        if let (Source::Time, Some((format, decimals))) = (source, column.time) {
                            let start = out.len();
                            self.clock.push(out, boot_ns, format, decimals);
                            return out.len() - start;
                        }
                        with_value(*source, boot_ns, head, values, &mut self.cgroups, |value| {
                            value.text(out, column.format, column.null)
                        })
                    });
                }
                self.buffer.push(b'\n');
            }
            Form::Json => {
                let out = &mut self.buffer;
                let class = if plan.kind.class == Class::Row { "row" } else { "event" };
                out.extend_from_slice(b"{\"type\":\"");
                out.extend_from_slice(class.as_bytes());
                out.push(b'"');
                if self.several_kinds {
                    out.extend_from_slice(b",\"kind\":\"");
                    out.extend_from_slice(plan.kind.name.as_bytes());
                    out.push(b'"');
                }
                if plan.kind.class == Class::Row {
                    out.extend_from_slice(b",\"report\":");
                    push_uint(out, self.report);
                }
                for (source, name, ty) in &plan.fields {
                    if *source == Source::Time {
                        out.extend_from_slice(b",\"ts\":\"");
                        self.clock.push_iso(out, boot_ns);
                        out.push(b'"');
                        continue;
                    }
                    with_value(*source, boot_ns, head, values, &mut self.cgroups, |value| {
                        value.json(out, name, *ty);
                    });
                }
                out.extend_from_slice(b"}\n");
            }
            Form::Csv => {
                for (i, (source, _, ty)) in plan.fields.iter().enumerate() {
                    if i > 0 {
                        self.buffer.push(b',');
                    }
                    if *source == Source::Time {
                        self.clock.push_iso(&mut self.buffer, boot_ns);
                        continue;
                    }
                    with_value(*source, boot_ns, head, values, &mut self.cgroups, |value| {
                        value.csv(&mut self.buffer, *ty);
                    });
                }
                self.buffer.push(b'\n');
            }
        }
        true
    }

    /// Shows one histogram of the current report. `title` is the text line above the bars, if
    /// any, in the tool's own words and with what comes from outside already escaped; `key` are
    /// the kind's fields, which stand for it in the other forms.
    pub fn histogram(
        &mut self,
        kind: usize,
        title: Option<&str>,
        key: &[Value<'_>],
        histogram: &Histogram,
        unit: Unit,
    ) {
        if !self.take() {
            return;
        }
        let now = self.clock.now();
        if self.form == Form::Csv {
            self.header(kind);
        }
        let plan = &self.plans[kind];
        assert_eq!(key.len(), plan.kind.fields.len(), "key of {}", plan.kind.name);
        match self.form {
            Form::Columns => {
                if let Some(title) = title {
                    self.buffer.extend_from_slice(title.as_bytes());
                    self.buffer.push(b'\n');
                }
                histogram.text(&mut self.buffer, unit.label);
            }
            Form::Json => {
                let out = &mut self.buffer;
                out.extend_from_slice(b"{\"type\":\"histogram\",\"report\":");
                push_uint(out, self.report);
                out.extend_from_slice(
                    format!(",\"name\":\"{}\",\"ts\":\"", plan.kind.name).as_bytes(),
                );
                self.clock.push_iso(out, now);
                out.extend_from_slice(format!("\",\"boot_ns\":\"{now}\",\"key\":{{").as_bytes());
                let start = out.len();
                for (field, value) in plan.kind.fields.iter().zip(key) {
                    value.json(out, field.name, field.ty);
                }
                if out.len() > start {
                    // The first key's comma.
                    out.remove(start);
                }
                out.extend_from_slice(b"},\"unit\":\"");
                out.extend_from_slice(unit_of(plan.kind.name).as_bytes());
                out.extend_from_slice(b"\",\"buckets\":");
                histogram.json_buckets(out, unit.scale);
                out.extend_from_slice(b",\"count\":");
                push_uint(out, histogram.count());
                out.extend_from_slice(b",\"sum\":");
                push_uint(out, histogram.sum);
                out.extend_from_slice(b"}\n");
            }
            Form::Csv => {
                for (ge, lt, count) in histogram.buckets(unit.scale) {
                    for (source, _, ty) in &plan.fields {
                        if *source == Source::Time {
                            self.clock.push_iso(&mut self.buffer, now);
                        } else {
                            with_value(*source, now, None, key, &mut self.cgroups, |value| {
                                value.csv(&mut self.buffer, *ty);
                            });
                        }
                        self.buffer.push(b',');
                    }
                    self.buffer.extend_from_slice(format!("{ge},{lt},{count}\n").as_bytes());
                }
            }
        }
    }

    /// Closes the rows and histograms of one interval, which began at `start_boot_ns`.
    pub fn report_done(&mut self, start_boot_ns: u64) {
        if self.form == Form::Json {
            let now = self.clock.now();
            let out = &mut self.buffer;
            out.extend_from_slice(b"{\"type\":\"report\",\"report\":");
            push_uint(out, self.report);
            out.extend_from_slice(b",\"ts\":\"");
            self.clock.push_iso(out, now);
            out.extend_from_slice(format!("\",\"boot_ns\":\"{now}\",\"start_ts\":\"").as_bytes());
            self.clock.push_iso(out, start_boot_ns);
            out.extend_from_slice(b"\"}\n");
        }
        self.report += 1;
    }

    /// Adds the wall-clock time of now as a line of its own; text only.
    pub fn time_line(&mut self) {
        if self.form == Form::Columns {
            let now = self.clock.now();
            self.clock.push(&mut self.buffer, now, TimeFormat::Wall, 0);
            self.buffer.push(b'\n');
        }
    }

    /// `,"ts":…,"boot_ns":…` of now, for records that are not the tool's own.
    pub fn now_fields(&mut self) -> String {
        let now = self.clock.now();
        self.cell.clear();
        self.clock.push_iso(&mut self.cell, now);
        format!(",\"ts\":\"{}\",\"boot_ns\":\"{now}\"", String::from_utf8_lossy(&self.cell))
    }

    /// Writes what has been added, whole lines, in one write where the system takes it in one.
    ///
    /// # Errors
    /// Any failure to write except a reader that went away, which is remembered instead.
    pub fn flush(&mut self) -> Result<()> {
        self.clock.refresh();
        if self.reader == Reader::Gone {
            self.buffer.clear();
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        let stdout = io::stdout();
        let mut rest: &[u8] = &self.buffer;
        while !rest.is_empty() {
            match nix::unistd::write(stdout.as_fd(), rest) {
                Ok(written) => rest = &rest[written..],
                // A signal: the loop will see it; whole lines come first.
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => crate::event_loop::wait_writable(stdout.as_fd())?,
                Err(Errno::EPIPE) => {
                    self.reader = Reader::Gone;
                    break;
                }
                Err(error) => {
                    self.buffer.clear();
                    self.reader = Reader::Gone;
                    return Err(anyhow::Error::new(error).context("writing to stdout"));
                }
            }
        }
        self.buffer.clear();
        Ok(())
    }

    /// Whether stdout's other end is still there, as far as writing has shown.
    pub fn reader(&self) -> Reader {
        self.reader
    }
}

/// The unit that a name ends in, for JSON.
fn unit_of(name: &str) -> &'static str {
    match name.rsplit('_').next() {
        Some("ns") => "ns",
        Some("bytes") => "bytes",
        _ => "count",
    }
}

/// Calls `show` with the value of `source`.
fn with_value<R>(
    source: Source,
    boot_ns: u64,
    head: Option<&EventHead>,
    values: &[Value<'_>],
    cgroups: &mut CgroupNames,
    show: impl FnOnce(&Value<'_>) -> R,
) -> R {
    let process = |get: fn(&EventHead) -> u32| {
        head.map_or(Value::Null, |head| Value::Uint(u64::from(get(head))))
    };
    match source {
        Source::Field(index) => show(&values[index]),
        Source::Time | Source::BootNs => show(&Value::Id(boot_ns)),
        Source::Pid => show(&process(|head| head.pid)),
        Source::Tid => show(&process(|head| head.tid)),
        Source::Ppid => show(&process(|head| head.ppid)),
        Source::Uid => show(&process(|head| head.uid)),
        Source::Comm => match head {
            Some(head) => show(&Value::Bytes(until_nul(&head.comm.map(|c| c.to_ne_bytes()[0])))),
            None => show(&Value::Null),
        },
        Source::CgroupId => show(&head.map_or(Value::Null, |head| Value::Id(head.cgroup_id))),
        Source::Cgroup => match head.and_then(|head| cgroups.path(head.cgroup_id)) {
            Some(path) => show(&Value::Bytes(path)),
            None => show(&Value::Null),
        },
        Source::Container => show(&Value::Null),
    }
}

/// The bytes before the first NUL, or all of them.
pub fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or(bytes)
}

/// Adds one cell with its padding and the space before the next column.
fn pad(out: &mut Vec<u8>, column: &Column, last: bool, cell: impl FnOnce(&mut Vec<u8>) -> usize) {
    let start = out.len();
    let width = cell(out);
    let missing = column.width.saturating_sub(width);
    if column.right {
        let text = out.split_off(start);
        out.resize(start + missing, b' ');
        out.extend_from_slice(&text);
    } else if !last {
        out.resize(out.len() + missing, b' ');
    }
    if !last {
        out.push(b' ');
    }
}

/// Writes one line to stderr, `NAME: text`, with anything unprintable escaped. Failure to do so
/// has nobody to be told to.
pub fn complain(tool: &str, text: &str) {
    let mut line = format!("{tool}: ").into_bytes();
    escape::text(&mut line, text.as_bytes());
    line.push(b'\n');
    let _ = io::stderr().write_all(&line);
}

/// Whether stdout is a terminal.
pub fn to_terminal() -> bool {
    io::stdout().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::time_column;

    fn kind() -> Kind {
        Kind::event("open").field("result", Type::Int, "").field("path", Type::String, "").columns(
            [
                time_column("TIME", 8, TimeFormat::Wall),
                column("pid", "PID", 6),
                column("result", "RET", 4).right(),
                column("path", "PATH", 0),
            ],
        )
    }

    fn choice(form: Form, fields: Option<&str>) -> Choice {
        Choice {
            form,
            fields: fields.map(|f| Selection::parse(f).expect("valid")),
            timestamp: false,
            time_format: None,
            limit: None,
        }
    }

    fn shown(choice: &Choice) -> String {
        let mut output = Output::new(&Records::new([kind()]), choice).expect("valid");
        let head = EventHead { pid: 7, ..EventHead::default() };
        output.event(0, &head, &[Value::Int(-2), Value::Bytes(b"/a\nb")]);
        String::from_utf8(output.buffer.clone()).expect("UTF-8")
    }

    #[test]
    fn columns() {
        assert_eq!(shown(&choice(Form::Columns, None)), "PID     RET PATH\n7        -2 /a\\nb\n");
        assert_eq!(shown(&choice(Form::Columns, Some("path,pid"))), "PATH PID\n/a\\nb 7\n");
        let changed = shown(&choice(Form::Columns, Some("+tid,-result")));
        assert_eq!(changed, "PID    TID PATH\n7      0   /a\\nb\n");
        let stamped = shown(&Choice { timestamp: true, ..choice(Form::Columns, None) });
        assert!(stamped.starts_with("TIME     PID"), "{stamped}");
    }

    #[test]
    fn json() {
        let parsed: serde_json::Value =
            serde_json::from_str(&shown(&choice(Form::Json, None))).expect("JSON");
        assert_eq!(parsed["type"], "event");
        assert_eq!(parsed["path"], "/a\nb");
        assert_eq!(parsed["pid"], 7);
        assert!(parsed.get("kind").is_none() && parsed["container"].is_null());
        let few: serde_json::Value =
            serde_json::from_str(&shown(&choice(Form::Json, Some("pid")))).expect("JSON");
        assert_eq!(few, serde_json::json!({"type": "event", "pid": 7}));
    }

    #[test]
    fn csv() {
        assert_eq!(
            shown(&choice(Form::Csv, Some("pid,result,path"))),
            "pid,result,path\n7,-2,/a\\nb\n"
        );
    }

    #[test]
    fn unknown_fields_are_refused() {
        let error = Output::new(&Records::new([kind()]), &choice(Form::Json, Some("nope")));
        assert!(error.is_err_and(|e| e.to_string().contains("no field 'nope'")));
        assert!(Selection::parse("a,+b").is_err() && Selection::parse("a,,b").is_err());
    }

    #[test]
    fn the_limit_ends_the_output() {
        let limited = Choice { limit: Some(1), ..choice(Form::Csv, Some("pid")) };
        let mut output = Output::new(&Records::new([kind()]), &limited).expect("valid");
        let head = EventHead::default();
        assert!(output.event(0, &head, &[Value::Null, Value::Null]) && output.full);
        assert!(!output.event(0, &head, &[Value::Null, Value::Null]));
        assert_eq!(output.shown, 1);
    }
}
