// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * gethostlatency: calls of the C library that look up hosts.
 *
 * One program at the beginning and one at the end of each function. The functions call each other
 * inside of the library; what the program itself called is what counts. A call is known by its
 * thread and by its place on the stack.
 *
 * Ways, which differ in where calls are kept: uprobe, with the thread itself; uprobe_hash, in a
 * map, where programs of this kind have no task-local storage (until 5.12).
 */
#include "bpfscope.h"
#include "events.h"
#include "filter.h"

#define AF_UNSPEC 0
#define AF_INET 2
#define AF_INET6 10

/* As much of a name as is shown: the longest that DNS has is 253. */
#define HOST_SIZE 512

enum function {
	GETADDRINFO,
	GETHOSTBYNAME,
	GETHOSTBYNAME2,
	GETHOSTBYNAME_R,
	GETHOSTBYNAME2_R,
};

struct event {
	struct event_head head;
	__u64 lat_ns;
	enum function function;
	/* AF_*, as it was asked for. */
	__s32 family;
	/* EAI_* of getaddrinfo(), h_errno of the others; as far as it is known. */
	__s32 error;
	__u8 error_known;
	__u8 failed;
	/* 4 or 6, and the first address of the answer in network order; 0 = none. */
	__u8 version;
	/* The name is longer than what follows. */
	__u8 host_cut;
	__u32 address[4];
	/* Bytes of the name, which follow. */
	__u32 host_size;
	__u32 pad;
};
EXPORT_STRUCT(event);

/* What a thread has called, and the call inside of that which says why it fails. */
struct call {
	/* 0 = the thread is in none. */
	__u64 start_ns;
	/* When the thread began: its number may have been another one's. Not in storage, which ends
	 * with it. */
	__u64 born;
	/* The stack pointer on entry. */
	__u64 stack;
	__u64 host;
	/* Where the answer is put; 0 = it is returned. */
	__u64 answer;
	/* Where h_errno is put, or 0. */
	__u64 error_at;
	__u64 inner_stack;
	__u64 inner_error_at;
	enum function function;
	enum function inner;
	__s32 family;
	__s32 error;
	__u8 error_known;
	__u8 pad[7];
};

/* Whether calls are kept with the thread. */
const volatile bool calls_in_storage = false;

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct call);
} calls_storage SEC(".maps");

/* By thread id. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct call);
} calls_hash SEC(".maps");

struct lookup_slot {
	struct event event;
	char host[HOST_SIZE];
};

/* One a program: see EVENT_SLOT. */
EVENT_SLOT(slot_getaddrinfo, struct lookup_slot);
EVENT_SLOT(slot_gethostbyname, struct lookup_slot);
EVENT_SLOT(slot_gethostbyname2, struct lookup_slot);
EVENT_SLOT(slot_gethostbyname_r, struct lookup_slot);
EVENT_SLOT(slot_gethostbyname2_r, struct lookup_slot);

static __always_inline __u64 thread_born(void)
{
	return BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), start_boottime);
}

/* The call that the current thread is in, or NULL. */
static __always_inline struct call *call_of_current(__u32 tid)
{
	struct call *found;

	if (calls_in_storage) {
		found = bpf_task_storage_get(&calls_storage, bpf_get_current_task_btf(), NULL, 0);
		return found && found->start_ns ? found : NULL;
	}
	found = bpf_map_lookup_elem(&calls_hash, &tid);
	return found && found->born == thread_born() ? found : NULL;
}

