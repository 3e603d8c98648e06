// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! `bpfscope schema TOOL`: the JSON Schema (draft 2020-12) of a tool's JSON lines.

use serde_json::Map;
use serde_json::Value as Json;
use serde_json::json;

use crate::docs::unit;
use crate::output::Output;
use crate::record::Class;
use crate::record::Field;
use crate::record::Kind;
use crate::record::Records;
use crate::record::Source;
use crate::value::Type;

/// A record: its properties, and which of them are always there.
#[derive(Default)]
struct Object {
    properties: Map<String, Json>,
    required: Vec<String>,
}

impl Object {
    /// Of this `type`.
    fn of(ty: &str) -> Self {
        Self::default().with("type", json!({"const": ty}))
    }

    /// With a property that is always there.
    fn with(mut self, name: &str, schema: Json) -> Self {
        self.required.push(name.into());
        self.may_have(name, schema)
    }

    /// With a property that is sometimes there.
    fn may_have(mut self, name: &str, schema: Json) -> Self {
        self.properties.insert(name.into(), schema);
        self
    }

    /// With the two times of every measurement.
    fn with_times(self) -> Self {
        self.with("ts", time()).with("boot_ns", decimal())
    }

    /// With a field, and what stands beside it.
    fn with_field(mut self, source: Source, field: &Field) -> Self {
        let name = field.name;
        let mut doc = field.doc.to_string();
        if !unit(name).is_empty() {
            doc = format!("{doc} ({})", unit(name));
        }
        // Times are always known.
        let schema = match source {
            Source::Time => time(),
            Source::BootNs => decimal(),
            _ => value(field.ty),
        };
        self = self.with(name, described(schema, &doc));
        if field.ty.has_raw() {
            let doc = format!("The number behind {name}.");
            self = self.with(
                &format!("{name}_raw"),
                described(json!({"type": ["integer", "null"]}), &doc),
            );
        }
        if matches!(source, Source::Time | Source::BootNs) {
            return self;
        }
        if matches!(field.ty, Type::String | Type::List) {
            let cut = described(json!({"const": true}), &format!("The end of {name} is missing."));
            let exact = if field.ty == Type::List { texts() } else { text() };
            let exact = described(
                exact,
                &format!("The exact bytes of {name} (base64), where they are not UTF-8."),
            );
            self =
                self.may_have(&format!("{name}_cut"), cut).may_have(&format!("{name}_b64"), exact);
        }
        self
    }

    fn schema(self, title: &str) -> Json {
        json!({
            "title": title,
            "type": "object",
            "properties": self.properties,
            "required": self.required,
        })
    }
}

fn described(mut schema: Json, doc: &str) -> Json {
    if !doc.is_empty() {
        schema["description"] = doc.into();
    }
    schema
}

fn text() -> Json {
    json!({"type": "string"})
}

fn texts() -> Json {
    json!({"type": "array", "items": text()})
}

fn count() -> Json {
    json!({"type": "integer", "minimum": 0})
}

fn count_or_null() -> Json {
    json!({"type": ["integer", "null"], "minimum": 0})
}

fn time() -> Json {
    json!({
        "type": "string",
        "format": "date-time",
        "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\\.[0-9]{9}[+-][0-9]{2}:[0-9]{2}$",
    })
}

/// A 64-bit number that is a string.
fn decimal() -> Json {
    json!({"type": "string", "pattern": "^[0-9]+$"})
}

/// What a field of this type holds.
fn value(ty: Type) -> Json {
    match ty {
        Type::Bool => json!({"type": ["boolean", "null"]}),
        Type::Int => json!({"type": ["integer", "null"]}),
        Type::Uint => count_or_null(),
        Type::Id => json!({"type": ["string", "null"], "pattern": "^[0-9]+$"}),
        Type::String | Type::Errno | Type::Name | Type::Flags | Type::Ip => {
            json!({"type": ["string", "null"]})
        }
        Type::List => json!({"type": ["array", "null"], "items": text()}),
        Type::Stack => {
            let frame = Object::default()
                .with("addr", decimal())
                .with("sym", json!({"type": ["string", "null"]}))
                .with("off", count())
                .with("module", json!({"type": ["string", "null"]}))
                .schema("frame");
            json!({"type": ["array", "null"], "items": frame})
        }
    }
}

