/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What every probe of droidtap shares: the filter stubs, the record header, the
 * settings and the way out of the kernel. "nocore": UAPI headers and helpers
 * only, no kernel struct and no BTF of the kernel, so that one object runs on
 * every kernel that offers its features. All #ifdef of the project stand here.
 *
 *	HAVE_RODATA	global data, 5.2
 *	HAVE_RINGBUF	BPF_MAP_TYPE_RINGBUF, 5.8
 *	HAVE_SK_LOOKUP	bpf_sk_lookup_tcp and _udp, 4.20, skb->sk, 5.1, loops, 5.3,
 *			bpf_jiffies64, 5.5, bpf_probe_read_kernel, 5.5, and more than
 *			4,096 instructions, 5.2
 */
#ifndef DROIDTAP_AGENT_H
#define DROIDTAP_AGENT_H

#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define UID_UNKNOWN 0xffffffffU /* the agent may find it out */
#define UID_NONE                                                                                   \
	0xfffffffeU /* it has no owner: the kernel made it, forwards it or takes it for nobody */

enum direction {
	INGRESS = 1,
	EGRESS = 2,
};

/* The head of a record; caplen bytes of packet follow it. Go: packet.event. */
struct event {
	__u64 time;   /* ns, boot clock, or the monotonic one: see plan.Clock */
	__u64 cgroup; /* id of the cgroup, version 2, where the owner's socket was made; 0: unknown
		       */
	__u32 ifindex;
	__u32 len;    /* bytes of the packet on the wire, hardware VLAN tag not counted */
	__u32 caplen; /* bytes that follow */
	__u32 uid;    /* owner, UID_UNKNOWN or UID_NONE */
	__u16 vlan_tci;
	__be16 vlan_proto; /* TPID of the tag that the hardware holds, 0: no tag */
	__u8 direction;	   /* enum direction */
	__u8 pad[3];
};

enum ownership {
	OWNER_IGNORE = 0, /* nobody asks whose a packet is */
	OWNER_TELL = 1,	  /* record it */
	OWNER_FILTER = 2, /* and leave out packets by it, as the map of uids says */
};

/* What user space decides before the load. Go: packet.settings. */
struct settings {
	__u32 snaplen;	     /* 1 to 262144 */
	__u32 directions;    /* enum direction, or-ed: what to record */
	__u32 owner;	     /* enum ownership */
	__u32 wakeup;	     /* bytes of records after which one wakes the reader, a power of two */
	__u32 loopback_once; /* 1: record what loopback sends only where it comes in */
	__u32 others;	     /* 1: uids that the map does not name pass */
	__u32 unattributed;  /* 1: packets without an owner pass */
	__u32 cgroups;	     /* 1: somebody wants the cgroup of an owner */
	/* Offsets in the kernel's structs, in bytes; 0: unknown. */
	__u32 sock_uid;	   /* sock.sk_uid */
	__u32 sock_cgroup; /* the pointer in sock.sk_cgrp_data */
	__u32 cgroup_node; /* cgroup.kn */
	__u32 node_id;	   /* kernfs_node.id */
};

#ifdef HAVE_RODATA
const volatile struct settings settings;

static __always_inline const volatile struct settings *setting(void)
{
	return &settings;
}
#else
/* One entry, written before the load and never again. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

static __always_inline const volatile struct settings *setting(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}
#endif

#ifdef HAVE_SK_LOOKUP
#define SK_LOOKUP true
#define JIFFIES	  true
#define ROOM	  true
/*
 * A function that the verifier looks at once, whatever it is called with, and not for
 * each call: from 5.6 on, if user space tells that it is global (TellFunctions). Up to
 * 5.11 its arguments are the context and numbers.
 */
#define GLOBAL __noinline
/* IPv6 extension headers that are walked over. */
#define EXTENSIONS 6
#else
#define SK_LOOKUP  false
#define JIFFIES	   false
/* 4.19 takes 4,096 instructions in all. */
#define ROOM	   false
#define GLOBAL	   static __noinline
#define EXTENSIONS 3
#endif

