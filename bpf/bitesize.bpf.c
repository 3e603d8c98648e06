// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * How large block requests are, by the command name of who submitted them.
 *
 * Ways: btf, rawtp. Both have the same tracepoints.
 */
#define TRACK_COMM_ONLY
#include "block_track.h"

/* Up to 4 GiB, also in bytes. */
#define HISTOGRAM_SLOTS 33
#include "histogram.h"

/* How many bytes one unit of the slots is. */
const volatile __u64 bytes_per_slot_unit = 1024;

struct size_key {
	/* All zero: not known. */
	char comm[TASK_COMM_LEN];
};
EXPORT_STRUCT(size_key);

/* There can be many names: not a copy for each CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct size_key);
	__type(value, struct histogram);
} sizes SEC(".maps");

static __always_inline void count(struct tracked_request *entry)
{
	struct size_key key = {};

	if (entry->submitter.known)
		__builtin_memcpy(key.comm, entry->submitter.head.comm, sizeof(key.comm));
	histogram_add(&sizes, &key, entry->bytes / bytes_per_slot_unit, entry->bytes);
}

/* Counted when it is issued: its size is final then, and has not been used up yet. */
static __always_inline int issued(struct request *request, bool typed, bool is_twin)
{
	struct tracked_request *entry = request_issued(request, typed, is_twin);

	if (entry)
		count(entry);
	return 0;
}

/* So that the next request in its memory is not taken for the same. */
static __always_inline int done(__u64 *ctx, bool typed, bool is_twin)
{
	struct request *request = (struct request *)ctx[0];
	struct tracked_request *entry = request_done(request, (__u32)ctx[2], typed, is_twin);
	__u64 key = (__u64)request;

	if (!entry)
		return 0;
	/* Its issue was not seen. */
	if (!entry->issued_ns)
		count(entry);
	request_over(&requests, &key, &entry->life);
	return 0;
}

TRACK_ALL_HOOKS("tp_btf", btf, true)
TRACK_ALL_HOOKS("raw_tp", rawtp, false)
