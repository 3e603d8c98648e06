// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The library that every bpfscope tool stands on. `docs/architecture.md` is the map.

pub mod aside;
pub mod block;
pub mod btf;
pub mod btf_attach;
pub mod btf_subset;
pub mod bundle;
pub mod cgroup;
pub mod cgroup_names;
pub mod cli;
pub mod completions;
pub mod condition;
pub mod container;
pub mod cpus;
pub mod disks;
pub mod docs;
pub mod doctor;
pub mod error;
pub mod escape;
pub mod event_loop;
pub mod file_systems;
pub mod filter;
#[cfg(feature = "flame-graph")]
pub mod flame_graph;
pub mod function_probes;
pub mod functions;
pub mod globals;
pub mod histogram;
pub mod hooks;
pub mod interrupt;
pub mod iterator;
pub mod kretprobe;
pub mod loss;
pub mod man;
pub mod maps;
pub mod multi;
pub mod names;
pub mod net;
pub mod output;
#[cfg(feature = "kernel-packages")]
pub mod package;
pub mod packed;
pub mod path;
pub mod perf;
pub mod pidns;
#[cfg(feature = "pprof")]
pub mod pprof;
pub mod prelude;
pub mod prerequisites;
pub mod privileges;
pub mod probe;
pub mod record;
pub mod runner;
mod saved;
pub mod schema;
pub mod session;
pub mod shared;
pub mod signals;
pub mod stacks;
pub mod swapped;
pub mod symbols;
pub mod sys;
pub mod syscalls;
pub mod table;
pub mod terminal;
pub mod thread_times;
pub mod threads;
pub mod time;
pub mod tool;
pub mod uprobe;
pub mod value;

pub use runner::main;

// The generated skeletons name the library as their users do.
extern crate self as bpfscope;
