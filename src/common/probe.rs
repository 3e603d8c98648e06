// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Which way to hook: what can be known before anything is loaded.

use std::collections::HashMap;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use anyhow::ensure;
use libbpf_rs::OpenObject;
use nix::sys::memfd::MFdFlags;
use nix::sys::memfd::memfd_create;

use crate::btf;
use crate::btf::KernelBtf;
use crate::btf_attach;
use crate::btf_attach::Place;
use crate::btf_subset;
use crate::sys;
use crate::tool::Way;

/// How a program is hooked, from its section name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook<'a> {
    /// fentry, fexit: a trampoline at a function that BTF describes.
    Function(&'a str),
    /// A tracepoint that BTF describes.
    TypedTracepoint(&'a str),
    /// A tracepoint by its name. The kernel's BTF tells whether it has one; that a module has it is
    /// found out by attaching.
    RawTracepoint(&'a str),
    /// What the kernel walks through when somebody reads it: for BTF, a function whose name begins
    /// with `bpf_iter_`.
    Iterator(&'a str),
    /// Anything else: found out by attaching.
    Other,
}

/// Reads a section name such as `fexit/do_sys_openat2`.
pub fn hook(section: &str) -> Hook<'_> {
    let section = section.strip_prefix('?').unwrap_or(section);
    match section.split_once('/') {
        Some(("fentry" | "fexit", function)) => Hook::Function(function),
        Some(("tp_btf", tracepoint)) => Hook::TypedTracepoint(tracepoint),
        Some(("raw_tp", tracepoint)) => Hook::RawTracepoint(tracepoint),
        Some(("iter", target)) => Hook::Iterator(target),
        _ => Hook::Other,
    }
}

/// The running kernel as far as it matters for choosing a way.
pub struct Kernel {
    btf: Option<KernelBtf>,
    /// The sections whose function or tracepoint exists.
    found: HashSet<String>,
    /// Whether it is the one that runs here.
    runs: bool,
    /// Names that were found in its modules.
    in_modules: HashSet<String>,
    /// Functions of its modules that are not described.
    symbols_of_modules: HashSet<String>,
    /// The types of modules that were looked into; none of those that are not there.
    modules: HashMap<&'static str, Option<Module>>,
}

/// A module that is loaded and describes its types.
struct Module {
    btf: KernelBtf,
    /// What programs that attach to its functions refer to.
    fd: Result<Arc<OwnedFd>, String>,
}

impl Module {
    fn look(name: &str) -> Option<Self> {
        let btf = KernelBtf::read(&Path::new(btf::DIRECTORY).join(name)).ok()?;
        let fd = sys::module_btf(name).map(Arc::new).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => "that takes CAP_SYS_ADMIN".into(),
            _ => error.to_string(),
        });
        Some(Self { btf, fd })
    }
}

/// Whether a module is loaded. Of what is built in, the kernel's own types tell.
fn is_loaded(module: &str) -> bool {
    Path::new("/sys/module").join(module).exists()
}

impl Kernel {
    /// Looks at the running kernel. Without BTF of its own, nothing that needs it can be used.
    pub fn look() -> Self {
        let btf = KernelBtf::of_kernel().ok();
        Self::with(btf, true)
    }

    fn with(btf: Option<KernelBtf>, runs: bool) -> Self {
        Self {
            btf,
            found: HashSet::new(),
            runs,
            in_modules: HashSet::new(),
            symbols_of_modules: HashSet::new(),
            modules: HashMap::new(),
        }
    }

    /// A kernel that does not run here.
    pub fn of(btf: KernelBtf) -> Self {
        Self::with(Some(btf), false)
    }

    /// Its types.
    pub fn btf(&self) -> Option<&KernelBtf> {
        self.btf.as_ref()
    }

    /// Whether it describes a function or tracepoint of this name, or is known to have it in a
    /// module, described or not.
    pub fn describes(&self, name: &str, is_tracepoint: bool) -> bool {
        let find = |btf: &KernelBtf| match is_tracepoint {
            true => btf.find(&[], &[name]).tracepoints.len(),
            false => btf.find(&[name], &[]).functions.len(),
        };
        self.in_modules.contains(name)
            || self.symbols_of_modules.contains(name)
            || self.btf.as_ref().is_some_and(|btf| find(btf) > 0)
    }

    /// A function or tracepoint that one of its modules has; without a description, it can be probed
    /// only.
    pub fn learn(&mut self, name: String, described: bool) {
        let known = if described { &mut self.in_modules } else { &mut self.symbols_of_modules };
        known.insert(name);
    }

