/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The socket that a packet comes to, and its owner, by the layout of the kernel's
 * structs in the settings.
 */
#ifndef DROIDTAP_LOOKUP_H
#define DROIDTAP_LOOKUP_H

#include "found.h"
#include <linux/if_packet.h>

#define AF_INET	 2
#define AF_INET6 10
#define SOCK_RAW 3

/* The time, which is asked once for a packet. */
static __always_inline __u64 now(struct whose *w)
{
	if (!w->now)
		w->now = bpf_ktime_get_boot_ns();
	return w->now;
}

/* Whether the cgroup of an owner is wanted. */
static __always_inline bool wants_cgroup(void)
{
	return !ROOM || setting()->cgroups;
}

/* Whether sockets are looked up. */
static __always_inline bool looks_up(void)
{
	return SK_LOOKUP && setting()->sock_uid;
}

/*
 * The owner of a socket. The helper that found it tells no uid, so it is read from
 * the struct. Of the cgroup what was known is believed, if it is the same.
 */
static __always_inline void sock_owner(struct bpf_sock *sk, struct whose *w, struct known *known)
{
	const volatile struct settings *s = setting();
	__u64 at = address(sk), group = 0, node = 0;

	w->uid = UID_UNKNOWN;
	if (!s)
		return;
	if (bpf_probe_read_kernel(&w->uid, sizeof(w->uid), (void *)(at + s->sock_uid)))
		w->uid = UID_UNKNOWN;
	if (wants_cgroup() && s->sock_cgroup && s->cgroup_node && s->node_id)
		bpf_probe_read_kernel(&group, sizeof(group), (void *)(at + s->sock_cgroup));
	/* Before 5.15 no pointer, but what net_cls and net_prio make of it. */
	if (group & 3)
		group = 0;
	if (!group)
		return;
	if (!(known->differs | (known->uid ^ w->uid) | (known->group ^ group))) {
		w->cgroup = known->cgroup;
		return;
	}
	known->differs = 1;
	known->group = group;
	if (bpf_probe_read_kernel(&node, sizeof(node), (void *)(group + s->cgroup_node)) ||
	    bpf_probe_read_kernel(&w->cgroup, sizeof(w->cgroup), (void *)(node + s->node_id)))
		w->cgroup = 0;
}

/*
 * Whether a packet to f->local is for this machine. Only a socket of the any
 * address is found for one that is forwarded, and only there it is asked. One for
 * another machine's card comes by where somebody made ours promiscuous.
 */
static __always_inline bool is_local(struct __sk_buff *skb, const struct flow *f,
				     struct bpf_sock *sk)
{
	struct bpf_fib_lookup to = {.ifindex = skb->ifindex, .l4_protocol = f->protocol};
	long answer;

	if (is_v4(&f->local)) {
		__be32 dst = f->local.s6_addr32[3];

		if (sk->src_ip4 || (dst & bpf_htonl(0xe0000000)) == bpf_htonl(0xe0000000))
			return true; /* multicast, and the broadcast address */
		to.family = AF_INET;
		to.ipv4_src = f->remote.s6_addr32[3];
		to.ipv4_dst = dst;
	} else {
		if (sk->src_ip6[0] || sk->src_ip6[1] || sk->src_ip6[2] || sk->src_ip6[3] ||
		    f->local.s6_addr[0] == 0xff)
			return true;
		to.family = AF_INET6;
		copy_addr((struct in6_addr *)to.ipv6_src, &f->remote);
		copy_addr((struct in6_addr *)to.ipv6_dst, &f->local);
	}
	answer = bpf_fib_lookup(skb, &to, sizeof(to), 0);
	if (answer == BPF_FIB_LKUP_RET_FWD_DISABLED)
		return skb->pkt_type != PACKET_OTHERHOST;
	return answer < 0 || answer == BPF_FIB_LKUP_RET_NOT_FWDED;
}

/* The socket of a TCP or UDP flow, or NULL. It is to be released. */
static __always_inline struct bpf_sock *sock_of(struct __sk_buff *skb, const struct flow *f,
						__be16 remote_port)
{
	struct bpf_sock_tuple t = {};
	__u32 size = sizeof(t.ipv4);

	if (is_v4(&f->local)) {
		t.ipv4.saddr = f->remote.s6_addr32[3];
		t.ipv4.daddr = f->local.s6_addr32[3];
		t.ipv4.sport = remote_port;
		t.ipv4.dport = f->local_port;
	} else {
		copy_addr((struct in6_addr *)t.ipv6.saddr, &f->remote);
		copy_addr((struct in6_addr *)t.ipv6.daddr, &f->local);
		t.ipv6.sport = remote_port;
		t.ipv6.dport = f->local_port;
		size = sizeof(t.ipv6);
	}
	if (f->protocol == IPPROTO_TCP)
		return bpf_sk_lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	return bpf_sk_lookup_udp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
}

/*
 * Looks up the socket of a TCP or UDP flow; false: there is none for what this machine
 * gets.
 */
static __always_inline bool look_up(struct __sk_buff *skb, const struct flow *f, struct whose *w,
				    struct known *known)
{
	struct bpf_sock *sk = sock_of(skb, f, f->remote_port);
	bool local;

	if (!sk)
		return false;
	local = !(known->differs | (skb->pkt_type == PACKET_OTHERHOST)) || is_local(skb, f, sk);
	if (local)
		sock_owner(sk, w, known);
	bpf_sk_release(sk);
	return local;
}

/*
 * Keeps whose a flow is. A connection is the listener's until it is accepted, and
 * then whoever's did that: where there is a listener none is fixed.
 */
static __always_inline void remember(struct __sk_buff *skb, const struct flow *f,
				     const struct words *words, const struct whose *w,
				     const struct known *known)
{
	struct found *e = found_at(words->word);
	struct bpf_sock *listener;

	if (!e)
		return;
	e->uid = w->uid;
	e->group = known->group;
	e->cgroup = w->cgroup;
	e->fixed = 0;
	if (f->protocol == IPPROTO_TCP) {
		listener = sock_of(skb, f, 0);
		e->fixed = !listener;
		if (listener)
			bpf_sk_release(listener);
	}
	e->jiffies = ticks();
	e->begun = known->begun;
#pragma unroll
	for (int i = 0; i < 5; i++)
		e->flow[i] = words->word[i];
}

#endif
