// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// LeaveCgroups takes this process out of the cgroups of the service or app that it was started from, which Android kills as a whole when
// that ends: adbd, when USB debugging is switched off (system/core/libprocessgroup KillProcessGroup). They are named uid_U/pid_P.
// Others stay: they are limits that somebody has set.
func LeaveCgroups() error {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range leave(string(own), string(mounts)) {
		procs := filepath.Join(root, "cgroup.procs")
		// 0 is the process that writes (Documentation/admin-guide/cgroup-v1/cgroups.rst).
		if err := os.WriteFile(procs, []byte("0"), 0); err != nil {
			errs = append(errs, fmt.Errorf("leave a cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// ofProcess is a cgroup of libprocessgroup's.
var ofProcess = regexp.MustCompile(`/uid_\d+/pid_\d+(/|$)`)

// leave returns the roots of the hierarchies in which a process is in such a cgroup, of cgroups(7)'s list of the process's
// and proc_pid_mountinfo(5).
func leave(own, mountinfo string) (roots []string) {
	for line := range strings.Lines(own) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) < 3 || !ofProcess.MatchString(fields[2]) {
			continue
		}
		if root := mounted(strings.Split(fields[1], ","), mountinfo); root != "" {
			roots = append(roots, root)
		}
	}
	return roots
}

// mounted returns where a whole hierarchy is mounted, "" if nowhere: that of version 1 with those controllers, or with [""] that of
// version 2.
func mounted(controllers []string, mountinfo string) string {
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		fields, of := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(of) < 3 || fields[3] != "/" {
			continue
		}
		options := strings.Split(of[2], ",")
		switch {
		case of[0] == "cgroup2" && controllers[0] == "":
		case of[0] == "cgroup" && controllers[0] != "" && slices.Contains(options, controllers[0]):
		default:
			continue
		}
		// Blanks and the like are octal there (fs/proc_namespace.c show_mountinfo).
		return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
	}
	return ""
}
