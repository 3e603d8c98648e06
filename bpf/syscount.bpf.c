// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * System calls counted and timed: by call, process, cgroup and error.
 *
 * Ways, by what is asked for:
 *
 * - enter: only counts. The beginning of a call is where each is seen once and under its own
 *   number: some never end, sigreturn ends without a number, and execveat as execve.
 * - exit: failures, which only the end of a call tells.
 * - storage, hash: latency, with what is remembered from the beginning to the end kept with the
 *   task, or in a map where programs of this kind have no task-local storage (until 5.11).
 */
#include "events.h"
#include "filter.h"
#include "histogram.h"
#include "intervals.h"
#include "pid_keys.h"
#include "syscall.h"

/* Numbers that have a place in arrays; others are counted like everything that comes and goes. */
#define CALLS 1024
/* For callers of both word sizes. */
#define SLOTS (2 * CALLS)

const volatile bool want_by_call = true;
const volatile bool want_by_process = false;
const volatile bool want_by_cgroup = false;
/* Of failures only. */
const volatile bool want_by_error = false;
/* Only failures, and of these only this errno unless it is 0. */
const volatile bool want_failures = false;
const volatile __u32 want_error = 0;
/* By call alone and without times: an array will do. */
const volatile bool want_array = true;
const volatile bool want_histograms = false;
const volatile __u64 ns_per_slot_unit = 1000;
/* A bit for each slot. */
const volatile bool want_some_calls = false;
const volatile __u64 want_calls[SLOTS / 64];

struct call_key {
	__u64 cgroup_id;
	__u32 pid;
	__s32 number;
	__u32 is_32bit;
	/* An errno, or 0. */
	__u32 error;
};
EXPORT_STRUCT(call_key);

struct call_count {
	__u64 calls;
	__u64 failures;
	/* How many have been timed, the sum, and the longest. */
	__u64 timed;
	__u64 ns;
	__u64 max_ns;
	/* When comm was read. */
	__u64 named_ns;
	char comm[TASK_COMM_LEN];
};
EXPORT_STRUCT(call_count);

static const struct call_count nothing_counted;

INTERVALS(intervals, first_interval, BPF_MAP_TYPE_PERCPU_HASH, 10240, sizeof(struct call_key),
	  sizeof(struct call_count));

/*
 * All counts of one CPU. An array with an entry for each CPU, and not a per-CPU one, since only
 * lookups in the former need no call on all kernels. The user side sets how many CPUs there are.
 */
struct call_counts {
	__u64 calls[SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct call_counts);
} counts SEC(".maps");

HISTOGRAMS(latencies, struct call_key);

static __always_inline __u32 slot_of(__s32 number, bool is_32bit)
{
	if ((__u32)number >= CALLS)
		return SLOTS;
	return is_32bit ? CALLS + number : number;
}

static __always_inline bool call_wanted(__u32 slot)
{
	if (!want_some_calls)
		return true;
	if (slot >= SLOTS)
		return false;
	return want_calls[slot / 64] >> (slot % 64) & 1;
}

static __always_inline void count_in_array(__u32 slot)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct call_counts *mine = bpf_map_lookup_elem(&counts, &cpu);

	if (!mine)
		count_map_full();
	else if (slot < SLOTS)
		add_atomically(&mine->calls[slot], 1);
}

/* `timed` is whether the call took `ns`. */
static __always_inline void count_by_key(__s32 number, bool is_32bit, __u32 error, bool counted,
					 bool timed, __u64 ns, __u64 now)
{
	__u32 zero = 0;
	struct call_key key = {};
	void *interval = bpf_map_lookup_elem(&intervals, &zero);
	struct call_count *count;

	if (!interval)
		return;
	if (want_by_call) {
		key.number = number;
		key.is_32bit = is_32bit;
	}
	if (want_by_process)
		key.pid = current_pid_key();
	if (want_by_cgroup)
		key.cgroup_id = bpf_get_current_cgroup_id();
	if (want_by_error)
		key.error = error;
	count = bpf_map_lookup_elem(interval, &key);
	if (!count) {
		map_insert(interval, &key, &nothing_counted, BPF_NOEXIST);
		count = bpf_map_lookup_elem(interval, &key);
		if (!count)
			return;
	}
	if (counted)
		add_atomically(&count->calls, 1);
	if (error)
		add_atomically(&count->failures, 1);
	if (timed) {
		add_atomically(&count->timed, 1);
		add_atomically(&count->ns, ns);
		if (ns > count->max_ns)
			count->max_ns = ns;
	}
	if (want_by_process) {
		struct task_struct *task = (struct task_struct *)bpf_get_current_task();

		count->named_ns = now ?: bpf_ktime_get_boot_ns();
		BPF_CORE_READ_STR_INTO(&count->comm, task, group_leader, comm);
	}
	if (want_histograms && timed)
		histogram_add(&latencies, &key, ns / ns_per_slot_unit, ns);
}

/* The errno of a call that failed, or 0. 32-bit results may come without their upper half. */
static __always_inline __u32 error_of(__u64 result, bool is_32bit)
{
	__s64 value = is_32bit ? (__s32)result : (__s64)result;

	return (__u64)value > (__u64)-4096 ? (__u32)-value : 0;
}

