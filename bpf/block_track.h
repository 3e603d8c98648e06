/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Requests from their submission to their end, with all that is known of their submitter. For
 * tools that show or group by him; block_owner.h is for those that only filter.
 *
 * The submitter is the task that makes the request: later bios that are merged into it change
 * nothing, and neither does who issues it. Where the kernel has the tracepoint block_io_start, it
 * gives the request itself. On others the bio that gets a request (block_getrq) is remembered, and
 * found again in the request when that is seen first.
 *
 * Each hook has a twin behind it (twin.h), and only one of them does the work.
 */
#ifndef BLOCK_TRACK_H
#define BLOCK_TRACK_H

/* Entries are large: half as many as where there is only a time in them. */
#define REQUESTS 32768

#include "block.h"
#include "filter.h"

/* Whether any filter on the task is set: a request without a submitter passes none. */
const volatile bool want_owner;

/*
 * A tool may say before it includes this that it wants of a submitter the command name alone, and
 * of a request not when it was queued and issued, only that it was.
 */
#ifdef TRACK_COMM_ONLY
#define describe_current(head) current_comm((head)->comm)
#define track_now() 1
#else
#define describe_current(head) head_without_time(head)
#define track_now() bpf_ktime_get_boot_ns()
#endif

/* Who asked for a request, as it was when he did. */
struct submitter {
	struct event_head head;
	/* It is known; the rest is zero if not. */
	__u8 known;
	/* It passes the filters. */
	__u8 wanted;
	/* A kernel thread that writes back what others have left in memory. */
	__u8 writeback;
	__u8 pad[5];
};

struct tracked_request {
	struct request_life life;
	/* When it entered the queue of the operating system; 0 = it did not, or nobody looked. */
	__u64 queued_ns;
	/*
	 * When it was given to the device the last time before that did any of it; 0 = not yet, or
	 * nobody saw it.
	 */
	__u64 issued_ns;
	/* All of it, as it was issued first. */
	__u64 sector;
	__u32 bytes;
	/* The tool's own. */
	__u32 note;
	struct submitter submitter;
};

static const struct tracked_request tracked_nothing;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REQUESTS);
	__type(key, __u64);
	__type(value, struct tracked_request);
} requests SEC(".maps");

/* Unknown to kernels without block_io_start (5a80bd075f3b, 6.5). */
typedef void (*btf_trace_block_io_start)(void *, struct request *);
#define submitters_by_bio (!bpf_core_type_exists(btf_trace_block_io_start))

struct bio_submitter {
	struct submitter submitter;
	/* No request has taken it. */
	__u64 fresh;
};

static const struct bio_submitter bio_submitter_nothing;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REQUESTS);
	__type(key, __u64);
	__type(value, struct bio_submitter);
} submitted_bios SEC(".maps");

/* See requests_kept. */
__u32 bios_kept;

#define PF_KTHREAD 0x00200000
#define PF_WQ_WORKER 0x00000020

/*
 * The cgroup that a bio is charged to: for data that was written to a file and is written back
 * later, the inode's. NULL where the kernel does not know, or means another hierarchy.
 */
static __always_inline struct cgroup *bio_cgroup(struct bio *bio, struct task_struct *task)
{
	struct cgroup *cgroup;

	if (!bpf_core_field_exists(bio->bi_blkg))
		return NULL;
	cgroup = BPF_CORE_READ(bio, bi_blkg, blkcg, css.cgroup);
	if (!cgroup || BPF_CORE_READ(cgroup, root) != BPF_CORE_READ(task, cgroups, dfl_cgrp, root))
		return NULL;
	return cgroup;
}

/*
 * What a kernel thread keeps of itself: worker_private since e32cf5dfbe22 "kthread: Generalize
 * pf_io_worker so it can point to struct kthread" (5.17), before that in a field that kernel
 * threads have no other use for.
 */
struct task_struct___set_child_tid {
	int *set_child_tid;
} __attribute__((preserve_access_index));

