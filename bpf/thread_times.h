/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Times of threads as histograms: of all together, or of each process, thread, PID namespace or
 * cgroup (src/common/thread_times.rs).
 */
#ifndef THREAD_TIMES_H
#define THREAD_TIMES_H

#include "bpfscope.h"

/* Up to 19 hours in microseconds; the last slot takes everything longer. */
#define HISTOGRAM_SLOTS 36
#include "histogram.h"
#include "filter.h"
#include "intervals.h"
#include "pid_keys.h"

enum times_by {
	TIMES_OF_ALL,
	TIMES_BY_PID,
	TIMES_BY_TID,
	TIMES_BY_PIDNS,
	TIMES_BY_CGROUP,
};

const volatile __u32 times_by = TIMES_OF_ALL;
/* How many nanoseconds one unit of the slots is. */
const volatile __u64 times_slot_ns = 1000;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct histogram);
} times_of_all SEC(".maps");

/* Of one process, thread, PID namespace or cgroup. */
struct times {
	struct histogram histogram;
	/* Of a cgroup: empty. */
	char comm[TASK_COMM_LEN];
};

/* Too large for the stack to be built there. */
static const struct times no_times;

/* Not a copy for each CPU, since there can be many threads. */
INTERVALS(times_now, times_first, BPF_MAP_TYPE_HASH, 10240, sizeof(__u64), sizeof(struct times));

/*
 * Of the process, since a thread that has ended has no number any more; NULL once the process, too,
 * has been collected.
 */
static __always_inline struct pid_namespace *times_pidns(struct task_struct *task)
{
	struct pid *pid = BPF_CORE_READ(task, signal, pids[PIDTYPE_TGID]);
	struct pid_namespace *ns = NULL;
	unsigned int level;

	if (!pid)
		return NULL;
	level = BPF_CORE_READ(pid, level);
	bpf_core_read(&ns, sizeof(ns), &pid->numbers[level].ns);
	return ns;
}

static __always_inline __u64 times_key(struct task_struct *task)
{
	switch (times_by) {
	case TIMES_BY_PID:
		return task_pid_key(task);
	case TIMES_BY_TID:
		/* Idle threads all have the id 0. They are told apart by the CPU, which is this. */
		if (BPF_CORE_READ(task, pid) == 0)
			return (__u64)bpf_get_smp_processor_id() << 32;
		return task_tid_key(task);
	case TIMES_BY_PIDNS:
		return BPF_CORE_READ(times_pidns(task), ns.inum);
	default:
		return task_cgroup_id(task);
	}
}

/* The name that it has now: a program that was just started is to be shown under its own. */
static __always_inline void times_name(struct task_struct *task, struct times *times)
{
	switch (times_by) {
	case TIMES_BY_PID:
		BPF_CORE_READ_STR_INTO(&times->comm, task, group_leader, comm);
		break;
	case TIMES_BY_TID:
		BPF_CORE_READ_STR_INTO(&times->comm, task, comm);
		break;
	case TIMES_BY_PIDNS:
		BPF_CORE_READ_STR_INTO(&times->comm, times_pidns(task), child_reaper, comm);
		break;
	}
}

/* Counts a time of this task, which need not be the current one. */
static __always_inline void times_add(struct task_struct *task, __u64 ns)
{
	__u64 units = ns / times_slot_ns;
	__u32 zero = 0;

	if (times_by == TIMES_OF_ALL) {
		histogram_add(&times_of_all, &zero, units, ns);
		return;
	}

	void *now = bpf_map_lookup_elem(&times_now, &zero);
	__u64 key = times_key(task);

	if (!now)
		return;

	struct times *times = bpf_map_lookup_elem(now, &key);

	if (!times) {
		map_insert(now, &key, &no_times, BPF_NOEXIST);
		times = bpf_map_lookup_elem(now, &key);
		if (!times)
			return;
	}
	histogram_count(&times->histogram, units, ns);
	times_name(task, times);
}

#endif
