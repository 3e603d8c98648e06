// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * Flushes that are asked of md devices (software RAID).
 *
 * Where a bio enters the block layer, not in md itself: that is a module which may not be loaded
 * yet, whose functions have changed, and which not every kernel lets anybody probe. A bio counts
 * if it asks for a flush and its disk is an md device; md has nothing else to do with flushes.
 *
 * Ways: btf, rawtp. Both have the same tracepoints, and a twin (twin.h) of each program.
 */
#include "block.h"
#include "events.h"
#include "filter.h"
#include "twin.h"

/* Whether flushes are shown when they are done, with the time that they took. */
const volatile bool want_latency;

struct event {
	/* Of the task that asked, at the time when it did. */
	struct event_head head;
	/* Until the bio was done; with --latency. */
	__u64 lat_ns;
	/* What the bio has to write beside the flush. */
	__u32 bytes;
	/* Number of the md device. */
	__u32 disk;
	/* blk_status_t; with --latency. */
	__u32 status;
	__u32 pad;
};
EXPORT_STRUCT(event);

struct flush {
	struct event_head head;
	__u32 bytes;
	__u32 disk;
};

/* Flushes under way, by their bios. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct flush);
} flushes SEC(".maps");

/*
 * The queue came first until e8a676d61c07 "block: simplify and extend the block_bio_merge
 * tracepoint class" (5.11) and its like for the others.
 */
typedef void (*btf_trace_block_bio_queue___queue)(void *, struct request_queue *, struct bio *);

static __always_inline struct bio *queued_bio(__u64 *ctx)
{
	__u64 bio;

	if (bpf_core_type_exists(btf_trace_block_bio_queue___queue)) {
		bio = ctx[1];
		barrier_var(bio);
	} else {
		bio = ctx[0];
	}
	return (struct bio *)bio;
}

/*
 * The disk was the bio's own until 309dca309fc3 "block: store a block_device pointer in struct
 * bio" (5.12), and is its block device's.
 */
struct bio___bi_disk {
	struct gendisk *bi_disk;
} __attribute__((preserve_access_index));

static __always_inline struct gendisk *bio_disk(struct bio *bio)
{
	struct bio___bi_disk *old = (void *)bio;

	if (bpf_core_field_exists(old->bi_disk)) {
		barrier_var(old);
		return BPF_CORE_READ(old, bi_disk);
	}
	return BPF_CORE_READ(bio, bi_bdev, bd_disk);
}

/* md0, md_home, md_d0; and nothing else has such a name (mtdblock has no d behind the m). */
static __always_inline bool is_md(struct gendisk *disk)
{
	char name[4] = {};

	bpf_core_read(name, 3, &disk->disk_name);
	return name[0] == 'm' && name[1] == 'd' &&
	       (name[2] == '_' || (name[2] >= '0' && name[2] <= '9'));
}

static __always_inline int queued(struct bio *bio, bool typed, bool is_twin)
{
	__u32 opf = typed ? bio->bi_opf : BPF_CORE_READ(bio, bi_opf);
	struct gendisk *disk;
	struct event *event;
	__u64 key = (__u64)bio;
	__u32 bytes;
	__u32 number;

	if (!(block_flag_of(opf, PREFLUSH)))
		return 0;
	disk = bio_disk(bio);
	if (!is_md(disk))
		return 0;
	/* A task has one bio at this place at a time. */
	if (!twin_first((__u32)bpf_get_current_pid_tgid(), is_twin) || !filter_current())
		return 0;
	bytes = typed ? bio->bi_iter.bi_size : BPF_CORE_READ(bio, bi_iter.bi_size);
	number = (__u32)BPF_CORE_READ(disk, major) << 20 | (__u32)BPF_CORE_READ(disk, first_minor);
	if (want_latency) {
		struct flush flush = { .bytes = bytes, .disk = number };

		head_of_current(&flush.head);
		map_insert(&flushes, &key, &flush, BPF_ANY);
		return 0;
	}
	event = event_reserve(struct event);
	if (!event)
		return 0;
	head_of_current(&event->head);
	event->lat_ns = 0;
	event->bytes = bytes;
	event->disk = number;
	event->status = 0;
	event->pad = 0;
	event_submit(event);
	return 0;
}

/* Arguments: queue, bio. The twin finds nothing in the map any more. */
static __always_inline int done(__u64 *ctx, bool typed)
{
	struct bio *bio = (struct bio *)ctx[1];
	__u64 key = (__u64)bio;
	struct flush *flush = bpf_map_lookup_elem(&flushes, &key);
	struct event *event;

	if (!flush)
		return 0;
	event = event_reserve(struct event);
	if (event) {
		__u64 now = bpf_ktime_get_boot_ns();

		event->head = flush->head;
		event->lat_ns = now > flush->head.boot_ns ? now - flush->head.boot_ns : 0;
		event->bytes = flush->bytes;
		event->disk = flush->disk;
		event->status = typed ? bio->bi_status : BPF_CORE_READ(bio, bi_status);
		event->pad = 0;
		event_submit(event);
	}
	bpf_map_delete_elem(&flushes, &key);
	return 0;
}

#define HOOKS(section, way, typed)                                                                 \
	SEC(section "/block_bio_complete")                                                         \
	int complete__##way(__u64 *ctx)                                                            \
	{                                                                                          \
		return done(ctx, typed);                                                           \
	}                                                                                          \
	SEC(section "/block_bio_complete")                                                         \
	int complete_twin__##way(__u64 *ctx)                                                       \
	{                                                                                          \
		return done(ctx, typed);                                                           \
	}                                                                                          \
	SEC(section "/block_bio_queue")                                                            \
	int queue__##way(__u64 *ctx)                                                               \
	{                                                                                          \
		return queued(queued_bio(ctx), typed, false);                                      \
	}                                                                                          \
	SEC(section "/block_bio_queue")                                                            \
	int queue_twin__##way(__u64 *ctx)                                                          \
	{                                                                                          \
		return queued(queued_bio(ctx), typed, true);                                       \
	}

HOOKS("tp_btf", btf, true)
HOOKS("raw_tp", rawtp, false)
