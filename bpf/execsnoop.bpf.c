// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * execsnoop: new programs and their arguments.
 *
 * sched_process_exec comes once for each exec that succeeded, whichever call or thread it came
 * from. By then the kernel has copied the arguments to the new stack, end to end: one read takes
 * them all. An exec that failed leaves nothing behind, so failures are taken where the system call
 * returns, from the caller's memory.
 */
#include "bpfscope.h"
#include "events.h"
#include "filter.h"
#include "syscall.h"
#include "twin.h"

#define PAGE_SIZE 4096
/* The kernel puts "/dev/fd/NUMBER/" in front of a path that is relative to a descriptor. */
#define PATH_ROOM (PATH_MAX + 32)

/* include/linux/errno.h: between these, the kernel makes the call again by itself. */
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516

/* include/uapi/linux/fcntl.h: only asks whether the file could be executed (6.14). */
#define AT_EXECVE_CHECK 0x10000

/* Bytes of arguments that are kept, and how many arguments of a failed exec. */
const volatile __u32 args_limit = 8192;
const volatile __u32 walk_limit = 20;

struct event {
	struct event_head head;
	/* 0, or a negative errno. */
	__s32 result;
	/* The thread that called: its id becomes that of the process. 0 = not known. */
	__u32 caller_tid;
	__u32 cpu;
	/* What the path of a failed exec is relative to; AT_FDCWD where it does not matter. */
	__s32 dirfd;
	/* Bytes after the struct: the path with its NUL; 0 = the path could not be read. */
	__u32 path_size;
	/* Then the interpreter with its NUL; 0 = the file was executed itself. */
	__u32 interpreter_size;
	/* Then the arguments, each with its NUL. */
	__u32 args_size;
	__u8 args_cut;
	__u8 args_unknown;
	__u8 path_cut;
	/* The interpreter also got the argv[0] that the caller gave. */
	__u8 keeps_argv0;
	/* Of the kernel side alone: the caller's argv and the bytes of a pointer in it. */
	__u64 argv;
	__u32 pointer_size;
	/* How many of the arguments could not be read: they are "?". */
	__u32 args_unread;
	char parent_comm[TASK_COMM_LEN];
};
EXPORT_STRUCT(event);

/*
 * Where an event is built: room for a path, an interpreter and one page. The user side makes the
 * value larger by the room for the arguments, twice args_limit.
 */
struct exec_slot {
	struct event event;
	char text[2 * PATH_ROOM + PAGE_SIZE];
};
EXPORT_STRUCT(exec_slot);

/*
 * One value a CPU, which the user side sees to as well, and for each program a map of its own (see
 * EVENT_SLOT). Not a per-CPU map, because those refuse values above 32 KiB.
 */
#define EXEC_SLOT(name)                                                                            \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                  \
		__uint(max_entries, 1);                                                            \
		__uint(key_size, sizeof(__u32));                                                   \
		__uint(value_size, sizeof(struct exec_slot));                                      \
	} name SEC(".maps")

EXEC_SLOT(slot_exec);
EXEC_SLOT(slot_exec_twin);
EXEC_SLOT(slot_failed_execve);
EXEC_SLOT(slot_failed_execveat);
EXEC_SLOT(slot_failed_compat_execve);
EXEC_SLOT(slot_failed_compat_execveat);

static __always_inline struct exec_slot *exec_slot(void *map)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct exec_slot *slot = bpf_map_lookup_elem(map, &cpu);

	if (!slot) {
		count_lost();
		return NULL;
	}

	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct event *event = &slot->event;

	head_of_current(&event->head);
	event->caller_tid = event->head.tid;
	event->cpu = cpu;
	event->dirfd = AT_FDCWD;
	event->result = 0;
	event->path_size = 0;
	event->interpreter_size = 0;
	event->args_size = 0;
	event->args_cut = 0;
	event->args_unknown = 0;
	event->path_cut = 0;
	event->keeps_argv0 = 0;
	event->argv = 0;
	event->pointer_size = 0;
	event->args_unread = 0;
	BPF_CORE_READ_STR_INTO(&event->parent_comm, task, real_parent, group_leader, comm);
	return slot;
}

