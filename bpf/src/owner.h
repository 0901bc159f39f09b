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

#include "agent.h"
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#define LOOPBACK_IFINDEX 1
#define OVERFLOW_UID	 65534 /* what bpf_get_socket_uid says of a packet with no full socket */
#define SECOND		 1000000000ULL

#define AF_INET	 2
#define AF_INET6 10
#define SOCK_RAW 3

#define IP_MF	  0x2000
#define IP_OFFSET 0x1fff
#define ICMP_HLEN 8
#define TCP_FIN	  0x01
#define TCP_SYN	  0x02
#define TCP_RST	  0x04
#define TCP_ACK	  0x10

/* A uid that is one. */
#define KNOWN(uid) ((uid) < UID_NONE)

/*
 * A flow as this machine sees it. IPv4 addresses are v4-mapped. Of an ICMP echo
 * the local port is the identifier and the remote one 0. Go: packet.flowKey.
 */
struct flow {
	struct in6_addr local, remote;
	__be16 local_port, remote_port;
	__u8 protocol;
	__u8 pad[3];
};

/* Go: packet.flowOwner. */
struct owner {
	__u32 uid;
	__u32 pad;
	__u64 cgroup; /* 0: unknown */
	__u64 seen;   /* when it was learnt last, ns of the monotonic clock */
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

/* What the fragments of a packet have in common. Go: packet.fragmentKey. */
struct fragment {
	struct in6_addr src, dst; /* IPv4 addresses are v4-mapped */
	__be32 id;		  /* IPv4's 16 bits are the lower ones */
	__u8 protocol;		  /* IPv4's; 0 for IPv6 */
	__u8 version;		  /* 4 or 6 */
	__u8 pad[2];
};

/* What only the first of them has, as in struct flow. Go: packet.firstPorts. */
struct ports {
	__be16 src, dst;
	__u8 protocol;
	__u8 kind; /* enum kind */
	__u8 pad[2];
	__u64 seen; /* ns of the monotonic clock */
};

/* When it is full the one that was asked for least lately goes: its later fragments are unknown. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct fragment);
	__type(value, struct ports);
} shared_fragments SEC(".maps");

/* A port of this machine. Go: packet.localPort. */
struct port {
	__u8 protocol;
	__u8 pad;
	__be16 port;
};

/*
 * When a UDP socket of a port was closed, ns of the monotonic clock. What was
 * learnt before is the owner of nothing any more: another may have the port. The
 * agent writes it. A port that is pushed out ages like the others.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct port);
	__type(value, __u64);
} shared_closed SEC(".maps");

/* Where a pointer becomes a number, which the verifier lets us add to: see sock_owner(). */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} pointer SEC(".maps");

/* A flow that this processor has learnt, or has seen to be known. */
struct recent {
	struct flow flow;
	__u32 uid;
	__u32 jiffies; /* when, the lower half */
	__u64 cgroup;
};

#define RECENT 256 /* a power of two */

/* Spares most packets the large map and the clock. Flows that meet in an entry push each other out.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RECENT);
	__type(key, __u32);
	__type(value, struct recent);
} recent SEC(".maps");

struct whose {
	__u32 uid; /* or UID_UNKNOWN or UID_NONE */
	__u64 cgroup;
};

enum part { WHOLE, FIRST, LATER };

/* Kinds of ICMP messages. */
enum kind {
	OTHER,
	REQUEST, /* an echo's */
	REPLY,	 /* to it */
	QUERY,	 /* another request that the kernel never sends: timestamp, mask */
	ERROR,	 /* quotes the packet that it is about */
};

/* What is at the head of a packet. */
struct head {
	struct flow flow; /* the source is the local end; a later fragment has no ports */
	__be32 id;	  /* of fragments */
	__u32 l4;	  /* offset of the TCP, UDP or ICMP header */
	__u8 version;	  /* 4 or 6 */
	__u8 part;	  /* enum part */
	__u8 flags;	  /* of TCP */
	__u8 kind;	  /* enum kind, of ICMP */
};

/*
 * Makes a number one that the verifier knows nothing of. Before 5.3 it would
 * otherwise go through the filter once for each value.
 */
static __always_inline __u32 forget(__u32 n)
{
	volatile __u32 stored = n;

	return stored;
}

