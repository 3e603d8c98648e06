// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * opensnoop: opens and their results.
 *
 * open, openat, openat2 and creat, of 64-bit and 32-bit callers, all end in do_sys_openat2(),
 * which has the path pointer, the flags and the result together. io_uring has its own way in,
 * io_openat2(). Where no kernel function can be probed, sys_exit and the io_uring tracepoints see
 * the same opens at a higher price.
 */
#include "bpfscope.h"
#include "events.h"
#include "filter.h"
#include "path.h"
#include "syscall.h"
#include "twin.h"

#define EAGAIN 11
#define PF_IO_WORKER 0x00000010
/* Bytes of a caller's stack: eight frames. */
#define USER_STACK 64

const volatile bool want_failed_only = false;
const volatile bool want_stack = false;
/* Bits of which at least one must be in the flags; 0 = any open. */
const volatile __u32 want_flags = 0;

struct event {
	struct event_head head;
	/* The descriptor, or a negative errno. */
	__s32 result;
	__s32 dirfd;
	__u32 flags;
	/* Permission bits; meaningless unless the open may create a file. */
	__u32 mode;
	/* Bytes after the struct: the path with its NUL; 0 = the path could not be read. */
	__u32 path_size;
	/* Then the names of the directory it is relative to, leaf first, each with its NUL. */
	__u32 base_size;
	/* Then the return addresses of the caller, leaf first, eight bytes each. */
	__u32 stack_size;
	__u8 base_cut;
	__u8 via_uring;
	__u8 pad[2];
};
EXPORT_STRUCT(event);

/* Room for a path, for the directory's names with one name's overhang, and for a stack. */
struct open_slot {
	struct event event;
	char text[2 * PATH_MAX + NAME_MAX + 1 + USER_STACK];
};

/* One slot a program: see EVENT_SLOT. */
EVENT_SLOT(slot_exit, struct open_slot);
EVENT_SLOT(slot_twin__fexit, struct open_slot);

static __always_inline bool flags_wanted(__u32 flags)
{
	return !want_flags || (flags & want_flags);
}

/* Fills in what both kinds of callers have in common. */
static __always_inline void describe(struct event *event, int dirfd, __u64 flags, __u64 mode)
{
	event->dirfd = dirfd;
	/* The kernel adds O_LARGEFILE for 64-bit callers; nobody asked for it. */
	event->flags = (__u32)flags & ~O_LARGEFILE;
	event->mode = mode & 07777;
	event->path_size = 0;
	event->base_size = 0;
	event->stack_size = 0;
	event->base_cut = 0;
	event->via_uring = 0;
}

/* The directory's names behind the path, where it is relative and the user asked for it. */
static __always_inline void add_base(struct open_slot *slot, int dirfd)
{
	__u32 path_size = slot->event.path_size;
	struct path base = {};

	if (path_size < 2 || slot->text[0] == '/')
		return;
	if (!path_base(dirfd, &base))
		return;
	if (path_size > PATH_MAX)
		return;
	path_names(&base, slot->text + path_size, PATH_MAX, &slot->event.base_size,
		   &slot->event.base_cut);
}

static __always_inline void add_stack(void *ctx, struct open_slot *slot)
{
	__u64 offset = slot->event.path_size + slot->event.base_size;

	if (!want_stack || offset > sizeof(slot->text) - USER_STACK)
		return;

	long bytes = bpf_get_stack(ctx, slot->text + offset, USER_STACK, BPF_F_USER_STACK);

	slot->event.stack_size = bytes > 0 ? bytes : 0;
}

static __always_inline void send(struct open_slot *slot)
{
	__u64 size = sizeof(slot->event) + slot->event.path_size + slot->event.base_size +
		     slot->event.stack_size;

	if (size <= sizeof(*slot))
		event_output(slot, size);
}

/* An open is over: path is the caller's pointer, read now because the kernel has read it too. */
static __always_inline int open_done(void *ctx, void *slot_map, bool full, int dirfd,
				     const char *path, __u64 flags, __u64 mode, int result)
{
	struct open_slot *slot = event_slot(slot_map);

	if (!slot)
		return 0;

	struct event *event = &slot->event;

	head_of_current(&event->head);
	describe(event, dirfd, flags, mode);
	event->result = result;

	long size = bpf_probe_read_user_str(slot->text, PATH_MAX, path);

	/* 5.10 says 0 of an empty string, newer kernels 1, for its NUL. */
	if (size == 0) {
		slot->text[0] = 0;
		size = 1;
	}
	if (size > 0)
		event->path_size = size;
	if (full)
		add_base(slot, dirfd);
	add_stack(ctx, slot);
	send(slot);
	return 0;
}