/* Whether the current task is a worker that writes back: those describe themselves so. */
static __always_inline bool writes_back(struct task_struct *task)
{
	struct task_struct___set_child_tid *old = (void *)task;
	struct kthread *kthread;
	struct worker *worker;
	__u64 desc = 0;

	if (!(BPF_CORE_READ(task, flags) & PF_WQ_WORKER))
		return false;
	if (bpf_core_field_exists(task->worker_private)) {
		barrier_var(task);
		kthread = (struct kthread *)BPF_CORE_READ(task, worker_private);
	} else {
		kthread = (struct kthread *)BPF_CORE_READ(old, set_child_tid);
	}
	worker = BPF_CORE_READ(kthread, data);
	/* "flush-8:0" */
	bpf_core_read(&desc, 6, &worker->desc);
	return desc == 0x2d6873756c66ULL;
}

/* The current task submits this bio. */
static __always_inline void describe_submitter(struct submitter *who, struct bio *bio)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct cgroup *cgroup = NULL;

	describe_current(&who->head);
	who->known = 1;
	who->writeback = 0;
	if (current_flags() & PF_KTHREAD) {
		who->writeback = writes_back(task);
		cgroup = bio_cgroup(bio, task);
	}
	if (cgroup) {
		who->head.cgroup_id = BPF_CORE_READ(cgroup, kn, id);
		who->wanted = filter_current_for(cgroup);
	} else {
		who->wanted = filter_current();
	}
}

/* The entry of this request, made if there is none; NULL (counted) where there is no room. */
static __always_inline struct tracked_request *tracked_entry(const __u64 *key)
{
	struct tracked_request *entry = bpf_map_lookup_elem(&requests, key);

	if (!entry) {
		if (map_insert(&requests, key, &tracked_nothing, BPF_ANY))
			return NULL;
		request_kept();
		entry = bpf_map_lookup_elem(&requests, key);
	}
	return entry;
}

/* In request_life.born, until the request is seen again. */
#define BORN_JUST_NOW (~0ULL)

static __always_inline void tracked_born(struct tracked_request *entry, __u64 born)
{
	entry->life.born = born;
	entry->life.under_way = 1;
	entry->life.partly_done = 0;
	entry->queued_ns = 0;
	entry->issued_ns = 0;
}

/* For block_io_start: the current task has made a request. */
static __always_inline int request_started(struct request *request, bool typed, bool is_twin)
{
	__u64 key = (__u64)request;
	struct tracked_request *entry;

	if (block_twin_has_it(key, HOOK_START, 0, is_twin))
		return 0;
	entry = tracked_entry(&key);
	if (!entry)
		return 0;
	/* Newer kernels take its time of birth a moment later. */
	tracked_born(entry, BORN_JUST_NOW);
	describe_submitter(&entry->submitter, request_read(typed, request, bio));
	return 0;
}

/* For block_getrq, on kernels without the former: the current task gets a request for a bio. */
static __always_inline int submitted(__u64 *ctx, bool is_twin)
{
	struct bio *bio = bio_of_getrq(ctx);
	__u64 key = (__u64)bio;
	struct bio_submitter *entry;

	if (!submitters_by_bio || block_twin_has_it(key, HOOK_GETRQ, 0, is_twin))
		return 0;
	entry = bpf_map_lookup_elem(&submitted_bios, &key);
	if (!entry) {
		if (map_insert(&submitted_bios, &key, &bio_submitter_nothing, BPF_ANY))
			return 0;
		WRITE_ONCE(bios_kept, READ_ONCE(bios_kept) + 1);
		entry = bpf_map_lookup_elem(&submitted_bios, &key);
		if (!entry)
			return 0;
	}
	describe_submitter(&entry->submitter, bio);
	entry->fresh = 1;
	return 0;
}

/* The submitter of the bio that the request was made for; NULL if there is none any more. */
static __always_inline struct bio_submitter *submitter_by_bio(struct request *request, __u64 *key)
{
	struct bio *bio = BPF_CORE_READ(request, bio);

	for (int i = 0; i < BIOS && bio; i++) {
		struct bio_submitter *entry;

		*key = (__u64)bio;
		entry = bpf_map_lookup_elem(&submitted_bios, key);
		if (entry && entry->fresh)
			return entry;
		bio = BPF_CORE_READ(bio, bi_next);
	}
	return NULL;
}

