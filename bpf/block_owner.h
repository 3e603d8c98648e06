/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whose a block request is: the task's that submitted it, not that of the kernel thread that
 * issues it, nor of whoever is interrupted when it completes.
 *
 * Only one tracepoint runs for every request while its submitter is the current task and exists
 * on all kernels: block_getrq, when a bio gets a request. There the filters are tested, and the
 * bio is remembered if it passes; when the request is seen first, the bio is found in it again.
 */
#ifndef BLOCK_OWNER_H
#define BLOCK_OWNER_H

#include "block.h"
#include "filter.h"

/* Whether any filter on the task is set. */
const volatile bool want_owner;

/* Bios that got a request and whose submitter passed the filters. As many as requests. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REQUESTS);
	__type(key, __u64);
	__type(value, __u8);
} owned_bios SEC(".maps");

/* For block_getrq: the current task has just got a request for a bio. */
static __always_inline int submitted(__u64 *ctx, bool is_twin)
{
	__u64 bio = (__u64)bio_of_getrq(ctx);
	__u8 one = 1;

	if (filter_current())
		map_insert(&owned_bios, &bio, &one, BPF_ANY);
	else
		/* Left by an earlier bio at this place, whose request came to nothing. */
		bpf_map_delete_elem(&owned_bios, &bio);
	return 0;
}

/* The bio that the request was made for, if its submitter passed; else 0. */
static __always_inline __u64 owned_bio(struct request *request)
{
	struct bio *bio = BPF_CORE_READ(request, bio);

	for (int i = 0; i < BIOS && bio; i++) {
		__u64 key = (__u64)bio;

		if (bpf_map_lookup_elem(&owned_bios, &key))
			return key;
		bio = BPF_CORE_READ(bio, bi_next);
	}
	return 0;
}

/* Forgets the owner of a request that will not be seen again, such as one merged into another. */
static __always_inline bool owner_forget(struct request *request)
{
	__u64 bio = owned_bio(request);

	if (!bio)
		return false;
	bpf_map_delete_elem(&owned_bios, &bio);
	return true;
}

/* Also of requests whose data is done and that only wait for the flush after it. */
static __always_inline bool flushed_is_owned(void *requests, struct request *request)
{
	__u64 key = (__u64)request;
	/* Its only one: nothing is merged into a request that flushes. */
	__u64 bio = (__u64)BPF_CORE_READ(request, bio);

	if (bpf_map_lookup_elem(&owned_bios, &bio))
		return true;

	struct request_life *life = bpf_map_lookup_elem(requests, &key);

	return life && life->born && life->born == BPF_CORE_READ(request, start_time_ns);
}

/*
 * A flush of the device is a request that nobody submitted: it stands for all requests that wait
 * for one at that moment, and belongs to whoever submitted one of them.
 */
static __always_inline bool flush_is_owned(void *requests, struct request *flush)
{
	struct flush_waiters waiters;

	if (!flush_waiters(&waiters, flush))
		return false;
	for (int i = 0; i < FLUSHED; i++) {
		struct request *waiter = flush_next(&waiters);

		if (!waiter)
			return false;
		if (flushed_is_owned(requests, waiter))
			return true;
	}
	return false;
}

/*
 * Whether the request, seen for the first time, belongs to a task that passes the filters.
 * `requests` is the tool's map of requests, whose values begin with struct request_life.
 */
static __always_inline bool request_is_owned(void *requests, struct request *request)
{
	if (!want_owner)
		return true;
	if (owner_forget(request))
		return true;
	return block_op(BPF_CORE_READ(request, cmd_flags)) == BLOCK_FLUSH &&
	       flush_is_owned(requests, request);
}

#endif
