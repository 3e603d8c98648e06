/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * TCP connections from their beginning to their end, and whose they are.
 *
 * inet_sock_set_state says when a connection begins and ends, and mostly says so in an interrupt,
 * where the current task has nothing to do with it. Two moments are the owner's: the change to
 * SYN_SENT, which happens in connect(), and accept(), where security_sock_graft() gives the socket
 * of a connection to its file. Both are called with the socket locked, as are the changes of state,
 * so that nothing below happens twice at once for one socket.
 *
 * A tool defines struct life_more, what it keeps of each connection beside the rest, before it
 * includes this; and the functions that are declared here.
 */
#ifndef TCP_LIVES_H
#define TCP_LIVES_H

#include "bpfscope.h"
#include "filter.h"
#include "owner.h"
#include "sock.h"
#include "syscall.h"
#include "twin_mark.h"

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

enum direction {
	DIRECTION_UNKNOWN,
	DIRECTION_OUT,
	DIRECTION_IN,
};

/* A connection that has not ended. */
struct life {
	struct event_head head;
	/* When it was first seen, which with the socket tells it from all others. */
	__u64 begun_ns;
	/* When it was established, or that. */
	__u64 born_ns;
	enum direction direction;
	__u8 established;
	/* Whether head says whose it is. */
	__u8 owned;
	/* Only kept for the next socket with this address. */
	__u8 over;
	__u8 pad;
	struct life_more more;
};

/*
 * How many connections that are over may stay in the map: sockets are made in the place of others,
 * and an entry that is there saves an insertion and a deletion for each. 0 in a tool that looks at
 * all entries.
 */
#ifndef LIVES_KEPT
#define LIVES_KEPT 0
#endif

/* How many there are. */
__u64 lives_kept;

/* By struct sock *, until the socket's state is CLOSE. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct life);
} lives SEC(".maps");

/*
 * The connection is over, for the socket, which was in the state before; TIME_WAIT is a smaller
 * one, made for the rest. The tool takes what it needs and calls life_over().
 */
static __always_inline int life_ended(struct sock *sock, struct life *life, int before, bool typed);

/*
 * A process has got a connection that was established before this tool looked. Whether it is to be
 * followed, and from where on.
 */
static __always_inline bool life_adopted(struct sock *sock, struct life *life);

/* The handshake is over; the socket is locked. */
static __always_inline void life_established(struct sock *sock, struct life *life, bool typed);

/* What the map has of the socket, which may be over. */
static __always_inline struct life *life_entry(__u64 key)
{
	return bpf_map_lookup_elem(&lives, &key);
}

static __always_inline struct life *if_alive(struct life *entry)
{
	return entry && !(LIVES_KEPT && entry->over) ? entry : NULL;
}

static __always_inline void life_over(__u64 key, struct life *life)
{
	if (LIVES_KEPT && READ_ONCE(lives_kept) < LIVES_KEPT) {
		life->over = 1;
		add_atomically(&lives_kept, 1);
		return;
	}
	bpf_map_delete_elem(&lives, &key);
}

static __always_inline bool is_tcp(struct sock *sock, bool typed)
{
	/* Others have these states too; MPTCP has them twice, once for the TCP socket below it. */
	return typed || BPF_CORE_READ(sock, sk_protocol) == IPPROTO_TCP;
}

static __always_inline int tcp_state(struct sock *sock)
{
	return BPF_CORE_READ(sock, __sk_common.skc_state);
}

/* States in which a FIN has been sent, or waits to be. */
static __always_inline bool fin_was_sent(int state)
{
	switch (state) {
	case TCP_FIN_WAIT1:
	case TCP_FIN_WAIT2:
	case TCP_CLOSING:
	case TCP_LAST_ACK:
		return true;
	default:
		return false;
	}
}

/*
 * The kernel's counters have sequence numbers, of which a SYN and a FIN take one each. A SYN is
 * counted only where it was acknowledged to the socket itself, which is the side that connected.
 */
