// SPDX-License-Identifier: GPL-2.0-only
/*
 * The programs of the stand-in for Android's netd: the hooks, the verdicts and
 * the redirects of AOSP's packages/modules/Connectivity bpf/progs (clatd.c,
 * offload.c, dscpPolicy.c, netd.c), not their rules. Helpers and fields of 5.2
 * or earlier.
 */
#include <linux/bpf.h>
#include <stddef.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define IP_DF 0x4000

/* What a program saw. Go: Count. */
struct count {
	__u64 packets; /* calls */
	__u64 taken;   /* of those: redirected, and so hidden from later filters */
};

/* One entry; each program is loaded with a map of its own. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct count);
} counts SEC(".maps");

/* Where tethered packets for an address go. Go: offload. */
struct offload {
	__u32 ifindex;
	__u32 ethernet; /* 1: the packet gets the two addresses that follow */
	__u8 dst[ETH_ALEN], src[ETH_ALEN];
};

/* By destination, IPv4 mapped; shared by all tether programs. When it is full Offload fails. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct in6_addr);
	__type(value, struct offload);
} offloads SEC(".maps");

/* 1: packets begin with an Ethernet header at the interface, for clat at the underlying one. */
const volatile __u32 ethernet;

/* One translation. Go: translation. */
struct translation {
	struct in6_addr local6;
	__be32 prefix[3]; /* of NAT64, /96 */
	__be32 local4;
	__u32 v4;	  /* ifindex of v4-NAME */
	__u32 underlying; /* ifindex */
};
const volatile struct translation clat;

static __always_inline struct count *counted(void)
{
	__u32 zero = 0;
	struct count *c = bpf_map_lookup_elem(&counts, &zero);

	if (c)
		__sync_fetch_and_add(&c->packets, 1);
	return c;
}

static __always_inline int redirect(struct count *c, __u32 ifindex, __u64 flags)
{
	if (c)
		__sync_fetch_and_add(&c->taken, 1);
	return bpf_redirect(ifindex, flags);
}

static __always_inline int pass(struct __sk_buff *skb)
{
	counted();
	return TC_ACT_PIPE;
}

SEC("classifier/dscp")
int dscp(struct __sk_buff *skb)
{
	return pass(skb);
}

SEC("classifier/vendor")
int vendor(struct __sk_buff *skb)
{
	return pass(skb);
}

/* The account program ahead of the policer: UNSPEC gives way to the action's own verdict, PIPE. */
SEC("action/account")
int account(struct __sk_buff *skb)
{
	counted();
	return TC_ACT_UNSPEC;
}

static __always_inline int tether(struct __sk_buff *skb, struct count *c, const struct in6_addr *to)
{
	struct offload *o = bpf_map_lookup_elem(&offloads, to);
	struct ethhdr eth = {};

	if (!o || o->ifindex == skb->ifindex)
		return TC_ACT_PIPE;
	if (o->ethernet) {
		if (!ethernet && bpf_skb_change_head(skb, ETH_HLEN, 0))
			return TC_ACT_SHOT;
		__builtin_memcpy(eth.h_dest, o->dst, ETH_ALEN);
		__builtin_memcpy(eth.h_source, o->src, ETH_ALEN);
		eth.h_proto = skb->protocol;
		if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0))
			return TC_ACT_SHOT;
	}
	return redirect(c, o->ifindex, 0);
}

SEC("classifier/tether6")
int tether6(struct __sk_buff *skb)
{
	struct count *c = counted();
	__u32 off = (ethernet ? ETH_HLEN : 0) + offsetof(struct ipv6hdr, daddr);
	struct in6_addr to;

	if (bpf_skb_load_bytes(skb, off, &to, sizeof(to)))
		return TC_ACT_PIPE;
	return tether(skb, c, &to);
}

SEC("classifier/tether4")
int tether4(struct __sk_buff *skb)
{
	struct count *c = counted();
	__u32 off = (ethernet ? ETH_HLEN : 0) + offsetof(struct iphdr, daddr);
	struct in6_addr to = {};

	to.s6_addr32[2] = bpf_htonl(0xffff);
	if (bpf_skb_load_bytes(skb, off, &to.s6_addr32[3], sizeof(__be32)))
		return TC_ACT_PIPE;
	return tether(skb, c, &to);
}

/*
 * Neither way touches the checksum of TCP or UDP: local6 is chosen so that the
 * addresses of either family have the same sum (Neutral in clat.go).
 */
static __always_inline int translates(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP;
}

static __always_inline __u16 fold(__s64 sum)
{
	__u32 s = sum;

	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return ~s;
}

