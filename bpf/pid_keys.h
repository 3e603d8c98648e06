/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Process and thread ids in the keys of what is counted.
 *
 * A key has the host's numbers: those of the tool's PID namespace would make one of all processes
 * that it does not see. Where the tool is in a namespace, what each number is there is noted
 * beside, for a report that may come when the process has ended (src/common/pidns.rs).
 */
#ifndef PID_KEYS_H
#define PID_KEYS_H

#include "bpfscope.h"
#include "head.h"
#include "pidns.h"

/*
 * From the host's numbers to those of the namespace. Those that were counted longest ago are
 * forgotten, since nobody says when a number is shown for the last time.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u32);
} pidns_noted SEC(".maps");

static __noinline int pidns_note(__u32 host, __u32 inside)
{
	__u32 *known = bpf_map_lookup_elem(&pidns_noted, &host);

	/* The number may have been another one's before. */
	if (!inside && known)
		bpf_map_delete_elem(&pidns_noted, &host);
	if (inside && (!known || *known != inside))
		bpf_map_update_elem(&pidns_noted, &host, &inside, BPF_ANY);
	return 0;
}

/* A process or thread that has been collected has no struct pid any more, but was noted before. */
static __noinline int pidns_note_pid(__u32 host, struct pid *pid)
{
	if (pid)
		pidns_note(host, pidns_number(pid));
	return 0;
}

/* User space's pid of the current task in the upper half, its tid in the lower. */
static __always_inline __u64 current_id_keys(bool want_tid)
{
	__u64 id = bpf_get_current_pid_tgid();

	if (pidns_inode) {
		struct task_struct *task = (struct task_struct *)bpf_get_current_task();

		pidns_note_pid(id >> 32, BPF_CORE_READ(task, signal, pids[PIDTYPE_TGID]));
		if (want_tid)
			pidns_note_pid((__u32)id, BPF_CORE_READ(task, thread_pid));
	}
	return id;
}

static __always_inline __u32 current_pid_key(void)
{
	return current_id_keys(false) >> 32;
}

/* The same of any task. */
static __always_inline __u32 task_pid_key(struct task_struct *task)
{
	__u32 pid = BPF_CORE_READ(task, tgid);

	if (pidns_inode)
		pidns_note_pid(pid, BPF_CORE_READ(task, signal, pids[PIDTYPE_TGID]));
	return pid;
}

static __always_inline __u32 task_tid_key(struct task_struct *task)
{
	__u32 tid = BPF_CORE_READ(task, pid);

	if (pidns_inode)
		pidns_note_pid(tid, BPF_CORE_READ(task, thread_pid));
	return tid;
}

/* The same of a process that was described earlier. */
static __always_inline __u32 head_pid_key(const struct event_head *head)
{
	if (!pidns_inode)
		return head->pid;
	pidns_note(head->host_pid, head->pid);
	return head->host_pid;
}

#endif
