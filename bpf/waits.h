/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Since when threads wait for something, for tools of the scheduler. A thread's entry stays for its
 * whole life, since making and deleting one at each wait would cost more than all the rest.
 */
#ifndef WAITS_H
#define WAITS_H

#include "bpfscope.h"
#include "loss.h"

/*
 * By the address of the task, which, unlike its id, no two idle threads share; 0 while it does not
 * wait. The user side sets the size by how many threads there are.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u64);
} waits SEC(".maps");

static __always_inline void wait_begins(struct task_struct *task, __u64 now)
{
	__u64 id = (__u64)task;
	__u64 *since = bpf_map_lookup_elem(&waits, &id);

	if (since)
		*since = now;
	else
		map_insert(&waits, &id, &now, BPF_ANY);
}

/* It waits, but a filter does not want it (any more). */
static __always_inline void wait_is_unwanted(struct task_struct *task)
{
	__u64 id = (__u64)task;
	__u64 *since = bpf_map_lookup_elem(&waits, &id);

	if (since)
		*since = 0;
}

/* Whether its wait was known, and how long it was. */
static __always_inline bool wait_ends(struct task_struct *task, __u64 now, __u64 *ns)
{
	__u64 id = (__u64)task;
	__u64 *since = bpf_map_lookup_elem(&waits, &id);

	if (!since || !*since)
		return false;
	/* Clocks of two CPUs may differ a little. */
	*ns = now > *since ? now - *since : 0;
	*since = 0;
	return true;
}

/* The thread has ended. */
static __always_inline void wait_forget(struct task_struct *task)
{
	__u64 id = (__u64)task;

	bpf_map_delete_elem(&waits, &id);
}

#endif
