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
#include "sched.h"
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
	struct sched_switch sw = sched_switch_of(ctx);
	__u64 now = bpf_ktime_get_boot_ns();

	leave(ctx, sw.prev, sw.prev_state, now);
	come_back(sw.next, now);
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
