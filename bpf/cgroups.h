/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Cgroups that are made and removed while the tool runs, told to the user side: so that an id still
 * leads to a path when the cgroup is gone, and that a filter on containers learns of new ones.
 *
 * The runner loads these programs only where ids of cgroups have to be named, or containers to be
 * found. All three tracepoints exist since 4.19; their arguments are the cgroup and its path, which
 * the kernel has written while it holds a lock around the tracepoint.
 */
#ifndef CGROUPS_H
#define CGROUPS_H

#include "bpfscope.h"
#include "loss.h"

/* TRACE_CGROUP_PATH_LEN of kernel/cgroup/cgroup.c: longer paths are cut by the kernel. */
#define CGROUP_PATH_SIZE 1024

#define CGROUP_NEWS_SIZE (256 << 10)

enum cgroup_what {
	CGROUP_MADE,
	CGROUP_REMOVED,
};

struct cgroup_news {
	__u64 id;
	enum cgroup_what what;
	/* Bytes of the path, with its NUL, that follow. */
	__u32 path_size;
};

struct cgroup_news_slot {
	struct cgroup_news news;
	char path[CGROUP_PATH_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, CGROUP_NEWS_SIZE);
} cgroup_news SEC(".maps");

/* One for both programs: the kernel's lock keeps them from running at once. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cgroup_news_slot);
} slot_cgroup_news SEC(".maps");

/*
 * Ids of the cgroups of wanted containers, each with those below it. The user side puts the
 * containers in, the programs below whatever is made in them.
 */
const volatile bool filter_containers_on;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u8);
} filter_containers SEC(".maps");

/* Only the v2 hierarchy counts; its number is 0. */
static __always_inline bool cgroup_is_v2(struct cgroup *cgroup)
{
	return BPF_CORE_READ(cgroup, root, hierarchy_id) == 0;
}

static __always_inline void cgroup_tell(enum cgroup_what what, __u64 id, const char *path)
{
	__u32 zero = 0;
	struct cgroup_news_slot *slot = bpf_map_lookup_elem(&slot_cgroup_news, &zero);

	if (!slot)
		return;

	__u64 size = bpf_probe_read_kernel_str(slot->path, sizeof(slot->path), path);
	/* Who makes one may be about to use it; of removals the user side hears in its own time. */
	__u64 flags = what == CGROUP_MADE || bpf_ringbuf_query(&cgroup_news, BPF_RB_AVAIL_DATA) >=
						     CGROUP_NEWS_SIZE / 2
			      ? BPF_RB_FORCE_WAKEUP
			      : BPF_RB_NO_WAKEUP;

	barrier_var(size);
	if (size > sizeof(slot->path))
		return;
	slot->news.id = id;
	slot->news.what = what;
	slot->news.path_size = size;
	if (bpf_ringbuf_output(&cgroup_news, slot, sizeof(slot->news) + size, flags))
		count_map_full();
}

SEC("raw_tp/cgroup_mkdir")
int cgroup_made(struct bpf_raw_tracepoint_args *ctx)
{
	struct cgroup *cgroup = (struct cgroup *)ctx->args[0];

	if (!cgroup_is_v2(cgroup))
		return 0;

	__u64 id = BPF_CORE_READ(cgroup, kn, id);

	if (filter_containers_on) {
		struct cgroup *parent = (void *)BPF_CORE_READ(cgroup, self.parent) -
					bpf_core_field_offset(struct cgroup, self);
		__u64 above = BPF_CORE_READ(parent, kn, id);
		__u8 one = 1;

		if (bpf_map_lookup_elem(&filter_containers, &above))
			map_insert(&filter_containers, &id, &one, BPF_ANY);
	}
	cgroup_tell(CGROUP_MADE, id, (const char *)ctx->args[1]);
	return 0;
}

SEC("raw_tp/cgroup_rmdir")
int cgroup_removed(struct bpf_raw_tracepoint_args *ctx)
{
	struct cgroup *cgroup = (struct cgroup *)ctx->args[0];

	if (cgroup_is_v2(cgroup))
		cgroup_tell(CGROUP_REMOVED, BPF_CORE_READ(cgroup, kn, id),
			    (const char *)ctx->args[1]);
	return 0;
}

/* Not when it is removed, since a task that is ending may still be in it, but when nobody is. */
SEC("raw_tp/cgroup_release")
int cgroup_freed(struct bpf_raw_tracepoint_args *ctx)
{
	struct cgroup *cgroup = (struct cgroup *)ctx->args[0];
	__u64 id = BPF_CORE_READ(cgroup, kn, id);

	if (filter_containers_on && cgroup_is_v2(cgroup))
		bpf_map_delete_elem(&filter_containers, &id);
	return 0;
}

#endif
