// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! Exit statuses, and the errors that decide them.

use std::fmt;

/// Everything went well, however the run was ended.
pub const OK: u8 = 0;
/// Something failed.
pub const FAILED: u8 = 1;
/// The command line makes no sense.
pub const USAGE: u8 = 2;
/// This kernel, or these privileges, cannot run the tool.
pub const UNSUPPORTED: u8 = 3;
/// Events were lost and `--strict` was given.
pub const LOST: u8 = 4;

/// An error with an exit status of its own. Any other error ends a tool with [`FAILED`].
#[derive(Debug)]
pub enum Stop {
    /// Bad input, found before anything was opened: status [`USAGE`].
    Usage(String),
    /// The command line asks for something that is known without running: this, on stdout, and
    /// status [`OK`].
    Answer(String),
    /// The machine lacks something, which the sentence names: status [`UNSUPPORTED`].
    Unsupported(String),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) | Self::Unsupported(text) | Self::Answer(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Stop {}

/// A usage error, from one sentence without a full stop.
pub fn usage(sentence: impl Into<String>) -> anyhow::Error {
    Stop::Usage(sentence.into()).into()
}

/// Ends the tool with an answer on stdout, of whole lines, instead of running it.
pub fn answer(text: impl Into<String>) -> anyhow::Error {
    Stop::Answer(text.into()).into()
}

/// "Cannot run here", from one sentence that says what is missing.
pub fn unsupported(sentence: impl Into<String>) -> anyhow::Error {
    Stop::Unsupported(sentence.into()).into()
}

/// The exit status that belongs to `error`.
pub fn status(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Stop>() {
        Some(Stop::Usage(_)) => USAGE,
        Some(Stop::Unsupported(_)) => UNSUPPORTED,
        Some(Stop::Answer(_)) => OK,
        None => FAILED,
    }
}
