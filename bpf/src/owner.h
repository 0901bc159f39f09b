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

#include "lookup.h"

#define LOOPBACK_IFINDEX 1
#define OVERFLOW_UID	 65534 /* what bpf_get_socket_uid says of a packet with no full socket */
#define SECOND		 1000000000ULL

/* A uid that is one. */
#define KNOWN(uid) ((uid) < UID_NONE)

/* Go: owner.learnt. */
struct owner {
	__u32 uid;
	__u32 jiffies; /* when it was learnt last, for this file only; 0: unknown */
	__u64 cgroup;  /* 0: unknown */
	__u64 seen;    /* when it was learnt last, ns of the records' clock */
	__u64 born;    /* when a SYN of ours began it, the same; 0: it was there before */
};

/*
 * The owner of each flow, learnt where its packets leave. When it is full the
 * flow that was quiet for longest goes, and is learnt again with its next packet
 * out.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow);
	__type(value, struct owner);
} shared_flows SEC(".maps");

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
 * When a UDP socket of each port was closed last, ns of the records' clock. What
 * was learnt before is the owner of nothing any more: another may have the port.
 * The agent writes it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u64);
} shared_closed SEC(".maps");

/* A flow that was learnt, or was seen to be known. */
struct recent {
	struct flow flow;
	__u32 uid;
	__u32 jiffies; /* when, the lower half */
	__u64 cgroup;
};

#define RECENT 256 /* a power of two */

/*
 * Spares most packets the large map and the clock. Flows that meet in an entry
 * push each other out. Processors share it: it is seldom written, and an entry of
 * an array is found without a call. A flow is learnt before it is written here, so
 * one that two have half written says nothing wrong.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RECENT);
	__type(key, __u32);
	__type(value, struct recent);
} recent SEC(".maps");

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

/* Cheap time in ticks of 1 to 10 ms, never 0. */
static __always_inline __u32 ticks(void)
{
	return JIFFIES ? bpf_jiffies64() | 1 : 1;
}

/* Whether an owner was learnt within some seconds. The clock is asked only where ticks do not tell.
 */
static __always_inline bool is_fresh(const struct owner *o, __u64 limit, struct whose *w)
{
	if (JIFFIES && o->jiffies && ticks() - o->jiffies < 6000) /* a minute at most */
		return true;
	return now(w) <= o->seen + limit;
}

/* The owner of a flow that was learnt, NULL if that is too long ago. */
static __always_inline struct owner *learnt(const struct flow *f, struct whose *w)
{
	struct owner *o = bpf_map_lookup_elem(&shared_flows, f);
	__u64 limit = f->protocol == IPPROTO_TCP ? 120 * SECOND : 60 * SECOND;
	__u32 port = bpf_ntohs(f->local_port);
	__u64 *closed;

	if (!o || !is_fresh(o, limit, w))
		return NULL;
	/* Where the lookup found no socket, the port is nobody else's. */
	if (f->protocol == IPPROTO_UDP && !looks_up()) {
		closed = bpf_map_lookup_elem(&shared_closed, &port);
		if (closed && o->seen < *closed)
			return NULL;
	}
	return o;
}

/*
 * Whose a flow was when it was learnt. What was not is nobody's, or the agent has
 * to ask. A packet that begins a connection is not of the one that was learnt.
 */
static __noinline int recall(const struct flow *f, struct whose *w, bool begins)
{
	struct owner *o = begins ? NULL : learnt(f, w);

	w->uid = looks_up() ? UID_NONE : UID_UNKNOWN;
	w->cgroup = 0;
	if (o) {
		w->uid = o->uid;
		w->cgroup = o->cgroup;
	}
	return 0;
}

/* Whose the local end of a flow is: the socket's that there is, else whose it was. */
static __noinline int find(struct __sk_buff *skb, const struct flow *f, struct whose *w,
			   bool begins)
{
	if (looks_up() && has_ports(f->protocol) && look_up(skb, f, w))
		return 0;
	return recall(f, w, begins);
}

/* Whether a packet of uid 0 was made by the kernel, by its control sockets. */
static __always_inline bool of_kernel(struct __sk_buff *skb, const struct head *h)
{
	struct bpf_sock *sk;

	if (is_icmp(h->flow.protocol) ? h->kind == REQUEST || h->kind == QUERY
				      : h->flow.protocol != IPPROTO_TCP)
		return false;
	/* Without skb->sk, 5.1, root's old connection looks the same. */
	if (!SK_LOOKUP)
		return is_icmp(h->flow.protocol) || !(h->flags & TCP_SYN);
	sk = skb->sk;
	if (sk)
		sk = bpf_sk_fullsock(sk);
	return sk && sk->type == SOCK_RAW && (sk->family == AF_INET || sk->family == AF_INET6);
}

