// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tcplife: TCP connections when they end: whose they were, how long they lasted, what they carried.
 *
 * inet_sock_set_state says when a connection begins and ends, and mostly says so in an interrupt,
 * where the current task has nothing to do with it. Two moments are the owner's: the change to
 * SYN_SENT, which happens in connect(), and accept(), where security_sock_graft() gives the socket
 * of a connection to its file. Both are called with the socket locked, as are the changes of state,
 * so that nothing below happens twice at once for one socket.
 */
#include "bpfscope.h"
#include "events.h"
#include "filter.h"
#include "owner.h"
#include "sock.h"
#include "syscall.h"

#define S_IFMT 00170000
#define S_IFSOCK 0140000

#if defined(__TARGET_ARCH_x86)
#define NR_accept 43
#define NR_accept4 288
/* No accept() of its own: it is in socketcall(). */
#define NR32_accept (-2)
#define NR32_accept4 364
#define NR32_socketcall 102
#elif defined(__TARGET_ARCH_arm64)
#define NR_accept 202
#define NR_accept4 242
#define NR32_accept 285
#define NR32_accept4 366
#define NR32_socketcall (-2)
#endif

/* include/uapi/linux/net.h: the calls in socketcall(). */
#define SYS_ACCEPT 5
#define SYS_ACCEPT4 18

/* Whether any filter on the task is set: what has no owner is not shown then. */
const volatile bool want_owner = false;
/* 4, 6, or 0 for both. */
const volatile __u8 want_version = 0;
/* Only local, remote ports whose bit is set. */
const volatile bool want_lports = false;
const volatile bool want_rports = false;
const volatile __u64 want_lport[65536 / 64] = {};
const volatile __u64 want_rport[65536 / 64] = {};

enum direction {
	DIRECTION_UNKNOWN,
	DIRECTION_OUT,
	DIRECTION_IN,
};

enum reset {
	RESET_NONE,
	RESET_SENT,
	RESET_RECEIVED,
};

struct event {
	/* When the connection ended, and its owner. */
	struct event_head head;
	struct sock_tuple tuple;
	/* Since it was established, or since the SYN if it never was. */
	__u64 duration_ns;
	/* What the other side acknowledged, and what was received in order. */
	__u64 tx_bytes;
	__u64 rx_bytes;
	/* Segments that were sent again. */
	__u32 retransmits;
	/* An errno, or 0. */
	__u32 error;
	enum direction direction;
	enum reset reset;
	/* The state before the end. */
	__u8 last_state;
	__u8 established;
	/* Whether head says whose it was. */
	__u8 owned;
	__u8 pad[5];
};
EXPORT_STRUCT(event);

/* A connection that has not ended. */
struct life {
	struct event_head head;
	__u64 born_ns;
	enum direction direction;
	enum reset reset;
	__u8 established;
	__u8 owned;
	__u8 pad[6];
};

/* By struct sock *, until the socket's state is CLOSE. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct life);
} lives SEC(".maps");

static __always_inline bool has_port(const volatile __u64 *ports, __u64 port)
{
	/* The verifiers of 5.10 and 6.1 do not see that a byte-swapped port has 16 bits. */
	barrier_var(port);
	port &= 0xffff;
	return ports[port / 64] >> port % 64 & 1;
}

static __always_inline bool wanted(const struct sock_tuple *tuple)
{
	if (want_version && tuple->version != want_version)
		return false;
	return (!want_lports || has_port(want_lport, tuple->sport)) &&
	       (!want_rports || has_port(want_rport, tuple->dport));
}

static __always_inline bool is_tcp(struct sock *sock)
{
	/* Others have these states too; MPTCP has them twice, once for the TCP socket below it. */
	return BPF_CORE_READ(sock, sk_protocol) == IPPROTO_TCP;
}

/* CLOSE to SYN_SENT, in the context of the caller. */
static __always_inline int connect_begins(struct sock *sock)
{
	struct life life = {};
	__u64 key = (__u64)sock;
	struct life *found = bpf_map_lookup_elem(&lives, &key);
	__u64 now = bpf_ktime_get_boot_ns();

	/* By the twin, just now. What is older is left of another socket. */
	if (found && found->direction == DIRECTION_OUT && !found->established &&
	    now - found->born_ns < 1000000)
		return 0;
	if (!is_tcp(sock) || !filter_owner())
		return 0;
	head_of_owner(&life.head);
	life.born_ns = life.head.boot_ns;
	life.direction = DIRECTION_OUT;
	life.owned = 1;
	map_insert(&lives, &key, &life, BPF_ANY);
	return 0;
}

