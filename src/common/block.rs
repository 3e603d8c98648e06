// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause

//! What block requests ask for, by the numbers of `bpf/block.h`.

use crate::shared::BlockFlag;
use crate::shared::BlockOp;

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

/// Names of the flags, in the order in which they are shown.
static FLAGS: [(BlockFlag, &str); BlockFlag::BLOCK_FLAGS.0 as usize] = [
    (BlockFlag::BLOCK_NOWAIT, "NoWait"),
    (BlockFlag::BLOCK_BACKGROUND, "Background"),
    (BlockFlag::BLOCK_RAHEAD, "ReadAhead"),
    (BlockFlag::BLOCK_PREFLUSH, "PreFlush"),
    (BlockFlag::BLOCK_FUA, "FUA"),
    (BlockFlag::BLOCK_INTEGRITY, "Integrity"),
    (BlockFlag::BLOCK_IDLE, "Idle"),
    (BlockFlag::BLOCK_NOMERGE, "NoMerge"),
    (BlockFlag::BLOCK_PRIO, "Priority"),
    (BlockFlag::BLOCK_META, "Metadata"),
    (BlockFlag::BLOCK_SYNC, "Sync"),
];

/// The flags and the operation of a request (`block_kind()`), joined: `Sync-Write`.
pub fn kind_name(kind: u32) -> String {
    let op = kind >> OP_SHIFT;
    let op = OPS.iter().find(|(known, _)| known.0 == op).map_or("Unknown", |(_, name)| *name);
    let flags = FLAGS.iter().filter(|(flag, _)| kind & 1 << flag.0 != 0).map(|(_, name)| *name);
    flags.chain(std::iter::once(op)).collect::<Vec<_>>().join("-")
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
        for (i, (flag, _)) in FLAGS.iter().enumerate() {
            assert_eq!(flag.0 as usize, i);
        }
    }
}
