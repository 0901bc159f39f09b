/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The owners of flows, learnt from what leaves: for what comes in where no socket
 * is looked up, or when it is gone.
 */
#ifndef DROIDTAP_FLOWS_H
#define DROIDTAP_FLOWS_H

#include "lookup.h"

#define LOOPBACK_IFINDEX 1
#define SECOND		 1000000000ULL

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

/* Whether an owner was learnt within limit. The clock is asked only where ticks do not tell. */
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

/* What is said of a flow that was not learnt: it is nobody's, or the agent has to ask. */
static __always_inline __u32 unlearnt(void)
{
	return looks_up() ? UID_NONE : UID_UNKNOWN;
}

/* Whose a flow was when it was learnt; else uid, which is none. */
static __noinline int recall(const struct flow *f, struct whose *w, __u32 uid)
{
	struct owner *o = learnt(f, w);

	w->uid = o ? o->uid : uid;
	w->cgroup = o ? o->cgroup : 0;
	return 0;
}

/* Where the flow of five words is among those that were learnt lately, if it is. */
static __always_inline struct recent *place(const __u64 *f)
{
	__u32 at = spot(f);

	return bpf_map_lookup_elem(&recent, &at);
}

/* The socket of a packet that leaves, if it has an address and a port. */
static __always_inline struct bpf_sock *ip_sock(struct __sk_buff *skb)
{
	struct bpf_sock *sk = SK_LOOKUP ? skb->sk : NULL;

	return sk && (sk->family == AF_INET || sk->family == AF_INET6) ? sk : NULL;
}

/* Whether a packet's socket is one of the kernel's own, by which it answers for others. */
static __always_inline bool has_control_sock(struct __sk_buff *skb)
{
	struct bpf_sock *sk = ip_sock(skb);

	if (sk)
		sk = bpf_sk_fullsock(sk);
	return sk && sk->type == SOCK_RAW;
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

/* Whether the flow of five words was learnt to be w's. */
static __always_inline bool is_recent(const struct recent *r, const __u64 *f, const struct whose *w)
{
	return holds(r->jiffies) && r->uid == w->uid && r->cgroup == w->cgroup &&
	       is_same((const __u64 *)&r->flow, f);
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
	if (!old || old->uid != w->uid || old->cgroup != w->cgroup) {
		bpf_map_update_elem(&shared_flows, &h->flow, &new, BPF_ANY);
		if (ROOM)
			w->news = true;
	} else if (JIFFIES || new.seen > old->seen + SECOND || h->flags & TCP_SYN) {
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
	/* What the kernel says of a connection is not root's: see owner_out(). */
	if (!w->uid && is_tcp(&f) && has_control_sock(skb))
		return false;
	/* On the loopback interface the sender is looked for, too: see learn(). */
	if (looks_up() && is_amid(&f) && skb->ifindex != LOOPBACK_IFINDEX &&
	    !is_translated(skb, (const struct flow *)f.word))
		return true;
	r = place(f.word);
	return r && !(f.flags & TCP_SYN) && is_recent(r, f.word, w);
}

#endif
