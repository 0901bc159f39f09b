// SPDX-License-Identifier: GPL-2.0-only
/*
 * The TLS key probe: a uprobe of the function of a library that is handed each
 * secret. One object serves every library and both architectures: user space says
 * where the arguments are, and loads the program anew for each. It is not for
 * kernels before 5.8, which have no ring buffer: there tracefs does the same.
 *
 * It shares nothing with the probes of packets, so it does without agent.h.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

#define LABEL  48
#define RANDOM 32
#define SECRET 64
#define STEPS  4

/* What could not be read. */
enum failure {
	NO_LABEL = 1,
	NO_RANDOM = 2,
	NO_SECRET = 4,
};

/* A call of the function. Go: tlskey.secret. */
struct secret {
	__u64 time;	  /* ns, boot clock, or the monotonic one: see plan.Clock */
	__u64 base;	  /* the pointer to which the last offset of the path was added */
	__u64 label_at;	  /* pointer to the label */
	__u32 pid;	  /* of the process: its first thread */
	__u32 tid;	  /* of the thread */
	__u32 uid;	  /* of the thread, the real one */
	__u32 size;	  /* bytes of the secret, as the argument says */
	__u32 label_size; /* bytes of the label, as the argument says; 0: it ends with a zero */
	__u16 number;	  /* of the function: settings.number */
	__u8 failed;	  /* enum failure, or-ed */
	__u8 pad;
	__u8 label[LABEL]; /* cut; what lies behind its zero means nothing */
	__u8 random[RANDOM];
	__u8 secret[SECRET]; /* cut; zeros behind it */
};

/*
 * What user space decides before the load. Go: tlskey.settings. The first five are
 * words of 8 bytes of struct pt_regs; more than WORDS: there is no such argument.
 */
struct settings {
	__u32 label, label_size, random, secret, size;
	__u32 steps; /* of path, 1 to STEPS */
	__u32 path[STEPS];
	__u32 number; /* of the function, for records */
};

const volatile struct settings settings;

/*
 * The size is the agent's to say. One handshake needs a kilobyte. A full ring
 * refuses records, and lost counts them.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
	__type(value, struct secret);
} events SEC(".maps");

/* One counter of all functions, written by every processor. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/*
 * A pointer of a user: the top byte is a tag on arm64, which kernels from 5.15 on
 * take for a part of the address.
 */
static __always_inline void *untagged(__u64 pointer)
{
	return (void *)(pointer & 0x00ffffffffffffffULL);
}

/*
 * struct pt_regs has 21 words on x86_64, and more on arm64, where the program may
 * read no further either. A word is read at an offset that the verifier knows, and
 * the compiler does not merge the loads.
 */
#define WORD(n)                                                                                    \
	case n:                                                                                    \
		asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(value) : "r"(ctx), "i"(8 * n));       \
		break

static __noinline __u64 word(void *ctx, __u32 n)
{
	__u64 value = 0;

	switch (n) {
		WORD(0);
		WORD(1);
		WORD(2);
		WORD(3);
		WORD(4);
		WORD(5);
		WORD(6);
		WORD(7);
		WORD(8);
		WORD(9);
		WORD(10);
		WORD(11);
		WORD(12);
		WORD(13);
		WORD(14);
		WORD(15);
		WORD(16);
		WORD(17);
		WORD(18);
		WORD(19);
		WORD(20);
	}
	return value;
}

/* Reads up to most bytes, less than 128 of them. The verifier of 5.8 needs the mask to know. */
static __always_inline bool cannot_read(void *to, __u64 n, __u32 most, const void *from)
{
	if (n > most)
		n = most;
	asm volatile("" : "+r"(n));
	n &= 127;
	if (n > most)
		return true;
	return bpf_probe_read_user(to, n, from);
}

/* What is behind the page of a label may not be there: user space knows whether that matters. */
static __always_inline void read_label(struct secret *s)
{
	const void *from = untagged(s->label_at);

	if (!cannot_read(s->label, s->label_size ? s->label_size : LABEL, LABEL, from))
		return;
	s->failed |= NO_LABEL;
	if (!s->label_size)
		cannot_read(s->label, 4096 - (s->label_at & 4095), LABEL, from);
}

static __always_inline void read_random(struct secret *s, __u64 pointer)
{
#pragma unroll
	for (int i = 0; i < STEPS; i++) {
		const void *from;

		s->base = (__u64)untagged(pointer);
		from = untagged(s->base + settings.path[i]);
		if (i + 1 == STEPS || i + 1 == settings.steps) {
			if (bpf_probe_read_user(s->random, RANDOM, from))
				s->failed |= NO_RANDOM;
			return;
		}
		if (bpf_probe_read_user(&pointer, sizeof(pointer), from)) {
			s->failed |= NO_RANDOM;
			return;
		}
	}
}

SEC("uprobe")
int secret(void *ctx)
{
	/*
	 * Not in the ring: a program that sleeps may never come to an end, if a hostile process
	 * does not give its memory, and the reader waits for each record that was begun.
	 */
	struct secret s = {};
	__u64 id = bpf_get_current_pid_tgid();
	__u64 size, label_size;
	__u32 zero = 0;
	__u64 *n;

	s.time = bpf_ktime_get_boot_ns();
	s.pid = id >> 32;
	s.tid = id;
	s.uid = bpf_get_current_uid_gid();
	s.number = settings.number;
	s.label_at = (__u64)untagged(word(ctx, settings.label));
	label_size = word(ctx, settings.label_size);
	s.label_size = label_size > 0xffffffff ? 0xffffffff : label_size;
	size = word(ctx, settings.size);
	s.size = size > 0xffffffff ? 0xffffffff : size;
	read_label(&s);
	read_random(&s, word(ctx, settings.random));
	if (cannot_read(s.secret, size, SECRET, untagged(word(ctx, settings.secret))))
		s.failed |= NO_SECRET;
	/* The kernel wakes the reader if it has read all before. */
	if (!bpf_ringbuf_output(&events, &s, sizeof(s), 0))
		return 0;
	n = bpf_map_lookup_elem(&lost, &zero);
	if (n)
		__sync_fetch_and_add(n, 1);
	return 0;
}

char _license[] SEC("license") = "GPL";
