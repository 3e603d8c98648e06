// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The only ladder: parse → open → configure → load → attach → run, for every tool.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use anyhow::Context as _;
use anyhow::Result;
use anyhow::ensure;
use clap::Arg;
use clap::ArgMatches;
use clap::Command;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use libbpf_rs::Link;
use libbpf_rs::MapHandle;
use libbpf_rs::Object;
use libbpf_rs::OpenObject;
use libbpf_rs::PrintLevel;
use libbpf_rs::ProgramMut;
use libbpf_rs::set_print;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use crate::aside::Asides;
use crate::btf::KernelBtf;
use crate::cgroup;
use crate::cgroup_names;
use crate::cgroup_names::CgroupNames;
use crate::cli::Common;
use crate::cli::add_common;
use crate::error;
use crate::error::Stop;
use crate::error::unsupported;
use crate::event_loop::Waiter;
use crate::filter;
use crate::globals;
use crate::globals::ReaderState;
use crate::kretprobe;
use crate::kretprobe::ReturnProbe;
use crate::output::Output;
use crate::output::complain;
use crate::packed;
use crate::privileges;
use crate::probe;
use crate::probe::Hook;
use crate::probe::Kernel;
use crate::record::Class;
use crate::record::Records;
use crate::saved;
use crate::saved::Replay;
use crate::schema;
use crate::session::Attached;
use crate::session::Session;
use crate::session::Start;
use crate::sys;
use crate::sys::Held;
use crate::tool::Alias;
use crate::tool::Bpf;
use crate::tool::OpenSkelOf;
use crate::tool::Tool;
use crate::tool::Way;

/// `main` of a stand-alone tool.
pub fn main<T: Tool>() -> ExitCode {
    ExitCode::from(run::<T>(std::env::args_os().collect()))
}

/// The tool's whole command line.
pub fn command<T: Tool>() -> Command {
    let name = <T::Bpf as Bpf>::NAME;
    let command = T::augment_args(Command::new(name));
    add_common(command, T::LETTERS, T::TABLE)
        .version(env!("CARGO_PKG_VERSION"))
        .help_template("{about}\n\n{usage-heading} {usage}\n\n{all-args}")
        .max_term_width(100)
        // As those are used to who come from tools that read their options with getopt or argp.
        .infer_long_args(true)
}

/// Runs a tool with these arguments, the first of which is the name it was called by. Returns the
/// exit status.
pub fn run<T: Tool>(args: Vec<OsString>) -> u8 {
    let name = <T::Bpf as Bpf>::NAME;
    match parse_and_run::<T>(args) {
        Ok(status) => status,
        Err(error) => {
            if let Some(Stop::Answer(text)) = error.downcast_ref() {
                // Nobody to tell when the reader has gone.
                let _ = std::io::stdout().write_all(text.as_bytes());
                return error::OK;
            }
            complain(name, &format!("{error:#}"));
            error::status(&error)
        }
    }
}

fn parse_and_run<T: Tool>(mut args: Vec<OsString>) -> Result<u8> {
    let name = <T::Bpf as Bpf>::NAME;
    let alias = complete::<T>(&mut args);
    let matches = match command::<T>().try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => return refuse(&error),
    };
    let (tool, common) = read::<T>(&matches, alias)?;
    let records = tool.records();
    if common.max_rate.is_some() && records.kinds.iter().all(|kind| kind.class != Class::Event) {
        return Err(error::usage("--max-rate makes no sense here: it shows no single events"));
    }
    // Refuses unknown fields before anything is opened.
    let output = Output::new(&records, &common.choice)?;
    let lost = match &common.from {
        Some(file) => Replay::new(name, &records, output)?.run(file)?,
        None => {
            let sink = Some((&records, output));
            matches!(climb(&tool, &common, sink, &mut Vec::new())?, Climbed::Ran(true))
        }
    };
    Ok(if lost && common.strict { error::LOST } else { error::OK })
}

