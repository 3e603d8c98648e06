/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Twins (twin.h) of programs whose work does no harm when it is done twice: a mark tells the one
 * that comes second that there is nothing left to do, which only saves time.
 */
#ifndef TWIN_MARK_H
#define TWIN_MARK_H

#include "bpfscope.h"

#define TWIN_MARKS 8192

/* What a program has just dealt with, and its twin need not deal with again. */
__u64 twin_marks[TWIN_MARKS];

/*
 * Whether the twin before this one has dealt with this already: the same object, at the hook that
 * `tag` stands for. Unlike with hits that are counted (twin_first) it may be that the mark is gone,
 * because another object has the same place, which is no rarity: requests and sockets are many, and
 * in use on all CPUs at once. A mark that was left by a second program that the kernel skipped is
 * taken for a new one only where the next first program for the same object and hook is skipped
 * too.
 *
 * Tracepoints call their programs in the order of attaching, so the twin is second; on a trampoline
 * it is first.
 */
static __always_inline bool twin_has_it(__u64 pointer, __u64 tag, bool is_second)
{
	__u64 low;
	__u64 mark;
	__u64 *place;

	/*
	 * The verifier lets nobody calculate with a pointer that it knows the type of, but of its
	 * lower half, moved as such, it knows nothing.
	 */
	asm volatile("r2 = %1; w2 = w2; %0 = r2" : "=r"(low) : "r"(pointer) : "r2");
	mark = low << 32 ^ tag;
	/* Addresses have the same distances; multiplied, they spread. */
	place = &twin_marks[(low * 0x9e3779b1 >> 16) % TWIN_MARKS];
	if (!is_second) {
		WRITE_ONCE(*place, mark);
		return false;
	}
	if (READ_ONCE(*place) != mark)
		return false;
	WRITE_ONCE(*place, 0);
	return true;
}

#endif
