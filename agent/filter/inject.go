// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"droidtap/agent/pcapng"
)

// stubs are the functions of bpf/src/agent.h that filters are injected into.
var stubs = map[pcapng.LinkType]string{
	pcapng.Ethernet: "filter_pcap_l2",
	pcapng.Raw:      "filter_pcap_l3",
}

// Inject puts the filter into the stub of its link type in a program. The error wraps
// ErrTooLarge if the code cannot be so long.
//
// elibpcap.Inject is not used: its direct mode is wrong where a packet's bytes are not in the
// linear head, its load-bytes mode takes loads of cBPF's scratch memory for loads of the packet
// and refuses 19 of 324 common expressions (v1.1.0, adjust_ebpf_skb_load_bytes.go), and neither
// knows the extensions of a live capture.
func (f Filter) Inject(p *ebpf.ProgramSpec, how How) error {
	stub := stubs[f.linkType]
	at := slices.IndexFunc(p.Instructions, func(in asm.Instruction) bool { return in.Symbol() == stub })
	if at < 0 {
		return fmt.Errorf("inject filter: program %s has no function %s", p.Name, stub)
	}
	code, err := f.program.code(how)
	if err != nil {
		return fmt.Errorf("filter %q: program %s: %w", shorten(f.expr), p.Name, err)
	}
	// The function now begins with the filter: its name and its BTF move there.
	code[0] = code[0].WithMetadata(p.Instructions[at].Metadata)
	body := p.Instructions[at].WithMetadata(asm.Metadata{})
	p.Instructions = slices.Concat(p.Instructions[:at], code, asm.Instructions{body}, p.Instructions[at+1:])
	return nil
}
