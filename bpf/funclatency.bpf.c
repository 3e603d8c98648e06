// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * funclatency: how long functions take, of the kernel and of programs.
 *
 * What a thread is in the middle of is a stack of calls, kept as long as the thread lives: an entry
 * that is made and deleted with each call would cost more than all the rest. A call is known again
 * by its place on the machine's stack, so that a return whose beginning was not seen ends no other
 * call, and calls that were left without a return are told from those that go on.
 *
 * Ways: fentry (one function of the kernel, with twins), kprobe_multi and kprobe (functions of the
 * kernel), uprobe_multi and uprobe (functions of programs and libraries).
 */
#include "bpfscope.h"
#include "filter.h"
#include "histogram.h"
#include "pid_keys.h"
#include "twin.h"

/* How deeply calls may be nested in one thread, and the most that can be asked for. */
#define MOST_LEVELS 128
const volatile __u32 levels = 16;
/* Whether calls of several functions have to be told apart. */
const volatile bool want_functions;
/* Whether the functions are those of programs, which can switch stacks and jump out of calls. */
const volatile bool of_programs;
/* Whether each process has histograms of its own. */
const volatile bool want_processes;
/* Which bits of an address tell functions apart where the kernel cannot say which one it is. */
const volatile __u64 address_mask = ~0ULL;
const volatile __u64 ns_per_slot_unit = 1;

struct call {
	__u64 place;
	__u64 start_ns;
	__u32 function;
	__u32 pad;
};

/* The user side makes the maps' values as large as `levels` says. */
struct thread {
	__u32 depth;
	/* Whose it is, in `near_threads`. */
	__u32 owner;
	struct call calls[MOST_LEVELS];
};

static const struct thread no_calls;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct thread));
} threads SEC(".maps");

/*
 * Most threads have a place in an array, where they are found with a tenth of the instructions that
 * a hash map takes: the first that comes gets it and has it as long as it lives, the others stand
 * in `threads`. Whose a place is, is decided by the insertion into `near_owners`.
 */
#define NEAR_THREADS 2048

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEAR_THREADS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct thread));
} near_threads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, NEAR_THREADS);
	__type(key, __u32);
	__type(value, __u32);
} near_owners SEC(".maps");

/* Numbers of functions by address, for kernels that pass no cookies (before 5.15). */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u32);
} functions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct histogram);
} latencies SEC(".maps");

struct function_process {
	__u32 function;
	__u32 pid;
};
EXPORT_STRUCT(function_process);

HISTOGRAMS(process_latencies, struct function_process);

/* The thread's id; the idle threads all have 0 and are told apart by their CPUs. */
static __always_inline __u32 thread_key(void)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	return tid ? tid : 1U << 31 | bpf_get_smp_processor_id();
}

static __always_inline struct thread *thread_find(__u32 key)
{
	__u32 place = key % NEAR_THREADS;
	struct thread *thread = bpf_map_lookup_elem(&near_threads, &place);

	if (thread && READ_ONCE(thread->owner) == key)
		return thread;
	return bpf_map_lookup_elem(&threads, &key);
}

static __always_inline struct thread *thread_make(__u32 key)
{
	__u32 place = key % NEAR_THREADS;
	struct thread *thread;

	if (!bpf_map_update_elem(&near_owners, &place, &key, BPF_NOEXIST)) {
		thread = bpf_map_lookup_elem(&near_threads, &place);
		if (thread)
			WRITE_ONCE(thread->owner, key);
		return thread;
	}
	map_insert(&threads, &key, &no_calls, BPF_NOEXIST);
	return bpf_map_lookup_elem(&threads, &key);
}

/* The number that the function has on the user side. */
static __always_inline __u32 function_number(void *ctx, __u64 address)
{
	__u32 *number;

	if (!want_functions)
		return 0;
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_attach_cookie))
		return (__u32)bpf_get_attach_cookie(ctx);
	address &= address_mask;
	number = bpf_map_lookup_elem(&functions, &address);
	return number ? *number : 0;
}

