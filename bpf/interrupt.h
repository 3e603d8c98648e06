/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whether an interrupt is being served: what is done in one is not done by the task that happens
 * to be current.
 *
 * The kernel counts it in a word of the task (arm64) or of the CPU (x86), for which programs have
 * no helper. The user side looks up where the CPU's word is (src/common/interrupt.rs), since a
 * symbol that the object itself names would make libbpf read all types of the kernel.
 */
#ifndef INTERRUPT_H
#define INTERRUPT_H

#include "bpfscope.h"

/* Addresses of the kernel; 0 = not known. */
const volatile __u64 interrupt_cpu_offsets;
const volatile __u64 interrupt_word;

/* Serving a softirq (not only with softirqs off), a hardirq, an NMI: include/linux/preempt.h. */
#define INTERRUPT_MASK 0x00ff0100

struct thread_info___counting {
	__u64 preempt_count;
} __attribute__((preserve_access_index));

struct task_struct___counting {
	struct thread_info___counting thread_info;
} __attribute__((preserve_access_index));

/*
 * From 64701838bf05 "x86/percpu: Move preempt_count next to current_task" (6.2) to 6.14 the word is
 * a member of a struct.
 */
struct pcpu_hot___word {
	int preempt_count;
} __attribute__((preserve_access_index));

static __always_inline bool in_interrupt(void)
{
	__u32 word = 0;

	if (bpf_core_field_exists(((struct thread_info___counting *)0)->preempt_count)) {
		struct task_struct___counting *task = (void *)bpf_get_current_task();

		barrier_var(task);
		word = (__u32)BPF_CORE_READ(task, thread_info.preempt_count);
	} else if (interrupt_cpu_offsets) {
		__u64 at = interrupt_cpu_offsets + 8 * bpf_get_smp_processor_id();
		__u64 offset = 0;

		bpf_probe_read_kernel(&offset, sizeof(offset), (void *)at);
		offset += interrupt_word;
		if (bpf_core_field_exists(((struct pcpu_hot___word *)0)->preempt_count))
			offset += bpf_core_field_offset(struct pcpu_hot___word, preempt_count);
		bpf_probe_read_kernel(&word, sizeof(word), (void *)offset);
	}
	return word & INTERRUPT_MASK;
}

#endif