/* Whether sockets are looked up. */
static __always_inline bool looks_up(void)
{
	return SK_LOOKUP && setting()->sock_uid;
}

/*
 * Where to read at an offset, below 32 KiB, as the verifier wants it: the offset
 * masked, and the sum in one register, which is then compared with the end.
 */
static __always_inline void *direct(void *data, __u32 off)
{
	data += off & 0x7fff;
	asm volatile("" : "+r"(data));
	return data;
}

/* The offset of the IP header behind an Ethernet header and up to two VLAN tags. */
static __always_inline __u32 ip_offset(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u32 off = ETH_HLEN;
	__be16 type;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (data + off <= end)
			type = *(__be16 *)(data + off - sizeof(type));
		else if (bpf_skb_load_bytes(skb, off - sizeof(type), &type, sizeof(type)))
			break;
		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		off += 4;
	}
	return off;
}

static __always_inline void copy_addr(struct in6_addr *to, const void *from)
{
	((__u64 *)to)[0] = ((const __u64 *)from)[0];
	((__u64 *)to)[1] = ((const __u64 *)from)[1];
}

static __always_inline void map_v4(struct in6_addr *to, __be32 from)
{
	((__u64 *)to)[0] = 0;
	to->s6_addr32[2] = bpf_htonl(0xffff);
	to->s6_addr32[3] = from;
}

static __always_inline bool is_v4(const struct in6_addr *a)
{
	return ((const __u64 *)a)[0] == 0 && a->s6_addr32[2] == bpf_htonl(0xffff);
}

static __always_inline bool is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_DSTOPTS ||
	       next == IPPROTO_FRAGMENT;
}

static __always_inline bool is_icmp(__u8 protocol)
{
	return protocol == IPPROTO_ICMP || protocol == IPPROTO_ICMPV6;
}

static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}

/* Types of RFC 792, 950 and 4443. */
static __always_inline enum kind kind_of(__u8 protocol, __u8 type)
{
	const __u32 errors = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 11 | 1 << 12;

	if (protocol == IPPROTO_ICMPV6) {
		if (type == 128)
			return REQUEST;
		if (type == 129)
			return REPLY;
		return type >= 1 && type <= 4 ? ERROR : OTHER;
	}
	if (type == 8)
		return REQUEST;
	if (type == 0)
		return REPLY;
	if (type == 13 || type == 17)
		return QUERY;
	return type < 32 && errors >> type & 1 ? ERROR : OTHER;
}

/*
 * Walks over extension headers from h->l4. Returns what is behind them, and -1
 * where the packet ends before. What comes behind more than EXTENSIONS is not
 * looked at.
 */
static __always_inline int skip_extensions(struct __sk_buff *skb, struct head *h, __u8 next)
{
	union {
		__u8 bytes[8];
		__be16 offset[4];
		__be32 words[2];
	} ext;

	UNROLL
	for (int i = 0; i < EXTENSIONS; i++) {
		if (!is_extension(next))
			break;
		if (bpf_skb_load_bytes(skb, h->l4, &ext, sizeof(ext)))
			return -1;
		if (next == IPPROTO_FRAGMENT) {
			h->id = ext.words[1];
			if (ext.offset[1] & bpf_htons(0xfff8))
				h->part = LATER;
			else if (ext.offset[1] & bpf_htons(1))
				h->part = FIRST;
			h->l4 += sizeof(ext);
			next = ext.bytes[0];
			if (h->part == LATER)
				break;
			continue;
		}
		h->l4 += (ext.bytes[1] + 1U) * 8;
		next = ext.bytes[0];
	}
	return next;
}

/*
 * Fills h from the packet whose IP header is at off. Not 0: it is no IP, or cut
 * off before the ports. Bytes are read directly, and by a helper where they are
 * not in the linear head.
 */
