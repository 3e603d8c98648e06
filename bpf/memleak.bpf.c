// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * memleak: memory that has been allocated and not been given back.
 *
 * Way uprobe: the allocators of programs, with a program at the beginning of each function, and one
 * that is at the end of all. They call each other; what the program itself called is what counts. A
 * call is known by its thread and by its place on the stack, and those that are made deeper in the
 * stack belong to it.
 *
 * Way rawtp: the kernel's allocators, by their tracepoints, each with a twin. Here twins
 * (twin.h) do not count hits: an interrupt allocates in the middle of another allocation, and which
 * of the two a program was skipped for must not be mixed up. Whether the first program has dealt
 * with an allocation shows in the table, and freeing a second time has no effect.
 */
#include "bpfscope.h"
#include "events.h"
#include "filter.h"
#include "interrupt.h"
#include "own_stack.h"
#include "pid_keys.h"
#include "stack.h"

/* In the order of FUNCTIONS in the user side. */
enum function {
	MALLOC,
	CALLOC,
	REALLOC,
	REALLOCARRAY,
	POSIX_MEMALIGN,
	ALIGNED_ALLOC,
	MEMALIGN,
	VALLOC,
	PVALLOC,
	NEW,
	NEW_ARRAY,
	MMAP,
	MREMAP,
	FREE,
	DELETE,
	MUNMAP,
	KMALLOC,
	KMEM_CACHE_ALLOC,
	PAGE_ALLOC,
	PERCPU_ALLOC,
	KFREE,
	KMEM_CACHE_FREE,
	PAGE_FREE,
	PERCPU_FREE,
};

const volatile __u64 want_min_size;
const volatile __u64 want_max_size = ~0ULL;
/* One of so many, by chance. */
const volatile __u32 want_sample = 1;
const volatile bool want_calls;
const volatile bool want_totals;
const volatile bool want_missing_free;
/* A task is asked for: what interrupts do is not its doing. */
const volatile bool want_tasks;
const volatile __u32 possible_cpus = 1;
const volatile __u64 page_bytes = 4096;

/* Where an address counts: of the kernel, memory, pages and memory of CPUs have one each. */
enum space {
	SPACE_MEMORY = 0,
	SPACE_PAGES = 1,
	SPACE_PERCPU = 2,
};

struct allocation_key {
	__u64 address;
	/* The process as the host numbers it; in the kernel's ways, SPACE_*. */
	__u32 owner;
	__u32 pad;
};
EXPORT_STRUCT(allocation_key);

struct allocation {
	__u64 size;
	__u64 since_ns;
	__u64 stack;
	/* Who allocated it, as the host numbers threads. */
	__u32 tid;
	enum function function;
};
EXPORT_STRUCT(allocation);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1000000);
	__type(key, struct allocation_key);
	__type(value, struct allocation);
} allocations SEC(".maps");

struct total_key {
	__u64 stack;
	__u32 owner;
	enum function function;
};
EXPORT_STRUCT(total_key);

struct total {
	__u64 bytes;
	__u64 count;
};
EXPORT_STRUCT(total);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct total_key);
	__type(value, struct total);
} totals SEC(".maps");

/* Set at the end: from then on the table stays as it is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} frozen SEC(".maps");

/* One call, for those who want to see each. */
struct event {
	struct event_head head;
	__u64 address;
	__u64 size;
	__u64 stack;
	enum function function;
	__u32 pad;
};
EXPORT_STRUCT(event);

/*
 * Where stacks are walked. An interrupt can come in the middle, and where programs can be preempted
 * another task; each takes a place that is free.
 */
#define WALKS 4

struct walk {
	__u32 busy;
	__u32 pad;
	struct stack_slot slot;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WALKS);
	__type(key, __u32);
	__type(value, struct walk);
} walks SEC(".maps");

static __noinline __u64 walk_stack(void *ctx)
{
	struct walk *walk = NULL;
	__u64 id;

	for (__u32 i = 0; i < WALKS; i++) {
		__u32 index = i;

		walk = bpf_map_lookup_elem(&walks, &index);
		if (walk && !READ_ONCE(walk->busy))
			break;
		walk = NULL;
	}
	if (!walk)
		return STACK_MISSED;
	WRITE_ONCE(walk->busy, 1);
	id = stack_of(ctx, &walk->slot, want_user_stacks ? BPF_F_USER_STACK : 0);
	WRITE_ONCE(walk->busy, 0);
	return id;
}

