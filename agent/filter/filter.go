// SPDX-License-Identifier: Apache-2.0

// Package filter turns a pcap-filter expression into the code of a bpf program:
// expression -> cBPF (libpcap, through elibpcap) -> eBPF (cbpfc) -> the program's stub.
package filter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/net/bpf"

	"droidtap/agent/pcapng"
)

// ErrRejectsAll is wrapped by the error for an expression that no packet of the
// link type can match, such as "arp" where packets begin with the IP header.
var ErrRejectsAll = errors.New("expression rejects all packets")

// ErrTooLarge is wrapped by the error for an expression whose code a bpf program
// cannot hold.
var ErrTooLarge = errors.New("filter is too large")

// patience is how long libpcap may think about an expression. Its optimiser
// takes seconds for some hundred hosts and cannot be interrupted.
const patience = 10 * time.Second

// maxInsns is how far a jump in a bpf program reaches: its offset is an int16.
const maxInsns = 1<<15 - 1

// maxSnaplen is what a libpcap filter returns for a packet that it accepts.
const maxSnaplen = 262144

// stubs are the functions of bpf/src/agent.h that filters are injected into.
var stubs = map[pcapng.LinkType]string{
	pcapng.Ethernet: "filter_pcap_l2",
	pcapng.Raw:      "filter_pcap_l3",
}

// Filter is an expression compiled for one link type.
type Filter struct {
	expr     string
	linkType pcapng.LinkType
	cbpf     []bpf.Instruction // empty: every packet
	code     asm.Instructions  // what is injected
	codeErr  error             // why there is none
}

// Compile compiles expr as libpcap does for a live capture on the link type, its
// optimiser on. An empty expr is a filter that accepts every packet. The error is
// one line; it wraps ErrRejectsAll, ErrTooLarge, or ctx's error where that ends
// first, context.DeadlineExceeded too where it takes longer than anybody would
// wait. What runs then goes on in the background: libpcap cannot be interrupted.
//
// Host names are refused: libpcap would ask the network for them.
func Compile(ctx context.Context, expr string, l pcapng.LinkType) (Filter, error) {
	stub, known := stubs[l]
	if !known {
		return Filter{}, fmt.Errorf("filter: no stub for link type %d", l)
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f := Filter{expr: expr, linkType: l}
	done := make(chan error, 1)
	go func() {
		var err error
		if f.cbpf, err = compile(expr, l); err == nil && len(f.cbpf) > 0 {
			f.code, f.codeErr = translate(f.cbpf, stub)
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			return Filter{}, fmt.Errorf("filter %q: %w", shorten(expr), err)
		}
		return f, nil
	case <-limited.Done():
	}
	if err := ctx.Err(); err != nil {
		return Filter{}, fmt.Errorf("filter %q: %w", shorten(expr), err)
	}
	return Filter{}, fmt.Errorf("filter %q: not compiled after %v, so it is too long for a phone: name fewer hosts, or nets in place of hosts: %w",
		shorten(expr), patience, limited.Err())
}

// shorten keeps an error about a page of expression on one line.
func shorten(expr string) string {
	const most = 80
	if r := []rune(expr); len(r) > most {
		return string(r[:most]) + "..."
	}
	return expr
}

// Dump returns the classic program as tcpdump prints it: for people (how is 1), as
// C (2) or as numbers (3 and more).
func (f Filter) Dump(how int) (string, error) {
	insns := f.cbpf
	if len(insns) == 0 {
		insns = []bpf.Instruction{bpf.RetConstant{Val: maxSnaplen}} // libpcap's program for no expression
	}
	raw, err := bpf.Assemble(insns)
	if err != nil {
		return "", fmt.Errorf("assemble the classic program: %w", err)
	}
	var b strings.Builder
	switch how {
	case 1:
		for i := range raw {
			b.WriteString(image(raw[i], i) + "\n")
		}
	case 2:
		for _, in := range raw {
			fmt.Fprintf(&b, "{ %#x, %d, %d, 0x%08x },\n", in.Op, in.Jt, in.Jf, in.K)
		}
	default:
		fmt.Fprintf(&b, "%d\n", len(raw))
		for _, in := range raw {
			fmt.Fprintf(&b, "%d %d %d %d\n", in.Op, in.Jt, in.Jf, in.K)
		}
	}
	return b.String(), nil
}

// Inject puts the filter into the stub of every program of spec that has it.
// Injecting the empty filter changes nothing: a bare stub accepts. The error
// wraps ErrTooLarge if the code does not fit, ErrUnsupported if there can be none.
func (f Filter) Inject(spec *ebpf.CollectionSpec) error {
	if len(f.cbpf) == 0 {
		return nil
	}
	if f.codeErr != nil {
		return fmt.Errorf("filter %q: %w", shorten(f.expr), f.codeErr)
	}
	stub := stubs[f.linkType]
	found := false
	for name, p := range spec.Programs {
		at := find(p.Instructions, stub)
		if at < 0 {
			continue
		}
		found = true
		insns := inject(f.code, p.Instructions, at)
		if len(insns) > maxInsns {
			return fmt.Errorf("filter %q: %w: program %s would have %d instructions, and it may have %d",
				shorten(f.expr), ErrTooLarge, name, len(insns), maxInsns)
		}
		p.Instructions = insns
	}
	if !found {
		return fmt.Errorf("inject filter: no program has a function %s", stub)
	}
	return nil
}
