// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tcpconnect: active TCP connects.
 *
 * tcp_v4_connect() and tcp_v6_connect() return 0 when the SYN is on its way, to whomever asked:
 * connect(), sendto() with MSG_FASTOPEN, io_uring, the kernel's own clients. The latter calls the
 * former for ::ffff:a.b.c.d; the outer one speaks for both.
 *
 * inet_sock_set_state says what became of the handshake. Where no kernel function can be probed it
 * also says that there is a connect, together with sys_exit.
 */
#include "bpfscope.h"
#include "events.h"
#include "filter.h"
#include "owner.h"
#include "sock.h"
#include "syscall.h"
#include "twin.h"

#define EINTR 4
#define EBADF 9
#define EFAULT 14
#define ENOTSOCK 88
#define ECONNABORTED 103
#define ECONNRESET 104
#define EISCONN 106
#define ETIMEDOUT 110
#define ECONNREFUSED 111
#define EALREADY 114
#define EINPROGRESS 115
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516

#define PF_KTHREAD 0x00200000
#define S_IFMT 00170000
#define S_IFSOCK 0140000

#define DNS_PORT 53
/* Longer answers over UDP would have to be put together from fragments. */
#define DNS_SIZE 1500

#if defined(__TARGET_ARCH_x86)
#define NR_connect 42
#define NR32_connect 362
#elif defined(__TARGET_ARCH_arm64)
#define NR_connect 203
#define NR32_connect 283
#endif

/* Also failures before a SYN was sent. */
const volatile bool want_fails = false;
/* Wait for the end of the handshake. */
const volatile bool want_result = false;
/* Count, and send no events. */
const volatile bool want_count = false;
/* Count each source port by itself. */
const volatile bool want_sport = false;
/* 4, 6, or 0 for both. */
const volatile __u8 want_version = 0;
/* Only destination ports whose bit is set. */
const volatile bool want_ports = false;
const volatile __u64 want_port[65536 / 64] = {};
/* The way without functions. */
const volatile bool way_is_tp = false;

enum record_kind {
	RECORD_CONNECT,
	RECORD_DNS,
};

enum outcome {
	/* The SYN was sent; nobody waited for more. */
	OUTCOME_SENT,
	OUTCOME_ESTABLISHED,
	/* error says why. */
	OUTCOME_FAILED,
	/* By the application, before an answer came. */
	OUTCOME_CLOSED,
	/* The connect failed before it sent a SYN; error says why. */
	OUTCOME_UNSENT,
};

/* What every record begins with. */
struct record {
	struct event_head head;
	enum record_kind kind;
	/* Of a RECORD_DNS: bytes of the message, which follow. */
	__u32 size;
};
EXPORT_STRUCT(record);

struct event {
	struct event_head head;
	enum record_kind kind;
	enum outcome outcome;
	struct sock_tuple tuple;
	/* An errno, or 0. */
	__u32 error;
	__u32 pad;
};
EXPORT_STRUCT(event);

/* A connect whose end is waited for: of the call, of the handshake, or both. */
struct pending {
	struct event event;
	/* connect() has returned, or whatever it was. */
	__u8 call_over;
	/* It is giving up before it sent a SYN, and will return the reason. */
	__u8 giving_up;
	/* The task makes system calls, and so will come to sys_exit. */
	__u8 has_exit;
	__u8 pad[5];
};
EXPORT_STRUCT(pending);

/* By struct sock *. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, __u64);
	__type(value, struct pending);
} pending SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct sock_tuple);
	__type(value, __u64);
} counts SEC(".maps");

static __always_inline bool wanted(const struct sock_tuple *tuple)
{
	__u64 port = tuple->dport;

	if (want_version && tuple->version != want_version)
		return false;
	if (!want_ports)
		return true;
	/* The verifiers of 5.10 and 6.1 do not see that a byte-swapped port has 16 bits. */
	barrier_var(port);
	port &= 0xffff;
	return want_port[port / 64] >> port % 64 & 1;
}

static __always_inline void count(const struct sock_tuple *tuple)
{
	struct sock_tuple key = *tuple;
	__u64 one = 1;

	key.v4_mapped = 0;
	if (!want_sport)
		key.sport = 0;

	__u64 *found = bpf_map_lookup_elem(&counts, &key);

	if (!found) {
		if (!map_insert(&counts, &key, &one, BPF_NOEXIST))
			return;
		/* Another CPU may have been faster. */
		found = bpf_map_lookup_elem(&counts, &key);
	}
	if (found)
		add_atomically(found, 1);
}