static __always_inline void life_bytes_of(struct sock *sock, const struct life *life, __u64 acked,
					  bool fin_is_acked, struct tcp_bytes *bytes, bool typed)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sock;
	__u64 received = sock_read(typed, tcp, bytes_received);
	__u64 ends = life->established && life->direction == DIRECTION_OUT;

	if (fin_is_acked)
		ends++;
	bytes->tx = acked > ends ? acked - ends : 0;
	if (received && sock_read(typed, sock, __sk_common.skc_flags) & 1UL << SOCK_DONE)
		received--;
	bytes->rx = received;
}

/* Of a socket that is locked, in this state. */
static __always_inline void life_bytes(struct sock *sock, const struct life *life, int state,
				       struct tcp_bytes *bytes, bool typed)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sock;
	bool fin_is_acked = fin_was_sent(state) &&
			    sock_read(typed, tcp, snd_una) == sock_read(typed, tcp, write_seq);

	life_bytes_of(sock, life, sock_read(typed, tcp, bytes_acked), fin_is_acked, bytes, typed);
}

/* By the twin, just now. What is older is left of another socket. */
static __always_inline bool is_fresh(const struct life *life, __u64 now)
{
	return now - life->begun_ns < 1000000;
}

/* `entry`: what the map has of the socket; if not over, of one whose end was not seen. */
static __always_inline void begin(__u64 key, struct life *entry, struct life *life, __u64 now)
{
	life->begun_ns = now;
	life->born_ns = now;
	if (LIVES_KEPT && entry) {
		if (entry->over)
			add_atomically(&lives_kept, -1);
		*entry = *life;
		return;
	}
	map_insert(&lives, &key, life, BPF_ANY);
}

/* CLOSE to SYN_SENT, in the context of the caller. */
static __always_inline int connect_begins(struct sock *sock, bool typed)
{
	struct life life = {};
	__u64 key = (__u64)sock;
	struct life *entry = life_entry(key);
	struct life *found = if_alive(entry);

	if (found && found->direction == DIRECTION_OUT && !found->established &&
	    is_fresh(found, bpf_ktime_get_boot_ns()))
		return 0;
	if (!is_tcp(sock, typed) || !filter_owner())
		return 0;
	head_of_owner(&life.head);
	life.direction = DIRECTION_OUT;
	life.owned = 1;
	begin(key, entry, &life, life.head.boot_ns);
	return 0;
}

/* The handshake is over; in an interrupt. */
static __always_inline int established(struct sock *sock, int before, bool typed)
{
	__u64 key = (__u64)sock;
	__u64 now = bpf_ktime_get_boot_ns();
	struct life *entry = life_entry(key);
	struct life *found = if_alive(entry);
	bool accepted = before == TCP_SYN_RECV;

	/* Both sides at once go from SYN_SENT by way of SYN_RECV. */
	if (found && (found->direction == DIRECTION_OUT || !found->established)) {
		found->born_ns = now;
		found->established = 1;
		life_established(sock, found, typed);
		return 0;
	}
	/* By the twin. */
	if (found && accepted && is_fresh(found, now))
		return 0;
	/* A connect that is not known is one that the filters left out, or older than this tool. */
	if ((!accepted && want_owner) || !is_tcp(sock, typed))
		return 0;

	struct life life = {
		.direction = accepted ? DIRECTION_IN : DIRECTION_OUT,
		.established = 1,
	};

	life_established(sock, &life, typed);
	begin(key, entry, &life, now);
	return 0;
}

/* A process has got the connection, which now is its own. */
static __always_inline int accepted(struct sock *sock)
{
	__u64 key = (__u64)sock;
	struct life *entry = life_entry(key);
	struct life *found = if_alive(entry);

	if (!filter_owner()) {
		if (found)
			life_over(key, found);
		return 0;
	}
	if (found) {
		if (!found->owned)
			head_of_owner(&found->head);
		/* Last, for whoever looks without the socket's lock. */
		WRITE_ONCE(found->owned, 1);
		return 0;
	}

	struct life life = { .direction = DIRECTION_IN, .owned = 1 };

	/* With TCP fast open before the handshake is over. Others are older than this tool. */
	if (tcp_state(sock) != TCP_SYN_RECV && !life_adopted(sock, &life))
		return 0;
	head_of_owner(&life.head);
	begin(key, entry, &life, life.head.boot_ns);
	return 0;
}