    /// Looks for what these programs attach to.
    ///
    /// # Errors
    /// Fails when libbpf cannot be told what was found.
    pub fn look_for(&mut self, programs: &[Program]) -> Result<()> {
        let Some(btf) = &self.btf else { return Ok(()) };
        let iterator = |target: &str| format!("bpf_iter_{target}");
        let iterators: Vec<String> = programs
            .iter()
            .filter_map(|program| match hook(&program.section) {
                Hook::Iterator(target) => Some(iterator(target)),
                _ => None,
            })
            .collect();
        let mut functions: Vec<&str> = iterators.iter().map(String::as_str).collect();
        let mut tracepoints = Vec::new();
        for program in programs {
            match hook(&program.section) {
                Hook::Function(name) => functions.push(name),
                Hook::TypedTracepoint(name) | Hook::RawTracepoint(name) => tracepoints.push(name),
                Hook::Iterator(_) | Hook::Other => {}
            }
        }
        functions.sort_unstable();
        functions.dedup();
        tracepoints.sort_unstable();
        tracepoints.dedup();
        let found = btf.find(&functions, &tracepoints);
        if self.runs {
            for program in programs {
                if let (Hook::Function(name), Some(module)) =
                    (hook(&program.section), program.module)
                    && !found.functions.contains_key(name)
                {
                    self.modules.entry(module).or_insert_with(|| Module::look(module));
                }
            }
        }
        let place = |program: &Program| match hook(&program.section) {
            Hook::Function(name) => {
                found.functions.get(name).map(|id| Place { id: *id, module: None }).or_else(|| {
                    let module = self.modules.get(program.module?)?.as_ref()?;
                    let id = btf.function_in_module(&module.btf, name)?;
                    Some(Place { id, module: Some(Arc::clone(module.fd.as_ref().ok()?)) })
                })
            }
            Hook::TypedTracepoint(name) => {
                found.tracepoints.get(name).map(|id| Place { id: *id, module: None })
            }
            Hook::Iterator(target) => {
                let id = found.functions.get(iterator(target).as_str());
                id.map(|id| Place { id: *id, module: None })
            }
            Hook::RawTracepoint(_) | Hook::Other => None,
        };
        let places: HashMap<String, Place> = programs
            .iter()
            .filter_map(|program| Some((program.name.clone(), place(program)?)))
            .collect();
        let is_found = |program: &&Program| match hook(&program.section) {
            Hook::RawTracepoint(name) => found.tracepoints.contains_key(name),
            _ => places.contains_key(&program.name),
        };
        self.found = programs.iter().filter(is_found).map(|p| p.section.clone()).collect();
        // Ids of another kernel are nothing to attach by.
        if self.runs { btf_attach::know(places) } else { Ok(()) }
    }

    /// Why a program cannot be attached; `None` when it may.
    fn lacks(&self, program: &Program) -> Option<String> {
        let name = |wanted| match wanted {
            Hook::Function(name) => format!("function {name}"),
            Hook::TypedTracepoint(name) => format!("tracepoint {name}"),
            Hook::Iterator(name) => format!("iterator {name}"),
            Hook::RawTracepoint(_) | Hook::Other => String::new(),
        };
        let section = program.section.as_str();
        let wanted = hook(section);
        let found = match wanted {
            Hook::RawTracepoint(_) => return None,
            // A probe finds out itself, unless it is clear that there is nothing to find.
            Hook::Other => {
                let module = program.module.filter(|module| self.runs && !is_loaded(module))?;
                let (_, function) = section.split_once('/')?;
                return (!self.btf.as_ref()?.describes_function(function))
                    .then(|| format!("the module {module} is not loaded"));
            }
            _ if self.btf.is_none() => {
                return Some(format!("the kernel has no BTF to find {} in", name(wanted)));
            }
            Hook::Function(name) | Hook::TypedTracepoint(name) | Hook::Iterator(name) => {
                self.found.contains(section) || self.in_modules.contains(name)
            }
        };
        if found {
            return None;
        }
        Some(
            match program.module.filter(|_| self.runs).map(|name| (name, self.modules.get(name))) {
                Some((module, Some(None))) if is_loaded(module) => {
                    format!("the kernel has no BTF of the module {module}")
                }
                Some((module, Some(None))) => format!("the module {module} is not loaded"),
                Some((module, Some(Some(Module { fd: Err(error), .. })))) => {
                    format!("the BTF of the module {module}: {error}")
                }
                _ => format!("the kernel has no {}", name(wanted)),
            },
        )
    }

    /// The types that an object can ask for, in a file that libbpf can read; see
    /// [`crate::btf_subset`]. `None` where there are no types at all.
    pub fn subset(&self, own: Option<&KernelBtf>, object: &KernelBtf) -> Option<OwnedFd> {
        let types = own.or(self.btf.as_ref())?;
        let small = btf_subset::subset(types, &btf_subset::names(object));
        let file = memfd_create(c"btf", MFdFlags::MFD_CLOEXEC).ok()?;
        let mut file = File::from(file);
        file.write_all(&small).ok()?;
        Some(file.into())
    }

