// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The options that every tool has. The runner alone declares them; a tool only says which letter
//! each has there, and may replace one by its own of the same long name.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Arg;
use clap::ArgAction;
use clap::ArgMatches;
use clap::Command;
use clap::builder::PossibleValuesParser;
use clap::builder::ValueParser;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapHandle;

use crate::cgroup;
use crate::cgroup::Cgroup;
use crate::condition::Condition;
use crate::container::Selector;
use crate::error::unsupported;
use crate::error::usage;
use crate::output::Choice;
use crate::output::Color;
use crate::output::Form;
use crate::output::Output;
use crate::output::Selection;
use crate::pidns;
use crate::session::Every;
use crate::table::Table;
use crate::table::TableChoice;
use crate::time::TimeFormat;

/// A command name as `--comm` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comm {
    /// The name, or its beginning.
    pub name: Vec<u8>,
    /// Whether it is only the beginning (`name*`).
    pub prefix: bool,
}

impl Comm {
    fn parse(text: &str) -> Result<Self, String> {
        let (name, prefix) = match text.strip_suffix('*') {
            Some(start) => (start, true),
            None => (text, false),
        };
        if name.is_empty() && !prefix {
            return Err("an empty command name".into());
        }
        if name.len() > 15 {
            return Err("the kernel keeps only 15 bytes of a command name".into());
        }
        Ok(Self { name: name.as_bytes().to_vec(), prefix })
    }

    /// The name and the mask as two words, as the kernel side compares them.
    pub fn words(&self) -> ([u64; 2], [u64; 2]) {
        let mut wanted = [0u8; 16];
        let mut mask = [0u8; 16];
        wanted[..self.name.len()].copy_from_slice(&self.name);
        // An exact name includes the NUL behind it; what follows that NUL does not matter.
        let compared = self.name.len() + usize::from(!self.prefix);
        mask[..compared].fill(0xff);
        let words = |bytes: [u8; 16]| {
            let (low, high) = bytes.split_at(8);
            let word = |half: &[u8]| u64::from_ne_bytes(half.try_into().unwrap_or([0; 8]));
            [word(low), word(high)]
        };
        (words(wanted), words(mask))
    }
}

/// The values of the common options.
#[derive(Clone, Debug)]
pub struct Common {
    /// Output form, fields, time column, limit.
    pub choice: Choice,
    /// `--duration`.
    pub duration: Option<Duration>,
    /// `--pid`, `--tid`, `--ppid`, `--uid`; empty = any.
    pub pid: Vec<u32>,
    /// See `pid`.
    pub tid: Vec<u32>,
    /// See `pid`.
    pub ppid: Vec<u32>,
    /// See `pid`.
    pub uid: Vec<u32>,
    /// `--comm`.
    pub comm: Option<Comm>,
    /// `--cgroup`; empty = any.
    pub cgroup: Vec<Cgroup>,
    /// `--container`; empty = any.
    pub container: Vec<Selector>,
    /// `--cgroupmap`: a pinned map whose keys are cgroup ids.
    pub cgroupmap: Option<PathBuf>,
    /// `--mntnsmap`: a pinned map whose keys are inodes of mount namespaces.
    pub mntnsmap: Option<PathBuf>,
    /// `--tree`.
    pub tree: Option<u32>,
    /// `--include-self`.
    pub include_self: bool,
    /// `--from`: saved JSON lines, or `-`.
    pub from: Option<PathBuf>,
    /// `--buffer-size`, in bytes.
    pub buffer_size: Option<u64>,
    /// `--max-rate`: events a second.
    pub max_rate: Option<u64>,
    /// `--btf`.
    pub btf: Option<PathBuf>,
    /// `--ready-fd`.
    pub ready_fd: Option<i32>,
    /// `--strict`.
    pub strict: bool,
    /// `--verbose`.
    pub verbose: bool,
    /// The command after `--`, or the one of `--run`.
    pub command: Vec<OsString>,
}

impl Common {
    /// Whether any filter on the task is set; `--include-self` does not count.
    pub fn filters_tasks(&self) -> bool {
        !(self.pid.is_empty()
            && self.tid.is_empty()
            && self.ppid.is_empty()
            && self.uid.is_empty()
            && self.cgroup.is_empty()
            && self.container.is_empty())
            || self.comm.is_some()
            || self.tree.is_some()
            || self.cgroupmap.is_some()
            || self.mntnsmap.is_some()
    }
}

