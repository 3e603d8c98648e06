// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * tcptop: bytes that TCP connections carry, by connection and process.
 *
 * Nothing runs while data flows. The kernel counts the bytes of each connection itself, and what is
 * needed is to know which connections there are, whose they are, and to read their counters in
 * time:
 *
 * - tcp_lives.h follows those that begin and end, in all network namespaces. What a connection had
 *   carried at its end is sent to the user side.
 * - Those that are older are found once, when the tool starts: an iterator over the open files of
 *   all processes sees each socket of each network namespace, and a process that has it. (The
 *   iterator over TCP sockets sees only those of the reader's own namespace, and no owners. It
 * finds what no process has open: sockets of the kernel itself, and what nobody has accepted yet.)
 * - At each report an iterator over the map of all of them reads the counters, in the kernel and in
 *   one pass, and tells those that have changed.
 *
 * All that is told are sums since the beginning. The user side takes the differences, so that it
 * does not matter who comes first, the iterator or the end of a connection.
 *
 * Ways: fentry, kprobe, tp. They differ in how accept() is seen.
 */
#include "bpfscope.h"
#include "events.h"
#include "pid_keys.h"
#include "sock.h"

/* What is known of a connection beside the rest. */
struct life_more {
	/* What it had carried when this tool came. */
	struct tcp_bytes base;
	/* What the user side has been told by the iterator, which alone writes here. */
	struct tcp_bytes told;
	/* The sequence number of the first byte that counts as acknowledged; it never changes. */
	__u32 first_seq;
	__u8 first_seq_known;
	__u8 pad[3];
};

#include "tcp_lives.h"

/* What a connection has carried since it began, or since this tool came. */
struct count {
	/* Which one: of the sockets that have had this address, the one that began then. */
	__u64 sock;
	__u64 begun_ns;
	__u64 tx_bytes;
	__u64 rx_bytes;
	__u64 cgroup_id;
	struct sock_tuple tuple;
	char comm[TASK_COMM_LEN];
	__u32 pid;
	/* Whether it is known whose it is: pid, comm, cgroup_id. */
	__u8 owned;
	/* Whether this was the last of it. */
	__u8 ended;
	__u8 pad[2];
};
EXPORT_STRUCT(count);

/* Less than before has only another socket in the place of one whose end was missed. */
static __always_inline void subtract_base(const struct life *life, struct tcp_bytes *bytes)
{
	const struct tcp_bytes *base = &life->more.base;

	bytes->tx = bytes->tx > base->tx ? bytes->tx - base->tx : 0;
	bytes->rx = bytes->rx > base->rx ? bytes->rx - base->rx : 0;
}

static __always_inline bool is_same(const struct tcp_bytes *a, const struct tcp_bytes *b)
{
	return a->tx == b->tx && a->rx == b->rx;
}

static __always_inline bool wanted(struct sock *sock, const struct life *life,
				   struct sock_tuple *tuple, bool typed)
{
	if ((want_owner && !life->owned) || !sock_tuple(sock, tuple, typed))
		return false;
	return !want_version || tuple->version == want_version;
}

static __always_inline void fill(struct count *count, struct sock *sock, const struct life *life,
				 const struct sock_tuple *tuple, const struct tcp_bytes *bytes)
{
	/* First of all: whose it is may be noted at this moment, and this is noted last. */
	count->owned = READ_ONCE(life->owned);
	count->sock = (__u64)sock;
	count->begun_ns = life->begun_ns;
	count->tx_bytes = bytes->tx;
	count->rx_bytes = bytes->rx;
	count->cgroup_id = life->head.cgroup_id;
	count->tuple = *tuple;
	__builtin_memcpy(count->comm, life->head.comm, sizeof(count->comm));
	count->pid = head_pid_key(&life->head);
	__builtin_memset(count->pad, 0, sizeof(count->pad));
}

static __always_inline int life_ended(struct sock *sock, struct life *life, int before, bool typed)
{
	struct sock_tuple tuple;
	struct tcp_bytes bytes;
	struct count *count;

	if (!wanted(sock, life, &tuple, typed))
		goto out;
	/* The socket is locked: these are exact. */
	life_bytes(sock, life, before, &bytes, typed);
	subtract_base(life, &bytes);
	/* Nothing was ever told of it, and there is nothing to tell. */
	if (!bytes.tx && !bytes.rx)
		goto out;
	count = event_reserve(struct count);
	if (!count)
		goto out;
	fill(count, sock, life, &tuple, &bytes);
	count->ended = 1;
	/* In this order: what the iterator tells later is never of one whose end was told. */
	life_over((__u64)sock, life);
	event_submit(count);
	return 0;
out:
	life_over((__u64)sock, life);
	return 0;
}

/* ---- at each report ---- */

/*
 * The kernel counts what was acknowledged, and notes next how far that is. The difference is the
 * same at all other times.
 */
static __always_inline void note_first_seq(struct sock *sock, struct life *life, bool typed)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sock;

	life->more.first_seq =
		sock_read(typed, tcp, snd_una) - (__u32)sock_read(typed, tcp, bytes_acked);
	life->more.first_seq_known = 1;
}

static __always_inline void life_established(struct sock *sock, struct life *life, bool typed)
{
	note_first_seq(sock, life, typed);
}

/*
 * The counters of a socket that is not locked. Whether a FIN is among what was acknowledged is seen
 * by the number itself, whatever the kernel has noted of it until now. What comes after the number
 * is read after it.
 */
