// SPDX-License-Identifier: Apache-2.0

// Package filter turns a pcap-filter expression into the code of a bpf program:
// expression -> cBPF (libpcap) -> eBPF, in one of several forms -> the program's stub.
package filter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

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

const (
	// patience is how long libpcap may think about an expression. It cannot be interrupted, and
	// some parts of it take the square of an expression's length.
	patience = 10 * time.Second
	// maxExpr is the longest expression, in bytes.
	maxExpr = 64 << 10
	// maxSnaplen is what a libpcap filter returns for a packet that it accepts.
	maxSnaplen = 262144
)

// Filter is an expression compiled for one link type.
type Filter struct {
	expr     string
	linkType pcapng.LinkType
	raw      []bpf.RawInstruction // as libpcap compiled it
	program  program              // the same, in fewer instructions where libpcap has not tried
}

// Compile compiles expr as libpcap does for a live capture on an interface of the link type. An
// empty expr is a filter that accepts every packet. netmask is that of the interface's IPv4
// network, in host byte order, for "ip broadcast"; 0 where it has none. The error is one line; it
// wraps ErrRejectsAll, or ctx's error where that ends first, context.DeadlineExceeded too where
// it takes longer than anybody would wait. What runs then goes on in the background.
//
// Names of hosts and networks are refused: libpcap would ask the network for them.
func Compile(ctx context.Context, expr string, l pcapng.LinkType, netmask uint32) (Filter, error) {
	if _, known := stubs[l]; !known {
		return Filter{}, fmt.Errorf("filter: no stub for link type %d", l)
	}
	if strings.ContainsRune(expr, 0) {
		return Filter{}, fmt.Errorf("filter %q: has a zero byte", shorten(expr))
	}
	if len(expr) > maxExpr {
		return Filter{}, fmt.Errorf("filter %q: has %d bytes, and %d are the most", shorten(expr), len(expr), maxExpr)
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	type result struct {
		Filter
		error
	}
	done := make(chan result, 1)
	go func() {
		f, err := build(expr, l, netmask)
		done <- result{f, err}
	}()
	select {
	case r := <-done:
		if r.error != nil {
			return Filter{}, fmt.Errorf("filter %q: %w", shorten(expr), r.error)
		}
		return r.Filter, nil
	case <-limited.Done():
	}
	if err := ctx.Err(); err != nil {
		return Filter{}, fmt.Errorf("filter %q: %w", shorten(expr), err)
	}
	return Filter{}, fmt.Errorf("filter %q: not compiled after %v, so it is too long for this machine: name fewer hosts or ports, or nets and portranges in their place: %w",
		shorten(expr), patience, limited.Err())
}

const (
	// shortExpr is an expression so short, in bytes, that libpcap's optimiser takes
	// no time that anybody notices.
	shortExpr = 1000
	// maxOptimised is how many instructions may be handed to that optimiser: some
	// 130 hosts or 60 ports. 500 hosts take it five seconds; it walks all blocks for
	// each of them.
	maxOptimised = 4000
)

func build(expr string, l pcapng.LinkType, netmask uint32) (Filter, error) {
	f := Filter{expr: expr, linkType: l}
	optimise := len(expr) <= shortExpr
	var err error
	if !optimise {
		if f.raw, err = compile(expr, l, netmask, false); err != nil {
			return f, err
		}
		optimise = len(f.raw) <= maxOptimised
	}
	if optimise {
		if f.raw, err = compile(expr, l, netmask, true); err != nil {
			return f, err
		}
	}
	if f.program, err = parse(f.raw); err != nil {
		return f, err
	}
	if !optimise {
		f.program = simplify(f.program)
		if f.program.rejectsAll() {
			return f, ErrRejectsAll
		}
	}
	return f, nil
}

// RejectAll is a filter that accepts no packet: expr where it can match none.
func RejectAll(expr string, l pcapng.LinkType) Filter {
	return Filter{expr: expr, linkType: l, raw: []bpf.RawInstruction{{Op: opReturn}}, program: program{{op: opReturn}}}
}

// shorten keeps an error about a page of expression on one line.
func shorten(expr string) string {
	const most = 80
	if r := []rune(expr); len(r) > most {
		return string(r[:most]) + "..."
	}
	return expr
}

// Exact tells whether the filter's code in a form decides about every packet. Where it does
// not, it accepts some that Match has to judge.
func (f Filter) Exact(form Form) bool {
	return form != Agent && !f.program.loops()
}

// Trivial tells whether the filter accepts every packet without a look at it.
func (f Filter) Trivial() bool {
	return f.program[0].isRet() && f.program[0].op&retA == 0 && f.program[0].k != 0
}

// Describe says how the filter runs in a form, and why.
func (f Filter) Describe(form Form) string {
	return f.program.describe(form)
}

// Dump returns the classic program as tcpdump prints it: for people (how is 1), as
// C (2) or as numbers (3).
func (f Filter) Dump(how int) string {
	var b strings.Builder
	switch how {
	case 1:
		for i, in := range f.raw {
			b.WriteString(image(in, i) + "\n")
		}
	case 2:
		for _, in := range f.raw {
			fmt.Fprintf(&b, "{ %#x, %d, %d, 0x%08x },\n", in.Op, in.Jt, in.Jf, in.K)
		}
	default:
		fmt.Fprintf(&b, "%d\n", len(f.raw))
		for _, in := range f.raw {
			fmt.Fprintf(&b, "%d %d %d %d\n", in.Op, in.Jt, in.Jf, in.K)
		}
	}
	return b.String()
}

// DumpEBPF returns the code that is injected, an instruction on a line.
func (f Filter) DumpEBPF(how How) (string, error) {
	code, err := f.program.code(how)
	if err != nil {
		return "", fmt.Errorf("filter %q: %w", shorten(f.expr), err)
	}
	return text(code), nil
}

func text(code asm.Instructions) string {
	var b strings.Builder
	for i, in := range code {
		if in.OpCode.JumpOp() != asm.InvalidJumpOp && !in.IsBuiltinCall() && in.OpCode.JumpOp() != asm.Exit {
			fmt.Fprintf(&b, "%4d: %v -> %d\n", i, in, i+1+int(in.Offset))
		} else {
			fmt.Fprintf(&b, "%4d: %v\n", i, in)
		}
	}
	return b.String()
}