static __always_inline bool wanted(__u64 flags, int result)
{
	if (want_failed_only && result >= 0)
		return false;
	return flags_wanted(flags) && filter_current();
}

/*
 * Following a path across mounts is a third of a program, and of what loading it costs. So each
 * program is there twice, and the one that does it ("full") is loaded only for -F.
 */

/* ---- way fexit ---- */

/* The result is read as an int: it is a long until 6.x and an int in 7.x, without a sign above. */
#define OPEN_FEXIT(name, slot, full, is_twin)                                                      \
	SEC("fexit/do_sys_openat2")                                                                \
	int BPF_PROG(name, int dirfd, const char *path, struct open_how *how, int result)          \
	{                                                                                          \
		__u32 tid = (__u32)bpf_get_current_pid_tgid();                                     \
                                                                                                   \
		if (!wanted(how->flags, result) || !twin_first(tid, is_twin))                      \
			return 0;                                                                  \
		return open_done(ctx, slot, full, dirfd, path, how->flags, how->mode, result);     \
	}

OPEN_FEXIT(open__fexit, &slot_exit, false, false)
OPEN_FEXIT(open_twin__fexit, &slot_twin__fexit, false, true)
OPEN_FEXIT(open_full__fexit, &slot_exit, true, false)
OPEN_FEXIT(open_full_twin__fexit, &slot_twin__fexit, true, true)

/* ---- way kprobe ---- */

struct open_args {
	__u64 path;
	__u64 flags;
	__u32 mode;
	__s32 dirfd;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct open_args);
} open_args__kprobe SEC(".maps");

SEC("kprobe/do_sys_openat2")
int BPF_KPROBE(open_enter__kprobe, int dirfd, const char *path, struct open_how *how)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct open_args args = { .path = (__u64)path, .dirfd = dirfd };

	args.flags = BPF_CORE_READ(how, flags);
	args.mode = BPF_CORE_READ(how, mode);
	if (flags_wanted(args.flags) && filter_current())
		map_insert(&open_args__kprobe, &tid, &args, BPF_ANY);
	return 0;
}

static __always_inline int open_returns(void *ctx, bool full, int result)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct open_args *found = bpf_map_lookup_elem(&open_args__kprobe, &tid);

	if (!found)
		return 0;

	struct open_args args = *found;

	bpf_map_delete_elem(&open_args__kprobe, &tid);
	if (!wanted(args.flags, result))
		return 0;
	return open_done(ctx, &slot_exit, full, args.dirfd, (const char *)args.path, args.flags,
			 args.mode, result);
}

SEC("kretprobe/do_sys_openat2")
int BPF_KRETPROBE(open_exit__kprobe, int result)
{
	return open_returns(ctx, false, result);
}

SEC("kretprobe/do_sys_openat2")
int BPF_KRETPROBE(open_exit_full__kprobe, int result)
{
	return open_returns(ctx, true, result);
}

/* ---- io_uring, by its functions ---- */

/*
 * Before 5.19 the request held every operation's arguments in a union (f2ccb5aed7bc "io_uring:
 * make io_kiocb_to_cmd() typesafe" and its series moved them to a command area).
 */
struct io_open___before_cmd {
	int dfd;
	struct filename *filename;
	struct open_how how;
} __attribute__((preserve_access_index));

struct io_kiocb___before_cmd {
	struct io_open___before_cmd open;
	__u32 result;
	__u64 user_data;
} __attribute__((preserve_access_index));

/* Until 7.0 the name was a plain pointer; then struct delayed_filename around it. */
struct io_open___plain_name {
	struct filename *filename;
} __attribute__((preserve_access_index));

struct io_cqe___signed {
	__s32 res;
} __attribute__((preserve_access_index));

/* An io_uring open between its two ends: the path is gone from the kernel when it is over. */
struct uring_open {
	/* struct io_kiocb *, kept out of the generated types. */
	__u64 request;
	__u64 user_data;
	__s32 result;
	__u32 have_result;
	struct open_slot slot;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u64);
	__type(value, struct uring_open);
} uring_opens SEC(".maps");

