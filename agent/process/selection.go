// SPDX-License-Identifier: Apache-2.0

package process

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"droidtap/agent/plugin"
)

// Selection is which processes are wanted. One that is of either list is.
type Selection struct {
	PIDs  []int
	Comms []string // names, or patterns
}

// ParseSelection checks the values of --pid and --comm; its errors are usage errors of one line.
func ParseSelection(pids, comms []string) (s Selection, err error) {
	if s.PIDs, err = parsePIDs(pids); err != nil {
		return Selection{}, err
	}
	s.Comms, err = parseComms(comms)
	return s, err
}

func parsePIDs(list []string) ([]int, error) {
	const most = 1 << 22 // PID_MAX_LIMIT of include/linux/threads.h
	var pids []int
	for _, s := range list {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || n < 1 || n > most {
			return nil, plugin.Usagef("--pid %q: a process id is a number from 1 to %d", s, most)
		}
		if !slices.Contains(pids, n) {
			pids = append(pids, n)
		}
	}
	return pids, nil
}

func parseComms(list []string) ([]string, error) {
	var comms []string
	for _, s := range list {
		s = strings.TrimSpace(s)
		if s == "" {
			return nil, plugin.Usagef("--comm %q: a process has a name", s)
		}
		if _, err := path.Match(s, ""); err != nil {
			return nil, plugin.Usagef("--comm %q: a pattern may have *, ? and [a-z], and \\ before those that are meant", s)
		}
		comms = append(comms, s)
	}
	return comms, nil
}

// All tells whether nothing was selected.
func (s Selection) All() bool { return len(s.PIDs)+len(s.Comms) == 0 }

// Has tells whether a process is one of those that are selected.
func (s Selection) Has(p Process) bool {
	return slices.Contains(s.PIDs, p.PID) || slices.ContainsFunc(s.Comms, func(comm string) bool {
		return matches(comm, p.Comm) || p.Name != "" && matches(comm, p.Name)
	})
}

// matches is path.Match for names in which a slash is a letter like any other.
func matches(pattern, name string) bool {
	if pattern == name {
		return true
	}
	const slash = "\x00"                                                                                  // no name has it
	match, _ := path.Match(strings.ReplaceAll(pattern, "/", slash), strings.ReplaceAll(name, "/", slash)) // checked by parseComms
	return match
}

// Named returns a process as it is now, without names if it is gone.
func Named(pid int) Process {
	comm, name := procfs("/proc").names(pid)
	return Process{PID: pid, Comm: comm, Name: name}
}
