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
 * them. What two tasks that are stopped in both at once keep from being seen is counted as missed.
 */
#ifndef TWIN_H
#define TWIN_H

#include "bpfscope.h"

/* Two ids that share a mark can show an event twice: few do, and only if stopped in between. */
#define TWIN_MARKS 32768

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TWIN_MARKS);
	__type(key, __u32);
	__type(value, __u32);
} twin_marks SEC(".maps");

/*
 * Whether this hit of the task (or process) is still to be dealt with. The first twin leaves a mark
 * and the second takes it away. Where one of them was skipped the mark stays, and at the next hit
 * of the same task they change places.
 */
static __always_inline bool twin_first(__u32 id)
{
	__u32 index = id % TWIN_MARKS;
	__u32 *mark = bpf_map_lookup_elem(&twin_marks, &index);

	if (!mark)
		return true;
	if (*mark == id) {
		*mark = 0;
		return false;
	}
	*mark = id;
	return true;
}

#endif