static __always_inline void show(const struct event *event)
{
	if (want_count) {
		count(&event->tuple);
		return;
	}

	struct event *room = event_reserve(struct event);

	if (room) {
		*room = *event;
		event_submit(room);
	}
}

/*
 * Takes a pending connect out of the map. Several programs may want the same one at the same time;
 * one of them gets it.
 */
static __always_inline bool claim(__u64 key, const struct pending *pending_connect,
				  struct event *event)
{
	*event = pending_connect->event;
	return !bpf_map_delete_elem(&pending, &key);
}

/* ---- the call ---- */

/* A connect function has returned, in the context of its caller. */
static __always_inline int call_done(struct sock *sock, const void *address, int size, int result)
{
	struct event event = {};

	if (want_result) {
		__u64 key = (__u64)sock;
		struct pending *found = bpf_map_lookup_elem(&pending, &key);

		/* Still before the handshake can end: the caller holds the socket's lock. */
		if (found && !result) {
			found->event.tuple.sport = sock_sport(sock, false);
			found->call_over = 1;
		} else if (found) {
			bpf_map_delete_elem(&pending, &key);
		}
		if (!result)
			return 0;
	}
	if (result && !want_fails)
		return 0;
	if (!sock_tuple(sock, &event.tuple, false))
		return 0;
	/* The socket forgets where a failed connect was to go. */
	if (result)
		sock_tuple_set_dest(&event.tuple, address, size);
	if (!wanted(&event.tuple) || !filter_owner())
		return 0;
	if (result) {
		event.outcome = OUTCOME_UNSENT;
		event.error = -result;
	}
	if (!want_count)
		head_of_owner(&event.head);
	show(&event);
	return 0;
}

/* ---- way fexit ---- */

/* A connect to a v4-mapped address goes from tcp_v6_connect() to tcp_v4_connect(): seen once. */
#define CONNECT_FEXIT(name, function, is_v6, is_twin)                                              \
	SEC("fexit/" function)                                                                     \
	int BPF_PROG(name, struct sock *sock, const void *address, int size, int result)           \
	{                                                                                          \
		if (!is_v6 && sock_family(sock, false) == AF_INET6)                                \
			return 0;                                                                  \
		if (!twin_first((__u32)bpf_get_current_pid_tgid(), is_twin))                       \
			return 0;                                                                  \
		return call_done(sock, address, size, result);                                     \
	}

CONNECT_FEXIT(connect4__fexit, "tcp_v4_connect", false, false)
CONNECT_FEXIT(connect4_twin__fexit, "tcp_v4_connect", false, true)
CONNECT_FEXIT(connect6__fexit, "tcp_v6_connect", true, false)
CONNECT_FEXIT(connect6_twin__fexit, "tcp_v6_connect", true, true)

/* ---- way kprobe ---- */

struct call_args {
	__u64 sock;
	__u64 address;
	__u32 size;
	__u32 is_v6;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, __u32);
	__type(value, struct call_args);
} calls__kprobe SEC(".maps");

static __always_inline int call_begin(struct sock *sock, const void *address, int size, bool is_v6)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct call_args args = {
		.sock = (__u64)sock,
		.address = (__u64)address,
		.size = size,
		.is_v6 = is_v6,
	};

	map_insert(&calls__kprobe, &tid, &args, BPF_ANY);
	return 0;
}

static __always_inline int call_return(int result, bool is_v6)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	struct call_args *found = bpf_map_lookup_elem(&calls__kprobe, &tid);

	/* The inner of two calls leaves the entry to the outer one. */
	if (!found || found->is_v6 != is_v6)
		return 0;

	struct call_args args = *found;

	bpf_map_delete_elem(&calls__kprobe, &tid);
	return call_done((struct sock *)args.sock, (const void *)args.address, args.size, result);
}

SEC("kprobe/tcp_v4_connect")
int BPF_KPROBE(connect4_enter__kprobe, struct sock *sock, const void *address, int size)
{
	if (sock_family(sock, false) == AF_INET6)
		return 0;
	return call_begin(sock, address, size, false);
}

SEC("kretprobe/tcp_v4_connect")
int BPF_KRETPROBE(connect4_exit__kprobe, int result)
{
	return call_return(result, false);
}

SEC("kprobe/tcp_v6_connect")
int BPF_KPROBE(connect6_enter__kprobe, struct sock *sock, const void *address, int size)
{
	return call_begin(sock, address, size, true);
}

