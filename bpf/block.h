/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Block requests: what they are, on every kernel.
 *
 * Functions with an argument `typed` serve both kinds of program: where the request came from a
 * tp_btf program the verifier knows its type, and its fields are plain loads; a raw tracepoint has
 * to ask for each one. It is a constant after inlining.
 */
#ifndef BLOCK_H
#define BLOCK_H

#include "bpfscope.h"
#include "twin_mark.h"

/*
 * The request tracepoints (insert, issue, requeue, merge) gave the queue first until a54895fa057c
 * "block: remove the request_queue to argument request based tracepoints" (5.11, and in 5.10 from
 * 5.10.137 on). Always without it: block_rq_complete.
 */
typedef void (*btf_trace_block_rq_issue___queue)(void *, struct request_queue *, struct request *);

static __always_inline struct request *request_of(__u64 *ctx)
{
	__u64 request;

	if (bpf_core_type_exists(btf_trace_block_rq_issue___queue)) {
		request = ctx[1];
		/* Two loads, not one from a computed place: the verifier wants fixed ones. */
		barrier_var(request);
	} else {
		request = ctx[0];
	}
	return (struct request *)request;
}

/*
 * The queue came first, and the direction last, until e8a676d61c07 "block: simplify and extend
 * the block_bio_merge tracepoint class" (5.11).
 */
typedef void (*btf_trace_block_getrq___queue)(void *, struct request_queue *, struct bio *, int);

static __always_inline struct bio *bio_of_getrq(__u64 *ctx)
{
	__u64 bio;

	if (bpf_core_type_exists(btf_trace_block_getrq___queue)) {
		bio = ctx[1];
		barrier_var(bio);
	} else {
		bio = ctx[0];
	}
	return (struct bio *)bio;
}

#define request_read(typed, request, field)                                                        \
	((typed) ? (request)->field : BPF_CORE_READ(request, field))

/*
 * The disk was the request's own until f3fa33acca9f "block: remove the ->rq_disk field in struct
 * request" (5.17), and is the queue's.
 */
struct request___rq_disk {
	struct gendisk *rq_disk;
} __attribute__((preserve_access_index));

/* Major and minor number of the whole disk; 0 for a request to a device that is no disk. */
static __always_inline __u32 request_disk(struct request *request, bool typed)
{
	struct request___rq_disk *old = (void *)request;
	struct gendisk *disk;

	if (bpf_core_field_exists(old->rq_disk))
		disk = request_read(typed, old, rq_disk);
	else
		disk = typed ? request->q->disk : BPF_CORE_READ(request, q, disk);
	if (!disk)
		return 0;

	__u32 major = request_read(typed, disk, major);
	__u32 minor = request_read(typed, disk, first_minor);

	return major << 20 | minor;
}

/*
 * A request's place in time. Its memory is used again and again, and so are entries that tools
 * keep for it; this tells whether an entry is about the request that is there now.
 */
struct request_life {
	/*
	 * request.start_time_ns, set when the request was allocated. A merge of two requests takes
	 * the earlier of their two times, so within a life it can only fall. 0 where the queue
	 * keeps neither statistics nor order, and then it tells nothing.
	 */
	__u64 born;
	/* Between the tool's first sight of it and its end. */
	__u32 under_way;
	/* A part of it is done, and the rest goes on. */
	__u32 partly_done;
};

static __always_inline bool request_lives(const struct request_life *life, __u64 born)
{
	return life->under_way && life->born >= born;
}

/* Where a request or a bio passes a hook. */
enum block_hook {
	HOOK_GETRQ = 1,
	HOOK_START,
	HOOK_INSERT,
	HOOK_ISSUE,
	HOOK_DONE,
};

/* Whether the twin before this one has dealt with this already (twin_mark.h). */
static __always_inline bool block_twin_has_it(__u64 pointer, enum block_hook hook, __u32 left,
					      bool is_twin)
{
	return twin_has_it(pointer, (__u64)left << 3 ^ hook, is_twin);
}

/*
 * How many requests a tool keeps at once, unless it says so itself. Requests come from fixed pools,
 * one for each hardware queue and scheduler, so that this many is all that a machine with a few
 * dozen disks has, and more than a larger one has under way: 64 NVMe queues of 1,023 requests.
 */
#ifndef REQUESTS
#define REQUESTS 65536
#endif

/* How many entries there are, more or less: CPUs that insert at the same moment may count one. */
__u32 requests_kept;

static __always_inline void request_kept(void)
{
	WRITE_ONCE(requests_kept, READ_ONCE(requests_kept) + 1);
}

/*
 * The request is over. Its entry stays for the next life of the same memory, which saves an
 * insertion and a deletion a request; only when the map has become rather full, it goes.
 */
static __always_inline void request_over(void *map, const __u64 *key, struct request_life *life)
{
	life->under_way = 0;
	if (READ_ONCE(requests_kept) > REQUESTS / 4 * 3)
		bpf_map_delete_elem(map, key);
}

