/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The common filters, tested in the kernel on the task that an event is about.
 *
 * All settings are constants to the verifier, so a filter that is off costs nothing. The runner
 * finds them by name in the object and sets them before the load; a tool only calls
 * filter_current(), or filter_task() where the event's owner is another task.
 */
#ifndef FILTER_H
#define FILTER_H

#include "bpfscope.h"
#include "cgroups.h"
#include "head.h"
#include "loss.h"

#define FILTER_CGROUPS 8
#define FILTER_ANCESTORS 32

enum filter_kind {
	FILTER_PID,
	FILTER_TID,
	FILTER_PPID,
	FILTER_UID,
	FILTER_KINDS,
};

struct filter_key {
	__u32 kind;
	__u32 id;
};

/* How many ids each list holds; a list of one stands in filter_one, a longer one in the map. */
const volatile __u32 filter_count[FILTER_KINDS];
const volatile __u32 filter_one[FILTER_KINDS];

/* Process id of the tool itself, left out; 0 = trace the tool too. */
const volatile __u32 filter_self;

/*
 * Whether there is any other filter. If not, the functions below that test them are not there for
 * the verifier. They are functions of their own, so that what is seldom there does not make each
 * program long: newer kernels take time that grows with the square of its length.
 */
const volatile bool filter_on;

/* comm & mask == wanted, as two words: exact names and prefixes alike. */
const volatile bool filter_comm_on;
const volatile __u64 filter_comm[2];
const volatile __u64 filter_comm_mask[2];

/* A task is inside when any of these cgroups is its own or an ancestor of its own. */
const volatile __u32 filter_cgroup_count;
const volatile __u64 filter_cgroup_id[FILTER_CGROUPS];
const volatile __u32 filter_cgroup_level[FILTER_CGROUPS];

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct filter_key);
	__type(value, __u8);
} filter_ids SEC(".maps");

/*
 * Sets that somebody else keeps, pinned in bpffs: ids of cgroups, inodes of mount namespaces. The
 * runner puts each into an array of one, and makes it the array's model. (A map that is reused
 * instead takes the pinned one's name in libbpf, and nobody finds it again by its own.)
 */
const volatile bool filter_cgroupmap_on;
const volatile bool filter_mntnsmap_on;

#define FILTER_PINNED_SET(name, key_type)                                                          \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                          \
		__uint(max_entries, 1);                                                            \
		__type(key, __u32);                                                                \
		__array(                                                                           \
			values, struct {                                                           \
				__uint(type, BPF_MAP_TYPE_HASH);                                   \
				__uint(max_entries, 1);                                            \
				__type(key, key_type);                                             \
				__type(value, key_type);                                           \
			});                                                                        \
	} name SEC(".maps")

FILTER_PINNED_SET(filter_cgroupmap, __u64);
FILTER_PINNED_SET(filter_mntnsmap, __u32);

/*
 * A process and its descendants: their process ids, kept by the programs below. These are the
 * host's also in a PID namespace. The user side does not know them there; the processes that it
 * plants are marked, and stand under the namespace's numbers.
 */
const volatile bool filter_tree_on;

#define FILTER_TREE_PLANTED (1U << 31)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8);
} filter_tree SEC(".maps");

static __always_inline bool filter_tree_planted(struct task_struct *task)
{
	__u32 key = pidns_tgid(task) | FILTER_TREE_PLANTED;

	return bpf_map_lookup_elem(&filter_tree, &key);
}

static __always_inline int filter_tree_add(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *from = (struct task_struct *)ctx->args[0];
	struct task_struct *to = (struct task_struct *)ctx->args[1];
	__u32 parent = BPF_CORE_READ(from, tgid);
	__u32 child = BPF_CORE_READ(to, tgid);
	__u8 one = 1;

	if (child == parent)
		return 0;
	if (pidns_inode && filter_tree_planted(to)) {
		__u32 old = pidns_tgid(to) | FILTER_TREE_PLANTED;

		/* The number has been given to somebody else. */
		bpf_map_delete_elem(&filter_tree, &old);
	}
	if (bpf_map_lookup_elem(&filter_tree, &parent) ||
	    (pidns_inode && filter_tree_planted(from)))
		map_insert(&filter_tree, &child, &one, BPF_ANY);
	return 0;
}

/* Loaded only with a tree filter. Arguments: parent, child. */
SEC("raw_tp/sched_process_fork")
int filter_tree_fork(struct bpf_raw_tracepoint_args *ctx)
{
	return filter_tree_add(ctx);
}

/* What the kernel skips of the first (see twin.h) this one does; twice does no harm. */
SEC("raw_tp/sched_process_fork")
int filter_tree_fork_twin(struct bpf_raw_tracepoint_args *ctx)
{
	return filter_tree_add(ctx);
}

