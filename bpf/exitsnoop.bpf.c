// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Processes and threads that end: when, why, how old, and what they have used.
 *
 * Ways: btf, rawtp. Both have the same tracepoint, which runs in the task that ends. With the typed
 * one the task is read directly, and threads are gone through by bpf_loop().
 *
 * A process has ended when its last thread has, and that need not be the first one.
 */
#include "bpfscope.h"
#include "events.h"
#include "filter.h"
#include "twin.h"

/* include/linux/sched/signal.h */
#define SIGNAL_GROUP_EXIT 0x00000004

/* Threads that are looked at when a process ends; the others have long been added up. */
#define LEFT_THREADS 64

const volatile bool want_threads = false;
const volatile bool want_failed_only = false;

struct usage {
	/* Time on CPUs, and the ticks that were found in user space and in the kernel. */
	__u64 cpu_ns;
	__u64 user_ns;
	__u64 system_ns;
	__u64 minor_faults;
	__u64 major_faults;
	__u64 voluntary;
	__u64 involuntary;
	/* From and to storage. */
	__u64 read_bytes;
	__u64 write_bytes;
};

struct event {
	struct event_head head;
	struct usage usage;
	__u64 start_boot_ns;
	__u64 max_rss_pages;
	/* As wait() has it: status << 8, or 0x80 for a core and the signal. */
	__u32 status;
	__u8 process_ended;
	__u8 usage_known;
	__u8 io_known;
	__u8 pad;
	char parent_comm[TASK_COMM_LEN];
};
EXPORT_STRUCT(event);

/* Says itself which thread is the last since 6.16 ("exit: move and extend sched_process_exit()").
 */
typedef void (*btf_trace_sched_process_exit___dead)(void *, struct task_struct *, bool);

/* Processes of several threads that were found to have ended, by their first thread. */
struct process_key {
	__u64 leader;
	__u64 start_boot_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct process_key);
	__type(value, __u8);
} ended SEC(".maps");

#define task_read(typed, from, field) ((typed) ? (from)->field : BPF_CORE_READ(from, field))

static __always_inline struct task_struct *listed_task(struct list_head *at)
{
	return (void *)at - bpf_core_field_offset(struct task_struct, thread_node);
}

static __always_inline void add_thread(struct usage *usage, struct task_struct *task, bool typed)
{
	usage->cpu_ns += task_read(typed, task, se.sum_exec_runtime);
	usage->user_ns += task_read(typed, task, utime);
	usage->system_ns += task_read(typed, task, stime);
	usage->minor_faults += task_read(typed, task, min_flt);
	usage->major_faults += task_read(typed, task, maj_flt);
	usage->voluntary += task_read(typed, task, nvcsw);
	usage->involuntary += task_read(typed, task, nivcsw);
	/* CONFIG_TASK_IO_ACCOUNTING */
	if (bpf_core_field_exists(task->ioac.read_bytes)) {
		barrier_var(task);
		usage->read_bytes += task_read(typed, task, ioac.read_bytes);
		usage->write_bytes += task_read(typed, task, ioac.write_bytes);
	}
}

/* What the threads that are gone have left. */
static __always_inline void add_gone(struct usage *usage, struct signal_struct *signal, bool typed)
{
	usage->cpu_ns += task_read(typed, signal, sum_sched_runtime);
	usage->user_ns += task_read(typed, signal, utime);
	usage->system_ns += task_read(typed, signal, stime);
	usage->minor_faults += task_read(typed, signal, min_flt);
	usage->major_faults += task_read(typed, signal, maj_flt);
	usage->voluntary += task_read(typed, signal, nvcsw);
	usage->involuntary += task_read(typed, signal, nivcsw);
	if (bpf_core_field_exists(signal->ioac.read_bytes)) {
		barrier_var(signal);
		usage->read_bytes += task_read(typed, signal, ioac.read_bytes);
		usage->write_bytes += task_read(typed, signal, ioac.write_bytes);
	}
}

