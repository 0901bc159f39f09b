// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package filter

import (
	"errors"
	"fmt"

	"golang.org/x/net/bpf"

	"droidtap/agent/pcapng"
)

// Version says that there is no libpcap.
func Version() string { return "built without libpcap" }

func image(in bpf.RawInstruction, n int) string {
	return fmt.Sprintf("(%03d) %v", n, in.Disassemble())
}

// A program that cannot compile filters must not take that for "no filter".
func compile(expr string, _ pcapng.LinkType, _ uint32, _ bool) ([]bpf.RawInstruction, error) {
	if expr == "" {
		return []bpf.RawInstruction{{Op: opReturn, K: maxSnaplen}}, nil
	}
	return nil, errors.New("this agent was built without libpcap (CGO_ENABLED=0) and takes no filter")
}
