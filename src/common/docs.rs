// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Documentation that is generated from the tools themselves.

use std::fmt::Write as _;

use anyhow::Result;

use crate::cli::is_common;
use crate::multi::Entry;
use crate::record::Class;
use crate::record::HOST;
use crate::record::PROCESS;
use crate::record::TIMES;
use crate::value::Type;

/// Every tool with what it does, a line each.
pub fn list(tools: &[Entry]) -> String {
    let width = tools.iter().map(|tool| tool.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for tool in tools {
        let _ = writeln!(out, "{:width$}  {}", tool.name, tool.about());
    }
    out
}

/// The README's table: which tool answers which question.
pub fn questions(tools: &[Entry]) -> String {
    let mut headings: Vec<&str> = tools.iter().map(|tool| tool.question.heading).collect();
    headings.sort_unstable();
    headings.dedup();
    let mut out = String::from("| area | question | tool |\n|---|---|---|\n");
    for heading in headings {
        for tool in tools.iter().filter(|tool| tool.question.heading == heading) {
            let names: Vec<String> = std::iter::once(tool.name)
                .chain(tool.aliases.iter().map(|alias| alias.name))
                .map(|name| format!("`{name}`"))
                .collect();
            let _ =
                writeln!(out, "| {heading} | {} | {} |", tool.question.question, names.join(", "));
        }
    }
    out
}

fn field_row(out: &mut String, name: &str, ty: Type, doc: &str) {
    let _ = writeln!(out, "| `{name}` | {} | {} | {doc} |", ty.json_name(), unit(name));
    if ty.has_raw() {
        let _ = writeln!(out, "| `{name}_raw` | number | | The number behind `{name}`. |");
    }
}

pub(crate) fn unit(name: &str) -> &'static str {
    match name.rsplit('_').next() {
        Some("ns") => "ns",
        Some("bytes") => "bytes",
        _ => "",
    }
}

/// docs/output.md: every record type and field of every tool.
///
/// # Errors
/// Fails when a tool does not accept an empty command line, which is a defect of the tool.
pub fn output(tools: &[Entry]) -> Result<String> {
    let mut out = String::from(OUTPUT_HEAD);
    out.push_str("\n| field | JSON type | unit | meaning |\n|---|---|---|---|\n");
    for (_, field) in &TIMES {
        field_row(&mut out, field.name, field.ty, field.doc);
    }
    out.push_str(
        "\nAnd every `event`:\n\n| field | JSON type | unit | meaning |\n|---|---|---|---|\n",
    );
    for (_, field) in &PROCESS {
        field_row(&mut out, field.name, field.ty, field.doc);
    }
    out.push_str(OUTPUT_PIDNS);
    for (_, field) in &HOST {
        field_row(&mut out, field.name, field.ty, field.doc);
    }
    out.push_str(OUTPUT_TYPES);
    for tool in tools {
        let _ = writeln!(out, "\n## {}\n\n{}.", tool.name, tool.about());
        let records = (tool.records)(&[])?;
        for kind in &records.kinds {
            let class = match kind.class {
                Class::Event => "event",
                Class::Row => "row",
                Class::Histogram => "histogram",
            };
            let _ = writeln!(out, "\n### `{class}`: {}\n", kind.name);
            if kind.fields.is_empty() {
                out.push_str("No fields of its own.\n");
                continue;
            }
            if kind.class == Class::Histogram {
                out.push_str("Fields of `key`; those that were not asked for are null.\n\n");
            }
            out.push_str("| field | JSON type | unit | meaning |\n|---|---|---|---|\n");
            for field in &kind.fields {
                field_row(&mut out, field.name, field.ty, field.doc);
            }
        }
    }
    Ok(out)
}

/// One line a field of a tool: kind, field, type. `tests/fields/TOOL` holds the released ones.
///
/// # Errors
/// As [`output`].
pub fn fields(tool: &Entry) -> Result<String> {
    let mut out = String::new();
    for kind in &(tool.records)(&[])?.kinds {
        let everywhere = kind.all_fields(false);
        for (_, field) in everywhere {
            let _ = writeln!(out, "{} {} {:?}", kind.name, field.name, field.ty);
        }
    }
    Ok(out)
}

/// One line an option of a tool: whether it is its `own` or `common`, its letter (- where it has
/// none), and all its long names. What is given by its place has the name of its value instead.
pub fn options(tool: &Entry) -> String {
    let mut out = String::new();
    let command = (tool.command)();
    for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
        let whose = if is_common(arg) { "common" } else { "own" };
        let letter = arg.get_short().map_or("-".into(), |letter| format!("-{letter}"));
        let _ = write!(out, "{whose} {letter}");
        if arg.is_positional() {
            let name = arg.get_value_names().and_then(|names| names.first());
            let name = name.map_or_else(
                || arg.get_id().as_str().to_uppercase(),
                std::string::ToString::to_string,
            );
            let _ = write!(out, " {name}");
        }
        let others = arg.get_all_aliases().unwrap_or_default();
        for name in arg.get_long().into_iter().chain(others) {
            let _ = write!(out, " --{name}");
        }
        out.push('\n');
    }
    out
}

