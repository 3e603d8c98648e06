/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What every BPF program of the suite starts from. */
#ifndef BPFSCOPE_H
#define BPFSCOPE_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

/* GPL-only helpers (bpf_probe_read_*, ring buffer) need a licence string the kernel accepts. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";

/*
 * A struct that is used only as ring-buffer payload does not reach the object's BTF, and so not
 * the generated Rust types; an unused pointer to it does.
 */
#define EXPORT_STRUCT(name) const struct name *export_##name __attribute__((unused))

/*
 * The compiler must not remember a value across this point. Used where clang would merge two
 * checked values into one that the 5.10 verifier cannot follow.
 */
#define barrier_var(var) asm volatile("" : "+r"(var))

#define TASK_COMM_LEN 16
#define PATH_MAX 4096
#define NAME_MAX 255
#define AT_FDCWD (-100)

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile typeof(x) *)&(x) = (v))

/*
 * Adds without fetching the old value. Written out, because newer compilers make the fetching form
 * of the builtin even when nobody looks at the result, and 5.10 refuses that.
 */
static __always_inline void add_atomically(__u64 *to, __u64 value)
{
	asm volatile("lock *(u64 *)(%0 + 0) += %1" : : "r"(to), "r"(value) : "memory");
}

/*
 * The name of the current task, and nothing behind its end: 6.1 leaves what was there before, so
 * that the same name would be two keys of a map.
 */
static __always_inline void current_comm(char comm[TASK_COMM_LEN])
{
	__builtin_memset(comm, 0, TASK_COMM_LEN);
	bpf_get_current_comm(comm, TASK_COMM_LEN);
}

#endif
