// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"droidtap/agent/capture"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
)

func TestEachMessageIsALine(t *testing.T) {
	both := errors.Join(errors.New("one"), errors.New("two"))
	var said bytes.Buffer
	newLog(&said, 0).Warn("it failed: "+both.Error(), "because", both)
	report(&said, both)
	if want := "agent: it failed: one; two (because one; two)\nagent: one; two\n"; said.String() != want {
		t.Errorf("%q, want %q", said.String(), want)
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		rule string
		err  error
		want int
	}{
		{"nothing", nil, exitOK},
		{"some failure", errors.New("disk full"), exitFailed},
		{"what was typed", plugin.Usagef("no such interface"), exitUsage},
		{"what was typed, refused", plugin.Usagef("open: %w", os.ErrPermission), exitUsage},
		{"a refusal", fmt.Errorf("load: %w", os.ErrPermission), exitPermission},
		{"what could not be asked for want of a right", fmt.Errorf("hook: %w: %w", plan.ErrImpossible, os.ErrPermission), exitPermission},
		{"what the kernel lacks", fmt.Errorf("hook: %w: %w", plan.ErrImpossible, ebpf.ErrNotSupported), exitKernel},
		{"what its verifier refuses, by EACCES", fmt.Errorf("%w: %w", capture.ErrKernel, os.ErrPermission), exitKernel},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if got := exitCode(c.err); got != c.want {
				t.Errorf("%d, want %d", got, c.want)
			}
		})
	}
}