/// Adds the words that an alias stands for, and the tool's name where there is none.
fn complete<T: Tool>(args: &mut Vec<OsString>) -> Option<&'static Alias> {
    let name = <T::Bpf as Bpf>::NAME;
    let called = args.first().and_then(|arg| crate::multi::basename(arg)).unwrap_or_default();
    let alias = T::ALIASES.iter().find(|alias| crate::multi::is_called(&called, alias.name));
    if let Some(alias) = alias {
        args.splice(1..1, alias.args.iter().map(OsString::from));
    }
    if args.is_empty() {
        args.push(name.into());
    }
    alias
}

fn read<T: Tool>(matches: &ArgMatches, alias: Option<&Alias>) -> Result<(T, Common)> {
    let mut tool = T::from_arg_matches(matches).map_err(|e| error::usage(first_line(&e)))?;
    let mut common = Common::from_matches(matches, T::REFUSED, T::TABLE)?;
    if common.from.is_some() {
        only_shows::<T>(matches, alias)?;
    }
    tool.check(&mut common)?;
    Ok((tool, common))
}

/// A way that cannot be taken, and why.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The way's name.
    pub way: &'static str,
    /// Why not.
    pub reason: String,
}

/// What came of hooking a tool in for a moment.
pub struct Trial {
    /// The way that it takes, with its optional programs settled; what is worth knowing about it.
    /// The error is what the tool would say.
    pub taken: Result<(Way, Vec<String>)>,
    /// The ways that were to be tried before, and were refused.
    pub refused: Vec<Refusal>,
}

/// Hooks a tool in as `run` would, and takes it out again at once.
///
/// # Errors
/// Those of the command line.
pub fn trial<T: Tool>(args: Vec<OsString>) -> Result<Trial> {
    let (tool, common) = read_quietly::<T>(args)?;
    let mut refused = Vec::new();
    let taken = climb(&tool, &common, None, &mut refused).and_then(|climbed| match climbed {
        Climbed::Tried(way, remarks) => Ok((*way, remarks)),
        Climbed::Ran(_) => anyhow::bail!("it ran instead of being tried"),
    });
    Ok(Trial { taken, refused })
}

/// Whether a tool could be tried with these arguments.
///
/// # Errors
/// Those of the command line.
pub fn check<T: Tool>(args: Vec<OsString>) -> Result<()> {
    read_quietly::<T>(args).map(drop)
}

/// The ways that a tool could take on a kernel that does not run here, best first, with what their
/// programs attach to; and those that it could not.
///
/// # Errors
/// Those of the command line.
pub fn judge<T: Tool>(args: Vec<OsString>, kernel: &mut Kernel) -> Result<Judgement> {
    let (tool, _) = read_quietly::<T>(args)?;
    let mut storage = MaybeUninit::uninit();
    let open = opened::<T>(None, &mut storage)?;
    let programs = probe::programs(open.open_object(), &tool.ways())?;
    let (ways, refused) = possible(&tool, &programs, kernel)?;
    Ok(Judgement { ways, refused, programs })
}

/// See [`judge`].
pub struct Judgement {
    /// What is left.
    pub ways: Vec<Way>,
    /// What is not.
    pub refused: Vec<Refusal>,
    /// All programs of the tool.
    pub programs: Vec<probe::Program>,
}

fn read_quietly<T: Tool>(mut args: Vec<OsString>) -> Result<(T, Common)> {
    let alias = complete::<T>(&mut args);
    let matches = command::<T>()
        .try_get_matches_from(args)
        .map_err(|error| error::usage(first_line(&error)))?;
    let (tool, common) = read::<T>(&matches, alias)?;
    if !common.command.is_empty() || common.from.is_some() {
        return Err(error::usage("a tool that is only tried runs no command and reads no file"));
    }
    Ok((tool, common))
}

