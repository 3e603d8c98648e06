// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * profile: which code runs on the CPUs, by stacks that are taken at regular moments.
 *
 * One way: a program on a perf event of each CPU, which the user side opens. It may run in an NMI,
 * where a map or the ring buffer can be busy under the interrupted code; what cannot be kept then
 * is counted like everything else.
 */
#include "filter.h"
#include "stack.h"

const volatile bool want_idle = false;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 40960);
	__type(key, struct stack_key);
	__type(value, __u64);
} samples SEC(".maps");

EVENT_SLOT(slot_sample, struct stack_slot);
EXPORT_STRUCT(stack_key);

SEC("perf_event")
int sample__perf(struct bpf_perf_event_data *ctx)
{
	bool is_idle = (__u32)bpf_get_current_pid_tgid() == 0;
	struct stack_slot *slot;
	struct stack_key key = {};
	__u64 one = 1;

	if (is_idle && !want_idle)
		return 0;
	if (!filter_current())
		return 0;
	slot = event_slot(&slot_sample);
	if (!slot)
		return 0;

	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	stack_key_of_current(ctx, slot, &key, BPF_CORE_READ(task, flags) & PF_KTHREAD);
	/* Threads of a process are one. Idle threads have one id on all CPUs, and names apart. */
	key.tid = 0;

	__u64 *count = bpf_map_lookup_elem(&samples, &key);

	if (!count) {
		if (map_insert(&samples, &key, &one, BPF_NOEXIST) == 0)
			return 0;
		/* Another CPU was first, or there is no room. */
		count = bpf_map_lookup_elem(&samples, &key);
		if (!count)
			return 0;
	}
	add_atomically(count, 1);
	return 0;
}