SEC("classifier/clat_ingress6")
int clat_ingress6(struct __sk_buff *skb)
{
	struct count *c = counted();
	__u32 l2 = ethernet ? ETH_HLEN : 0;
	__be16 type = bpf_htons(ETH_P_IP);
	struct iphdr ip = {};
	struct ipv6hdr ip6;

	if (skb->protocol != bpf_htons(ETH_P_IPV6) ||
	    bpf_skb_load_bytes(skb, l2, &ip6, sizeof(ip6)) || !translates(ip6.nexthdr))
		return TC_ACT_PIPE;
#pragma unroll
	for (int i = 0; i < 4; i++)
		if (ip6.daddr.s6_addr32[i] != clat.local6.s6_addr32[i] ||
		    (i < 3 && ip6.saddr.s6_addr32[i] != clat.prefix[i]))
			return TC_ACT_PIPE;

	ip.version = 4;
	ip.ihl = sizeof(ip) / 4;
	ip.tos = ip6.priority << 4 | ip6.flow_lbl[0] >> 4;
	ip.tot_len = bpf_htons(bpf_ntohs(ip6.payload_len) + sizeof(ip));
	ip.frag_off = bpf_htons(IP_DF);
	ip.ttl = ip6.hop_limit;
	ip.protocol = ip6.nexthdr;
	ip.saddr = ip6.saddr.s6_addr32[3];
	ip.daddr = clat.local4;
	ip.check = fold(bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0));

	/* It refuses segments of UDP before it has changed anything. */
	if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IP), 0))
		return TC_ACT_PIPE;
	/* For CHECKSUM_COMPLETE; the IPv4 header's own sum is zero. Others refuse and need none. */
	bpf_csum_update(skb, bpf_csum_diff((__be32 *)&ip6, sizeof(ip6), NULL, 0, 0));
	if (ethernet && bpf_skb_store_bytes(skb, ETH_HLEN - sizeof(type), &type, sizeof(type), 0))
		return TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, l2, &ip, sizeof(ip), 0))
		return TC_ACT_SHOT;
	return redirect(c, clat.v4, BPF_F_INGRESS);
}

SEC("classifier/clat_egress4")
int clat_egress4(struct __sk_buff *skb)
{
	struct count *c = counted();
	struct ipv6hdr ip6 = {};
	struct iphdr ip;

	/* As clatd.c: an Ethernet header would need a neighbour's address; clatd takes these. */
	if (ethernet || skb->protocol != bpf_htons(ETH_P_IP) ||
	    bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
		return TC_ACT_PIPE;
	if (ip.ihl != sizeof(ip) / 4 || ip.frag_off & ~bpf_htons(IP_DF) ||
	    ip.saddr != clat.local4 || !translates(ip.protocol))
		return TC_ACT_PIPE;
	if (ip.protocol == IPPROTO_UDP) {
		__be16 sum;

		/* IPv6 has no datagram without a checksum. */
		if (bpf_skb_load_bytes(skb, sizeof(ip) + offsetof(struct udphdr, check), &sum,
				       sizeof(sum)) ||
		    !sum)
			return TC_ACT_PIPE;
	}

	ip6.version = 6;
	ip6.priority = ip.tos >> 4;
	ip6.flow_lbl[0] = ip.tos << 4;
	ip6.payload_len = bpf_htons(bpf_ntohs(ip.tot_len) - sizeof(ip));
	ip6.nexthdr = ip.protocol;
	ip6.hop_limit = ip.ttl;
#pragma unroll
	for (int i = 0; i < 4; i++) {
		ip6.saddr.s6_addr32[i] = clat.local6.s6_addr32[i];
		ip6.daddr.s6_addr32[i] = i < 3 ? clat.prefix[i] : ip.daddr;
	}
	if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IPV6), 0))
		return TC_ACT_PIPE;
	if (bpf_skb_store_bytes(skb, 0, &ip6, sizeof(ip6), 0))
		return TC_ACT_SHOT;
	return redirect(c, clat.underlying, 0);
}

/* At the cgroup: all count and allow. */
#define ALLOW(section, name, type)                                                                 \
	SEC("cgroup" section)                                                                      \
	int name(struct type *ctx)                                                                 \
	{                                                                                          \
		counted();                                                                         \
		return 1;                                                                          \
	}

ALLOW("_skb/egress", inet_egress, __sk_buff)
ALLOW("_skb/ingress", inet_ingress, __sk_buff)
ALLOW("/sock_create", sock_create, bpf_sock)
ALLOW("/sock_release", sock_release, bpf_sock)
ALLOW("/bind4", inet4_bind, bpf_sock_addr)
ALLOW("/bind6", inet6_bind, bpf_sock_addr)
ALLOW("/connect4", inet4_connect, bpf_sock_addr)
ALLOW("/connect6", inet6_connect, bpf_sock_addr)
ALLOW("/sendmsg4", udp4_sendmsg, bpf_sock_addr)
ALLOW("/sendmsg6", udp6_sendmsg, bpf_sock_addr)
ALLOW("/recvmsg4", udp4_recvmsg, bpf_sock_addr)
ALLOW("/recvmsg6", udp6_recvmsg, bpf_sock_addr)

/*
 * optlen 0: the kernel's own answer is to be handed over. Otherwise one longer
 * than a page, which is the most that the hook holds, would fail with EFAULT
 * (kernel/bpf/cgroup.c __cgroup_bpf_run_filter_getsockopt).
 */
#define ALLOW_OPTION(section, name)                                                                \
	SEC("cgroup/" section)                                                                     \
	int name(struct bpf_sockopt *ctx)                                                          \
	{                                                                                          \
		counted();                                                                         \
		ctx->optlen = 0;                                                                   \
		return 1;                                                                          \
	}

ALLOW_OPTION("getsockopt", getsockopt)
ALLOW_OPTION("setsockopt", setsockopt)

char _license[] SEC("license") = "GPL";