/*
 * One of a thread's calls; NULL when there is no such place, also for -1. In 64 bits and with one
 * comparison, because 5.10 learns nothing from others.
 */
static __always_inline struct call *call_of(struct thread *thread, __u64 index)
{
	barrier_var(index);
	if (index >= levels)
		return NULL;
	/* Nor may the place be calculated before. */
	barrier_var(index);
	return &thread->calls[index];
}

/* How many of the calls lie farther down the stack than `place`, which is where a call begins. */
static __noinline __u32 calls_around(struct thread *thread, __u64 place)
{
	__u32 around = 0;

	if (!thread)
		return 0;
	for (__u64 i = 0; i < MOST_LEVELS; i++) {
		struct call *call = call_of(thread, i);

		if (!call || (__s64)(call->place - place) <= 0)
			break;
		around++;
	}
	return around;
}

static __always_inline int call_begins(__u32 key, __u64 place, __u32 function)
{
	struct thread *thread;
	struct call *call;
	__u64 depth;

	if (!filter_current())
		return 0;
	thread = thread_find(key);
	if (!thread) {
		thread = thread_make(key);
		if (!thread)
			return 0;
	}
	depth = READ_ONCE(thread->depth);
	call = call_of(thread, depth - 1);
	/* The same call once more is one that was left by a jump, or whose end was missed. */
	if (call && call->place == place && call->function == function)
		depth--;
	call = call_of(thread, depth);
	if (!call) {
		depth = calls_around(thread, place);
		call = call_of(thread, depth);
		if (!call) {
			count_map_full();
			return 0;
		}
	}
	/* In this order: an interrupt that calls the function here is on top of this call. */
	WRITE_ONCE(thread->depth, (__u32)depth + 1);
	call->place = place;
	call->function = function;
	call->start_ns = bpf_ktime_get_ns();
	return 0;
}

/* Which of the calls began at `place`: its index and one, or 0. */
static __noinline __u32 call_at(struct thread *thread, __u64 place)
{
	__u64 depth;

	if (!thread)
		return 0;
	depth = thread->depth;
	for (int i = 0; i < MOST_LEVELS; i++) {
		struct call *call = call_of(thread, depth - 1);

		if (!call)
			break;
		if (call->place == place)
			return (__u32)depth;
		depth--;
	}
	return 0;
}

/* A call that was overtaken has ended: it and what lies free on top are no calls any more. */
static __noinline int call_forget(struct thread *thread, __u64 index)
{
	struct call *call;

	if (!thread)
		return 0;
	call = call_of(thread, index);
	if (call)
		call->place = 0;
	for (int i = 0; i < MOST_LEVELS; i++) {
		__u64 last = (__u64)thread->depth - 1;

		call = call_of(thread, last);
		if (!call || call->place)
			break;
		thread->depth = (__u32)last;
	}
	return 0;
}

static __always_inline int call_ends(__u32 key, __u64 place)
{
	__u64 now = bpf_ktime_get_ns();
	struct thread *thread = thread_find(key);
	__u64 latency, last, value;
	struct call *call;
	__u32 function;

	if (!thread)
		return 0;
	last = (__u64)READ_ONCE(thread->depth) - 1;
	call = call_of(thread, last);
	if (!call)
		return 0;
	if (call->place == place) {
		latency = now - call->start_ns;
		function = call->function;
		WRITE_ONCE(thread->depth, (__u32)last);
	} else {
		last = (__u64)call_at(thread, place) - 1;
		call = call_of(thread, last);
		if (!call)
			return 0;
		latency = now - call->start_ns;
		function = call->function;
		/* A program may have gone on on another stack, where its calls have not ended. */
		if (of_programs)
			call_forget(thread, last);
		else
			WRITE_ONCE(thread->depth, (__u32)last);
	}
	if ((__s64)latency < 0)
		latency = 0;
	value = ns_per_slot_unit == 1 ? latency : latency / ns_per_slot_unit;
	if (want_processes) {
		struct function_process group = {
			.function = function,
			.pid = current_pid_key(),
		};

		histogram_add(&process_latencies, &group, value, latency);
	} else {
		/* One for all, unless they are told apart. */
		histogram_add(&latencies, &function, value, latency);
	}
	return 0;
}