EVENT_SLOT(slot_uring_enter, struct uring_open);

static __always_inline bool uring_has_cmd(void)
{
	return bpf_core_field_exists(struct io_kiocb, cmd);
}

/* Remembers the open of this request under key. */
static __always_inline int uring_begin(void *ctx, bool full, struct io_kiocb *request, __u64 key)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct task_struct *leader = BPF_CORE_READ(task, group_leader);
	bool worker = BPF_CORE_READ(task, flags) & PF_IO_WORKER;
	struct filename *filename = NULL;
	struct open_how how = {};
	int dirfd;

	/* A worker acts for its process, under a name of its own ("iou-wrk-PID"). */
	if (!filter_task(worker ? leader : task))
		return 0;

	struct uring_open *open = event_slot(&slot_uring_enter);

	if (!open)
		return 0;

	if (uring_has_cmd()) {
		struct io_open *cmd = (void *)request + bpf_core_field_offset(struct io_kiocb, cmd);

		if (bpf_core_type_exists(struct delayed_filename)) {
			filename = BPF_CORE_READ(cmd, filename.__incomplete_filename);
		} else {
			struct io_open___plain_name *plain = (void *)cmd;

			filename = BPF_CORE_READ(plain, filename);
		}
		BPF_CORE_READ_INTO(&how, cmd, how);
		dirfd = BPF_CORE_READ(cmd, dfd);
	} else {
		struct io_kiocb___before_cmd *old = (void *)request;

		filename = BPF_CORE_READ(old, open.filename);
		BPF_CORE_READ_INTO(&how, old, open.how);
		dirfd = BPF_CORE_READ(old, open.dfd);
		open->user_data = BPF_CORE_READ(old, user_data);
	}
	if (!flags_wanted(how.flags))
		return 0;

	open->request = (__u64)request;
	open->have_result = 0;

	struct event *event = &open->slot.event;

	head_of_current(&event->head);
	if (worker)
		BPF_CORE_READ_STR_INTO(&event->head.comm, leader, comm);
	describe(event, dirfd, how.flags, how.mode);
	event->via_uring = 1;

	long size =
		bpf_probe_read_kernel_str(open->slot.text, PATH_MAX, BPF_CORE_READ(filename, name));

	if (size > 0)
		event->path_size = size;
	if (full)
		add_base(&open->slot, dirfd);
	add_stack(ctx, &open->slot);
	map_insert(&uring_opens, &key, open, BPF_ANY);
	return 0;
}

static __always_inline int uring_end(struct uring_open *open, __u64 key, int result)
{
	if (!want_failed_only || result < 0) {
		open->slot.event.result = result;
		open->slot.event.head.boot_ns = bpf_ktime_get_boot_ns();
		send(&open->slot);
	}
	bpf_map_delete_elem(&uring_opens, &key);
	return 0;
}

static __always_inline int uring_result(struct io_kiocb *request)
{
	struct io_cqe___signed *cqe = (void *)request + bpf_core_field_offset(struct io_kiocb, cqe);

	return BPF_CORE_READ(cqe, res);
}

/* io_openat2() has returned: -EAGAIN means that a worker will try again. */
static __always_inline int uring_return(int returned)
{
	__u64 key = bpf_get_current_pid_tgid();
	struct uring_open *open = bpf_map_lookup_elem(&uring_opens, &key);

	if (!open)
		return 0;
	if (returned == -EAGAIN) {
		bpf_map_delete_elem(&uring_opens, &key);
		return 0;
	}
	if (uring_has_cmd())
		return uring_end(open, key, uring_result((struct io_kiocb *)open->request));
	if (open->have_result)
		return uring_end(open, key, open->result);

	struct io_kiocb___before_cmd *old = (void *)open->request;

	return uring_end(open, key, BPF_CORE_READ(old, result));
}

SEC("fentry/io_openat2")
int BPF_PROG(uring_enter__fexit, struct io_kiocb *request)
{
	return uring_begin(ctx, false, request, bpf_get_current_pid_tgid());
}

SEC("fentry/io_openat2")
int BPF_PROG(uring_enter_full__fexit, struct io_kiocb *request)
{
	return uring_begin(ctx, true, request, bpf_get_current_pid_tgid());
}

