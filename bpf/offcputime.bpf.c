// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * offcputime: how long threads are off the CPU, by the stack that they left it with.
 *
 * Everything about a thread is taken when it leaves: it is still the current task then. When it
 * comes back, the time is added up. A thread's entry stays for its whole life, since making and
 * deleting one at each switch would cost more than all the rest.
 *
 * Ways: btf, rawtp; the same tracepoint. It is never preempted, so it needs no twin.
 */
#include "filter.h"
#include "stack.h"

const volatile bool want_user_threads = false;
const volatile bool want_kernel_threads = false;
const volatile bool want_idle = false;
const volatile bool want_some_states = false;
/* Bits of the state that a thread leaves in; 0 = it could go on (preempted). */
const volatile __u32 want_states = 0;
const volatile __u64 want_min_ns = 0;
const volatile __u64 want_max_ns = ~0ULL;

struct off_thread {
	/* 0 while it is on a CPU. */
	__u64 since_ns;
	struct stack_key key;
};
EXPORT_STRUCT(off_thread);
EXPORT_STRUCT(stack_key);

/* By the address of its task, which, unlike its id, no two idle threads share. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct off_thread);
} threads SEC(".maps");

struct off_time {
	__u64 ns;
	__u64 times;
};
EXPORT_STRUCT(off_time);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 40960);
	__type(key, struct stack_key);
	__type(value, struct off_time);
} off_times SEC(".maps");

EVENT_SLOT(slot_switch, struct stack_slot);

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

static __always_inline bool thread_wanted(__u32 flags, bool is_idle, __u32 state)
{
	if (is_idle && !want_idle)
		return false;
	if (want_user_threads && flags & PF_KTHREAD)
		return false;
	if (want_kernel_threads && !(flags & PF_KTHREAD))
		return false;
	if (want_some_states && (want_states ? !(state & want_states) : state != 0))
		return false;
	return filter_current();
}

/* The current task leaves the CPU. */
static __always_inline void leave(void *ctx, struct task_struct *task, __u32 state, __u64 now)
{
	__u64 id = (__u64)task;
	__u32 flags = BPF_CORE_READ(task, flags);
	bool is_idle = (__u32)bpf_get_current_pid_tgid() == 0;

	if (state & TASK_DEAD) {
		bpf_map_delete_elem(&threads, &id);
		return;
	}
	if (!thread_wanted(flags, is_idle, state))
		return;

	struct stack_slot *slot = event_slot(&slot_switch);

	if (!slot)
		return;

	struct off_thread fresh = { .since_ns = now };

	stack_key_of_current(ctx, slot, &fresh.key, flags & PF_KTHREAD);

	struct off_thread *thread = bpf_map_lookup_elem(&threads, &id);

	if (thread)
		*thread = fresh;
	else
		map_insert(&threads, &id, &fresh, BPF_ANY);
}

/* A task is about to run. */
static __always_inline void come_back(struct task_struct *task, __u64 now)
{
	__u64 id = (__u64)task;
	struct off_thread *thread = bpf_map_lookup_elem(&threads, &id);

	if (!thread || !thread->since_ns)
		return;

	__u64 ns = now > thread->since_ns ? now - thread->since_ns : 0;

	thread->since_ns = 0;
	if (ns < want_min_ns || ns > want_max_ns)
		return;

	struct off_time *time = bpf_map_lookup_elem(&off_times, &thread->key);

	if (!time) {
		struct off_time none = {};

		map_insert(&off_times, &thread->key, &none, BPF_NOEXIST);
		time = bpf_map_lookup_elem(&off_times, &thread->key);
		if (!time)
			return;
	}
	add_atomically(&time->ns, ns);
	add_atomically(&time->times, 1);
}

static __always_inline int switched(__u64 *ctx)
{
	__u64 prev;
	__u64 next;
	__u32 state;
	__u64 now = bpf_ktime_get_boot_ns();

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
	/* It could have gone on, whatever it was about to do. */
	if (ctx[0] & 1)
		state = 0;
	leave(ctx, (struct task_struct *)prev, state, now);
	come_back((struct task_struct *)next, now);
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
