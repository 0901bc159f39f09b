/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a program works on while it finds out whose a packet is.
 */
#ifndef DROIDTAP_WORK_H
#define DROIDTAP_WORK_H

#include "agent.h"
#include <linux/in6.h>

/*
 * A flow as this machine sees it. IPv4 addresses are v4-mapped. Of an ICMP echo
 * the local port is the identifier and the remote one 0. Go: owner.flowKey.
 */
struct flow {
	struct in6_addr local, remote;
	__be16 local_port, remote_port;
	__u8 protocol;
	__u8 pad[3];
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

/* Whose a packet is. */
struct whose {
	__u32 uid; /* or UID_UNKNOWN or UID_NONE */
	bool news; /* it was not his until now: see soon() */
	__u64 cgroup;
	__u64 now; /* of the record's clock, 0: it was not asked yet */
};

/*
 * What is known of a flow before its socket is looked up. The verifier is to know
 * nothing of differs, and to find no pointer here: it would go through the lookup
 * once for a flow that is known, and once for one that is not.
 */
struct known {
	__u64 differs; /* 0: it is the flow that was found */
	__u64 group, cgroup;
	__u64 begun; /* the count of connections, before the lookup */
	__u32 uid;
};

/* What functions have in common that take no pointers: see GLOBAL. */
struct work {
	struct head head;
	struct known known;
	struct whose whose;
};

/* Each processor's own: a program is not interrupted by another one there. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} works SEC(".maps");

static __always_inline struct work *work(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&works, &zero);
}

#endif