fn number_list(text: &str) -> Result<Vec<u32>, String> {
    text.split(',')
        .map(|word| match word.trim().parse::<u32>() {
            Ok(0) | Err(_) => Err(format!("'{word}' is not a positive number")),
            Ok(number) => Ok(number),
        })
        .collect()
}

/// Numbers, or names from /etc/passwd: never getpwnam, which may load code and ask the network.
fn uid_list(text: &str) -> Result<Vec<u32>, String> {
    let mut passwd = None;
    text.split(',')
        .map(str::trim)
        .map(|word| {
            if let Ok(uid) = word.parse::<u32>() {
                return Ok(uid);
            }
            let passwd =
                passwd.get_or_insert_with(|| fs::read_to_string("/etc/passwd").unwrap_or_default());
            uid_of(passwd, word)
                .ok_or_else(|| format!("'{word}' is neither a uid nor a name in /etc/passwd"))
        })
        .collect()
}

fn uid_of(passwd: &str, name: &str) -> Option<u32> {
    passwd.lines().find_map(|line| {
        let mut parts = line.split(':');
        (parts.next() == Some(name)).then(|| parts.nth(1)?.parse().ok())?
    })
}

/// Parses seconds, also with a fraction: `10`, `0.5`.
///
/// # Errors
/// A sentence, for what is no positive number.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match text.parse::<f64>() {
        Ok(n) if plain && n > 0.0 && n < 1e9 => Ok(Duration::from_secs_f64(n)),
        _ => Err("not a positive number of seconds".into()),
    }
}

// A doc comment on a struct that is flattened would become the tool's own description.
#[allow(missing_docs)]
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Reports {
    /// Seconds between reports; without it, one report at the end
    #[arg(value_parser = seconds)]
    pub interval: Option<Duration>,
    /// End after this many reports
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
}

impl Reports {
    /// What to do so often.
    pub fn every<'a>(&self, act: &'a mut dyn FnMut(&mut Output) -> Result<()>) -> Every<'a> {
        Every { interval: self.interval, count: self.count, act }
    }
}

/// Parses a size: `4096`, `64k`, `16M`, `1G` (powers of 1024).
///
/// # Errors
/// A sentence, for what is no positive size.
pub fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err("a size is a number, or a number with k, M or G".into()),
    };
    match digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)) {
        Some(0) | None => Err("a size is a positive number, or one with k, M or G".into()),
        Some(bytes) => Ok(bytes),
    }
}

fn buffer_size(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if !(4096..=1 << 30).contains(&bytes) {
        return Err("the buffer takes 4k to 1G".into());
    }
    Ok(bytes.next_power_of_two())
}

fn ready_fd(text: &str) -> Result<i32, String> {
    match text.parse::<i32>() {
        Ok(fd) if fd > 2 => Ok(fd),
        _ => Err("a descriptor above 2 that the caller left open".into()),
    }
}

/// A BPF hash map pinned in bpffs, whose keys have this many bytes.
fn pinned_map(path: &str, key_size: u32) -> Result<PathBuf, String> {
    let map = MapHandle::from_pinned_path(path).map_err(|error| format!("{error}"))?;
    if !map.map_type().is_hash_map() || map.key_size() != key_size {
        return Err(format!("not a hash map with keys of {key_size} bytes"));
    }
    Ok(PathBuf::from(path))
}

const OUTPUT: &str = "Output";
const FILTERS: &str = "Filters";
const RUNNING: &str = "Running";

/// Whether this option of a tool is a common one: only those stand under these headings.
pub(crate) fn is_common(arg: &Arg) -> bool {
    matches!(arg.get_help_heading(), Some(OUTPUT | FILTERS | RUNNING))
}