static __always_inline bool is_frozen(void)
{
	__u32 zero = 0;
	__u32 *value = bpf_map_lookup_elem(&frozen, &zero);

	return value && *value;
}

static __always_inline bool is_wanted(__u64 size)
{
	if (size < want_min_size || size > want_max_size)
		return false;
	return want_sample <= 1 || bpf_get_prandom_u32() % want_sample == 0;
}

static __always_inline void show_call(const struct allocation_key *key,
				      const struct allocation *allocation, enum function function)
{
	if (!want_calls)
		return;

	struct event *event = event_reserve(struct event);

	if (!event)
		return;
	head_of_current(&event->head);
	event->address = key->address;
	event->size = allocation->size;
	event->stack = allocation->stack;
	event->function = function;
	event->pad = 0;
	event_submit(event);
}

/* Takes it off the totals of its stack, where it was added to them. */
static __always_inline void total_less(const struct allocation_key *key,
				       const struct allocation *allocation)
{
	if (!want_totals)
		return;

	struct total_key group = {
		.stack = allocation->stack,
		.owner = key->owner,
		.function = allocation->function,
	};
	struct total *total = bpf_map_lookup_elem(&totals, &group);

	if (total) {
		add_atomically(&total->bytes, -allocation->size);
		add_atomically(&total->count, -1);
	}
}

static __always_inline void total_more(const struct allocation_key *key,
				       const struct allocation *allocation)
{
	if (!want_totals)
		return;

	struct total_key group = {
		.stack = allocation->stack,
		.owner = key->owner,
		.function = allocation->function,
	};
	struct total none = {};
	struct total *total = bpf_map_lookup_elem(&totals, &group);

	if (!total) {
		map_insert(&totals, &group, &none, BPF_NOEXIST);
		total = bpf_map_lookup_elem(&totals, &group);
	}
	if (total) {
		add_atomically(&total->bytes, allocation->size);
		add_atomically(&total->count, 1);
	}
}

/*
 * Takes an allocation out of the table, into `to` if that is given. False where there is none, or
 * somebody else was faster.
 */
static __always_inline bool forget(const struct allocation_key *key, struct allocation *to)
{
	struct allocation *found = bpf_map_lookup_elem(&allocations, key);

	if (!found)
		return false;

	struct allocation copy = *found;

	if (bpf_map_delete_elem(&allocations, key))
		return false;
	total_less(key, &copy);
	if (to)
		*to = copy;
	return true;
}

static __always_inline bool remember(const struct allocation_key *key,
				     const struct allocation *allocation, bool is_twin)
{
	if (want_missing_free)
		forget(key, NULL);
	if (is_twin) {
		/* No room: that has been counted. */
		if (bpf_map_update_elem(&allocations, key, allocation, BPF_ANY))
			return false;
	} else if (map_insert(&allocations, key, allocation, BPF_ANY)) {
		return false;
	}
	total_more(key, allocation);
	return true;
}

/* ---- way uprobe ---- */

#define MAP_FAILED (~0ULL)

/* What a thread has called. */
struct call {
	/* When the thread began: its number may have been another one's. */
	__u64 born;
	/* The stack pointer on entry. */
	__u64 stack;
	__u64 size;
	/* Where the address is put; 0 = it is returned. */
	__u64 answer;
	/* What is to be made larger or smaller, while it is out of the table; 0 = nothing. */
	__u64 old_address;
	struct allocation old;
	enum function function;
	__u8 wanted;
	__u8 had_old;
	__u8 pad[2];
};

/* By thread id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct call);
} calls__uprobe SEC(".maps");

struct process {
	/* What is older than this is gone: another program is executed. */
	__u64 since_ns;
	char comm[TASK_COMM_LEN];
};
EXPORT_STRUCT(process);

