// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Every tool in one file; build.rs finds them.

use std::process::ExitCode;

include!(concat!(env!("OUT_DIR"), "/tools.rs"));

fn main() -> ExitCode {
    bpfscope::multi::main(TOOLS)
}
