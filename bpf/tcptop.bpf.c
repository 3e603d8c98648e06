// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tcptop: bytes that processes send and receive on TCP connections.
 *
 * What was sent is what tcp_sendmsg_locked() returns, to which every way to send leads, or before
 * 6.5 do_tcp_sendpages(). What was received is what inet_recvmsg() or inet6_recvmsg() returns, or
 * tcp_read_sock(), by which splice() and the kernel's own readers go. Arguments say what was
 * wanted, and tcp_cleanup_rbuf() is told the same bytes again when a call waits for more or only
 * peeks.
 */
#include "bpfscope.h"
#include "filter.h"
#include "owner.h"
#include "sock.h"

#define MSG_PEEK 2
#define MSG_ERRQUEUE 0x2000

/* Whether any filter on the task is set. */
const volatile bool want_owner = false;
/* 4, 6, or 0 for both. */
const volatile __u8 want_version = 0;

/* A connection and a process that uses it. */
struct traffic_key {
	__u64 sock;
	/* The socket's addresses (of IPv4), hash and ports, by which the kernel looks it up:
	 * another connection of a socket at the same place has others.
	 */
	__u64 addresses;
	__u32 hash;
	__u32 ports;
	/* 0 = in an interrupt: nobody's. */
	__u32 pid;
	__u32 pad;
};
EXPORT_STRUCT(traffic_key);

struct traffic {
	struct event_head head;
	struct sock_tuple tuple;
	__u64 tx_bytes;
	__u64 rx_bytes;
};
EXPORT_STRUCT(traffic);

/* Connections that can be told apart in an interval. */
#define CONNECTIONS 16384

struct traffic_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CONNECTIONS);
	__type(key, struct traffic_key);
	__type(value, struct traffic);
};

struct traffic_map traffic_first SEC(".maps");
struct traffic_map traffic_second SEC(".maps");

/* The one of the two that is filled; the other one is read meanwhile. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct traffic_map);
} traffic SEC(".maps") = {
	.values = { [0] = &traffic_first },
};

/* Adds to what the current process does on a socket; `owned` = it does it itself. */
static __always_inline int count(struct sock *sock, bool owned, __u64 tx, __u64 rx)
{
	struct traffic_key key = { .sock = (__u64)sock };
	struct sock_tuple tuple;
	__u32 zero = 0;

	if (want_owner && (!owned || !filter_owner()))
		return 0;
	if (want_version && (!sock_tuple(sock, &tuple) || tuple.version != want_version))
		return 0;
	/* The three follow each other, and are compared as one in the kernel. */
	bpf_probe_read_kernel(&key.addresses, 16,
			      __builtin_preserve_access_index(&sock->__sk_common.skc_addrpair));
	if (owned)
		key.pid = bpf_get_current_pid_tgid() >> 32;

	void *map = bpf_map_lookup_elem(&traffic, &zero);

	if (!map)
		return 0;

	struct traffic *found = bpf_map_lookup_elem(map, &key);

	if (!found) {
		struct traffic new = {};

		if (!sock_tuple(sock, &new.tuple))
			return 0;
		if (owned)
			head_of_owner(&new.head);
		map_insert(map, &key, &new, BPF_NOEXIST);
		found = bpf_map_lookup_elem(map, &key);
		if (!found)
			return 0;
	}
	if (tx)
		add_atomically(&found->tx_bytes, tx);
	if (rx)
		add_atomically(&found->rx_bytes, rx);
	return 0;
}

static __always_inline int sent(struct sock *sock, int result)
{
	return result > 0 ? count(sock, true, result, 0) : 0;
}

/*
 * recvmsg() of any IP socket has returned. What comes through an upper layer (kernel TLS) is
 * counted when that layer takes it, below.
 */
static __always_inline bool is_received(struct sock *sock, int flags, int result)
{
	if (result <= 0 || flags & (MSG_PEEK | MSG_ERRQUEUE))
		return false;
	if (BPF_CORE_READ(sock, sk_protocol) != IPPROTO_TCP)
		return false;
	return !BPF_CORE_READ((struct inet_connection_sock *)sock, icsk_ulp_ops);
}

static __always_inline int received(struct sock *sock, int flags, int result)
{
	return is_received(sock, flags, result) ? count(sock, true, 0, result) : 0;
}

/*
 * Each hit runs two programs, because the kernel skips one of which another hit is under way on the
 * CPU (see twin.h). A call that has sent or received something has moved the socket's position in
 * the stream, so that of both programs the second one finds what the first one left.
 */
#define MARKS 32768

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MARKS);
	__type(key, __u32);
	__type(value, __u64);
} marks SEC(".maps");

