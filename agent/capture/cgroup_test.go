// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"

	"droidtap/agent/plan"
	"droidtap/bpf"
)

// TestWithoutCgroup takes the call out of every object, and leaves a program that loads.
func TestWithoutCgroup(t *testing.T) {
	for _, variant := range []plan.Variant{plan.Legacy, plan.Ring} {
		t.Run(string(variant), func(t *testing.T) {
			spec, err := bpf.Open("packet", string(variant))
			if err != nil {
				t.Fatal(err)
			}
			calls := func() (n int) {
				for _, p := range spec.Programs {
					for _, in := range p.Instructions {
						if in.IsBuiltinCall() && asm.BuiltinFunc(in.Constant) == asm.FnSkbCgroupId {
							n++
						}
					}
				}
				return n
			}
			if calls() == 0 {
				t.Fatal("the object has no call")
			}
			withoutCgroup(spec)
			if n := calls(); n != 0 {
				t.Errorf("%d calls are left", n)
			}
			if os.Geteuid() != 0 {
				t.Skip("needs root to load bpf programs")
			}
			if err := rlimit.RemoveMemlock(); err != nil {
				t.Fatal(err)
			}
			coll, err := ebpf.NewCollection(spec)
			if err != nil {
				t.Fatal(err)
			}
			coll.Close()
		})
	}
}