/// The ways that can be tried on this kernel, in their order, and the others.
fn possible<T: Tool>(
    tool: &T,
    programs: &[probe::Program],
    kernel: &mut Kernel,
) -> Result<(Vec<Way>, Vec<Refusal>)> {
    kernel.look_for(programs)?;
    let mut ways = Vec::new();
    let mut refused = Vec::new();
    for way in probe::order(tool.ways(), programs, kernel) {
        match probe::settle(&way, programs, kernel) {
            Ok(way) => ways.push(way),
            Err(reason) => refused.push(Refusal { way: way.name, reason }),
        }
    }
    Ok((ways, refused))
}

/// The JSON Schema of what the tool writes under these options.
pub(crate) fn schema<T: Tool>(args: Vec<OsString>) -> Result<String> {
    let name = <T::Bpf as Bpf>::NAME;
    let all = std::iter::once(name.into()).chain(args);
    let matches = command::<T>()
        .try_get_matches_from(all)
        .map_err(|error| error::usage(first_line(&error)))?;
    let tool = T::from_arg_matches(&matches).map_err(|e| error::usage(first_line(&e)))?;
    let common = Common::from_matches(&matches, T::REFUSED, T::TABLE)?;
    let records = tool.records();
    let output = Output::new(&records, &common.choice)?;
    Ok(schema::of(name, &records, &output))
}

/// The records under these options (without the tool's name), as they are when the tool has looked
/// at its options. What it would refuse is not refused: this is for documentation.
///
/// # Errors
/// Usage errors that are seen before the tool looks.
pub(crate) fn records<T: Tool>(args: &[&str]) -> Result<Records> {
    let all = std::iter::once(<T::Bpf as Bpf>::NAME).chain(args.iter().copied());
    let matches = command::<T>().try_get_matches_from(all)?;
    let mut tool = T::from_arg_matches(&matches)?;
    let mut common = Common::from_matches(&matches, T::REFUSED, T::TABLE)?;
    let _ = tool.check(&mut common);
    Ok(tool.records())
}

/// All programs of the tool, with what they attach to under these options.
///
/// # Errors
/// Those of the command line.
pub(crate) fn programs<T: Tool>(args: &[&str]) -> Result<Vec<probe::Program>> {
    let all = std::iter::once(<T::Bpf as Bpf>::NAME).chain(args.iter().copied());
    let tool = T::from_arg_matches(&command::<T>().try_get_matches_from(all)?)?;
    let mut storage = MaybeUninit::uninit();
    let open = builder::<T>(None)?.open(&mut storage).context("opening the object")?;
    probe::programs(open.open_object(), &tool.ways())
}

/// Refuses options that choose what is traced, for `--from`. Of the tool's own, those are fine that
/// change which columns there are.
fn only_shows<T: Tool>(matches: &ArgMatches, alias: Option<&Alias>) -> Result<()> {
    let name = <T::Bpf as Bpf>::NAME;
    let parse = |args: Vec<OsString>| {
        command::<T>().try_get_matches_from(std::iter::once(name.into()).chain(args)).ok()
    };
    let columns = |args: Vec<OsString>| {
        let tool = T::from_arg_matches(&parse(args)?).ok()?;
        Some(format!("{:?}", tool.records().kinds))
    };
    let given_by_name: Vec<String> = alias
        .and_then(|alias| parse(alias.args.iter().map(OsString::from).collect()))
        .map(|matches| {
            let given = |id: &&clap::Id| {
                matches.value_source(id.as_str()) == Some(ValueSource::CommandLine)
            };
            matches.ids().filter(given).map(|id| id.as_str().to_string()).collect()
        })
        .unwrap_or_default();
    let all: Vec<Arg> = command::<T>().get_arguments().cloned().collect();
    let own: Vec<Arg> = T::augment_args(Command::new(name)).get_arguments().cloned().collect();
    let plain = columns(Vec::new());
    saved::refuse_tracing(matches, &all, &own, &given_by_name, |option| {
        !option.is_empty() && columns(option).is_some_and(|columns| Some(columns) != plain)
    })
}

