// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tcplife: TCP connections when they end: whose they were, how long they lasted, what they carried.
 *
 * Ways: fentry, kprobe, tp. They differ in how accept() is seen.
 */
#include "bpfscope.h"
#include "events.h"

enum reset {
	RESET_NONE,
	RESET_SENT,
	RESET_RECEIVED,
};

/* What is known of a connection beside the rest. */
struct life_more {
	enum reset reset;
	__u32 pad;
};

/* Nobody goes through the connections, so some that are over may stay. */
#define LIVES_KEPT 512

#include "tcp_lives.h"

/* Only local, remote ports whose bit is set. */
const volatile bool want_lports = false;
const volatile bool want_rports = false;
const volatile __u64 want_lport[65536 / 64] = {};
const volatile __u64 want_rport[65536 / 64] = {};

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

/*
 * Whether the end is one that the other side is told by a reset. Often the state changes first and
 * the reset is sent then, so that tcp_send_reset comes too late to tell.
 */
static __always_inline bool will_reset(struct sock *sock, int before, bool typed)
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

	__u64 flags = sock_read(typed, sock, __sk_common.skc_flags);

	/* Else the other side's end has come, or is waited for by a smaller kind of socket. */
	return !(flags & (1UL << SOCK_DONE | 1UL << SOCK_DEAD));
}

static __always_inline void life_established(struct sock *sock, struct life *life, bool typed)
{
}

static __always_inline bool life_adopted(struct sock *sock, struct life *life)
{
	/* When it began nobody knows. */
	return false;
}

static __always_inline int life_ended(struct sock *sock, struct life *life, int before, bool typed)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sock;
	struct tcp_bytes bytes;
	struct sock_tuple tuple;
	struct event *event;

	if ((want_owner && !life->owned) || !sock_tuple(sock, &tuple, typed) || !wanted(&tuple))
		goto out;
	event = event_reserve(struct event);
	if (!event)
		goto out;
	event->head = life->head;
	event->head.boot_ns = bpf_ktime_get_boot_ns();
	event->tuple = tuple;
	event->duration_ns = event->head.boot_ns - life->born_ns;
	event->direction = life->direction;
	event->established = life->established;
	event->owned = life->owned;
	event->last_state = before;
	__builtin_memset(event->pad, 0, sizeof(event->pad));
	event->error = sock_read(typed, sock, sk_err);
	event->reset = life->more.reset;
	if (!event->reset && !event->error && will_reset(sock, before, typed))
		event->reset = RESET_SENT;
	event->retransmits = sock_read(typed, tcp, total_retrans);
	life_bytes(sock, life, before, &bytes, typed);
	event->tx_bytes = bytes.tx;
	event->rx_bytes = bytes.rx;
	event_submit(event);
out:
	life_over((__u64)sock, life);
	return 0;
}

static __always_inline int reset_seen(__u64 key, enum reset reset)
{
	struct life *found = bpf_map_lookup_elem(&lives, &key);

	if (found)
		found->more.reset = reset;
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
