// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// Package libpcaptest is the reference of tests: libpcap's own compiler for files, with its optimiser on, and
// its own interpreter.
package libpcaptest

import (
	"errors"
	"unsafe"

	"droidtap/agent/pcapng"
)

/*
#cgo LDFLAGS: -lpcap
#include <pcap.h>
#include <stdlib.h>
*/
import "C"

var dlts = map[pcapng.LinkType]C.int{pcapng.Ethernet: C.DLT_EN10MB, pcapng.Raw: C.DLT_RAW}

// Verdicts tells which packets expr accepts: whole ones, each as long as it is. netmask is in host byte order. The
// error is libpcap's text.
func Verdicts(expr string, l pcapng.LinkType, netmask uint32, packets [][]byte) ([]bool, error) {
	pcap := C.pcap_open_dead(dlts[l], 262144)
	defer C.pcap_close(pcap)
	text := C.CString(expr)
	defer C.free(unsafe.Pointer(text))
	var program C.struct_bpf_program
	if C.pcap_compile(pcap, &program, text, 1, C.bpf_u_int32(netmask)) != 0 {
		return nil, errors.New(C.GoString(C.pcap_geterr(pcap)))
	}
	defer C.pcap_freecode(&program)
	verdicts := make([]bool, len(packets))
	for i, p := range packets {
		h := C.struct_pcap_pkthdr{caplen: C.bpf_u_int32(len(p)), len: C.bpf_u_int32(len(p))}
		verdicts[i] = C.pcap_offline_filter(&program, &h, (*C.u_char)(unsafe.SliceData(p))) != 0
	}
	return verdicts, nil
}
