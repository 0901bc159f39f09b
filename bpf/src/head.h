/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The head of a packet: its flow, and what tells whose it may be.
 */
#ifndef DROIDTAP_HEAD_H
#define DROIDTAP_HEAD_H

#include "work.h"
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#define IP_MF	  0x2000
#define IP_OFFSET 0x1fff
#define ICMP_HLEN 8
#define TCP_FIN	  0x01
#define TCP_SYN	  0x02
#define TCP_RST	  0x04
#define TCP_ACK	  0x10

/*
 * Makes a number one that the verifier knows nothing of. Before 5.3 it would
 * otherwise go through the filter once for each value.
 */
static __always_inline __u32 forget(__u32 n)
{
	volatile __u32 stored = n;

	return stored;
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
 * Walks over the extension header at work()->head.l4. Returns what is behind it, and -1
 * where the packet ends before.
 */
GLOBAL int skip_extension(struct __sk_buff *skb, __u32 kind)
{
	struct work *k = work();
	struct head *h;
	union {
		__u8 bytes[8];
		__be16 offset[4];
		__be32 words[2];
	} ext;

	if (!k)
		return -1;
	h = &k->head;
	if (bpf_skb_load_bytes(skb, h->l4, &ext, sizeof(ext)))
		return -1;
	h->l4 += sizeof(ext);
	if (kind != IPPROTO_FRAGMENT) {
		h->l4 += ext.bytes[1] * 8U;
		return ext.bytes[0];
	}
	h->id = ext.words[1];
	if (ext.offset[1] & bpf_htons(0xfff8))
		h->part = LATER;
	else if (ext.offset[1] & bpf_htons(1))
		h->part = FIRST;
	return ext.bytes[0];
}

/*
 * Walks over extension headers. Returns what is behind them, and -1 where the packet
 * ends before. What comes behind more than EXTENSIONS is not looked at.
 */
static __always_inline int skip_extensions(struct __sk_buff *skb, struct head *h, int next)
{
#pragma unroll
	for (int i = 0; i < EXTENSIONS; i++) {
		if (next >= 0 && h->part != LATER && is_extension(next))
			next = skip_extension(skb, next);
	}
	return next;
}

/*
 * Fills work()->head from the packet whose IP header is at off. Not 0: it is no IP, or cut
 * off before the ports. Bytes are read directly, and by a helper where they are
 * not in the linear head.
 */
GLOBAL int parse(struct __sk_buff *skb, __u32 off)
{
	struct work *k = work();
	struct head *h;
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	__u64 copy[5];
	void *at;

	if (!k)
		return -1;
	h = &k->head;
	at = direct(data, off);
	if (at + sizeof(struct iphdr) > end) {
		if (bpf_skb_load_bytes(skb, off, copy, sizeof(struct iphdr)))
			return -1;
		at = copy;
	}
	h->id = 0;
	*(__u32 *)&h->version = *(__u8 *)at >> 4; /* part, flags and kind: WHOLE, none, OTHER */
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
		next = skip_extensions(skb, h, next);
		if (next < 0)
			return -1;
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

/* What struct flow holds, in words that may stay in registers, and the flags of TCP. */
struct words {
	__u64 word[5];
	__u8 flags;
};

/*
 * What most packets are: TCP or UDP behind an IPv4 header without options, or an
 * IPv6 header without extensions, no fragment, and in the linear head. parse()
 * is for the others. Bytes are little-endian, as the object is.
 */
static __always_inline bool is_plain(struct __sk_buff *skb, __u32 off, struct words *w)
{
	void *end = (void *)(long)skb->data_end;
	void *at = direct((void *)(long)skb->data, off);
	const struct ipv6hdr *ip6 = at;
	const struct iphdr *ip = at;
	__u8 protocol;

	if (at + sizeof(*ip) + 8 > end)
		return false;
	if (*(__u8 *)at == 0x45) {
		if (ip->frag_off & bpf_htons(IP_MF | IP_OFFSET))
			return false;
		protocol = ip->protocol;
		w->word[0] = 0;
		w->word[1] = (__u64)ip->saddr << 32 | bpf_htonl(0xffff);
		w->word[2] = 0;
		w->word[3] = (__u64)ip->daddr << 32 | bpf_htonl(0xffff);
		at += sizeof(*ip);
	} else {
		if (at + sizeof(*ip6) + 8 > end || *(__u8 *)at >> 4 != 6)
			return false;
		protocol = ip6->nexthdr;
		w->word[0] = ((const __u64 *)&ip6->saddr)[0];
		w->word[1] = ((const __u64 *)&ip6->saddr)[1];
		w->word[2] = ((const __u64 *)&ip6->daddr)[0];
		w->word[3] = ((const __u64 *)&ip6->daddr)[1];
		at += sizeof(*ip6);
	}
	w->word[4] = (__u64)protocol << 32 | *(__u32 *)at;
	w->flags = 0;
	if (protocol == IPPROTO_UDP)
		return true;
	if (protocol != IPPROTO_TCP || at + 14 > end)
		return false;
	w->flags = *(__u8 *)(at + 13);
	return true;
}

static __always_inline bool is_tcp(const struct words *w)
{
	return w->word[4] >> 32 == IPPROTO_TCP;
}

/* Whether a packet is in the midst of a connection: it neither begins nor ends it. */
static __always_inline bool is_amid(const struct words *w)
{
	return is_tcp(w) && !(w->flags & (TCP_SYN | TCP_FIN | TCP_RST));
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

/* Makes f of the words of a TCP or UDP flow, seen from its other end. */
static __always_inline void turn(struct flow *f, const __u64 *w)
{
	__u64 *to = (__u64 *)f;
	__u32 ports = w[4];

	to[0] = w[2];
	to[1] = w[3];
	to[2] = w[0];
	to[3] = w[1];
	to[4] = (w[4] ^ ports) | (__u32)(ports << 16 | ports >> 16);
}

/* Puts the packet that an ICMP error quotes in the place of its head. Not 0: it had no owner. */
static __always_inline int quoted(struct __sk_buff *skb, struct head *h)
{
	if (parse(skb, h->l4 + ICMP_HLEN) || h->part == LATER)
		return -1;
	return has_ports(h->flow.protocol) || h->kind == REQUEST ? 0 : -1;
}

/* Whether a packet begins a connection. */
static __always_inline bool begins(const struct head *h)
{
	return h->flow.protocol == IPPROTO_TCP && (h->flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

#endif
