// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter

import (
	"errors"
	"strings"

	"github.com/jschwinger233/elibpcap"
	"golang.org/x/net/bpf"

	"droidtap/agent/pcapng"
)

/*
#include <pcap.h>
*/
import "C"

// Version returns libpcap's version, "libpcap version 1.10.3".
func Version() string { return C.GoString(C.pcap_lib_version()) }

// image returns instruction number n as tcpdump -d prints it.
func image(in bpf.RawInstruction, n int) string {
	c := C.struct_bpf_insn{code: C.u_short(in.Op), jt: C.u_char(in.Jt), jf: C.u_char(in.Jf), k: C.bpf_u_int32(in.K)}
	return C.GoString(C.bpf_image(&c, C.int(n)))
}

func compile(expr string, l pcapng.LinkType) (cbpf []bpf.Instruction, err error) {
	if strings.ContainsRune(expr, 0) {
		return nil, errors.New("has a zero byte")
	}
	// elibpcap v1.1.0 panics over a program of more than 32,768 instructions.
	defer func() {
		if recover() != nil {
			cbpf, err = nil, ErrTooLarge
		}
	}()
	cbpf, err = elibpcap.CompileCbpf(expr, l == pcapng.Ethernet)
	if err == nil {
		return cbpf, nil
	}
	// elibpcap repeats the expression and has no sentinel for libpcap's answers.
	text := strings.TrimSpace(strings.TrimPrefix(err.Error(), "failed to pcap_compile '"+expr+"': "))
	switch {
	case text == ErrRejectsAll.Error():
		return nil, ErrRejectsAll
	case strings.HasPrefix(text, "unknown host"):
		return nil, errors.New(text + ": give addresses, names are not looked up")
	}
	return nil, errors.New(text)
}
