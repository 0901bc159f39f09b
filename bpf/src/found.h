/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What was found out of flows a moment ago, which spares what comes in the lookup, or
 * some of it: the socket of UDP may be another's with each packet.
 */
#ifndef DROIDTAP_FOUND_H
#define DROIDTAP_FOUND_H

#include "head.h"

#define RECENT 256 /* a power of two */

/* The owner of a flow whose socket was looked up. */
struct found {
	__u64 flow[5]; /* struct words of what comes in: the source is the other end */
	__u64 group;   /* where the kernel's struct cgroup is, 0: unknown */
	__u64 cgroup;  /* its id */
	__u64 begun;   /* the count of connections that began in this entry, before the lookup */
	__u32 uid;
	__u32 jiffies; /* when it was looked up, the lower half */
	__u64 fixed;   /* 1: nobody else can get the socket */
};

/*
 * Flows that meet in an entry push each other out. Each processor has its own
 * entries, so none is half of one flow and half of another.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RECENT);
	__type(key, __u32);
	__type(value, struct found);
} found SEC(".maps");

/*
 * How many connections began in each entry. A connection's flow can be another's
 * only behind a SYN in either direction, which ends what all processors know of it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RECENT);
	__type(key, __u32);
	__type(value, __u64);
} begun SEC(".maps");

/* Cheap time in ticks of 1 to 10 ms, never 0. */
static __always_inline __u32 ticks(void)
{
	return JIFFIES ? bpf_jiffies64() | 1 : 1;
}

/* 0 while what was known at a time holds: for 100 jiffies, a tenth of a second up to a whole one.
 */
static __always_inline __u64 is_old(__u32 since)
{
	return (99ULL - (__u32)(ticks() - since)) >> 63;
}

static __always_inline bool holds(__u32 since)
{
	return !is_old(since);
}

/* The entry of a flow of five words, the same in both directions. */
static __always_inline __u32 spot(const __u64 *f)
{
	__u32 ports = f[4], at = f[1] >> 32 ^ f[3] >> 32;

	at ^= at >> 16;
	at ^= ports ^ ports >> 16;
	return (at ^ at >> 8) & (RECENT - 1);
}

static __always_inline bool is_same(const __u64 *f, const __u64 *g)
{
	return f[0] == g[0] && f[1] == g[1] && f[2] == g[2] && f[3] == g[3] && f[4] == g[4];
}

/* Notes that a connection begins. */
static __always_inline void begin(const struct flow *f)
{
	__u32 at = spot((const __u64 *)f);
	__u64 *count = ROOM ? bpf_map_lookup_elem(&begun, &at) : NULL;

	if (count)
		__sync_fetch_and_add(count, 1);
}

/* The entry of a flow of five words. */
static __always_inline struct found *found_at(const __u64 *f)
{
	__u32 at = spot(f);

	return bpf_map_lookup_elem(&found, &at);
}

/* Recalls what is known of a flow of five words. True: it is all that can be found. */
static __always_inline bool is_found(const __u64 *f, struct known *known)
{
	__u32 at = spot(f);
	volatile __u64 *n = bpf_map_lookup_elem(&begun, &at);
	struct found *e = found_at(f);
	const __u64 *g;

	if (!n || !e)
		return false; /* never: they are arrays */
	g = e->flow;
	known->begun = *n;
	known->differs = (f[0] ^ g[0]) | (f[1] ^ g[1]) | (f[2] ^ g[2]) | (f[3] ^ g[3]) |
			 (f[4] ^ g[4]) | (e->begun ^ known->begun) | is_old(e->jiffies);
	known->group = e->group;
	known->cgroup = e->cgroup;
	known->uid = e->uid;
	return !(known->differs | (e->fixed ^ 1));
}

#endif
