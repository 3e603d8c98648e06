/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The way of an event to user space: one ring buffer, no wake-up that is not needed, no loss that
 * is not counted.
 *
 * Waking the reader for every event costs more than the rest of a probe together. So the reader
 * says what it is doing, and is woken when it waits for the next event, or when it is pausing
 * between two looks and unread data passes a watermark.
 */
#ifndef EVENTS_H
#define EVENTS_H

#include "bpfscope.h"
#include "head.h"
#include "loss.h"

enum reader_state {
	/* Looks by itself within 100 ms: wake it only at the watermark. */
	READER_PAUSING = 0,
	/* Sleeps until something happens: wake it for the next event. */
	READER_WAITING = 1,
	/* Was woken and has not looked yet. */
	READER_WOKEN = 2,
};

/* Written by both sides, by the user side through the mapped .bss. */
__u32 reader_state;

/* Bytes of unread data at which a pausing reader is woken; the runner sets it from the size. */
const volatile __u64 ring_watermark = 1 << 20;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} events SEC(".maps");

static __always_inline __u64 ring_flags(void)
{
	__u32 state = READ_ONCE(reader_state);

	if (state == READER_WOKEN)
		return BPF_RB_NO_WAKEUP;
	if (state == READER_PAUSING &&
	    bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) < ring_watermark)
		return BPF_RB_NO_WAKEUP;
	WRITE_ONCE(reader_state, READER_WOKEN);
	return BPF_RB_FORCE_WAKEUP;
}

/* Events a second that --max-rate lets through; 0 = all. */
const volatile __u64 rate_limit = 0;

/* The second since boot that is under way, and the events sent in it. */
__u64 rate_second;
__u64 rate_count;

/*
 * Whether one more event may be sent in this second; counts it, or the refusal. CPUs that look at
 * the same moment may send one event each above the limit: an exact brake would be a lock.
 */
static __always_inline bool rate_allows(void)
{
	if (!rate_limit)
		return true;

	__u64 second = bpf_ktime_get_ns() / 1000000000;

	if (READ_ONCE(rate_second) != second) {
		WRITE_ONCE(rate_second, second);
		WRITE_ONCE(rate_count, 0);
	}
	if (READ_ONCE(rate_count) >= rate_limit) {
		count_rate_limited();
		return false;
	}
	add_atomically(&rate_count, 1);
	return true;
}

/* Sends what is no event by itself but helps to show others; --max-rate does not concern it. */
static __always_inline void record_output(void *record, __u64 size)
{
	if (bpf_ringbuf_output(&events, record, size, ring_flags()))
		count_lost();
}

/* Sends an event of any length that was built elsewhere. */
static __always_inline void event_output(void *event, __u64 size)
{
	if (rate_allows())
		record_output(event, size);
}

/* For events of a fixed size: room in the ring itself, or NULL (counted). Then event_submit(). */
#define event_reserve(type)                                                                        \
	({                                                                                         \
		type *__event = NULL;                                                              \
		if (rate_allows()) {                                                               \
			__event = bpf_ringbuf_reserve(&events, sizeof(type), 0);                   \
			if (!__event)                                                              \
				count_lost();                                                      \
		}                                                                                  \
		__event;                                                                           \
	})

static __always_inline void event_submit(void *event)
{
	bpf_ringbuf_submit(event, ring_flags());
}

/*
 * A place to build an event that is too large for the stack. One program, one slot: the kernel
 * keeps a program from running twice at once on a CPU, but not two programs that share a slot.
 */
#define EVENT_SLOT(name, value_type)                                                               \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);                                           \
		__uint(max_entries, 1);                                                            \
		__type(key, __u32);                                                                \
		__type(value, value_type);                                                         \
	} name SEC(".maps")

static __always_inline void *event_slot(void *map)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(map, &zero);
}

#endif
