/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Operations of one file system, from entry to return, by its own functions.
 *
 * The user side aims the programs (src/common/file_systems.rs); their sections name an example. The
 * including file says what is to be done at the end of an operation, in fs_done(), and with
 * FS_DETAILS before the include, that it wants to know which file and which part of it. With
 * FS_SLOT a program has an EVENT_SLOT of its own for the event.
 *
 * What is under way is kept by thread and operation, so that an operation inside another one (the
 * fsync of a synchronous write, a file system on top of another) counts as well. A read or write
 * that the caller does not wait for (io_uring, libaio, loop devices) returns EIOCBQUEUED and goes
 * on; it is kept by its kiocb as well, until the function is called that its submitter wants to
 * have called at the end. Whoever deletes that entry has the right to report it: there is exactly
 * one, however the two ends race.
 *
 * In the way of fentry and fexit each program has a twin (twin.h): ends of I/O come in bursts, in
 * threads that preempt each other. At the end no marks are needed: the second finds the entry gone.
 */
#ifndef FS_OPS_H
#define FS_OPS_H

#include "bpfscope.h"
#include "events.h"
#include "filter.h"
#include "twin.h"

/* include/linux/errno.h: the kernel's own, never seen by user space. */
#define EIOCBQUEUED 529

/* The order in which reports show them. */
enum fs_operation {
	FS_READ,
	FS_WRITE,
	FS_OPEN,
	FS_FSYNC,
	FS_GETATTR,
	FS_COMMIT,
	FS_OPERATIONS,
};

/* Thread and operation. */
struct fs_key {
	__u32 tid;
	__u32 operation;
};

struct fs_call {
	__u64 start_ns;
	/* struct kiocb * of one that may go on after the return, or 0. */
	__u64 request;
	__u32 operation;
	/* Whether it went on after the return. */
	__u32 went_on;
#ifdef FS_DETAILS
	/* struct path *, or 0. */
	__u64 path;
	__u64 offset;
	/* Of a sync; of a read or write the result says it. */
	__u64 bytes;
	/* Who began one that went on. */
	struct event_head head;
#endif
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct fs_key);
	__type(value, struct fs_call);
} fs_calls__kprobe SEC(".maps");

/* Calls that a thread is in, by operation; start_ns is 0 when it is not. */
struct fs_thread {
	struct fs_call calls[FS_OPERATIONS];
};

/* With the thread itself they are found faster, and there is room for every thread. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct fs_thread);
} fs_calls__fexit SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct fs_call);
} fs_requests SEC(".maps");

#define fs_field(typed, pointer, field) ((typed) ? (pointer)->field : BPF_CORE_READ(pointer, field))

static __always_inline __u64 fs_path_of(struct file *file)
{
	return (__u64)file + bpf_core_field_offset(struct file, f_path);
}

/* Which of two twins remembers an entry. */
static __always_inline bool fs_first(__u32 operation, bool is_twin)
{
	return twin_first((__u32)bpf_get_current_pid_tgid() * 8 + operation, is_twin);
}

/*
 * The operation begins. `typed`, here and below: in the way of fentry and fexit. The operation is a
 * constant, which verifiers before 7.0 do not see any more when it comes out of `call`.
 */
static __always_inline int fs_begin(struct fs_call *call, __u32 operation, bool typed)
{
	call->operation = operation;
	call->start_ns = bpf_ktime_get_ns();
	if (call->request) {
#ifdef FS_DETAILS
		head_of_current(&call->head);
#endif
		map_insert(&fs_requests, &call->request, call, BPF_ANY);
	}
	if (typed) {
		struct fs_thread *thread = bpf_task_storage_get(&fs_calls__fexit,
								bpf_get_current_task_btf(), NULL,
								BPF_LOCAL_STORAGE_GET_F_CREATE);

		if (thread)
			thread->calls[operation] = *call;
		else
			count_map_full();
	} else {
		struct fs_key key = { (__u32)bpf_get_current_pid_tgid(), operation };

		map_insert(&fs_calls__kprobe, &key, call, BPF_ANY);
	}
	return 0;
}

/* read or write (struct kiocb *, struct iov_iter *) */
static __always_inline int fs_begin_io(struct kiocb *kiocb, __u32 operation, bool typed)
{
	struct fs_call call = {};

	if (fs_field(typed, kiocb, ki_complete))
		call.request = (__u64)kiocb;
#ifdef FS_DETAILS
	call.path = fs_path_of(fs_field(typed, kiocb, ki_filp));
	call.offset = fs_field(typed, kiocb, ki_pos);
#endif
	return fs_begin(&call, operation, typed);
}

/* open (struct inode *, struct file *) */
static __always_inline int fs_begin_open(struct file *file, bool typed)
{
	struct fs_call call = {};

#ifdef FS_DETAILS
	call.path = fs_path_of(file);
#endif
	return fs_begin(&call, FS_OPEN, typed);
}

