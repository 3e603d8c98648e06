// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * runqlat: how long threads that could run wait for a CPU.
 *
 * A wait begins when a thread is woken, when it is new, and when it leaves the CPU although it
 * could go on. It ends when the thread is switched to. The filters are asked at the beginning,
 * about the thread that waits.
 *
 * Ways: btf, rawtp; the same tracepoints. None of them is ever preempted: no twins.
 */
#include "sched.h"
#include "thread_times.h"
#include "waits.h"

/*
 * From now on it wants a CPU. A thread that is woken while it still runs has not left its CPU; what
 * is noted then is overwritten before the thread is next switched to.
 */
static __always_inline void queued(struct task_struct *task, bool wanted)
{
	if (wanted)
		wait_begins(task, bpf_ktime_get_ns());
	else
		wait_is_unwanted(task);
}

static __always_inline int woken(__u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];

	queued(task, filter_task(task));
	return 0;
}

static __always_inline int switched(__u64 *ctx)
{
	struct sched_switch sw = sched_switch_of(ctx);
	__u64 ns;

	if (sw.prev_state & TASK_DEAD)
		wait_forget(sw.prev);
	/* An idle thread never waits. */
	else if ((__u32)bpf_get_current_pid_tgid() != 0 && prev_is_runnable(&sw))
		queued(sw.prev, filter_current());
	if (wait_ends(sw.next, bpf_ktime_get_ns(), &ns))
		times_add(sw.next, ns);
	return 0;
}

/* ---- way btf ---- */

SEC("tp_btf/sched_switch")
int switch__btf(__u64 *ctx)
{
	return switched(ctx);
}

SEC("tp_btf/sched_wakeup")
int wakeup__btf(__u64 *ctx)
{
	return woken(ctx);
}

SEC("tp_btf/sched_wakeup_new")
int wakeup_new__btf(__u64 *ctx)
{
	return woken(ctx);
}

/* ---- way rawtp ---- */

SEC("raw_tp/sched_switch")
int switch__rawtp(__u64 *ctx)
{
	return switched(ctx);
}

SEC("raw_tp/sched_wakeup")
int wakeup__rawtp(__u64 *ctx)
{
	return woken(ctx);
}

SEC("raw_tp/sched_wakeup_new")
int wakeup_new__rawtp(__u64 *ctx)
{
	return woken(ctx);
}
