/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The socket that a packet comes to, and its owner, by the layout of the kernel's
 * structs in the settings.
 */
#ifndef DROIDTAP_LOOKUP_H
#define DROIDTAP_LOOKUP_H

#include "head.h"
#include <linux/if_packet.h>

#define AF_INET	 2
#define AF_INET6 10
#define SOCK_RAW 3

/* Where a pointer becomes a number, which the verifier lets us add to: see sock_owner(). */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} pointer SEC(".maps");

struct whose {
	__u32 uid; /* or UID_UNKNOWN or UID_NONE */
	__u64 cgroup;
	__u64 now; /* of the record's clock, 0: it was not asked yet */
};

/* The time, which is asked once for a packet. */
static __always_inline __u64 now(struct whose *w)
{
	if (!w->now)
		w->now = bpf_ktime_get_boot_ns();
	return w->now;
}

/* Whether sockets are looked up. */
static __always_inline bool looks_up(void)
{
	return SK_LOOKUP && setting()->sock_uid;
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

/* Looks up the socket of a TCP or UDP flow; false: there is none for what this machine gets. */
static __always_inline bool look_up(struct __sk_buff *skb, const struct flow *f, struct whose *w)
{
	struct bpf_sock_tuple t = {};
	__u32 size = sizeof(t.ipv4);
	struct bpf_sock *sk;
	bool local;

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
	local = is_local(skb, f, sk);
	if (local)
		sock_owner(sk, w);
	bpf_sk_release(sk);
	return local;
}

#endif