/* Where a pointer becomes a number: see address(). */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} pointer SEC(".maps");

/*
 * The address that is in a pointer, 0 never. That it goes through a map makes it a
 * number, with which the verifier lets us calculate.
 */
static __always_inline __u64 address(const void *p)
{
	__u32 zero = 0;
	__u64 *slot = bpf_map_lookup_elem(&pointer, &zero);

	if (!slot)
		return 0;
	*(const void *volatile *)slot = p;
	return *(volatile __u64 *)slot;
}

/*
 * Stubs into which a filter is injected by name, one for packets that begin
 * with an Ethernet header and one for those that begin with the IP header. The
 * signature and the body are the ABI of the injected code: it runs first, with
 * the context in r1 and the linear head's bounds in r4 and r5, puts its verdict
 * into r4 and zeroes r1, r2, r3 and r5, and then the body runs. See
 * agent/filter. Without a filter the body accepts every packet that has a head.
 */
#define FILTER_STUB(name)                                                                          \
	static __noinline bool name(void *_skb, void *__skb, void *___skb, void *data,             \
				    void *data_end)                                                \
	{                                                                                          \
		return data != data_end && _skb == __skb && __skb == ___skb;                       \
	}

FILTER_STUB(filter_pcap_l2)
FILTER_STUB(filter_pcap_l3)

#define RUN_FILTER(name, skb)                                                                      \
	name(skb, skb, skb, (void *)(long)(skb)->data, (void *)(long)(skb)->data_end)

/*
 * For programs that may not look at the packet directly: a filter in the
 * load-bytes form ignores the bounds, and the body wants them to differ. The
 * compiler must not know them, or it would make a stub of its own of each.
 */
#define RUN_FILTER_NO_DATA(name, skb)                                                              \
	({                                                                                         \
		unsigned long data = 0, data_end = 1;                                              \
		asm volatile("" : "+r"(data), "+r"(data_end));                                     \
		name(skb, skb, skb, (void *)data, (void *)data_end);                               \
	})

#ifdef HAVE_RINGBUF
#define MAX_CAPLEN 262144

/* The size is set by -B. A full ring refuses records: emit() says so. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
	__type(value, struct event);
} events SEC(".maps");

#define RECORD_HEAD 8 /* the kernel's, before each record */

/*
 * The record wakes the reader in which a multiple of settings.wakeup bytes of the
 * ring ends: exactly one of them, however many processors write. Otherwise the
 * kernel's own rule holds: one wakes that comes when the reader has read all
 * before it. The reader says so only when it goes to sleep: see
 * agent/capture/ringbuf.go. A discarded record wakes as well, or the one behind it
 * would not be the first.
 */
static __always_inline __u64 wakeup(const void *record, __u32 size)
{
	__u32 every = setting()->wakeup;
	__u32 begin = address(record) - RECORD_HEAD;

	size = (RECORD_HEAD + size + 7) & ~7;
	return (begin & (every - 1)) + size >= every ? BPF_RB_FORCE_WAKEUP : 0;
}

#define NEWS_EVERY 10000000 /* ns */

/* When the reader was woken for news last, ns of the records' clock. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} told SEC(".maps");

/*
 * News wake the reader at once, that the agent can look at a process while it is
 * there: an owner that is unknown, a flow that was learnt, a connection that begins.
 * They do so at most once in NEWS_EVERY, by all processors together.
 */
static __always_inline __u64 soon(__u64 now)
{
	__u32 zero = 0;
	volatile __u64 *last = bpf_map_lookup_elem(&told, &zero);

	if (!last || now - *last < NEWS_EVERY)
		return 0;
	*last = now;
	return BPF_RB_FORCE_WAKEUP;
}

/*
 * A ring buffer record has a size that the verifier knows, so there is one class
 * of sizes for each power of four, and one for what has no payload. size is a power of two: up
 * to 5.10 the verifier learns from the mask, and not from a comparison, that n + 1 is neither 0 nor
 * more than size.
 */
