/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Hash maps that hold one interval each. Keys come and go, and the longest of all time is not that
 * of an interval: so the reader puts an empty map into the array, and reads the one that was there
 * at leisure (src/common/swapped.rs).
 *
 * Without the types of key and value: 6.1 takes a map for another kind of map when only one of the
 * two has types, and those that the reader makes are without. The model is small, because libbpf
 * makes a map of it to show it to the kernel, and a hash map has room for all of its entries from
 * the beginning; what is put in its place may be larger (bpf_map_meta_equal()).
 */
#ifndef INTERVALS_H
#define INTERVALS_H

#include "bpfscope.h"

#define INTERVALS(array, first, map_type, entries, key_bytes, value_bytes)                         \
	struct {                                                                                   \
		__uint(type, map_type);                                                            \
		__uint(max_entries, entries);                                                      \
		__uint(key_size, key_bytes);                                                       \
		__uint(value_size, value_bytes);                                                   \
	} first SEC(".maps");                                                                      \
                                                                                                   \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                          \
		__uint(max_entries, 1);                                                            \
		__type(key, __u32);                                                                \
		__array(                                                                           \
			values, struct {                                                           \
				__uint(type, map_type);                                            \
				__uint(max_entries, 1);                                            \
				__uint(key_size, key_bytes);                                       \
				__uint(value_size, value_bytes);                                   \
			});                                                                        \
	} array SEC(".maps") = {                                                                   \
		.values = { (void *)&first },                                                      \
	}

#endif
