// SPDX-License-Identifier: GPL-2.0-only
/*
 * The packet probe: classifiers for TCX and for cls_bpf, one for each direction
 * and framing, and packet socket filters for where neither can be had. They look
 * and never touch: a classifier's verdict is always "go on".
 */
#include "agent.h"
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>

#define LOOPBACK_IFINDEX 1
#define OVERFLOW_UID	 65534 /* what bpf_get_socket_uid says of a packet with no full socket */
#define IP_OFFSET	 0x1fff

/* Packets by interface. Go: packet.counts. */
struct counts {
	__u64 in, out;	    /* passed the hook, in a direction that is recorded */
	__u64 received;	    /* matched the filter and, if one was asked for, the owner */
	__u64 dropped;	    /* matched, but the ring had no room */
	__u64 unattributed; /* matched the filter; the owner is unknown and one was asked for */
};

/*
 * Keyed by ifindex. User space makes an entry for each interface before it
 * attaches, and entry 0 for what no entry claims; nothing is added here.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct counts);
} interfaces SEC(".maps");

/* The uids that were asked for; user space sizes and fills it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8);
} uids SEC(".maps");

/* A TCP or UDP flow as this machine sees it. IPv4 addresses are v4-mapped. */
struct flow {
	struct in6_addr local, remote;
	__be16 local_port, remote_port;
	__u8 protocol;
	__u8 pad[3];
};

/*
 * The owner of each flow, learnt where its packets leave: a packet that comes in
 * has no socket yet. When it is full the flow that was quiet for longest goes,
 * and is learnt again with its next packet out.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct flow);
	__type(value, __u32);
} shared_flows SEC(".maps");

static __always_inline struct counts *counts_of(__u32 ifindex)
{
	struct counts *c = bpf_map_lookup_elem(&interfaces, &ifindex);
	__u32 other = 0;

	return c ? c : bpf_map_lookup_elem(&interfaces, &other);
}

static __always_inline void saw(struct counts *c, enum direction direction)
{
	if (direction == INGRESS)
		c->in++;
	else
		c->out++;
}

/* The offset of the IP header behind an Ethernet header and up to two VLAN tags. */
static __always_inline __u32 ip_offset(struct __sk_buff *skb)
{
	__u32 off = ETH_HLEN;
	__be16 type;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (bpf_skb_load_bytes(skb, off - sizeof(type), &type, sizeof(type)))
			break;
		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		off += 4;
	}
	return off;
}

static __always_inline void map_v4(struct in6_addr *to, __be32 from)
{
	to->s6_addr32[2] = bpf_htonl(0xffff);
	to->s6_addr32[3] = from;
}

/*
 * Fills f, which is all zero, from the packet whose IP header is at off, with its
 * source as the local end. Not 0: neither TCP nor UDP, or the ports are not there.
 */
static __always_inline int flow_from(struct __sk_buff *skb, __u32 off, struct flow *f)
{
	__u8 version;

	if (bpf_skb_load_bytes(skb, off, &version, sizeof(version)))
		return -1;
	if (version >> 4 == 4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
			return -1;
		if (ip.frag_off & bpf_htons(IP_OFFSET))
			return -1;
		f->protocol = ip.protocol;
		map_v4(&f->local, ip.saddr);
		map_v4(&f->remote, ip.daddr);
		off += (version & 0xf) * 4;
	} else if (version >> 4 == 6) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
			return -1;
		f->protocol = ip.nexthdr;
		f->local = ip.saddr;
		f->remote = ip.daddr;
		off += sizeof(ip);
	} else {
		return -1;
	}
	if (f->protocol != IPPROTO_TCP && f->protocol != IPPROTO_UDP)
		return -1;
	return bpf_skb_load_bytes(skb, off, &f->local_port, 2 * sizeof(__be16));
}

static __always_inline void reverse(struct flow *f)
{
	struct in6_addr addr = f->local;
	__be16 port = f->local_port;

	f->local = f->remote;
	f->remote = addr;
	f->local_port = f->remote_port;
	f->remote_port = port;
}

static __always_inline bool wanted(__u32 uid)
{
	return bpf_map_lookup_elem(&uids, &uid);
}

/*
 * The owner of a packet that leaves. The socket says it, except for what the
 * kernel sends on behalf of a TCP socket that is gone (an ACK in TIME_WAIT, a
 * reset): that has uid 0 or none, and there the flow knows better. Learns only
 * where an owner was asked for, since that costs a packet some hundred nanoseconds.
 */
static __always_inline __u32 owner_out(struct __sk_buff *skb, __u32 ip, bool learn)
{
	__u32 uid = bpf_get_socket_uid(skb);
	struct flow f = {};
	bool gone;
	__u32 *known;

	if (learn && !flow_from(skb, ip, &f)) {
		known = bpf_map_lookup_elem(&shared_flows, &f);
		gone = uid == OVERFLOW_UID || (uid == 0 && f.protocol == IPPROTO_TCP);
		if (known && gone)
			uid = *known;
		else if (uid != OVERFLOW_UID && (!known || *known != uid))
			bpf_map_update_elem(&shared_flows, &f, &uid, BPF_ANY);
	}
	return uid == OVERFLOW_UID ? UID_UNKNOWN : uid;
}

