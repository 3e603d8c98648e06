/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Nothing is to be missed where programs can be preempted.
 *
 * A CPU runs a program once at a time: a hit that comes while the program is in the middle of
 * another is skipped. Where the kernel itself is preemptible a task can be stopped inside a program
 * on fentry or fexit, from 7.0 on also on a tracepoint, and what other tasks of that CPU do
 * meanwhile is not seen. bpf_preempt_disable() would help, but an object that names a kernel
 * function does not load where the kernel has no BTF.
 *
 * So two programs with the same body, each with an EVENT_SLOT of its own, stand behind each other
 * on the function or tracepoint, and the one that comes first does the work. Way::twin() declares
 * them. Which one comes first differs: tracepoints call in the order of attaching, trampolines in
 * the opposite one.
 */
#ifndef TWIN_H
#define TWIN_H

#include "bpfscope.h"

/* The kernel side of a tool knows some thousand things at a time; sharing a place does no harm. */
#define TWIN_PLACES 8192

/* How many hits each of the twins has seen. */
struct twin_hits {
	__u64 first;
	__u64 second;
};

/* Not in a map of its own, of which each place would have to be looked up. */
struct twin_hits twin_hits[TWIN_PLACES];

/*
 * Whether this hit of the task, process or request is still to be dealt with: when this twin has
 * now seen more hits than the other. One that was skipped lags behind from then on and leaves the
 * work to the other. So a hit is lost only where both have been skipped, and there are never more
 * of these than the smaller count of skips, which is what is reported as missed.
 */
static __always_inline bool twin_first(__u32 id, bool is_second)
{
	struct twin_hits *hits = &twin_hits[id % TWIN_PLACES];

	if (is_second) {
		add_atomically(&hits->second, 1);
		return READ_ONCE(hits->second) > READ_ONCE(hits->first);
	}
	add_atomically(&hits->first, 1);
	return READ_ONCE(hits->first) > READ_ONCE(hits->second);
}

#endif
