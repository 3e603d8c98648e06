// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What tools need of a machine: what is there, and what it stops where it is not.

use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;

use crate::btf;
use crate::cgroup;
use crate::hooks;
use crate::kretprobe;
use crate::names;
use crate::privileges;
use crate::probe::Kernel;
use crate::sys;

/// See [`Kernel::fentry_may_deadlock`].
pub(crate) const FENTRY_HAZARD: &str =
    "not tried: to detach it can hang this kernel (mended in Linux 6.9, 1612160b9127)";
/// What follows from that.
pub(crate) const FENTRY_HAZARD_LIMITS: &str = "fentry and fexit, which stand behind all other ways";

/// How it stands with one prerequisite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is stopped by it.
    Ok,
    /// Something is.
    Limited,
    /// Every tool is.
    Missing,
}

impl State {
    /// Its name in records and columns.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
        }
    }
}

/// One prerequisite.
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What that stops; none where it stops nothing.
    pub stops: Option<String>,
}

/// A prerequisite that stops nothing so far.
pub(crate) fn check(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, state: State::Ok, found: found.into(), stops: None }
}

impl Check {
    pub(crate) fn limits(self, when: bool, stops: impl Into<String>) -> Self {
        self.with(when, State::Limited, stops)
    }

    fn stops(self, when: bool, stops: impl Into<String>) -> Self {
        self.with(when, State::Missing, stops)
    }

    fn with(self, when: bool, state: State, stops: impl Into<String>) -> Self {
        if when { Self { state, stops: Some(stops.into()), ..self } } else { self }
    }
}

/// A system call's outcome in one word.
fn outcome(result: &io::Result<()>) -> String {
    match result {
        Ok(()) => "can be used".into(),
        Err(error) => match error.raw_os_error() {
            Some(number) => {
                let name = names::errno(number.into()).unwrap_or("an error without a name");
                format!("refused: {name}")
            }
            None => "the kernel has none".into(),
        },
    }
}

fn denied(result: &io::Result<()>) -> bool {
    let numbers = [Errno::EPERM, Errno::EACCES].map(|errno| errno as i32);
    matches!(result, Err(error) if error.raw_os_error().is_some_and(|n| numbers.contains(&n)))
}

/// The first line of a file of the kernel.
pub fn setting(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.trim().to_string())
}

/// Looks at everything. Raises the limit of locked memory, as tools do.
pub fn look(kernel: &Kernel, config: Option<&HashMap<String, String>>) -> Vec<Check> {
    vec![
        capabilities(),
        user_namespace(),
        types(kernel),
        locked_memory(),
        jit(),
        tracefs(),
        kprobes(),
        fentry(kernel),
        perf_events(),
        perf_event_paranoid(),
        lockdown(config),
        kptr_restrict(),
        unprivileged_bpf(),
        cgroups(),
    ]
}

fn has_admin() -> bool {
    privileges::effective().is_some_and(|set| set >> 21 & 1 == 1)
}

fn capabilities() -> Check {
    let Some(set) = privileges::effective() else {
        return check("capabilities", "unknown: /proc/self/status does not tell")
            .limits(true, "nothing can be said of privileges");
    };
    let held: Vec<&str> = privileges::CAPABILITIES
        .iter()
        .filter(|(number, _)| set >> number & 1 == 1)
        .map(|(_, name)| *name)
        .collect();
    let found = if held.is_empty() { "none that counts".into() } else { held.join(" ") };
    let missing = privileges::missing(set);
    check("capabilities", found)
        .stops(!missing.is_empty(), format!("every tool, for want of {}", missing.join(" and ")))
}

fn user_namespace() -> Check {
    let first = privileges::in_first_user_namespace();
    check("user_namespace", if first { "the machine's first" } else { "one of its own" })
        .stops(!first, "every tool: capabilities of a user namespace do not count")
}

