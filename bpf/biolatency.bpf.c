// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * How long block requests take: from their issue to the device, or with --queued from when they
 * were queued, until their last byte is done.
 *
 * Ways: btf, rawtp. Both have the same tracepoints, and a twin (twin.h) of each program without
 * which a request would not be counted.
 */
#include "block.h"
#include "block_owner.h"
#include "histogram.h"

/* What makes a histogram of its own, and the unit of the slots. */
const volatile bool want_queued;
const volatile bool want_by_disk;
const volatile bool want_by_flags;
const volatile __u64 ns_per_slot_unit = 1000;

struct latency_key {
	__u32 disk;
	/* block_kind() */
	__u32 kind;
};
EXPORT_STRUCT(latency_key);

struct tracked {
	struct request_life life;
	__u64 start_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REQUESTS);
	__type(key, __u64);
	__type(value, struct tracked);
} requests SEC(".maps");

HISTOGRAMS(latencies, struct latency_key);

/* The only one, without a key to look for. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct histogram);
} latencies_of_all SEC(".maps");

/* The request is queued or issued. A second time right after the first has no effect. */
static __always_inline int given(struct request *request, bool typed)
{
	__u64 key = (__u64)request;
	__u64 born = request_read(typed, request, start_time_ns);
	struct tracked *tracked = bpf_map_lookup_elem(&requests, &key);

	if (tracked && request_lives(&tracked->life, born)) {
		/*
		 * Once more: issued after it was queued, or again because the device had no room
		 * for it, or for the rest of it. Only the device's time begins anew, and only
		 * when it has done nothing yet.
		 */
		if (!want_queued && !tracked->life.partly_done)
			tracked->start_ns = bpf_ktime_get_ns();
		return 0;
	}
	if (!request_is_owned(&requests, request) || !request_on_disk(request, typed)) {
		if (tracked)
			tracked->life.under_way = 0;
		return 0;
	}

	struct tracked fresh = {
		.life = { .born = born, .under_way = 1 },
		.start_ns = bpf_ktime_get_ns(),
	};

	if (tracked)
		*tracked = fresh;
	else if (map_insert(&requests, &key, &fresh, BPF_ANY) == 0)
		request_kept();
	return 0;
}

static __always_inline int issued(struct request *request, bool typed, bool is_twin)
{
	if (block_twin_has_it((__u64)request, HOOK_ISSUE, 0, is_twin))
		return 0;
	return given(request, typed);
}

/* So many bytes of the request are done. A second time has no effect. */
static __always_inline int done(__u64 *ctx, bool typed, bool is_twin)
{
	struct request *request = (struct request *)ctx[0];
	__u32 bytes = ctx[2];
	__u64 key = (__u64)request;
	__u32 left = request_read(typed, request, __data_len);
	struct tracked *tracked;

	if (block_twin_has_it(key, HOOK_DONE, left, is_twin))
		return 0;
	tracked = bpf_map_lookup_elem(&requests, &key);
	if (!tracked ||
	    !request_lives(&tracked->life, request_read(typed, request, start_time_ns))) {
		/* An empty flush comes to its end without having been issued itself. */
		if (want_owner && !left)
			owner_forget(request);
		return 0;
	}
	if (bytes < left) {
		tracked->life.partly_done = 1;
		return 0;
	}

	__u64 now = bpf_ktime_get_ns();
	__u64 start = tracked->start_ns;
	__u64 latency = now > start ? now - start : 0;
	struct latency_key group = {};
	__u32 zero = 0;

	request_over(&requests, &key, &tracked->life);
	if (!want_by_disk && !want_by_flags) {
		histogram_add(&latencies_of_all, &zero, latency / ns_per_slot_unit, latency);
		return 0;
	}
	if (want_by_disk)
		group.disk = request_disk(request, typed);
	if (want_by_flags)
		group.kind = block_kind(request_read(typed, request, cmd_flags));
	histogram_add(&latencies, &group, latency / ns_per_slot_unit, latency);
	return 0;
}

/* The request has become a part of another one. */
static __always_inline int merged(struct request *request)
{
	__u64 key = (__u64)request;
	struct tracked *tracked = bpf_map_lookup_elem(&requests, &key);

	if (tracked)
		request_over(&requests, &key, &tracked->life);
	if (want_owner)
		owner_forget(request);
	return 0;
}

#define ALL_HOOKS(section, way, typed)                                                             \
	BLOCK_HOOKS(section, way, typed)                                                           \
	SEC(section "/block_rq_insert")                                                            \
	int insert__##way(__u64 *ctx)                                                              \
	{                                                                                          \
		return given(request_of(ctx), typed);                                              \
	}                                                                                          \
	MERGE_HOOK(section, way)                                                                   \
	GETRQ_HOOKS(section, way)

ALL_HOOKS("tp_btf", btf, true)
ALL_HOOKS("raw_tp", rawtp, false)