/* It belongs to no other request. The entry stays for the next bio at that place. */
static __always_inline void bio_taken(struct bio_submitter *entry, const __u64 *key)
{
	entry->fresh = 0;
	if (READ_ONCE(bios_kept) > REQUESTS / 4 * 3)
		bpf_map_delete_elem(&submitted_bios, key);
}

/* The submitter of a request that is made of one bio: nothing is merged into one that flushes. */
static __always_inline struct bio_submitter *submitter_by_only_bio(struct request *request,
								   __u64 *key)
{
	struct bio_submitter *entry;

	*key = (__u64)BPF_CORE_READ(request, bio);
	entry = bpf_map_lookup_elem(&submitted_bios, key);
	return entry && entry->fresh ? entry : NULL;
}

/* The submitter of a request that waits for a flush, also when its data is already done. */
static __always_inline struct submitter *waiter_submitter(struct request *request)
{
	__u64 key = (__u64)request;
	struct tracked_request *entry;

	if (submitters_by_bio) {
		__u64 bio;
		struct bio_submitter *by_bio = submitter_by_only_bio(request, &bio);

		if (by_bio)
			return &by_bio->submitter;
	}
	entry = bpf_map_lookup_elem(&requests, &key);
	if (!entry || (entry->life.born != BORN_JUST_NOW &&
		       entry->life.born != BPF_CORE_READ(request, start_time_ns)))
		return NULL;
	return &entry->submitter;
}

/* The first of those who wait for this flush whom the filters let through, or else the first. */
static __always_inline struct submitter *flush_submitter(struct request *flush)
{
	struct submitter *first = NULL;
	struct flush_waiters waiters;

	if (!flush_waiters(&waiters, flush))
		return NULL;
	for (int i = 0; i < FLUSHED; i++) {
		struct request *waiter = flush_next(&waiters);
		struct submitter *who;

		if (!waiter)
			break;
		who = waiter_submitter(waiter);
		if (who && who->wanted)
			return who;
		if (!first)
			first = who;
	}
	return first;
}

/* A request that is seen for the first time after it was made. */
static __always_inline struct tracked_request *request_found(struct request *request,
							     const __u64 *key, __u64 born)
{
	struct tracked_request *entry = tracked_entry(key);

	if (!entry)
		return NULL;
	tracked_born(entry, born);
	if (submitters_by_bio) {
		__u64 bio;
		struct bio_submitter *by_bio = submitter_by_bio(request, &bio);

		if (by_bio) {
			entry->submitter = by_bio->submitter;
			bio_taken(by_bio, &bio);
			return entry;
		}
	}
	if (block_op(BPF_CORE_READ(request, cmd_flags)) == BLOCK_FLUSH) {
		struct submitter *who = flush_submitter(request);

		if (who) {
			entry->submitter = *who;
			return entry;
		}
	}
	entry->submitter = tracked_nothing.submitter;
	entry->submitter.wanted = !want_owner;
	return entry;
}

/* For block_rq_insert: the request enters the queue. */
static __always_inline int request_queued(struct request *request, bool typed, bool is_twin)
{
	__u64 key = (__u64)request;
	__u64 born = request_read(typed, request, start_time_ns);
	struct tracked_request *entry;

	if (block_twin_has_it(key, HOOK_INSERT, 0, is_twin))
		return 0;
	entry = bpf_map_lookup_elem(&requests, &key);
	if (!entry || !request_lives(&entry->life, born))
		entry = request_found(request, &key, born);
	else if (entry->life.born == BORN_JUST_NOW)
		entry->life.born = born;
	/* One that the device gave back is queued again; its time goes on. */
	if (entry && !entry->queued_ns && !entry->issued_ns)
		entry->queued_ns = track_now();
	return 0;
}

/*
 * For block_rq_issue: the request is given to the device. Its entry, if that is so for the first
 * time and it is wanted.
 */
