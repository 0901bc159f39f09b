// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/net/bpf"

	"droidtap/agent/pcapng"
)

/*
#cgo LDFLAGS: -lpcap
#include <pthread.h>
#include <pcap.h>
#include <pcap-int.h>
#include <stdlib.h>
#include <string.h>

// libpcap walks its blocks by recursion, 64 KiB of expression make some 100,000 of them, and
// a thread of Go's has as little stack as "ulimit -s" says. These pages are used when touched.
#define STACK (256 << 20)

struct work {
	int dlt, optimize;
	char *expr;
	bpf_u_int32 netmask;
	struct bpf_program program;
	char error[PCAP_ERRBUF_SIZE]; // empty: the program is there
};

static void *work(void *p)
{
	struct work *w = p;
	pcap_t *pcap = pcap_open_dead(w->dlt, 262144);

	if (!pcap) {
		strcpy(w->error, "out of memory");
		return NULL;
	}
	// As pcap-linux.c does for a live capture: "vlan" looks at the tag that the kernel keeps
	// beside the packet, too. libpcap offers no other way to ask for that.
	pcap->bpf_codegen_flags |= BPF_SPECIAL_VLAN_HANDLING;
	if (pcap_compile(pcap, &w->program, w->expr, w->optimize, w->netmask))
		strncpy(w->error, pcap_geterr(pcap), sizeof(w->error) - 1);
	pcap_close(pcap);
	return NULL;
}

static int run(struct work *w)
{
	pthread_attr_t attr;
	pthread_t thread;
	int err = pthread_attr_init(&attr);

	if (err)
		return err;
	err = pthread_attr_setstacksize(&attr, STACK);
	if (!err)
		err = pthread_create(&thread, &attr, work, w);
	pthread_attr_destroy(&attr);
	return err ? err : pthread_join(thread, NULL);
}
*/
import "C"

// Version returns libpcap's version, "libpcap version 1.10.3".
func Version() string { return C.GoString(C.pcap_lib_version()) }

// image returns instruction number n as tcpdump -d prints it.
func image(in bpf.RawInstruction, n int) string {
	c := C.struct_bpf_insn{code: C.u_short(in.Op), jt: C.u_char(in.Jt), jf: C.u_char(in.Jf), k: C.bpf_u_int32(in.K)}
	return C.GoString(C.bpf_image(&c, C.int(n)))
}

var dlts = map[pcapng.LinkType]C.int{pcapng.Ethernet: C.DLT_EN10MB, pcapng.Raw: C.DLT_RAW}

// compile is libpcap's compiler, as for a live capture. netmask is that of "ip broadcast", in
// host byte order. The error is libpcap's text, or wraps ErrRejectsAll.
func compile(expr string, l pcapng.LinkType, netmask uint32, optimise bool) ([]bpf.RawInstruction, error) {
	w := (*C.struct_work)(C.calloc(1, C.sizeof_struct_work))
	defer C.free(unsafe.Pointer(w))
	w.dlt, w.netmask, w.expr = dlts[l], C.bpf_u_int32(netmask), C.CString(expr)
	defer C.free(unsafe.Pointer(w.expr))
	if optimise {
		w.optimize = 1
	}
	if err := C.run(w); err != 0 {
		return nil, fmt.Errorf("start a thread to compile in: %s", C.GoString(C.strerror(err)))
	}
	defer C.pcap_freecode(&w.program)
	if text := strings.TrimSpace(C.GoString(&w.error[0])); text != "" {
		switch {
		case text == ErrRejectsAll.Error():
			return nil, ErrRejectsAll
		case strings.HasPrefix(text, "unknown host"), strings.HasPrefix(text, "unknown network"), strings.HasPrefix(text, "unknown ether host"):
			text += ": give addresses, names are not looked up"
		}
		return nil, errors.New(text)
	}
	insns := make([]bpf.RawInstruction, w.program.bf_len)
	for i, in := range unsafe.Slice(w.program.bf_insns, len(insns)) {
		insns[i] = bpf.RawInstruction{Op: uint16(in.code), Jt: uint8(in.jt), Jf: uint8(in.jf), K: uint32(in.k)}
	}
	return insns, nil
}
