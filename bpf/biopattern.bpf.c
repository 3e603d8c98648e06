// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Whether block requests follow one another on their disk: each begins where the one issued before
 * it ended, or it does not.
 *
 * Ways: btf, rawtp. Both have the same tracepoints, and a twin (twin.h) of each program without
 * which a request would not be counted.
 */
#include "block.h"
#include "block_owner.h"
#include "block_pattern.h"

/* Of one disk, since the tool was started. */
struct pattern_count {
	/* All requests with a place and a size, also the first one, which follows none. */
	__u64 requests;
	__u64 bytes;
	__u64 sequential;
	__u64 random;
};
EXPORT_STRUCT(pattern_count);

static const struct pattern_count nothing_counted;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct pattern_count);
} patterns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REQUESTS);
	__type(key, __u64);
	__type(value, struct request_life);
} requests SEC(".maps");

static __always_inline void count(__u32 disk, __u64 sector, __u32 bytes)
{
	struct pattern_count *of_disk = bpf_map_lookup_elem(&patterns, &disk);
	enum block_pattern pattern = disk_pattern(disk, sector, bytes);

	if (!of_disk) {
		map_insert(&patterns, &disk, &nothing_counted, BPF_NOEXIST);
		of_disk = bpf_map_lookup_elem(&patterns, &disk);
		if (!of_disk)
			return;
	}
	add_atomically(&of_disk->requests, 1);
	add_atomically(&of_disk->bytes, bytes);
	if (pattern == PATTERN_SEQUENTIAL)
		add_atomically(&of_disk->sequential, 1);
	else if (pattern == PATTERN_RANDOM)
		add_atomically(&of_disk->random, 1);
}

/* The request is given to the device. A second time in its life has no effect. */
static __always_inline int issued(struct request *request, bool typed, bool is_twin)
{
	__u64 key = (__u64)request;
	struct request_life *life;
	__u64 born;
	__u32 bytes;

	if (block_twin_has_it(key, HOOK_ISSUE, 0, is_twin))
		return 0;
	life = bpf_map_lookup_elem(&requests, &key);
	born = request_read(typed, request, start_time_ns);
	bytes = request_read(typed, request, __data_len);
	if (life && request_lives(life, born))
		return 0;
	if (!request_is_owned(&requests, request) || !request_on_disk(request, typed)) {
		if (life)
			life->under_way = 0;
		return 0;
	}

	struct request_life fresh = { .born = born, .under_way = 1 };

	if (life)
		*life = fresh;
	else if (map_insert(&requests, &key, &fresh, BPF_ANY) == 0)
		request_kept();
	/* What has no room in the map is counted as such. */
	if (bytes)
		count(request_disk(request, typed), request_read(typed, request, __sector), bytes);
	return 0;
}

static __always_inline int done(__u64 *ctx, bool typed, bool is_twin)
{
	struct request *request = (struct request *)ctx[0];
	__u32 bytes = ctx[2];
	__u64 key = (__u64)request;
	__u32 left = request_read(typed, request, __data_len);
	struct request_life *life;

	if (block_twin_has_it(key, HOOK_DONE, left, is_twin))
		return 0;
	life = bpf_map_lookup_elem(&requests, &key);
	if (!life || !request_lives(life, request_read(typed, request, start_time_ns))) {
		/* An empty flush comes to its end without having been issued itself. */
		if (want_owner && !left)
			owner_forget(request);
		return 0;
	}
	if (bytes >= left)
		request_over(&requests, &key, life);
	return 0;
}

/* The request has become a part of another one. */
static __always_inline int merged(struct request *request)
{
	if (want_owner)
		owner_forget(request);
	return 0;
}

#define ALL_HOOKS(section, way, typed)                                                             \
	BLOCK_HOOKS(section, way, typed)                                                           \
	GETRQ_HOOKS(section, way)                                                                  \
	MERGE_HOOK(section, way)

ALL_HOOKS("tp_btf", btf, true)
ALL_HOOKS("raw_tp", rawtp, false)