/*
 * Not at exit, when the process may still do things that are to be seen, but when its parent has
 * collected it and its id can be given to somebody else. Argument: task.
 */
SEC("raw_tp/sched_process_free")
int filter_tree_free(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	__u32 pid = BPF_CORE_READ(task, tgid);

	/* Once a process: when its leader goes, which is last. */
	if (pid == (__u32)BPF_CORE_READ(task, pid))
		bpf_map_delete_elem(&filter_tree, &pid);
	return 0;
}

static __noinline bool filter_tree_has(struct task_struct *task, __u32 host_pid)
{
	return bpf_map_lookup_elem(&filter_tree, &host_pid) ||
	       (pidns_inode && filter_tree_planted(task));
}

static __always_inline bool filter_id(enum filter_kind kind, __u32 id)
{
	if (filter_count[kind] == 0)
		return true;
	if (filter_count[kind] == 1)
		return id == filter_one[kind];

	struct filter_key key = { .kind = kind, .id = id };

	return bpf_map_lookup_elem(&filter_ids, &key) != NULL;
}

static __always_inline bool filter_comm_words(const __u64 *comm)
{
	return (comm[0] & filter_comm_mask[0]) == filter_comm[0] &&
	       (comm[1] & filter_comm_mask[1]) == filter_comm[1];
}

/*
 * struct cgroup: ancestor_ids[] until 5.19, then ancestors[] (7f203bc89eb6 "cgroup: Replace
 * cgroup->ancestor_ids[] with ->ancestors[]", 6.1); in 7.x ancestors[] sits in a union, which
 * CO-RE finds by name all the same.
 */
struct cgroup___ids {
	__u64 ancestor_ids[0];
} __attribute__((preserve_access_index));

static __always_inline __u64 cgroup_ancestor_id(struct cgroup *cgroup, __u32 level)
{
	if (BPF_CORE_READ(cgroup, level) < (int)level)
		return 0;
	if (bpf_core_field_exists(((struct cgroup___ids *)0)->ancestor_ids)) {
		struct cgroup___ids *old = (void *)cgroup;
		__u64 id = 0;

		/* Keeps clang from moving the field's relocation out of this branch. */
		barrier_var(old);
		bpf_core_read(&id, sizeof(id), &old->ancestor_ids[level]);
		return id;
	}

	struct cgroup *ancestor = NULL;

	barrier_var(cgroup);
	bpf_core_read(&ancestor, sizeof(ancestor), &cgroup->ancestors[level]);
	return BPF_CORE_READ(ancestor, kn, id);
}

/* In a cgroup namespace nobody says how deep a cgroup lies. */
#define FILTER_ANY_LEVEL (~0U)

static __noinline bool cgroup_is_below(struct cgroup *cgroup, __u64 id)
{
	for (int level = 0; level < FILTER_ANCESTORS; level++)
		if (cgroup_ancestor_id(cgroup, level) == id)
			return true;
	return false;
}

/* The id of the task's cgroup in the v2 hierarchy: what bpf_get_current_cgroup_id() says. */
static __always_inline __u64 task_cgroup_id(struct task_struct *task)
{
	return BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
}

static __noinline bool filter_cgroup_listed(struct cgroup *cgroup)
{
	for (__u32 i = 0; i < FILTER_CGROUPS && i < filter_cgroup_count; i++) {
		if (filter_cgroup_level[i] == FILTER_ANY_LEVEL) {
			if (cgroup_is_below(cgroup, filter_cgroup_id[i]))
				return true;
		} else if (cgroup_ancestor_id(cgroup, filter_cgroup_level[i]) ==
			   filter_cgroup_id[i]) {
			return true;
		}
	}
	return false;
}

static __always_inline bool filter_cgroup_of(struct task_struct *task)
{
	return filter_cgroup_listed(BPF_CORE_READ(task, cgroups, dfl_cgrp));
}

static __always_inline bool filter_pinned_has(void *sets, const void *key)
{
	__u32 zero = 0;
	void *set = bpf_map_lookup_elem(sets, &zero);

	return set && bpf_map_lookup_elem(set, key);
}

static __always_inline bool filter_mntns(struct task_struct *task)
{
	if (filter_mntnsmap_on) {
		__u32 inode = BPF_CORE_READ(task, nsproxy, mnt_ns, ns.inum);

		return filter_pinned_has(&filter_mntnsmap, &inode);
	}
	return true;
}

static __noinline bool filter_pinned(struct task_struct *task)
{
	if (filter_cgroupmap_on) {
		__u64 id = task_cgroup_id(task);

		if (!filter_pinned_has(&filter_cgroupmap, &id))
			return false;
	}
	return filter_mntns(task);
}