/* Where the flow of five words is among those that were learnt lately, if it is. */
static __always_inline struct recent *place(const __u64 *f)
{
	__u32 at = f[1] >> 32 ^ f[3] >> 32 ^ f[4];

	at ^= at >> 16;
	at = (at ^ at >> 8) & (RECENT - 1);
	return bpf_map_lookup_elem(&recent, &at);
}

/* The socket of a packet that leaves, if it has an address and a port. */
static __always_inline struct bpf_sock *ip_sock(struct __sk_buff *skb)
{
	struct bpf_sock *sk = SK_LOOKUP ? skb->sk : NULL;

	return sk && (sk->family == AF_INET || sk->family == AF_INET6) ? sk : NULL;
}

/*
 * Whether the address of a packet's socket was translated on its way, as clat
 * does: no socket is found for what comes back.
 */
static __always_inline bool is_translated(struct __sk_buff *skb, const struct flow *f)
{
	struct bpf_sock *sk = ip_sock(skb);
	__u32 v4, v6;

	if (!sk)
		return false;
	v4 = sk->src_ip4;
	v6 = sk->src_ip6[3];
	/* Each is read from its place: the verifier takes no sum of the pointer. */
	asm volatile("" : "+r"(v4), "+r"(v6));
	return f->local.s6_addr32[3] != (is_v4(&f->local) ? v4 : v6);
}

/*
 * Whether a packet carries another one, whose socket it has: IPsec's and others'
 * tunnels in UDP, in which many apps' packets have one flow. Where sockets are
 * looked up the tunnel's is found.
 */
static __always_inline bool carries(struct __sk_buff *skb, const struct flow *f)
{
	struct bpf_sock *sk = looks_up() ? NULL : ip_sock(skb);

	return sk && sk->src_port && sk->src_port != bpf_ntohs(f->local_port);
}

/* Whether the flow of five words was learnt to be w's. A hundred jiffies are a tenth of a second up
 * to a whole one. */
static __always_inline bool is_recent(const struct recent *r, const __u64 *f, const struct whose *w)
{
	const __u64 *g = (const __u64 *)&r->flow;

	return ticks() - r->jiffies < 100 && r->uid == w->uid && r->cgroup == w->cgroup &&
	       f[0] == g[0] && f[1] == g[1] && f[2] == g[2] && f[3] == g[3] && f[4] == g[4];
}

/*
 * Learns whose a flow is. A connection's first packets and its last ones do where
 * sockets are looked up, for what comes in when the socket is gone. On the
 * loopback interface all do: there the sender is asked for, too.
 */
static __always_inline void learn(struct __sk_buff *skb, const struct head *h, struct whose *w)
{
	struct owner new = {.uid = w->uid, .cgroup = w->cgroup}, *old;
	struct recent *r = NULL;

	if (h->flow.protocol == IPPROTO_TCP) {
		if (looks_up() && !(h->flags & (TCP_SYN | TCP_FIN | TCP_RST)) &&
		    skb->ifindex != LOOPBACK_IFINDEX && !is_translated(skb, &h->flow))
			return;
	} else if (h->flow.protocol == IPPROTO_UDP) {
		if (carries(skb, &h->flow))
			return;
	} else if (h->kind != REQUEST) {
		return;
	}
	new.jiffies = ticks();
	if (JIFFIES)
		r = place((const __u64 *)&h->flow);
	if (r && !(h->flags & TCP_SYN) && is_recent(r, (const __u64 *)&h->flow, w))
		return;
	old = bpf_map_lookup_elem(&shared_flows, &h->flow);
	new.seen = now(w);
	if (h->flags & TCP_SYN)
		new.born = new.seen;
	else if (old)
		new.born = old->born;
	if (!old || old->uid != w->uid || old->cgroup != w->cgroup)
		bpf_map_update_elem(&shared_flows, &h->flow, &new, BPF_ANY);
	else if (JIFFIES || new.seen > old->seen + SECOND || h->flags & TCP_SYN) {
		old->jiffies = new.jiffies;
		old->seen = new.seen;
		old->born = new.born;
	}
	if (r) {
		r->flow = h->flow;
		r->uid = w->uid;
		r->cgroup = w->cgroup;
		r->jiffies = new.jiffies;
	}
}

/*
 * Whether nothing is learnt from a packet of w: most are so, and are not looked at
 * further. It was learnt lately, or is TCP in the midst of a connection.
 */
