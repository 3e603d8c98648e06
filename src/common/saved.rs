// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! `--from FILE`: JSON lines that a tool wrote before, shown again: other fields, fewer records,
//! another form. No kernel and no privileges are needed.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::anyhow;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Arg;
use clap::ArgMatches;
use clap::parser::ValueSource;
use jiff::Timestamp;
use serde_json::Map;
use serde_json::Value as Json;

use crate::error::usage;
use crate::escape;
use crate::output::Form;
use crate::output::Output;
use crate::output::Reader;
use crate::output::complain;
use crate::record::Class;
use crate::record::HOST;
use crate::record::PROCESS;
use crate::record::Records;
use crate::record::is_of_host;
use crate::value::Frame;
use crate::value::Type;
use crate::value::Value;

/// Common options that choose among records and show them; all others choose what is traced.
const SHOWING: [&str; 14] = [
    "color",
    "fields",
    "filter",
    "from",
    "json",
    "limit",
    "no-clear",
    "output",
    "rows",
    "sort",
    "strict",
    "time-format",
    "timestamp",
    "verbose",
];

/// What `lost` and `end` records count of what is not there, beside `missed`.
const LOST: [&str; 3] = ["lost", "map_full", "rate_limited"];

/// No line of ours is anywhere near this long.
const LONGEST_LINE: u64 = 64 << 20;

/// The options on this command line that make no sense with `--from`: those that choose what is
/// traced. `own` are the tool's, of which `shows` tells whether it only changes what is shown.
///
/// # Errors
/// A usage error that names the first one.
pub(crate) fn refuse_tracing(
    matches: &ArgMatches,
    all: &[Arg],
    own: &[Arg],
    exempt: &[String],
    shows: impl Fn(Vec<OsString>) -> bool,
) -> Result<()> {
    for arg in all {
        let id = arg.get_id().as_str();
        if matches.value_source(id) != Some(ValueSource::CommandLine)
            || exempt.iter().any(|name| name == id)
        {
            continue;
        }
        let is_own = own.iter().any(|own| own.get_id() == arg.get_id());
        let fine = if is_own { shows(spelled(arg, matches)) } else { SHOWING.contains(&id) };
        if !fine {
            let name = match arg.get_long() {
                Some(long) => format!("--{long}"),
                None => {
                    arg.get_value_names().and_then(|n| n.first()).map_or(id, |n| n.as_str()).into()
                }
            };
            return Err(usage(format!(
                "{name} makes no sense with --from: it says what is traced; --filter chooses among \
                 what was saved"
            )));
        }
    }
    Ok(())
}

/// An option as it stood on the command line; nothing for what is not an option.
fn spelled(arg: &Arg, matches: &ArgMatches) -> Vec<OsString> {
    let name = match (arg.get_long(), arg.get_short()) {
        (Some(long), _) => format!("--{long}"),
        (None, Some(short)) => format!("-{short}"),
        (None, None) => return Vec::new(),
    };
    if !arg.get_action().takes_values() {
        return vec![name.into()];
    }
    let values = matches.get_raw(arg.get_id().as_str()).into_iter().flatten();
    values
        .map(|value| {
            let mut word = OsString::from(&name);
            word.push("=");
            word.push(value);
            word
        })
        .collect()
}

/// A field's value out of a saved record.
enum Saved {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Id(u64),
    Bytes(Vec<u8>),
    Cut(Vec<u8>),
    List(Vec<u8>, bool),
    Errno(i32),
    Name(Option<String>, i64),
    Flags(String, u64),
    Ip(IpAddr),
    Stack(Vec<Frame>),
}