/* By process id, as the host numbers it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct process);
} processes__uprobe SEC(".maps");

static __always_inline void process_name(struct process *process)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	BPF_CORE_READ_STR_INTO(&process->comm, task, group_leader, comm);
}

static __always_inline void know_process(__u32 owner)
{
	struct process process = {};

	if (bpf_map_lookup_elem(&processes__uprobe, &owner))
		return;
	current_pid_key();
	process_name(&process);
	map_insert(&processes__uprobe, &owner, &process, BPF_NOEXIST);
}

/* Argument: the task that executes another program. */
SEC("raw_tp/sched_process_exec")
int exec__uprobe(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 owner = bpf_get_current_pid_tgid() >> 32;
	struct process *process = bpf_map_lookup_elem(&processes__uprobe, &owner);

	if (process && !is_frozen()) {
		process->since_ns = bpf_ktime_get_boot_ns();
		process_name(process);
	}
	return 0;
}

static __always_inline __u64 thread_born(void)
{
	return BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), start_boottime);
}

static __always_inline struct allocation_key user_key(__u64 address)
{
	struct allocation_key key = {
		.address = address,
		.owner = bpf_get_current_pid_tgid() >> 32,
	};

	return key;
}

static __always_inline int call_begin(struct pt_regs *ctx, enum function function, __u64 size,
				      __u64 answer, __u64 old_address)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u64 stack = PT_REGS_SP(ctx);
	struct call *found = bpf_map_lookup_elem(&calls__uprobe, &tid);
	__u64 born;

	keep_own_stack(ctx);
	if (is_frozen())
		return 0;
	born = thread_born();
	/*
	 * Deeper in the stack, or in the same place where the compiler made a jump of the call. No
	 * allocator calls the function again that it is in: one of the same name is new, and the
	 * old one was left by a jump out of it.
	 */
	if (found && found->born == born && stack <= found->stack && found->function != function)
		return 0;
	if (found)
		bpf_map_delete_elem(&calls__uprobe, &tid);

	struct call call = {
		.born = born,
		.stack = stack,
		.size = size,
		.answer = answer,
		.old_address = old_address,
		.function = function,
	};

	/*
	 * Already now: once it has been given back inside of the call, somebody else may have got
	 * the same address before this call returns.
	 */
	if (old_address) {
		struct allocation_key key = user_key(old_address);

		call.had_old = forget(&key, &call.old);
	}
	call.wanted = filter_current() && is_wanted(size);
	/* Also where it is not wanted: what it calls is a part of it. */
	map_insert(&calls__uprobe, &tid, &call, BPF_ANY);
	return 0;
}

/* The stack pointer that the function was entered with. */
static __always_inline __u64 stack_on_entry(struct pt_regs *ctx)
{
#if defined(__TARGET_ARCH_x86)
	/* It has taken its return address off the stack. */
	return PT_REGS_SP(ctx) - 8;
#else
	return PT_REGS_SP(ctx);
#endif
}

/*
 * The end of whatever function it is that was entered at this place of the stack: where one jumped
 * to another, both return here, and the second finds nothing more to do.
 */
SEC("uretprobe")
int call_exit(struct pt_regs *ctx)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct call *found = bpf_map_lookup_elem(&calls__uprobe, &tid);
	__u64 address = PT_REGS_RC(ctx);

	keep_own_stack(ctx);
	if (!found || found->born != thread_born() || found->stack != stack_on_entry(ctx))
		return 0;

	struct call call = *found;
	enum function function = call.function;

	bpf_map_delete_elem(&calls__uprobe, &tid);
	if (is_frozen())
		return 0;
	if (call.answer) {
		if ((int)address)
			address = 0;
		else if (bpf_probe_read_user(&address, sizeof(address), (void *)call.answer))
			address = 0;
	}
	if ((function == MMAP || function == MREMAP) && address == MAP_FAILED)
		address = 0;

	struct allocation_key old_key = user_key(call.old_address);

	if (call.had_old) {
		/* It failed, and the old one is still there; but to leave nothing is no failure. */
		if (!address && (function == MREMAP || call.size)) {
			remember(&old_key, &call.old, false);
			return 0;
		}
		show_call(&old_key, &call.old, function == MREMAP ? MUNMAP : FREE);
	}
	if (!address)
		return 0;

	struct allocation_key key = user_key(address);

	if (!call.wanted) {
		if (want_missing_free)
			forget(&key, NULL);
		return 0;
	}

	struct allocation allocation = {
		.size = call.size,
		.since_ns = bpf_ktime_get_boot_ns(),
		.stack = walk_stack(ctx),
		.tid = tid,
		.function = function,
	};

	know_process(key.owner);
	remember(&key, &allocation, false);
	show_call(&key, &allocation, function);
	return 0;
}