static __always_inline bool is_known(struct __sk_buff *skb, __u32 ip, const struct whose *w)
{
	struct recent *r;
	struct words f;

	if (!is_plain(skb, ip, &f))
		return false;
	/* On the loopback interface the sender is looked for, too: see learn(). */
	if (looks_up() && f.word[4] >> 32 == IPPROTO_TCP &&
	    !(f.flags & (TCP_SYN | TCP_FIN | TCP_RST)) && skb->ifindex != LOOPBACK_IFINDEX &&
	    !is_translated(skb, (const struct flow *)f.word))
		return true;
	r = place(f.word);
	return r && !(f.flags & TCP_SYN) && is_recent(r, f.word, w);
}

/*
 * Whose a packet is that leaves. The socket says it, except for what the kernel
 * sends by itself, about a socket that is gone (an ACK in TIME_WAIT, a reset) or
 * that never was: there the flow knows.
 */
static __noinline int owner_out(struct __sk_buff *skb, __u32 ip, struct whose *w)
{
	__u32 uid = bpf_get_socket_uid(skb);
	struct owner *o;
	struct head h;
	bool none;

	w->uid = uid == OVERFLOW_UID ? UID_NONE : uid;
	w->cgroup = uid == OVERFLOW_UID ? 0 : bpf_skb_cgroup_id(skb);
	if (JIFFIES && uid && uid != OVERFLOW_UID && is_known(skb, ip, w))
		return 0;
	if (parse(skb, ip, &h) || (h.part && join(&h)))
		return 0;
	if (uid != OVERFLOW_UID && !(uid == 0 && of_kernel(skb, &h))) {
		learn(skb, &h, w);
		return 0;
	}
	none = SK_LOOKUP || uid == OVERFLOW_UID || h.flow.protocol != IPPROTO_TCP;
	w->uid = none ? UID_NONE : UID_UNKNOWN;
	w->cgroup = 0;
	if (h.kind == ERROR) {
		if (quoted(skb, &h))
			return 0;
		reverse(&h.flow);
	} else if (!has_ports(h.flow.protocol)) {
		return 0;
	}
	o = learnt(&h.flow, w);
	if (o) {
		w->uid = o->uid;
		w->cgroup = o->cgroup;
	}
	return 0;
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
		if (looks_up() || ip->protocol != IPPROTO_TCP)
			return false;
		if (*(__u8 *)at != 0x45 || at + sizeof(*ip) + 14 > end)
			return true;
		flags = *(__u8 *)(at + sizeof(*ip) + 13);
	} else if (version == 6) {
		if (is_extension(ip6->nexthdr))
			return true;
		if (looks_up() || ip6->nexthdr != IPPROTO_TCP)
			return false;
		if (at + sizeof(*ip6) + 14 > end)
			return true;
		flags = *(__u8 *)(at + sizeof(*ip6) + 13);
	} else {
		return false;
	}
	return (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* What is_early() is for. In a function of its own, so that the verifier forgets it before the
 * filter. */
static __noinline int note(struct __sk_buff *skb, __u32 ip)
{
	struct head h;

	if (parse(skb, ip, &h))
		return 0;
	if (h.part == FIRST)
		join(&h);
	if (begins(&h) && !looks_up()) {
		reverse(&h.flow);
		bpf_map_delete_elem(&shared_flows, &h.flow);
	}
	return 0;
}

/*
 * Sees what comes in from the end whose owner is to be found. Below 0: that is no
 * question any more, and w has the answer; above: it is another packet's, which
 * this one quotes. On the loopback interface a packet is
 * seen once and has two owners: sender gets the other one there, which was learnt
 * a moment ago, and is left alone elsewhere.
 */
static __always_inline int face(struct __sk_buff *skb, __u32 ip, struct head *h, struct whose *w,
				struct whose *sender)
{
	if (parse(skb, ip, h))
		return -1;
	/* A fragment whose first one did not come by, or there are too many headers before the
	 * ports. */
	if (h->part == LATER ? join(h) : is_extension(h->flow.protocol)) {
		w->uid = UID_UNKNOWN;
		return -1;
	}
	if (skb->ifindex == LOOPBACK_IFINDEX && (has_ports(h->flow.protocol) || h->kind == REQUEST))
		recall(&h->flow, sender, false);
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
	bool first;
	struct words f;
	struct head h;

	w->uid = UID_NONE;
	if (SK_LOOKUP && skb->ifindex != LOOPBACK_IFINDEX && is_plain(skb, ip, &f)) {
		turn(&h.flow, f.word);
		first = (f.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	} else {
		int seen = face(skb, ip, &h, w, sender);

		if (seen < 0)
			return 0;
		first = !seen && begins(&h);
	}
	return find(skb, &h.flow, w, first);
}

#endif
