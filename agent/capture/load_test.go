// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"droidtap/agent/filter"
	"droidtap/agent/plan"
	"droidtap/bpf"
)

// TestTooMuch has the answers of kernels to a program that is too large, and to other mistakes.
func TestTooMuch(t *testing.T) {
	for _, c := range []struct {
		rule string
		err  error
		want bool
	}{
		{"before 5.2: more than 4,096 instructions, and an empty log", fmt.Errorf("program l2_ingress: load program: %w", unix.E2BIG), true},
		{"too many branches", fmt.Errorf("program l2_ingress: load program: %w", unix.EFAULT), true},
		{"any other answer of the verifier", fmt.Errorf("load: %w", &ebpf.VerifierError{Cause: unix.EINVAL}), true},
		{"jumps that do not reach", fmt.Errorf("filter: %w", filter.ErrTooLarge), true},
		{"not root", fmt.Errorf("map create: %w", os.ErrPermission), false},
		{"a map that the kernel has not", ebpf.ErrNotSupported, false},
		{"another", errors.New("no such object"), false},
	} {
		if got := tooMuch(c.err); got != c.want {
			t.Errorf("%s: %v", c.rule, got)
		}
	}
}

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
