// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What the machine and our privileges lack, said in words. There is no test for UID 0: what
//! counts is what the kernel permits.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use libbpf_rs::MapHandle;
use libbpf_rs::MapType;
use nix::sys::resource::RLIM_INFINITY;
use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;
use nix::sys::resource::setrlimit;

use crate::btf;

/// Numbers of include/uapi/linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// Where the kernel tells how far it is locked down.
pub const LOCKDOWN: &str = "/sys/kernel/security/lockdown";

/// The capabilities that make a difference to some tool, by number.
pub const CAPABILITIES: [(u32, &str); 7] = [
    (2, "CAP_DAC_READ_SEARCH"),
    (19, "CAP_SYS_PTRACE"),
    (CAP_SYS_ADMIN, "CAP_SYS_ADMIN"),
    (24, "CAP_SYS_RESOURCE"),
    (34, "CAP_SYSLOG"),
    (CAP_PERFMON, "CAP_PERFMON"),
    (CAP_BPF, "CAP_BPF"),
];

/// The effective capabilities, as a set of bits.
pub fn effective() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Those of [`CAPABILITIES`] that programs cannot be loaded without, and that are not there.
pub fn missing(effective: u64) -> Vec<&'static str> {
    let has = |cap: u32| effective >> cap & 1 == 1;
    if has(CAP_SYS_ADMIN) {
        return Vec::new();
    }
    [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")]
        .into_iter()
        .filter(|(cap, _)| !has(*cap))
        .map(|(_, name)| name)
        .collect()
}

/// What stops every tool here, as one sentence: capabilities, kernel types. `None` when nothing
/// that can be seen beforehand does.
pub fn obstacle(own_btf: Option<&Path>) -> Option<String> {
    let lacking = effective().map(missing).unwrap_or_default();
    if !lacking.is_empty() {
        return Some(format!(
            "tracing needs CAP_BPF and CAP_PERFMON, and {} {} missing: run it as root",
            lacking.join(" and "),
            if lacking.len() == 1 { "is" } else { "are" },
        ));
    }
    if own_btf.is_none() && !Path::new(btf::VMLINUX).exists() {
        return Some(format!(
            "the kernel does not describe its types: there is no {} (CONFIG_DEBUG_INFO_BTF); \
             --btf FILE gives them",
            btf::VMLINUX
        ));
    }
    None
}

/// How far the kernel is locked down; `None` where it does not tell.
pub fn lockdown() -> Option<String> {
    let text = fs::read_to_string(LOCKDOWN).ok()?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_string())
}

/// Whether this process is in the user namespace that the machine began with; in any other, the
/// capabilities that it has do not count for tracing.
pub fn in_first_user_namespace() -> bool {
    // The inode of the first one is fixed: PROC_USER_INIT_INO of include/linux/proc_ns.h.
    fs::read_link("/proc/self/ns/user").is_ok_and(|to| to.as_os_str() == "user:[4026531837]")
}

/// `kernel.perf_event_paranoid`.
pub fn perf_event_paranoid() -> Option<i32> {
    fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok()?.trim().parse().ok()
}

/// The limit of locked memory as it was before [`raise_locked_memory`]: soft and hard.
static LOCKED_MEMORY: OnceLock<(u64, u64)> = OnceLock::new();

/// Notes the limit once, before anything changes it; libbpf raises it too, when it makes a map.
fn note_locked_memory() {
    if let Ok(limits) = getrlimit(Resource::RLIMIT_MEMLOCK) {
        LOCKED_MEMORY.get_or_init(|| limits);
    }
}

/// Raises the limit of locked memory as far as this process may: before Linux 5.11, all memory of
/// BPF maps and programs counts against it.
pub fn raise_locked_memory() {
    note_locked_memory();
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK) else { return };
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err() {
        // Without CAP_SYS_RESOURCE. What that cannot do shows when something is loaded.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard);
    }
}

/// The limit of locked memory as it was when the process started, where it was raised.
pub fn first_locked_memory() -> Option<(u64, u64)> {
    LOCKED_MEMORY.get().copied()
}

/// Whether this kernel counts BPF memory against the limit of locked memory. It is tried: with no
/// room at all, the smallest map is refused there. `None` when even that cannot be tried, because
/// maps are refused anyway.
pub fn counts_locked_memory() -> Option<bool> {
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let possible = || MapHandle::create(MapType::Array, None::<&str>, 4, 4, 1, &options).is_ok();
    note_locked_memory();
    if !possible() {
        return None;
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    setrlimit(Resource::RLIMIT_MEMLOCK, 0, hard).ok()?;
    let counted = !possible();
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard).ok()?;
    Some(counted)
}

/// A limit in words.
pub fn limit_in_words(bytes: u64) -> String {
    match bytes {
        RLIM_INFINITY => "unlimited".into(),
        bytes => format!("{} KiB", bytes >> 10),
    }
}

/// What stands in the way where the limit of locked memory does, or may.
fn locked_memory_obstacle() -> Option<String> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    if soft == RLIM_INFINITY {
        return None;
    }
    let limit = limit_in_words(soft);
    let raise = "to raise that takes CAP_SYS_RESOURCE, or ulimit -l beforehand";
    match counts_locked_memory() {
        Some(false) => None,
        Some(true) => Some(format!(
            "this kernel counts BPF memory against the limit of locked memory, {limit}: {raise}"
        )),
        None => Some(format!(
            "no BPF map can be made at all: bpf(2) is filtered, as in containers, or the limit of \
             locked memory, {limit}, is used up: {raise}"
        )),
    }
}

/// What may be behind a refusal by the kernel, as the end of a sentence.
pub fn hint(error: &str) -> Option<String> {
    let lockdown = lockdown().unwrap_or_default();
    if lockdown == "confidentiality" {
        return Some("the kernel is locked down (confidentiality)".into());
    }
    let refused = error.contains("not permitted")
        || error.contains("Permission denied")
        || error.contains("EPERM")
        || error.contains("EACCES");
    if !refused {
        return None;
    }
    if !in_first_user_namespace() {
        return Some("capabilities do not count in a user namespace of one's own".into());
    }
    // The limit refuses with EPERM; EACCES comes from elsewhere.
    let by_limit = error.contains("not permitted") || error.contains("EPERM");
    if let Some(obstacle) = by_limit.then(locked_memory_obstacle).flatten() {
        return Some(obstacle);
    }
    if lockdown == "integrity" {
        return Some("the kernel is locked down (integrity)".into());
    }
    let admin = effective().is_some_and(|caps| caps >> CAP_SYS_ADMIN & 1 == 1);
    let level = perf_event_paranoid().filter(|level| !admin && *level > 2)?;
    Some(format!("kernel.perf_event_paranoid is {level}: kprobes take CAP_SYS_ADMIN, or 2 there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_named() {
        assert_eq!(missing(0), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing(1 << CAP_BPF), ["CAP_PERFMON"]);
        assert!(missing(1 << CAP_BPF | 1 << CAP_PERFMON).is_empty());
        assert!(missing(1 << CAP_SYS_ADMIN).is_empty());
    }
}
