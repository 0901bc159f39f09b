// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"droidtap/agent/filter"
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

// TestWithoutHelpers has programs that ask for what the kernel lacks.
func TestWithoutHelpers(t *testing.T) {
	program := func() *ebpf.CollectionSpec {
		return &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{"p": {Instructions: asm.Instructions{
			asm.FnSkbCgroupId.Call().WithSymbol("start"),
			asm.FnKtimeGetBootNs.Call(),
			asm.FnGetSocketUid.Call(),
			asm.Return(),
		}}}}
	}
	for _, c := range []struct {
		rule string
		edit func(*ebpf.CollectionSpec)
		want asm.Instructions
	}{
		{"no cgroup has the id 0", withoutCgroup, asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.FnKtimeGetBootNs.Call(), asm.FnGetSocketUid.Call(), asm.Return()}},
		{"the monotonic clock for the boot clock", useMonotonic, asm.Instructions{asm.FnSkbCgroupId.Call(), asm.FnKtimeGetNs.Call(), asm.FnGetSocketUid.Call(), asm.Return()}},
	} {
		spec := program()
		c.edit(spec)
		got := spec.Programs["p"].Instructions
		if got[0].Symbol() != "start" {
			t.Errorf("%s: the program begins nowhere", c.rule)
		}
		if g, w := fmt.Sprint(got[0].OpCode, got[1:]), fmt.Sprint(c.want[0].OpCode, c.want[1:]); g != w {
			t.Errorf("%s:\n%s\n%s", c.rule, g, w)
		}
	}
}