/*
 * Sizes are taken from the event, whose contents the verifier does not follow: what comes after a
 * loop is then the same to it whichever way the loop ended.
 */
static __always_inline void send(struct exec_slot *slot)
{
	__u64 size = sizeof(slot->event) + READ_ONCE(slot->event.path_size) +
		     READ_ONCE(slot->event.interpreter_size) + READ_ONCE(slot->event.args_size);

	if (size <= sizeof(*slot) + args_limit)
		event_output(slot, size);
}

/* One unsigned comparison for both ends, which the 5.10 verifier follows: failures become 0. */
static __always_inline __u64 checked(__u64 size, __u64 room)
{
	barrier_var(size);
	return size <= room ? size : 0;
}

/* Reads a string with its NUL. Returns the size, at most room, or 0 when it could not be read. */
static __always_inline __u64 read_kernel_string(char *to, __u64 room, const char *from)
{
	return checked(bpf_probe_read_kernel_str(to, room, from), room);
}

static __always_inline __u64 read_user_string(char *to, __u64 room, __u64 from)
{
	long size = bpf_probe_read_user_str(to, room, (void *)from);

	/* 5.10 does not count the NUL of an empty string. */
	if (!size)
		return 1;
	return checked(size, room);
}

/* Nothing is known of the arguments, or of those after the first few. */
static __always_inline void mark_unknown(struct event *event, __u64 have)
{
	event->args_cut = have != 0;
	event->args_unknown = have == 0;
}

/* ---- success ---- */

/*
 * BINPRM_FLAGS_PRESERVE_ARGV0: 2347961b11d4 "binfmt_misc: pass binfmt_misc flags to the
 * interpreter", 5.12.
 */
#define PRESERVE_ARGV0 (1 << 3)

/*
 * Reads the new program's arguments to the text behind path and interpreter. The kernel has just
 * written these pages; should one be gone again already, what is before it is kept.
 */
static __always_inline void read_args(struct exec_slot *slot, struct mm_struct *mm)
{
	struct event *event = &slot->event;
	/* From the event for the reason that send() gives. */
	__u32 offset = READ_ONCE(event->path_size) + READ_ONCE(event->interpreter_size);
	char *text = slot->text + offset;
	__u64 start = BPF_CORE_READ(mm, arg_start);
	__u64 size = BPF_CORE_READ(mm, arg_end) - start;

	if (size > args_limit) {
		size = args_limit;
		event->args_cut = 1;
	}
	barrier_var(size);
	if (size > args_limit || offset > 2 * PATH_ROOM)
		return;
	if (!bpf_probe_read_user(text, size, (void *)start)) {
		event->args_size = size;
		return;
	}

	/* Page by page; what is behind the arguments in the last one is not sent. */
	__u64 page = PAGE_SIZE - (start & (PAGE_SIZE - 1));

	for (__u32 i = 0; i <= args_limit / PAGE_SIZE + 1; i++) {
		__u64 done = READ_ONCE(event->args_size);

		if (done >= size || done > args_limit) {
			event->args_size = size;
			return;
		}
		if (bpf_probe_read_user(text + done, i ? PAGE_SIZE : page,
					(void *)(start + done))) {
			mark_unknown(event, done);
			return;
		}
		event->args_size = done + (i ? PAGE_SIZE : page);
	}
}

static __always_inline int exec_done(void *map, __u32 old_tid, struct linux_binprm *bprm,
				     bool is_twin)
{
	if (!filter_current() || !twin_first(bpf_get_current_pid_tgid() >> 32, is_twin))
		return 0;

	struct exec_slot *slot = exec_slot(map);

	if (!slot)
		return 0;

	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct event *event = &slot->event;
	const char *filename = BPF_CORE_READ(bprm, filename);
	const char *interpreter = BPF_CORE_READ(bprm, interp);

	/* Which number the thread had in a PID namespace is not known any more. */
	if (!pidns_inode)
		event->caller_tid = old_tid;
	else if (old_tid != event->head.host_tid)
		event->caller_tid = 0;

	__u64 used = read_kernel_string(slot->text, PATH_ROOM, filename);

	event->path_size = used;
	event->path_cut = used == PATH_ROOM;
	if (interpreter != filename) {
		__u64 size = read_kernel_string(slot->text + used, PATH_ROOM, interpreter);

		event->interpreter_size = size;
		event->keeps_argv0 = !!(BPF_CORE_READ(bprm, interp_flags) & PRESERVE_ARGV0);
	}
	read_args(slot, BPF_CORE_READ(task, mm));
	send(slot);
	return 0;
}