SEC("kretprobe/tcp_v6_connect")
int BPF_KRETPROBE(connect6_exit__kprobe, int result)
{
	return call_return(result, true);
}

/* ---- way tp: the call seen from outside ---- */

/* By thread id: the socket that its system call is connecting. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, __u32);
	__type(value, __u64);
} calls__tp SEC(".maps");

/* Entries of that map, so that nearly every sys_exit has nothing to look up. */
__u64 calls_in_progress;

static __always_inline void forget_call(__u32 tid)
{
	if (!bpf_map_delete_elem(&calls__tp, &tid))
		add_atomically(&calls_in_progress, -1);
}

/* The SYN is out as far as this way can know. */
static __always_inline void sent(__u64 key, struct pending *found)
{
	struct event event;
	__u16 sport = sock_sport((struct sock *)key, false);

	if (want_result) {
		found->event.tuple.sport = sport;
		found->call_over = 1;
		return;
	}
	if (claim(key, found, &event)) {
		event.tuple.sport = sport;
		show(&event);
	}
}

static __always_inline void note_call(__u64 key)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u64 *earlier = bpf_map_lookup_elem(&calls__tp, &tid);

	/* One system call, several connects (io_uring_enter): the one before this is done. */
	if (earlier) {
		__u64 before = *earlier;
		struct pending *found = bpf_map_lookup_elem(&pending, &before);

		forget_call(tid);
		if (found && before != key)
			sent(before, found);
	}
	/* First the number, so that it is never too small. */
	add_atomically(&calls_in_progress, 1);
	if (map_insert(&calls__tp, &tid, &key, BPF_ANY))
		add_atomically(&calls_in_progress, -1);
}

/*
 * A connect that failed before its socket changed its state, of which no tracepoint says anything:
 * what connect() itself returned. Only errors that are not the answer to an earlier connect.
 */
static __always_inline int call_failed(struct pt_regs *regs, long result)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	bool is_32bit = syscall_is_32bit();
	struct event event = {};
	struct file *file = NULL;

	if (syscall_number(regs) != (is_32bit ? NR32_connect : NR_connect))
		return 0;
	switch (-result) {
	case EINTR:
	case EBADF:
	case EFAULT:
	case ENOTSOCK:
	case ECONNABORTED:
	case ECONNRESET:
	case EISCONN:
	case ETIMEDOUT:
	case ECONNREFUSED:
	case EALREADY:
	case EINPROGRESS:
	case ERESTARTSYS ... ERESTART_RESTARTBLOCK:
		return 0;
	}

	__u32 fd = (__u32)syscall_arg(regs, 0, is_32bit);
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files = BPF_CORE_READ(table, fd);

	if (fd >= BPF_CORE_READ(table, max_fds))
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), &files[fd]);
	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;

	struct socket *socket = BPF_CORE_READ(file, private_data);
	struct sock *sock = BPF_CORE_READ(socket, sk);

	if (BPF_CORE_READ(sock, sk_protocol) != IPPROTO_TCP ||
	    !sock_tuple(sock, &event.tuple, false))
		return 0;

	const void *user_address = (const void *)syscall_arg(regs, 1, is_32bit);
	int size = (int)syscall_arg(regs, 2, is_32bit);
	struct sockaddr_in6 address = {};

	/* Not more than the caller says is there. */
	if (size >= SIN6_LEN_RFC2133)
		bpf_probe_read_user(&address, SIN6_LEN_RFC2133, user_address);
	else if (size >= (int)sizeof(struct sockaddr_in))
		bpf_probe_read_user(&address, sizeof(struct sockaddr_in), user_address);
	sock_tuple_set_dest(&event.tuple, &address, size);
	if (!wanted(&event.tuple) || !filter_owner())
		return 0;
	event.outcome = OUTCOME_UNSENT;
	event.error = -result;
	head_of_owner(&event.head);
	show(&event);
	return 0;
}

SEC("raw_tp/sys_exit")
int call_exit__tp(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx->args[0];
	long result = (long)ctx->args[1];

	if (READ_ONCE(calls_in_progress)) {
		__u32 tid = (__u32)bpf_get_current_pid_tgid();
		__u64 *sock = bpf_map_lookup_elem(&calls__tp, &tid);

		if (sock) {
			__u64 key = *sock;
			struct pending *found = bpf_map_lookup_elem(&pending, &key);
			struct event event;

			forget_call(tid);
			if (!found)
				return 0;
			if (!found->giving_up) {
				sent(key, found);
			} else if (claim(key, found, &event) && want_fails) {
				event.outcome = OUTCOME_UNSENT;
				/* io_uring_enter() succeeds all the same. */
				event.error = result < 0 ? -result : 0;
				show(&event);
			}
			return 0;
		}
	}
	if (want_fails && result < 0)
		return call_failed(regs, result);
	return 0;
}

