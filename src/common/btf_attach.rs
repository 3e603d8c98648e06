// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! fentry, fexit, tp_btf and iter programs by ids that were looked up before.
//!
//! libbpf parses and checks all of the kernel's types to find the few ids that such programs attach
//! by, which is a third of what a tool's start costs in user space, and as much memory. The ids are
//! known by then: [`crate::btf::KernelBtf::find`] has seen them. So libbpf is given handlers of our
//! own for these sections. Until it loads a program it takes it for a kprobe, which needs no types.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::CStr;
use std::ffi::c_int;
use std::ffi::c_long;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::Once;

use anyhow::Result;
use anyhow::ensure;
use nix::libc::ENOENT;

/// What the sections stand for.
const HANDLERS: [(&CStr, libbpf_sys::bpf_attach_type); 4] = [
    (c"fentry/", libbpf_sys::BPF_TRACE_FENTRY),
    (c"fexit/", libbpf_sys::BPF_TRACE_FEXIT),
    (c"tp_btf/", libbpf_sys::BPF_TRACE_RAW_TP),
    (c"iter/", libbpf_sys::BPF_TRACE_ITER),
];

/// What a program attaches to.
pub struct Place {
    /// Its type's id.
    pub id: u32,
    /// The BTF of the module that has it; of the kernel itself otherwise.
    pub module: Option<Arc<OwnedFd>>,
}

/// The places that were found, by program.
static PLACES: Mutex<Option<HashMap<String, Place>>> = Mutex::new(None);

/// Remembers what these programs attach to, in the running kernel.
///
/// # Errors
/// Fails when libbpf takes no handlers.
pub fn know(places: HashMap<String, Place>) -> Result<()> {
    static FIRST: Once = Once::new();
    let mut refused = 0;
    FIRST.call_once(|| {
        for (section, attach_type) in HANDLERS {
            let options = libbpf_sys::libbpf_prog_handler_opts {
                sz: size_of::<libbpf_sys::libbpf_prog_handler_opts>() as _,
                prog_prepare_load_fn: Some(prepare),
                ..Default::default()
            };
            // SAFETY: libbpf copies the options and the section's name.
            let id = unsafe {
                libbpf_sys::libbpf_register_prog_handler(
                    section.as_ptr(),
                    libbpf_sys::BPF_PROG_TYPE_KPROBE,
                    attach_type,
                    &raw const options,
                )
            };
            refused = refused.min(id);
        }
    });
    ensure!(refused >= 0, "libbpf takes no handlers for sections: {refused}");
    // Those of a tool that was tried before are not this one's.
    if let Ok(mut known) = PLACES.lock() {
        *known = Some(places);
    }
    Ok(())
}

/// Called by libbpf right before it loads a program of one of the sections.
extern "C" fn prepare(
    program: *mut libbpf_sys::bpf_program,
    options: *mut libbpf_sys::bpf_prog_load_opts,
    _cookie: c_long,
) -> c_int {
    // SAFETY: libbpf passes a program that lives, whose name lives as long; and options that are
    // its own for the time of this call.
    let (name, options) =
        unsafe { (CStr::from_ptr(libbpf_sys::bpf_program__name(program)), &mut *options) };
    // A target that was set at run time comes with its id.
    if options.attach_btf_id == 0 {
        let name = name.to_string_lossy();
        let known = PLACES.lock().ok();
        let Some(place) = known.as_ref().and_then(|places| places.as_ref()?.get(&*name)) else {
            return -ENOENT;
        };
        options.attach_btf_id = place.id;
        if let Some(module) = &place.module {
            options.attach_btf_obj_fd = module.as_raw_fd().cast_unsigned();
        }
    }
    // SAFETY: a program that lives and is not loaded yet.
    unsafe { libbpf_sys::bpf_program__set_type(program, libbpf_sys::BPF_PROG_TYPE_TRACING) }
}
