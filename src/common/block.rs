// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What block requests ask for, by the numbers of `bpf/block.h`, and how to follow them from their
//! submission to their end (`bpf/block_track.h`).

use anyhow::Result;
use libbpf_rs::skel::OpenSkel;
use nix::libc;

use crate::disks::Disk;
use crate::globals::set_constant;
use crate::shared::BlockFlag;
use crate::shared::BlockOp;
use crate::tool::Way;
use crate::value::Flag;

// A doc comment on a struct that is flattened would become the tool's own description.
#[allow(missing_docs)]
#[derive(clap::Args, Clone, Debug)]
pub struct OnlyDisk {
    /// Only this disk or partition
    #[arg(short, long, value_name = "NAME", value_parser = Disk::find)]
    pub disk: Option<Disk>,
}

impl OnlyDisk {
    /// Tells the kernel side (`bpf/block.h`); before the load.
    ///
    /// # Errors
    /// Fails when the object is not made with it.
    pub fn configure<'o>(&self, open: &mut impl OpenSkel<'o>) -> Result<()> {
        let Some(disk) = &self.disk else { return Ok(()) };
        let open = open.open_object_mut();
        let (first, end) = disk.sectors.unwrap_or_default();
        let known = set_constant(open, "want_disk", &[1])?
            && set_constant(open, "want_disk_number", &disk.number.to_ne_bytes())?
            && set_constant(open, "want_first_sector", &first.to_ne_bytes())?
            && set_constant(open, "want_end_sector", &end.to_ne_bytes())?;
        anyhow::ensure!(known, "the object follows no requests");
        Ok(())
    }
}

/// `BLOCK_OP_SHIFT` of `bpf/block.h`.
const OP_SHIFT: u32 = 24;

/// Names of the operations.
static OPS: [(BlockOp, &str); BlockOp::BLOCK_OPS.0 as usize] = [
    (BlockOp::BLOCK_UNKNOWN, "Unknown"),
    (BlockOp::BLOCK_READ, "Read"),
    (BlockOp::BLOCK_WRITE, "Write"),
    (BlockOp::BLOCK_FLUSH, "Flush"),
    (BlockOp::BLOCK_DISCARD, "Discard"),
    (BlockOp::BLOCK_SECURE_ERASE, "SecureErase"),
    (BlockOp::BLOCK_WRITE_SAME, "WriteSame"),
    (BlockOp::BLOCK_WRITE_ZEROES, "WriteZeroes"),
    (BlockOp::BLOCK_ZONE_APPEND, "ZoneAppend"),
    (BlockOp::BLOCK_ZONE_OPEN, "ZoneOpen"),
    (BlockOp::BLOCK_ZONE_CLOSE, "ZoneClose"),
    (BlockOp::BLOCK_ZONE_FINISH, "ZoneFinish"),
    (BlockOp::BLOCK_ZONE_RESET, "ZoneReset"),
    (BlockOp::BLOCK_ZONE_RESET_ALL, "ZoneResetAll"),
    (BlockOp::BLOCK_SCSI_IN, "SCSIIn"),
    (BlockOp::BLOCK_SCSI_OUT, "SCSIOut"),
    (BlockOp::BLOCK_DRV_IN, "DrvIn"),
    (BlockOp::BLOCK_DRV_OUT, "DrvOut"),
];

const fn flag(flag: BlockFlag, name: &'static str) -> Flag {
    Flag::bit(1 << flag.0, name)
}

/// Names of the flags, in the order in which they are shown.
pub static FLAGS: [Flag; BlockFlag::BLOCK_FLAGS.0 as usize] = [
    flag(BlockFlag::BLOCK_NOWAIT, "NoWait"),
    flag(BlockFlag::BLOCK_BACKGROUND, "Background"),
    flag(BlockFlag::BLOCK_RAHEAD, "ReadAhead"),
    flag(BlockFlag::BLOCK_PREFLUSH, "PreFlush"),
    flag(BlockFlag::BLOCK_FUA, "FUA"),
    flag(BlockFlag::BLOCK_INTEGRITY, "Integrity"),
    flag(BlockFlag::BLOCK_IDLE, "Idle"),
    flag(BlockFlag::BLOCK_NOMERGE, "NoMerge"),
    flag(BlockFlag::BLOCK_PRIO, "Priority"),
    flag(BlockFlag::BLOCK_META, "Metadata"),
    flag(BlockFlag::BLOCK_SYNC, "Sync"),
];