static __always_inline __u32 stats_sequence(struct signal_struct *signal)
{
	return BPF_CORE_READ(signal, stats_lock.seqcount.seqcount.sequence);
}

/* A walk along the threads of a process that are still listed. */
struct walk {
	struct usage sum;
	struct list_head *at;
	unsigned long head;
	/* One could not be read. Not a bool, which for the verifier can be up to 255. */
	__u32 broken;
	/* One has not come as far as the current one. */
	__u32 living;
};

static __always_inline void walk_begins(struct walk *walk, struct signal_struct *signal)
{
	walk->at = BPF_CORE_READ(signal, thread_head.next);
	walk->head = (unsigned long)&signal->thread_head;
}

static __always_inline bool walk_is_over(const struct walk *walk)
{
	return (unsigned long)walk->at == walk->head;
}

static __always_inline void walk_goes_on(struct walk *walk)
{
	struct list_head *at = walk->at;

	if (bpf_core_read(&walk->at, sizeof(walk->at), &at->next))
		walk->broken = true;
}

/* Steps, as bpf_loop() asks for them; 1 = no further. */
static long step_adds(__u32 number, struct walk *walk)
{
	if (walk_is_over(walk))
		return 1;
	add_thread(&walk->sum, listed_task(walk->at), false);
	walk_goes_on(walk);
	return walk->broken != 0;
}

static long step_looks(__u32 number, struct walk *walk)
{
	struct task_struct *task = listed_task(walk->at);

	if (walk_is_over(walk))
		return 1;
	if (BPF_CORE_READ(task, mm))
		walk->living = true;
	else
		walk_goes_on(walk);
	return (walk->living | walk->broken) != 0;
}

/*
 * With the helper, which is there since e6f2dd0f8067 "bpf: Add bpf_loop helper" (5.17), the
 * verifier looks at a step once. Through a loop it goes as often as the loop can run.
 */
#define WALK(with_helper, walk, step)                                                              \
	do {                                                                                       \
		if (with_helper) {                                                                 \
			bpf_loop(LEFT_THREADS, step, walk, 0);                                     \
			break;                                                                     \
		}                                                                                  \
		for (int i = 0; i < LEFT_THREADS && !step(i, walk); i++)                           \
			;                                                                          \
	} while (0)

/*
 * Whether all threads that are still listed have come as far as the current one: their memory has
 * been taken from them, right before the tracepoint, and their exit codes stand. One that has not
 * comes here later.
 */
static __always_inline bool others_have_ended(struct signal_struct *signal, bool with_helper)
{
	struct walk walk = {};

	walk_begins(&walk, signal);
	WALK(with_helper, &walk, step_looks);
	return !walk.living;
}

/*
 * All threads of a process that has had several. One that is collected at this moment changes from
 * the one sum to the other, under a lock whose counter tells; false if that happened.
 */
static __always_inline bool add_process(struct usage *usage, struct signal_struct *signal,
					bool with_helper)
{
	__u32 sequence = stats_sequence(signal);
	struct walk walk = {};

	add_gone(&walk.sum, signal, false);
	walk_begins(&walk, signal);
	WALK(with_helper, &walk, step_adds);
	*usage = walk.sum;
	return walk_is_over(&walk) && !(sequence & 1) && stats_sequence(signal) == sequence;
}

/* Each way has its own. */
#define WALKS(way, with_helper)                                                                    \
	static __noinline bool others_have_ended__##way(struct signal_struct *signal)              \
	{                                                                                          \
		return others_have_ended(signal, with_helper);                                     \
	}                                                                                          \
	static __noinline bool add_process__##way(struct usage *usage,                             \
						  struct signal_struct *signal)                    \
	{                                                                                          \
		return add_process(usage, signal, with_helper);                                    \
	}

WALKS(btf, true)
WALKS(rawtp, false)

/*
 * Whether the current thread is the last of its process. Where the tracepoint does not say it: the
 * threads that live are counted down before, so of several that end at the same time none knows
 * who came last. Who finds all of them here speaks for them, unless another one has.
 */