/* What a request asks the device to do; our own numbers, since the kernel's have changed. */
enum block_op {
	BLOCK_UNKNOWN,
	BLOCK_READ,
	BLOCK_WRITE,
	BLOCK_FLUSH,
	BLOCK_DISCARD,
	BLOCK_SECURE_ERASE,
	BLOCK_WRITE_SAME,
	BLOCK_WRITE_ZEROES,
	BLOCK_ZONE_APPEND,
	BLOCK_ZONE_OPEN,
	BLOCK_ZONE_CLOSE,
	BLOCK_ZONE_FINISH,
	BLOCK_ZONE_RESET,
	BLOCK_ZONE_RESET_ALL,
	BLOCK_SCSI_IN,
	BLOCK_SCSI_OUT,
	BLOCK_DRV_IN,
	BLOCK_DRV_OUT,
	BLOCK_OPS,
};

/* The flags that tools show, in the order in which they are shown. */
enum block_flag {
	BLOCK_NOWAIT,
	BLOCK_BACKGROUND,
	BLOCK_RAHEAD,
	BLOCK_PREFLUSH,
	BLOCK_FUA,
	BLOCK_INTEGRITY,
	BLOCK_IDLE,
	BLOCK_NOMERGE,
	BLOCK_PRIO,
	BLOCK_META,
	BLOCK_SYNC,
	BLOCK_FLAGS,
};

/*
 * enum req_opf until ff07a02e9e8e "treewide: Rename enum req_opf into enum req_op" (6.0). The
 * SCSI ones went in 5.14, writing the same in 5.18.
 */
enum req_opf {
	REQ_OP_READ___opf = 1,
	REQ_OP_WRITE___opf,
	REQ_OP_FLUSH___opf,
	REQ_OP_DISCARD___opf,
	REQ_OP_SECURE_ERASE___opf,
	REQ_OP_WRITE_SAME___opf,
	REQ_OP_WRITE_ZEROES___opf,
	REQ_OP_ZONE_APPEND___opf,
	REQ_OP_ZONE_OPEN___opf,
	REQ_OP_ZONE_CLOSE___opf,
	REQ_OP_ZONE_FINISH___opf,
	REQ_OP_ZONE_RESET___opf,
	REQ_OP_ZONE_RESET_ALL___opf,
	REQ_OP_SCSI_IN___opf,
	REQ_OP_SCSI_OUT___opf,
	REQ_OP_DRV_IN___opf,
	REQ_OP_DRV_OUT___opf,
};

#define block_is(op, type, name)                                                                   \
	(bpf_core_enum_value_exists(type, name) && (op) == bpf_core_enum_value(type, name))

