// SPDX-License-Identifier: GPL-2.0-only
/*
 * The packet probe: classifiers for TCX and for cls_bpf, one for each direction
 * and framing, and packet socket filters for where neither can be had. They look
 * and never touch: a classifier's verdict is always "go on".
 */
#include "agent.h"
#include "owner.h"
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

/* A uid is that of an app, and 100,000 for each Android user. The bit marks an app of all of them.
 */
#define USER	     100000
#define OF_ALL_USERS 0x80000000U

/* Packets by interface. Go: packet.counts. */
struct counts {
	__u64 in, out;	    /* passed the hook, in a direction that is recorded */
	__u64 received;	    /* matched the filter and, if one was asked for, the owner */
	__u64 dropped;	    /* matched, but the ring had no room */
	__u64 unattributed; /* matched the filter; there is no owner and one was asked for */
	__u64 ifindex;	    /* of the interface */
};

#define SLOTS 256 /* a power of two */

/*
 * The counts of most interfaces, at ifindex % SLOTS: an entry of an array costs less
 * to find than one of a hash. User space makes an entry for each interface before it
 * attaches, here if nobody's is there.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct counts);
} slots SEC(".maps");

/* Those of the others, by ifindex, and entry 0 for what no entry claims; nothing is added here. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct counts);
} interfaces SEC(".maps");

/*
 * Whether a uid passes, or an app of all users; user space sizes and fills it, and
 * changes it while apps come and go.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8);
} uids SEC(".maps");

#define VERDICTS 256 /* a power of two */

/* Go: packet.verdicts. */
struct verdicts {
	__u64 generation; /* of the map of uids, an even number below 1 << 32 */
	__u64 of[VERDICTS];
};

/*
 * What the map of uids said of some, which spares packets the hash. A verdict is
 * ~uid, its generation and a bit that says it, in a word that processors may
 * share. Uids that meet in a word push each other out. User space writes another
 * generation, and no verdicts, after each change of uids.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct verdicts);
} verdicts SEC(".maps");

static __always_inline struct counts *counts_of(__u32 ifindex)
{
	__u32 slot = ifindex % SLOTS, other = 0;
	struct counts *c;

	if (ROOM) {
		c = bpf_map_lookup_elem(&slots, &slot);
		if (c && c->ifindex == ifindex)
			return c;
	}
	c = bpf_map_lookup_elem(&interfaces, &ifindex);
	return c ? c : bpf_map_lookup_elem(&interfaces, &other);
}

/*
 * The same for whoever has looked before, in c. Two maps make two kinds of
 * pointers, and the verifier would go once for each through all that lies between.
 */
static __always_inline struct counts *again(struct counts *c, __u32 ifindex)
{
	return ROOM ? counts_of(ifindex) : c;
}

static __always_inline void saw(struct counts *c, enum direction direction)
{
	if (direction == INGRESS)
		c->in++;
	else
		c->out++;
}

/* Whether the packets of a uid are wanted. */
static __noinline int allowed(__u32 uid, __u32 others)
{
	__u32 key = 0;
	volatile struct verdicts *v = bpf_map_lookup_elem(&verdicts, &key);
	volatile __u64 *of;
	__u64 new, old;
	__u8 *wanted;

	if (!v)
		return 0; /* never: it is an array */
	/* Read before uids: a change meanwhile ends the new verdict, too. */
	new = (__u64)~uid << 32 | v->generation;
	of = &v->of[uid % VERDICTS];
	old = *of;
	if ((old ^ new) <= 1)
		return old & 1;
	wanted = bpf_map_lookup_elem(&uids, &uid);
	key = OF_ALL_USERS | uid % USER;
	if (!wanted)
		wanted = bpf_map_lookup_elem(&uids, &key);
	if (wanted ? *wanted : others)
		new |= 1;
	*of = new;
	return new & 1;
}