/// One line a header of a tool's text columns, with none of its options that change which there
/// are, with each of them, and with each two.
pub fn columns(tool: &Entry) -> String {
    let command = (tool.command)();
    let mut switches: Vec<Vec<String>> = Vec::new();
    for arg in command.get_arguments().filter(|arg| !is_common(arg) || arg.get_id() == TIMESTAMP) {
        let Some(name) = arg.get_long() else { continue };
        if !arg.get_action().takes_values() {
            switches.push(vec![format!("--{name}")]);
        }
        for value in arg.get_possible_values() {
            if arg.get_action().takes_values() {
                switches.push(vec![format!("--{name}"), value.get_name().into()]);
            }
        }
    }
    let mut headers: Vec<&'static str> = Vec::new();
    let mut look = |given: &[&Vec<String>]| {
        let args: Vec<&str> = given.iter().flat_map(|s| s.iter().map(String::as_str)).collect();
        // Some exclude each other.
        let Ok(records) = (tool.checked_records)(&args) else { return };
        for column in records.kinds.iter().flat_map(|kind| &kind.columns) {
            if !headers.contains(&column.header) {
                headers.push(column.header);
            }
        }
    };
    look(&[]);
    for (i, one) in switches.iter().enumerate() {
        look(&[one]);
        switches[i + 1..].iter().for_each(|other| look(&[one, other]));
    }
    headers.into_iter().fold(String::new(), |out, header| out + header + "\n")
}

/// The common option that may change a tool's own columns.
const TIMESTAMP: &str = "timestamp";

const OUTPUT_HEAD: &str = "\
<!-- SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause -->
# Output

<!-- Generated by `make docs` (bpfscope docs output); do not edit. -->

With `--output json` a tool writes one JSON object a line to stdout, and nothing else. Field names
are snake case and end in their unit. A field's JSON type never varies; what could not be read is
null. Fields are only ever added.

- Times are nanoseconds and sizes bytes, whatever the text columns show.
- A field that is a name (an errno, a flag set, an enumeration) has the number beside it as
  `FIELD_raw`.
- A value whose end is missing has `FIELD_cut: true` beside it.
- Text that is not UTF-8 has the exact bytes beside it as `FIELD_b64` (base64); the field itself
  has U+FFFD where bytes did not fit.
- 64-bit ids are strings, because many JSON readers round large numbers.
- A tool with several kinds of events or rows says which in `kind`.

`bpfscope schema TOOL` prints all of this as a JSON Schema, and `TOOL --from FILE` shows saved lines
again, as text, CSV or JSON, with other fields or filtered.

`--output csv` writes a header and the same fields, with `FIELD_raw` as a column of its own;
what is not a measurement goes to stderr.

Every measurement has:
";

const OUTPUT_PIDNS: &str = "
`container`, `container_id`, `runtime`, `pod` and `unit` come from the cgroup's path and from files
of the runtime, also when the process has ended. A container in a container is the outer one.

A tool that runs in a PID namespace has `pid`, `tid` and `ppid` as that namespace has them, null for
processes that it does not see. Besides, every `event` has `host_pid` and `host_tid`, and so has what
has `pid` or `tid` as a field of its own, a `row` or the `key` of a `histogram`:

| field | JSON type | unit | meaning |
|---|---|---|---|
";

const OUTPUT_TYPES: &str = "
The records:

| `type` | when | fields beside the measurement's own |
|---|---|---|
| `ready` | everything is attached | `schema` (1), `tool`, `version`, `way`, `programs`; in a PID namespace its inode, `pid_namespace` |
| `event` | something happened | the process fields above |
| `row` | one line of a table | `report` |
| `histogram` | one distribution | `report`, `name`, `key`, `unit`, `buckets` (`ge`, `lt`, `count`), `count`, `sum` |
| `report` | closes an interval's rows and histograms | `report`, `start_ts` |
| `lost` | events were lost since the last one | `lost`, `map_full`, `missed`, `rate_limited` |
| `end` | the last line | `reason`, `events`, `filtered`, `lost`, `map_full`, `missed`, `rate_limited`, `child_status` (only after a command of its own), `cpu_ns` and `programs` (only with `--verbose`) |

`lost` counts events that the buffer had no room for, `map_full` map insertions that the kernel
refused, `missed` probe hits that the kernel itself skipped; null where it does not count those.
`reason` is a signal's name, `duration`, `limit`, `count`, `command`, `reader` or `quit`.
";
