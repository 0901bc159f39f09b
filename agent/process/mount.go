// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"path/filepath"
	"strings"
)

// cgroups returns where cgroup version 2 is mounted, "" if it is not.
func (p procfs) cgroups() string {
	mounts, err := os.ReadFile(filepath.Join(string(p), "self", "mountinfo"))
	if err != nil {
		return ""
	}
	return FindCgroups(string(mounts))
}

// FindCgroups returns where cgroup version 2 is mounted by mountinfo, proc_pid_mountinfo(5); "" if it is not. Beside controllers
// of version 1 there may be a tree of version 2, on Android at /sys/fs/cgroup or /dev/cg2_bpf, on a hybrid system at
// /sys/fs/cgroup/unified. The whole tree is better than a part.
func FindCgroups(mountinfo string) string {
	part := ""
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		kind, _, _ := strings.Cut(after, " ")
		fields := strings.Fields(before)
		if kind != "cgroup2" || len(fields) < 5 {
			continue
		}
		// Blanks and the like are octal there (fs/proc_namespace.c show_mountinfo).
		point := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
		if fields[3] == "/" {
			return point
		}
		if part == "" {
			part = point
		}
	}
	return part
}