static __always_inline bool filter_container(__u64 cgroup_id)
{
	return bpf_map_lookup_elem(&filter_containers, &cgroup_id);
}

static __always_inline bool filter_is_self(__u32 pid)
{
	return filter_self && pid == filter_self;
}

/* Whether the current task passes the filters on ids and names: all but those on where it is. */
static __noinline bool filter_current_itself(void)
{
	__u64 id = current_ids();
	__u32 pid = id >> 32;

	if (filter_is_self(pid))
		return false;
	if (filter_tree_on && !filter_tree_has((struct task_struct *)bpf_get_current_task(),
					       bpf_get_current_pid_tgid() >> 32))
		return false;
	if (!filter_id(FILTER_PID, pid) || !filter_id(FILTER_TID, (__u32)id))
		return false;
	if (filter_count[FILTER_UID] && !filter_id(FILTER_UID, (__u32)bpf_get_current_uid_gid()))
		return false;
	if (filter_count[FILTER_PPID] &&
	    !filter_id(FILTER_PPID, task_ppid((struct task_struct *)bpf_get_current_task())))
		return false;
	if (filter_comm_on) {
		__u64 comm[2] = {};

		bpf_get_current_comm(comm, sizeof(comm));
		if (!filter_comm_words(comm))
			return false;
	}
	return true;
}

/* Whether the current task passes the filters on where it is: cgroup, container, mount namespace.
 */
static __noinline bool filter_current_place(void)
{
	if (filter_containers_on && !filter_container(bpf_get_current_cgroup_id()))
		return false;
	if (!filter_cgroup_count && !filter_cgroupmap_on && !filter_mntnsmap_on)
		return true;

	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	if (!filter_pinned(task))
		return false;
	/* bpf_get_current_ancestor_cgroup_id() would do, but 5.10 has it for networking only. */
	return !filter_cgroup_count || filter_cgroup_of(task);
}

/* Whether the current task passes every filter. */
static __always_inline bool filter_current(void)
{
	if (!filter_on)
		return !filter_is_self(current_ids() >> 32);
	return filter_current_itself() && filter_current_place();
}

/*
 * The same for a task that does something on behalf of a cgroup that is not its own, as kernel
 * threads do.
 */
static __always_inline bool filter_current_for(struct cgroup *cgroup)
{
	if (!filter_on)
		return !filter_is_self(current_ids() >> 32);
	if (!filter_current_itself() || !filter_mntns((struct task_struct *)bpf_get_current_task()))
		return false;
	if (filter_containers_on && !filter_container(BPF_CORE_READ(cgroup, kn, id)))
		return false;
	if (filter_cgroupmap_on) {
		__u64 id = BPF_CORE_READ(cgroup, kn, id);

		if (!filter_pinned_has(&filter_cgroupmap, &id))
			return false;
	}
	return !filter_cgroup_count || filter_cgroup_listed(cgroup);
}

/* Whether a task that is not the current one passes the filters on ids and names. */
static __noinline bool filter_task_itself(struct task_struct *task)
{
	__u32 pid = task_pid(task);

	if (filter_is_self(pid))
		return false;
	if (filter_tree_on && !filter_tree_has(task, BPF_CORE_READ(task, tgid)))
		return false;
	if (!filter_id(FILTER_PID, pid))
		return false;
	if (filter_count[FILTER_TID] && !filter_id(FILTER_TID, task_tid(task)))
		return false;
	if (filter_count[FILTER_UID] && !filter_id(FILTER_UID, BPF_CORE_READ(task, cred, uid.val)))
		return false;
	if (filter_count[FILTER_PPID] && !filter_id(FILTER_PPID, task_ppid(task)))
		return false;
	if (filter_comm_on) {
		__u64 comm[2] = {};

		BPF_CORE_READ_STR_INTO((char(*)[TASK_COMM_LEN])comm, task, comm);
		if (!filter_comm_words(comm))
			return false;
	}
	return true;
}

/* The same for all filters. */
static __always_inline bool filter_task(struct task_struct *task)
{
	if (!filter_on)
		return !filter_is_self(task_pid(task));
	if (!filter_task_itself(task))
		return false;
	if (filter_containers_on && !filter_container(task_cgroup_id(task)))
		return false;
	if (!filter_pinned(task))
		return false;
	return !filter_cgroup_count || filter_cgroup_of(task);
}

/*
 * The same for the process of the current task, which bears the ids and the name of its first
 * thread. Where it is the current task says: the first may have ended, and is nowhere then.
 */
static __always_inline bool filter_process(struct task_struct *leader)
{
	if (!filter_on)
		return !filter_is_self(task_pid(leader));
	return filter_task_itself(leader) && filter_current_place();
}

#endif
