/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The first member of every event: when it happened, and to which task. */
#ifndef HEAD_H
#define HEAD_H

#include "bpfscope.h"
#include "pidns.h"

struct event_head {
	/* CLOCK_BOOTTIME, which goes on during suspend and is the clock of task start times. */
	__u64 boot_ns;
	__u64 cgroup_id;
	/*
	 * User space's names: pid is the kernel's tgid, tid the kernel's pid. In a PID namespace
	 * (pidns.h) its numbers, or 0 for a task outside.
	 */
	__u32 pid;
	__u32 tid;
	__u32 ppid;
	/* The real uid, as the initial user namespace sees it. */
	__u32 uid;
	char comm[TASK_COMM_LEN];
	/* In a PID namespace: the numbers that the host has. */
	__u32 host_pid;
	__u32 host_tid;
};

/*
 * Set where the kernel itself has types. Then what is read of the current task are plain loads, of
 * which each would otherwise be a call; since 3ca1032ab7ab "bpf: Add bpf_get_current_task_btf()
 * helper" (5.11).
 */
const volatile bool typed_tasks;
#define tasks_are_typed                                                                            \
	(typed_tasks && bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf))

static __always_inline __u32 current_ppid(void)
{
	if (!pidns_inode && tasks_are_typed)
		return bpf_get_current_task_btf()->real_parent->tgid;
	return task_ppid((struct task_struct *)bpf_get_current_task());
}

/* The real one, as the initial user namespace sees it. */
static __always_inline __u32 current_uid(void)
{
	if (tasks_are_typed)
		return bpf_get_current_task_btf()->cred->uid.val;
	return (__u32)bpf_get_current_uid_gid();
}

/* PF_KTHREAD and the like. */
static __always_inline __u32 current_flags(void)
{
	struct task_struct *task;

	if (tasks_are_typed)
		return bpf_get_current_task_btf()->flags;
	task = (struct task_struct *)bpf_get_current_task();
	return BPF_CORE_READ(task, flags);
}

/* Describes the current task, but not when. */
static __always_inline void head_without_time(struct event_head *head)
{
	__u64 id = current_ids();
	__u64 host_id = pidns_inode ? bpf_get_current_pid_tgid() : 0;

	head->boot_ns = 0;
	head->cgroup_id = bpf_get_current_cgroup_id();
	head->pid = id >> 32;
	head->tid = (__u32)id;
	head->ppid = current_ppid();
	head->uid = current_uid();
	current_comm(head->comm);
	head->host_pid = host_id >> 32;
	head->host_tid = (__u32)host_id;
}

/* Describes the current task; the program must run in the context of the task it is about. */
static __always_inline void head_of_current(struct event_head *head)
{
	head_without_time(head);
	head->boot_ns = bpf_ktime_get_boot_ns();
}

/* Whether it describes the current task. */
static __always_inline bool head_is_current(const struct event_head *head)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	return (pidns_inode ? head->host_tid : head->tid) == tid;
}

#endif