/// The operation of a request (`block_kind()`).
pub fn op_name(kind: u32) -> &'static str {
    let op = kind >> OP_SHIFT;
    OPS.iter().find(|(known, _)| known.0 == op).map_or("Unknown", |(_, name)| *name)
}

/// The flags of a request, as bits of [`FLAGS`].
pub fn flags(kind: u32) -> u64 {
    u64::from(kind & ((1 << OP_SHIFT) - 1))
}

fn has(kind: u32, flag: BlockFlag) -> bool {
    kind & 1 << flag.0 != 0
}

/// The letters that blktrace has for it: F before the operation for a flush before the data, after
/// it F for data that is not left in the device's cache, A for readahead, S for synchronous, M for
/// metadata.
pub fn letters(kind: u32) -> String {
    let mut letters = String::new();
    if has(kind, BlockFlag::BLOCK_PREFLUSH) {
        letters.push('F');
    }
    letters.push_str(match BlockOp(kind >> OP_SHIFT) {
        BlockOp::BLOCK_READ => "R",
        BlockOp::BLOCK_WRITE | BlockOp::BLOCK_WRITE_SAME => "W",
        BlockOp::BLOCK_FLUSH => "F",
        BlockOp::BLOCK_DISCARD => "D",
        BlockOp::BLOCK_SECURE_ERASE => "DE",
        BlockOp::BLOCK_WRITE_ZEROES => "WZ",
        BlockOp::BLOCK_ZONE_APPEND => "ZA",
        BlockOp::BLOCK_ZONE_OPEN => "ZO",
        BlockOp::BLOCK_ZONE_CLOSE => "ZC",
        BlockOp::BLOCK_ZONE_FINISH => "ZF",
        BlockOp::BLOCK_ZONE_RESET => "ZR",
        BlockOp::BLOCK_ZONE_RESET_ALL => "ZRA",
        _ => "N",
    });
    for (flag, letter) in [
        (BlockFlag::BLOCK_FUA, 'F'),
        (BlockFlag::BLOCK_RAHEAD, 'A'),
        (BlockFlag::BLOCK_SYNC, 'S'),
        (BlockFlag::BLOCK_META, 'M'),
    ] {
        if has(kind, flag) {
            letters.push(letter);
        }
    }
    letters
}

/// How a request ended, as an errno: what the tracepoint says, which is a negative errno, or since
/// 5.18 a `blk_status_t` (include/linux/blk_types.h). What has no errno of its own is EIO.
pub fn errno(status: i32) -> i32 {
    match status {
        ..=0 => status,
        1 => libc::EOPNOTSUPP,
        2 => libc::ETIMEDOUT,
        3 => libc::ENOSPC,
        4 => libc::ENOLINK,
        5 => libc::EREMOTEIO,
        6 => libc::EBADE,
        7 => libc::ENODATA,
        8 => libc::EILSEQ,
        9 => libc::ENOMEM,
        12 => libc::EAGAIN,
        13 => libc::EBUSY,
        _ => libc::EIO,
    }
}

/// Whether this way of [`tracked_requests`] may have to find submitters by their bios.
pub fn by_bio(way: &Way) -> bool {
    way.programs.iter().chain(&way.optional).any(|program| program.starts_with("getrq"))
}

/// The way of this name that follows requests with the hooks of `bpf/block_track.h`. With
/// `queued`, also when they enter the queue; with `done`, also to their end.
#[macro_export]
macro_rules! tracked_requests {
    ($way:literal, queued: $queued:expr, done: $done:expr) => {{
        let (queued, done): (bool, bool) = ($queued, $done);
        $crate::tool::Way::new($way, &[])
            .with(done, &[concat!("complete__", $way), concat!("complete_twin__", $way)])
            .with(true, &[concat!("issue__", $way), concat!("issue_twin__", $way)])
            .with(queued, &[concat!("insert__", $way), concat!("insert_twin__", $way)])
            // What is remembered before the issue must be forgotten when it comes to nothing.
            .optional(&[concat!("merge__", $way)])
            .by_tracepoint(
                "block_io_start",
                &[concat!("start__", $way), concat!("start_twin__", $way)],
                &[concat!("getrq__", $way), concat!("getrq_twin__", $way)],
            )
            .twins(&[
                (concat!("complete__", $way), concat!("complete_twin__", $way)),
                (concat!("issue__", $way), concat!("issue_twin__", $way)),
                (concat!("insert__", $way), concat!("insert_twin__", $way)),
                (concat!("start__", $way), concat!("start_twin__", $way)),
                (concat!("getrq__", $way), concat!("getrq_twin__", $way)),
            ])
    }};
}