/* Arguments: the task, the thread id it had before, struct linux_binprm. */
SEC("raw_tp/sched_process_exec")
int exec(struct bpf_raw_tracepoint_args *ctx)
{
	return exec_done(&slot_exec, (__u32)ctx->args[1], (struct linux_binprm *)ctx->args[2],
			 false);
}

SEC("raw_tp/sched_process_exec")
int exec_twin(struct bpf_raw_tracepoint_args *ctx)
{
	return exec_done(&slot_exec_twin, (__u32)ctx->args[1], (struct linux_binprm *)ctx->args[2],
			 true);
}

/* ---- failure ---- */

struct exec_call {
	__u64 path;
	__u64 argv;
	__s32 dirfd;
	__u32 flags;
};

/* The arguments of execve, or of execveat when is_at, from the caller's registers. */
static __always_inline void exec_call(struct exec_call *call, struct pt_regs *regs, bool is_at,
				      bool is_32bit)
{
	int first = is_at ? 1 : 0;

	call->dirfd = is_at ? (int)syscall_arg(regs, 0, is_32bit) : AT_FDCWD;
	call->path = syscall_arg(regs, first, is_32bit);
	call->argv = syscall_arg(regs, first + 1, is_32bit);
	call->flags = is_at ? (__u32)syscall_arg(regs, 4, is_32bit) : 0;
}

/*
 * Follows the caller's argv and puts the strings behind each other to the text behind the path,
 * where there is room for twice args_limit. The kernel itself need not have read them: since
 * 978ffcbf00d8 "execve: open the executable file before doing anything else" (6.8) it looks for the
 * file first. What is not in memory, say constants after a fork, cannot be read from here.
 */
static __always_inline void walk_args(struct exec_slot *slot)
{
	struct event *event = &slot->event;
	/* From the event for the reason that send() gives. */
	__u64 argv = READ_ONCE(event->argv);
	__u32 pointer_size = READ_ONCE(event->pointer_size);
	__u64 mask = ~0ULL >> (8 * (sizeof(__u64) - pointer_size));
	__u32 start = READ_ONCE(event->path_size);
	char *text = slot->text + start;

	/* The kernel takes no list for an empty one. */
	if (!argv || pointer_size > sizeof(__u64) || start > PATH_ROOM)
		return;
	for (__u32 i = 0; i < walk_limit; i++) {
		__u64 used = READ_ONCE(event->args_size);
		__u64 room = args_limit - used;
		__u32 low = 0, high = 0;

		if (used > args_limit)
			return;
		/*
		 * In halves, of which the second is the first again for a 32-bit caller: 6.1 loses
		 * sight of a variable size, and branches multiply what there is to verify.
		 */
		long unread = bpf_probe_read_user(&low, sizeof(low), (void *)argv);

		unread |= bpf_probe_read_user(&high, sizeof(high),
					      (void *)(argv + pointer_size - sizeof(high)));
		if (unread) {
			mark_unknown(event, i);
			return;
		}

		__u64 pointer = (((__u64)high << 32) | low) & mask;

		if (!pointer)
			return;

		/* One byte more tells a string that just fits from one that does not. */
		__u64 size = bpf_probe_read_user_str(text + used, room + 1, (void *)pointer);

		barrier_var(size);
		if (size - 1 > room) {
			/* Failed, or empty: see read_user_string(). */
			__u64 failed = size >> 63;

			event->args_unread += failed;
			text[used] = '?' * failed;
			text[used + 1] = 0;
			size = 1 + failed;
		}
		if (size > room) {
			event->args_size = args_limit;
			event->args_cut = 1;
			return;
		}
		event->args_size = used + size;
		argv += pointer_size;
	}
	event->args_cut = 1;
}

