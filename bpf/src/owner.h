/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whose a packet is: the uid of the socket that it leaves or comes to, and the
 * cgroup where that socket was made.
 *
 * A packet that leaves has its socket. One that comes in has none yet: its
 * socket is looked up where the kernel's structs are known (settings.sock_uid),
 * else what left before tells whose its flow is, and else the agent has to ask.
 * The skb's own socket is of no use there: it is the sender's on veth and the
 * VPN app's on tun.
 */
#ifndef DROIDTAP_OWNER_H
#define DROIDTAP_OWNER_H

#include "flows.h"

#define OVERFLOW_UID 65534 /* what bpf_get_socket_uid says of a packet with no full socket */

/* A uid that is one. */
#define KNOWN(uid) ((uid) < UID_NONE)

/* What the fragments of a packet have in common. Go: owner.fragment. */
struct fragment {
	struct in6_addr src, dst; /* IPv4 addresses are v4-mapped */
	__be32 id;		  /* IPv4's 16 bits are the lower ones */
	__u8 protocol;		  /* IPv4's; 0 for IPv6 */
	__u8 version;		  /* 4 or 6 */
	__u8 pad[2];
};

/* What only the first of them has, as in struct flow. Go: owner.ports. */
struct ports {
	__be16 src, dst;
	__u8 protocol;
	__u8 kind; /* enum kind */
	__u8 pad[2];
	__u64 seen; /* ns of the records' clock */
};

/* When it is full the one that was asked for least lately goes: its later fragments are unknown. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct fragment);
	__type(value, struct ports);
} shared_fragments SEC(".maps");

/*
 * Keeps what only the first fragment of a packet has, and gives it to the later
 * ones. Not 0: the first one has not come by.
 */
static __noinline int join(struct head *h)
{
	struct fragment key = {.id = h->id, .version = h->version};
	struct ports value = {}, *first;
	__u64 now = bpf_ktime_get_boot_ns();

	copy_addr(&key.src, &h->flow.local);
	copy_addr(&key.dst, &h->flow.remote);
	if (h->version == 4)
		key.protocol = h->flow.protocol;
	if (h->part == FIRST) {
		value.src = h->flow.local_port;
		value.dst = h->flow.remote_port;
		value.protocol = h->flow.protocol;
		value.kind = h->kind;
		value.seen = now;
		bpf_map_update_elem(&shared_fragments, &key, &value, BPF_ANY);
		return 0;
	}
	first = bpf_map_lookup_elem(&shared_fragments, &key);
	if (!first || now > first->seen + 30 * SECOND) /* what Linux waits for the last one */
		return -1;
	h->flow.local_port = first->src;
	h->flow.remote_port = first->dst;
	h->flow.protocol = first->protocol;
	h->kind = first->kind;
	return 0;
}

/*
 * Whose the local end of the flow at work is: the socket's that there is, else whose
 * it was when it was learnt. A packet that begins a connection is not of that one. 1:
 * it is a socket's.
 */
GLOBAL int find(struct __sk_buff *skb, __u32 begins)
{
	struct work *k = work();
	const struct flow *f;
	struct whose *w;

	if (!k)
		return 0;
	f = &k->head.flow;
	w = &k->whose;
	w->news = false;
	w->cgroup = w->now = 0;
	if (looks_up() && has_ports(f->protocol) && look_up(skb, f, w, &k->known))
		return 1;
	w->uid = unlearnt();
	if (!begins)
		recall(f, w, w->uid);
	return 0;
}

/* Whether a packet of uid 0 was made by the kernel, by its control sockets. */
static __always_inline bool of_kernel(struct __sk_buff *skb, const struct head *h)
{
	if (is_icmp(h->flow.protocol) ? h->kind == REQUEST || h->kind == QUERY
				      : h->flow.protocol != IPPROTO_TCP)
		return false;
	/* Without skb->sk, 5.1, root's old connection looks the same. */
	if (!SK_LOOKUP)
		return is_icmp(h->flow.protocol) || !(h->flags & TCP_SYN);
	return has_control_sock(skb);
}

/*
 * Whose a packet is that leaves. The socket says it, except for what the kernel
 * sends by itself, about a socket that is gone (an ACK in TIME_WAIT, a reset) or
 * that never was: there the flow knows.
 */
