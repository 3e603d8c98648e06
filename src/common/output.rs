// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! From values to stdout: text columns, JSON lines or CSV, all from one declaration of records.

use std::fs;
use std::io;
use std::io::IsTerminal as _;
use std::io::Write as _;
use std::os::fd::AsFd as _;

use anyhow::Context as _;
use anyhow::Result;
use nix::errno::Errno;

use crate::cgroup_names::CgroupNames;
use crate::condition;
use crate::condition::Condition;
use crate::condition::Test;
use crate::container::Identity;
use crate::container::Runtime;
use crate::error::usage;
use crate::escape;
use crate::escape::until_nul;
use crate::histogram::Histogram;
use crate::histogram::Unit;
use crate::pidns;
use crate::record::Class;
use crate::record::Column;
use crate::record::HOST;
use crate::record::Kind;
use crate::record::PROCESS;
use crate::record::Records;
use crate::record::Source;
use crate::record::column;
use crate::record::is_of_host;
use crate::shared::EventHead;
use crate::table::Report;
use crate::table::TableChoice;
use crate::terminal::Screen;
use crate::time::Clock;
use crate::time::TimeFormat;
use crate::value::Format;
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

/// Whether text has colours; `--color`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

impl Color {
    fn is_on(self) -> bool {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                to_terminal()
                    && set("NO_COLOR").is_none()
                    && set("TERM").is_some_and(|term| term != "dumb")
            }
        }
    }
}

/// A header's words.
const BOLD: &[u8] = b"\x1b[1m";
/// An error.
const RED: &[u8] = b"\x1b[31m";
/// The end of both.
const NORMAL: &[u8] = b"\x1b[0m";

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
    /// `--color`.
    pub color: Color,
    /// `--fields`.
    pub fields: Option<Selection>,
    /// `--timestamp`.
    pub timestamp: bool,
    /// `--time-format`.
    pub time_format: Option<TimeFormat>,
    /// `--filter`; all must hold.
    pub filters: Vec<Condition>,
    /// `--limit`.
    pub limit: Option<u64>,
    /// Whether records can have the host's numbers too ([`Kind::host`]): in a PID namespace, and
    /// when they were saved in one.
    pub of_host: bool,
    /// `--sort`, `--rows`, `--no-clear`, in a tool that has tables.
    pub table: Option<TableChoice>,
}

/// What one kind of record looks like under the user's choice.
struct Plan {
    kind: Kind,
    /// Text columns that are shown.
    columns: Vec<ShownColumn>,
    /// JSON and CSV fields that are shown.
    fields: Vec<ShownField>,
    /// What must hold of a record that is shown; `None` when it never can.
    tests: Option<Vec<Test>>,
}

/// A column with where its value comes from.
struct ShownColumn {
    source: Source,
    column: Column,
    /// Which of the values [`Column::port`] is.
    port: Option<usize>,
}

