/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether a request begins where the one before it on the same disk ended. */
#ifndef BLOCK_PATTERN_H
#define BLOCK_PATTERN_H

#include "bpfscope.h"
#include "loss.h"

enum block_pattern {
	/* The first that is seen of its disk, or a request without a place. */
	PATTERN_UNKNOWN,
	PATTERN_SEQUENTIAL,
	PATTERN_RANDOM,
};

/* The sector behind the last request of each disk, in the order in which they are issued. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} disk_ends SEC(".maps");

/* For each request once. Two that are issued at the same moment have no order. */
static __always_inline enum block_pattern disk_pattern(__u32 disk, __u64 sector, __u32 bytes)
{
	__u64 end = sector + (bytes >> 9);
	__u64 *last;
	__u64 before;

	if (!bytes)
		return PATTERN_UNKNOWN;
	last = bpf_map_lookup_elem(&disk_ends, &disk);
	if (!last) {
		map_insert(&disk_ends, &disk, &end, BPF_ANY);
		return PATTERN_UNKNOWN;
	}
	before = READ_ONCE(*last);
	WRITE_ONCE(*last, end);
	return before == sector ? PATTERN_SEQUENTIAL : PATTERN_RANDOM;
}

#endif
