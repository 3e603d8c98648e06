// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What the machine and our privileges lack, said in words. There is no test for UID 0: what
//! counts is what the kernel permits.

use std::fs;
use std::path::Path;

use crate::btf;

/// Numbers of include/uapi/linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

fn effective() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn missing(effective: u64) -> Vec<&'static str> {
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

/// What may be behind a refusal by the kernel, as the end of a sentence.
pub fn hint(error: &str) -> Option<String> {
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        return Some("the kernel is locked down (confidentiality)".into());
    }
    let refused = error.contains("not permitted")
        || error.contains("Permission denied")
        || error.contains("EPERM")
        || error.contains("EACCES");
    if !refused {
        return None;
    }
    if lockdown.contains("[integrity]") {
        return Some("the kernel is locked down (integrity)".into());
    }
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let admin = effective().is_some_and(|caps| caps >> CAP_SYS_ADMIN & 1 == 1);
    (!admin && paranoid.trim().parse::<i32>().is_ok_and(|level| level > 2)).then(|| {
        format!("kernel.perf_event_paranoid is {}, which takes CAP_SYS_ADMIN", paranoid.trim())
    })
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
