/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Call stacks, kept by the user side and known to the kernel side by a number.
 *
 * The kernel's own map for stacks (BPF_MAP_TYPE_STACK_TRACE) has one place for all stacks whose
 * hashes meet, so that some are never kept however large it is made, and it takes a kilobyte for
 * each from the start. Here a stack is hashed to 64 bits, which are its number; whoever sees a
 * number for the first time sends the frames, as many as there are, through the ring buffer. The
 * hash begins with a secret of this run, so that nobody can make two stacks with one number.
 */
#ifndef STACK_H
#define STACK_H

#include "bpfscope.h"
#include "events.h"
#include "pid_keys.h"

/* The largest kernel.perf_event_max_stack that is of use here. */
#define STACK_FRAMES 1024

enum stack_id {
	/* There is none: a kernel thread has no user stack. Also when it was not asked for. */
	STACK_NONE = 0,
	/* There is one, and the kernel could not walk it. */
	STACK_MISSED = 1,
};

/*
 * Set in the number of each stack, and in no time: the first word of a record says whether it is a
 * stack or an event.
 */
#define STACK_MARK (1ULL << 63)

/* How many frames are taken. */
const volatile __u32 stack_depth = 127;
const volatile __u64 stack_seed;
const volatile bool want_kernel_stacks = true;
const volatile bool want_user_stacks = true;

/*
 * What one line of the result is about; a tool leaves out what it does not tell apart. The numbers
 * are the host's (pid_keys.h).
 */
struct stack_key {
	__u64 kernel;
	__u64 user;
	__u32 pid;
	__u32 tid;
	char comm[TASK_COMM_LEN];
};

/* In the ring buffer with as many frames as there are. */
struct stack_slot {
	__u64 id;
	__u64 frames[STACK_FRAMES];
};

/* The numbers whose frames have been sent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u32);
} stacks_sent SEC(".maps");

static __always_inline __u64 stack_hash(const struct stack_slot *slot, __u32 frames, __u64 kind)
{
	__u64 hash = stack_seed ^ kind;

	for (__u32 i = 0; i < STACK_FRAMES; i++) {
		if (i >= frames || i >= stack_depth)
			break;
		hash = (hash ^ slot->frames[i]) * 0x9e3779b97f4a7c15ULL;
		hash ^= hash >> 29;
	}
	return hash | STACK_MARK;
}

/* The number of the current task's stack; `flags` is 0 or BPF_F_USER_STACK. */
static __always_inline __u64 stack_of(void *ctx, struct stack_slot *slot, __u64 flags)
{
	long bytes = bpf_get_stack(ctx, slot->frames, stack_depth * sizeof(__u64), flags);

	if (bytes == 0 || bytes == -14 /* EFAULT: nothing to walk */)
		return STACK_NONE;
	if (bytes < 0)
		return STACK_MISSED;

	__u32 size = bytes;
	__u64 id = stack_hash(slot, size / sizeof(__u64), flags);
	__u32 one = 1;

	if (bpf_map_lookup_elem(&stacks_sent, &id))
		return id;
	/* Where another CPU is first, it sends the frames. */
	if (map_insert(&stacks_sent, &id, &one, BPF_NOEXIST))
		return id;
	slot->id = id;
	barrier_var(size);
	if (size > sizeof(slot->frames))
		return id;

	/* Nobody waits for a stack: the reader is woken only for room. */
	__u64 unread = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
	__u64 wake = unread < ring_watermark ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP;

	if (bpf_ringbuf_output(&events, slot, sizeof(slot->id) + size, wake)) {
		count_lost();
		/* The next one tries again. */
		bpf_map_delete_elem(&stacks_sent, &id);
	}
	return id;
}

#define PF_KTHREAD 0x200000

/* Both stacks, thread and name of the current task. */
static __always_inline void stack_key_of_current(void *ctx, struct stack_slot *slot,
						 struct stack_key *key, bool is_kthread)
{
	__u64 id = current_id_keys(true);

	key->pid = id >> 32;
	key->tid = (__u32)id;
	key->kernel = want_kernel_stacks ? stack_of(ctx, slot, 0) : STACK_NONE;
	key->user = want_user_stacks && !is_kthread ? stack_of(ctx, slot, BPF_F_USER_STACK)
						    : STACK_NONE;
	current_comm(key->comm);
}

#endif