/// Every common option without its letter.
fn all() -> Vec<Arg> {
    let flag = |name: &'static str, heading, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help_heading(heading).help(help)
    };
    let value = |name: &'static str, heading, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help_heading(heading).help(help)
    };
    let list =
        |name: &'static str, value_name: &'static str, help: &'static str, parser: ValueParser| {
            value(name, FILTERS, value_name, help).action(ArgAction::Append).value_parser(parser)
        };
    vec![
        value("output", OUTPUT, "FORM", "Form of the output: columns, json or csv")
            .value_parser(PossibleValuesParser::new(["columns", "json", "csv"]))
            .hide_possible_values(true),
        flag("json", OUTPUT, "The same as --output json").overrides_with("output"),
        value("fields", OUTPUT, "LIST", "Show these fields (a,b), or change the default (+a,-b)")
            .allow_hyphen_values(true)
            .value_parser(Selection::parse),
        flag("timestamp", OUTPUT, "Show the time of each event"),
        value(
            "time-format",
            OUTPUT,
            "HOW",
            "wall, utc, iso, epoch, since-start, since-first or boot",
        )
        .value_parser(PossibleValuesParser::new(TimeFormat::NAMES.map(|(name, _)| name)))
        .hide_possible_values(true),
        value("color", OUTPUT, "WHEN", "Colors: auto (on a terminal), always or never")
            .value_parser(PossibleValuesParser::new(["auto", "always", "never"]))
            .hide_possible_values(true),
        value("limit", OUTPUT, "N", "End after N records")
            .value_parser(clap::value_parser!(u64).range(1..)),
        list(
            "filter",
            "'FIELD OP VALUE'",
            "Show only records of which this holds: = != < <= > >=, ~ and !~ for a regular expression",
            ValueParser::new(Condition::parse),
        ),
        list("pid", "LIST", "Only these processes", ValueParser::new(number_list)),
        list("tid", "LIST", "Only these threads", ValueParser::new(number_list)),
        list("ppid", "LIST", "Only children of these processes", ValueParser::new(number_list)),
        list(
            "uid",
            "LIST",
            "Only these users (real uid, number or name)",
            ValueParser::new(uid_list),
        ),
        value("comm", FILTERS, "NAME", "Only this command name; NAME* for a beginning")
            .value_parser(Comm::parse),
        list("cgroup", "PATH", "Only this cgroup (v2) and what is below it", ValueParser::string()),
        list(
            "container",
            "LIST",
            "Only these containers (name, POD/NAME, or 4 and more digits of the id), also later ones",
            ValueParser::new(Selector::list),
        ),
        value("tree", FILTERS, "PID", "Only this process and its descendants")
            .value_parser(clap::value_parser!(u32).range(1..)),
        value("cgroupmap", FILTERS, "FILE", "Only cgroups whose ids are in this pinned BPF map")
            .value_parser(|path: &str| pinned_map(path, 8)),
        value(
            "mntnsmap",
            FILTERS,
            "FILE",
            "Only mount namespaces whose inodes are in this pinned map",
        )
        .value_parser(|path: &str| pinned_map(path, 4)),
        flag("include-self", FILTERS, "Do not leave this tool itself out"),
        value("from", RUNNING, "FILE", "Show again what --output json has saved; - is stdin")
            .value_parser(clap::value_parser!(PathBuf)),
        value("duration", RUNNING, "SECONDS", "End after this time").value_parser(seconds),
        value(
            "buffer-size",
            RUNNING,
            "SIZE",
            "Event buffer, all CPUs together (default: 1M a CPU, 4M to 64M)",
        )
        .value_parser(buffer_size),
        value("max-rate", RUNNING, "N", "Take at most N events a second; the others are counted")
            .value_parser(clap::value_parser!(u64).range(1..)),
        value("run", RUNNING, "STRING", "Run this with sh -c when ready, as -- COMMAND does")
            .conflicts_with("command")
            .value_parser(clap::value_parser!(OsString)),
        value("btf", RUNNING, "FILE", "Kernel types, for kernels without /sys/kernel/btf/vmlinux")
            .value_parser(clap::value_parser!(PathBuf)),
        value(
            "ready-fd",
            RUNNING,
            "N",
            "Write a line to this descriptor when everything is attached",
        )
        .value_parser(ready_fd),
        flag("strict", RUNNING, "End with status 4 if events were lost"),
        flag("verbose", RUNNING, "Say what is done, and show libbpf's messages"),
    ]
}

/// The options of tools that show tables.
fn of_tables(table: Table) -> Vec<Arg> {
    let names: Vec<&str> = table.sorts.iter().map(|(name, _)| *name).collect();
    let names = if names.is_empty() { String::new() } else { format!("{}, or ", names.join(", ")) };
    let arg = |name: &'static str| {
        let others = table.names.iter().filter(move |(known, _)| *known == name);
        Arg::new(name).long(name).help_heading(OUTPUT).aliases(others.map(|(_, other)| *other))
    };
    let default =
        if table.runs_on { "all".into() } else { format!("what fits, or {}", table.rows) };
    let mut args = vec![
        arg("sort")
            .value_name("FIELD")
            .help(format!("Sort rows by this: {names}any field (default: {})", table.sort)),
        arg("rows")
            .value_name("N")
            .value_parser(clap::value_parser!(u32).range(1..))
            .help(format!("Show at most N rows (default: {default})")),
    ];
    if !table.runs_on {
        args.push(
            arg("no-clear")
                .action(ArgAction::SetTrue)
                .help("Print one table after another instead of drawing over the last"),
        );
    }
    args
}