static __always_inline void keep_call(__u32 tid, struct call *call)
{
	struct call *kept;

	if (!calls_in_storage) {
		call->born = thread_born();
		map_insert(&calls_hash, &tid, call, BPF_ANY);
		return;
	}
	kept = bpf_task_storage_get(&calls_storage, bpf_get_current_task_btf(), NULL,
				    BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (kept)
		*kept = *call;
	else
		count_map_full();
}

static __always_inline void forget_call(__u32 tid, struct call *call)
{
	if (calls_in_storage)
		call->start_ns = 0;
	else
		bpf_map_delete_elem(&calls_hash, &tid);
}

static __always_inline int call_begin(struct pt_regs *ctx, enum function function, __u64 host,
				      int family, __u64 answer, __u64 error_at)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u64 stack = PT_REGS_SP(ctx);
	struct call *found;

	if (!host || !filter_current())
		return 0;
	found = call_of_current(tid);
	/*
	 * Deeper in the stack, or in the same place where the compiler made a jump of the call. The
	 * library does not call the function again that it is in: one of the same name is new, and
	 * the old one was left by a jump out of it.
	 */
	if (found && stack <= found->stack && found->function != function) {
		if (error_at) {
			found->inner = function;
			found->inner_stack = stack;
			found->inner_error_at = error_at;
		}
		return 0;
	}

	struct call call = {
		.start_ns = bpf_ktime_get_boot_ns(),
		.stack = stack,
		.host = host,
		.answer = answer,
		.error_at = error_at,
		.function = function,
		.family = family,
	};

	keep_call(tid, &call);
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

static __always_inline __u64 user_pointer(__u64 at)
{
	__u64 value = 0;

	bpf_probe_read_user(&value, sizeof(value), (void *)at);
	return value;
}

/* Offsets in struct addrinfo and struct hostent, which all C libraries have alike on 64 bits. */
#define AI_ADDR 24
#define H_ADDRTYPE 16
#define H_ADDR_LIST 24
#define SIN_ADDR 4
#define SIN6_ADDR 8

static __always_inline void read_address(struct event *event, int family, __u64 at)
{
	if (!at)
		return;
	if (family == AF_INET && !bpf_probe_read_user(event->address, 4, (void *)at))
		event->version = 4;
	else if (family == AF_INET6 && !bpf_probe_read_user(event->address, 16, (void *)at))
		event->version = 6;
}

/* The first address of a struct addrinfo. */
static __always_inline void first_of_addrinfo(struct event *event, __u64 info)
{
	__u64 address = user_pointer(info + AI_ADDR);
	__u16 family = 0;

	bpf_probe_read_user(&family, sizeof(family), (void *)address);
	read_address(event, family, address + (family == AF_INET6 ? SIN6_ADDR : SIN_ADDR));
}

/* The first address of a struct hostent. */
static __always_inline void first_of_hostent(struct event *event, __u64 host)
{
	__u32 family = 0;

	bpf_probe_read_user(&family, sizeof(family), (void *)(host + H_ADDRTYPE));
	read_address(event, family, user_pointer(user_pointer(host + H_ADDR_LIST)));
}

static __always_inline void show(struct lookup_slot *slot, const struct call *call, __u64 result)
{
	struct event *event = &slot->event;
	bool is_info = call->function == GETADDRINFO;
	__u64 answer;

	__builtin_memset(event, 0, sizeof(*event));
	head_of_current(&event->head);
	event->lat_ns = event->head.boot_ns - call->start_ns;
	event->function = call->function;
	event->family = call->family;
	if (is_info) {
		event->error = (int)result;
		event->error_known = 1;
		event->failed = (int)result != 0;
		answer = event->failed ? 0 : user_pointer(call->answer);
		if (answer)
			first_of_addrinfo(event, answer);
	} else {
		answer = call->answer ? user_pointer(call->answer) : result;
		event->failed = !answer;
		if (answer) {
			first_of_hostent(event, answer);
			event->error_known = 1;
		} else if (call->error_at) {
			event->error_known = !bpf_probe_read_user(
				&event->error, sizeof(event->error), (void *)call->error_at);
		} else {
			event->error = call->error;
			event->error_known = call->error_known;
		}
	}

	int size = bpf_probe_read_user_str(slot->host, HOST_SIZE, (void *)call->host);
	__u64 bytes = size > 0 ? size - 1 : 0;

	barrier_var(bytes);
	if (bytes >= HOST_SIZE)
		bytes = HOST_SIZE - 1;
	/* A full buffer: is there more? */
	if (bytes == HOST_SIZE - 1) {
		char next = 0;

		bpf_probe_read_user(&next, 1, (void *)(call->host + bytes));
		event->host_cut = next != 0;
	}
	event->host_size = bytes;
	event_output(slot, sizeof(*event) + bytes);
}

static __always_inline int call_end(struct pt_regs *ctx, enum function function, void *slot_map,
				    __u64 result)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u64 stack = stack_on_entry(ctx);
	struct call *found = call_of_current(tid);
	struct lookup_slot *slot;

	if (!found)
		return 0;
	if (found->stack == stack && found->function == function) {
		slot = event_slot(slot_map);
		if (slot)
			show(slot, found, result);
		forget_call(tid, found);
		return 0;
	}
	if (found->inner_stack == stack && found->inner == function) {
		found->error_known = !bpf_probe_read_user(&found->error, sizeof(found->error),
							  (void *)found->inner_error_at);
		found->inner_stack = 0;
	}
	return 0;
}

#define ENDS(name, function)                                                                       \
	SEC("uretprobe")                                                                           \
	int BPF_KRETPROBE(name##_exit, __u64 result)                                               \
	{                                                                                          \
		return call_end(ctx, function, &slot_##name, result);                              \
	}

SEC("uprobe")
int BPF_KPROBE(getaddrinfo_enter, __u64 host, __u64 service, __u64 hints, __u64 answer)
{
	int family = AF_UNSPEC;

	/* Its second member. */
	if (hints)
		bpf_probe_read_user(&family, sizeof(family), (void *)(hints + 4));
	return call_begin(ctx, GETADDRINFO, host, family, answer, 0);
}
ENDS(getaddrinfo, GETADDRINFO)

SEC("uprobe")
int BPF_KPROBE(gethostbyname_enter, __u64 host)
{
	return call_begin(ctx, GETHOSTBYNAME, host, AF_INET, 0, 0);
}
ENDS(gethostbyname, GETHOSTBYNAME)

SEC("uprobe")
int BPF_KPROBE(gethostbyname2_enter, __u64 host, int family)
{
	return call_begin(ctx, GETHOSTBYNAME2, host, family, 0, 0);
}
ENDS(gethostbyname2, GETHOSTBYNAME2)

/* After the name: struct hostent *, char *, size_t, struct hostent **, int *. */
SEC("uprobe")
int BPF_KPROBE(gethostbyname_r_enter, __u64 host)
{
	return call_begin(ctx, GETHOSTBYNAME_R, host, AF_INET, PT_REGS_PARM5(ctx),
			  PT_REGS_PARM6(ctx));
}
ENDS(gethostbyname_r, GETHOSTBYNAME_R)

/* The same behind the family. */
SEC("uprobe")
int BPF_KPROBE(gethostbyname2_r_enter, __u64 host, int family)
{
#if defined(__TARGET_ARCH_x86)
	/* The seventh stands on the stack, behind the return address. */
	__u64 error_at = user_pointer(PT_REGS_SP(ctx) + 8);
#else
	__u64 error_at = PT_REGS_PARM7(ctx);
#endif
	return call_begin(ctx, GETHOSTBYNAME2_R, host, family, PT_REGS_PARM6(ctx), error_at);
}
ENDS(gethostbyname2_r, GETHOSTBYNAME2_R)
