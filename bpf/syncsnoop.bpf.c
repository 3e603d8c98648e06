// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * syncsnoop: calls that write out what is cached, and how long they took.
 *
 * The functions that these calls share (do_fsync(), vfs_fsync_range()) are inlined in some kernels,
 * and others than these calls pass them too: writes with O_SYNC, kernel threads. So each call is
 * hooked where it comes in, which is one function for 64-bit callers and mostly another one for
 * 32-bit callers. Where no kernel function can be probed, sys_enter and sys_exit see the same calls
 * at a higher price.
 *
 * By kprobes and not by fentry and fexit, which would cost less: on a preemptible kernel (twin.h)
 * threads that sync without pause stop in the middle of these so often that twins are both skipped.
 * Kprobes run with preemption off. Beside what a call does, the difference is small.
 */
#include "bpfscope.h"
#include "events.h"
#include "filter.h"
#include "path.h"
#include "syscall.h"

/* In the order of their names in syncsnoop.rs. */
enum call_kind {
	CALL_SYNC,
	CALL_FSYNC,
	CALL_FDATASYNC,
	CALL_MSYNC,
	CALL_SYNCFS,
	CALL_SYNC_FILE_RANGE,
	CALL_ARM_SYNC_FILE_RANGE,
	CALL_OTHER,
};

struct event {
	struct event_head head;
	__u64 lat_ns;
	/* Of msync an address, of sync_file_range a position in the file. */
	__u64 begin;
	__u64 size;
	/* 0, or a negative errno. */
	__s32 result;
	__s32 fd;
	__u32 flags;
	/* Bytes after the struct: the names of the file, leaf first, each with its NUL. */
	__u32 path_size;
	__u8 kind;
	/* Names are missing; without any names, there is no path. */
	__u8 path_cut;
	__u8 pad[6];
};
EXPORT_STRUCT(event);

/* Room for the names with one name's overhang. */
struct sync_slot {
	struct event event;
	char names[PATH_MAX + NAME_MAX + 1];
};

/* A call that has not returned. */
struct call {
	__u64 start_ns;
	/* struct file *, kept out of the generated types. */
	__u64 file;
	__u64 begin;
	__u64 size;
	__s32 fd;
	__u32 flags;
	__u64 kind;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct call);
} calls SEC(".maps");

static __always_inline __u64 two_words(struct pt_regs *regs, int index)
{
	return syscall_arg(regs, index, true) | syscall_arg(regs, index + 1, true) << 32;
}

/* A 32-bit caller hands over each 64-bit number as two words. */
static __always_inline void read_range(struct call *call, struct pt_regs *regs, bool is_32bit)
{
	if (call->kind == CALL_ARM_SYNC_FILE_RANGE) {
		call->flags = syscall_arg(regs, 1, true);
		call->begin = two_words(regs, 2);
		call->size = two_words(regs, 4);
	} else if (is_32bit) {
		call->begin = two_words(regs, 1);
		call->size = two_words(regs, 3);
		call->flags = syscall_arg(regs, 5, true);
	} else {
		call->begin = syscall_arg(regs, 1, false);
		call->size = syscall_arg(regs, 2, false);
		call->flags = syscall_arg(regs, 3, false);
	}
}

static __always_inline int call_begins(struct pt_regs *regs, enum call_kind kind, bool is_32bit)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct call call = { .kind = kind, .fd = -1 };

	if (kind == CALL_MSYNC) {
		call.begin = syscall_arg(regs, 0, is_32bit);
		call.size = syscall_arg(regs, 1, is_32bit);
		call.flags = syscall_arg(regs, 2, is_32bit);
	} else if (kind != CALL_SYNC) {
		call.fd = (int)syscall_arg(regs, 0, is_32bit);
		call.file = (__u64)path_file(call.fd);
		if (kind == CALL_SYNC_FILE_RANGE || kind == CALL_ARM_SYNC_FILE_RANGE)
			read_range(&call, regs, is_32bit);
	}
	call.start_ns = bpf_ktime_get_boot_ns();
	map_insert(&calls, &tid, &call, BPF_ANY);
	return 0;
}

/* Takes the call that the thread is in. */
static __always_inline bool take_call(struct call *call)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct call *found = bpf_map_lookup_elem(&calls, &tid);

	if (!found)
		return false;
	*call = *found;
	bpf_map_delete_elem(&calls, &tid);
	return true;
}

static __always_inline void describe(struct event *event, const struct call *call, int result)
{
	head_of_current(&event->head);
	event->lat_ns = event->head.boot_ns - call->start_ns;
	/* When it was called, as upstream has it. */
	event->head.boot_ns = call->start_ns;
	event->begin = call->begin;
	event->size = call->size;
	event->result = result;
	event->fd = call->fd;
	event->flags = call->flags;
	event->path_size = 0;
	event->kind = call->kind;
	event->path_cut = 1;
}

/* A call that names no file has returned. */
static __always_inline int call_ends(int result)
{
	struct call call;

	if (!take_call(&call))
		return 0;

	struct event *event = event_reserve(struct event);

	if (!event)
		return 0;
	describe(event, &call, result);
	event_submit(event);
	return 0;
}