/* The handshake is over; in an interrupt. */
static __always_inline int established(struct sock *sock, int before)
{
	__u64 key = (__u64)sock;
	__u64 now = bpf_ktime_get_boot_ns();
	struct life *found = bpf_map_lookup_elem(&lives, &key);
	bool accepted = before == TCP_SYN_RECV;

	/* Both sides at once go from SYN_SENT by way of SYN_RECV. */
	if (found && (found->direction == DIRECTION_OUT || !found->established)) {
		found->born_ns = now;
		found->established = 1;
		return 0;
	}
	/* A connect that is not known is one that the filters left out, or older than this tool. */
	if ((!accepted && want_owner) || !is_tcp(sock))
		return 0;

	struct life life = {
		.born_ns = now,
		.direction = accepted ? DIRECTION_IN : DIRECTION_OUT,
		.established = 1,
	};

	/* Whatever is there belongs to a socket whose end was not seen. */
	map_insert(&lives, &key, &life, BPF_ANY);
	return 0;
}

/* A process has got the connection, which now is its own. */
static __always_inline int accepted(struct sock *sock)
{
	__u64 key = (__u64)sock;
	struct life *found = bpf_map_lookup_elem(&lives, &key);

	if (!filter_owner()) {
		if (found)
			bpf_map_delete_elem(&lives, &key);
		return 0;
	}
	if (found) {
		if (!found->owned)
			head_of_owner(&found->head);
		found->owned = 1;
		return 0;
	}
	/* With TCP fast open before the handshake is over. Others are older than this tool. */
	if (BPF_CORE_READ(sock, __sk_common.skc_state) != TCP_SYN_RECV)
		return 0;

	struct life life = { .direction = DIRECTION_IN, .owned = 1 };

	head_of_owner(&life.head);
	life.born_ns = life.head.boot_ns;
	map_insert(&lives, &key, &life, BPF_ANY);
	return 0;
}

/*
 * Whether the end is one that the other side is told by a reset. Often the state changes first and
 * the reset is sent then, so that tcp_send_reset comes too late to tell.
 */
static __always_inline bool will_reset(struct sock *sock, int before)
{
	switch (before) {
	case TCP_ESTABLISHED:
	case TCP_CLOSE_WAIT:
	case TCP_FIN_WAIT1:
	case TCP_SYN_RECV:
		return true;
	case TCP_FIN_WAIT2:
		break;
	default:
		return false;
	}

	__u64 flags = BPF_CORE_READ(sock, __sk_common.skc_flags);

	/* Else the other side's end has come, or is waited for by a smaller kind of socket. */
	return !(flags & (1UL << SOCK_DONE | 1UL << SOCK_DEAD));
}

/*
 * The kernel's counters have sequence numbers, of which a SYN and a FIN take one each. A SYN is
 * counted only where it was acknowledged to the socket itself, which is the side that connected.
 */
static __always_inline void count_bytes(struct sock *sock, struct event *event)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sock;
	__u64 acked = BPF_CORE_READ(tcp, bytes_acked);
	__u64 received = BPF_CORE_READ(tcp, bytes_received);
	__u64 ends = event->established && event->direction == DIRECTION_OUT;

	switch (event->last_state) {
	case TCP_FIN_WAIT1:
	case TCP_FIN_WAIT2:
	case TCP_CLOSING:
	case TCP_LAST_ACK:
		if (BPF_CORE_READ(tcp, snd_una) == BPF_CORE_READ(tcp, write_seq))
			ends++;
	}
	event->tx_bytes = acked > ends ? acked - ends : 0;
	if (received && BPF_CORE_READ(sock, __sk_common.skc_flags) & 1UL << SOCK_DONE)
		received--;
	event->rx_bytes = received;
}

/* The connection is over, for the socket: TIME_WAIT is a smaller one, made for the rest. */
static __always_inline int ended(struct sock *sock, int before)
{
	__u64 key = (__u64)sock;
	struct life *found = bpf_map_lookup_elem(&lives, &key);
	struct sock_tuple tuple;
	struct event *event;

	if (!found)
		return 0;
	if ((want_owner && !found->owned) || !sock_tuple(sock, &tuple) || !wanted(&tuple))
		goto out;
	event = event_reserve(struct event);
	if (!event)
		goto out;
	event->head = found->head;
	event->head.boot_ns = bpf_ktime_get_boot_ns();
	event->tuple = tuple;
	event->duration_ns = event->head.boot_ns - found->born_ns;
	event->direction = found->direction;
	event->established = found->established;
	event->owned = found->owned;
	event->last_state = before;
	__builtin_memset(event->pad, 0, sizeof(event->pad));
	event->error = BPF_CORE_READ(sock, sk_err);
	event->reset = found->reset;
	if (!event->reset && !event->error && will_reset(sock, before))
		event->reset = RESET_SENT;
	event->retransmits = BPF_CORE_READ((struct tcp_sock *)sock, total_retrans);
	count_bytes(sock, event);
	event_submit(event);
out:
	bpf_map_delete_elem(&lives, &key);
	return 0;
}