/// Help and version go to stdout; anything else is one sentence.
pub(crate) fn refuse(error: &clap::Error) -> Result<u8> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nobody to tell when the reader has gone.
            let _ = error.print();
            Ok(error::OK)
        }
        _ => Err(error::usage(first_line(error))),
    }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty() && !line.starts_with("tip:"))
        .collect();
    let sentence = lines.join(" ");
    format!("{}; see --help", sentence.strip_prefix("error: ").unwrap_or(&sentence))
}

static VERBOSE: AtomicBool = AtomicBool::new(false);
/// `BPF_LOG_STATS` of include/linux/bpf_verifier.h: how many instructions the verifier went through,
/// in a line for each program.
const VERIFIER_STATISTICS: u32 = 4;
/// libbpf's last words, kept to explain a failure.
static WARNINGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn on_libbpf(level: PrintLevel, text: String) {
    if VERBOSE.load(Ordering::Relaxed) {
        complain("libbpf", text.strip_prefix("libbpf: ").unwrap_or(&text).trim_end());
    }
    if matches!(level, PrintLevel::Warn)
        && let Ok(mut warnings) = WARNINGS.lock()
    {
        warnings.push(text.trim_end().to_string());
    }
}

fn take_warnings() -> Vec<String> {
    WARNINGS.lock().map(|mut warnings| std::mem::take(&mut *warnings)).unwrap_or_default()
}

/// What one try of a way came to.
enum Attempt {
    /// It could be taken.
    Taken(Climbed),
    /// This kernel does not take this way, and why.
    Refused(String),
}

/// What became of a tool whose way was found.
enum Climbed {
    /// It ran to its end; whether events were lost.
    Ran(bool),
    /// It was hooked in and taken out again; what is worth knowing about that.
    Tried(Box<Way>, Vec<String>),
}

/// Where the tool's records go; nowhere when it is only tried.
type Sink<'a> = Option<(&'a Records, Output)>;

/// Tries the ways, best first, until one runs.
fn climb<T: Tool>(
    tool: &T,
    common: &Common,
    mut sink: Sink<'_>,
    refused: &mut Vec<Refusal>,
) -> Result<Climbed> {
    let name = <T::Bpf as Bpf>::NAME;
    VERBOSE.store(common.verbose, Ordering::Relaxed);
    let level = if common.verbose { PrintLevel::Debug } else { PrintLevel::Warn };
    set_print(Some((level, on_libbpf)));
    if let Some(sentence) = privileges::obstacle(common.btf.as_deref()) {
        return Err(unsupported(sentence));
    }
    let say = |refusal: &Refusal| {
        if common.verbose {
            complain(name, &format!("way {} is not possible: {}", refusal.way, refusal.reason));
        }
    };

    let mut kernel = Kernel::look();
    let (ways, types) = {
        let mut storage = MaybeUninit::uninit();
        let open = opened::<T>(None, &mut storage)?;
        let own = common.btf.as_deref().map(KernelBtf::read).transpose().context("--btf")?;
        let types = globals::object_btf(open.open_object())
            .and_then(|object| kernel.subset(own.as_ref(), &object));
        let programs = probe::programs(open.open_object(), &tool.ways())?;
        let (ways, impossible) = possible(tool, &programs, &mut kernel)?;
        impossible.iter().for_each(say);
        refused.extend(impossible);
        (ways, types)
    };
    // Megabytes that are not needed any more.
    drop(kernel);
    // Before Linux 5.11, what is loaded and attached counts against it.
    privileges::raise_locked_memory();
    for way in ways {
        match attempt(tool, common, &way, types.as_ref(), &mut sink)? {
            Attempt::Taken(climbed) => return Ok(climbed),
            Attempt::Refused(reason) => {
                let refusal = Refusal { way: way.name, reason };
                say(&refusal);
                refused.push(refusal);
            }
        }
    }
    let all = refusals_in_words(refused);
    let hint = privileges::hint(&all).map(|hint| format!(" ({hint})")).unwrap_or_default();
    if all.contains("Cannot allocate memory") {
        anyhow::bail!("{all}");
    }
    Err(unsupported(format!("this kernel does not let it hook in: {all}{hint}")))
}

