// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
	"droidtap/bpf"
)

// slots is how many instructions the kernel counts: a load of 64 bits is two.
func slots(insns asm.Instructions) (n int) {
	for _, in := range insns {
		if n++; in.OpCode.IsDWordLoad() {
			n++
		}
	}
	return n
}

// TestFitsOldKernels counts the instructions of the object for kernels before 5.2, which take 4,096: common filters fit
// as they are, and longer ones without the direct form.
func TestFitsOldKernels(t *testing.T) {
	const most = 4096
	for _, c := range []struct {
		expr string
		fits [2]bool // hybrid, load-bytes
	}{
		{"port 443", [2]bool{true, true}},
		{"host 10.0.0.1 and tcp port 443", [2]bool{true, true}},
		{"tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420", [2]bool{true, true}},
		{"ip6 protochain 17", [2]bool{true, true}},
		{numbered("host 10.0.%d.1", 100), [2]bool{true, true}},
		{numbered("host 2001:db8::%d", 50), [2]bool{true, true}},
		{numbered("host 10.1.%d.1", 200), [2]bool{false, true}},
		{numbered("host 2001:db8::%d", 254), [2]bool{false, false}}, // the agent's, there
	} {
		t.Run(c.expr[:min(len(c.expr), 40)], func(t *testing.T) {
			for i, form := range forms {
				largest := 0
				spec, err := bpf.Open("packet", "legacy")
				if err != nil {
					t.Fatal(err)
				}
				inject(t, spec, c.expr, pcapng.Ethernet, form)
				for name, p := range spec.Programs {
					if strings.HasPrefix(name, "l2") {
						largest = max(largest, slots(p.Instructions))
					}
				}
				if got := largest <= most; got != c.fits[i] {
					t.Errorf("%v has %d instructions", form, largest)
				}
			}
			f := compile(t, c.expr, pcapng.Ethernet)
			if !f.Exact(filter.Hybrid) && !strings.Contains(c.expr, "protochain") {
				t.Error("the kernel does not decide")
			}
		})
	}
}
