// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * biostacks: how long block I/O takes, by the stack that asked for it.
 *
 * A request is begun by one task, issued by another and completed in an interrupt of a third. Only
 * one tracepoint runs for every request while its submitter is the current task and exists on all
 * kernels: block_getrq, when a bio gets a request. There stack, thread and time are noted for the
 * bio; when the request is seen first, the bio is found in it again.
 *
 * Ways: btf, rawtp. Both have the same tracepoints, and a twin (twin.h) of each program without
 * which a request would not be counted.
 */
#define HISTOGRAM_SLOTS 32

#include "block.h"
#include "filter.h"
#include "histogram.h"
#include "pid_keys.h"
#include "stack.h"
#include "twin.h"

const volatile __u64 ns_per_slot_unit = 1000;

struct latency_key {
	__u64 kernel;
	__u32 disk;
	__u32 pid;
	char comm[TASK_COMM_LEN];
};
EXPORT_STRUCT(latency_key);

struct origin {
	__u64 start_ns;
	__u64 kernel;
	__u32 pid;
	__u32 pad;
	char comm[TASK_COMM_LEN];
};

struct tracked {
	struct request_life life;
	struct origin origin;
};

/* Bios that have a request and are not seen in it yet. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REQUESTS / 4);
	__type(key, __u64);
	__type(value, struct origin);
} origins SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REQUESTS / 4);
	__type(key, __u64);
	__type(value, struct tracked);
} requests SEC(".maps");

HISTOGRAMS(latencies, struct latency_key);

EVENT_SLOT(slot_getrq, struct stack_slot);
EVENT_SLOT(slot_getrq_twin, struct stack_slot);

/* The current task has just got a request for a bio. */
static __always_inline int submitted(__u64 *ctx, bool is_twin)
{
	__u64 bio = (__u64)bio_of_getrq(ctx);

	if (!filter_current()) {
		/* Left by an earlier bio at this place, whose request came to nothing. */
		bpf_map_delete_elem(&origins, &bio);
		return 0;
	}

	__u64 id = bpf_get_current_pid_tgid();
	struct stack_slot *slot = event_slot(is_twin ? (void *)&slot_getrq_twin : &slot_getrq);
	struct origin origin = { .start_ns = bpf_ktime_get_ns(), .pid = current_pid_key() };

	if (!slot || !twin_first((__u32)id, is_twin))
		return 0;
	origin.kernel = stack_of(ctx, slot, 0);
	current_comm(origin.comm);
	map_insert(&origins, &bio, &origin, BPF_ANY);
	return 0;
}

/* What is known of the bio that the request was made for; it is known no longer after this. */
static __always_inline bool take_origin(struct request *request, struct origin *to)
{
	struct bio *bio = BPF_CORE_READ(request, bio);

	for (int i = 0; i < BIOS && bio; i++) {
		__u64 key = (__u64)bio;
		struct origin *origin = bpf_map_lookup_elem(&origins, &key);

		if (origin) {
			if (to)
				*to = *origin;
			bpf_map_delete_elem(&origins, &key);
			return true;
		}
		bio = BPF_CORE_READ(bio, bi_next);
	}
	return false;
}

/* The request is issued. A second time has no effect: its time began when it was asked for. */
static __always_inline int issued(struct request *request, bool typed, bool is_twin)
{
	__u64 key = (__u64)request;
	__u64 born = request_read(typed, request, start_time_ns);
	struct tracked *tracked = bpf_map_lookup_elem(&requests, &key);
	struct tracked fresh = { .life = { .born = born, .under_way = 1 } };

	if (tracked && request_lives(&tracked->life, born))
		return 0;
	if (!request_on_disk(request, typed)) {
		take_origin(request, NULL);
		if (tracked)
			tracked->life.under_way = 0;
		return 0;
	}
	if (!take_origin(request, &fresh.origin)) {
		if (tracked)
			tracked->life.under_way = 0;
		return 0;
	}
	if (tracked)
		*tracked = fresh;
	else
		map_insert(&requests, &key, &fresh, BPF_ANY);
	return 0;
}

/* So many bytes of the request are done. A second time has no effect. */
static __always_inline int done(__u64 *ctx, bool typed, bool is_twin)
{
	struct request *request = (struct request *)ctx[0];
	__u32 bytes = ctx[2];
	__u64 key = (__u64)request;
	struct tracked *tracked = bpf_map_lookup_elem(&requests, &key);
	__u32 left = request_read(typed, request, __data_len);
	struct latency_key group = {};
	struct origin origin = {};

	if (tracked && request_lives(&tracked->life, request_read(typed, request, start_time_ns))) {
		if (bytes < left)
			return 0;
		origin = tracked->origin;
		bpf_map_delete_elem(&requests, &key);
	} else {
		/*
		 * An empty flush comes to its end without having been issued itself: a request of
		 * the driver's own stands for all that wait for one.
		 */
		if (left || !take_origin(request, &origin) || !request_on_disk(request, typed))
			return 0;
	}

	__u64 now = bpf_ktime_get_ns();
	__u64 latency = now > origin.start_ns ? now - origin.start_ns : 0;

	group.kernel = origin.kernel;
	group.pid = origin.pid;
	__builtin_memcpy(group.comm, origin.comm, sizeof(group.comm));
	group.disk = request_disk(request, typed);
	histogram_add(&latencies, &group, latency / ns_per_slot_unit, latency);
	return 0;
}

/* The request has become a part of another one. */
static __always_inline int merged(struct request *request)
{
	__u64 key = (__u64)request;

	bpf_map_delete_elem(&requests, &key);
	take_origin(request, NULL);
	return 0;
}

#define ALL_HOOKS(section, way, typed)                                                             \
	BLOCK_HOOKS(section, way, typed)                                                           \
	MERGE_HOOK(section, way)                                                                   \
	GETRQ_HOOKS(section, way)

ALL_HOOKS("tp_btf", btf, true)
ALL_HOOKS("raw_tp", rawtp, false)
