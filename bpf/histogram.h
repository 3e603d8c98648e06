/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Distributions over powers of two, counted in the kernel: one histogram a key, per CPU, never
 * reset. The user side adds the CPUs up and takes differences (src/common/histogram.rs).
 */
#ifndef HISTOGRAM_H
#define HISTOGRAM_H

#include "bpfscope.h"
#include "loss.h"

/*
 * A tool may ask for another number before it includes this. 40 slots are 18 minutes in
 * nanoseconds and 12 days in microseconds; the last one takes everything larger.
 */
#ifndef HISTOGRAM_SLOTS
#define HISTOGRAM_SLOTS 40
#endif

/* The user side takes the number of slots from the size of the value. */
struct histogram {
	/* Of the values themselves, in their finest unit (nanoseconds, bytes). */
	__u64 sum;
	/* Slot 0 counts the values 0 and 1, slot i those from 2^i to 2^(i+1) - 1. */
	__u64 slots[HISTOGRAM_SLOTS];
};

/* Too large for the stack to be built there. */
static const struct histogram histogram_zero;

/* The user side sets how many keys there can be. */
#define HISTOGRAMS(name, key_type)                                                                 \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_HASH);                                            \
		__uint(max_entries, 1);                                                            \
		__type(key, key_type);                                                             \
		__type(value, struct histogram);                                                   \
	} name SEC(".maps")

/* The place of the highest bit: 0 for 0 and 1, 63 for the largest. */
static __always_inline __u32 log2_of(__u64 value)
{
	__u32 place = 0;

	if (value >> 32) {
		value >>= 32;
		place += 32;
	}
	if (value >> 16) {
		value >>= 16;
		place += 16;
	}
	if (value >> 8) {
		value >>= 8;
		place += 8;
	}
	if (value >> 4) {
		value >>= 4;
		place += 4;
	}
	if (value >> 2) {
		value >>= 2;
		place += 2;
	}
	if (value >> 1)
		place += 1;
	return place;
}

/*
 * Counts one value: in the slot of `value`, which is in the unit of the slots (microseconds), and
 * with `exact` in the sum.
 */
static __always_inline void histogram_count(struct histogram *histogram, __u64 value, __u64 exact)
{
	__u32 slot = log2_of(value);

	if (slot >= HISTOGRAM_SLOTS)
		slot = HISTOGRAM_SLOTS - 1;
	/*
	 * Per CPU is not alone enough: an interrupt may run the same program in the middle of an
	 * addition (raw tracepoints have been guarded against that only since 05b24ff9b2cf "bpf:
	 * Prevent bpf program recursion for raw tracepoint probes", 6.1).
	 */
	add_atomically(&histogram->slots[slot], 1);
	add_atomically(&histogram->sum, exact);
}

/* The same in the histogram of this key. */
static __always_inline void histogram_add(void *histograms, const void *key, __u64 value,
					  __u64 exact)
{
	struct histogram *histogram = bpf_map_lookup_elem(histograms, key);

	if (!histogram) {
		map_insert(histograms, key, &histogram_zero, BPF_NOEXIST);
		histogram = bpf_map_lookup_elem(histograms, key);
		if (!histogram)
			return;
	}
	histogram_count(histogram, value, exact);
}

#endif
