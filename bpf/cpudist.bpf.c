// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * cpudist: how long threads are on the CPU at a time, or off it.
 *
 * Time on the CPU needs nothing to be kept about threads: it is the time since the last switch on
 * this CPU. Time off the CPU begins when a thread leaves, for whatever reason, and ends when it is
 * switched to. The filters are asked when a thread leaves: it is then the current one.
 *
 * Ways: btf, rawtp; the same tracepoint. It is never preempted, so it needs no twin.
 */
#include "sched.h"
#include "thread_times.h"
#include "waits.h"

const volatile bool want_off_cpu = false;
const volatile bool want_idle = false;

/* What goes on on a CPU; nothing is known before the first switch. */
struct stint {
	__u64 since_ns;
	/* Who was switched to. */
	__u64 task;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct stint);
} stints SEC(".maps");

static __always_inline bool prev_wanted(void)
{
	if (!want_idle && (__u32)bpf_get_current_pid_tgid() == 0)
		return false;
	return filter_current();
}

static __always_inline void on_cpu(const struct sched_switch *sw)
{
	__u32 zero = 0;
	struct stint *stint = bpf_map_lookup_elem(&stints, &zero);

	if (!stint)
		return;

	struct stint old = *stint;
	__u64 now = bpf_ktime_get_ns();

	stint->since_ns = now;
	stint->task = (__u64)sw->next;
	/* A switch that was not seen leaves another task behind: its time is not known. */
	if (old.task == (__u64)sw->prev && prev_wanted())
		times_add(sw->prev, now - old.since_ns);
}

static __always_inline void off_cpu(const struct sched_switch *sw)
{
	__u64 now = bpf_ktime_get_ns();
	__u64 ns;

	if (sw->prev_state & TASK_DEAD)
		wait_forget(sw->prev);
	else if (prev_wanted())
		wait_begins(sw->prev, now);
	else
		wait_is_unwanted(sw->prev);
	if (wait_ends(sw->next, now, &ns))
		times_add(sw->next, ns);
}

static __always_inline int switched(__u64 *ctx)
{
	struct sched_switch sw = sched_switch_of(ctx);

	if (want_off_cpu)
		off_cpu(&sw);
	else
		on_cpu(&sw);
	return 0;
}

SEC("tp_btf/sched_switch")
int switch__btf(__u64 *ctx)
{
	return switched(ctx);
}

SEC("raw_tp/sched_switch")
int switch__rawtp(__u64 *ctx)
{
	return switched(ctx);
}
