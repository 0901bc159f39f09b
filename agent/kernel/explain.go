// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"droidtap/android"
)

const confidentiality = "confidentiality"

// Explain says in one sentence why a system call was refused and what to do about it, the most certain cause first; ""
// where it does not know. err is what the call said: EPERM, EACCES, ENOSYS, or ErrNoKernelRead from a Check; c the answers
// of AskCalls, or nothing. The verifier refuses programs by EACCES and EPERM too: Explain knows it by its log, so err must
// not be that of a program that was loaded without.
func (s Surroundings) Explain(err error, c Calls) string {
	if errors.Is(err, ErrNoKernelRead) {
		return s.explainReads()
	}
	if s.UID < 0 || !refused(err) {
		return ""
	}
	if powerless := s.powerless(); powerless != "" {
		return powerless
	}
	if certain := s.certain(err, c); certain != "" {
		return certain
	}
	return strings.Join(s.possible(err, c), "; or ")
}

// powerless says what keeps the process from being a root that lacks nothing, whatever else there may be.
func (s Surroundings) powerless() string {
	missing := s.Missing()
	switch {
	case s.UserNamespace:
		return "the process is in a user namespace, whose root is nobody to the kernel: run the agent outside of the container"
	case len(missing) > 0 && s.UID != 0:
		return fmt.Sprintf("user %d may not do this: run the agent as root, under su", s.UID)
	case len(missing) > 0:
		return fmt.Sprintf("root here lacks %s: run the agent under a su that takes no capabilities away (in KernelSU, see the "+
			"profile of the app that calls it)", strings.Join(missing, ", "))
	}
	return ""
}

// refused tells a refusal from other failures, and from the verifier's opinion of a program, which has a log.
func refused(err error) bool {
	var v *ebpf.VerifierError
	if errors.As(err, &v) && len(v.Log) > 0 {
		return false
	}
	return errors.Is(err, os.ErrPermission) || errors.Is(err, unix.ENOSYS)
}

// explainReads says why programs may not read kernel memory.
func (s Surroundings) explainReads() string {
	const still = "packets are captured all the same, without what has to be read there"
	switch {
	case s.UID >= 0 && s.powerless() != "":
		return s.powerless()
	case s.Lockdown == confidentiality:
		return "the kernel is locked down to confidentiality, so no program may read its memory: " + still
	case s.Lockdown == "" && !s.before(5, 10):
		return "the kernel lets no program read its memory, probably locked down to confidentiality: " + still
	}
	return ""
}

// certain says what explains a refusal to a root that lacks nothing, and nothing else does.
func (s Surroundings) certain(err error, c Calls) string {
	// EINVAL is the kernel's own answer. Before 5.19 (c8644cd0efe7) it first wants a capability, which is there.
	stopped := c.Command != nil && !errors.Is(c.Command, unix.EINVAL)
	switch {
	case stopped && s.Seccomp == unix.SECCOMP_MODE_FILTER:
		return "a seccomp filter refuses bpf(2), of which no capability is lacking: " + plainShell
	case stopped && errors.Is(c.Command, unix.ENOSYS):
		return "this kernel has no bpf(2) (CONFIG_BPF_SYSCALL), and the agent cannot run on it"
	case errors.Is(err, unix.EACCES) && s.confined():
		return s.explainSELinux()
	}
	return ""
}

// possible lists what may explain it, the likelier first.
func (s Surroundings) possible(err error, c Calls) []string {
	var why []string
	// A packet socket counts against another limit.
	if errors.Is(err, unix.EPERM) && s.tight() && c.Packet == nil {
		why = append(why, s.explainMemlock())
	}
	if s.confined() {
		why = append(why, s.explainSELinux())
	}
	if s.Seccomp == unix.SECCOMP_MODE_FILTER {
		why = append(why, "a seccomp filter may refuse the call: "+plainShell)
	}
	if s.Lockdown == confidentiality && errors.Is(err, unix.EPERM) {
		why = append(why, "the kernel is locked down to confidentiality, which refuses kprobes and tracing, but not the capture of "+
			"packets: leave out what needs them")
	}
	return why
}

const plainShell = "start the agent from a shell under su, not from an app, a service or a container that has a filter"

// before tells whether the kernel says that it is older. One that does not say what it is is taken for a newer one.
func (s Surroundings) before(major, minor int) bool {
	r := android.ParseRelease(s.Release)
	return r.Major > 0 && (r.Major < major || r.Major == major && r.Minor < minor)
}

// tight tells whether maps and programs count against a limit for locked memory: before 5.11 (97306be45fbe).
func (s Surroundings) tight() bool { return s.before(5, 11) && s.Memlock != math.MaxUint64 }

func (s Surroundings) explainMemlock() string {
	return fmt.Sprintf("before kernel 5.11 maps count as locked memory, of which %d bytes are allowed here, and root's other maps "+
		"count too: raise the limit (ulimit -l unlimited) or ask for a smaller buffer", s.Memlock)
}

// permissive are the domains of root that SELinux only watches: userdebug's and KernelSU's su, Magisk's, KernelSU's since
// it has one of its own.
var permissive = []string{"su", "magisk", "ksu"}

// confined tells whether SELinux may refuse this process something. Which domains are permissive nobody but the policy
// knows; those of su are.
func (s Surroundings) confined() bool {
	return s.SELinux.Enforcing && !slices.Contains(permissive, s.SELinux.domain())
}

// domain returns the type in a context, user:role:type:range.
func (l SELinux) domain() string {
	if f := strings.Split(l.Context, ":"); len(f) > 2 {
		return f[2]
	}
	return ""
}

func (s Surroundings) explainSELinux() string {
	context := s.SELinux.Context
	if context == "" {
		context = "this process"
	}
	return fmt.Sprintf("SELinux refuses it to %s: run the agent under the su of Magisk or KernelSU, and look for \"avc: denied\" "+
		"in dmesg or logcat", context)
}
