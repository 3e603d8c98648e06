/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * System calls as sys_exit and the __ARCH_sys_NAME() functions see them: number, caller's word
 * size and arguments, taken from the saved registers.
 */
#ifndef SYSCALL_H
#define SYSCALL_H

#include "bpfscope.h"

#if defined(__TARGET_ARCH_x86)

/* arch/x86/include/asm/thread_info.h: set while a 32-bit system call is in progress. */
#define TS_COMPAT 0x0002

#define SYSCALL_NATIVE "__x64_sys_"
#define SYSCALL_COMPAT "__ia32_compat_sys_"
/* Of calls whose arguments need no translation, 32-bit callers have a function of their own. */
#define SYSCALL_32BIT "__ia32_sys_"
/* Calls without arguments have one function under several names, of which BTF has this one. */
#define SYSCALL_NO_ARGS "__do_sys_"

/* Added by the kernel for every 64-bit caller of open() and openat(). */
#define O_LARGEFILE 00100000

#define NR_open 2
#define NR_creat 85
#define NR_openat 257
#define NR_openat2 437
#define NR_execve 59
#define NR_execveat 322
#define NR_sync 162
#define NR_fsync 74
#define NR_fdatasync 75
#define NR_msync 26
#define NR_syncfs 306
#define NR_sync_file_range 277
#define NR32_open 5
#define NR32_creat 8
#define NR32_openat 295
#define NR32_openat2 437
#define NR32_execve 11
#define NR32_execveat 358
#define NR32_sync 36
#define NR32_fsync 118
#define NR32_fdatasync 148
#define NR32_msync 144
#define NR32_syncfs 344
#define NR32_sync_file_range 314
#define NR_clone 56
#define NR_fork 57
#define NR_vfork 58
#define NR_clone3 435
#define NR32_fork 2
#define NR32_clone 120
#define NR32_vfork 190
#define NR32_clone3 435

#define syscall_flags status
#define SYSCALL_IS_32BIT TS_COMPAT

static __always_inline long syscall_number(struct pt_regs *regs)
{
	return BPF_CORE_READ(regs, orig_ax);
}

static __always_inline __u64 syscall_arg(struct pt_regs *regs, int index, bool is_32bit)
{
	if (is_32bit) {
		switch (index) {
		case 0:
			return (__u32)BPF_CORE_READ(regs, bx);
		case 1:
			return (__u32)BPF_CORE_READ(regs, cx);
		case 2:
			return (__u32)BPF_CORE_READ(regs, dx);
		case 3:
			return (__u32)BPF_CORE_READ(regs, si);
		case 4:
			return (__u32)BPF_CORE_READ(regs, di);
		default:
			return (__u32)BPF_CORE_READ(regs, bp);
		}
	}
	switch (index) {
	case 0:
		return BPF_CORE_READ(regs, di);
	case 1:
		return BPF_CORE_READ(regs, si);
	case 2:
		return BPF_CORE_READ(regs, dx);
	case 3:
		return BPF_CORE_READ(regs, r10);
	case 4:
		return BPF_CORE_READ(regs, r8);
	default:
		return BPF_CORE_READ(regs, r9);
	}
}

#elif defined(__TARGET_ARCH_arm64)

/* arch/arm64/include/asm/thread_info.h */
#define TIF_32BIT 22

#define SYSCALL_NATIVE "__arm64_sys_"
#define SYSCALL_COMPAT "__arm64_compat_sys_"
/* No such function: 32-bit callers come through the native one. */
#define SYSCALL_32BIT "__arm64_32bit_sys_"
#define SYSCALL_NO_ARGS "__arm64_sys_"

#define O_LARGEFILE 00400000

/* There is no open() or creat() for 64-bit callers: no system call has this number. */
#define NR_open (-2)
#define NR_creat (-2)
#define NR_openat 56
#define NR_openat2 437
#define NR_execve 221
#define NR_execveat 281
#define NR_sync 81
#define NR_fsync 82
#define NR_fdatasync 83
#define NR_msync 227
#define NR_syncfs 267
#define NR_sync_file_range 84
#define NR32_open 5
#define NR32_creat 8
#define NR32_openat 322
#define NR32_openat2 437
#define NR32_execve 11
#define NR32_execveat 387
#define NR32_sync 36
#define NR32_fsync 118
#define NR32_fdatasync 148
#define NR32_msync 144
#define NR32_syncfs 373
/* arm_sync_file_range(), with its arguments in another order. */
#define NR32_sync_file_range 341
#define NR_clone 220
#define NR_fork (-2)
#define NR_vfork (-2)
#define NR_clone3 435
#define NR32_fork 2
#define NR32_clone 120
#define NR32_vfork 190
#define NR32_clone3 435

#define syscall_flags flags
#define SYSCALL_IS_32BIT (1UL << TIF_32BIT)

static __always_inline long syscall_number(struct pt_regs *regs)
{
	return BPF_CORE_READ(regs, syscallno);
}

static __always_inline __u64 syscall_arg(struct pt_regs *regs, int index, bool is_32bit)
{
	/* x0 holds the result by the time of sys_exit; orig_x0 keeps the first argument. */
	__u64 value = index ? BPF_CORE_READ(regs, regs[index]) : BPF_CORE_READ(regs, orig_x0);

	return is_32bit ? (__u32)value : value;
}

#else
#error "syscall.h does not know this architecture"
#endif

/* Whether the system call that the current task is in is one of a 32-bit caller. */
static __always_inline bool syscall_is_32bit(void)
{
	/*
	 * The verifier knows what this helper returns, and it can be read without another call.
	 * Older kernels do not have it (until 5.11).
	 */
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf)) {
		struct task_struct *current = bpf_get_current_task_btf();

		return current->thread_info.syscall_flags & SYSCALL_IS_32BIT;
	}

	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	return BPF_CORE_READ(task, thread_info.syscall_flags) & SYSCALL_IS_32BIT;
}

/* Whether a system call makes tasks, which return from it with 0. */
static __always_inline bool syscall_makes_tasks(long number, bool is_32bit)
{
	if (is_32bit)
		return number == NR32_clone || number == NR32_fork || number == NR32_vfork ||
		       number == NR32_clone3;
	return number == NR_clone || number == NR_fork || number == NR_vfork || number == NR_clone3;
}

#endif