static __always_inline bool first(struct sock *sock, __u32 position)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u32 index = tid % MARKS;
	__u64 *mark = bpf_map_lookup_elem(&marks, &index);
	__u64 own = (__u64)tid << 32 | (position ^ (__u32)((__u64)sock >> 6));

	if (!mark)
		return true;
	if (*mark == own)
		return false;
	*mark = own;
	return true;
}

static __always_inline bool first_to_send(struct sock *sock)
{
	return first(sock, BPF_CORE_READ((struct tcp_sock *)sock, write_seq));
}

static __always_inline bool first_to_receive(struct sock *sock)
{
	return first(sock, ~BPF_CORE_READ((struct tcp_sock *)sock, copied_seq));
}

/*
 * tcp_read_sock() and the like. In an interrupt the socket's lock is held in another way, and the
 * current task has nothing to do with it.
 */
static __always_inline int taken(struct sock *sock, int result)
{
	if (result <= 0 || !first_to_receive(sock))
		return 0;
	return count(sock, BPF_CORE_READ(sock, sk_lock.owned), 0, result);
}

/*
 * splice() from a socket has returned. Where it went by tcp_read_sock(), as it did before that had
 * an inner function, all is counted already, and the mark of the last part says so.
 */
static __always_inline int spliced(struct sock *sock, int result)
{
	if (result <= 0 || !first_to_receive(sock))
		return 0;
	return count(sock, true, 0, result);
}

/* ---- way fexit ---- */

#define SEND_FEXIT(name)                                                                           \
	SEC("fexit/tcp_sendmsg_locked")                                                            \
	int BPF_PROG(name, struct sock *sock, void *message, __u64 size, int result)               \
	{                                                                                          \
		return result > 0 && first_to_send(sock) ? sent(sock, result) : 0;                 \
	}

SEND_FEXIT(send__fexit)
SEND_FEXIT(send_twin__fexit)

SEC("fexit/do_tcp_sendpages")
int BPF_PROG(pages__fexit, struct sock *sock, void *page, int offset, __u64 size, int flags,
	     int result)
{
	return sent(sock, result);
}

#define RECEIVE_FEXIT(name, function)                                                              \
	SEC("fexit/" function)                                                                     \
	int BPF_PROG(name, struct socket *socket, void *message, __u64 size, int flags,            \
		     int result)                                                                   \
	{                                                                                          \
		struct sock *sock = BPF_CORE_READ(socket, sk);                                     \
                                                                                                   \
		if (!is_received(sock, flags, result) || !first_to_receive(sock))                  \
			return 0;                                                                  \
		return count(sock, true, 0, result);                                               \
	}

RECEIVE_FEXIT(receive4__fexit, "inet_recvmsg")
RECEIVE_FEXIT(receive4_twin__fexit, "inet_recvmsg")
RECEIVE_FEXIT(receive6__fexit, "inet6_recvmsg")
RECEIVE_FEXIT(receive6_twin__fexit, "inet6_recvmsg")

SEC("fexit/tcp_read_sock")
int BPF_PROG(read__fexit, struct sock *sock, void *descriptor, void *actor, int result)
{
	return taken(sock, result);
}

SEC("fexit/tcp_splice_read")
int BPF_PROG(splice__fexit, struct socket *socket, void *position, void *pipe, __u64 size,
	     unsigned int flags, int result)
{
	return spliced(BPF_CORE_READ(socket, sk), result);
}

/* Kernel TLS has used data where it lay; since 6.0. */
SEC("fentry/tcp_read_done")
int BPF_PROG(done__fexit, struct sock *sock, __u64 size)
{
	return taken(sock, size);
}

/* ---- way kprobe ---- */

enum call {
	CALL_SEND,
	CALL_PAGES,
	CALL_RECEIVE,
	CALL_READ,
	CALL_SPLICE,
};

struct call_key {
	__u32 tid;
	enum call call;
};

struct call_args {
	__u64 sock;
	__u32 flags;
	__u32 pad;
};