static __noinline int parse(struct __sk_buff *skb, __u32 off, struct head *h)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u64 copy[5];
	void *at;

	at = direct(data, off);
	if (at + sizeof(struct iphdr) > end) {
		if (bpf_skb_load_bytes(skb, off, copy, sizeof(struct iphdr)))
			return -1;
		at = copy;
	}
	h->id = 0;
	h->part = WHOLE;
	h->flags = 0;
	h->kind = OTHER;
	h->version = *(__u8 *)at >> 4;
	*(__u32 *)&h->flow.local_port = 0;
	*(__u32 *)&h->flow.protocol = 0;
	if (h->version == 4) {
		const struct iphdr *ip = at;
		__be16 part = ip->frag_off;

		map_v4(&h->flow.local, ip->saddr);
		map_v4(&h->flow.remote, ip->daddr);
		h->flow.protocol = ip->protocol;
		h->l4 = off + (*(__u8 *)at & 0xf) * 4;
		if (part & bpf_htons(IP_MF | IP_OFFSET)) {
			h->id = bpf_htonl(bpf_ntohs(ip->id));
			h->part = part & bpf_htons(IP_OFFSET) ? LATER : FIRST;
		}
	} else if (h->version == 6) {
		const struct ipv6hdr *ip;
		int next;

		at = direct(data, off);
		if (at + sizeof(*ip) > end) {
			if (bpf_skb_load_bytes(skb, off, copy, sizeof(*ip)))
				return -1;
			at = copy;
		}
		ip = at;
		copy_addr(&h->flow.local, &ip->saddr);
		copy_addr(&h->flow.remote, &ip->daddr);
		h->l4 = off + sizeof(*ip);
		next = ip->nexthdr;
		if (is_extension(next)) {
			next = skip_extensions(skb, h, next);
			if (next < 0)
				return -1;
		}
		h->flow.protocol = next;
	} else {
		return -1;
	}
	if (h->part == LATER || !(has_ports(h->flow.protocol) || is_icmp(h->flow.protocol)))
		return 0;
	at = direct(data, h->l4);
	if (at + 8 > end) {
		if (bpf_skb_load_bytes(skb, h->l4, copy, 8))
			return -1;
		at = copy;
	}
	if (is_icmp(h->flow.protocol)) {
		h->kind = kind_of(h->flow.protocol, *(__u8 *)at);
		if (h->kind == REQUEST || h->kind == REPLY)
			h->flow.local_port = *(__be16 *)(at + 4);
		return 0;
	}
	*(__u32 *)&h->flow.local_port = *(__u32 *)at;
	if (h->flow.protocol == IPPROTO_TCP) {
		at = direct(data, h->l4);
		if (at + 14 <= end)
			h->flags = *(__u8 *)(at + 13);
		else /* what an ICMP error quotes may end before */
			bpf_skb_load_bytes(skb, h->l4 + 13, &h->flags, 1);
	}
	return 0;
}

/* Sees the packet from its other end. */
static __always_inline void reverse(struct flow *f)
{
	struct in6_addr addr;

	copy_addr(&addr, &f->local);
	copy_addr(&f->local, &f->remote);
	copy_addr(&f->remote, &addr);
	if (!is_icmp(f->protocol)) {
		__be16 port = f->local_port;

		f->local_port = f->remote_port;
		f->remote_port = port;
	}
}

/*
 * Keeps what only the first fragment of a packet has, and gives it to the later
 * ones. Not 0: the first one has not come by.
 */