/// Why no way is left; ways that were refused alike stand together.
pub fn refusals_in_words(refused: &[Refusal]) -> String {
    let alike = refused.chunk_by(|a, b| a.reason == b.reason);
    let sentences = alike.map(|group| {
        let ways: Vec<&str> = group.iter().map(|refusal| refusal.way).collect();
        format!("{}: {}", ways.join(", "), group[0].reason)
    });
    sentences.collect::<Vec<_>>().join("; ")
}

/// A builder whose object finds kernel types in this file.
fn builder<T: Tool>(types: Option<&OwnedFd>) -> Result<<T::Bpf as Bpf>::Builder> {
    let mut builder = <T::Bpf as Bpf>::Builder::default();
    if let Some(file) = types {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        builder.object_builder_mut().btf_custom_path(path).context("kernel types")?;
    }
    Ok(builder)
}

/// The object, read and not loaded.
fn opened<'o, T: Tool>(
    types: Option<&OwnedFd>,
    storage: &'o mut MaybeUninit<OpenObject>,
) -> Result<OpenSkelOf<'o, T>> {
    let opened = builder::<T>(types)?.open(storage);
    packed::discard();
    opened.context("opening the object")
}

/// The object with all settings of a way; under `-v`, the verifier is asked for this log. The maps
/// that are returned must stay open until the load.
fn open_for<'o, T: Tool>(
    tool: &T,
    common: &Common,
    way: &Way,
    types: Option<&OwnedFd>,
    watch: bool,
    verifier: u32,
    storage: &'o mut MaybeUninit<OpenObject>,
) -> Result<(OpenSkelOf<'o, T>, Vec<MapHandle>)> {
    packed::leave_out(&filter::not_called(common));
    let open = opened::<T>(types, storage);
    packed::leave_out(&[]);
    let mut open = open?;
    let models = prepare(open.open_object_mut(), common, way, watch)?;
    if common.verbose {
        for mut program in open.open_object_mut().progs_mut() {
            program.set_log_level(verifier);
        }
    }
    tool.configure(&mut open, way)?;
    Ok((open, models))
}

fn attempt<T: Tool>(
    tool: &T,
    common: &Common,
    way: &Way,
    types: Option<&OwnedFd>,
    sink: &mut Sink<'_>,
) -> Result<Attempt> {
    let name = <T::Bpf as Bpf>::NAME;
    take_warnings();
    // Ids of cgroups are named, or containers looked for.
    let watch = cgroup::mount().is_some()
        && (!common.container.is_empty()
            || sink.as_ref().is_some_and(|(_, output)| output.names_cgroups()));
    let mut storage = MaybeUninit::uninit();
    let (open, _models) =
        open_for(tool, common, way, types, watch, VERIFIER_STATISTICS, &mut storage)?;
    let state_offset = ReaderState::offset(open.open_object())?;
    let skel = match open.load() {
        Ok(skel) => skel,
        Err(error) => {
            let reason = explain(&format!("{error:#}"));
            if common.verbose {
                // Once more: where nothing was asked for, libbpf asks why a program is refused.
                let mut storage = MaybeUninit::uninit();
                let (open, _models) = open_for(tool, common, way, types, watch, 0, &mut storage)?;
                let _ = open.load();
            }
            return Ok(Attempt::Refused(reason));
        }
    };
    let object = skel.object();
    let Hooked { attached, way, held, cgroups, remarks } = match attach(object, common, way, watch)?
    {
        Ok(done) => done,
        Err(reason) => return Ok(Attempt::Refused(reason)),
    };
    let mut asides = Asides::default();
    if let Err(error) = tool.attach(&skel, common, &mut asides) {
        return Ok(Attempt::Refused(format!("{error:#}")));
    }
    let remarks = [remarks, std::mem::take(&mut asides.remarks)].concat();
    let Some((records, mut output)) = sink.take() else {
        return Ok(Attempt::Taken(Climbed::Tried(Box::new(way), remarks)));
    };
    for remark in &remarks {
        complain(name, remark);
    }
    if common.verbose {
        complain(name, &format!("way {}: {}", way.name, way.all().join(" ")));
    }
    let reader_state = state_offset.map(|offset| ReaderState::of(object, offset)).transpose()?;
    for text in cgroups.unmatched() {
        complain(name, &format!("there is no container '{text}' yet: waiting for it"));
    }
    output.cgroups = cgroups;
    let mut session = Session::new(Start {
        name,
        common,
        way: &way,
        object,
        output,
        waiter: Waiter::new()?,
        attached,
        asides,
        reader_state,
    });
    session.ready(records, held)?;
    tool.run(&skel, &mut session)?;
    Ok(Attempt::Taken(Climbed::Ran(session.finish()?)))
}