/// Adds the common options to a tool's own. An option that the tool has itself is left out.
pub fn add_common(mut command: Command, letters: &[(&str, char)], table: Option<Table>) -> Command {
    let own: Vec<String> =
        command.get_arguments().filter_map(|arg| arg.get_long().map(String::from)).collect();
    let taken: Vec<char> = command.get_arguments().filter_map(Arg::get_short).collect();
    for arg in all().into_iter().chain(table.into_iter().flat_map(of_tables)) {
        let name = arg.get_id().to_string();
        if own.contains(&name) {
            continue;
        }
        let letter = letters.iter().find(|(long, _)| *long == name).map(|(_, c)| *c).or(match name
            .as_str()
        {
            "output" => Some('o'),
            "json" => Some('j'),
            "verbose" => Some('v'),
            _ => None,
        });
        command = match letter.filter(|letter| !taken.contains(letter)) {
            Some(letter) => command.arg(arg.short(letter)),
            None => command.arg(arg),
        };
    }
    let help = |name: &'static str| Arg::new(name).long(name).help_heading(RUNNING);
    command
        .disable_help_flag(true)
        .arg(help("help").short('h').short_alias('?').action(ArgAction::Help).help("Print help"))
        .arg(help("usage").action(ArgAction::HelpShort).hide(true))
        .arg(
            Arg::new("command")
                .value_name("COMMAND")
                .help("Run this when ready, trace its processes, and end with it")
                .help_heading(RUNNING)
                .num_args(1..)
                .last(true)
                .value_parser(clap::value_parser!(OsString)),
        )
}

fn get<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> Option<T> {
    matches.try_get_one::<T>(name).ok().flatten().cloned()
}

fn is_set(matches: &ArgMatches, name: &str) -> bool {
    get::<bool>(matches, name).unwrap_or(false)
}

fn given(matches: &ArgMatches, name: &str) -> bool {
    matches.try_contains_id(name).unwrap_or(false)
        && matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine)
}

/// The v2 hierarchy, for the filters that need it.
fn hierarchy() -> Result<cgroup::Mount> {
    cgroup::mount().ok_or_else(|| {
        unsupported(
            "filters on cgroups and containers need the cgroup v2 hierarchy, and this machine has \
             none mounted",
        )
    })
}

fn cgroups(matches: &ArgMatches) -> Result<Vec<Cgroup>> {
    let paths = matches.try_get_many::<String>("cgroup").ok().flatten();
    let paths: Vec<&String> = paths.into_iter().flatten().collect();
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    if paths.len() > crate::filter::CGROUPS {
        return Err(usage(format!("--cgroup takes at most {}", crate::filter::CGROUPS)));
    }
    let mount = hierarchy()?;
    let find = |path: &&String| Cgroup::find(&mount, path);
    paths
        .iter()
        .map(find)
        .collect::<Result<_, _>>()
        .map_err(|why| usage(format!("--cgroup: {why}")))
}

