// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
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
