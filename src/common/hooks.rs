// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Whether kinds of hooks can be had on this machine: each is made once, at a function that the
//! kernel has for tests and never calls, and taken away again.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::AsRawFd as _;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;

use nix::libc;

use crate::btf::KernelBtf;

/// Functions to try at: the kernel's own test of fentry (net/bpf/test_run.c), and for kernels
/// without it one that is rarely called.
const FUNCTIONS: [&str; 2] = ["bpf_fentry_test1", "vfs_fsync_range"];

fn open_event(attr: &mut libbpf_sys::perf_event_attr) -> io::Result<OwnedFd> {
    attr.size = u32::try_from(size_of_val(attr)).unwrap_or(0);
    let (every_task, cpu, no_group) = (-1, 0, -1);
    // SAFETY: the kernel reads the attributes, and the name that they may point to, and keeps
    // nothing of ours.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const *attr,
            every_task,
            cpu,
            no_group,
            libbpf_sys::PERF_FLAG_FD_CLOEXEC,
        )
    };
    take(fd)
}

/// A descriptor that the kernel has just returned, or the error.
fn take(fd: i64) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel just returned it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a kprobe through `perf_event_open`.
///
/// # Errors
/// Those of the kernel; `Unsupported` where it has no kprobes.
pub fn kprobe() -> io::Result<()> {
    let kind = fs::read_to_string("/sys/bus/event_source/devices/kprobe/type")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or(io::ErrorKind::Unsupported)?;
    let mut result = Ok(());
    for function in FUNCTIONS {
        let name = CString::new(function)?;
        // SAFETY: all zeros is a valid perf_event_attr.
        let mut attr: libbpf_sys::perf_event_attr = unsafe { mem::zeroed() };
        attr.type_ = kind;
        attr.__bindgen_anon_3.kprobe_func = name.as_ptr() as u64;
        result = open_event(&mut attr).map(drop);
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            break;
        }
    }
    result
}

/// Opens an event that samples a whole CPU, as profilers do.
///
/// # Errors
/// Those of the kernel.
pub fn sampling() -> io::Result<()> {
    // SAFETY: all zeros is a valid perf_event_attr.
    let mut attr: libbpf_sys::perf_event_attr = unsafe { mem::zeroed() };
    attr.type_ = libbpf_sys::PERF_TYPE_SOFTWARE;
    attr.config = libbpf_sys::PERF_COUNT_SW_CPU_CLOCK.into();
    attr.__bindgen_anon_1.sample_period = 1_000_000_000;
    open_event(&mut attr).map(drop)
}

/// Puts an empty fentry program at a function. Not to be called where taking it away may hang:
/// [`crate::probe::Kernel::fentry_may_deadlock`].
///
/// # Errors
/// Those of the kernel; `NotFound` where its BTF has none of the functions.
pub fn fentry(btf: &KernelBtf) -> io::Result<()> {
    let ids = btf.find(&FUNCTIONS, &[]).functions;
    let id = FUNCTIONS.iter().find_map(|name| ids.get(name).copied());
    let id = id.ok_or(io::ErrorKind::NotFound)?;
    let mut options = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as _,
        expected_attach_type: libbpf_sys::BPF_TRACE_FENTRY,
        attach_btf_id: id,
        ..Default::default()
    };
    let insn = |code: u8| libbpf_sys::bpf_insn { code, ..Default::default() };
    // r0 = 0; exit
    let program = [insn(0xb7), insn(0x95)];
    // SAFETY: strings and instructions live across the call, and the kernel copies them; the
    // options say their own size.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_TRACING,
            c"bpfscope_trial".as_ptr(),
            c"GPL".as_ptr(),
            program.as_ptr(),
            program.len() as _,
            &raw mut options,
        )
    };
    let loaded = take(fd.into())?;
    // SAFETY: a program of ours; its target was named when it was loaded.
    let fd = unsafe { libbpf_sys::bpf_raw_tracepoint_open(std::ptr::null(), loaded.as_raw_fd()) };
    take(fd.into()).map(drop)
}