/// The records that every tool writes around its own.
fn frame_of(tool: &str) -> Vec<Json> {
    let losses = |object: Object| {
        object
            .with("lost", count())
            .with("map_full", count())
            .with("missed", count_or_null())
            .with("rate_limited", count())
    };
    let ready = Object::of("ready")
        .with("schema", json!({"const": 1}))
        .with("tool", json!({"const": tool}))
        .with("version", text())
        .with("way", text())
        .with("programs", texts())
        .may_have("pid_namespace", count())
        .with_times();
    let report = Object::of("report").with("report", count()).with("start_ts", time()).with_times();
    let program = Object::default()
        .with("name", text())
        .with("runs", count())
        .with("run_ns", count())
        .schema("program");
    let end = losses(Object::of("end"))
        .with("reason", text())
        .with("events", count())
        .with("filtered", count())
        .may_have("child_status", count_or_null())
        .may_have("cpu_ns", count())
        .may_have("programs", json!({"type": "array", "items": program}))
        .with_times();
    vec![
        ready.schema("ready"),
        report.schema("report"),
        losses(Object::of("lost")).with_times().schema("lost"),
        end.schema("end"),
    ]
}

/// The records of one kind, with those fields that are shown.
fn record(kind: &Kind, shown: &[&str], several: bool) -> Json {
    let (ty, title) = match kind.class {
        Class::Event => ("event", format!("event: {}", kind.name)),
        Class::Row => ("row", format!("row: {}", kind.name)),
        Class::Histogram => return histogram(kind),
    };
    let mut object = Object::of(ty);
    if several {
        object = object.with("kind", json!({"const": kind.name}));
    }
    if kind.class == Class::Row {
        object = object.with("report", count());
    }
    for (source, field) in kind.all_fields(false) {
        if shown.contains(&field.name) {
            object = object.with_field(source, &field);
        }
    }
    with_host(object, kind).schema(&title)
}

/// With what is there in a PID namespace only.
fn with_host(object: Object, kind: &Kind) -> Object {
    kind.host().fold(object, |object, (_, field)| {
        object.may_have(field.name, described(value(field.ty), field.doc))
    })
}

fn histogram(kind: &Kind) -> Json {
    let key = kind
        .fields
        .iter()
        .enumerate()
        .fold(Object::default(), |key, (i, field)| key.with_field(Source::Field(i), field));
    let key = with_host(key, kind);
    let bucket = Object::default().with("ge", count()).with("lt", count()).with("count", count());
    Object::of("histogram")
        .with("report", count())
        .with("name", json!({"const": kind.name}))
        .with("key", key.schema("key"))
        .with("unit", json!({"enum": ["ns", "bytes", "count"]}))
        .with("buckets", json!({"type": "array", "items": bucket.schema("bucket")}))
        .with("count", count())
        .with("sum", count())
        .with_times()
        .schema(&format!("histogram: {}", kind.name))
}

/// The schema of one line of `tool`'s JSON as `output` would write it.
pub(crate) fn of(tool: &str, records: &Records, output: &Output) -> String {
    let mut all = frame_of(tool);
    let several = records.kinds.len() > 1;
    for (i, kind) in records.kinds.iter().enumerate() {
        let shown: Vec<&str> = output.shown_fields(i).collect();
        all.push(record(kind, &shown, several));
    }
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": tool,
        "description": "One line of its JSON output. Fields may be added: ignore what is not known.",
        "oneOf": all,
    });
    format!("{schema:#}\n")
}