/*
 * A blocking connect to a host that does not answer comes to sys_exit only when it gives up, two
 * minutes later. Its first retransmission is a second away.
 */
SEC("raw_tp/tcp_retransmit_skb")
int call_lasts__tp(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sock = (struct sock *)ctx->args[0];
	__u64 key = (__u64)sock;

	if (BPF_CORE_READ(sock, __sk_common.skc_state) != TCP_SYN_SENT)
		return 0;

	struct pending *found = bpf_map_lookup_elem(&pending, &key);

	if (found)
		sent(key, found);
	return 0;
}

/* ---- the handshake ---- */

/* CLOSE to SYN_SENT, in the context of the caller. No source port yet, unless it was bound. */
static __always_inline int handshake_begin(struct sock *sock)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct pending new = {};
	__u64 key = (__u64)sock;

	/* Others have these states too; MPTCP has them twice, once for the TCP socket below it. */
	if (BPF_CORE_READ(sock, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (!sock_tuple(sock, &new.event.tuple, false) || !wanted(&new.event.tuple) ||
	    !filter_owner())
		return 0;
	head_of_owner(&new.event.head);
	new.has_exit = !(BPF_CORE_READ(task, flags) & (PF_KTHREAD | PF_IO_WORKER));
	if (map_insert(&pending, &key, &new, BPF_ANY))
		return 0;
	if (way_is_tp && new.has_exit)
		note_call(key);
	return 0;
}

/* Away from SYN_SENT: answered, refused, given up, closed. */
static __always_inline int handshake_end(struct sock *sock, int state)
{
	__u64 key = (__u64)sock;
	struct pending *found = bpf_map_lookup_elem(&pending, &key);
	struct event event;

	if (!found)
		return 0;

	__u32 error = state == TCP_CLOSE ? BPF_CORE_READ(sock, sk_err) : 0;
	bool has_exit = found->has_exit;
	bool giving_up = state == TCP_CLOSE && !error && !found->call_over &&
			 head_is_current(&found->event.head);

	/* The connect itself, which did not come as far as a SYN: its return says why. */
	if (giving_up && (has_exit || !way_is_tp)) {
		found->giving_up = 1;
		return 0;
	}
	if (!claim(key, found, &event))
		return 0;
	if (giving_up) {
		/* In a worker, whose reason is not to be had. */
		if (!want_fails)
			return 0;
		event.outcome = OUTCOME_UNSENT;
	} else if (want_result) {
		event.error = error;
		event.outcome = state != TCP_CLOSE ? OUTCOME_ESTABLISHED
				: error		   ? OUTCOME_FAILED
						   : OUTCOME_CLOSED;
	}
	event.tuple.sport = sock_sport(sock, false);
	show(&event);
	return 0;
}

/* Arguments: socket, old state, new state. */
SEC("raw_tp/inet_sock_set_state")
int handshake__all(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sock = (struct sock *)ctx->args[0];
	int before = (int)ctx->args[1];
	int after = (int)ctx->args[2];

	if (after == TCP_SYN_SENT)
		return handshake_begin(sock);
	/* Both sides at once go by way of SYN_RECV, where also those begin that are accepted. */
	if (before == TCP_SYN_RECV || (before == TCP_SYN_SENT && after != TCP_SYN_RECV))
		return handshake_end(sock, after);
	return 0;
}

/* ---- DNS answers ---- */

struct dns_slot {
	struct record record;
	char message[DNS_SIZE];
};

/* One a program: see EVENT_SLOT. */
EVENT_SLOT(slot_dns4, struct dns_slot);
EVENT_SLOT(slot_dns6, struct dns_slot);

/* Before 5.14 the type shared its word with flags (8cd54c1c8480 "iov_iter: separate direction"). */
struct iov_iter___with_flags {
	unsigned int type;
} __attribute__((preserve_access_index));

/* Before 6.4 (747b1f65d39a "iov_iter: overlay struct iovec and ubuf/len"). */
struct iov_iter___plain {
	const struct iovec *iov;
} __attribute__((preserve_access_index));

/*
 * Where a message was just received to: the caller's buffer, by what the iterator over it has
 * moved. Answers that were scattered over several buffers are not found.
 */
static __always_inline const void *received(struct iov_iter *iter, __u64 *size)
{
	__u32 type;

	if (bpf_core_field_exists(struct iov_iter, iter_type)) {
		type = BPF_CORE_READ(iter, iter_type);
	} else {
		struct iov_iter___with_flags *old = (void *)iter;

		/* The lowest bit is the direction. */
		type = BPF_CORE_READ(old, type) & ~1u;
	}
	*size = BPF_CORE_READ(iter, iov_offset);

	/* Since 6.0 one buffer is more often this. */
	if (bpf_core_enum_value_exists(enum iter_type, ITER_UBUF) &&
	    type == bpf_core_enum_value(enum iter_type, ITER_UBUF))
		return BPF_CORE_READ(iter, ubuf);
	if (type != bpf_core_enum_value(enum iter_type, ITER_IOVEC))
		return NULL;

	const struct iovec *iov;

	if (bpf_core_field_exists(struct iov_iter, __iov)) {
		iov = BPF_CORE_READ(iter, __iov);
	} else {
		struct iov_iter___plain *old = (void *)iter;

		iov = BPF_CORE_READ(old, iov);
	}
	return BPF_CORE_READ(iov, iov_base);
}

/* A datagram was received. Filters do not matter: somebody else may ask for the tracee. */
static __always_inline int dns_received(void *slot_map, struct sock *sock, struct msghdr *message)
{
	__u16 port = BPF_CORE_READ(sock, __sk_common.skc_dport);
	__u64 size = 0;

	/* Not connected: whom it came from was noted in the message. */
	if (!port) {
		const struct sockaddr_in *from = BPF_CORE_READ(message, msg_name);

		/* The port is at the same place in sockaddr_in6. */
		bpf_probe_read_kernel(&port, sizeof(port), &from->sin_port);
	}
	if (port != bpf_htons(DNS_PORT))
		return 0;

	const void *from = received(__builtin_preserve_access_index(&message->msg_iter), &size);

	if (!from || !size)
		return 0;

	struct dns_slot *slot = event_slot(slot_map);

	if (!slot)
		return 0;
	if (size > DNS_SIZE)
		size = DNS_SIZE;
	if (bpf_probe_read_user(slot->message, size, from))
		return 0;
	head_of_current(&slot->record.head);
	slot->record.kind = RECORD_DNS;
	slot->record.size = size;
	record_output(slot, sizeof(slot->record) + size);
	return 0;
}

SEC("fexit/udp_recvmsg")
int BPF_PROG(dns4__fexit, struct sock *sock, struct msghdr *message)
{
	return dns_received(&slot_dns4, sock, message);
}

SEC("fexit/udpv6_recvmsg")
int BPF_PROG(dns6__fexit, struct sock *sock, struct msghdr *message)
{
	return dns_received(&slot_dns6, sock, message);
}

/*
 * With kprobes the end is skb_consume_udp(), which both call when the message is copied: those
 * who wait for a datagram would use up the few kretprobes that can be under way at a time. Entries
 * of calls that received nothing are left behind, for the next call or for the map to throw out.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	/* struct msghdr *, kept out of the generated types. */
	__type(value, __u64);
} dns_calls__kprobe SEC(".maps");

static __always_inline int dns_begin(struct sock *sock, struct msghdr *message)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u16 port = BPF_CORE_READ(sock, __sk_common.skc_dport);
	__u64 value = (__u64)message;

	if (!port || port == bpf_htons(DNS_PORT))
		map_insert(&dns_calls__kprobe, &tid, &value, BPF_ANY);
	return 0;
}

SEC("kprobe/udp_recvmsg")
int BPF_KPROBE(dns4_enter__kprobe, struct sock *sock, struct msghdr *message)
{
	return dns_begin(sock, message);
}

SEC("kprobe/udpv6_recvmsg")
int BPF_KPROBE(dns6_enter__kprobe, struct sock *sock, struct msghdr *message)
{
	return dns_begin(sock, message);
}

SEC("kprobe/skb_consume_udp")
int BPF_KPROBE(dns_end__kprobe, struct sock *sock)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u64 *found = bpf_map_lookup_elem(&dns_calls__kprobe, &tid);

	if (!found)
		return 0;

	struct msghdr *message = (struct msghdr *)*found;

	bpf_map_delete_elem(&dns_calls__kprobe, &tid);
	return dns_received(&slot_dns4, sock, message);
}
