// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The multi-call binary: every tool in one file.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::io;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Command;

use crate::completions;
use crate::docs;
use crate::doctor;
use crate::error;
use crate::error::usage;
use crate::man;
use crate::output::complain;
use crate::probe::Kernel;
use crate::probe::Program;
use crate::record::Records;
use crate::runner;
use crate::runner::Judgement;
use crate::runner::Trial;
use crate::tool::Alias;
use crate::tool::Bpf;
use crate::tool::Doc;
use crate::tool::Question;
use crate::tool::Tool;
use crate::tool::Way;

/// A tool, with its type forgotten.
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// Its other names.
    pub aliases: &'static [Alias],
    /// Its manual.
    pub doc: Doc,
    /// Arguments that it cannot do without.
    pub needs: &'static [&'static str],
    /// Its row in the README.
    pub question: Question,
    /// Its command line.
    pub command: fn() -> Command,
    /// Its records under these options (without the tool's name).
    pub records: fn(&[&str]) -> Result<Records>,
    /// The same after it has looked at them, on which columns may depend.
    pub checked_records: fn(&[&str]) -> Result<Records>,
    /// The JSON Schema of what it writes under these options.
    pub schema: fn(Vec<OsString>) -> Result<String>,
    /// Its ways to hook under these options.
    pub ways: fn(&[&str]) -> Result<Vec<Way>>,
    /// Its programs, with what they attach to under these options.
    pub programs: fn(&[&str]) -> Result<Vec<Program>>,
    /// Looks whether it could be tried with these arguments (with its name).
    pub check: fn(Vec<OsString>) -> Result<()>,
    /// Hooks it in under these arguments (with its name) and takes it out again.
    pub trial: fn(Vec<OsString>) -> Result<Trial>,
    /// The ways that it could take on a kernel that does not run here.
    pub judge: fn(Vec<OsString>, &mut Kernel) -> Result<Judgement>,
    /// Its `main`.
    pub run: fn(Vec<OsString>) -> u8,
}

impl Entry {
    /// The entry of a tool.
    pub const fn of<T: Tool>() -> Self {
        Self {
            name: <T::Bpf as Bpf>::NAME,
            aliases: T::ALIASES,
            doc: T::DOC,
            needs: T::NEEDS,
            question: T::QUESTION,
            command: runner::command::<T>,
            records: |args| Ok(parse::<T>(args)?.records()),
            checked_records: runner::records::<T>,
            schema: runner::schema::<T>,
            ways: |args| Ok(parse::<T>(args)?.ways()),
            programs: runner::programs::<T>,
            check: runner::check::<T>,
            trial: runner::trial::<T>,
            judge: runner::judge::<T>,
            run: runner::run::<T>,
        }
    }

    /// The one-line description, from the doc comment on the tool's options.
    pub fn about(&self) -> String {
        (self.command)().get_about().map(ToString::to_string).unwrap_or_default()
    }
}

fn parse<T: Tool>(args: &[&str]) -> Result<T> {
    let name = <T::Bpf as Bpf>::NAME;
    let matches = runner::command::<T>()
        .try_get_matches_from(std::iter::once(name).chain(args.iter().copied()))?;
    Ok(T::from_arg_matches(&matches)?)
}

/// The last part of a path.
pub(crate) fn basename(path: &OsStr) -> Option<String> {
    Some(Path::new(path).file_name()?.to_string_lossy().into_owned())
}

/// Whether a program called `called` is the tool `name`: its name, also behind a prefix that ends
/// in `-` (`bpf-execsnoop`).
pub(crate) fn is_called(called: &str, name: &str) -> bool {
    called == name || called.strip_suffix(name).is_some_and(|prefix| prefix.ends_with('-'))
}

/// The tool that goes by `called`. Of several, the longest name: `tcpconnect` and `connect` could
/// both be meant otherwise.
pub(crate) fn find<'a>(tools: &'a [Entry], called: &str) -> Option<&'a Entry> {
    let matches = |tool: &Entry| {
        std::iter::once(tool.name)
            .chain(tool.aliases.iter().map(|alias| alias.name))
            .filter(|name| is_called(called, name))
            .map(str::len)
            .max()
    };
    tools
        .iter()
        .filter_map(|tool| Some((matches(tool)?, tool)))
        .max_by_key(|(n, _)| *n)
        .map(|(_, t)| t)
}

/// What the multi-call binary does beside being each tool: for its help, manual and completions.
pub(crate) const COMMANDS: &[(&str, &str)] = &[
    ("list", "Every tool with what it does"),
    ("help [TOOL]", "This text, or the tool's options"),
    ("doctor", "What tools need, what of it is here, and which of them run"),
    ("man [TOOL]", "The manual page of the tool or of bpfscope, as roff"),
    ("schema TOOL", "JSON Schema of the tool's JSON lines, under its options if any follow"),
    ("completions SHELL", "Completions for bash, zsh or fish"),
    (
        "docs PART",
        "Parts of the documentation: columns, fields, needs or options TOOL, output, readme",
    ),
];

