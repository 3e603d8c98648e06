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

/* The user side makes the map's values as large as `levels` says. */
struct thread {
	__u32 depth;
	__u32 pad;
	struct call calls[MOST_LEVELS];
};

static const struct thread no_calls;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct thread));
} threads SEC(".maps");

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

/* How many of the calls lie farther down the stack than `place`, which is where a call begins. */
static __noinline __u32 calls_around(struct thread *thread, __u64 place)
{
	__u32 i;

	if (!thread)
		return 0;
	for (i = 0; i < MOST_LEVELS; i++) {
		if (i >= levels)
			break;
		if ((__s64)(thread->calls[i].place - place) <= 0)
			break;
	}
	return i;
}

static __always_inline int call_begins(__u64 place, __u32 function)
{
	struct thread *thread;
	struct call *call;
	__u32 key, depth;

	if (!filter_current())
		return 0;
	key = thread_key();
	thread = bpf_map_lookup_elem(&threads, &key);
	if (!thread) {
		map_insert(&threads, &key, &no_calls, BPF_NOEXIST);
		thread = bpf_map_lookup_elem(&threads, &key);
		if (!thread)
			return 0;
	}
	depth = READ_ONCE(thread->depth);
	if (depth && depth <= levels) {
		call = &thread->calls[depth - 1];
		/* The same call once more is one that was left by a jump, or whose end was missed.
		 */
		if (call->place == place && call->function == function)
			depth--;
	}
	if (depth >= levels) {
		depth = calls_around(thread, place);
		if (depth >= levels) {
			count_map_full();
			return 0;
		}
	}
	/* In this order: an interrupt that calls the function here is on top of this call. */
	WRITE_ONCE(thread->depth, depth + 1);
	call = &thread->calls[depth];
	call->place = place;
	call->function = function;
	call->start_ns = bpf_ktime_get_ns();
	return 0;
}

/* Which of the calls began at `place`: its index and one, or 0. */
static __noinline __u32 call_at(struct thread *thread, __u64 place)
{
	__u32 depth, i;

	if (!thread)
		return 0;
	depth = thread->depth;
	for (i = 0; i < MOST_LEVELS; i++) {
		depth--;
		if (depth >= levels)
			break;
		if (thread->calls[depth].place == place)
			return depth + 1;
	}
	return 0;
}

/* A call that was overtaken has ended: it and what lies free on top are no calls any more. */
static __noinline int call_forget(struct thread *thread, __u32 index)
{
	__u32 i;

	if (!thread || index >= levels)
		return 0;
	thread->calls[index].place = 0;
	for (i = 0; i < MOST_LEVELS; i++) {
		__u32 last = thread->depth - 1;

		if (last >= levels || thread->calls[last].place)
			break;
		thread->depth = last;
	}
	return 0;
}

static __always_inline int call_ends(__u64 place)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 key = thread_key();
	struct thread *thread = bpf_map_lookup_elem(&threads, &key);
	struct call *call;
	__u64 latency;
	__u32 last, function;

	if (!thread)
		return 0;
	last = thread->depth - 1;
	if (last >= levels)
		return 0;
	call = &thread->calls[last];
	if (call->place == place) {
		latency = now - call->start_ns;
		function = call->function;
		WRITE_ONCE(thread->depth, last);
	} else {
		last = call_at(thread, place) - 1;
		if (last >= levels)
			return 0;
		call = &thread->calls[last];
		latency = now - call->start_ns;
		function = call->function;
		/* A program may have gone on on another stack, where its calls have not ended. */
		if (of_programs)
			call_forget(thread, last);
		else
			WRITE_ONCE(thread->depth, last);
	}
	if ((__s64)latency < 0)
		latency = 0;

	__u64 value = ns_per_slot_unit == 1 ? latency : latency / ns_per_slot_unit;

	if (want_processes) {
		struct function_process group = {
			.function = function,
			.pid = current_ids() >> 32,
		};

		histogram_add(&process_latencies, &group, value, latency);
	} else {
		histogram_add(&latencies, &function, value, latency);
	}
	return 0;
}

/* Not when the thread exits, which still calls functions then, but when it is gone. */
SEC("raw_tp/sched_process_free")
int thread_free(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tid = BPF_CORE_READ((struct task_struct *)ctx->args[0], pid);

	bpf_map_delete_elem(&threads, &tid);
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
static __always_inline bool is_first(__u64 place, bool is_twin)
{
	return twin_first((__u32)bpf_get_current_pid_tgid() + (__u32)(place >> 14) * 31, is_twin);
}

SEC("fentry/FUNCTION")
int enter__fentry(void *ctx)
{
	__u64 place = place_of(ctx);

	return is_first(place, false) ? call_begins(place, 0) : 0;
}

SEC("fentry/FUNCTION")
int enter_twin__fentry(void *ctx)
{
	__u64 place = place_of(ctx);

	return is_first(place, true) ? call_begins(place, 0) : 0;
}

SEC("fexit/FUNCTION")
int exit__fentry(void *ctx)
{
	__u64 place = place_of(ctx);

	return is_first(place, false) ? call_ends(place) : 0;
}

SEC("fexit/FUNCTION")
int exit_twin__fentry(void *ctx)
{
	__u64 place = place_of(ctx);

	return is_first(place, true) ? call_ends(place) : 0;
}

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
		return call_begins(PT_REGS_SP(ctx), function_number(ctx, address));                \
	}                                                                                          \
                                                                                                   \
	SEC(return_section)                                                                        \
	int exit__##way(struct pt_regs *ctx)                                                       \
	{                                                                                          \
		return call_ends(place_on_return(ctx));                                            \
	}

PROBES(kprobe_multi, "kprobe.multi", "kretprobe.multi", 0)
PROBES(kprobe, "kprobe", "kretprobe", kernel_address(ctx))
PROBES(uprobe_multi, "uprobe.multi", "uretprobe.multi", 0)
PROBES(uprobe, "uprobe", "uretprobe", PT_REGS_IP(ctx))
