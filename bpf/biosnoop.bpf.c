// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Block requests one by one: who submitted them, what they are, how long they waited and took.
 *
 * Ways: btf, rawtp. Both have the same tracepoints.
 */
#include "block_track.h"
#include "block_pattern.h"
#include "events.h"

const volatile bool want_queued;
const volatile bool want_pattern;
const volatile __u64 want_min_ns;

/* Its issue was not seen. */
#define LATENCY_UNKNOWN (~0ULL)

struct event {
	/* Of the submitter; all zero where he is not known. The time is that of the completion. */
	struct event_head head;
	__u64 sector;
	/* From the queue to the device; with --queued. */
	__u64 queue_ns;
	/* From the device to the completion, or LATENCY_UNKNOWN. */
	__u64 lat_ns;
	__u32 bytes;
	/* Number of the whole disk. */
	__u32 disk;
	/* block_kind() */
	__u32 kind;
	/* A negative errno, or since 5.18 a positive blk_status_t; 0 = no error. */
	__s32 error;
	/* enum block_pattern */
	__u32 pattern;
	__u8 known;
	__u8 writeback;
	__u8 pad[2];
};
EXPORT_STRUCT(event);
enum block_pattern export_block_pattern;

static __always_inline int issued(struct request *request, bool typed, bool is_twin)
{
	struct tracked_request *entry = request_issued(request, typed, is_twin);

	if (entry && want_pattern)
		entry->note =
			disk_pattern(request_disk(request, typed), entry->sector, entry->bytes);
	return 0;
}

static __always_inline int done(__u64 *ctx, bool typed, bool is_twin)
{
	struct request *request = (struct request *)ctx[0];
	struct tracked_request *entry = request_done(request, (__u32)ctx[2], typed, is_twin);
	__u64 key = (__u64)request;
	struct event *event;

	if (!entry)
		return 0;

	__u64 now = bpf_ktime_get_boot_ns();
	__u64 latency = LATENCY_UNKNOWN;

	if (entry->issued_ns)
		latency = now > entry->issued_ns ? now - entry->issued_ns : 0;
	if (latency >= want_min_ns) {
		event = event_reserve(struct event);
		if (event) {
			event->head = entry->submitter.head;
			event->head.boot_ns = now;
			event->sector = entry->sector;
			event->queue_ns = 0;
			if (want_queued && entry->queued_ns && entry->issued_ns > entry->queued_ns)
				event->queue_ns = entry->issued_ns - entry->queued_ns;
			event->lat_ns = latency;
			event->bytes = entry->bytes;
			event->disk = request_disk(request, typed);
			event->kind = block_kind(request_read(typed, request, cmd_flags));
			event->error = (__s32)ctx[1];
			event->pattern = want_pattern ? entry->note : PATTERN_UNKNOWN;
			event->known = entry->submitter.known;
			event->writeback = entry->submitter.writeback;
			event->pad[0] = event->pad[1] = 0;
			event_submit(event);
		}
	}
	request_over(&requests, &key, &entry->life);
	return 0;
}

TRACK_ALL_HOOKS("tp_btf", btf, true)
TRACK_ALL_HOOKS("raw_tp", rawtp, false)
