// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// Package libpcaptest is the reference of tests: libpcap's own compiler, as for a live capture and with its optimiser
// on, and its own interpreter.
package libpcaptest

import (
	"errors"
	"unsafe"

	"droidtap/agent/pcapng"
)

/*
#cgo LDFLAGS: -lpcap
#include <pcap.h>
#include <pcap-int.h>
#include <stdlib.h>

static void live(pcap_t *p) { p->bpf_codegen_flags |= BPF_SPECIAL_VLAN_HANDLING; }
*/
import "C"

var dlts = map[pcapng.LinkType]C.int{pcapng.Ethernet: C.DLT_EN10MB, pcapng.Raw: C.DLT_RAW}

// Packet is a whole packet. A tag that is kept beside it is not 0.
type Packet struct {
	Bytes []byte
	Tag   uint16
}

// Verdicts tells which packets expr accepts. netmask is in host byte order. The error is libpcap's text.
func Verdicts(expr string, l pcapng.LinkType, netmask uint32, packets []Packet) ([]bool, error) {
	pcap := C.pcap_open_dead(dlts[l], 262144)
	defer C.pcap_close(pcap)
	C.live(pcap)
	text := C.CString(expr)
	defer C.free(unsafe.Pointer(text))
	var program C.struct_bpf_program
	if C.pcap_compile(pcap, &program, text, 1, C.bpf_u_int32(netmask)) != 0 {
		return nil, errors.New(C.GoString(C.pcap_geterr(pcap)))
	}
	defer C.pcap_freecode(&program)
	// Some programs (of vlan with pppoes, of geneve) read words of memory that they have not written. libpcap's interpreter
	// has there what the stack had; the agent has 0.
	insns := []C.struct_bpf_insn{{code: C.BPF_LD | C.BPF_IMM}}
	for word := range C.BPF_MEMWORDS {
		insns = append(insns, C.struct_bpf_insn{code: C.BPF_ST, k: C.bpf_u_int32(word)})
	}
	insns = append(insns, unsafe.Slice(program.bf_insns, program.bf_len)...)
	accepted := make([]bool, len(packets))
	for i, p := range packets {
		var aux C.struct_pcap_bpf_aux_data
		if p.Tag != 0 {
			aux.vlan_tag_present, aux.vlan_tag = 1, C.u_short(p.Tag)
		}
		n := C.u_int(len(p.Bytes))
		accepted[i] = C.pcap_filter_with_aux_data(&insns[0], (*C.u_char)(unsafe.SliceData(p.Bytes)), n, n, &aux) != 0
	}
	return accepted, nil
}