static __always_inline bool is_last(__u64 *ctx, struct task_struct *leader,
				    struct signal_struct *signal, bool typed)
{
	if (bpf_core_type_exists(btf_trace_sched_process_exit___dead))
		return (__u8)ctx[1];
	if (task_read(typed, signal, live.counter))
		return false;
	struct process_key key = {
		.leader = (__u64)leader,
		.start_boot_ns = task_read(typed, leader, start_boottime),
	};
	__u8 one = 1;

	/* Nobody else is there any more who could say it. */
	if (task_read(typed, signal, nr_threads) == 1)
		return !bpf_map_lookup_elem(&ended, &key);
	if (!(typed ? others_have_ended__btf(signal) : others_have_ended__rawtp(signal)))
		return false;
	return map_insert(&ended, &key, &one, BPF_NOEXIST) == 0;
}

static __always_inline bool process_added(struct usage *usage, struct signal_struct *signal,
					  bool typed)
{
	return typed ? add_process__btf(usage, signal) : add_process__rawtp(usage, signal);
}

static __always_inline int exited(__u64 *ctx, bool typed, bool is_twin)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	if (!twin_first(tid, is_twin))
		return 0;

	struct signal_struct *signal = task_read(typed, task, signal);
	struct task_struct *leader = task_read(typed, task, group_leader);
	bool is_leader = tid == bpf_get_current_pid_tgid() >> 32;
	__u32 status = task_read(typed, task, exit_code);
	bool last = is_last(ctx, leader, signal, typed);

	if (!want_threads) {
		if (!last)
			return 0;
		/*
		 * As wait_task_zombie() of kernel/exit.c decides. Since 6.0 the last thread has
		 * always set the flag ("signal: Guarantee that SIGNAL_GROUP_EXIT is set on process
		 * exit").
		 */
		if (task_read(typed, signal, flags) & SIGNAL_GROUP_EXIT)
			status = task_read(typed, signal, group_exit_code);
		else
			status = task_read(typed, leader, exit_code);
	}
	if (want_failed_only && !status)
		return 0;
	if (want_threads || is_leader ? !filter_current() : !filter_process(leader))
		return 0;

	struct event *event = event_reserve(struct event);

	if (!event)
		return 0;
	head_of_current(&event->head);
	__builtin_memset(&event->usage, 0, sizeof(event->usage));
	event->usage_known = true;
	if (want_threads) {
		event->start_boot_ns = task_read(typed, task, start_boottime);
		add_thread(&event->usage, task, typed);
	} else {
		event->start_boot_ns = task_read(typed, leader, start_boottime);
		if (!is_leader) {
			event->head.tid = event->head.pid;
			event->head.host_tid = event->head.host_pid;
			BPF_CORE_READ_STR_INTO(&event->head.comm, leader, comm);
		}
		if (task_read(typed, signal, nr_threads) == 1) {
			add_gone(&event->usage, signal, typed);
			add_thread(&event->usage, task, typed);
		} else if (!process_added(&event->usage, signal, typed) &&
			   !process_added(&event->usage, signal, typed)) {
			event->usage_known = false;
		}
	}
	event->io_known = bpf_core_field_exists(task->ioac.read_bytes);
	event->max_rss_pages = last ? task_read(typed, signal, maxrss) : 0;
	event->status = status;
	event->process_ended = last;
	event->pad = 0;
	BPF_CORE_READ_STR_INTO(&event->parent_comm, task, real_parent, comm);
	event_submit(event);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int exit__btf(__u64 *ctx)
{
	return exited(ctx, true, false);
}

SEC("tp_btf/sched_process_exit")
int exit_twin__btf(__u64 *ctx)
{
	return exited(ctx, true, true);
}

SEC("raw_tp/sched_process_exit")
int exit__rawtp(__u64 *ctx)
{
	return exited(ctx, false, false);
}

SEC("raw_tp/sched_process_exit")
int exit_twin__rawtp(__u64 *ctx)
{
	return exited(ctx, false, true);
}
