// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! The structs that every tool's kernel side shares with the library, as generated from
//! `bpf/*.h`: `event_head`, `loss`, `filter_key` and the enums beside them, and those of block
//! requests, stacks and threads.

// The skeleton's plumbing and the `Plain` implementations are unsafe by nature.
#[allow(
    unsafe_code,
    missing_docs,
    unused,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/shared.rs"));
}

pub use generated::types::block_flag as BlockFlag;
pub use generated::types::block_op as BlockOp;
pub use generated::types::cgroup_news as CgroupNews;
pub use generated::types::cgroup_what as CgroupWhat;
pub use generated::types::event_head as EventHead;
pub use generated::types::filter_key as FilterKey;
pub use generated::types::filter_kind as FilterKind;
pub use generated::types::loss as Loss;
pub use generated::types::reader_state as ReaderState;
pub use generated::types::stack_id as StackId;
pub use generated::types::stack_key as StackKey;
pub use generated::types::times_by as TimesBy;