/* Whether to record a packet. What is unknown is the agent's to decide. */
static __always_inline bool admit(const volatile struct settings *s, struct counts *c,
				  __u32 ifindex, __u32 uid)
{
	if (uid == UID_UNKNOWN)
		return true;
	if (uid == UID_NONE) {
		c = again(c, ifindex);
		if (c)
			c->unattributed++;
		return s->owner != OWNER_FILTER || s->unattributed;
	}
	return s->owner != OWNER_FILTER || allowed(uid, s->others);
}

/*
 * Which of the two owners of a packet of the loopback interface it is recorded
 * as: one that is wanted, else one that may be, and the receiver first.
 */
static __always_inline bool prefers(const volatile struct settings *s, __u32 receiver, __u32 sender)
{
	if (sender == UID_NONE)
		return false;
	if (s->owner == OWNER_FILTER) {
		if (KNOWN(receiver) && allowed(receiver, s->others))
			return false;
		if (KNOWN(sender) && allowed(sender, s->others))
			return true;
		return receiver != UID_UNKNOWN && (sender == UID_UNKNOWN || receiver == UID_NONE);
	}
	return KNOWN(sender) ? !KNOWN(receiver) : receiver == UID_NONE;
}

static __always_inline void record(struct __sk_buff *skb, const volatile struct settings *s,
				   struct counts *c, struct whose *w, enum direction direction)
{
	struct event e = {
		.time = now(w),
		.cgroup = w->cgroup,
		.ifindex = skb->ifindex,
		.len = skb->len,
		.caplen = skb->len,
		.uid = w->uid,
		.direction = direction,
	};

	if (e.caplen > s->snaplen)
		e.caplen = s->snaplen;
	if (e.caplen > MAX_CAPLEN)
		e.caplen = MAX_CAPLEN;
	if (skb->vlan_present) {
		e.vlan_tci = skb->vlan_tci;
		e.vlan_proto = skb->vlan_proto;
	}
	c = again(c, skb->ifindex);
	if (!c)
		return;
	c->received++;
	if (!emit(skb, &e, s->owner && (w->news || w->uid == UID_UNKNOWN)))
		return;
	c = again(c, skb->ifindex);
	if (c)
		c->dropped++;
}

static __always_inline int capture(struct __sk_buff *skb, enum direction direction, bool l2)
{
	const volatile struct settings *s = setting();
	struct counts *c = ROOM ? NULL : counts_of(skb->ifindex);
	struct whose w = {.uid = UID_UNKNOWN}, sender = {.uid = UID_NONE};
	__u32 ip = 0;

	if (!s || !(ROOM || c))
		return TC_ACT_UNSPEC;
	if (s->owner && l2)
		ip = forget(ip_offset(skb));
	/* Before the filter: one that matches only replies needs the request's owner. */
	if (s->owner && direction == EGRESS)
		owner_out(skb, ip, &w);
	if (!(s->directions & direction))
		return TC_ACT_UNSPEC;
	if (direction == EGRESS && skb->ifindex == LOOPBACK_IFINDEX && s->loopback_once)
		return TC_ACT_UNSPEC;
	c = again(c, skb->ifindex);
	if (!c)
		return TC_ACT_UNSPEC;
	saw(c, direction);
	if (s->owner && direction == INGRESS && is_early(skb, ip))
		note(skb, ip);
	if (!(l2 ? RUN_FILTER(filter_pcap_l2, skb) : RUN_FILTER(filter_pcap_l3, skb)))
		return TC_ACT_UNSPEC;
	if (s->owner) {
		if (direction == INGRESS) {
			owner_in(skb, ip, &w, &sender);
			if (skb->ifindex == LOOPBACK_IFINDEX && prefers(s, w.uid, sender.uid))
				w = sender;
			w.uid = forget(w.uid); /* one that was looked up is as good as another */
		}
		if (!admit(s, c, skb->ifindex, w.uid))
			return TC_ACT_UNSPEC;
	}
	record(skb, s, c, &w, direction);
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
