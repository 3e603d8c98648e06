/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What could not be kept is counted: the user side reads these counters, reports and sums them. */
#ifndef LOSS_H
#define LOSS_H

#include "bpfscope.h"

struct loss {
	/* Events for which the ring buffer had no room. */
	__u64 lost;
	/* Map insertions and storage creations that the kernel refused. */
	__u64 map_full;
	/* Events that the user's own limit left out (--max-rate). */
	__u64 rate_limited;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct loss);
} losses SEC(".maps");

static __always_inline void count_lost(void)
{
	__u32 zero = 0;
	struct loss *loss = bpf_map_lookup_elem(&losses, &zero);

	if (loss)
		loss->lost++;
}

static __always_inline void count_map_full(void)
{
	__u32 zero = 0;
	struct loss *loss = bpf_map_lookup_elem(&losses, &zero);

	if (loss)
		loss->map_full++;
}

static __always_inline void count_rate_limited(void)
{
	__u32 zero = 0;
	struct loss *loss = bpf_map_lookup_elem(&losses, &zero);

	if (loss)
		loss->rate_limited++;
}

/* bpf_map_update_elem for state that must not vanish silently: a refusal is counted. */
static __always_inline long map_insert(void *map, const void *key, const void *value, __u64 flags)
{
	/*
	 * The kernel's function is called directly and returned an int until d7ba4cc900bf ("bpf:
	 * return long from bpf_map_ops funcs", 6.4): the upper half of the register is not part of
	 * it.
	 */
	int err = bpf_map_update_elem(map, key, value, flags);

	/* With BPF_NOEXIST an entry that is already there is an answer, not a loss. */
	if (err && !(flags == BPF_NOEXIST && err == -17 /* EEXIST */))
		count_map_full();
	return err;
}

#endif