impl Saved {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Null => Value::Null,
            Self::Bool(yes) => Value::Bool(*yes),
            Self::Int(n) => Value::Int(*n),
            Self::Uint(n) => Value::Uint(*n),
            Self::Id(n) => Value::Id(*n),
            Self::Bytes(bytes) => Value::Bytes(bytes),
            Self::Cut(bytes) => Value::Cut(bytes),
            Self::List(bytes, cut) => Value::List(bytes, *cut),
            Self::Errno(n) => Value::Errno(*n),
            Self::Name(name, n) => Value::Name(name.as_deref(), *n),
            Self::Flags(names, n) => Value::FlagNames(names, *n),
            Self::Ip(ip) => Value::Ip(*ip),
            Self::Stack(frames) => Value::Stack(frames),
        }
    }

    /// The field `name` of a record. `None` when its JSON is not of the field's type. A field that
    /// is not there was left out by `--fields`, and is as unread.
    fn read(record: &Map<String, Json>, name: &str, ty: Type) -> Option<Self> {
        let beside = |suffix: &str| record.get(&format!("{name}{suffix}"));
        let json = record.get(name).unwrap_or(&Json::Null);
        if ty.has_raw() {
            let raw = beside("_raw").unwrap_or(&Json::Null);
            if raw.is_null() {
                return json.is_null().then_some(Self::Null);
            }
            let text = match json {
                Json::Null => None,
                Json::String(text) => Some(text.clone()),
                _ => return None,
            };
            return Some(match ty {
                Type::Errno => Self::Errno(i32::try_from(raw.as_i64()?).ok()?),
                Type::Name => Self::Name(text, raw.as_i64()?),
                _ => Self::Flags(text?, raw.as_u64()?),
            });
        }
        if json.is_null() {
            return Some(Self::Null);
        }
        let cut = match beside("_cut") {
            None => false,
            Some(cut) => cut.as_bool()?,
        };
        Some(match ty {
            Type::Bool => Self::Bool(json.as_bool()?),
            Type::Int => Self::Int(json.as_i64()?),
            Type::Uint => Self::Uint(json.as_u64()?),
            Type::Id => Self::Id(json.as_str()?.parse().ok()?),
            Type::String => {
                let bytes = match beside("_b64") {
                    Some(exact) => BASE64.decode(exact.as_str()?).ok()?,
                    None => json.as_str()?.as_bytes().to_vec(),
                };
                if cut { Self::Cut(bytes) } else { Self::Bytes(bytes) }
            }
            Type::List => {
                let mut bytes = Vec::new();
                let exact = beside("_b64");
                for item in exact.unwrap_or(json).as_array()? {
                    match exact {
                        Some(_) => bytes.extend(BASE64.decode(item.as_str()?).ok()?),
                        None => bytes.extend_from_slice(item.as_str()?.as_bytes()),
                    }
                    bytes.push(0);
                }
                Self::List(bytes, cut)
            }
            Type::Ip => Self::Ip(json.as_str()?.parse().ok()?),
            Type::Stack => Self::Stack(json.as_array()?.iter().map(frame).collect::<Option<_>>()?),
            Type::Errno | Type::Name | Type::Flags => return None,
        })
    }
}

fn frame(json: &Json) -> Option<Frame> {
    let text = |name: &str| match json.get(name) {
        None | Some(Json::Null) => Some(None),
        Some(text) => Some(Some(text.as_str()?.to_string())),
    };
    Some(Frame {
        addr: json.get("addr")?.as_str()?.parse().ok()?,
        sym: text("sym")?,
        off: json.get("off")?.as_u64()?,
        module_off: None,
        module: text("module")?,
    })
}

/// Shows a saved file.
pub(crate) struct Replay<'a> {
    name: &'static str,
    records: &'a Records,
    output: Output,
    /// Whether a `ready` record was seen: what follows is this tool's.
    ready: bool,
    end: Option<Map<String, Json>>,
    /// What the `lost` records so far say.
    lost: [u64; 3],
    /// `ts` and `boot_ns` of the last record.
    last: Option<(Json, Json)>,
}