#define block_is_old(op, ours)                                                                     \
	do {                                                                                       \
		if (block_is(op, enum req_opf, REQ_OP_##ours##___opf))                             \
			return BLOCK_##ours;                                                       \
	} while (0)

#define block_is_any(op, ours)                                                                     \
	do {                                                                                       \
		if (block_is(op, enum req_op, REQ_OP_##ours))                                      \
			return BLOCK_##ours;                                                       \
		block_is_old(op, ours);                                                            \
	} while (0)

/* From request.cmd_flags or bio.bi_opf: the low eight bits, REQ_OP_MASK. */
static __always_inline __u32 block_op(__u32 opf)
{
	__u32 op = opf & 0xff;

	block_is_any(op, READ);
	block_is_any(op, WRITE);
	block_is_any(op, FLUSH);
	block_is_any(op, DISCARD);
	block_is_any(op, SECURE_ERASE);
	block_is_old(op, WRITE_SAME);
	block_is_any(op, WRITE_ZEROES);
	block_is_any(op, ZONE_APPEND);
	block_is_any(op, ZONE_OPEN);
	block_is_any(op, ZONE_CLOSE);
	block_is_any(op, ZONE_FINISH);
	block_is_any(op, ZONE_RESET);
	block_is_any(op, ZONE_RESET_ALL);
	block_is_old(op, SCSI_IN);
	block_is_old(op, SCSI_OUT);
	block_is_any(op, DRV_IN);
	block_is_any(op, DRV_OUT);
	return BLOCK_UNKNOWN;
}

#define block_flag_of(opf, ours)                                                                   \
	(bpf_core_enum_value_exists(enum req_flag_bits, __REQ_##ours) &&                           \
			 (opf) >> bpf_core_enum_value(enum req_flag_bits, __REQ_##ours) & 1        \
		 ? 1U << BLOCK_##ours                                                              \
		 : 0)

/* A bit 1 << enum block_flag for each flag that is set. */
static __always_inline __u32 block_flags(__u32 opf)
{
	return block_flag_of(opf, NOWAIT) | block_flag_of(opf, BACKGROUND) |
	       block_flag_of(opf, RAHEAD) | block_flag_of(opf, PREFLUSH) | block_flag_of(opf, FUA) |
	       block_flag_of(opf, INTEGRITY) | block_flag_of(opf, IDLE) |
	       block_flag_of(opf, NOMERGE) | block_flag_of(opf, PRIO) | block_flag_of(opf, META) |
	       block_flag_of(opf, SYNC);
}

/* Both in one number: the operation above the flags. */
#define BLOCK_OP_SHIFT 24

static __always_inline __u32 block_kind(__u32 opf)
{
	return block_op(opf) << BLOCK_OP_SHIFT | block_flags(opf);
}

/*
 * The disk or partition that the user asked for, if any. A partition is a range of sectors of its
 * disk: the request's own field for it is not always filled (not without iostats), and changed
 * its type. A flush has no place, so it belongs to the disk only.
 */
const volatile bool want_disk;
const volatile __u32 want_disk_number;
const volatile __u64 want_first_sector;
/* 0 = the whole disk. */
const volatile __u64 want_end_sector;

static __always_inline bool request_on_disk(struct request *request, bool typed)
{
	if (!want_disk)
		return true;
	if (request_disk(request, typed) != want_disk_number)
		return false;
	if (!want_end_sector)
		return true;

	__u64 sector = request_read(typed, request, __sector);

	return sector >= want_first_sector && sector < want_end_sector;
}

/*
 * Bios of a request that are looked at. Others may have been merged in front of the one that the
 * request was made for; a request has at most some hundred, limited by its segments.
 */
#define BIOS 256

/* Requests that one flush is looked through for an owner. */
#define FLUSHED 16

/*
 * Requests that wait for a flush are linked by their queuelist since 81ada09cc25e "blk-flush:
 * reuse rq queuelist in flush state machine" (6.6), before that by a link of their own.
 */
struct request___flush_list {
	struct {
		struct list_head list;
	} flush;
} __attribute__((preserve_access_index));

/* The requests that wait for a flush of the device, which nobody submitted itself. */
struct flush_waiters {
	struct list_head *head;
	struct list_head *link;
	/* Of the link in its request. */
	__u64 offset;
};

static __always_inline bool flush_waiters(struct flush_waiters *waiters, struct request *flush)
{
	struct blk_flush_queue *queue = BPF_CORE_READ(flush, mq_hctx, fq);
	struct request___flush_list *old = NULL;

	if (BPF_CORE_READ(queue, flush_rq) != flush)
		return false;

	__u64 running = BPF_CORE_READ_BITFIELD_PROBED(queue, flush_running_idx) & 1;

	struct list_head *head = &queue->flush_queue[running];

	waiters->head = head;
	waiters->link = BPF_CORE_READ(head, next);
	waiters->offset = bpf_core_field_exists(old->flush.list)
				  ? bpf_core_field_offset(old->flush.list)
				  : bpf_core_field_offset(struct request, queuelist);
	return true;
}

/* The next of them, or NULL. */
static __always_inline struct request *flush_next(struct flush_waiters *waiters)
{
	struct list_head *link = waiters->link;

	if (!link || link == waiters->head)
		return NULL;
	waiters->link = BPF_CORE_READ(link, next);
	return (void *)link - waiters->offset;
}

/*
 * The hooks of one way that each tool has. Those without which a request would not be counted have
 * a twin behind them (twin.h). The tool has done(ctx, typed, is_twin) and issued(request, typed,
 * is_twin); with block_owner.h or block_track.h come submitted(ctx, is_twin), for the bio of the
 * current task that gets a request, and merged(request), for one that has become a part of another.
 */
#define BLOCK_HOOKS(section, way, typed)                                                           \
	SEC(section "/block_rq_complete")                                                          \
	int complete__##way(__u64 *ctx)                                                            \
	{                                                                                          \
		return done(ctx, typed, false);                                                    \
	}                                                                                          \
	SEC(section "/block_rq_complete")                                                          \
	int complete_twin__##way(__u64 *ctx)                                                       \
	{                                                                                          \
		return done(ctx, typed, true);                                                     \
	}                                                                                          \
	SEC(section "/block_rq_issue")                                                             \
	int issue__##way(__u64 *ctx)                                                               \
	{                                                                                          \
		return issued(request_of(ctx), typed, false);                                      \
	}                                                                                          \
	SEC(section "/block_rq_issue")                                                             \
	int issue_twin__##way(__u64 *ctx)                                                          \
	{                                                                                          \
		return issued(request_of(ctx), typed, true);                                       \
	}

#define GETRQ_HOOKS(section, way)                                                                  \
	SEC(section "/block_getrq")                                                                \
	int getrq__##way(__u64 *ctx)                                                               \
	{                                                                                          \
		return submitted(ctx, false);                                                      \
	}                                                                                          \
	SEC(section "/block_getrq")                                                                \
	int getrq_twin__##way(__u64 *ctx)                                                          \
	{                                                                                          \
		return submitted(ctx, true);                                                       \
	}

/* Since f3bdc62fd82e "blktrace: Provide event for request merging" (5.9). */
#define MERGE_HOOK(section, way)                                                                   \
	SEC(section "/block_rq_merge")                                                             \
	int merge__##way(__u64 *ctx)                                                               \
	{                                                                                          \
		return merged(request_of(ctx));                                                    \
	}

#endif
