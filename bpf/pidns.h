/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Process and thread ids as the tool's own PID namespace has them.
 *
 * Outside of any PID namespace pidns_inode is 0, and to the verifier nothing of this is there.
 * Inside one, a task that the namespace does not see has the ids 0. bpf_get_ns_current_pid_tgid()
 * would not do: it knows the current task only, and not those in namespaces further down.
 */
#ifndef PIDNS_H
#define PIDNS_H

#include "bpfscope.h"

/* MAX_PID_NS_LEVEL of include/linux/pid_namespace.h, and the initial one. */
#define PIDNS_LEVELS 33

/* The inode of the tool's PID namespace; 0 = the initial one. */
const volatile __u32 pidns_inode;

/* A number of struct pid, which has one for each namespace from the outermost to its own. */
static __noinline __u32 pidns_number(struct pid *pid)
{
	int level = BPF_CORE_READ(pid, level);

	/* Nearly always it is the first or second that is looked at. */
	for (int i = 0; i < PIDNS_LEVELS && level >= 0; i++, level--) {
		struct upid upid = {};

		if (bpf_core_read(&upid, sizeof(upid), &pid->numbers[level]))
			break;
		if (BPF_CORE_READ(upid.ns, ns.inum) == pidns_inode)
			return upid.nr;
	}
	return 0;
}

/* The process id; 0 also when the process has been collected. */
static __noinline __u32 pidns_tgid(struct task_struct *task)
{
	return pidns_number(BPF_CORE_READ(task, signal, pids[PIDTYPE_TGID]));
}

static __noinline __u32 pidns_tid(struct task_struct *task)
{
	return pidns_number(BPF_CORE_READ(task, thread_pid));
}

/* User space's pid of the current task in the upper half, its tid in the lower. */
static __always_inline __u64 current_ids(void)
{
	if (pidns_inode) {
		struct task_struct *task = (struct task_struct *)bpf_get_current_task();

		return (__u64)pidns_tgid(task) << 32 | pidns_tid(task);
	}
	return bpf_get_current_pid_tgid();
}

/* User space's pid of any task. */
static __always_inline __u32 task_pid(struct task_struct *task)
{
	return pidns_inode ? pidns_tgid(task) : (__u32)BPF_CORE_READ(task, tgid);
}

/* User space's tid of any task. */
static __always_inline __u32 task_tid(struct task_struct *task)
{
	return pidns_inode ? pidns_tid(task) : (__u32)BPF_CORE_READ(task, pid);
}

/* The parent's process id, as getppid() would say. */
static __always_inline __u32 task_ppid(struct task_struct *task)
{
	return task_pid(BPF_CORE_READ(task, real_parent));
}

#endif
