// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package bpf_test

import (
	"fmt"
	"maps"
	"testing"

	"github.com/cilium/ebpf"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
)

// TestFilteredObjectsFitTheirKernels reads the object as the agent loads it. How long filters may
// be is not asked here: TestFitsOldKernels of agent/filter.
func TestFilteredObjectsFitTheirKernels(t *testing.T) {
	for _, expr := range []string{
		"port 443",
		"host 10.0.0.1 and tcp port 443",
		"ip6 host 2001:db8::1 or net 10.0.0.0/8",
		"tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420",
		"len % 7 = 3 or len / 3 > 100 or len << 2 = 400",
		"ip[2:2] - ((ip[0] & 0xf) << 2) - ((tcp[12] & 0xf0) >> 2) != 0",
		"greater 100 and not udp",
	} {
		for _, form := range []filter.Form{filter.Hybrid, filter.LoadBytes} {
			for _, name := range packetObjects() {
				for _, line := range linesOf(name) {
					t.Run(fmt.Sprintf("%s on %v, %v: %s", name, line, form, expr), func(t *testing.T) {
						spec := open(t, name)
						if form == filter.Hybrid { // a socket filter has no bounds of the packet to hand over
							maps.DeleteFunc(spec.Programs, func(_ string, p *ebpf.ProgramSpec) bool { return p.Type == ebpf.SocketFilter })
						}
						inject(t, spec, expr, pcapng.Ethernet, form)
						inject(t, spec, expr, pcapng.Raw, form)
						for _, why := range refusals(t, spec, line) {
							t.Error(why)
						}
					})
				}
			}
		}
	}
}