impl ShownColumn {
    /// Appends the value, of all `values` of the record, and returns its width.
    ///
    /// In place, as are the others that each cell of each line goes through: of what a line costs,
    /// calls were a large part.
    #[inline(always)]
    fn cell(
        &self,
        out: &mut Vec<u8>,
        value: &Value<'_>,
        values: &[Value<'_>],
        color: bool,
    ) -> usize {
        let red = color && matches!(value, Value::Errno(n) if *n != 0);
        if red {
            out.extend_from_slice(RED);
        }
        let width = match (self.port, value, self.column.format) {
            (Some(port), ..) => value.with_port(out, &values[port], self.column.null),
            // Most are one of these.
            (_, Value::Bytes(bytes), _) => escape::text(out, bytes),
            (_, Value::Str(text), _) if text.is_ascii() => {
                out.extend_from_slice(text.as_bytes());
                text.len()
            }
            (_, Value::Uint(n), Format::Plain) => {
                let start = out.len();
                push_uint(out, *n);
                out.len() - start
            }
            (.., format) => value.text(out, format, self.column.null),
        };
        if red {
            out.extend_from_slice(NORMAL);
        }
        width
    }
}

impl ShownColumn {
    /// The same, for those that are seldom most of a line.
    #[inline(never)]
    fn process_cell(
        &self,
        out: &mut Vec<u8>,
        value: &Value<'_>,
        values: &[Value<'_>],
        color: bool,
    ) -> usize {
        self.cell(out, value, values, color)
    }
}

/// A field with where its value comes from.
struct ShownField {
    source: Source,
    name: &'static str,
    ty: Type,
    /// What stands before the value in JSON: a comma, the name, a colon.
    json_key: Vec<u8>,
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
                    // A time of day may do without; of seconds since something too little is left.
                    let counts = matches!(
                        format,
                        TimeFormat::SinceStart | TimeFormat::SinceFirst | TimeFormat::Boot
                    );
                    let decimals = if counts && decimals == 0 { 6 } else { decimals };
                    column.time = Some((format, decimals));
                }
            }
        }

        let all = kind.all_fields(choice.of_host);
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
                let format = choice.time_format.unwrap_or(TimeFormat::Iso);
                let time = (name == "ts").then_some((format, 9));
                // Most processes are in no container, which is not the same as not knowing.
                let none = ["container", "container_id", "runtime", "pod", "unit"].contains(&name);
                let null = if none { "-" } else { "?" };
                Column { time, null, ..column(name, header, header.len()) }
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
        let columns = columns
            .into_iter()
            .map(|column| {
                let port = column.port.and_then(|port| kind.index(port));
                Ok(ShownColumn { source: source(column.field)?, column, port })
            })
            .collect::<Result<_>>()?;
        let fields = shown
            .into_iter()
            .map(|name| {
                let ty = all.iter().find(|(_, field)| field.name == name).map(|(_, f)| f.ty);
                let ty = ty.unwrap_or(Type::String);
                let json_key = format!(",\"{name}\":").into_bytes();
                Ok(ShownField { source: source(name)?, name, ty, json_key })
            })
            .collect::<Result<_>>()?;
        Ok(Self { kind: kind.clone(), columns, fields, tests: Some(Vec::new()) })
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
    color: bool,
    plans: Vec<Plan>,
    several_kinds: bool,
    header_of: Option<usize>,
    buffer: Vec<u8>,
    cell: Vec<u8>,
    /// Where event times are mapped to wall-clock time.
    pub clock: Clock,
    /// Names of cgroups and containers.
    pub(crate) cgroups: CgroupNames,
    /// Whether the tool asks for them.
    tool_names_cgroups: bool,
    limit: Option<u64>,
    /// Records shown so far: events, rows and histograms.
    pub shown: u64,
    /// Events that reached user space and did not pass a filter there.
    pub filtered: u64,
    /// Whether the limit is reached: the loop ends.
    pub full: bool,
    report: u64,
    /// When the report that is next began.
    report_began: u64,
    reader: Reader,
    fields_chosen: bool,
    /// Whether numbers of the host are among the fields that were asked for by name.
    host_asked: bool,
    /// The rows of the current report, where they are sorted before they are shown.
    table: Option<Report>,
    /// The terminal, while one table is drawn over another.
    screen: Option<Screen>,
    /// What was to be said on stderr while the screen was drawn.
    notice: Option<String>,
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
        for (plan, tests) in
            plans.iter_mut().zip(condition::bind(&choice.filters, &records.kinds, choice.of_host)?)
        {
            plan.tests = tests;
        }
        let table = choice.table.as_ref().map(|t| Report::new(t, &records.kinds)).transpose()?;
        Ok(Self {
            form: choice.form,
            color: choice.form == Form::Columns && choice.color.is_on(),
            several_kinds: plans.len() > 1,
            plans,
            header_of: None,
            buffer: Vec::with_capacity(16 << 10),
            cell: Vec::new(),
            clock: Clock::new(),
            cgroups: CgroupNames::default(),
            tool_names_cgroups: records.names_cgroups,
            limit: choice.limit,
            shown: 0,
            filtered: 0,
            full: false,
            report: 0,
            report_began: 0,
            reader: Reader::There,
            fields_chosen: choice.fields.is_some(),
            host_asked: choice.fields.as_ref().is_some_and(|fields| {
                let (Selection::These(names) | Selection::Changed { add: names, .. }) = fields;
                names.iter().any(|name| HOST.iter().any(|(_, field)| field.name == *name))
            }),
            table,
            screen: None,
            notice: None,
        })
    }

    /// The records to come were not saved in a PID namespace: they have no numbers of the host, which
    /// are shown only where they were asked for.
    pub(crate) fn not_of_host(&mut self) {
        if !self.host_asked {
            for plan in &mut self.plans {
                plan.fields.retain(|field| !is_of_host(field.source));
            }
        }
    }

    /// Path of a cgroup, and whose it is; for records that are not about a task. Needs
    /// [`Records::naming_cgroups`].
    pub fn cgroup(&mut self, id: u64) -> (Option<Vec<u8>>, Identity) {
        let path = self.cgroups.path(id).map(<[u8]>::to_vec);
        (path, self.cgroups.identity(id).clone())
    }

    /// Whether cgroups or containers are shown.
    pub(crate) fn names_cgroups(&self) -> bool {
        let named = |source: &Source| {
            use Source::*;
            matches!(source, Cgroup | Container | ContainerId | Runtime | Pod | Unit)
        };
        self.tool_names_cgroups
            || self.plans.iter().any(|plan| {
                // Rows are of no task, and have the container as a field of their own.
                let named = |source: &Source| match source {
                    Source::Field(i) => {
                        plan.kind.fields.get(*i).is_some_and(|f| f.name == "container")
                    }
                    source => named(source),
                };
                let shown = match self.form {
                    Form::Columns => plan.columns.iter().any(|shown| named(&shown.source)),
                    Form::Json | Form::Csv => plan.fields.iter().any(|field| named(&field.source)),
                };
                shown || plan.tests.iter().flatten().any(|test| named(&test.source))
            })
    }

    /// The container that a cgroup is of, for a field `container` of rows, which are of no task.
    pub fn container(&mut self, cgroup_id: u64) -> Option<String> {
        let container = self.cgroups.identity(cgroup_id).container.as_deref()?;
        Some(container.shown().to_string())
    }

    /// The JSON fields of a kind that are shown.
    pub(crate) fn shown_fields(&self, kind: usize) -> impl Iterator<Item = &'static str> {
        self.plans[kind].fields.iter().map(|field| field.name)
    }

    /// The form of stdout.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Says once what the tool does; left out of JSON, CSV and screens.
    fn banner(&mut self, text: &str) {
        if self.form == Form::Columns && self.screen.is_none() {
            self.buffer.extend_from_slice(text.as_bytes());
            self.buffer.push(b'\n');
        }
    }

    /// Adds a line of text that is not a record; left out of JSON and CSV. In a tool that has
    /// tables it stands above the next one.
    pub fn line(&mut self, text: &str) {
        if let Some(table) = &mut self.table {
            table.add_line(text);
        } else if self.form == Form::Columns {
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

    /// Everything is attached, or a saved file is opened: what stands above all text.
    pub(crate) fn begin(&mut self, records: &Records) {
        if let Some(banner) = &records.banner {
            self.banner(banner);
        }
        if records.kinds.first().is_some_and(|kind| kind.class == Class::Event)
            && self.form != Form::Json
        {
            self.header(0);
        }
    }

    /// How many bytes wait for [`Output::flush`].
    pub(crate) fn pending(&self) -> usize {
        self.buffer.len()
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
                if self.color {
                    self.buffer.extend_from_slice(BOLD);
                }
                for (i, ShownColumn { column, .. }) in plan.columns.iter().enumerate() {
                    let last = i + 1 == plan.columns.len();
                    let start = self.buffer.len();
                    self.buffer.extend_from_slice(column.header.as_bytes());
                    pad(&mut self.buffer, start, column.header.len(), column, last);
                }
                if self.color {
                    self.buffer.extend_from_slice(NORMAL);
                }
                self.buffer.push(b'\n');
            }
            Form::Csv => {
                let mut names: Vec<String> = Vec::new();
                for ShownField { name, ty, .. } in &plan.fields {
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
    /// their declared order. Returns whether it was shown (`--filter`, `--limit`).
    pub fn event(&mut self, kind: usize, head: &EventHead, values: &[Value<'_>]) -> bool {
        self.record(kind, Some(head.boot_ns), Who::Task(head), values)
    }

    /// The same for an event of which nobody knows the task: its process fields are null.
    pub fn event_of_nobody(&mut self, kind: usize, boot_ns: u64, values: &[Value<'_>]) -> bool {
        self.record(kind, Some(boot_ns), Who::Nobody, values)
    }

    /// Shows one line of a table; in a tool that has [`crate::tool::Tool::TABLE`], with the others
    /// of its report. Returns whether it was or will be shown.
    pub fn row(&mut self, kind: usize, values: &[Value<'_>]) -> bool {
        let now = self.clock.now();
        let (who, inside) = self.numbers(kind, values);
        self.record(kind, Some(now), who, inside.as_deref().unwrap_or(values))
    }

    /// In a PID namespace: the host's numbers of a row or histogram, whose fields `pid` and `tid`
    /// are the host's, and its values with the numbers of the namespace in their place.
    fn numbers<'a>(
        &self,
        kind: usize,
        values: &[Value<'a>],
    ) -> (Who<'static>, Option<Vec<Value<'a>>>) {
        let kind = &self.plans[kind].kind;
        if pidns::own().is_none() {
            return (Who::Nobody, None);
        }
        let mut inside = values.to_vec();
        let mut number = |name: &str| match kind.index(name).map(|index| &mut inside[index]) {
            Some(value) => {
                let &mut Value::Uint(host) = value else { return None };
                let number = u32::try_from(host).ok().and_then(pidns::inside);
                *value = number.map_or(Value::Null, |number| Value::Uint(number.into()));
                Some(host)
            }
            None => None,
        };
        let who = Who::Host { pid: number("pid"), tid: number("tid") };
        (who, Some(inside))
    }

    /// Shows a saved event or row; `process` are the fields of [`PROCESS`] and [`HOST`].
    pub(crate) fn saved(
        &mut self,
        kind: usize,
        boot_ns: Option<u64>,
        process: &[Value<'_>],
        values: &[Value<'_>],
    ) {
        self.record(kind, boot_ns, Who::Saved(process), values);
    }

    /// Shows one entry of a report that is not a line of a table: as text what `text` writes,
    /// unless the user asked for certain fields.
    pub fn entry(&mut self, kind: usize, values: &[Value<'_>], text: impl FnOnce(&mut Vec<u8>)) {
        if self.form != Form::Columns || self.fields_chosen {
            self.row(kind, values);
            return;
        }
        let now = self.clock.now();
        let (who, inside) = self.numbers(kind, values);
        let values = inside.as_deref().unwrap_or(values);
        if self.passes(kind, Some(now), who, values) && self.take() {
            text(&mut self.buffer);
        }
    }

    /// Makes the columns of a field at least this wide from now on. For tables whose columns are too
    /// seldom wide to be so always, before the first row that needs it.
    pub fn widen(&mut self, kind: usize, field: &str, width: usize) {
        let columns = self.plans[kind].columns.iter_mut().map(|shown| &mut shown.column);
        for column in columns.filter(|column| column.field == field) {
            column.width = column.width.max(width);
        }
    }

    fn record(
        &mut self,
        kind: usize,
        boot_ns: Option<u64>,
        who: Who<'_>,
        values: &[Value<'_>],
    ) -> bool {
        if !self.passes(kind, boot_ns, who, values) {
            return false;
        }
        if self.table.is_some() && self.plans[kind].kind.class == Class::Row {
            let start = self.buffer.len();
            self.render(kind, boot_ns, who, values);
            let text = self.buffer.split_off(start);
            if let Some(table) = &mut self.table {
                table.add(kind, values, text);
            }
            return true;
        }
        if !self.take() {
            return false;
        }
        if self.form != Form::Json {
            self.header(kind);
        }
        self.render(kind, boot_ns, who, values);
        true
    }

    /// Whether the record meets `--filter`; counts it if not.
    fn passes(
        &mut self,
        kind: usize,
        boot_ns: Option<u64>,
        who: Who<'_>,
        values: &[Value<'_>],
    ) -> bool {
        let passes = self.plans[kind].tests.as_ref().is_some_and(|tests| {
            tests.iter().all(|test| {
                if let (Source::Time, Some(boot_ns)) = (test.source, boot_ns) {
                    self.cell.clear();
                    self.clock.push_iso(&mut self.cell, boot_ns);
                    return test.holds(&Value::Bytes(&self.cell));
                }
                with_value(test.source, boot_ns, who, values, &mut self.cgroups, |value| {
                    test.holds(value)
                })
            })
        });
        self.filtered += u64::from(!passes);
        passes
    }

    /// Adds the record's line.
    fn render(&mut self, kind: usize, boot_ns: Option<u64>, who: Who<'_>, values: &[Value<'_>]) {
        let plan = &self.plans[kind];
        assert_eq!(values.len(), plan.kind.fields.len(), "values of {}", plan.kind.name);
        debug_assert!(
            plan.kind.fields.iter().zip(values).all(|(field, value)| field.ty.holds(value)),
            "{}: a value is not of its field's type: {values:?}",
            plan.kind.name
        );
        match self.form {
            Form::Columns => {
                let out = &mut self.buffer;
                let color = self.color;
                let mut columns = plan.columns.iter();
                while let Some(shown) = columns.next() {
                    let start = out.len();
                    let width = match (shown.source, shown.column.time, boot_ns) {
                        // Most are of this kind, and there are many.
                        (Source::Field(index), ..) => {
                            shown.cell(out, &values[index], values, color)
                        }
                        (Source::Time, Some((format, decimals)), Some(boot_ns)) => {
                            self.clock.push(out, boot_ns, format, decimals);
                            out.len() - start
                        }
                        (source, ..) => {
                            with_value(source, boot_ns, who, values, &mut self.cgroups, |value| {
                                shown.process_cell(out, value, values, color)
                            })
                        }
                    };
                    pad(out, start, width, &shown.column, columns.len() == 0);
                }
                out.push(b'\n');
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
                for ShownField { source, name, ty, json_key } in &plan.fields {
                    if let (Source::Time, Some(boot_ns)) = (source, boot_ns) {
                        out.extend_from_slice(b",\"ts\":\"");
                        self.clock.push_iso(out, boot_ns);
                        out.push(b'"');
                        continue;
                    }
                    with_value(*source, boot_ns, who, values, &mut self.cgroups, |value| {
                        out.extend_from_slice(json_key);
                        value.json_after_key(out, name, *ty);
                    });
                }
                out.extend_from_slice(b"}\n");
            }
            Form::Csv => {
                for (i, ShownField { source, ty, .. }) in plan.fields.iter().enumerate() {
                    if i > 0 {
                        self.buffer.push(b',');
                    }
                    if let (Source::Time, Some(boot_ns)) = (source, boot_ns) {
                        self.clock.push_iso(&mut self.buffer, boot_ns);
                        continue;
                    }
                    with_value(*source, boot_ns, who, values, &mut self.cgroups, |value| {
                        value.csv(&mut self.buffer, *ty);
                    });
                }
                self.buffer.push(b'\n');
            }
        }
    }

    /// Shows one histogram of the current report. `title` is the text line above the bars, if
    /// any, in the tool's own words and with what comes from outside already escaped; `key` are
    /// the kind's fields, which stand for it in the other forms. Returns whether it was shown
    /// (`--filter`, `--limit`).
    pub fn histogram(
        &mut self,
        kind: usize,
        title: Option<&str>,
        key: &[Value<'_>],
        histogram: &Histogram,
        unit: Unit,
    ) -> bool {
        let now = self.clock.now();
        let (who, inside) = self.numbers(kind, key);
        let key = inside.as_deref().unwrap_or(key);
        if !self.passes(kind, Some(now), who, key) || !self.take() {
            return false;
        }
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
                if pidns::own().is_some() {
                    for (source, field) in plan.kind.host() {
                        with_value(*source, None, who, key, &mut self.cgroups, |value| {
                            value.json(out, field.name, field.ty);
                        });
                    }
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
                    for ShownField { source, ty, .. } in &plan.fields {
                        if *source == Source::Time {
                            self.clock.push_iso(&mut self.buffer, now);
                        } else {
                            with_value(*source, Some(now), who, key, &mut self.cgroups, |value| {
                                value.csv(&mut self.buffer, *ty);
                            });
                        }
                        self.buffer.push(b',');
                    }
                    self.buffer.extend_from_slice(format!("{ge},{lt},{count}\n").as_bytes());
                }
            }
        }
        true
    }

    /// Draws tables over one another from now on, where the form, the options and the terminal
    /// let it. Returns whether it does.
    ///
    /// # Errors
    /// Fails when the system has no descriptors left.
    pub(crate) fn start_screen(&mut self) -> Result<Option<&Screen>> {
        let clears = self.table.as_ref().is_some_and(Report::clears);
        if self.form == Form::Columns && clears && crate::terminal::is_usable() {
            self.screen = Some(Screen::start()?);
        }
        Ok(self.screen.as_ref())
    }

    /// Whether tables are drawn over one another.
    pub(crate) fn has_screen(&self) -> bool {
        self.screen.is_some()
    }

    /// Says something that is not a measurement: on stderr, or while a screen is drawn, on it.
    pub(crate) fn notice(&mut self, tool: &str, text: &str) {
        if self.screen.is_some() {
            self.notice = Some(escape::printable(text.as_bytes()));
        } else {
            complain(tool, text);
        }
    }

    /// Draws the table on the screen once more, for example after its size has changed.
    pub(crate) fn redraw(&mut self) {
        let (Some(screen), Some(table)) = (&self.screen, self.table.take()) else { return };
        // Nothing to read is fine: then nothing had asked.
        let _ = screen.wake().read();
        if !screen.is_shown() {
            self.table = Some(table);
            return;
        }
        let extra = usize::from(self.notice.is_some());
        let rows = table.screen_rows(screen.height().saturating_sub(extra));
        let start = self.buffer.len();
        if let Some(notice) = &self.notice {
            self.buffer.extend_from_slice(notice.as_bytes());
            self.buffer.push(b'\n');
        }
        self.push_table(&table, rows);
        self.table = Some(table);
        // From the top left, without long lines wrapping, each line cleared behind its end.
        let frame = self.buffer.split_off(start);
        self.buffer.extend_from_slice(b"\x1b[?7l\x1b[H");
        for line in frame.split_inclusive(|b| *b == b'\n') {
            self.buffer.extend_from_slice(line.strip_suffix(b"\n").unwrap_or(line));
            self.buffer.extend_from_slice(b"\x1b[K\n");
        }
        self.buffer.extend_from_slice(b"\x1b[J\x1b[?7h");
    }

    /// Adds the table as text, cut to this many rows.
    fn push_table(&mut self, table: &Report, rows: usize) {
        for line in table.head() {
            self.buffer.extend_from_slice(line.as_bytes());
            self.buffer.push(b'\n');
        }
        for (i, part) in table.parts(rows).iter().enumerate() {
            if i > 0 {
                self.buffer.push(b'\n');
            }
            self.header_of = None;
            self.header(part.kind);
            part.rows.iter().for_each(|row| self.buffer.extend_from_slice(row));
        }
    }

    /// Shows the rows that have been collected.
    fn table_done(&mut self, now: u64, load: Option<&str>) {
        let Some(mut table) = self.table.take() else { return };
        self.cell.clear();
        self.clock.push(&mut self.cell, now, TimeFormat::Wall, 0);
        table.close(&String::from_utf8_lossy(&self.cell), load);
        let mut rows = match (&self.screen, self.form) {
            (Some(screen), _) => table.screen_rows(screen.height()),
            (None, Form::Columns) => table.plain_rows(),
            (None, _) => table.data_rows(),
        };
        // As many as the limit lets through.
        let wanted = table.parts(rows).iter().map(|part| part.rows.len()).sum();
        rows = (0..wanted).take_while(|_| self.take()).count();
        match (self.screen.is_some(), self.form) {
            (true, _) => {
                self.table = Some(table);
                self.redraw();
                return;
            }
            (false, Form::Columns) if !table.runs_on() => {
                self.push_table(&table, rows);
                self.buffer.push(b'\n');
            }
            (false, _) => {
                for part in table.parts(rows) {
                    if self.form != Form::Json {
                        self.header(part.kind);
                    }
                    part.rows.iter().for_each(|row| self.buffer.extend_from_slice(row));
                }
            }
        }
        self.table = Some(table);
    }

    /// Leaves the terminal as it was found, with what is on it, and says on stderr what was only
    /// said there.
    pub(crate) fn end_screen(&mut self, tool: &str) {
        if self.screen.take().is_some()
            && let Some(notice) = self.notice.take()
        {
            complain(tool, &notice);
        }
    }

    /// From now on, what is counted belongs to the next report.
    pub(crate) fn report_begins(&mut self) {
        self.report_began = self.clock.now();
    }

    /// Closes the rows and histograms of one interval; the next one begins.
    pub fn report_done(&mut self) {
        let load = self.table.as_ref().and_then(|_| fs::read_to_string("/proc/loadavg").ok());
        self.close_report(self.clock.now(), self.report_began, load.as_deref());
        self.report_begins();
    }

    /// The number of the report that a saved record belongs to.
    pub(crate) fn set_report(&mut self, report: u64) {
        self.report = report;
    }

    /// Closes a report that lasted from `start_boot_ns` to `now`, when the load average was `load`.
    pub(crate) fn close_report(&mut self, now: u64, start_boot_ns: u64, load: Option<&str>) {
        self.table_done(now, load);
        if self.form == Form::Json {
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
        self.fields_at(self.clock.now())
    }

    /// The same of another moment.
    pub(crate) fn fields_at(&mut self, now: u64) -> String {
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

/// Whose a record is.
#[derive(Clone, Copy)]
enum Who<'a> {
    /// Nobody's: a row.
    Nobody,
    /// This task's.
    Task(&'a EventHead),
    /// Of a process or thread that has these numbers outside of the tool's PID namespace: a row or
    /// histogram in one.
    Host { pid: Option<u64>, tid: Option<u64> },
    /// That of a saved record: the values of [`PROCESS`] and [`HOST`].
    Saved(&'a [Value<'a>]),
}

/// Calls `show` with the value of `source`.
fn with_value<R>(
    source: Source,
    boot_ns: Option<u64>,
    who: Who<'_>,
    values: &[Value<'_>],
    cgroups: &mut CgroupNames,
    show: impl FnOnce(&Value<'_>) -> R,
) -> R {
    match (source, who) {
        (Source::Field(index), _) => show(&values[index]),
        (Source::Time | Source::BootNs, _) => show(&boot_ns.map_or(Value::Null, Value::Id)),
        (Source::HostPid, Who::Host { pid, .. }) => show(&pid.map_or(Value::Null, Value::Uint)),
        (Source::HostTid, Who::Host { tid, .. }) => show(&tid.map_or(Value::Null, Value::Uint)),
        (_, Who::Nobody | Who::Host { .. }) => show(&Value::Null),
        (_, Who::Saved(process)) => {
            let index = PROCESS.iter().chain(&HOST).position(|(known, _)| *known == source);
            show(index.and_then(|index| process.get(index)).unwrap_or(&Value::Null))
        }
        (_, Who::Task(head)) => with_process(source, head, cgroups, show),
    }
}

/// The same for a field of the process that an event is about.
fn with_process<R>(
    source: Source,
    head: &EventHead,
    cgroups: &mut CgroupNames,
    show: impl FnOnce(&Value<'_>) -> R,
) -> R {
    let number = |number: u32| Value::Uint(u64::from(number));
    // In a PID namespace, the ids of a task that it does not see are 0.
    let outside = head.pid == 0 && head.host_tid != 0;
    let inside = |id: u32| if outside { Value::Null } else { number(id) };
    match source {
        Source::Pid => show(&inside(head.pid)),
        Source::Tid => show(&inside(head.tid)),
        Source::Ppid => show(&inside(head.ppid)),
        Source::HostPid => show(&number(head.host_pid)),
        Source::HostTid => show(&number(head.host_tid)),
        Source::Uid => show(&number(head.uid)),
        Source::Comm => show(&Value::Bytes(until_nul(&head.comm.map(|c| c.to_ne_bytes()[0])))),
        Source::CgroupId => show(&Value::Id(head.cgroup_id)),
        Source::Cgroup => match cgroups.path(head.cgroup_id) {
            Some(path) => show(&Value::Bytes(path)),
            None => show(&Value::Null),
        },
        Source::Container | Source::ContainerId | Source::Runtime => {
            let container = cgroups.identity(head.cgroup_id).container.as_deref();
            show(&text(container.and_then(|container| match source {
                Source::Container => Some(container.shown()),
                Source::ContainerId => Some(container.id.as_str()),
                _ => container.runtime.map(Runtime::name),
            })))
        }
        Source::Pod => show(&text(cgroups.identity(head.cgroup_id).pod.as_deref())),
        Source::Unit => show(&text(cgroups.identity(head.cgroup_id).unit.as_deref())),
        Source::Time | Source::BootNs | Source::Field(_) => show(&Value::Null),
    }
}

fn text(text: Option<&str>) -> Value<'_> {
    text.map_or(Value::Null, |text| Value::Bytes(text.as_bytes()))
}

fn push_spaces(out: &mut Vec<u8>, count: usize) {
    let end = out.len() + count;
    // More than are needed, but each time in one piece.
    while out.len() < end {
        out.extend_from_slice(&[b' '; 16]);
    }
    out.truncate(end);
}

/// Adds the padding of a cell, which begins at `start` and is so wide, and the space before the
/// next column.
#[inline(always)]
fn pad(out: &mut Vec<u8>, start: usize, width: usize, column: &Column, last: bool) {
    let missing = column.width.saturating_sub(width);
    let end = out.len();
    match (column.right, last) {
        (false, true) => {}
        (false, false) => push_spaces(out, missing + 1),
        (true, _) => {
            push_spaces(out, missing + usize::from(!last));
            if missing > 0 {
                out.copy_within(start..end, start + missing);
                let (first, rest) = (start, end.min(start + missing));
                out[first..rest].fill(b' ');
            }
        }
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
            color: Color::Auto,
            fields: fields.map(|f| Selection::parse(f).expect("valid")),
            timestamp: false,
            time_format: None,
            filters: Vec::new(),
            limit: None,
            of_host: false,
            table: None,
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
    fn colors_do_not_change_the_columns() {
        let kind = Kind::event("x")
            .field("error", Type::Errno, "")
            .columns([column("error", "ERR", 4).right(), column("pid", "PID", 6)]);
        let shown = |color, errno| {
            let choice = Choice { color, ..choice(Form::Columns, None) };
            let mut output = Output::new(&Records::new([kind.clone()]), &choice).expect("valid");
            let head = EventHead { pid: 7, ..EventHead::default() };
            output.event(0, &head, &[Value::Errno(errno)]);
            String::from_utf8(output.buffer.clone()).expect("UTF-8")
        };
        assert_eq!(shown(Color::Never, -2), " ERR PID\n   2 7\n");
        assert_eq!(shown(Color::Always, -2), "\x1b[1m ERR PID\x1b[0m\n   \x1b[31m2\x1b[0m 7\n");
        assert_eq!(shown(Color::Always, 0), "\x1b[1m ERR PID\x1b[0m\n   0 7\n");
    }

    #[test]
    fn filtered_records_are_counted() {
        let filter = |text| Choice {
            filters: vec![Condition::parse(text).expect("a condition")],
            limit: Some(1),
            ..choice(Form::Csv, Some("pid"))
        };
        let head = EventHead { pid: 7, ..EventHead::default() };
        let values = [Value::Int(-2), Value::Bytes(b"/a")];
        for (text, passes) in [
            ("pid = 7", true),
            ("result < -2", false),
            ("path ~ ^/", true),
            ("ts ~ ^20", true),
            ("boot_ns = 1", false),
            ("cgroup = /x", false),
        ] {
            let mut output = Output::new(&Records::new([kind()]), &filter(text)).expect("valid");
            assert_eq!(output.event(0, &head, &values), passes, "{text}");
            // The limit counts what is shown.
            let expected = (u64::from(passes), u64::from(!passes), passes);
            assert_eq!((output.shown, output.filtered, output.full), expected, "{text}");
        }
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