/* Not when the thread exits, which still calls functions then, but when it is gone. */
SEC("raw_tp/sched_process_free")
int thread_free(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tid = BPF_CORE_READ((struct task_struct *)ctx->args[0], pid);
	__u32 place = tid % NEAR_THREADS;
	struct thread *thread = bpf_map_lookup_elem(&near_threads, &place);

	if (thread && thread->owner == tid) {
		thread->depth = 0;
		thread->owner = 0;
		bpf_map_delete_elem(&near_owners, &place);
	} else {
		bpf_map_delete_elem(&threads, &tid);
	}
	return 0;
}

/* ---- way fentry ---- */

/*
 * Both ends of a call get the same context, which the trampoline keeps on the stack. The difference
 * to a constant address is a number, which the verifier lets us calculate with.
 */
static __always_inline __u64 place_of(void *ctx)
{
	__u64 place = (__u64)ctx;

	asm volatile("%0 -= %1" : "+r"(place) : "r"(&no_calls));
	return place;
}

/* An interrupt may have a stack of its own, and is not what it has interrupted. */
static __always_inline bool is_first(__u32 key, __u64 place, bool is_twin)
{
	return twin_first(key + (__u32)(place >> 14) * 31, is_twin);
}

#define ENTRY(name, is_twin)                                                                       \
	SEC("fentry/FUNCTION")                                                                     \
	int name(void *ctx)                                                                        \
	{                                                                                          \
		__u64 place = place_of(ctx);                                                       \
		__u32 key = thread_key();                                                          \
                                                                                                   \
		return is_first(key, place, is_twin) ? call_begins(key, place, 0) : 0;             \
	}

#define END(name, is_twin)                                                                         \
	SEC("fexit/FUNCTION")                                                                      \
	int name(void *ctx)                                                                        \
	{                                                                                          \
		__u64 place = place_of(ctx);                                                       \
		__u32 key = thread_key();                                                          \
                                                                                                   \
		return is_first(key, place, is_twin) ? call_ends(key, place) : 0;                  \
	}

ENTRY(enter__fentry, false)
ENTRY(enter_twin__fentry, true)
END(exit__fentry, false)
END(exit_twin__fentry, true)

/* ---- probes ---- */

/* The stack pointer that the function was entered with. */
static __always_inline __u64 place_on_return(struct pt_regs *ctx)
{
#if defined(__TARGET_ARCH_x86)
	/* It has taken its return address off the stack. */
	return PT_REGS_SP(ctx) - 8;
#else
	return PT_REGS_SP(ctx);
#endif
}

/* Where the function begins, by what the registers say there. */
static __always_inline __u64 kernel_address(struct pt_regs *ctx)
{
#if defined(__TARGET_ARCH_x86)
	/* Behind the breakpoint, also where there is none. */
	return PT_REGS_IP(ctx) - 1;
#else
	return PT_REGS_IP(ctx);
#endif
}

#define PROBES(way, entry_section, return_section, address)                                        \
	SEC(entry_section)                                                                         \
	int enter__##way(struct pt_regs *ctx)                                                      \
	{                                                                                          \
		return call_begins(thread_key(), PT_REGS_SP(ctx), function_number(ctx, address));  \
	}                                                                                          \
                                                                                                   \
	SEC(return_section)                                                                        \
	int exit__##way(struct pt_regs *ctx)                                                       \
	{                                                                                          \
		return call_ends(thread_key(), place_on_return(ctx));                              \
	}

PROBES(kprobe_multi, "kprobe.multi", "kretprobe.multi", 0)
PROBES(kprobe, "kprobe", "kretprobe", kernel_address(ctx))
PROBES(uprobe_multi, "uprobe.multi", "uretprobe.multi", 0)
PROBES(uprobe, "uprobe", "uretprobe", PT_REGS_IP(ctx))
