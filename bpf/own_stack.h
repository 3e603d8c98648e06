/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Variables of a uprobe's program that stay its own.
 *
 * Since 6.13 programs have their variables not on the kernel's stack but in memory of the CPU
 * (a76ab5731e32 "bpf: Find eligible subprogs for private stack support"), on the assumption that a
 * program runs once at a time on a CPU. That holds for kprobes and tracepoints. Those of uprobes
 * are run without a guard, and where the kernel is preemptible, another task that comes to the same
 * program meanwhile writes into the variables of the first. A program in which there is a tail call
 * keeps the kernel's stack; this one is never made.
 */
#ifndef OWN_STACK_H
#define OWN_STACK_H

#include "bpfscope.h"

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} own_stack SEC(".maps");

/* Never true, which only the verifier knows. */
const volatile bool own_stack_jumps = false;

static __always_inline void keep_own_stack(void *ctx)
{
	if (own_stack_jumps)
		bpf_tail_call(ctx, &own_stack, 0);
}

#endif
