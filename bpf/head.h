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

/* Describes the current task; the program must run in the context of the task it is about. */
static __always_inline void head_of_current(struct event_head *head)
{
	__u64 id = current_ids();
	__u64 host_id = pidns_inode ? bpf_get_current_pid_tgid() : 0;

	head->boot_ns = bpf_ktime_get_boot_ns();
	head->cgroup_id = bpf_get_current_cgroup_id();
	head->pid = id >> 32;
	head->tid = (__u32)id;
	head->ppid = task_ppid((struct task_struct *)bpf_get_current_task());
	head->uid = (__u32)bpf_get_current_uid_gid();
	current_comm(head->comm);
	head->host_pid = host_id >> 32;
	head->host_tid = (__u32)host_id;
}

/* Whether it describes the current task. */
static __always_inline bool head_is_current(const struct event_head *head)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	return (pidns_inode ? head->host_tid : head->tid) == tid;
}

#endif