static __noinline int owner_out(struct __sk_buff *skb, __u32 ip, struct whose *w)
{
	__u32 uid = bpf_get_socket_uid(skb);
	struct work *k = work();
	struct head *h;
	bool none;

	w->uid = uid == OVERFLOW_UID ? UID_NONE : uid;
	w->cgroup = uid == OVERFLOW_UID || !wants_cgroup() ? 0 : bpf_skb_cgroup_id(skb);
	if (JIFFIES && uid != OVERFLOW_UID && is_known(skb, ip, w))
		return 0;
	if (!k)
		return 0;
	h = &k->head;
	if (parse(skb, ip) || (h->part && join(h)))
		return 0;
	if (h->flags & TCP_SYN)
		begin(&h->flow);
	if (uid != OVERFLOW_UID && !(uid == 0 && of_kernel(skb, h))) {
		learn(skb, h, w);
		return 0;
	}
	none = SK_LOOKUP || uid == OVERFLOW_UID || h->flow.protocol != IPPROTO_TCP;
	w->uid = none ? UID_NONE : UID_UNKNOWN;
	w->cgroup = 0;
	if (h->kind == ERROR) {
		if (quoted(skb, h))
			return 0;
		reverse(&h->flow);
	} else if (!has_ports(h->flow.protocol)) {
		return 0;
	}
	return recall(&h->flow, w, w->uid);
}

/*
 * Whether a packet that comes in has to be looked at even if the filter does not
 * match: a first fragment, and one that begins a connection.
 */
static __always_inline bool is_early(struct __sk_buff *skb, __u32 off)
{
	void *end = (void *)(long)skb->data_end;
	void *at = direct((void *)(long)skb->data, off);
	const struct ipv6hdr *ip6 = at;
	const struct iphdr *ip = at;
	__u8 version, flags;

	if (at + sizeof(*ip) > end)
		return true;
	version = *(__u8 *)at >> 4;
	if (version == 4) {
		if (ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
			return !(ip->frag_off & bpf_htons(IP_OFFSET));
		if (ip->protocol != IPPROTO_TCP)
			return false;
		if (*(__u8 *)at != 0x45 || at + sizeof(*ip) + 14 > end)
			return true;
		flags = *(__u8 *)(at + sizeof(*ip) + 13);
	} else if (version == 6) {
		if (is_extension(ip6->nexthdr))
			return true;
		if (ip6->nexthdr != IPPROTO_TCP)
			return false;
		if (at + sizeof(*ip6) + 14 > end)
			return true;
		flags = *(__u8 *)(at + sizeof(*ip6) + 13);
	} else {
		return false;
	}
	return (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/*
 * What is_early() is for. In a function of its own, so that the verifier forgets
 * it before the filter.
 */
static __noinline int note(struct __sk_buff *skb, __u32 ip)
{
	struct work *k = work();
	struct head *h;

	if (!k)
		return 0;
	h = &k->head;
	if (parse(skb, ip))
		return 0;
	if (h->part == FIRST)
		join(h);
	if (!begins(h))
		return 0;
	if (looks_up()) {
		begin(&h->flow);
	} else {
		reverse(&h->flow);
		bpf_map_delete_elem(&shared_flows, &h->flow);
	}
	return 0;
}

/*
 * Sees what comes in from the end whose owner is to be found. Below 0: that is no
 * question any more, and w has the answer; above: it is another packet's, which
 * this one quotes. On the loopback interface a packet is seen once and has two
 * owners: sender gets the other one there, which was learnt a moment ago, and is
 * left alone elsewhere.
 */
static __always_inline int face(struct __sk_buff *skb, __u32 ip, struct head *h, struct whose *w,
				struct whose *sender)
{
	if (parse(skb, ip))
		return -1;
	/* A fragment whose first one did not come by, or there are too many headers before the
	 * ports. */
	if (h->part == LATER ? join(h) : is_extension(h->flow.protocol)) {
		w->uid = UID_UNKNOWN;
		return -1;
	}
	if (skb->ifindex == LOOPBACK_IFINDEX && (has_ports(h->flow.protocol) || h->kind == REQUEST))
		recall(&h->flow, sender, unlearnt());
	if (h->kind == ERROR)
		return quoted(skb, h) ? -1 : 1;
	if (!has_ports(h->flow.protocol) && h->kind != REPLY)
		return -1;
	reverse(&h->flow);
	return 0;
}

/* Whose a packet is that comes in. */
static __noinline int owner_in(struct __sk_buff *skb, __u32 ip, struct whose *w,
			       struct whose *sender)
{
	struct known known = {.differs = 1};
	bool first, plain;
	struct words f;
	struct work *k;

	w->uid = UID_NONE;
	plain = SK_LOOKUP && skb->ifindex != LOOPBACK_IFINDEX && is_plain(skb, ip, &f);
	if (plain && looks_up() && is_found(f.word, &known)) {
		w->uid = known.uid;
		w->cgroup = known.cgroup;
		return 0;
	}
	k = work();
	if (!k)
		return 0;
	if (plain) {
		turn(&k->head.flow, f.word);
		first = (f.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	} else {
		int seen = face(skb, ip, &k->head, w, sender);

		if (seen < 0)
			return 0;
		first = !seen && begins(&k->head);
	}
	k->known = known;
	if (find(skb, first) && plain && k->known.differs)
		remember(skb, &k->head.flow, &f, &k->whose, &k->known);
	*w = k->whose;
	if (ROOM && first && KNOWN(w->uid))
		w->news = true;
	return 0;
}

#endif