/// What is common to all tools between open and load. The maps that are returned must stay open
/// until the load.
fn prepare(
    open: &mut OpenObject,
    common: &Common,
    way: &Way,
    watch: bool,
) -> Result<Vec<MapHandle>> {
    let tree = filter::filters_tree(common);
    let cgroups = cgroup_programs(common, watch);
    let of_way = way.all();
    for mut program in open.progs_mut() {
        let name = program.name().to_string_lossy().into_owned();
        let name = name.as_str();
        let wanted = if filter::TREE_PROGRAMS.contains(&name) {
            tree
        } else if cgroup_names::PROGRAMS.contains(&name) {
            cgroups.contains(&name)
        } else {
            of_way.contains(&name)
        };
        program.set_autoload(wanted);
    }
    let cpus = u64::try_from(libbpf_rs::num_possible_cpus()?)?;
    let buffer = common
        .buffer_size
        .unwrap_or_else(|| (cpus << 20).clamp(4 << 20, 64 << 20).next_power_of_two());
    for mut map in open.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if let Some((_, of_way)) = name.split_once("__") {
            map.set_autocreate(of_way == way.name)?;
        }
        if cgroup_names::MAPS.contains(&name.as_str()) {
            map.set_autocreate(watch)?;
        }
        if name == "events" {
            map.set_max_entries(u32::try_from(buffer)?)?;
        }
    }
    if let Some(rate) = common.max_rate {
        let brakes = globals::set_constant(open, "rate_limit", &rate.to_ne_bytes())?;
        ensure!(brakes, "the object sends no events");
    }
    globals::set_constant(open, "ring_watermark", &(buffer / 8).to_ne_bytes())?;
    filter::configure(open, common)
}

/// Programs that tell of cgroups, as far as they are needed.
fn cgroup_programs(common: &Common, watch: bool) -> &'static [&'static str] {
    match (watch, common.container.is_empty()) {
        (false, _) => &[],
        (true, true) => &cgroup_names::PROGRAMS[..2],
        (true, false) => &cgroup_names::PROGRAMS,
    }
}

/// A way that has been taken.
struct Hooked {
    attached: Vec<Attached>,
    way: Way,
    held: Option<Held>,
    cgroups: CgroupNames,
    /// What the user should know about it.
    remarks: Vec<String>,
}

