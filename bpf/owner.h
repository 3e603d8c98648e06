/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whose an operation on a file or socket is: the current task's. A worker of io_uring acts for its
 * process, under a name of its own ("iou-wrk-PID").
 */
#ifndef OWNER_H
#define OWNER_H

#include "filter.h"
#include "head.h"

#define PF_IO_WORKER 0x00000010

static __always_inline bool is_worker(void)
{
	return current_flags() & PF_IO_WORKER;
}

static __always_inline bool filter_owner(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	if (is_worker())
		return filter_task(BPF_CORE_READ(task, group_leader));
	return filter_current();
}

static __always_inline void head_of_owner(struct event_head *head)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	head_of_current(head);
	if (is_worker())
		BPF_CORE_READ_STR_INTO(&head->comm, task, group_leader, comm);
}

#endif