static __always_inline int free_begin(struct pt_regs *ctx, __u64 address, enum function function)
{
	struct allocation_key key = user_key(address);
	struct allocation old;

	keep_own_stack(ctx);
	if (address && !is_frozen() && forget(&key, &old))
		show_call(&key, &old, function);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(malloc_enter, __u64 size)
{
	return call_begin(ctx, MALLOC, size, 0, 0);
}

SEC("uprobe")
int BPF_KPROBE(calloc_enter, __u64 count, __u64 size)
{
	return call_begin(ctx, CALLOC, count * size, 0, 0);
}

SEC("uprobe")
int BPF_KPROBE(realloc_enter, __u64 old, __u64 size)
{
	return call_begin(ctx, REALLOC, size, 0, old);
}

SEC("uprobe")
int BPF_KPROBE(reallocarray_enter, __u64 old, __u64 count, __u64 size)
{
	__u64 bytes = count * size;

	/* Too many to be a number of bytes: the call fails, and that does not ask for nothing. */
	if (!bytes && count && size)
		bytes = ~0ULL;
	return call_begin(ctx, REALLOCARRAY, bytes, 0, old);
}

SEC("uprobe")
int BPF_KPROBE(posix_memalign_enter, __u64 answer, __u64 alignment, __u64 size)
{
	return call_begin(ctx, POSIX_MEMALIGN, size, answer, 0);
}

SEC("uprobe")
int BPF_KPROBE(aligned_alloc_enter, __u64 alignment, __u64 size)
{
	return call_begin(ctx, ALIGNED_ALLOC, size, 0, 0);
}

SEC("uprobe")
int BPF_KPROBE(memalign_enter, __u64 alignment, __u64 size)
{
	return call_begin(ctx, MEMALIGN, size, 0, 0);
}

SEC("uprobe")
int BPF_KPROBE(valloc_enter, __u64 size)
{
	return call_begin(ctx, VALLOC, size, 0, 0);
}

SEC("uprobe")
int BPF_KPROBE(pvalloc_enter, __u64 size)
{
	return call_begin(ctx, PVALLOC, size, 0, 0);
}

SEC("uprobe")
int BPF_KPROBE(new_enter, __u64 size)
{
	return call_begin(ctx, NEW, size, 0, 0);
}

SEC("uprobe")
int BPF_KPROBE(new_array_enter, __u64 size)
{
	return call_begin(ctx, NEW_ARRAY, size, 0, 0);
}

SEC("uprobe")
int BPF_KPROBE(mmap_enter, __u64 address, __u64 size)
{
	return call_begin(ctx, MMAP, size, 0, 0);
}

SEC("uprobe")
int BPF_KPROBE(mremap_enter, __u64 old, __u64 old_size, __u64 size)
{
	/* Nothing of shared memory is asked to be mapped once more. */
	return call_begin(ctx, MREMAP, size, 0, old_size ? old : 0);
}

SEC("uprobe")
int BPF_KPROBE(free_enter, __u64 address)
{
	return free_begin(ctx, address, FREE);
}

SEC("uprobe")
int BPF_KPROBE(delete_enter, __u64 address)
{
	return free_begin(ctx, address, DELETE);
}

SEC("uprobe")
int BPF_KPROBE(munmap_enter, __u64 address, __u64 size)
{
	struct allocation_key key = user_key(address);
	struct allocation old;

	keep_own_stack(ctx);
	if (!address || is_frozen() || !forget(&key, &old))
		return 0;

	struct allocation gone = old;

	if (size < old.size) {
		/* Its beginning is given back, and the rest is an allocation still. */
		gone.size = size;
		old.size -= size;
		key.address += size;
		remember(&key, &old, false);
		key.address = address;
	}
	show_call(&key, &gone, MUNMAP);
	return 0;
}

/* ---- way rawtp ---- */

static __always_inline int kernel_alloc(void *ctx, __u64 address, enum space space, __u64 size,
					enum function function, bool is_twin)
{
	struct allocation_key key = { .address = address, .owner = space };
	__u32 tid = (__u32)bpf_get_current_pid_tgid();

	if (!address || is_frozen())
		return 0;
	if (is_twin) {
		struct allocation *found = bpf_map_lookup_elem(&allocations, &key);

		/* The first program has dealt with it. */
		if (found && found->tid == tid && found->size == size)
			return 0;
	}
	if (!is_wanted(size) || !filter_current() || (want_tasks && in_interrupt())) {
		if (want_missing_free && !is_twin)
			forget(&key, NULL);
		return 0;
	}

	struct allocation allocation = {
		.size = size,
		.since_ns = bpf_ktime_get_boot_ns(),
		.stack = walk_stack(ctx),
		.tid = tid,
		.function = function,
	};

	if (remember(&key, &allocation, is_twin) || !is_twin)
		show_call(&key, &allocation, function);
	return 0;
}

static __always_inline int kernel_free(__u64 address, enum space space, enum function function)
{
	struct allocation_key key = { .address = address, .owner = space };
	struct allocation old;

	if (address && !is_frozen() && forget(&key, &old))
		show_call(&key, &old, function);
	return 0;
}

/*
 * kmalloc and kmalloc_node: call_site, ptr, bytes_req, bytes_alloc, flags. In 6.0 alone the cache
 * stands before the sizes: b347aa7b5747 "mm/tracing: add 'accounted' entry into output of
 * allocation tracepoints", taken back for kmalloc by 2c1d697fb8ba (6.1).
 */
typedef void (*btf_trace_kmalloc___with_cache)(void *, unsigned long, const void *,
					       struct kmem_cache *, size_t, size_t, gfp_t);
typedef void (*btf_trace_kmalloc_node___with_cache)(void *, unsigned long, const void *,
						    struct kmem_cache *, size_t, size_t, gfp_t,
						    int);

/* kmem_cache_alloc: the same; since 2c1d697fb8ba the sizes are to be found in the cache. */
typedef void (*btf_trace_kmem_cache_alloc___with_sizes)(void *, unsigned long, const void *, size_t,
							size_t, gfp_t);
typedef void (*btf_trace_kmem_cache_alloc___with_both)(void *, unsigned long, const void *,
						       struct kmem_cache *, size_t, size_t, gfp_t);

/*
 * percpu_alloc_percpu: since f67bed134a05 "percpu: improve percpu_alloc_percpu event trace" (5.19)
 * call_site is the first argument, and there is the number of bytes on all CPUs.
 */
typedef void (*btf_trace_percpu_alloc_percpu___with_bytes)(void *, unsigned long, bool, bool,
							   size_t, size_t, void *, int, void *,
							   size_t, gfp_t);

/* The size that was asked for, which stands behind the cache where that is an argument. */
static __always_inline __u64 bytes_req(__u64 *ctx, bool with_cache)
{
	__u64 size;

	if (with_cache) {
		size = ctx[4];
		barrier_var(size);
	} else {
		size = ctx[3];
	}
	return size;
}

static __always_inline int on_kmalloc(__u64 *ctx, bool is_twin)
{
	__u64 size = bytes_req(ctx, bpf_core_type_exists(btf_trace_kmalloc___with_cache));

	return kernel_alloc(ctx, ctx[1], SPACE_MEMORY, size, KMALLOC, is_twin);
}

static __always_inline int on_kmalloc_node(__u64 *ctx, bool is_twin)
{
	__u64 size = bytes_req(ctx, bpf_core_type_exists(btf_trace_kmalloc_node___with_cache));

	return kernel_alloc(ctx, ctx[1], SPACE_MEMORY, size, KMALLOC, is_twin);
}

static __always_inline int on_kmem_cache_alloc(__u64 *ctx, bool is_twin)
{
	__u64 size;

	if (bpf_core_type_exists(btf_trace_kmem_cache_alloc___with_sizes)) {
		size = ctx[3];
		barrier_var(size);
	} else if (bpf_core_type_exists(btf_trace_kmem_cache_alloc___with_both)) {
		size = ctx[4];
		barrier_var(size);
	} else {
		struct kmem_cache *cache = (struct kmem_cache *)ctx[2];

		barrier_var(cache);
		size = BPF_CORE_READ(cache, size);
	}
	return kernel_alloc(ctx, ctx[1], SPACE_MEMORY, size, KMEM_CACHE_ALLOC, is_twin);
}

/* Only there where it has the sizes. */
static __always_inline int on_kmem_cache_alloc_node(__u64 *ctx, bool is_twin)
{
	__u64 size = bytes_req(ctx, bpf_core_type_exists(btf_trace_kmem_cache_alloc___with_both));

	return kernel_alloc(ctx, ctx[1], SPACE_MEMORY, size, KMEM_CACHE_ALLOC, is_twin);
}

static __always_inline int on_page_alloc(__u64 *ctx, bool is_twin)
{
	__u64 size = page_bytes << (ctx[1] & 31);

	return kernel_alloc(ctx, ctx[0], SPACE_PAGES, size, PAGE_ALLOC, is_twin);
}

static __always_inline int on_percpu_alloc(__u64 *ctx, bool is_twin)
{
	__u64 address, size;

	if (bpf_core_type_exists(btf_trace_percpu_alloc_percpu___with_bytes)) {
		address = ctx[7];
		size = ctx[8];
		barrier_var(size);
	} else {
		address = ctx[6];
		size = ctx[2] * possible_cpus;
		barrier_var(size);
	}
	return kernel_alloc(ctx, address, SPACE_PERCPU, size, PERCPU_ALLOC, is_twin);
}

#define PROGRAM(name, tracepoint, body)                                                            \
	SEC("raw_tp/" #tracepoint)                                                                 \
	int name##__rawtp(__u64 *ctx)                                                              \
	{                                                                                          \
		return body;                                                                       \
	}

/* An allocation and its twin. */
#define ALLOCATES(tracepoint)                                                                      \
	PROGRAM(tracepoint, tracepoint, on_##tracepoint(ctx, false))                               \
	PROGRAM(tracepoint##_twin, tracepoint, on_##tracepoint(ctx, true))

#define FREES(tracepoint, body)                                                                    \
	PROGRAM(tracepoint, tracepoint, body)                                                      \
	PROGRAM(tracepoint##_twin, tracepoint, body)

#define on_mm_page_alloc on_page_alloc
#define on_percpu_alloc_percpu on_percpu_alloc

ALLOCATES(kmalloc)
ALLOCATES(kmalloc_node)
ALLOCATES(kmem_cache_alloc)
ALLOCATES(kmem_cache_alloc_node)
ALLOCATES(mm_page_alloc)
ALLOCATES(percpu_alloc_percpu)
FREES(kfree, kernel_free(ctx[1], SPACE_MEMORY, KFREE))
FREES(kmem_cache_free, kernel_free(ctx[1], SPACE_MEMORY, KMEM_CACHE_FREE))
FREES(mm_page_free, kernel_free(ctx[0], SPACE_PAGES, PAGE_FREE))
FREES(percpu_free_percpu, kernel_free(ctx[2], SPACE_PERCPU, PERCPU_FREE))

/*
 * One of many. Not static: the verifier then looks at it once, and not again at each turn of the
 * loop around it.
 */
__noinline int free_one(__u64 address)
{
	return kernel_free(address, SPACE_MEMORY, KMEM_CACHE_FREE);
}

/* As many as are freed at once after a grace period: a page of pointers. */
#define BULK 512

/*
 * Objects that are freed many at a time, among them all that waited for a grace period of RCU, come
 * by no tracepoint. Arguments: cache, number of objects, their addresses.
 */
SEC("kprobe/kmem_cache_free_bulk")
int BPF_KPROBE(free_bulk, struct kmem_cache *cache, __u64 count, __u64 *objects)
{
	for (__u32 i = 0; i < BULK; i++) {
		__u64 address = 0;

		if (i >= count)
			break;
		bpf_probe_read_kernel(&address, sizeof(address), &objects[i]);
		free_one(address);
	}
	return 0;
}