static __always_inline int exec_failed(void *map, struct pt_regs *regs, bool is_at, bool is_32bit,
				       long result)
{
	struct exec_call call;

	if (result >= 0 || (result <= -ERESTARTSYS && result >= -ERESTART_RESTARTBLOCK))
		return 0;
	exec_call(&call, regs, is_at, is_32bit);
	if ((call.flags & AT_EXECVE_CHECK) || !filter_current())
		return 0;

	struct exec_slot *slot = exec_slot(map);

	if (!slot)
		return 0;

	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct event *event = &slot->event;

	event->result = result;
	event->dirfd = call.dirfd;
	event->argv = call.argv;
	event->pointer_size = is_32bit ? sizeof(__u32) : sizeof(__u64);
	/*
	 * Without an end of arguments this is the memory of a new program that failed after the
	 * old one was gone: the process is being killed, and the pointers mean nothing here.
	 */
	if (!BPF_CORE_READ(task, mm, arg_end)) {
		event->args_unknown = 1;
	} else {
		__u64 used = read_user_string(slot->text, PATH_ROOM, call.path);

		event->path_size = used;
		event->path_cut = used == PATH_ROOM;
		walk_args(slot);
	}
	send(slot);
	return 0;
}

/*
 * ---- way kprobe ----
 *
 * And none by fexit: an exec can wait, and those that go on together find the programs of fexit in
 * use, where the kernel is preemptible. A return probe's program is not preempted.
 */

/* Thread to the caller's registers, which are on its kernel stack until the call is over. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u64);
} calls__kprobe SEC(".maps");

static __always_inline int exec_enter(struct pt_regs *regs)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u64 address = (__u64)regs;

	if (filter_current())
		map_insert(&calls__kprobe, &tid, &address, BPF_ANY);
	return 0;
}

static __always_inline int exec_return(void *map, bool is_at, bool is_32bit, long result)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u64 *found = bpf_map_lookup_elem(&calls__kprobe, &tid);

	if (!found)
		return 0;

	struct pt_regs *regs = (struct pt_regs *)*found;

	bpf_map_delete_elem(&calls__kprobe, &tid);
	return exec_failed(map, regs, is_at, is_32bit, result);
}

/* A thread that is not the first returns under another id: its entry goes here. */
SEC("raw_tp/sched_process_exec")
int exec__kprobe(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 old_tid = ctx->args[1];

	bpf_map_delete_elem(&calls__kprobe, &old_tid);
	return exec_done(&slot_exec, old_tid, (struct linux_binprm *)ctx->args[2], false);
}

#define FAILED_KPROBE(name, function, is_at, is_32bit)                                             \
	SEC("kprobe/" function)                                                                    \
	int BPF_KPROBE(name##_enter__kprobe, struct pt_regs *regs)                                 \
	{                                                                                          \
		return exec_enter(regs);                                                           \
	}                                                                                          \
                                                                                                   \
	SEC("kretprobe/" function)                                                                 \
	int BPF_KRETPROBE(name##_exit__kprobe, long result)                                        \
	{                                                                                          \
		return exec_return(&slot_failed_##name, is_at, is_32bit, result);                  \
	}

FAILED_KPROBE(execve, SYSCALL_NATIVE "execve", false, false)
FAILED_KPROBE(execveat, SYSCALL_NATIVE "execveat", true, false)
FAILED_KPROBE(compat_execve, SYSCALL_COMPAT "execve", false, true)
FAILED_KPROBE(compat_execveat, SYSCALL_COMPAT "execveat", true, true)

/* ---- way rawtp ---- */

SEC("raw_tp/sys_exit")
int exec_exit__rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx->args[0];
	long result = (long)ctx->args[1];

	if (result >= 0)
		return 0;

	long number = syscall_number(regs);
	bool is_32bit = syscall_is_32bit();

	bool is_at = number == (is_32bit ? NR32_execveat : NR_execveat);

	if (!is_at && number != (is_32bit ? NR32_execve : NR_execve))
		return 0;
	return exec_failed(&slot_failed_execve, regs, is_at, is_32bit, result);
}