static __always_inline bool error_wanted(__u32 error)
{
	return !want_failures || (error && (!want_error || error == want_error));
}

/* ---- way enter ---- */

SEC("raw_tp/sys_enter")
int call__enter(__u64 *ctx)
{
	__s32 number = ctx[1];

	/* A debugger has made it none. */
	if (number == -1 || !filter_current())
		return 0;

	bool is_32bit = syscall_is_32bit();
	__u32 slot = slot_of(number, is_32bit);

	if (!call_wanted(slot))
		return 0;
	if (want_array && slot < SLOTS)
		count_in_array(slot);
	else
		count_by_key(number, is_32bit, 0, true, false, 0, 0);
	return 0;
}

/* ---- way exit ---- */

SEC("raw_tp/sys_exit")
int call__exit(__u64 *ctx)
{
	bool is_32bit = syscall_is_32bit();
	__u32 error = error_of(ctx[1], is_32bit);

	if (!error || !error_wanted(error) || !filter_current())
		return 0;

	__s32 number = syscall_number((struct pt_regs *)ctx[0]);
	__u32 slot = slot_of(number, is_32bit);

	/* After sigreturn it is what the interrupted call had returned. */
	if (number == -1 || !call_wanted(slot))
		return 0;
	if (want_array && slot < SLOTS)
		count_in_array(slot);
	else
		count_by_key(number, is_32bit, error, true, false, 0, 0);
	return 0;
}

/* ---- ways storage, hash ---- */

/* The call that a thread is in. */
struct begun {
	/* 0 = in none that is known. */
	__u64 ns;
	__s32 number;
	__u32 is_32bit;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct begun);
} begun__storage SEC(".maps");

/* By the task, since a thread that executes a program can get another number in the call. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct begun);
} begun__hash SEC(".maps");

/* Whether a call that begins now is to be timed; counts it. */
static __always_inline bool begin(__u64 *ctx, struct begun *call)
{
	call->number = ctx[1];
	if (call->number == -1 || !filter_current())
		return false;
	call->is_32bit = syscall_is_32bit();
	if (!call_wanted(slot_of(call->number, call->is_32bit)))
		return false;
	call->ns = bpf_ktime_get_boot_ns();
	/* What will have failed, and with which error, its end tells. */
	if (!want_failures)
		count_by_key(call->number, call->is_32bit, 0, true, false, 0, call->ns);
	return true;
}

/*
 * The end of a call. Its beginning may not have been seen: it was before the tool, or a seccomp
 * filter stood in its way.
 */
static __always_inline void end(__u64 *ctx, const struct begun *begun)
{
	bool counted = want_failures;
	struct begun call = {};
	__u64 ns = 0;
	__u64 now = bpf_ktime_get_boot_ns();
	__u32 error;

	if (begun && begun->ns) {
		call = *begun;
		ns = now > call.ns ? now - call.ns : 0;
	} else {
		if (!filter_current())
			return;
		call.number = syscall_number((struct pt_regs *)ctx[0]);
		call.is_32bit = syscall_is_32bit();
		if (call.number == -1 || !call_wanted(slot_of(call.number, call.is_32bit)) ||
		    /* A new task comes out of the call that it was made by. */
		    (!ctx[1] && syscall_makes_tasks(call.number, call.is_32bit)))
			return;
		counted = true;
	}
	error = error_of(ctx[1], call.is_32bit);
	if (error_wanted(error))
		count_by_key(call.number, call.is_32bit, error, counted, call.ns != 0, ns, now);
}

SEC("raw_tp/sys_enter")
int call_begin__storage(__u64 *ctx)
{
	struct begun call = {};
	struct begun *kept;

	if (!begin(ctx, &call))
		return 0;
	kept = bpf_task_storage_get(&begun__storage, bpf_get_current_task_btf(), NULL,
				    BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (kept)
		*kept = call;
	else
		count_map_full();
	return 0;
}

SEC("raw_tp/sys_exit")
int call_end__storage(__u64 *ctx)
{
	struct begun *kept =
		bpf_task_storage_get(&begun__storage, bpf_get_current_task_btf(), NULL, 0);

	end(ctx, kept);
	if (kept)
		kept->ns = 0;
	return 0;
}

SEC("raw_tp/sys_enter")
int call_begin__hash(__u64 *ctx)
{
	__u64 task = bpf_get_current_task();
	struct begun call = {};

	if (begin(ctx, &call))
		map_insert(&begun__hash, &task, &call, BPF_ANY);
	return 0;
}

SEC("raw_tp/sys_exit")
int call_end__hash(__u64 *ctx)
{
	__u64 task = bpf_get_current_task();
	struct begun *kept = bpf_map_lookup_elem(&begun__hash, &task);

	end(ctx, kept);
	if (kept)
		bpf_map_delete_elem(&begun__hash, &task);
	return 0;
}

/* Of exit() nobody sees the end. */
SEC("raw_tp/sched_process_exit")
int task_end__hash(__u64 *ctx)
{
	__u64 task = bpf_get_current_task();

	bpf_map_delete_elem(&begun__hash, &task);
	return 0;
}