static __always_inline struct tracked_request *request_issued(struct request *request, bool typed,
							      bool is_twin)
{
	__u64 key = (__u64)request;
	__u64 born = request_read(typed, request, start_time_ns);
	struct tracked_request *entry;

	if (block_twin_has_it(key, HOOK_ISSUE, 0, is_twin))
		return NULL;
	entry = bpf_map_lookup_elem(&requests, &key);
	if (!entry || !request_lives(&entry->life, born))
		entry = request_found(request, &key, born);
	else if (entry->life.born == BORN_JUST_NOW)
		entry->life.born = born;
	if (!entry || !entry->submitter.wanted)
		return NULL;
	if (entry->issued_ns) {
		/* The device had no room for it, or for the rest of it. */
		if (!entry->life.partly_done)
			entry->issued_ns = track_now();
		return NULL;
	}
	if (!request_on_disk(request, typed)) {
		entry->life.under_way = 0;
		return NULL;
	}
	entry->sector = request_read(typed, request, __sector);
	entry->bytes = request_read(typed, request, __data_len);
	entry->issued_ns = track_now();
	return entry;
}

/*
 * A request ends whose issue was not seen, because the kernel skipped it or because it failed
 * before. Whether there is something to be told about it: that it waited for a flush and has no
 * data is nobody's concern, and that it is on another disk neither.
 */
static __always_inline bool request_unissued(struct request *request, struct tracked_request *entry,
					     __u32 left, bool typed)
{
	if (!left || !request_on_disk(request, typed))
		return false;
	entry->sector = request_read(typed, request, __sector);
	entry->bytes = left;
	entry->note = 0;
	return true;
}

/*
 * For block_rq_complete: so many bytes of the request are done. Its entry, if that was the last of
 * them; request_over() when it has been read.
 */
static __always_inline struct tracked_request *request_done(struct request *request, __u32 bytes,
							    bool typed, bool is_twin)
{
	__u64 key = (__u64)request;
	__u32 left = request_read(typed, request, __data_len);
	struct tracked_request *entry;

	if (block_twin_has_it(key, HOOK_DONE, left, is_twin))
		return NULL;
	entry = bpf_map_lookup_elem(&requests, &key);
	if (!entry || !request_lives(&entry->life, request_read(typed, request, start_time_ns))) {
		/* An empty flush comes to its end without having been issued itself. */
		if (submitters_by_bio && !left) {
			__u64 bio;
			struct bio_submitter *by_bio = submitter_by_only_bio(request, &bio);

			if (by_bio)
				bio_taken(by_bio, &bio);
		}
		return NULL;
	}
	if (bytes < left) {
		entry->life.partly_done = 1;
		return NULL;
	}
	if (!entry->submitter.wanted ||
	    (!entry->issued_ns && !request_unissued(request, entry, left, typed))) {
		request_over(&requests, &key, &entry->life);
		return NULL;
	}
	return entry;
}

/* For block_rq_merge: the request has become a part of another one. */
static __always_inline int merged(struct request *request)
{
	__u64 key = (__u64)request;
	struct tracked_request *entry = bpf_map_lookup_elem(&requests, &key);

	if (entry)
		request_over(&requests, &key, &entry->life);
	if (submitters_by_bio) {
		__u64 bio;
		struct bio_submitter *by_bio = submitter_by_bio(request, &bio);

		if (by_bio)
			bio_taken(by_bio, &bio);
	}
	return 0;
}

/* All hooks of one way; the tool has done() and issued(), as for BLOCK_HOOKS. */
#define TRACK_ALL_HOOKS(section, way, typed)                                                       \
	BLOCK_HOOKS(section, way, typed)                                                           \
	SEC(section "/block_io_start")                                                             \
	int start__##way(__u64 *ctx)                                                               \
	{                                                                                          \
		return request_started((struct request *)ctx[0], typed, false);                    \
	}                                                                                          \
	SEC(section "/block_io_start")                                                             \
	int start_twin__##way(__u64 *ctx)                                                          \
	{                                                                                          \
		return request_started((struct request *)ctx[0], typed, true);                     \
	}                                                                                          \
	GETRQ_HOOKS(section, way)                                                                  \
	SEC(section "/block_rq_insert")                                                            \
	int insert__##way(__u64 *ctx)                                                              \
	{                                                                                          \
		return request_queued(request_of(ctx), typed, false);                              \
	}                                                                                          \
	SEC(section "/block_rq_insert")                                                            \
	int insert_twin__##way(__u64 *ctx)                                                         \
	{                                                                                          \
		return request_queued(request_of(ctx), typed, true);                               \
	}                                                                                          \
	MERGE_HOOK(section, way)

#endif