/* Calls that wait for data are under way for long. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 32768);
	__type(key, struct call_key);
	__type(value, struct call_args);
} calls__kprobe SEC(".maps");

static __always_inline int call_begin(enum call call, struct sock *sock, int flags)
{
	struct call_key key = { .tid = (__u32)bpf_get_current_pid_tgid(), .call = call };
	struct call_args args = { .sock = (__u64)sock, .flags = flags };

	map_insert(&calls__kprobe, &key, &args, BPF_ANY);
	return 0;
}

static __always_inline int call_end(enum call call, int result)
{
	struct call_key key = { .tid = (__u32)bpf_get_current_pid_tgid(), .call = call };
	struct call_args *found = bpf_map_lookup_elem(&calls__kprobe, &key);

	if (!found)
		return 0;

	struct sock *sock = (struct sock *)found->sock;
	int flags = found->flags;

	bpf_map_delete_elem(&calls__kprobe, &key);
	if (call == CALL_RECEIVE)
		return received(sock, flags, result);
	if (call == CALL_READ)
		return taken(sock, result);
	return call == CALL_SPLICE ? spliced(sock, result) : sent(sock, result);
}

SEC("kprobe/tcp_sendmsg_locked")
int BPF_KPROBE(send_enter__kprobe, struct sock *sock)
{
	return call_begin(CALL_SEND, sock, 0);
}

SEC("kretprobe/tcp_sendmsg_locked")
int BPF_KRETPROBE(send_exit__kprobe, int result)
{
	return call_end(CALL_SEND, result);
}

SEC("kprobe/do_tcp_sendpages")
int BPF_KPROBE(pages_enter__kprobe, struct sock *sock)
{
	return call_begin(CALL_PAGES, sock, 0);
}

SEC("kretprobe/do_tcp_sendpages")
int BPF_KRETPROBE(pages_exit__kprobe, int result)
{
	return call_end(CALL_PAGES, result);
}

/* Whoever waits for a datagram is not to take up room. */
static __always_inline int receive_begin(struct socket *socket, int flags)
{
	struct sock *sock = BPF_CORE_READ(socket, sk);

	if (BPF_CORE_READ(sock, sk_protocol) != IPPROTO_TCP)
		return 0;
	return call_begin(CALL_RECEIVE, sock, flags);
}

SEC("kprobe/inet_recvmsg")
int BPF_KPROBE(receive4_enter__kprobe, struct socket *socket, void *message, __u64 size, int flags)
{
	return receive_begin(socket, flags);
}

SEC("kretprobe/inet_recvmsg")
int BPF_KRETPROBE(receive4_exit__kprobe, int result)
{
	return call_end(CALL_RECEIVE, result);
}

SEC("kprobe/inet6_recvmsg")
int BPF_KPROBE(receive6_enter__kprobe, struct socket *socket, void *message, __u64 size, int flags)
{
	return receive_begin(socket, flags);
}

SEC("kretprobe/inet6_recvmsg")
int BPF_KRETPROBE(receive6_exit__kprobe, int result)
{
	return call_end(CALL_RECEIVE, result);
}

SEC("kprobe/tcp_read_sock")
int BPF_KPROBE(read_enter__kprobe, struct sock *sock)
{
	return call_begin(CALL_READ, sock, 0);
}

SEC("kretprobe/tcp_read_sock")
int BPF_KRETPROBE(read_exit__kprobe, int result)
{
	return call_end(CALL_READ, result);
}

SEC("kprobe/tcp_splice_read")
int BPF_KPROBE(splice_enter__kprobe, struct socket *socket)
{
	return call_begin(CALL_SPLICE, BPF_CORE_READ(socket, sk), 0);
}

SEC("kretprobe/tcp_splice_read")
int BPF_KRETPROBE(splice_exit__kprobe, int result)
{
	return call_end(CALL_SPLICE, result);
}

SEC("kprobe/tcp_read_done")
int BPF_KPROBE(done__kprobe, struct sock *sock, __u64 size)
{
	return taken(sock, size);
}

/* ---- way tp: sockets of all kinds, since 6.3 ---- */

/* Arguments of both: socket, result, flags. */
static __always_inline bool is_tcp_result(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sock = (struct sock *)ctx->args[0];

	if ((int)ctx->args[1] <= 0 || (int)ctx->args[2] & (MSG_PEEK | MSG_ERRQUEUE))
		return false;
	if (BPF_CORE_READ(sock, sk_protocol) != IPPROTO_TCP)
		return false;

	__u16 family = sock_family(sock);

	return family == AF_INET || family == AF_INET6;
}

static __always_inline int sent_tp(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sock = (struct sock *)ctx->args[0];

	if (!is_tcp_result(ctx) || !first_to_send(sock))
		return 0;
	return count(sock, true, (int)ctx->args[1], 0);
}

static __always_inline int received_tp(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sock = (struct sock *)ctx->args[0];

	if (!is_tcp_result(ctx) || !first_to_receive(sock))
		return 0;
	return count(sock, true, 0, (int)ctx->args[1]);
}

SEC("raw_tp/sock_send_length")
int send__tp(struct bpf_raw_tracepoint_args *ctx)
{
	return sent_tp(ctx);
}

SEC("raw_tp/sock_send_length")
int send_twin__tp(struct bpf_raw_tracepoint_args *ctx)
{
	return sent_tp(ctx);
}

SEC("raw_tp/sock_recv_length")
int receive__tp(struct bpf_raw_tracepoint_args *ctx)
{
	return received_tp(ctx);
}

SEC("raw_tp/sock_recv_length")
int receive_twin__tp(struct bpf_raw_tracepoint_args *ctx)
{
	return received_tp(ctx);
}
