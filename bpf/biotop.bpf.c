// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Block I/O added up by process, disk and direction, of one interval.
 *
 * Ways: btf, rawtp. Both have the same tracepoints.
 */
#include "block_track.h"
#include "intervals.h"
#include "pid_keys.h"

enum direction {
	DIRECTION_READ,
	DIRECTION_WRITE,
	/* Flushes, discards and the rest. */
	DIRECTION_OTHER,
};
enum direction export_direction;

struct top_key {
	__u64 cgroup_id;
	/* 0 = the submitter is not known. */
	__u32 pid;
	__u32 disk;
	/* enum direction */
	__u32 direction;
	__u32 pad;
	char comm[TASK_COMM_LEN];
};
EXPORT_STRUCT(top_key);

struct top_count {
	__u64 requests;
	__u64 bytes;
	/* In the device: the sum, how many were added up there, and the longest. */
	__u64 ns;
	__u64 timed;
	__u64 max_ns;
};
EXPORT_STRUCT(top_count);

static const struct top_count nothing_counted;

EXPORT_STRUCT(top_key);
EXPORT_STRUCT(top_count);

INTERVALS(intervals, first_interval, BPF_MAP_TYPE_PERCPU_HASH, 4096, sizeof(struct top_key),
	  sizeof(struct top_count));

static __always_inline enum direction direction_of(__u32 opf)
{
	switch (block_op(opf)) {
	case BLOCK_READ:
		return DIRECTION_READ;
	case BLOCK_WRITE:
	case BLOCK_WRITE_SAME:
	case BLOCK_WRITE_ZEROES:
	case BLOCK_ZONE_APPEND:
		return DIRECTION_WRITE;
	default:
		return DIRECTION_OTHER;
	}
}

static __always_inline void count(const struct top_key *key, const struct tracked_request *entry)
{
	__u32 zero = 0;
	void *interval = bpf_map_lookup_elem(&intervals, &zero);
	struct top_count *sum;

	if (!interval)
		return;
	sum = bpf_map_lookup_elem(interval, key);
	if (!sum) {
		map_insert(interval, key, &nothing_counted, BPF_NOEXIST);
		sum = bpf_map_lookup_elem(interval, key);
		if (!sum)
			return;
	}
	add_atomically(&sum->requests, 1);
	add_atomically(&sum->bytes, entry->bytes);
	if (!entry->issued_ns)
		return;

	__u64 now = bpf_ktime_get_boot_ns();
	__u64 latency = now > entry->issued_ns ? now - entry->issued_ns : 0;

	add_atomically(&sum->ns, latency);
	add_atomically(&sum->timed, 1);
	if (latency > sum->max_ns)
		sum->max_ns = latency;
}

static __always_inline int issued(struct request *request, bool typed, bool is_twin)
{
	request_issued(request, typed, is_twin);
	return 0;
}

static __always_inline int done(__u64 *ctx, bool typed, bool is_twin)
{
	struct request *request = (struct request *)ctx[0];
	struct tracked_request *entry = request_done(request, (__u32)ctx[2], typed, is_twin);
	__u64 id = (__u64)request;
	struct top_key key = {};

	if (!entry)
		return 0;
	if (entry->submitter.known) {
		key.cgroup_id = entry->submitter.head.cgroup_id;
		key.pid = head_pid_key(&entry->submitter.head);
		__builtin_memcpy(key.comm, entry->submitter.head.comm, sizeof(key.comm));
	}
	key.disk = request_disk(request, typed);
	key.direction = direction_of(request_read(typed, request, cmd_flags));
	count(&key, entry);
	request_over(&requests, &id, &entry->life);
	return 0;
}

TRACK_ALL_HOOKS("tp_btf", btf, true)
TRACK_ALL_HOOKS("raw_tp", rawtp, false)
