// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What a tool file needs.

pub use std::process::ExitCode;

pub use anyhow::Context as _;
pub use anyhow::Result;
pub use libbpf_rs::MapCore as _;

pub use crate::aside::Aside;
pub use crate::aside::Asides;
pub use crate::bpf;
pub use crate::cli::Common;
pub use crate::error::unsupported;
pub use crate::error::usage;
pub use crate::output::Output;
pub use crate::record::Kind;
pub use crate::record::Records;
pub use crate::record::column;
pub use crate::record::time_column;
pub use crate::session::Event;
pub use crate::session::Every;
pub use crate::session::Session;
pub use crate::session::split;
pub use crate::table::Table;
pub use crate::time::TimeFormat;
pub use crate::tool::Alias;
pub use crate::tool::Doc;
pub use crate::tool::Question;
pub use crate::tool::Tool;
pub use crate::tool::Way;
pub use crate::value::Format;
pub use crate::value::Type;
pub use crate::value::Value;