SEC("fexit/io_openat2")
int BPF_PROG(uring_exit__fexit, struct io_kiocb *request, unsigned int issue_flags, int result)
{
	return uring_return(result);
}

SEC("kprobe/io_openat2")
int BPF_KPROBE(uring_enter__kprobe, struct io_kiocb *request)
{
	return uring_begin(ctx, false, request, bpf_get_current_pid_tgid());
}

SEC("kprobe/io_openat2")
int BPF_KPROBE(uring_enter_full__kprobe, struct io_kiocb *request)
{
	return uring_begin(ctx, true, request, bpf_get_current_pid_tgid());
}

SEC("kretprobe/io_openat2")
int BPF_KRETPROBE(uring_exit__kprobe, int result)
{
	return uring_return(result);
}

/*
 * Kernels whose requests do not keep the result (5.10, 5.15) tell it only here, while
 * io_openat2() is still running.
 */
SEC("raw_tp/io_uring_complete")
int uring_complete__old(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 key = bpf_get_current_pid_tgid();
	struct uring_open *open = bpf_map_lookup_elem(&uring_opens, &key);

	/* Arguments there: the ring, user_data, result, … */
	if (open && open->user_data == ctx->args[1]) {
		open->result = (int)ctx->args[2];
		open->have_result = 1;
	}
	return 0;
}

/* ---- way rawtp ---- */

static __always_inline int any_returns(struct bpf_raw_tracepoint_args *ctx, bool full)
{
	struct pt_regs *regs = (struct pt_regs *)ctx->args[0];
	long result = (long)ctx->args[1];
	long number = syscall_number(regs);
	bool is_32bit = syscall_is_32bit();
	int path_index = 1;
	struct open_how how = {};

	if (number == (is_32bit ? NR32_openat : NR_openat)) {
		how.flags = syscall_arg(regs, 2, is_32bit);
		how.mode = syscall_arg(regs, 3, is_32bit);
	} else if (number == (is_32bit ? NR32_open : NR_open)) {
		path_index = 0;
		how.flags = syscall_arg(regs, 1, is_32bit);
		how.mode = syscall_arg(regs, 2, is_32bit);
	} else if (number == (is_32bit ? NR32_creat : NR_creat)) {
		path_index = 0;
		how.flags = 01101; /* O_CREAT | O_WRONLY | O_TRUNC */
		how.mode = syscall_arg(regs, 1, is_32bit);
	} else if (number == (is_32bit ? NR32_openat2 : NR_openat2)) {
		bpf_probe_read_user(&how, sizeof(how), (void *)syscall_arg(regs, 2, is_32bit));
	} else {
		return 0;
	}

	int dirfd = path_index ? (int)syscall_arg(regs, 0, is_32bit) : AT_FDCWD;

	if (!wanted(how.flags, result))
		return 0;
	return open_done(ctx, &slot_exit, full, dirfd,
			 (const char *)syscall_arg(regs, path_index, is_32bit), how.flags, how.mode,
			 result);
}

SEC("raw_tp/sys_exit")
int open_exit__rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return any_returns(ctx, false);
}

SEC("raw_tp/sys_exit")
int open_exit_full__rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return any_returns(ctx, true);
}

static __always_inline int uring_submitted(struct bpf_raw_tracepoint_args *ctx, bool full)
{
	struct io_kiocb *request = (struct io_kiocb *)ctx->args[0];
	__u8 opcode = BPF_CORE_READ(request, opcode);

	if (opcode != bpf_core_enum_value(enum io_uring_op, IORING_OP_OPENAT) &&
	    opcode != bpf_core_enum_value(enum io_uring_op, IORING_OP_OPENAT2))
		return 0;
	return uring_begin(ctx, full, request, (__u64)request);
}

SEC("raw_tp/io_uring_submit_req")
int uring_submit__rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return uring_submitted(ctx, false);
}

SEC("raw_tp/io_uring_submit_req")
int uring_submit_full__rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return uring_submitted(ctx, true);
}

SEC("raw_tp/io_uring_complete")
int uring_complete__rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	/* Arguments since 5.18: the ring, the request, … */
	struct io_kiocb *request = (struct io_kiocb *)ctx->args[1];
	__u64 key = (__u64)request;
	struct uring_open *open = bpf_map_lookup_elem(&uring_opens, &key);

	if (!open)
		return 0;
	return uring_end(open, key, uring_result(request));
}