    /// Whether there is a tracepoint that one of the programs names; `None` when nobody can say.
    fn has_tracepoint(&self, name: &str) -> Option<bool> {
        self.btf.as_ref()?;
        Some(["tp_btf", "raw_tp"].iter().any(|kind| self.found.contains(&format!("{kind}/{name}"))))
    }

    /// Whether it has a structure of this name.
    pub fn has_struct(&self, name: &str) -> bool {
        self.btf.as_ref().is_some_and(|btf| btf.struct_has(name, "").is_some())
    }

    fn struct_has(&self, structure: &str, member: &str) -> bool {
        self.btf.as_ref().is_some_and(|btf| btf.struct_has(structure, member) == Some(true))
    }

    /// Whether detaching fentry or fexit can deadlock with exiting tasks: RCU-tasks waits for
    /// them through one SRCU domain, until 1612160b9127 "rcu-tasks: Eliminate deadlocks involving
    /// do_exit() and RCU tasks" (6.9), which gave each CPU a list of its own.
    pub fn fentry_may_deadlock(&self) -> bool {
        let Some(btf) = &self.btf else { return false };
        // The structure came in 5.17, and the fix is a member of it. Where it has neither, the
        // domain itself is looked for.
        if btf.struct_has("rcu_tasks_percpu", "rtp_exit_list") == Some(true) {
            return false;
        }
        // All that has to do with it is there only with CONFIG_TASKS_RCU.
        if !btf.find(&[RCU_TASKS], &[]).functions.contains_key(RCU_TASKS) {
            return false;
        }
        // What the domain has for each CPU is a variable, which BTF describes where it describes
        // variables: each kernel has run queues.
        if !self.runs || btf.has_variable("runqueues") {
            return btf.has_variable("tasks_rcu_exit_srcu_srcu_data");
        }
        // All of it is a hundred times as much to read.
        fs::read("/proc/kallsyms")
            .is_ok_and(|text| text.windows(SRCU.len()).any(|window| window == SRCU))
    }
}

const RCU_TASKS: &str = "synchronize_rcu_tasks";
const SRCU: &[u8] = b" tasks_rcu_exit_srcu\n";

/// A program of an object, as far as choosing needs it.
pub struct Program {
    /// Its name.
    pub name: String,
    /// Its section, with what it really attaches to.
    pub section: String,
    /// The module that may have that.
    pub module: Option<&'static str>,
}

/// The programs of an object, with what these ways aim them at.
///
/// # Errors
/// When a way names a program that the object has not. It would otherwise be found out only by a
/// kernel that needs that way.
pub fn programs(open: &OpenObject, ways: &[Way]) -> Result<Vec<Program>> {
    let text = |name: &OsStr| name.to_string_lossy().into_owned();
    let programs = open
        .progs()
        .map(|p| Program { name: text(p.name()), section: text(p.section()), module: None })
        .collect();
    aimed(programs, ways)
}

fn aimed(mut programs: Vec<Program>, ways: &[Way]) -> Result<Vec<Program>> {
    for way in ways {
        for name in way.named() {
            ensure!(
                programs.iter().any(|program| program.name == name),
                "way {} names a program that does not exist: {name}",
                way.name
            );
        }
    }
    for aim in ways.iter().flat_map(|way| &way.aims) {
        for program in programs.iter_mut().filter(|program| program.name == aim.program) {
            program.section = aimed_section(&program.section, &aim.function);
            program.module = Some(aim.module).filter(|module| !module.is_empty());
        }
    }
    Ok(programs)
}

/// A section such as `fexit/x` for another function.
fn aimed_section(section: &str, function: &str) -> String {
    let kind = section.split_once('/').map_or(section, |(kind, _)| kind);
    format!("{kind}/{function}")
}

/// The section of a way's program, with what it really attaches to.
pub fn section(program: &OsStr, section: &OsStr, way: &Way) -> String {
    let section = section.to_string_lossy();
    match way.aims.iter().find(|aim| program == aim.program) {
        Some(aim) => aimed_section(&section, &aim.function),
        None => section.into_owned(),
    }
}