/* fsync (struct file *, loff_t start, loff_t end, int datasync) */
static __always_inline int fs_begin_fsync(struct file *file, __u64 start, __u64 end, bool typed)
{
	struct fs_call call = {};

#ifdef FS_DETAILS
	call.path = fs_path_of(file);
	call.offset = start;
	call.bytes = end - start;
	/* The whole file: fsync() says so by the largest end, wherever it begins. */
	if (end == 0x7fffffffffffffffULL)
		call.bytes = end;
#endif
	return fs_begin(&call, FS_FSYNC, typed);
}

/* getattr (struct mnt_idmap *, const struct path *, struct kstat *, u32, unsigned int) */
static __always_inline int fs_begin_getattr(__u64 path, bool typed)
{
	struct fs_call call = {};

#ifdef FS_DETAILS
	call.path = path;
#endif
	return fs_begin(&call, FS_GETATTR, typed);
}

/*
 * Before 549c7297717c "fs: make helpers idmap mount aware" (5.12) the first argument was not there,
 * and the third was what is asked for: a number of 32 bits, and no address.
 */
static __always_inline __u64 fs_getattr_path(__u64 first, __u64 second, __u64 third)
{
	/* Read now: a read that depends on another is not a read of the context any more. */
	barrier_var(first);
	barrier_var(second);
	return (__s64)third < 0 ? second : first;
}

/* The call of the current thread that comes to its end, which is forgotten. */
static __always_inline bool fs_take(__u32 operation, struct fs_call *call, bool typed)
{
	if (typed) {
		struct fs_thread *thread =
			bpf_task_storage_get(&fs_calls__fexit, bpf_get_current_task_btf(), NULL, 0);

		if (!thread || !thread->calls[operation].start_ns)
			return false;
		*call = thread->calls[operation];
		thread->calls[operation].start_ns = 0;
		return true;
	}

	struct fs_key key = { (__u32)bpf_get_current_pid_tgid(), operation };
	struct fs_call *found = bpf_map_lookup_elem(&fs_calls__kprobe, &key);

	if (!found)
		return false;
	*call = *found;
	return !bpf_map_delete_elem(&fs_calls__kprobe, &key);
}

/* The function returns. */
static __always_inline int fs_end(void *slots, __u32 operation, long result, bool typed)
{
	struct fs_call call;

	if (!fs_take(operation, &call, typed))
		return 0;
	if (call.request) {
		/* It goes on. */
		if (result == -EIOCBQUEUED)
			return 0;
		bpf_map_delete_elem(&fs_requests, &call.request);
	}
#ifdef FS_DETAILS
	head_of_current(&call.head);
#endif
	return fs_done(slots, &call, bpf_ktime_get_ns(), result);
}

/* What went on after the return has come to its end. */
static __always_inline int fs_complete(void *slots, __u64 request, long result)
{
	struct fs_call *found = bpf_map_lookup_elem(&fs_requests, &request);

	if (!found)
		return 0;

	struct fs_call call = *found;

	if (bpf_map_delete_elem(&fs_requests, &request))
		return 0;
	call.went_on = 1;
#ifdef FS_DETAILS
	call.head.boot_ns = bpf_ktime_get_boot_ns();
#endif
	return fs_done(slots, &call, bpf_ktime_get_ns(), result);
}

#ifndef FS_SLOT
#define FS_SLOT(name)
#define FS_SLOT_OF(name) NULL
#else
#define FS_SLOT_OF(name) (&name)
#endif

/*
 * The programs of an operation: `begin` and `result` are expressions, of the arguments in `arg`
 * for fentry and fexit, where the result comes behind all of them, and of `ctx` for kprobe and
 * kretprobe.
 */