fn types(kernel: &Kernel) -> Check {
    let path = btf::VMLINUX;
    match (kernel.btf(), fs::metadata(path)) {
        (Some(_), Ok(file)) => check("btf", format!("{path}, {} KiB", file.len() >> 10)),
        (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            check("btf", format!("no {path} (CONFIG_DEBUG_INFO_BTF)")).stops(
                true,
                "every tool without --btf FILE; BTF tracepoints, fentry and fexit in any case",
            )
        }
        _ => check("btf", format!("{path} cannot be read"))
            .stops(true, "every tool without --btf FILE"),
    }
}

fn locked_memory() -> Check {
    let name = "locked_memory";
    let counted = privileges::counts_locked_memory();
    privileges::raise_locked_memory();
    let (first, _) = privileges::first_locked_memory().unwrap_or_default();
    let now = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK);
    let now = now.map_or(0, |(soft, _)| soft);
    let unlimited = now == nix::sys::resource::RLIM_INFINITY;
    let limit = privileges::limit_in_words(first);
    match counted {
        Some(false) => check(name, format!("limit {limit}, which BPF memory does not count against")),
        Some(true) if unlimited => {
            check(name, format!("limit {limit}, which BPF memory counts against; can be raised"))
        }
        Some(true) => check(name, format!("limit {limit}, which BPF memory counts against")).limits(
            true,
            "tools whose maps do not fit; to raise it takes CAP_SYS_RESOURCE, or ulimit -l beforehand",
        ),
        None => check(name, format!("limit {limit}; no BPF map could be made to try it with")),
    }
}

fn jit() -> Check {
    let found = setting("/proc/sys/net/core/bpf_jit_enable");
    let off = found.as_deref() == Some("0");
    // The file is readable only with CAP_SYS_ADMIN or as root.
    check("bpf_jit", found.unwrap_or_else(|| "unknown".into()))
        .limits(off, "fentry and fexit; all others are slow (net.core.bpf_jit_enable)")
}

fn tracefs() -> Check {
    let Some(path) = kretprobe::mounted() else {
        return check("tracefs", "not mounted").limits(
            true,
            "return probes with room for many calls at once, and tracepoints that have no BTF",
        );
    };
    let opened = OpenOptions::new().append(true).open(path.join("kprobe_events"));
    let found = match &opened {
        Ok(_) => path.display().to_string(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            format!("{}, without kprobe_events", path.display())
        }
        Err(_) => format!("{}, not for this user", path.display()),
    };
    check("tracefs", found)
        .limits(opened.is_err(), "return probes with room for many calls at once")
}

fn kprobes() -> Check {
    let tried = hooks::kprobe();
    let why = if denied(&tried) { "; see perf_event_paranoid and lockdown" } else { "" };
    check("kprobes", outcome(&tried)).limits(tried.is_err(), format!("ways by kprobe{why}"))
}

fn fentry(kernel: &Kernel) -> Check {
    let name = "fentry";
    let Some(btf) = kernel.btf() else {
        return check(name, "needs BTF").limits(true, "ways by fentry and fexit");
    };
    if kernel.fentry_may_deadlock() {
        return check(name, FENTRY_HAZARD).limits(true, FENTRY_HAZARD_LIMITS);
    }
    let tried = hooks::fentry(btf);
    check(name, outcome(&tried)).limits(tried.is_err(), "ways by fentry and fexit")
}

fn perf_events() -> Check {
    let tried = hooks::sampling();
    check("perf_events", outcome(&tried)).limits(tried.is_err(), "tools that sample CPUs")
}

fn perf_event_paranoid() -> Check {
    let name = "perf_event_paranoid";
    let Some(level) = privileges::perf_event_paranoid() else {
        return check(name, "unknown: the kernel has no perf events")
            .limits(true, "kprobes, tracepoints that have no BTF, sampling");
    };
    check(name, level.to_string()).limits(
        level > 2 && !has_admin(),
        "kprobes, tracepoints that have no BTF, and sampling, without CAP_SYS_ADMIN; 2 leaves them \
         to CAP_PERFMON",
    )
}