/// A way with its optional programs settled.
///
/// # Errors
/// Why it cannot be taken.
pub fn settle(way: &Way, programs: &[Program], kernel: &Kernel) -> Result<Way, String> {
    let lacks = |name: &&str| {
        programs.iter().find(|p| p.name == **name).and_then(|program| kernel.lacks(program))
    };
    let mut chosen = way.programs.clone();
    let mut unsure = Vec::new();
    for (tracepoint, having, lacking) in &way.by_tracepoint {
        match kernel.has_tracepoint(tracepoint) {
            Some(true) => chosen.extend(having),
            Some(false) => chosen.extend(lacking),
            // The programs themselves find out.
            None => unsure.extend(having.iter().chain(lacking)),
        }
    }
    if let Some(reason) = chosen.iter().chain(&way.iterators).find_map(lacks) {
        return Err(reason);
    }
    let needed = way
        .lacking
        .iter()
        .filter(|(structure, member, _)| !kernel.struct_has(structure, member))
        .map(|(_, _, program)| *program);
    let optional = needed
        .chain(way.optional.iter().copied())
        .chain(unsure)
        .filter(|name| lacks(name).is_none())
        .collect();
    let mut groups = Vec::new();
    let mut left_out = Vec::new();
    for group in &way.groups {
        match group.iter().find_map(lacks) {
            Some(reason) => left_out.push(reason),
            None => groups.push(group.clone()),
        }
    }
    left_out.dedup();
    if groups.is_empty() && !left_out.is_empty() {
        return Err(left_out.swap_remove(0));
    }
    // Last, since nobody can change that, while a module that is missing can be loaded.
    if let Some((structure, member)) =
        way.only_where.iter().find(|(structure, member)| !kernel.struct_has(structure, member))
    {
        return Err(format!("the kernel has no {structure}.{member}"));
    }
    Ok(Way { programs: chosen, optional, groups, left_out, ..way.clone() })
}

/// The ways in the order in which they are tried on this kernel.
pub fn order(ways: Vec<Way>, programs: &[Program], kernel: &Kernel) -> Vec<Way> {
    let trampolines = |way: &Way| {
        way.all().into_iter().any(|name| {
            programs.iter().any(|p| p.name == name && matches!(hook(&p.section), Hook::Function(_)))
        })
    };
    if !ways.iter().any(&trampolines) || !kernel.fentry_may_deadlock() {
        return ways;
    }
    let (last, first): (Vec<Way>, Vec<Way>) = ways.into_iter().partition(&trampolines);
    first.into_iter().chain(last).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_read() {
        assert_eq!(hook("fexit/do_sys_openat2"), Hook::Function("do_sys_openat2"));
        assert_eq!(hook("?fentry/x"), Hook::Function("x"));
        assert_eq!(hook("tp_btf/sched_switch"), Hook::TypedTracepoint("sched_switch"));
        assert_eq!(hook("raw_tp/sched_switch"), Hook::RawTracepoint("sched_switch"));
        assert_eq!(hook("iter/task_file"), Hook::Iterator("task_file"));
        assert_eq!(hook("kretprobe/x"), Hook::Other);
    }

    #[test]
    fn a_kernel_without_btf_leaves_what_needs_none() {
        let kernel = Kernel::with(None, true);
        let program = |name: &str, section: &str| Program {
            name: name.into(),
            section: section.into(),
            module: None,
        };
        let programs = [program("a__fexit", "fexit/x"), program("a__raw", "raw_tp/y")];
        assert!(settle(&Way::new("fexit", &["a__fexit"]), &programs, &kernel).is_err());
        let raw = Way::new("raw", &["a__raw"]).optional(&["a__fexit"]);
        let settled = settle(&raw, &programs, &kernel).expect("possible");
        assert!(settled.optional.is_empty());
        assert_eq!(settled.programs, ["a__raw"]);
        // Nobody knows which of the two tracepoints there is: both are tried.
        let either = Way::new("raw", &[]).by_tracepoint("y", &["a__raw"], &["b__raw"]);
        let settled = settle(&either, &programs, &kernel).expect("possible");
        assert_eq!(settled.optional, ["a__raw", "b__raw"]);
        assert!(settle(&raw.only_where("s", "m"), &programs, &kernel).is_err());
    }

    #[test]
    fn ways_name_programs_that_exist() {
        let named = |way| {
            let program = |name: &str| Program {
                name: name.into(),
                section: "kprobe/x".into(),
                module: None,
            };
            aimed(vec![program("a"), program("b")], &[way]).map(drop)
        };
        let way = Way::new("way", &["a"]).group(&["a", "b"]);
        assert!(named(way.clone()).is_ok());
        for wrong in [
            way.clone().group(&["c"]),
            way.clone().optional(&["c"]),
            way.clone().by_tracepoint("y", &["a"], &["c"]),
            way.twins(&[("a", "c")]),
        ] {
            let error = named(wrong).expect_err("there is no c").to_string();
            assert!(error.contains("way way names a program that does not exist: c"), "{error}");
        }
    }
}
