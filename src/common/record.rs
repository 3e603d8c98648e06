// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What a tool's records are: kinds, fields, and the text columns that show them. Declared from
//! the arguments alone, without a kernel, so that help, schema and docs come from the same place
//! as the output.

use crate::time::TimeFormat;
use crate::value::Format;
use crate::value::Type;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Something that happened at a moment, to a task: JSON `event`.
    Event,
    /// One line of a table: JSON `row`.
    Row,
    /// A distribution: JSON `histogram`; the fields are its key.
    Histogram,
}

/// One field of a record. Its name is its JSON key and ends in its unit (`lat_ns`, `size_bytes`).
#[derive(Clone, Debug)]
pub struct Field {
    /// The name, in snake case.
    pub name: &'static str,
    /// The type, which never varies.
    pub ty: Type,
    /// What it means: one sentence for docs/output.md.
    pub doc: &'static str,
}

/// One text column: where it takes its value from and how it shows it.
#[derive(Clone, Debug)]
pub struct Column {
    /// The field's name; also `ts`, and for events the process fields (`pid`, `comm`, …).
    pub field: &'static str,
    /// The header word.
    pub header: &'static str,
    /// The least width; longer values push the line to the right rather than being cut.
    pub width: usize,
    /// Right instead of left aligned.
    pub right: bool,
    /// Whether it is shown unless `--fields` says otherwise.
    pub shown: bool,
    /// How the value is shown.
    pub format: Format,
    /// What stands for a value that is not there.
    pub null: &'static str,
    /// For an address: the field of the port that is shown with it.
    pub port: Option<&'static str>,
    /// For `ts`: how, and with how many decimals.
    pub time: Option<(TimeFormat, usize)>,
}

/// Starts a left-aligned, shown column.
pub fn column(field: &'static str, header: &'static str, width: usize) -> Column {
    Column {
        field,
        header,
        width,
        right: false,
        shown: true,
        format: Format::Plain,
        null: "?",
        port: None,
        time: None,
    }
}

/// Starts a column of the event's time, hidden unless the user asks for it with [`Column::when`]
/// or `--timestamp`.
pub fn time_column(header: &'static str, width: usize, format: TimeFormat) -> Column {
    let decimals = if matches!(format, TimeFormat::Wall | TimeFormat::Utc) { 0 } else { 3 };
    Column { shown: false, time: Some((format, decimals)), ..column("ts", header, width) }
}

impl Column {
    /// Right aligned.
    #[must_use]
    pub fn right(self) -> Self {
        Self { right: true, ..self }
    }

    /// Shown only when `shown`.
    #[must_use]
    pub fn when(self, shown: bool) -> Self {
        Self { shown, ..self }
    }

    /// In this format.
    #[must_use]
    pub fn format(self, format: Format) -> Self {
        Self { format, ..self }
    }

    /// With this text where there is no value.
    #[must_use]
    pub fn null(self, null: &'static str) -> Self {
        Self { null, ..self }
    }

    /// An address, together with the port that this field has: `192.0.2.1:80`, `[2001:db8::1]:80`.
    #[must_use]
    pub fn port(self, field: &'static str) -> Self {
        Self { port: Some(field), ..self }
    }

    /// With this many decimals of a second; for columns of the time.
    #[must_use]
    pub fn decimals(self, decimals: usize) -> Self {
        Self { time: self.time.map(|(format, _)| (format, decimals)), ..self }
    }
}

/// A kind of record.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Its name: JSON `kind` where a tool has several, `name` of a histogram.
    pub name: &'static str,
    /// What it is.
    pub class: Class,
    /// Its own fields, in the order in which the tool gives their values.
    pub fields: Vec<Field>,
    /// Its text columns, in order.
    pub columns: Vec<Column>,
}

impl Kind {
    /// An event; the process fields and the time come with it.
    pub fn event(name: &'static str) -> Self {
        Self { name, class: Class::Event, fields: Vec::new(), columns: Vec::new() }
    }

    /// A line of a table.
    pub fn row(name: &'static str) -> Self {
        Self { class: Class::Row, ..Self::event(name) }
    }

    /// A histogram of nanoseconds, bytes or a count, as its name says.
    pub fn histogram(name: &'static str) -> Self {
        Self { class: Class::Histogram, ..Self::event(name) }
    }

    /// Adds a field.
    #[must_use]
    pub fn field(mut self, name: &'static str, ty: Type, doc: &'static str) -> Self {
        self.fields.push(Field { name, ty, doc });
        self
    }

    /// Sets the text columns.
    #[must_use]
    pub fn columns(mut self, columns: impl IntoIterator<Item = Column>) -> Self {
        self.columns = columns.into_iter().collect();
        self
    }

