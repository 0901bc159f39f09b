// SPDX-License-Identifier: Apache-2.0

// Package kernel tells what the running kernel and the surroundings of the process allow. It asks them: what a release, a
// configuration or a table says of a kernel is not always true of it.
package kernel

import (
	"errors"
	"io/fs"
	"math"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Surroundings are what may stand between the process and the kernel.
type Surroundings struct {
	UID     int    // effective; -1 where /proc does not tell
	Caps    uint64 // the effective set, a bit for each CAP_* number
	LastCap int    // the highest capability that the kernel knows; 0 where /proc does not tell
	Seccomp int    // SECCOMP_MODE_*: 0 none, 1 strict, 2 a filter

	UserNamespace bool   // users here are others to the kernel
	Memlock       uint64 // limit for locked memory in bytes; math.MaxUint64: none
	Release       string // uname -r

	// Lockdown is none, integrity or confidentiality, and "" where the kernel has no lockdown or nobody mounted
	// securityfs, as on Android.
	Lockdown string

	SELinux SELinux
}

// SELinux is its state, as far as it lets itself be looked at.
type SELinux struct {
	Enabled, Enforcing bool
	Context            string // of the process, such as u:r:shell:s0
}

// Look reads the surroundings from /proc and /sys. root is os.DirFS("/"). What is not there, or does not let itself be
// read, keeps its zero value.
func Look(root fs.FS) Surroundings {
	s := Surroundings{UID: -1}
	s.status(content(root, "proc/self/status"))
	s.LastCap, _ = strconv.Atoi(content(root, "proc/sys/kernel/cap_last_cap"))
	s.Release = content(root, "proc/sys/kernel/osrelease")
	s.Memlock = memlock(content(root, "proc/self/limits"))
	if users := strings.Fields(content(root, "proc/self/uid_map")); len(users) > 0 {
		// user_namespaces(7): the first namespace maps every user to itself.
		s.UserNamespace = strings.Join(users, " ") != "0 0 4294967295"
	}
	// The one in brackets is in force: security/lockdown/lockdown.c lockdown_read.
	if _, rest, ok := strings.Cut(content(root, "sys/kernel/security/lockdown"), "["); ok {
		s.Lockdown, _, _ = strings.Cut(rest, "]")
	}
	enforce, err := fs.ReadFile(root, "sys/fs/selinux/enforce")
	if err == nil || errors.Is(err, fs.ErrPermission) {
		s.SELinux.Enabled = true
		// Nothing else than SELinux itself refuses to have it read.
		s.SELinux.Enforcing = err != nil || trim(enforce) == "1"
		// Other security modules have their own things to say there.
		s.SELinux.Context = content(root, "proc/self/attr/current")
	}
	return s
}

// content returns a file's text, "" where there is none.
func content(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return trim(b)
}

// trim takes off the end of line, and the NUL with which SELinux ends a context.
func trim(b []byte) string { return strings.Trim(string(b), "\x00 \t\n") }

// status reads /proc/PID/status: proc_pid_status(5).
func (s *Surroundings) status(text string) {
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		if len(f) == 0 {
			continue
		}
		switch key {
		case "Uid": // real, effective, saved, file system
			if uid, err := strconv.ParseUint(f[min(1, len(f)-1)], 10, 32); err == nil {
				s.UID = int(uid)
			}
		case "CapEff":
			s.Caps, _ = strconv.ParseUint(f[0], 16, 64)
		case "Seccomp":
			s.Seccomp, _ = strconv.Atoi(f[0])
		}
	}
}

// memlock reads the soft limit from /proc/PID/limits.
func memlock(text string) uint64 {
	for line := range strings.Lines(text) {
		value, ok := strings.CutPrefix(line, "Max locked memory")
		f := strings.Fields(value)
		if !ok || len(f) == 0 {
			continue
		}
		if f[0] == "unlimited" {
			return math.MaxUint64
		}
		n, _ := strconv.ParseUint(f[0], 10, 64)
		return n
	}
	return 0
}

// has tells whether a capability is in the effective set.
func (s Surroundings) has(capability int) bool { return s.Caps>>capability&1 == 1 }

// Missing names the capabilities that a capture needs and the process lacks. CAP_BPF and CAP_PERFMON are parts of
// CAP_SYS_ADMIN that a kernel has from 5.8 (2c78ee898d8f, 980737282232).
func (s Surroundings) Missing() []string {
	var names []string
	for _, c := range []struct {
		number int
		name   string
	}{
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
		{unix.CAP_BPF, "CAP_BPF"},
		{unix.CAP_PERFMON, "CAP_PERFMON"},
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"},
		{unix.CAP_NET_RAW, "CAP_NET_RAW"},
	} {
		part := c.number == unix.CAP_BPF || c.number == unix.CAP_PERFMON
		split := s.LastCap >= unix.CAP_BPF
		switch {
		case s.has(c.number):
		case part && (!split || s.has(unix.CAP_SYS_ADMIN)):
		case c.number == unix.CAP_SYS_ADMIN && split: // its parts do
		default:
			names = append(names, c.name)
		}
	}
	return names
}