/// Attaches the way's programs in its order. The inner error is why this kernel does not take it.
fn attach(
    object: &Object,
    common: &Common,
    way: &Way,
    watch: bool,
) -> Result<Result<Hooked, String>> {
    filter::fill(object, common)?;
    let mut remarks = Vec::new();
    let mut one = |name: &'static str| -> Result<Attached, String> {
        let program = object
            .progs_mut()
            .find(|program| program.name() == name)
            .ok_or_else(|| format!("there is no program {name}"))?;
        let is_kprobe = program.section().to_string_lossy().starts_with('k');
        let (link, return_probe) = hook_in(&program, way, &mut remarks)?;
        let program = program.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        Ok(Attached { name, link, return_probe, program, is_kprobe })
    };
    let mut attached = Vec::new();
    let mut held = None;
    if filter::filters_tree(common) {
        for name in filter::TREE_PROGRAMS {
            match one(name) {
                Ok(hooked) => attached.push(hooked),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        if let Some(root) = common.tree {
            filter::plant_tree(object, root)?;
        }
    }
    for name in cgroup_programs(common, watch) {
        match one(name) {
            Ok(hooked) => attached.push(hooked),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    let cgroups =
        if watch { CgroupNames::watch(object, &common.container)? } else { CgroupNames::default() };
    for name in &way.programs {
        match one(name) {
            Ok(hooked) => attached.push(hooked),
            Err(reason) => return Ok(Err(reason)),
        }
    }
    let mut groups = Vec::new();
    let mut left_out = way.left_out.clone();
    for group in &way.groups {
        match group.iter().map(|name| one(name)).collect::<Result<Vec<_>, _>>() {
            Ok(hooked) => {
                attached.extend(hooked);
                groups.push(group.clone());
            }
            Err(reason) => left_out.push(reason),
        }
    }
    if groups.is_empty() && !way.groups.is_empty() {
        return Ok(Err(left_out.swap_remove(way.left_out.len())));
    }
    if common.verbose {
        left_out.iter().for_each(|reason| complain(way.name, &format!("left out: {reason}")));
    }
    let mut optional = Vec::new();
    for name in &way.optional {
        match one(name) {
            Ok(hooked) => {
                attached.push(hooked);
                optional.push(*name);
            }
            Err(reason) if common.verbose => complain(name, &format!("left out: {reason}")),
            Err(_) => {}
        }
    }
    if !common.command.is_empty() {
        let command = sys::hold_command(&common.command)?;
        // With --tree another process is meant.
        if filter::filters_tree(common) && common.tree.is_none() {
            filter::plant_tree(object, command.pid)?;
        }
        held = Some(command);
    }
    let way = Way { optional, groups, left_out, ..way.clone() };
    Ok(Ok(Hooked { attached, way, held, cgroups, remarks }))
}

/// Attaches a program; a return probe with room for many calls at once where that is possible.
fn hook_in(
    program: &ProgramMut<'_>,
    way: &Way,
    remarks: &mut Vec<String>,
) -> Result<(Link, Option<ReturnProbe>), String> {
    let mut remark = None;
    let section = probe::section(program.name(), program.section(), way);
    if let Some(function) = kretprobe::function(OsStr::new(&section)) {
        match ReturnProbe::attach(program, function) {
            Ok((link, probe)) => return Ok((link, Some(probe))),
            Err(error) => {
                remark = Some(format!(
                    "tracefs: {error:#}: when many calls of {function} are under way at once, \
                     some are missed"
                ));
            }
        }
    }
    let aimed = way.aims.iter().find(|aim| program.name() == aim.program);
    let link = match (probe::hook(&section), aimed) {
        // Their sections have handlers of our own, which do not attach.
        (Hook::Function(_) | Hook::TypedTracepoint(_), _) => program.attach_trace(),
        (Hook::Other, Some(aim)) => {
            program.attach_kprobe(section.starts_with("kret"), &aim.function)
        }
        (Hook::RawTracepoint(_) | Hook::Iterator(_), _) | (Hook::Other, None) => program.attach(),
    };
    let link = link.map_err(|error| explain(&format!("{error:#}")))?;
    remarks.extend(remark);
    Ok((link, None))
}

/// A refusal in one line: the error, and libbpf's most telling word about it.
fn explain(error: &str) -> String {
    let warnings = take_warnings();
    let told = warnings
        .iter()
        .filter(|line| {
            !line.contains("BEGIN PROG LOAD LOG") && !line.contains("failed to load object")
        })
        .find(|line| line.starts_with("libbpf: prog"))
        .map(|line| {
            let line = line.trim_start_matches("libbpf: ");
            line.lines().next().unwrap_or(line).to_string()
        });
    let error = error.trim_end_matches(['.', '\n']).replace('\n', " ");
    told.unwrap_or(error)
}