    /// Which of its own fields has this name.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.name == name)
    }

    /// Where a value of this name comes from.
    pub fn source(&self, name: &str) -> Option<Source> {
        if let Some(index) = self.index(name) {
            return Some(Source::Field(index));
        }
        match (self.class, name) {
            (_, "ts") => Some(Source::Time),
            (_, "boot_ns") => Some(Source::BootNs),
            (Class::Event, name) => {
                let process = PROCESS.iter().chain(&HOST);
                process.into_iter().find(|(_, field)| field.name == name).map(|(source, _)| *source)
            }
            (_, name) => {
                self.host().find(|(_, field)| field.name == name).map(|(source, _)| *source)
            }
        }
    }

    /// The fields that its records have in a PID namespace besides. Rows and histograms are of no
    /// task, but those that have `pid` or `tid` have the host's numbers as well.
    pub fn host(&self) -> impl Iterator<Item = &'static (Source, Field)> + '_ {
        HOST.iter().filter(|(source, _)| {
            let inside = if *source == Source::HostPid { "pid" } else { "tid" };
            self.class == Class::Event || self.index(inside).is_some()
        })
    }

    /// Every field of the record's JSON beside `type`, in order: common ones first. `of_host` is
    /// whether those of [`Kind::host`] are among them.
    pub fn all_fields(&self, of_host: bool) -> Vec<(Source, Field)> {
        let mut all: Vec<(Source, Field)> = TIMES.to_vec();
        if self.class == Class::Event {
            all.extend(PROCESS.iter().cloned());
        }
        if of_host {
            all.extend(self.host().cloned());
        }
        all.extend(self.fields.iter().cloned().enumerate().map(|(i, f)| (Source::Field(i), f)));
        all
    }
}

/// Where a field's or column's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The moment, as wall-clock time.
    Time,
    /// The moment, as nanoseconds of `CLOCK_BOOTTIME`.
    BootNs,
    /// Process id.
    Pid,
    /// Thread id.
    Tid,
    /// Parent's process id.
    Ppid,
    /// Command name.
    Comm,
    /// Real uid.
    Uid,
    /// Id of the cgroup in the v2 hierarchy.
    CgroupId,
    /// Path of that cgroup.
    Cgroup,
    /// Container.
    Container,
    /// Its id.
    ContainerId,
    /// Who made it.
    Runtime,
    /// Its pod.
    Pod,
    /// The systemd unit.
    Unit,
    /// Process id outside of the tool's PID namespace.
    HostPid,
    /// Thread id outside of it.
    HostTid,
    /// The tool's own field of this index.
    Field(usize),
}

const fn common(name: &'static str, ty: Type, doc: &'static str) -> Field {
    Field { name, ty, doc }
}

/// The time fields of every measurement.
pub static TIMES: [(Source, Field); 2] = [
    (Source::Time, common("ts", Type::String, "When, as RFC 3339 with nanoseconds and offset.")),
    (Source::BootNs, common("boot_ns", Type::Id, "When, in nanoseconds of CLOCK_BOOTTIME.")),
];

/// The process fields of every event.
pub static PROCESS: [(Source, Field); 12] = [
    (Source::Pid, common("pid", Type::Uint, "Process id.")),
    (Source::Tid, common("tid", Type::Uint, "Thread id.")),
    (Source::Ppid, common("ppid", Type::Uint, "Process id of the parent.")),
    (Source::Comm, common("comm", Type::String, "Command name of the thread.")),
    (Source::Uid, common("uid", Type::Uint, "Real user id.")),
    (Source::CgroupId, common("cgroup_id", Type::Id, "Id of the cgroup (v2 hierarchy).")),
    (
        Source::Cgroup,
        common(
            "cgroup",
            Type::String,
            "Path of the cgroup below the hierarchy's root; null when it is gone.",
        ),
    ),
    (
        Source::Container,
        common(
            "container",
            Type::String,
            "Name of the container, or the first 12 digits of its id where no file tells the name; \
             null outside of one.",
        ),
    ),
    (
        Source::ContainerId,
        common("container_id", Type::String, "Id of the container, or its name if it has no id."),
    ),
    (
        Source::Runtime,
        common(
            "runtime",
            Type::String,
            "docker, containerd, cri-o, podman, lxc or systemd-nspawn; null where that is not known.",
        ),
    ),
    (
        Source::Pod,
        common(
            "pod",
            Type::String,
            "Pod as NAMESPACE/NAME, or its uid where no file tells the name; null outside of one.",
        ),
    ),
    (Source::Unit, common("unit", Type::String, "Innermost systemd unit that the cgroup is of.")),
];

/// What records have in a PID namespace besides: see [`Kind::host`].
pub static HOST: [(Source, Field); 2] = [
    (Source::HostPid, common("host_pid", Type::Uint, "Process id outside of the PID namespace.")),
    (Source::HostTid, common("host_tid", Type::Uint, "Thread id outside of the PID namespace.")),
];

/// Whether a field is there in a PID namespace only.
pub fn is_of_host(source: Source) -> bool {
    HOST.iter().any(|(of_host, _)| *of_host == source)
}

/// All kinds of records of a tool.
#[derive(Clone, Debug)]
pub struct Records {
    /// The kinds; tools name them by index.
    pub kinds: Vec<Kind>,
    /// The text line that is printed before anything else, if any.
    pub banner: Option<String>,
    /// Whether the tool itself names cgroups or containers.
    pub names_cgroups: bool,
}

impl Records {
    /// These kinds, without a banner.
    pub fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self { kinds: kinds.into_iter().collect(), banner: None, names_cgroups: false }
    }

    /// With a line of text before the first header or report.
    #[must_use]
    pub fn banner(self, banner: impl Into<String>) -> Self {
        Self { banner: Some(banner.into()), ..self }
    }

    /// Says that the tool itself asks for names of cgroups ([`crate::output::Output::cgroup`]), so
    /// that those are known which are gone by then.
    #[must_use]
    pub fn naming_cgroups(self, names_cgroups: bool) -> Self {
        Self { names_cgroups, ..self }
    }
}