impl Common {
    /// Takes the common options out of what was parsed.
    ///
    /// # Errors
    /// A usage error for options that the tool refuses, and for a BTF file that is not there.
    pub fn from_matches(
        matches: &ArgMatches,
        refused: &[(&str, &str)],
        table: Option<Table>,
    ) -> Result<Self> {
        for (name, why) in refused {
            if given(matches, name) {
                return Err(usage(format!("--{name} makes no sense here: {why}")));
            }
        }
        let lists = |name: &str| -> Vec<u32> {
            let all = matches.try_get_many::<Vec<u32>>(name).ok().flatten();
            all.into_iter().flatten().flatten().copied().collect()
        };
        let form = match get::<String>(matches, "output").as_deref() {
            _ if is_set(matches, "json") => Form::Json,
            Some("json") => Form::Json,
            Some("csv") => Form::Csv,
            _ => Form::Columns,
        };
        let time_format = get::<String>(matches, "time-format").and_then(|name| {
            TimeFormat::NAMES.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
        });
        let btf = get::<PathBuf>(matches, "btf");
        if let Some(path) = &btf {
            crate::btf::KernelBtf::read(path)
                .map_err(|error| usage(format!("--btf {}: {error}", path.display())))?;
        }
        let container: Vec<Selector> = {
            let all = matches.try_get_many::<Vec<Selector>>("container").ok().flatten();
            all.into_iter().flatten().flatten().cloned().collect()
        };
        let cgroup = cgroups(matches)?;
        if !container.is_empty() {
            hierarchy()?;
        }
        Ok(Self {
            choice: Choice {
                form,
                color: match get::<String>(matches, "color").as_deref() {
                    Some("always") => Color::Always,
                    Some("never") => Color::Never,
                    _ => Color::Auto,
                },
                fields: get::<Selection>(matches, "fields"),
                timestamp: is_set(matches, "timestamp"),
                time_format,
                filters: matches
                    .try_get_many::<Condition>("filter")
                    .ok()
                    .flatten()
                    .into_iter()
                    .flatten()
                    .cloned()
                    .collect(),
                limit: get::<u64>(matches, "limit"),
                of_host: pidns::own().is_some() || get::<PathBuf>(matches, "from").is_some(),
                table: table.map(|table| TableChoice {
                    table,
                    sort: get::<String>(matches, "sort"),
                    rows: get::<u32>(matches, "rows").map(|rows| rows as usize),
                    clear: !is_set(matches, "no-clear"),
                }),
            },
            duration: get::<Duration>(matches, "duration"),
            pid: lists("pid"),
            tid: lists("tid"),
            ppid: lists("ppid"),
            uid: lists("uid"),
            comm: get::<Comm>(matches, "comm"),
            cgroup,
            container,
            cgroupmap: get::<PathBuf>(matches, "cgroupmap"),
            mntnsmap: get::<PathBuf>(matches, "mntnsmap"),
            tree: get::<u32>(matches, "tree"),
            include_self: is_set(matches, "include-self"),
            from: get::<PathBuf>(matches, "from"),
            buffer_size: get::<u64>(matches, "buffer-size"),
            max_rate: get::<u64>(matches, "max-rate"),
            btf,
            ready_fd: get::<i32>(matches, "ready-fd"),
            strict: is_set(matches, "strict"),
            verbose: is_set(matches, "verbose"),
            command: command_of(matches),
        })
    }
}

/// The command to run, from `-- COMMAND` or `--run`.
fn command_of(matches: &ArgMatches) -> Vec<OsString> {
    match get::<OsString>(matches, "run") {
        Some(script) => ["/bin/sh".into(), "-c".into(), script].into(),
        None => matches.get_many::<OsString>("command").into_iter().flatten().cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked() {
        assert_eq!(number_list("1,22"), Ok(vec![1, 22]));
        for bad in ["abc", "5x", "-1", "0", "", "1,,2", "4294967296"] {
            assert!(number_list(bad).is_err(), "{bad}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["abc", "5x", "-1", "0", "", "inf", "nan", "1e3"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
        assert_eq!((size("64k"), size("2M"), size("7")), (Ok(65536), Ok(2 << 20), Ok(7)));
        for bad in ["abc", "5x", "-1", "0", "", "99999999999G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(buffer_size("5000"), Ok(8192));
        assert!(buffer_size("1").is_err() && ready_fd("2").is_err() && ready_fd("x").is_err());
    }

    #[test]
    fn users_come_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/false\n";
        assert_eq!((uid_of(passwd, "www-data"), uid_of(passwd, "www")), (Some(33), None));
        assert_eq!(uid_list("0,33"), Ok(vec![0, 33]));
        assert!(uid_list("no-such-user").is_err() && uid_list("-1").is_err());
    }

    #[test]
    fn comm_words() {
        let (name, mask) = Comm::parse("sh").expect("valid").words();
        assert_eq!((name[1], mask[1]), (0, 0));
        assert_eq!(mask[0].to_ne_bytes(), [255, 255, 255, 0, 0, 0, 0, 0]);
        let (_, prefix) = Comm::parse("sh*").expect("valid").words();
        assert_eq!(prefix[0].to_ne_bytes(), [255, 255, 0, 0, 0, 0, 0, 0]);
        let (_, all) = Comm::parse("fifteen-bytes-x").expect("valid").words();
        assert_eq!(all, [u64::MAX; 2]);
        assert!(Comm::parse("sixteen-bytes-xx").is_err() && Comm::parse("").is_err());
    }
}