/*
 * The owner of a packet that comes in, from its flow. Never from the skb's
 * socket: that is the sender's on veth and the VPN app's on tun. On the loopback
 * interface a packet is seen once and has two owners: a wanted one wins.
 */
static __always_inline __u32 owner_in(struct __sk_buff *skb, __u32 ip)
{
	struct flow f = {};
	__u32 *receiver, *sender = NULL;

	if (flow_from(skb, ip, &f))
		return UID_UNKNOWN;
	if (skb->ifindex == LOOPBACK_IFINDEX) {
		sender = bpf_map_lookup_elem(&shared_flows, &f);
		if (sender && wanted(*sender))
			return *sender;
	}
	reverse(&f);
	receiver = bpf_map_lookup_elem(&shared_flows, &f);
	if (receiver)
		return *receiver;
	return sender ? *sender : UID_UNKNOWN;
}

static __always_inline void record(struct __sk_buff *skb, struct counts *c, __u32 uid,
				   enum direction direction, __u32 snaplen)
{
	struct event e = {
		.time = bpf_ktime_get_boot_ns(),
		.ifindex = skb->ifindex,
		.len = skb->len,
		.caplen = skb->len,
		.uid = uid,
		.direction = direction,
	};

	if (e.caplen > snaplen)
		e.caplen = snaplen;
	if (e.caplen > MAX_CAPLEN)
		e.caplen = MAX_CAPLEN;
	if (skb->vlan_present) {
		e.vlan_tci = skb->vlan_tci;
		e.vlan_proto = skb->vlan_proto;
	}
	c->received++;
	if (emit(skb, &e))
		c->dropped++;
}

static __always_inline int capture(struct __sk_buff *skb, enum direction direction, bool l2)
{
	const volatile struct settings *s = setting();
	struct counts *c = counts_of(skb->ifindex);
	__u32 uid = UID_UNKNOWN;
	__u32 ip = 0;

	if (!s || !c)
		return TC_ACT_UNSPEC;
	if (s->owner && l2)
		ip = ip_offset(skb);
	/* Before the filter: one that matches only replies needs the request's owner. */
	if (direction == EGRESS)
		uid = owner_out(skb, ip, s->owner);
	if (!(s->directions & direction))
		return TC_ACT_UNSPEC;
	if (direction == EGRESS && skb->ifindex == LOOPBACK_IFINDEX && s->loopback_once)
		return TC_ACT_UNSPEC;
	saw(c, direction);
	if (!(l2 ? RUN_FILTER(filter_pcap_l2, skb) : RUN_FILTER(filter_pcap_l3, skb)))
		return TC_ACT_UNSPEC;
	if (s->owner) {
		if (direction == INGRESS)
			uid = owner_in(skb, ip);
		if (uid == UID_UNKNOWN) {
			c->unattributed++;
			return TC_ACT_UNSPEC;
		}
		if (!wanted(uid))
			return TC_ACT_UNSPEC;
	}
	record(skb, c, uid, direction, s->snaplen);
	return TC_ACT_UNSPEC;
}

/* TC_ACT_UNSPEC and TCX_NEXT are both -1, so a program serves either hook. */
SEC("tc")
int l2_ingress(struct __sk_buff *skb)
{
	return capture(skb, INGRESS, true);
}

SEC("tc")
int l2_egress(struct __sk_buff *skb)
{
	return capture(skb, EGRESS, true);
}

SEC("tc")
int l3_ingress(struct __sk_buff *skb)
{
	return capture(skb, INGRESS, false);
}

SEC("tc")
int l3_egress(struct __sk_buff *skb)
{
	return capture(skb, EGRESS, false);
}

/*
 * The filter of a packet socket: the same decisions, but the record is the
 * socket's own, of as many bytes as this returns. There is no owner, since the
 * skb is a clone without a socket, and no direct access to the packet.
 */
static __always_inline int keep(struct __sk_buff *skb, bool l2)
{
	enum direction direction = skb->pkt_type == PACKET_OUTGOING ? EGRESS : INGRESS;
	const volatile struct settings *s = setting();
	struct counts *c = counts_of(skb->ifindex);

	if (!s || !c)
		return 0;
	if (!(s->directions & direction))
		return 0;
	if (direction == EGRESS && skb->ifindex == LOOPBACK_IFINDEX && s->loopback_once)
		return 0;
	saw(c, direction);
	if (!(l2 ? RUN_FILTER_NO_DATA(filter_pcap_l2, skb)
		 : RUN_FILTER_NO_DATA(filter_pcap_l3, skb)))
		return 0;
	c->received++;
	return s->snaplen;
}

SEC("socket")
int l2_socket(struct __sk_buff *skb)
{
	return keep(skb, true);
}

SEC("socket")
int l3_socket(struct __sk_buff *skb)
{
	return keep(skb, false);
}

char _license[] SEC("license") = "GPL";