/// The way of this name that knows requests by the bios that they are made for
/// (`bpf/block_owner.h`, or a tool's own of that kind). With `queued`, also when they enter the
/// queue; with `owner`, also who submits them.
#[macro_export]
macro_rules! block_requests {
    ($way:literal, queued: $queued:expr, owner: $owner:expr) => {{
        let (queued, owner): (bool, bool) = ($queued, $owner);
        let mut way = $crate::tool::Way::new($way, &[concat!("complete__", $way)])
            .twin(concat!("complete__", $way), concat!("complete_twin__", $way))
            .with(true, &[concat!("issue__", $way)])
            .twin(concat!("issue__", $way), concat!("issue_twin__", $way))
            .with(queued, &[concat!("insert__", $way)]);
        if owner {
            way = way
                .with(true, &[concat!("getrq__", $way)])
                .twin(concat!("getrq__", $way), concat!("getrq_twin__", $way));
        }
        if queued || owner {
            // What is remembered before the issue must be forgotten when it comes to nothing.
            way = way.optional(&[concat!("merge__", $way)]);
        }
        way
    }};
}

/// The flags and the operation of a request (`block_kind()`), joined: `Sync-Write`.
pub fn kind_name(kind: u32) -> String {
    let set = flags(kind);
    let flags = FLAGS.iter().filter(|flag| set & flag.mask != 0).map(|flag| flag.name);
    flags.chain(std::iter::once(op_name(kind))).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_stand_before_the_operation() {
        let kind = |op: BlockOp, flags: &[BlockFlag]| {
            kind_name(op.0 << OP_SHIFT | flags.iter().fold(0, |all, flag| all | 1 << flag.0))
        };
        assert_eq!(kind(BlockOp::BLOCK_READ, &[]), "Read");
        let fua = [BlockFlag::BLOCK_SYNC, BlockFlag::BLOCK_FUA, BlockFlag::BLOCK_IDLE];
        assert_eq!(kind(BlockOp::BLOCK_WRITE, &fua), "FUA-Idle-Sync-Write");
        assert_eq!(
            (kind_name(0), kind_name(0xff << OP_SHIFT)),
            ("Unknown".into(), "Unknown".into())
        );
    }

    #[test]
    fn every_number_has_its_name_once() {
        for (i, (op, _)) in OPS.iter().enumerate() {
            assert_eq!(op.0 as usize, i);
        }
        for (i, flag) in FLAGS.iter().enumerate() {
            assert_eq!(flag.mask, 1 << i);
        }
    }

    #[test]
    fn letters_of_blktrace() {
        let letters = |op: BlockOp, flags: &[BlockFlag]| {
            letters(op.0 << OP_SHIFT | flags.iter().fold(0, |all, flag| all | 1 << flag.0))
        };
        let all = [
            BlockFlag::BLOCK_PREFLUSH,
            BlockFlag::BLOCK_FUA,
            BlockFlag::BLOCK_RAHEAD,
            BlockFlag::BLOCK_SYNC,
            BlockFlag::BLOCK_META,
            BlockFlag::BLOCK_IDLE,
        ];
        assert_eq!(letters(BlockOp::BLOCK_WRITE, &all), "FWFASM");
        assert_eq!(letters(BlockOp::BLOCK_SECURE_ERASE, &[]), "DE");
        assert_eq!(letters(BlockOp::BLOCK_ZONE_APPEND, &[BlockFlag::BLOCK_SYNC]), "ZAS");
        assert_eq!(letters(BlockOp::BLOCK_DRV_IN, &[]), "N");
    }

    #[test]
    fn both_forms_of_an_error() {
        assert_eq!(
            (errno(0), errno(-libc::EIO), errno(10), errno(99)),
            (0, -libc::EIO, libc::EIO, libc::EIO)
        );
    }
}