fn lockdown(config: Option<&HashMap<String, String>>) -> Check {
    let told = privileges::lockdown();
    let forced = |level: &str| {
        let option = format!("CONFIG_LOCK_DOWN_KERNEL_FORCE_{}", level.to_uppercase());
        config.is_some_and(|config| config.get(&option).is_some_and(|value| value == "y"))
    };
    let levels = ["confidentiality", "integrity"];
    // securityfs may not be mounted, or not be for this user.
    let level =
        told.clone().or_else(|| levels.into_iter().find(|level| forced(level)).map(String::from));
    let found = match (&told, &level) {
        (Some(level), _) => level.clone(),
        (None, Some(level)) => format!("{level}, at least: the configuration forces it"),
        (None, None) => "unknown: securityfs does not tell".into(),
    };
    check("lockdown", found)
        .limits(
            level.as_deref() == Some("integrity"),
            "what some kernels then refuse: the other checks show it",
        )
        .stops(
            level.as_deref() == Some("confidentiality"),
            "every tool that reads kernel memory, kprobes, perf events, tracefs",
        )
}

fn kptr_restrict() -> Check {
    let level = setting("/proc/sys/kernel/kptr_restrict").unwrap_or_else(|| "unknown".into());
    // What counts is whether addresses are shown; the level alone does not say.
    // Those that come first are small numbers, or zeros.
    let shown = File::open("/proc/kallsyms").is_ok_and(|file| {
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        lines
            .take(200)
            .any(|line| line.bytes().take(16).any(|digit| digit != b'0' && digit != b' '))
    });
    check("kptr_restrict", level)
        .limits(!shown, "names of kernel functions in stacks (takes CAP_SYSLOG)")
}

fn unprivileged_bpf() -> Check {
    let level = setting("/proc/sys/kernel/unprivileged_bpf_disabled");
    let level = level.unwrap_or_else(|| "unknown".into());
    let mine = privileges::effective().is_some_and(|set| privileges::missing(set).is_empty());
    let note = if mine { "" } else { "; it makes no difference to tracing" };
    check("unprivileged_bpf_disabled", format!("{level}{note}"))
}

fn cgroups() -> Check {
    let name = "cgroup_v2";
    let Some(mount) = cgroup::mount() else {
        return check(name, "not mounted").limits(true, "--cgroup, and the paths of cgroups");
    };
    let by_id = File::open(&mount.point).and_then(|directory| {
        let id = fs::metadata(&mount.point)?.ino();
        sys::open_cgroup(directory.as_fd(), id)
    });
    check(name, mount.point.display().to_string())
        .limits(by_id.is_err(), "the paths of cgroups (takes CAP_DAC_READ_SEARCH)")
}

/// `CONFIG_X=y` and the like, by name.
pub fn parse_config(text: &str) -> HashMap<String, String> {
    text.lines()
        .filter(|line| line.starts_with("CONFIG_"))
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

/// The configuration of the running kernel, where it or its package tells.
pub fn config(release: &str) -> Option<HashMap<String, String>> {
    #[cfg(feature = "kernel-packages")]
    if let Some(text) =
        fs::read("/proc/config.gz").ok().and_then(|bytes| crate::package::decompress(&bytes).ok())
    {
        return Some(parse_config(&String::from_utf8_lossy(&text)));
    }
    [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .map(|text| parse_config(&text))
}

/// Which distribution this is, as it calls itself.
pub fn distribution() -> Option<String> {
    let text = fs::read_to_string(Path::new("/etc/os-release"))
        .or_else(|_| fs::read_to_string("/usr/lib/os-release"))
        .ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(line.trim_matches('"').to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations() {
        let config = parse_config("# CONFIG_A is not set\nCONFIG_B=y\nCONFIG_C=\"x=y\"\n");
        assert_eq!((config.get("CONFIG_A"), config["CONFIG_C"].as_str()), (None, "\"x=y\""));
        assert_eq!(config["CONFIG_B"], "y");
    }

    #[test]
    fn outcomes_are_named() {
        let refused = Err(io::Error::from_raw_os_error(Errno::EACCES as i32));
        assert_eq!((outcome(&refused).as_str(), denied(&refused)), ("refused: EACCES", true));
        let none = Err(io::ErrorKind::Unsupported.into());
        assert_eq!((outcome(&none).as_str(), denied(&none)), ("the kernel has none", false));
    }
}