/* The same of one that has a descriptor. */
static __always_inline int file_call_ends(void *slot_map, int result)
{
	struct call call;

	if (!take_call(&call))
		return 0;

	struct sync_slot *slot = event_slot(slot_map);

	if (!slot)
		return 0;
	describe(&slot->event, &call, result);

	/* Another thread may have closed it meanwhile, and the number may be another file's. */
	struct file *file = path_file(call.fd);

	if (file && (__u64)file == call.file) {
		struct path path = {};

		BPF_CORE_READ_INTO(&path, file, f_path);
		path_names(&path, slot->names, PATH_MAX, &slot->event.path_size,
			   &slot->event.path_cut);
	}

	__u64 size = sizeof(slot->event) + slot->event.path_size;

	if (size <= sizeof(*slot))
		event_output(slot, size);
	return 0;
}

/* ---- way kprobe ---- */

/* Preemption is off, so that all of them can share a slot. */
EVENT_SLOT(slot__kprobe, struct sync_slot);

#define CALL_ENTER(role, function, kind)                                                           \
	SEC("kprobe/" function)                                                                    \
	int BPF_KPROBE(role##_enter__kprobe, struct pt_regs *regs)                                 \
	{                                                                                          \
		if (!filter_current())                                                             \
			return 0;                                                                  \
		return call_begins(regs, kind, syscall_is_32bit());                                \
	}

#define CALL(role, function, kind)                                                                 \
	CALL_ENTER(role, function, kind)                                                           \
	SEC("kretprobe/" function)                                                                 \
	int BPF_KRETPROBE(role##_exit__kprobe, int result)                                         \
	{                                                                                          \
		return call_ends(result);                                                          \
	}

#define FILE_CALL(role, function, kind)                                                            \
	CALL_ENTER(role, function, kind)                                                           \
	SEC("kretprobe/" function)                                                                 \
	int BPF_KRETPROBE(role##_exit__kprobe, int result)                                         \
	{                                                                                          \
		return file_call_ends(&slot__kprobe, result);                                      \
	}

CALL(sync, SYSCALL_NO_ARGS "sync", CALL_SYNC)
CALL(msync, SYSCALL_NATIVE "msync", CALL_MSYNC)
CALL(msync32, SYSCALL_32BIT "msync", CALL_MSYNC)
FILE_CALL(fsync, SYSCALL_NATIVE "fsync", CALL_FSYNC)
FILE_CALL(fsync32, SYSCALL_32BIT "fsync", CALL_FSYNC)
FILE_CALL(fdatasync, SYSCALL_NATIVE "fdatasync", CALL_FDATASYNC)
FILE_CALL(fdatasync32, SYSCALL_32BIT "fdatasync", CALL_FDATASYNC)
FILE_CALL(syncfs, SYSCALL_NATIVE "syncfs", CALL_SYNCFS)
FILE_CALL(syncfs32, SYSCALL_32BIT "syncfs", CALL_SYNCFS)
FILE_CALL(range, SYSCALL_NATIVE "sync_file_range", CALL_SYNC_FILE_RANGE)
#if defined(__TARGET_ARCH_x86)
#define CALL_RANGE32 CALL_SYNC_FILE_RANGE
FILE_CALL(range32, SYSCALL_32BIT "ia32_sync_file_range", CALL_RANGE32)
#else
#define CALL_RANGE32 CALL_ARM_SYNC_FILE_RANGE
FILE_CALL(range32, SYSCALL_COMPAT "aarch32_sync_file_range2", CALL_RANGE32)
#endif

/* ---- way rawtp ---- */

EVENT_SLOT(slot__rawtp, struct sync_slot);

static __always_inline enum call_kind kind_of(long number, bool is_32bit)
{
	if (number == (is_32bit ? NR32_sync : NR_sync))
		return CALL_SYNC;
	if (number == (is_32bit ? NR32_fsync : NR_fsync))
		return CALL_FSYNC;
	if (number == (is_32bit ? NR32_fdatasync : NR_fdatasync))
		return CALL_FDATASYNC;
	if (number == (is_32bit ? NR32_msync : NR_msync))
		return CALL_MSYNC;
	if (number == (is_32bit ? NR32_syncfs : NR_syncfs))
		return CALL_SYNCFS;
	if (number == (is_32bit ? NR32_sync_file_range : NR_sync_file_range))
		return is_32bit ? CALL_RANGE32 : CALL_SYNC_FILE_RANGE;
	return CALL_OTHER;
}

/* Arguments: registers, number. */
SEC("raw_tp/sys_enter")
int enter__rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx->args[0];
	bool is_32bit = syscall_is_32bit();
	enum call_kind kind = kind_of(ctx->args[1], is_32bit);

	if (kind == CALL_OTHER || !filter_current())
		return 0;
	return call_begins(regs, kind, is_32bit);
}

/* Arguments: registers, result. */
SEC("raw_tp/sys_exit")
int exit__rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx->args[0];

	if (kind_of(syscall_number(regs), syscall_is_32bit()) == CALL_OTHER)
		return 0;
	return file_call_ends(&slot__rawtp, (int)ctx->args[1]);
}
