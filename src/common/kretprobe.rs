// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Return probes with room for many calls at once.
//!
//! A kretprobe has a fixed number of instances; a call that finds none free returns unseen. Made
//! through `perf_event_open` it has as many as the machine has CPUs (5.10), or at least ten
//! (kernel/kprobes.c, `register_kretprobe`), which a few calls that sleep use up. Made through
//! tracefs it takes the number that is asked for (`MAXACTIVE`, 4.12), and `kprobe_profile` tells
//! what was missed all the same.

use std::ffi::OsStr;
use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::io::Write as _;
use std::os::fd::IntoRawFd as _;
use std::path::Path;
use std::process;
use std::sync::Once;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use libbpf_rs::Link;
use libbpf_rs::ProgramMut;

use crate::sys;

/// All probes of the suite are in this group.
const GROUP: &str = "bpfscope";
/// `KRETPROBE_MAXACTIVE_MAX` of kernel/trace/trace_kprobe.c: the most that the kernel takes.
const MAX_ACTIVE: u32 = 4096;

/// A return probe in tracefs; gone when this is dropped, which must be after its link.
#[derive(Debug)]
pub struct ReturnProbe {
    name: String,
}

impl ReturnProbe {
    /// Makes a return probe at a kernel function.
    fn new(function: &str) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Unique also among tools in several PID namespaces, and since the machine's start.
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
        let name = format!(
            "p{}_{:x}{:08x}_{}",
            process::id(),
            now.tv_sec(),
            now.tv_nsec(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        command(&format!("r{MAX_ACTIVE}:{GROUP}/{name} {function}"))?;
        Ok(Self { name })
    }

    /// Attaches a program to a new return probe at a kernel function.
    ///
    /// # Errors
    /// Fails where there is no tracefs or it may not be written to, and where the kernel refuses
    /// the function.
    pub fn attach(program: &ProgramMut<'_>, function: &str) -> anyhow::Result<(Link, Self)> {
        static FIRST: Once = Once::new();
        FIRST.call_once(remove_abandoned);
        let probe = Self::new(function)?;
        let id = fs::read_to_string(tracefs().join(format!("events/{GROUP}/{}/id", probe.name)))?;
        let event = sys::open_tracepoint(id.trim().parse()?)?;
        // The link closes it.
        let link = program.attach_perf_event(event.into_raw_fd())?;
        Ok((link, probe))
    }

    /// How many returns were missed; `None` where the kernel does not tell.
    pub fn missed(&self) -> Option<u64> {
        missed(&fs::read_to_string(tracefs().join("kprobe_profile")).ok()?, &self.name)
    }
}

impl Drop for ReturnProbe {
    fn drop(&mut self) {
        // Nobody to tell, and the next tool that starts tries again.
        let _ = remove(&self.name);
    }
}

/// Where tracefs is mounted: its own place, or inside of debugfs, which mounts it when it is
/// looked at. `None` where it is not, as far as this user can see.
pub fn mounted() -> Option<&'static Path> {
    let places = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"].map(Path::new);
    let usable = places.into_iter().find(|path| path.join("kprobe_events").exists());
    usable.or_else(|| {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        places.into_iter().find(|path| {
            let at = path.to_string_lossy();
            mounts.lines().any(|line| line.split(' ').nth(1) == Some(&at))
        })
    })
}

fn tracefs() -> &'static Path {
    mounted().unwrap_or(Path::new("/sys/kernel/tracing"))
}

fn command(line: &str) -> io::Result<()> {
    let path = tracefs().join("kprobe_events");
    OpenOptions::new().append(true).open(path)?.write_all(line.as_bytes())
}

fn remove(name: &str) -> io::Result<()> {
    command(&format!("-:{GROUP}/{name}"))
}

/// The function that a section such as `kretprobe/vfs_read` names.
pub fn function(section: &OsStr) -> Option<&str> {
    let section = section.to_str()?;
    section.strip_prefix('?').unwrap_or(section).strip_prefix("kretprobe/")
}

/// Removes probes that tools left behind which were killed. Those in use the kernel keeps.
fn remove_abandoned() {
    let Ok(list) = fs::read_to_string(tracefs().join("kprobe_events")) else { return };
    for name in abandoned(&list, |pid| Path::new("/proc").join(pid).exists()) {
        let _ = remove(name);
    }
}

/// The probes of this suite whose process is gone, from the contents of `kprobe_events`.
fn abandoned<'a>(
    list: &'a str,
    lives: impl Fn(&str) -> bool + 'a,
) -> impl Iterator<Item = &'a str> {
    list.lines().filter_map(move |line| {
        let (_, event) = line.split_whitespace().next()?.split_once(':')?;
        let name = event.strip_prefix(GROUP)?.strip_prefix('/')?;
        let pid = name.strip_prefix('p')?.split('_').next()?;
        (!lives(pid)).then_some(name)
    })
}

/// A probe's last number in `kprobe_profile`: its name, hits, misses.
fn missed(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections() {
        assert_eq!(function(OsStr::new("kretprobe/vfs_read")), Some("vfs_read"));
        assert_eq!(function(OsStr::new("kprobe/vfs_read")), None);
    }

    #[test]
    fn the_kernel_s_files_are_read() {
        let list = "r4096:bpfscope/p7_1_0 vfs_read\nr:other/p7_1_0 x\np:bpfscope/p8_1_0 y\n";
        assert_eq!(abandoned(list, |pid| pid == "8").collect::<Vec<_>>(), ["p7_1_0"]);
        let text = "  p7_1_0                   12               3\n";
        assert_eq!((missed(text, "p7_1_0"), missed(text, "p7")), (Some(3), None));
    }
}
