/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The tracepoint sched_switch: which thread leaves the CPU, in which state, and which one comes.
 * It runs with interrupts off, as sched_wakeup_new does, so it needs no twin. sched_wakeup does,
 * too, but for a task that wakes itself up in the moment before it sleeps (try_to_wake_up() of the
 * current task): what an interrupt wakes up meanwhile is skipped and counted as missed. It is too
 * rare for a twin.
 */
#ifndef SCHED_H
#define SCHED_H

#include "bpfscope.h"

/* The state of one that has ended: it never comes back. */
#define TASK_DEAD 0x80

/*
 * The arguments are (preempt, prev, next) before 5.18. fa2c3254d7cf "sched/tracing: Don't re-read
 * p->state when emitting sched_switch event" put the state before prev (5.18), and 9c2136be0878
 * "sched/tracing: Append prev_state to tp args instead" behind next.
 */
typedef void (*btf_trace_sched_switch___second)(void *, bool, unsigned int, struct task_struct *,
						struct task_struct *);
typedef void (*btf_trace_sched_switch___last)(void *, bool, struct task_struct *,
					      struct task_struct *, unsigned int);

/* long state until 2f064a59a11f "sched: Change task_struct::state" (5.14). */
struct task_struct___state {
	volatile long state;
} __attribute__((preserve_access_index));

static __always_inline __u32 state_of(struct task_struct *task)
{
	struct task_struct___state *old = (void *)task;

	if (bpf_core_field_exists(old->state)) {
		barrier_var(old);
		return BPF_CORE_READ(old, state);
	}
	barrier_var(task);
	return BPF_CORE_READ(task, __state);
}

struct sched_switch {
	/* The current task. */
	struct task_struct *prev;
	struct task_struct *next;
	/* 0 = it could have gone on (preempted). */
	__u32 prev_state;
};

static __always_inline struct sched_switch sched_switch_of(__u64 *ctx)
{
	__u64 prev;
	__u64 next;
	__u32 state;

	if (bpf_core_type_exists(btf_trace_sched_switch___second)) {
		state = ctx[1];
		prev = ctx[2];
		next = ctx[3];
		barrier_var(next);
	} else if (bpf_core_type_exists(btf_trace_sched_switch___last)) {
		prev = ctx[1];
		next = ctx[2];
		state = ctx[3];
		barrier_var(next);
	} else {
		prev = ctx[1];
		next = ctx[2];
		barrier_var(next);
		state = state_of((struct task_struct *)prev);
	}
	/* Whatever it was about to do. */
	if (ctx[0] & 1)
		state = 0;
	return (struct sched_switch){
		.prev = (struct task_struct *)prev,
		.next = (struct task_struct *)next,
		.prev_state = state,
	};
}

/*
 * Whether the thread that leaves stays in the queue of those that want to run. The state that comes
 * with the tracepoint may be one that the thread gave up in the last moment, because a signal came:
 * it is then said to sleep, is not woken, and runs again. Nobody else can make its state 0 before
 * the switch is done.
 */
static __always_inline bool prev_is_runnable(const struct sched_switch *sw)
{
	return sw->prev_state == 0 || state_of(sw->prev) == 0;
}

#endif