static __noinline int join(struct head *h)
{
	struct fragment key = {.id = h->id, .version = h->version};
	struct ports value = {}, *first;
	__u64 now = bpf_ktime_get_ns();

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

/* The owner of a flow that was learnt, NULL if that is too long ago. */
static __always_inline struct owner *learnt(const struct flow *f)
{
	struct owner *o = bpf_map_lookup_elem(&shared_flows, f);
	__u64 limit = f->protocol == IPPROTO_TCP ? 120 * SECOND : 60 * SECOND;
	struct port port = {.protocol = f->protocol, .port = f->local_port};
	__u64 *closed;

	if (!o || bpf_ktime_get_ns() > o->seen + limit)
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
 * The owner of a socket. The helper that found it tells no uid, so it is read
 * from the struct. That the pointer goes through a map makes it a number, to
 * which the verifier lets us add an offset.
 */
static __always_inline void sock_owner(struct bpf_sock *sk, struct whose *w)
{
	const volatile struct settings *s = setting();
	__u64 at, cgroup = 0, node = 0;
	__u64 *slot;
	__u32 zero = 0;

	w->uid = UID_UNKNOWN;
	slot = bpf_map_lookup_elem(&pointer, &zero);
	if (!slot || !s)
		return;
	*(void *volatile *)slot = sk;
	at = *(volatile __u64 *)slot;
	if (bpf_probe_read_kernel(&w->uid, sizeof(w->uid), (void *)(at + s->sock_uid)))
		w->uid = UID_UNKNOWN;
	if (!s->sock_cgroup || !s->cgroup_node || !s->node_id)
		return;
	if (bpf_probe_read_kernel(&cgroup, sizeof(cgroup), (void *)(at + s->sock_cgroup)))
		return;
	/* Before 5.15 no pointer, but what net_cls and net_prio make of it. */
	if (!cgroup || cgroup & 3)
		return;
	if (bpf_probe_read_kernel(&node, sizeof(node), (void *)(cgroup + s->cgroup_node)))
		return;
	if (bpf_probe_read_kernel(&w->cgroup, sizeof(w->cgroup), (void *)(node + s->node_id)))
		w->cgroup = 0;
}

/*
 * Whether a packet to f->local is for this machine. Only a socket of the any
 * address is found for one that is forwarded, and only there it is asked.
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
	return answer < 0 || answer == BPF_FIB_LKUP_RET_NOT_FWDED ||
	       answer == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* Looks up the socket of a TCP or UDP flow; false: there is none. */
static __always_inline bool look_up(struct __sk_buff *skb, const struct flow *f, struct whose *w)
{
	struct bpf_sock_tuple t = {};
	__u32 size = sizeof(t.ipv4);
	struct bpf_sock *sk;

	if (is_v4(&f->local)) {
		t.ipv4.saddr = f->remote.s6_addr32[3];
		t.ipv4.daddr = f->local.s6_addr32[3];
		t.ipv4.sport = f->remote_port;
		t.ipv4.dport = f->local_port;
	} else {
		copy_addr((struct in6_addr *)t.ipv6.saddr, &f->remote);
		copy_addr((struct in6_addr *)t.ipv6.daddr, &f->local);
		t.ipv6.sport = f->remote_port;
		t.ipv6.dport = f->local_port;
		size = sizeof(t.ipv6);
	}
	if (f->protocol == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	w->uid = UID_NONE;
	if (is_local(skb, f, sk))
		sock_owner(sk, w);
	bpf_sk_release(sk);
	return true;
}

/*
 * Whose the local end of a flow is. Where no socket is found and nothing was
 * learnt it is nobody's, or the agent has to ask. A packet that begins a
 * connection is not of the one that was learnt.
 */
static __noinline int find(struct __sk_buff *skb, const struct flow *f, struct whose *w,
			   bool begins)
{
	struct owner *o = NULL;

	w->uid = looks_up() ? UID_NONE : UID_UNKNOWN;
	w->cgroup = 0;
	if (looks_up() && has_ports(f->protocol) && look_up(skb, f, w))
		return 0;
	if (!begins)
		o = learnt(f);
	if (o) {
		w->uid = o->uid;
		w->cgroup = o->cgroup;
	}
	return 0;
}

/* Puts the packet that an ICMP error quotes in the place of its head. Not 0: it had no owner. */
static __always_inline int quoted(struct __sk_buff *skb, struct head *h)
{
	if (parse(skb, h->l4 + ICMP_HLEN, h) || h->part == LATER)
		return -1;
	return has_ports(h->flow.protocol) || h->kind == REQUEST ? 0 : -1;
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

static __always_inline bool same(const struct flow *a, const struct flow *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4];
}

/* The place of a flow among those that were learnt lately. */
static __always_inline struct recent *place(const struct flow *f)
{
	__u32 at = f->local.s6_addr32[3] ^ f->remote.s6_addr32[3] ^ f->local_port ^
		   (__u32)f->remote_port << 16;

	at ^= at >> 16;
	at = (at ^ at >> 8) & (RECENT - 1);
	return bpf_map_lookup_elem(&recent, &at);
}

/*
 * Learns whose a flow is. A connection's first packets and its last ones do where
 * sockets are looked up, for what comes in when the socket is gone. On the
 * loopback interface all do: there the sender is asked for, too.
 */
static __always_inline void learn(struct __sk_buff *skb, const struct head *h,
				  const struct whose *w)
{
	struct owner new = {.uid = w->uid, .cgroup = w->cgroup}, *old;
	struct recent *r = NULL;
	__u32 jiffies = 0;

	if (h->flow.protocol == IPPROTO_TCP) {
		if (looks_up() && !(h->flags & (TCP_SYN | TCP_FIN | TCP_RST)) &&
		    skb->ifindex != LOOPBACK_IFINDEX)
			return;
	} else if (h->flow.protocol != IPPROTO_UDP && h->kind != REQUEST) {
		return;
	}
	if (JIFFIES) {
		r = place(&h->flow);
		jiffies = bpf_jiffies64();
	}
	/* A hundred are a tenth of a second up to a whole one. */
	if (r && !(h->flags & TCP_SYN) && jiffies - r->jiffies < 100 && r->uid == w->uid &&
	    r->cgroup == w->cgroup && same(&r->flow, &h->flow))
		return;
	old = bpf_map_lookup_elem(&shared_flows, &h->flow);
	new.seen = bpf_ktime_get_ns();
	if (!old || old->uid != w->uid || old->cgroup != w->cgroup)
		bpf_map_update_elem(&shared_flows, &h->flow, &new, BPF_ANY);
	else if (JIFFIES || new.seen > old->seen + SECOND || h->flags & TCP_SYN)
		old->seen = new.seen;
	if (r) {
		r->flow = h->flow;
		r->uid = w->uid;
		r->cgroup = w->cgroup;
		r->jiffies = jiffies;
	}
}

/*
 * Whether a packet is TCP in the midst of a connection, from which nothing is
 * learnt: most packets are, and are not looked at further.
 */
static __always_inline bool is_midst(struct __sk_buff *skb, __u32 off)
{
	void *end = (void *)(long)skb->data_end;
	void *at = direct((void *)(long)skb->data, off);
	const struct ipv6hdr *ip6 = at;
	const struct iphdr *ip = at;
	__u8 flags;

	if (at + sizeof(*ip) + 14 > end)
		return false;
	if (*(__u8 *)at == 0x45) {
		if (ip->protocol != IPPROTO_TCP || ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
			return false;
		flags = *(__u8 *)(at + sizeof(*ip) + 13);
	} else {
		if (at + sizeof(*ip6) + 14 > end || *(__u8 *)at >> 4 != 6 ||
		    ip6->nexthdr != IPPROTO_TCP)
			return false;
		flags = *(__u8 *)(at + sizeof(*ip6) + 13);
	}
	return !(flags & (TCP_SYN | TCP_FIN | TCP_RST));
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
	if (looks_up() && uid && uid != OVERFLOW_UID && skb->ifindex != LOOPBACK_IFINDEX &&
	    is_midst(skb, ip))
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
	o = learnt(&h.flow);
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

/* Whether a packet begins a connection. */
static __always_inline bool begins(const struct head *h)
{
	return h->flow.protocol == IPPROTO_TCP && (h->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
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
 * Whose a packet is that comes in. On the loopback interface it is seen once and
 * has two owners: sender gets the other one there, and is left alone elsewhere.
 */
static __noinline int owner_in(struct __sk_buff *skb, __u32 ip, struct whose *w,
			       struct whose *sender)
{
	bool first = false;
	struct head h;

	w->uid = UID_NONE;
	if (parse(skb, ip, &h))
		return 0;
	/* A fragment whose first one did not come by, or there are too many headers before the
	 * ports. */
	if (h.part == LATER ? join(&h) : is_extension(h.flow.protocol)) {
		w->uid = UID_UNKNOWN;
		return 0;
	}
	if (skb->ifindex == LOOPBACK_IFINDEX && (has_ports(h.flow.protocol) || h.kind == REQUEST))
		find(skb, &h.flow, sender, false);
	if (h.kind == ERROR) {
		if (quoted(skb, &h))
			return 0;
	} else if (has_ports(h.flow.protocol) || h.kind == REPLY) {
		reverse(&h.flow);
		first = begins(&h);
	} else {
		return 0;
	}
	return find(skb, &h.flow, w, first);
}

#endif