/* Arguments: socket, old state, new state. */
static __always_inline int state_changed(struct bpf_raw_tracepoint_args *ctx)
{
	struct sock *sock = (struct sock *)ctx->args[0];
	int before = (int)ctx->args[1];
	int after = (int)ctx->args[2];

	if (after != TCP_SYN_SENT && after != TCP_CLOSE &&
	    (after != TCP_ESTABLISHED || (before != TCP_SYN_SENT && before != TCP_SYN_RECV)))
		return 0;
	if (after == TCP_SYN_SENT)
		return connect_begins(sock);
	if (after == TCP_ESTABLISHED)
		return established(sock, before);
	return ended(sock, before);
}

SEC("raw_tp/inet_sock_set_state")
int state__all(struct bpf_raw_tracepoint_args *ctx)
{
	return state_changed(ctx);
}

/*
 * The kernel skips a program that is already running on the CPU, and interrupts change states in
 * the middle of it. Two of them see what one would miss (twin.h); to do everything twice does no
 * harm.
 */
SEC("raw_tp/inet_sock_set_state")
int state_twin__all(struct bpf_raw_tracepoint_args *ctx)
{
	return state_changed(ctx);
}

static __always_inline int reset_seen(__u64 key, enum reset reset)
{
	struct life *found = bpf_map_lookup_elem(&lives, &key);

	if (found)
		found->reset = reset;
	return 0;
}

/* Arguments: socket or NULL, and more that differs. */
SEC("raw_tp/tcp_send_reset")
int reset_sent__all(struct bpf_raw_tracepoint_args *ctx)
{
	return reset_seen(ctx->args[0], RESET_SENT);
}

/* Arguments: socket. */
SEC("raw_tp/tcp_receive_reset")
int reset_received__all(struct bpf_raw_tracepoint_args *ctx)
{
	return reset_seen(ctx->args[0], RESET_RECEIVED);
}

/* ---- accept, where functions can be probed ---- */

static __always_inline int grafted(struct sock *sock)
{
	__u64 protocol = BPF_CORE_READ(sock, sk_protocol);

	/* The TCP socket below: whoever has the one has the other. */
	if (protocol == IPPROTO_MPTCP && bpf_core_type_exists(struct mptcp_sock)) {
		struct mptcp_sock *mptcp = (struct mptcp_sock *)sock;

		barrier_var(mptcp);
		sock = BPF_CORE_READ(mptcp, first);
		protocol = BPF_CORE_READ(sock, sk_protocol);
	}
	return protocol == IPPROTO_TCP ? accepted(sock) : 0;
}

SEC("fentry/security_sock_graft")
int BPF_PROG(accept__fentry, struct sock *sock)
{
	return grafted(sock);
}

SEC("fentry/security_sock_graft")
int BPF_PROG(accept_twin__fentry, struct sock *sock)
{
	return grafted(sock);
}

SEC("kprobe/security_sock_graft")
int BPF_KPROBE(accept__kprobe, struct sock *sock)
{
	return grafted(sock);
}

/* ---- way tp: the call seen from outside ---- */

static __always_inline bool is_accept(struct pt_regs *regs)
{
	bool is_32bit = syscall_is_32bit();
	long number = syscall_number(regs);

	if (!is_32bit)
		return number == NR_accept || number == NR_accept4;
	if (number == NR32_socketcall) {
		__u64 call = syscall_arg(regs, 0, is_32bit);

		return call == SYS_ACCEPT || call == SYS_ACCEPT4;
	}
	return number == NR32_accept || number == NR32_accept4;
}

SEC("raw_tp/sys_exit")
int accept__tp(struct bpf_raw_tracepoint_args *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx->args[0];
	long fd = (long)ctx->args[1];
	struct file *file = NULL;

	if (fd < 0 || !is_accept(regs))
		return 0;

	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files = BPF_CORE_READ(table, fd);

	/* It may be closed already, by another thread. */
	if (fd >= BPF_CORE_READ(table, max_fds))
		return 0;
	bpf_probe_read_kernel(&file, sizeof(file), &files[fd]);
	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;

	struct socket *socket = BPF_CORE_READ(file, private_data);
	struct sock *sock = BPF_CORE_READ(socket, sk);

	return grafted(sock);
}