impl<'a> Replay<'a> {
    /// Will show what `name` has saved in the form of `output`.
    ///
    /// # Errors
    /// A usage error for a tool that has only histograms.
    pub fn new(name: &'static str, records: &'a Records, output: Output) -> Result<Self> {
        if records.kinds.iter().all(|kind| kind.class == Class::Histogram) {
            return Err(usage("--from makes no sense here: it is for events and tables"));
        }
        Ok(Self { name, records, output, ready: false, end: None, lost: [0; 3], last: None })
    }

    /// Shows the file at `path`, or stdin for `-`. Returns whether events had been lost.
    ///
    /// # Errors
    /// A usage error for a file that cannot be opened or is another tool's; others for lines that
    /// are none of ours.
    pub fn run(mut self, path: &Path) -> Result<bool> {
        if path.as_os_str() == "-" {
            self.lines(&mut BufReader::new(io::stdin()), "stdin")?;
        } else {
            let shown = path.display().to_string();
            let file =
                File::open(path).map_err(|error| usage(format!("--from {shown}: {error}")))?;
            self.lines(&mut BufReader::with_capacity(1 << 16, file), &shown)?;
        }
        let lost = self.finish();
        self.output.flush()?;
        Ok(lost)
    }

    fn lines<R: io::Read>(&mut self, input: &mut BufReader<R>, shown: &str) -> Result<()> {
        let mut line = Vec::new();
        for number in 1u64.. {
            // What came through a pipe is shown before the wait for more.
            if input.buffer().is_empty() || self.output.pending() > 1 << 16 {
                self.output.flush()?;
            }
            if self.output.full || self.output.reader() == Reader::Gone {
                return Ok(());
            }
            line.clear();
            let read = input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line);
            if read.with_context(|| format!("reading {shown}"))? == 0 {
                break;
            }
            let place = || format!("{shown}, line {number}");
            let record: Map<String, Json> = serde_json::from_slice(&line)
                .map_err(|error| anyhow!("{}: not one of our JSON lines: {error}", place()))?;
            self.line(&record, &line).with_context(place)?;
        }
        if self.ready {
            Ok(())
        } else {
            Err(usage(format!("--from {shown}: there is nothing in it")))
        }
    }

    fn line(&mut self, record: &Map<String, Json>, line: &[u8]) -> Result<()> {
        let class = match record.get("type").and_then(Json::as_str) {
            Some("ready") => return self.begin(record, line),
            Some("end") => {
                self.end = Some(record.clone());
                return Ok(());
            }
            _ if !self.ready => {
                return Err(usage(
                    "the `ready` record is missing, which says whose records they are",
                ));
            }
            Some("event") => Class::Event,
            Some("row") => Class::Row,
            Some("report") => return self.report(record),
            Some("histogram") => return Err(anyhow!("a histogram cannot be read back")),
            Some(_) => {
                for (sum, name) in self.lost.iter_mut().zip(LOST) {
                    *sum += record.get(name).and_then(Json::as_u64).unwrap_or(0);
                }
                self.relay(line);
                return Ok(());
            }
            None => return Err(anyhow!("there is no `type`")),
        };
        let wanted = record.get("kind").and_then(Json::as_str);
        let kinds = &self.records.kinds;
        let kind = kinds
            .iter()
            .position(|kind| {
                kind.class == class && wanted.map_or(kinds.len() == 1, |wanted| kind.name == wanted)
            })
            .with_context(|| format!("{} has no such record", self.name))?;
        let read = |name: &str, ty: Type| {
            Saved::read(record, name, ty).with_context(|| format!("{name} is not of its type"))
        };
        let process: Vec<Saved> = PROCESS
            .iter()
            .chain(&HOST)
            .map(|(source, field)| {
                // A row may have a field of its own that is called so, and is of another type.
                let theirs = class == Class::Event || is_of_host(*source);
                if theirs { read(field.name, field.ty) } else { Ok(Saved::Null) }
            })
            .collect::<Result<_>>()?;
        let own: Vec<Saved> = kinds[kind]
            .fields
            .iter()
            .map(|field| read(field.name, field.ty))
            .collect::<Result<_>>()?;
        let boot_ns = self.moment(record)?;
        if let Some(report) = record.get("report").and_then(Json::as_u64) {
            self.output.set_report(report);
        }
        let process: Vec<Value<'_>> = process.iter().map(Saved::value).collect();
        let own: Vec<Value<'_>> = own.iter().map(Saved::value).collect();
        self.output.saved(kind, boot_ns, &process, &own);
        Ok(())
    }

    /// When the record is of; the clock is set by it. `None` when `--fields` left that out.
    fn moment(&mut self, record: &Map<String, Json>) -> Result<Option<u64>> {
        let text = |name| match record.get(name) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text)),
            Some(_) => Err(anyhow!("{name} is not of its type")),
        };
        let (Some(ts), Some(boot_ns)) = (text("ts")?, text("boot_ns")?) else { return Ok(None) };
        self.last = Some((ts.as_str().into(), boot_ns.as_str().into()));
        let wall: Timestamp = ts.parse().map_err(|_| anyhow!("ts is no time: {ts}"))?;
        let boot_ns = boot_ns.parse().map_err(|_| anyhow!("boot_ns is no number: {boot_ns}"))?;
        self.output.clock.set(boot_ns, wall.as_nanosecond());
        Ok(Some(boot_ns))
    }

    fn begin(&mut self, record: &Map<String, Json>, line: &[u8]) -> Result<()> {
        let tool = record.get("tool").and_then(Json::as_str).unwrap_or_default();
        if tool != self.name {
            return Err(usage(format!("these are records of '{tool}', not of {}", self.name)));
        }
        if record.get("schema").and_then(Json::as_u64) != Some(1) {
            return Err(usage("these records are of another schema than this version's"));
        }
        if let Some(boot_ns) = self.moment(record)? {
            self.output.clock.set_start(boot_ns);
        }
        if !record.contains_key("pid_namespace") {
            self.output.not_of_host();
        }
        self.relay(line);
        if !std::mem::replace(&mut self.ready, true) {
            self.output.begin(self.records);
        }
        Ok(())
    }

    fn relay(&mut self, line: &[u8]) {
        self.output.json_line(&escape::relayed(&String::from_utf8_lossy(line)));
    }

    fn report(&mut self, record: &Map<String, Json>) -> Result<()> {
        let start: Option<Timestamp> = match record.get("start_ts").and_then(Json::as_str) {
            Some(start) => Some(start.parse().map_err(|_| anyhow!("start_ts is no time"))?),
            None => None,
        };
        let (Some(now), Some(start), Some(report)) =
            (self.moment(record)?, start, record.get("report").and_then(Json::as_u64))
        else {
            return Err(anyhow!("a report without its time"));
        };
        self.output.set_report(report);
        let start = self.output.clock.boot_time(start.as_nanosecond());
        self.output.close_report(now, start, None);
        Ok(())
    }

    /// The last record, with what is true of what was shown now; returns whether events were lost.
    fn finish(&mut self) -> bool {
        let mut end = match self.end.take() {
            Some(end) => end,
            // The rest was not read.
            None if self.output.full => {
                let mut end = Map::new();
                end.insert("reason".into(), "limit".into());
                end.insert("missed".into(), Json::Null);
                for (name, count) in LOST.iter().zip(self.lost) {
                    end.insert((*name).into(), count.into());
                }
                if let Some((ts, boot_ns)) = self.last.take() {
                    end.insert("ts".into(), ts);
                    end.insert("boot_ns".into(), boot_ns);
                }
                end
            }
            None => {
                if self.output.reader() == Reader::There {
                    complain(self.name, "there is no `end` record: what was saved may not be all");
                }
                return self.lost != [0; 3];
            }
        };
        let number = |name: &str| end.get(name).and_then(Json::as_u64).unwrap_or(0);
        let names = [&LOST[..], &["missed"]].concat();
        let counts: Vec<String> = names
            .iter()
            .filter(|name| number(name) > 0)
            .map(|name| format!("{name} {}", number(name)))
            .collect();
        if !counts.is_empty() {
            let counts = counts.join(", ");
            complain(self.name, &format!("not all was seen when this was saved: {counts}"));
        }
        if self.output.form() == Form::Json {
            let filtered = number("filtered") + self.output.filtered;
            end.insert("events".into(), self.output.shown.into());
            end.insert("filtered".into(), filtered.into());
            // As everywhere, what a line is stands at its beginning.
            end.remove("type");
            let rest = escape::relayed(&Json::Object(end).to_string());
            self.output.json_line(&format!("{{\"type\":\"end\",{}", &rest[1..]));
        }
        !counts.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is read back as it was, for every type.
    #[test]
    fn values_survive_the_way_through_json() {
        static FLAGS: [crate::value::Flag; 2] =
            [crate::value::Flag::bit(1, "A"), crate::value::Flag::bit(2, "B")];
        let frames =
            [Frame { addr: 7, sym: Some("f\"".into()), off: 3, module: None, module_off: None }];
        let values = [
            (Type::Bool, Value::Bool(true)),
            (Type::Int, Value::Int(-5)),
            (Type::Uint, Value::Uint(u64::MAX)),
            (Type::Id, Value::Id(u64::MAX)),
            (Type::String, Value::Bytes(b"a\nb\\\"\x1b")),
            (Type::String, Value::Bytes(b"\xff")),
            (Type::String, Value::Cut(b"\xffx")),
            (Type::String, Value::Null),
            (Type::List, Value::List(b"ls\0\0a b\0", true)),
            (Type::List, Value::List(b"\xff\0b\0", false)),
            (Type::List, Value::List(b"", false)),
            (Type::Errno, Value::Errno(-2)),
            (Type::Errno, Value::Errno(0)),
            (Type::Errno, Value::Null),
            (Type::Name, Value::Name(Some("READ"), 1)),
            (Type::Name, Value::Name(None, -9)),
            (Type::Flags, Value::Flags(&FLAGS, 7)),
            (Type::Ip, Value::Ip([192, 0, 2, 1].into())),
            (Type::Stack, Value::Stack(&frames)),
        ];
        for (ty, value) in values {
            let show = |value: &Value<'_>| {
                let mut out = b"{\"a\":0".to_vec();
                value.json(&mut out, "x", ty);
                out.push(b'}');
                let mut text = Vec::new();
                let width = value.text(&mut text, crate::value::Format::Plain, "?");
                let mut csv = Vec::new();
                value.csv(&mut csv, ty);
                (out, text, width, csv)
            };
            let first = show(&value);
            let record: Map<String, Json> = serde_json::from_slice(&first.0).expect("JSON");
            let saved = Saved::read(&record, "x", ty).expect("of its type");
            assert!(ty.holds(&saved.value()));
            assert_eq!(show(&saved.value()), first, "{ty:?}");
        }
    }

    #[test]
    fn another_type_is_seen() {
        let record = |text: &str| serde_json::from_str::<Map<String, Json>>(text).expect("JSON");
        for (text, ty) in [
            ("{\"x\":1}", Type::String),
            ("{\"x\":\"1\"}", Type::Uint),
            ("{\"x\":-1}", Type::Uint),
            ("{\"x\":\"a\"}", Type::Id),
            ("{\"x\":\"ENOENT\"}", Type::Errno),
            ("{\"x\":\"ENOENT\",\"x_raw\":\"2\"}", Type::Errno),
            ("{\"x\":[1]}", Type::List),
            ("{\"x\":\"a\",\"x_b64\":\"?\"}", Type::String),
            ("{\"x\":[{}]}", Type::Stack),
        ] {
            assert!(Saved::read(&record(text), "x", ty).is_none(), "{text} as {ty:?}");
        }
        assert!(matches!(Saved::read(&record("{}"), "x", Type::Uint), Some(Saved::Null)));
    }
}
