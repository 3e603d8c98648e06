/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The first member of every event: when it happened, and to which task. */
#ifndef HEAD_H
#define HEAD_H

#include "bpfscope.h"

struct event_head {
	/* CLOCK_BOOTTIME, which goes on during suspend and is the clock of task start times. */
	__u64 boot_ns;
	__u64 cgroup_id;
	/* User space's names: pid is the kernel's tgid, tid the kernel's pid. */
	__u32 pid;
	__u32 tid;
	__u32 ppid;
	/* The real uid, as the initial user namespace sees it. */
	__u32 uid;
	char comm[TASK_COMM_LEN];
};

/* The parent's process id, as getppid() would say outside any PID namespace. */
static __always_inline __u32 task_ppid(struct task_struct *task)
{
	return BPF_CORE_READ(task, real_parent, tgid);
}

/* Describes the current task; the program must run in the context of the task it is about. */
static __always_inline void head_of_current(struct event_head *head)
{
	__u64 id = bpf_get_current_pid_tgid();

	head->boot_ns = bpf_ktime_get_boot_ns();
	head->cgroup_id = bpf_get_current_cgroup_id();
	head->pid = id >> 32;
	head->tid = (__u32)id;
	head->ppid = task_ppid((struct task_struct *)bpf_get_current_task());
	head->uid = (__u32)bpf_get_current_uid_gid();
	bpf_get_current_comm(head->comm, sizeof(head->comm));
}

#endif