static __always_inline void read_unlocked(struct sock *sock, const struct life *life,
					  struct tcp_bytes *bytes)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sock;
	__u64 acked = BPF_CORE_READ(tcp, bytes_acked);
	bool fin_is_acked = fin_was_sent(tcp_state(sock)) &&
			    life->more.first_seq + (__u32)acked == BPF_CORE_READ(tcp, write_seq);

	life_bytes_of(sock, life, acked, fin_is_acked, bytes, false);
	subtract_base(life, bytes);
}

/*
 * While the connection lives nobody keeps the kernel from changing them. The only thing that can go
 * wrong is a FIN of the other side that has been counted and not been noted yet, which takes a
 * moment that is shorter than reading twice.
 */
static __always_inline void read_counters(struct sock *sock, struct life *life,
					  struct tcp_bytes *bytes)
{
	if (!life->more.first_seq_known)
		note_first_seq(sock, life, false);
	read_unlocked(sock, life, bytes);
	for (int i = 0; i < 3 && !is_same(bytes, &life->more.told); i++) {
		struct tcp_bytes before = *bytes;

		read_unlocked(sock, life, bytes);
		if (is_same(bytes, &before))
			break;
	}
}

SEC("iter/bpf_map_elem")
int living(struct bpf_iter__bpf_map_elem *ctx)
{
	const __u64 *key = ctx->key;
	struct life *life = ctx->value;
	struct count count = {};
	struct sock_tuple tuple;
	struct tcp_bytes bytes;

	if (!key || !life)
		return 0;

	struct sock *sock = (struct sock *)*key;
	__u64 begun_ns = life->begun_ns;

	/* One whose end was missed. */
	if (tcp_state(sock) == TCP_CLOSE || !wanted(sock, life, &tuple, false))
		return 0;
	read_counters(sock, life, &bytes);
	/* Its end is told, and by then nobody can say what of the number was a FIN. */
	if (tcp_state(sock) == TCP_CLOSE)
		return 0;
	if (is_same(&bytes, &life->more.told) || bytes.tx < life->more.told.tx ||
	    bytes.rx < life->more.told.rx)
		return 0;
	fill(&count, sock, life, &tuple, &bytes);
	/* It has ended meanwhile, and another one may have got its place in the map. */
	if (READ_ONCE(life->begun_ns) != begun_ns || count.begun_ns != begun_ns)
		return 0;
	/* What finds no room is told at the next try, which the kernel makes at once. */
	if (bpf_seq_write(ctx->meta->seq, &count, sizeof(count)))
		return 0;
	life->more.told = bytes;
	return 0;
}

/* ---- at the start ---- */

/* Connections that are older than this tool; nothing that they have carried until now counts. */
static __always_inline bool is_older(struct sock *sock)
{
	switch (tcp_state(sock)) {
	case TCP_ESTABLISHED:
	case TCP_SYN_SENT:
	case TCP_FIN_WAIT1:
	case TCP_FIN_WAIT2:
	case TCP_CLOSE_WAIT:
	case TCP_LAST_ACK:
	case TCP_CLOSING:
		return true;
	default:
		return false;
	}
}

static __always_inline void begin_older(struct sock *sock, struct life *life)
{
	__u64 key = (__u64)sock;

	life->begun_ns = bpf_ktime_get_boot_ns();
	life->born_ns = life->begun_ns;
	if (tcp_state(sock) == TCP_SYN_SENT)
		/* Its SYN is still to be acknowledged. */
		life->direction = DIRECTION_OUT;
	else
		life_bytes(sock, life, tcp_state(sock), &life->more.base, false);
	map_insert(&lives, &key, life, BPF_NOEXIST);
	/* Closed meanwhile. */
	if (tcp_state(sock) == TCP_CLOSE)
		bpf_map_delete_elem(&lives, &key);
}

static __always_inline bool life_adopted(struct sock *sock, struct life *life)
{
	if (!is_older(sock))
		return false;
	life_bytes(sock, life, tcp_state(sock), &life->more.base, false);
	return true;
}

/* The first process that has the socket and passes the filters: that with the smallest id. */
SEC("iter/task_file")
int older(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct life life = { .owned = 1 };
	struct sock *sock;

	if (!task || !file)
		return 0;
	sock = sock_of_file(file);
	if (!sock)
		return 0;
	sock = tcp_of(sock, false);
	if (!sock || !is_older(sock) || !filter_task(task))
		return 0;
	life.head.pid = task_pid(task);
	life.head.host_pid = pidns_inode ? BPF_CORE_READ(task, tgid) : 0;
	life.head.cgroup_id = task_cgroup_id(task);
	BPF_CORE_READ_STR_INTO(&life.head.comm, task, comm);
	begin_older(sock, &life);
	return 0;
}

/* What no process has open: afterwards, and only in the tool's own network namespace. */
SEC("iter/tcp")
int older_unowned(struct bpf_iter__tcp *ctx)
{
	struct sock *sock = (struct sock *)ctx->sk_common;
	struct life life = {};

	if (!sock || !is_older(sock))
		return 0;
	/* What has been accepted belongs to somebody who did not pass the filters. */
	if (want_owner && BPF_CORE_READ(sock, sk_socket))
		return 0;
	begin_older(sock, &life);
	return 0;
}
