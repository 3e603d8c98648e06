// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* fsdist: how long operations of a file system take, one histogram an operation. */
#include "bpfscope.h"
#include "histogram.h"

const volatile __u64 ns_per_slot_unit = 1000;

struct operation_key {
	/* enum fs_operation */
	__u32 operation;
};
EXPORT_STRUCT(operation_key);

HISTOGRAMS(latencies, struct operation_key);

struct fs_call;
static __always_inline int fs_done(void *slots, struct fs_call *call, __u64 now, long result);

#include "fs_ops.h"

static __always_inline int fs_done(void *slots, struct fs_call *call, __u64 now, long result)
{
	struct operation_key key = { call->operation };
	__u64 latency = now > call->start_ns ? now - call->start_ns : 0;

	histogram_add(&latencies, &key, latency / ns_per_slot_unit, latency);
	return 0;
}
