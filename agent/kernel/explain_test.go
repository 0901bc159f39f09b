// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	every    = 1<<41 - 1
	lastCaps = unix.CAP_CHECKPOINT_RESTORE
)

// powerful is a root that lacks nothing on a kernel in the way of which nothing is.
func powerful() Surroundings {
	return Surroundings{Caps: every, LastCap: lastCaps, Memlock: math.MaxUint64, Release: "6.1.145-android14-11", Lockdown: "none"}
}

func TestExplain(t *testing.T) {
	shell := SELinux{Enabled: true, Enforcing: true, Context: "u:r:shell:s0"}
	free := Calls{Command: fmt.Errorf("command: %w", unix.EINVAL)}
	for _, test := range []struct {
		rule   string
		change func(*Surroundings)
		calls  Calls
		err    error
		words  string // separated by |, all in the sentence; "": there must be none
		absent string
	}{
		{rule: "a user is told to be root", err: unix.EPERM, words: "user 2000|su",
			change: func(s *Surroundings) { s.UID, s.Caps, s.Seccomp, s.SELinux = 2000, 0xc0, 2, shell }, absent: "SELinux|seccomp"},
		{rule: "a user with all capabilities is no cause", err: unix.EPERM,
			change: func(s *Surroundings) { s.UID = 2000 }},
		{rule: "a user namespace comes first", err: unix.EPERM, words: "user namespace|container",
			change: func(s *Surroundings) { s.UserNamespace, s.UID, s.Caps = true, 1000, 0 }, absent: "user 1000"},
		{rule: "root without any capability", err: unix.EPERM, words: "root|CAP_BPF|CAP_PERFMON|CAP_NET_ADMIN|CAP_NET_RAW",
			change: func(s *Surroundings) { s.Caps = 0 }, absent: "CAP_SYS_ADMIN"},
		{rule: "before 5.8 there is CAP_SYS_ADMIN only", err: unix.EPERM, words: "CAP_SYS_ADMIN|CAP_NET_ADMIN|CAP_NET_RAW",
			change: func(s *Surroundings) { s.Caps, s.LastCap = 0, unix.CAP_AUDIT_READ }, absent: "CAP_BPF|CAP_PERFMON"},
		{rule: "CAP_SYS_ADMIN holds CAP_BPF and CAP_PERFMON", err: unix.EPERM, words: "CAP_NET_RAW",
			change: func(s *Surroundings) { s.Caps = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN },
			absent: "CAP_BPF|CAP_PERFMON|CAP_NET_ADMIN|CAP_SYS_ADMIN"},
		{rule: "the parts do for the whole", err: unix.EPERM,
			change: func(s *Surroundings) {
				s.Caps = 1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
			}},
		{rule: "a filter that refuses a command which is not there", err: unix.EPERM, words: "seccomp filter|bpf(2)",
			change: func(s *Surroundings) { s.Seccomp, s.SELinux = 2, shell }, calls: Calls{Command: unix.EPERM}, absent: "SELinux|may"},
		{rule: "a filter that plays a kernel without bpf", err: unix.ENOSYS, words: "seccomp filter|bpf(2)",
			change: func(s *Surroundings) { s.Seccomp = 2 }, calls: Calls{Command: unix.ENOSYS}},
		{rule: "a filter that lets bpf pass may refuse another call", err: unix.EPERM, words: "seccomp filter may",
			change: func(s *Surroundings) { s.Seccomp = 2 }, calls: free},
		{rule: "a kernel without bpf", err: unix.ENOSYS, words: "CONFIG_BPF_SYSCALL", calls: Calls{Command: unix.ENOSYS}},
		{rule: "EACCES in a domain that is watched", err: unix.EACCES, words: "SELinux|u:r:shell:s0|avc: denied",
			change: func(s *Surroundings) { s.SELinux = shell }, calls: free},
		{rule: "a capability that SELinux refuses is EPERM", err: unix.EPERM, words: "SELinux|u:r:shell:s0",
			change: func(s *Surroundings) { s.SELinux = shell }, calls: free},
		{rule: "SELinux that only watches", err: unix.EACCES,
			change: func(s *Surroundings) { s.SELinux = shell; s.SELinux.Enforcing = false }, calls: free},
		{rule: "Magisk's domain is free", err: unix.EACCES,
			change: func(s *Surroundings) { s.SELinux = shell; s.SELinux.Context = "u:r:magisk:s0" }, calls: free},
		{rule: "SELinux without a context", err: unix.EACCES, words: "SELinux|this process",
			change: func(s *Surroundings) { s.SELinux = shell; s.SELinux.Context = "" }, calls: free},
		{rule: "locked memory before 5.11", err: unix.EPERM, words: "5.11|65536 bytes|ulimit -l unlimited|smaller buffer",
			change: func(s *Surroundings) { s.Release, s.Memlock = "5.10.198-android12-9", 65536 }, calls: free},
		{rule: "no limit for locked memory", err: unix.EPERM,
			change: func(s *Surroundings) { s.Release = "5.10.198-android12-9" }, calls: free},
		{rule: "locked memory does not count from 5.11", err: unix.EPERM,
			change: func(s *Surroundings) { s.Release, s.Memlock = "5.11.0", 65536 }, calls: free},
		{rule: "locked memory is no matter of packet sockets", err: unix.EPERM,
			change: func(s *Surroundings) { s.Release, s.Memlock = "4.19.206", 65536 }, calls: Calls{Packet: unix.EPERM}},
		{rule: "locked memory or SELinux", err: unix.EPERM, words: "5.11|; or SELinux",
			change: func(s *Surroundings) { s.Release, s.Memlock, s.SELinux = "4.19.206", 65536, shell }, calls: free},
		{rule: "lockdown refuses tracing, not packets", err: unix.EPERM, words: "confidentiality|kprobes|not the capture of packets",
			change: func(s *Surroundings) { s.Lockdown = confidentiality }, calls: free},
		{rule: "lockdown refuses reads", err: ErrNoKernelRead, words: "locked down to confidentiality|captured all the same",
			change: func(s *Surroundings) { s.Lockdown = confidentiality }, calls: free, absent: "probably"},
		{rule: "lockdown that nobody can see", err: ErrNoKernelRead, words: "probably locked down to confidentiality",
			change: func(s *Surroundings) { s.Lockdown = "" }},
		{rule: "integrity refuses no reads", err: ErrNoKernelRead,
			change: func(s *Surroundings) { s.Lockdown = "integrity" }},
		{rule: "before 5.10 there is nothing to refuse", err: ErrNoKernelRead,
			change: func(s *Surroundings) { s.Lockdown, s.Release = "", "5.4.289" }},
		{rule: "reads without a capability", err: ErrNoKernelRead, words: "CAP_PERFMON",
			change: func(s *Surroundings) { s.Caps &^= 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_PERFMON }, absent: "locked"},
		{rule: "nothing is in the way", err: unix.EPERM, calls: free},
		{rule: "another failure", err: unix.ENOMEM, change: func(s *Surroundings) { s.Caps = 0 }},
		{rule: "no failure", change: func(s *Surroundings) { s.Caps = 0 }},
		{rule: "the verifier's opinion", err: &ebpf.VerifierError{Cause: unix.EACCES, Log: []string{"R1 !read_ok"}},
			change: func(s *Surroundings) { s.Caps = 0 }},
		{rule: "a program that never came to the verifier", err: &ebpf.VerifierError{Cause: unix.EPERM}, words: "CAP_BPF",
			change: func(s *Surroundings) { s.Caps = 0 }},
		{rule: "surroundings that are not known", err: unix.EPERM, change: func(s *Surroundings) { *s = Surroundings{UID: -1} }},
	} {
		t.Run(test.rule, func(t *testing.T) {
			s := powerful()
			if test.change != nil {
				test.change(&s)
			}
			err := test.err
			if err != nil {
				err = fmt.Errorf("load the object: %w", errors.Join(err))
			}
			got := s.Explain(err, test.calls)
			holds(t, got, test.words, test.absent)
		})
	}
}

// holds compares a sentence with the words that must and must not be in it.
func holds(t *testing.T, sentence, words, absent string) {
	t.Helper()
	if words == "" {
		if sentence != "" {
			t.Errorf("explained as %q, want nothing", sentence)
		}
		return
	}
	for word := range strings.SplitSeq(words, "|") {
		if !strings.Contains(sentence, word) {
			t.Errorf("%q does not say %q", sentence, word)
		}
	}
	for word := range strings.SplitSeq(absent, "|") {
		if word != "" && strings.Contains(sentence, word) {
			t.Errorf("%q says %q", sentence, word)
		}
	}
	if strings.ContainsAny(sentence, "\n") || strings.HasSuffix(sentence, ".") {
		t.Errorf("%q is not one line without an end", sentence)
	}
}