#define EMIT_CLASS(size)                                                                           \
	static __always_inline int emit_##size(struct __sk_buff *skb, const struct event *e,       \
					       __u64 flags)                                        \
	{                                                                                          \
		struct {                                                                           \
			struct event e;                                                            \
			__u8 bytes[size];                                                          \
		} *r = bpf_ringbuf_reserve(&events, sizeof(*r), 0);                                \
		__u64 n = e->caplen - 1;                                                           \
                                                                                                   \
		if (!r)                                                                            \
			return -1;                                                                 \
		asm volatile("" : "+r"(n));                                                        \
		n &= (size)-1;                                                                     \
		r->e = *e;                                                                         \
		if (e->caplen && bpf_skb_load_bytes(skb, 0, r->bytes, n + 1)) {                    \
			bpf_ringbuf_discard(r, 0);                                                 \
			return -1;                                                                 \
		}                                                                                  \
		bpf_ringbuf_submit(r, flags | wakeup(r, sizeof(*r)));                              \
		return 0;                                                                          \
	}

EMIT_CLASS(64)
EMIT_CLASS(128)
EMIT_CLASS(512)
EMIT_CLASS(2048)
EMIT_CLASS(8192)
EMIT_CLASS(32768)
EMIT_CLASS(65536)
EMIT_CLASS(262144)

/*
 * 64 KiB and a link-layer header: what the loopback interface makes of bulk TCP. In
 * the next power of two a ring would hold a quarter of as many. The second part
 * begins below 64 KiB, which bpf_skb_load_bytes took for the highest offset up to 5.10.
 */
#define GSO_FIRST 0xff00
#define GSO_REST  512

static __always_inline int emit_gso(struct __sk_buff *skb, const struct event *e, __u64 flags)
{
	struct {
		struct event e;
		__u8 first[GSO_FIRST], rest[GSO_REST];
	} *r = bpf_ringbuf_reserve(&events, sizeof(*r), 0);
	__u64 n = e->caplen - GSO_FIRST - 1;

	if (!r)
		return -1;
	asm volatile("" : "+r"(n));
	n &= GSO_REST - 1;
	r->e = *e;
	if (bpf_skb_load_bytes(skb, 0, r->first, GSO_FIRST) ||
	    bpf_skb_load_bytes(skb, GSO_FIRST, r->rest, n + 1)) {
		bpf_ringbuf_discard(r, 0);
		return -1;
	}
	bpf_ringbuf_submit(r, flags | wakeup(r, sizeof(*r)));
	return 0;
}

/* Hands e and e->caplen bytes of the packet to the agent, at once if they are news; not 0: it could
 * not. */
static __always_inline int emit(struct __sk_buff *skb, const struct event *e, bool news)
{
	__u64 flags = news ? soon(e->time) : 0;

	if (e->caplen <= 64)
		return emit_64(skb, e, flags);
	if (e->caplen <= 128)
		return emit_128(skb, e, flags);
	if (e->caplen <= 512)
		return emit_512(skb, e, flags);
	if (e->caplen <= 2048)
		return emit_2048(skb, e, flags);
	if (e->caplen <= 8192)
		return emit_8192(skb, e, flags);
	if (e->caplen <= 32768)
		return emit_32768(skb, e, flags);
	if (e->caplen <= 65536)
		return emit_65536(skb, e, flags);
	if (e->caplen <= GSO_FIRST + GSO_REST)
		return emit_gso(skb, e, flags);
	return emit_262144(skb, e, flags);
}
#else
/* A perf record's size is a u16 and counts its own head and ours. */
#define MAX_CAPLEN (65536 - 64)

/* A ring for each CPU, of -B in all. A full one refuses records: emit() says so. */
struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__type(value, struct event);
} events SEC(".maps");

/* Hands e and e->caplen bytes of the packet to the agent; not 0: it could not. */
static __always_inline int emit(struct __sk_buff *skb, struct event *e, bool news)
{
	return bpf_perf_event_output(skb, &events, ((__u64)e->caplen << 32) | BPF_F_CURRENT_CPU, e,
				     sizeof(*e));
}
#endif

#endif