/* Arguments: socket, old state, new state. */
static __always_inline int state_changed(__u64 *ctx, bool typed, bool is_twin)
{
	struct sock *sock = (struct sock *)ctx[0];
	int before = (int)ctx[1];
	int after = (int)ctx[2];

	if (after != TCP_SYN_SENT && after != TCP_CLOSE &&
	    (after != TCP_ESTABLISHED || (before != TCP_SYN_SENT && before != TCP_SYN_RECV)))
		return 0;
	if (twin_has_it((__u64)sock, after, is_twin))
		return 0;
	if (typed) {
		sock = (struct sock *)bpf_skc_to_tcp_sock(sock);
		if (!sock)
			return 0;
	}
	if (after == TCP_SYN_SENT)
		return connect_begins(sock, typed);
	if (after == TCP_ESTABLISHED)
		return established(sock, before, typed);

	struct life *found = if_alive(life_entry((__u64)sock));

	return found ? life_ended(sock, found, before, typed) : 0;
}

/*
 * The kernel skips a program that is already running on the CPU, and interrupts change states in
 * the middle of it. Two of them see what one would miss (twin_mark.h); to do everything twice does
 * no harm.
 */
SEC("tp_btf/inet_sock_set_state")
int state__btf(__u64 *ctx)
{
	return state_changed(ctx, true, false);
}

SEC("tp_btf/inet_sock_set_state")
int state_twin__btf(__u64 *ctx)
{
	return state_changed(ctx, true, true);
}

SEC("raw_tp/inet_sock_set_state")
int state__rawtp(__u64 *ctx)
{
	return state_changed(ctx, false, false);
}

SEC("raw_tp/inet_sock_set_state")
int state_twin__rawtp(__u64 *ctx)
{
	return state_changed(ctx, false, true);
}

/* ---- accept, where functions can be probed ---- */

/* The TCP socket that carries the data of this one, or NULL if it is of another kind. */
static __always_inline struct sock *tcp_of(struct sock *sock, bool typed)
{
	__u64 protocol = sock_read(typed, sock, sk_protocol);

	/* The TCP socket below: whoever has the one has the other. */
	if (protocol == IPPROTO_MPTCP && bpf_core_type_exists(struct mptcp_sock)) {
		struct mptcp_sock *mptcp = (struct mptcp_sock *)sock;

		barrier_var(mptcp);
		sock = BPF_CORE_READ(mptcp, first);
		protocol = BPF_CORE_READ(sock, sk_protocol);
	}
	return protocol == IPPROTO_TCP ? sock : NULL;
}

/* The socket of an open file; NULL if it is none. */
static __always_inline struct sock *sock_of_file(struct file *file)
{
	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;

	struct socket *socket = BPF_CORE_READ(file, private_data);

	return BPF_CORE_READ(socket, sk);
}

static __always_inline int grafted(struct sock *sock, bool typed)
{
	struct sock *tcp = tcp_of(sock, typed);

	return tcp ? accepted(tcp) : 0;
}

/* No state of a socket. */
#define TAG_ACCEPT 0

SEC("fentry/security_sock_graft")
int BPF_PROG(accept__fentry, struct sock *sock)
{
	return twin_has_it((__u64)sock, TAG_ACCEPT, true) ? 0 : grafted(sock, true);
}

/* The first to be called. */
SEC("fentry/security_sock_graft")
int BPF_PROG(accept_twin__fentry, struct sock *sock)
{
	return twin_has_it((__u64)sock, TAG_ACCEPT, false) ? 0 : grafted(sock, true);
}

SEC("kprobe/security_sock_graft")
int BPF_KPROBE(accept__kprobe, struct sock *sock)
{
	return grafted(sock, false);
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

	struct sock *sock = sock_of_file(file);

	return sock ? grafted(sock, false) : 0;
}

#endif
