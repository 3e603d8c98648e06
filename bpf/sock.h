/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Whom a socket talks to: addresses and ports, as the packets have them. What an IPv6 socket sends
 * to ::ffff:a.b.c.d is IPv4, and is described as such. User space reads it with src/common/net.rs.
 *
 * Functions with an argument `typed` serve both kinds of program: of a socket that came from
 * bpf_skc_to_tcp_sock() the verifier knows the type, and its fields are plain loads; of others each
 * one has to be asked for. It is a constant after inlining.
 */
#ifndef SOCK_H
#define SOCK_H

#include "bpfscope.h"
#include <bpf/bpf_endian.h>

#define AF_INET 2
#define AF_INET6 10
/* A sockaddr_in6 without the scope id, which may be left out. */
#define SIN6_LEN_RFC2133 24

#define sock_read(typed, sock, field) ((typed) ? (sock)->field : BPF_CORE_READ(sock, field))

struct sock_tuple {
	/* In network order; an IPv4 address is the first word, with zeros behind it. */
	__u32 saddr[4];
	__u32 daddr[4];
	/* In host order. */
	__u16 sport;
	__u16 dport;
	/* 4 or 6; 0 = neither is known. */
	__u8 version;
	/* IPv4 through an IPv6 socket. */
	__u8 v4_mapped;
	__u8 pad[2];
};
EXPORT_STRUCT(sock_tuple);

/* What a TCP connection has carried: what the other side acknowledged, what came in order. */
struct tcp_bytes {
	__u64 tx;
	__u64 rx;
};

/* ::ffff:0:0/96 */
static __always_inline bool ipv6_is_v4_mapped(const __u32 *address)
{
	return !address[0] && !address[1] && address[2] == bpf_htonl(0xffff);
}

static __always_inline __u16 sock_family(struct sock *sock, bool typed)
{
	return sock_read(typed, sock, __sk_common.skc_family);
}

/*
 * The source port. Not skc_num: that is 0 again by the time that a tracepoint says that the socket
 * is closed.
 */
static __always_inline __u16 sock_sport(struct sock *sock, bool typed)
{
	struct inet_sock *inet = (struct inet_sock *)sock;

	return bpf_ntohs(sock_read(typed, inet, inet_sport));
}

static __always_inline void ipv6_read(__u32 *address, const struct in6_addr *from, bool typed)
{
	if (typed) {
		for (int i = 0; i < 4; i++)
			address[i] = from->in6_u.u6_addr32[i];
	} else {
		bpf_probe_read_kernel(address, sizeof(*from), from);
	}
}

/* Describes an IPv4 or IPv6 socket; false, and an empty tuple, for others. */
static __always_inline bool sock_tuple(struct sock *sock, struct sock_tuple *tuple, bool typed)
{
	__u16 family = sock_family(sock, typed);

	__builtin_memset(tuple, 0, sizeof(*tuple));
	if (family == AF_INET6 && bpf_core_field_exists(struct sock_common, skc_v6_daddr)) {
		ipv6_read(tuple->daddr, &sock->__sk_common.skc_v6_daddr, typed);
		tuple->v4_mapped = ipv6_is_v4_mapped(tuple->daddr);
		if (!tuple->v4_mapped)
			ipv6_read(tuple->saddr, &sock->__sk_common.skc_v6_rcv_saddr, typed);
	} else if (family != AF_INET) {
		return false;
	}
	if (family == AF_INET || tuple->v4_mapped) {
		__builtin_memset(tuple->daddr, 0, sizeof(tuple->daddr));
		tuple->daddr[0] = sock_read(typed, sock, __sk_common.skc_daddr);
		tuple->saddr[0] = sock_read(typed, sock, __sk_common.skc_rcv_saddr);
		tuple->version = 4;
	} else {
		tuple->version = 6;
	}
	tuple->sport = sock_sport(sock, typed);
	tuple->dport = bpf_ntohs(sock_read(typed, sock, __sk_common.skc_dport));
	return true;
}

/*
 * Puts the destination that an address structure in kernel memory names in place of the tuple's.
 * One that is too short or of another family leaves it as it is.
 */
static __always_inline void sock_tuple_set_dest(struct sock_tuple *tuple, const void *address,
						int size)
{
	struct sockaddr_in in = {};
	__u32 in6[4] = {};

	if (size < (int)sizeof(in))
		return;
	bpf_probe_read_kernel(&in, sizeof(in), address);
	if (in.sin_family == AF_INET) {
		in6[0] = in.sin_addr.s_addr;
		tuple->version = 4;
	} else if (in.sin_family == AF_INET6 && size >= SIN6_LEN_RFC2133) {
		bpf_probe_read_kernel(in6, sizeof(in6),
				      &((struct sockaddr_in6 *)address)->sin6_addr);
		tuple->v4_mapped = ipv6_is_v4_mapped(in6);
		tuple->version = tuple->v4_mapped ? 4 : 6;
		if (tuple->v4_mapped) {
			in6[0] = in6[3];
			in6[2] = 0;
			in6[3] = 0;
		}
	} else {
		return;
	}
	__builtin_memcpy(tuple->daddr, in6, sizeof(in6));
	/* At the same place in both. */
	tuple->dport = bpf_ntohs(in.sin_port);
}

#endif