#define FS_OPERATION(role, function, operation, begin, begin_kprobe, result, result_kprobe)        \
	FS_SLOT(role##_slot)                                                                       \
	FS_SLOT(role##_slot_twin__fexit)                                                           \
                                                                                                   \
	SEC("fexit/" function)                                                                     \
	int role##_exit__fexit(__u64 *arg)                                                         \
	{                                                                                          \
		return fs_end(FS_SLOT_OF(role##_slot), operation, result, true);                   \
	}                                                                                          \
                                                                                                   \
	SEC("fexit/" function)                                                                     \
	int role##_exit_twin__fexit(__u64 *arg)                                                    \
	{                                                                                          \
		return fs_end(FS_SLOT_OF(role##_slot_twin__fexit), operation, result, true);       \
	}                                                                                          \
                                                                                                   \
	SEC("fentry/" function)                                                                    \
	int role##_enter__fexit(__u64 *arg)                                                        \
	{                                                                                          \
		return filter_current() && fs_first(operation, false) ? begin : 0;                 \
	}                                                                                          \
                                                                                                   \
	SEC("fentry/" function)                                                                    \
	int role##_enter_twin__fexit(__u64 *arg)                                                   \
	{                                                                                          \
		return filter_current() && fs_first(operation, true) ? begin : 0;                  \
	}                                                                                          \
                                                                                                   \
	SEC("kretprobe/" function)                                                                 \
	int role##_exit__kprobe(struct pt_regs *ctx)                                               \
	{                                                                                          \
		return fs_end(FS_SLOT_OF(role##_slot), operation, result_kprobe, false);           \
	}                                                                                          \
                                                                                                   \
	SEC("kprobe/" function)                                                                    \
	int role##_enter__kprobe(struct pt_regs *ctx)                                              \
	{                                                                                          \
		return filter_current() ? begin_kprobe : 0;                                        \
	}

#define FS_IO(role, function, operation)                                                           \
	FS_OPERATION(role, function, operation,                                                    \
		     fs_begin_io((struct kiocb *)arg[0], operation, true),                         \
		     fs_begin_io((struct kiocb *)PT_REGS_PARM1(ctx), operation, false),            \
		     (long)arg[2], (long)PT_REGS_RC(ctx))

#define FS_OPENS(role, function)                                                                   \
	FS_OPERATION(role, function, FS_OPEN, fs_begin_open((struct file *)arg[1], true),          \
		     fs_begin_open((struct file *)PT_REGS_PARM2(ctx), false), (int)arg[2],         \
		     (int)PT_REGS_RC(ctx))

FS_IO(read, "ext4_file_read_iter", FS_READ)
FS_IO(write, "ext4_file_write_iter", FS_WRITE)
FS_OPENS(open, "ext4_file_open")
/* NFSv4 has an open of its own, beside that of NFSv3. */
FS_OPENS(open_too, "nfs4_file_open")
FS_OPERATION(fsync, "ext4_sync_file", FS_FSYNC,
	     fs_begin_fsync((struct file *)arg[0], arg[1], arg[2], true),
	     fs_begin_fsync((struct file *)PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx),
			    PT_REGS_PARM3(ctx), false),
	     (int)arg[4], (int)PT_REGS_RC(ctx))
/* What modules describe to fentry has five arguments: it came in 5.11, and they in 5.12. */
FS_OPERATION(getattr, "ext4_file_getattr", FS_GETATTR, fs_begin_getattr(arg[1], true),
	     fs_begin_getattr(fs_getattr_path(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx),
					      PT_REGS_PARM3(ctx)),
			      false),
	     (int)arg[5], (int)PT_REGS_RC(ctx))

/* Who wants to be told of the end of a read or write: (struct kiocb *, long result, ...). */
#define FS_COMPLETION(role, function)                                                              \
	FS_SLOT(role##_slot)                                                                       \
	FS_SLOT(role##_slot_twin__fexit)                                                           \
                                                                                                   \
	SEC("fentry/" function)                                                                    \
	int role##__fexit(__u64 *arg)                                                              \
	{                                                                                          \
		return fs_complete(FS_SLOT_OF(role##_slot), arg[0], (long)arg[1]);                 \
	}                                                                                          \
                                                                                                   \
	SEC("fentry/" function)                                                                    \
	int role##_twin__fexit(__u64 *arg)                                                         \
	{                                                                                          \
		return fs_complete(FS_SLOT_OF(role##_slot_twin__fexit), arg[0], (long)arg[1]);     \
	}                                                                                          \
                                                                                                   \
	SEC("kprobe/" function)                                                                    \
	int role##__kprobe(struct pt_regs *ctx)                                                    \
	{                                                                                          \
		return fs_complete(FS_SLOT_OF(role##_slot), PT_REGS_PARM1(ctx),                    \
				   (long)PT_REGS_PARM2(ctx));                                      \
	}

FS_COMPLETION(aio, "aio_complete_rw")
FS_COMPLETION(uring, "io_complete_rw")
FS_COMPLETION(loop, "lo_rw_aio_complete")

/*
 * NFS: what was written without being on the server's disk yet is committed, by whoever asks for
 * it; that it is done is seen by a thread of its own. Kept by the commit's data.
 */
FS_SLOT(commit_slot_done)

SEC("raw_tp/nfs_initiate_commit")
int commit_begin(__u64 *arg)
{
	struct fs_call call = { .operation = FS_COMMIT, .request = arg[0] };

	if (!filter_current())
		return 0;
	call.start_ns = bpf_ktime_get_ns();
#ifdef FS_DETAILS
	head_of_current(&call.head);
#endif
	map_insert(&fs_requests, &call.request, &call, BPF_ANY);
	return 0;
}

/* (const struct rpc_task *, const struct nfs_commit_data *) */
SEC("raw_tp/nfs_commit_done")
int commit_done(__u64 *arg)
{
	return fs_complete(FS_SLOT_OF(commit_slot_done), arg[1], 0);
}

#endif