fn help() -> String {
    let width = COMMANDS.iter().map(|(form, _)| form.len()).max().unwrap_or(0);
    let commands: String =
        COMMANDS.iter().map(|(form, text)| format!("  {form:width$}  {text}\n")).collect();
    format!(
        "\
eBPF observability tools for Linux

Usage: bpfscope TOOL [OPTIONS]
       bpfscope COMMAND

Commands:
{commands}
A link to this program that bears a tool's name, also behind a prefix (bpf-TOOL), is that tool.
"
    )
}

/// `main` of the multi-call binary.
pub fn main(tools: &[Entry]) -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let called = args.first().and_then(|arg| basename(arg)).unwrap_or_default();
    if let Some(tool) = find(tools, &called) {
        return ExitCode::from((tool.run)(args));
    }
    match dispatch(tools, &args[1.min(args.len())..]) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            complain("bpfscope", &format!("{error:#}"));
            ExitCode::from(error::status(&error))
        }
    }
}

fn dispatch(tools: &[Entry], args: &[OsString]) -> Result<u8> {
    let word = args.first().map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default();
    let second = args.get(1).map(|arg| arg.to_string_lossy().into_owned());
    match (word.as_str(), second.as_deref()) {
        ("", _) => Err(usage("which tool? bpfscope list names them, bpfscope help says more")),
        ("-h" | "--help", _) | ("help", None) => say(&help()),
        ("-V" | "--version", _) => say(&format!("bpfscope {}\n", env!("CARGO_PKG_VERSION"))),
        ("list", None) => say(&docs::list(tools)),
        ("list", Some(extra)) => Err(usage(format!("list takes no '{extra}'"))),
        ("help", Some(name)) => match find(tools, name) {
            Some(tool) => Ok((tool.run)(vec![tool.name.into(), "--help".into()])),
            None => Err(no_tool(name)),
        },
        ("doctor", _) => doctor::main(tools, args),
        ("schema", Some(name)) => match find(tools, name) {
            Some(tool) => say(&(tool.schema)(args[2..].to_vec())?),
            None => Err(no_tool(name)),
        },
        ("schema", None) => Err(usage("schema takes the name of a tool")),
        ("man", None | Some("bpfscope")) => say(&man::suite(tools)),
        ("man", Some(name)) => match find(tools, name) {
            Some(tool) => say(&man::tool(tool, tools)?),
            None => Err(no_tool(name)),
        },
        ("completions", shell) => match completions::of(shell.unwrap_or_default(), tools)? {
            Some(script) => say(&script),
            None => Err(usage("completions takes the name of a shell: bash, zsh or fish")),
        },
        ("docs", Some("output")) => say(&docs::output(tools)?),
        ("docs", Some("readme")) => say(&docs::questions(tools)),
        ("docs", Some(part @ ("columns" | "fields" | "options"))) => {
            let name = args.get(2).map(|arg| arg.to_string_lossy().into_owned());
            match (part, name.as_deref().and_then(|name| find(tools, name))) {
                ("columns", Some(tool)) => say(&docs::columns(tool)),
                ("options", Some(tool)) => say(&docs::options(tool)),
                (_, Some(tool)) => say(&docs::fields(tool)?),
                (_, None) => Err(usage(format!("docs {part} takes the name of a tool"))),
            }
        }
        ("docs", Some("needs")) => {
            let name = args.get(2).map(|arg| arg.to_string_lossy().into_owned());
            match name.as_deref().and_then(|name| find(tools, name)) {
                Some(tool) => say(&format!("{}\n", tool.needs.join(" "))),
                None => Err(usage("docs needs takes the name of a tool")),
            }
        }
        ("docs", _) => Err(usage(
            "docs takes: columns TOOL, fields TOOL, needs TOOL, options TOOL, output, readme",
        )),
        (name, _) => match find(tools, name) {
            Some(tool) => Ok((tool.run)(args.to_vec())),
            None => Err(no_tool(name)),
        },
    }
}

fn no_tool(name: &str) -> anyhow::Error {
    usage(format!("there is no tool '{name}'; bpfscope list names them"))
}

fn say(text: &str) -> Result<u8> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(error::OK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_a_prefix() {
        assert!(is_called("snoop", "snoop") && is_called("bpf-snoop", "snoop"));
        assert!(!is_called("xsnoop", "snoop") && !is_called("snoop-bpf", "snoop"));
    }
}
