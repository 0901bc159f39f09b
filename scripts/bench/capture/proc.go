// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// usage is what the threads of a process have had so far.
type usage struct {
	cpu     float64 // ns on a processor
	wakeups uint64  // times that a thread slept until something came: voluntary context switches
}

func (u usage) minus(before usage) usage {
	return usage{u.cpu - before.cpu, u.wakeups - before.wakeups}
}

// usageOf reads it from proc(5). Threads that have ended do not count.
func usageOf(proc fs.FS, pid int) (u usage, err error) {
	tasks, err := fs.ReadDir(proc, path.Join(strconv.Itoa(pid), "task"))
	if err != nil {
		return u, err
	}
	for _, t := range tasks {
		dir := path.Join(strconv.Itoa(pid), "task", t.Name())
		stat, err := fs.ReadFile(proc, path.Join(dir, "schedstat"))
		if err != nil {
			continue // it has just ended
		}
		var ns float64
		if _, err := fmt.Sscan(string(stat), &ns); err != nil {
			return u, fmt.Errorf("%s/schedstat: %w", dir, err)
		}
		switches, err := statusField(proc, dir, "voluntary_ctxt_switches")
		if err != nil {
			continue
		}
		u.cpu += ns
		u.wakeups += switches
	}
	return u, nil
}

// peakOf is the most memory that the process had resident, in KiB.
func peakOf(proc fs.FS, pid int) (uint64, error) {
	return statusField(proc, strconv.Itoa(pid), "VmHWM")
}

// statusField is a number in status of a process or a task.
func statusField(proc fs.FS, dir, name string) (uint64, error) {
	text, err := fs.ReadFile(proc, path.Join(dir, "status"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		if key != name {
			continue
		}
		fields := strings.Fields(value)
		if len(fields) == 0 {
			break
		}
		return strconv.ParseUint(fields[0], 10, 64)
	}
	return 0, fmt.Errorf("%s/status has no %s", dir, name)
}

// pidOf is that of the kernel's thread of a name.
func pidOf(proc fs.FS, name string) (int, error) {
	all, err := fs.Glob(proc, "[0-9]*/comm")
	if err != nil {
		return 0, err
	}
	for _, comm := range all {
		if text, err := fs.ReadFile(proc, comm); err == nil && strings.TrimSpace(string(text)) == name {
			return strconv.Atoi(path.Dir(comm))
		}
	}
	return 0, fmt.Errorf("no thread %s", name)
}

// programIDs are those of the bpf programs that the descriptors of a process are of, or whose links they are.
func programIDs(proc fs.FS, pid int) (ids []uint32, err error) {
	dir := path.Join(strconv.Itoa(pid), "fdinfo")
	all, err := fs.ReadDir(proc, dir)
	if err != nil {
		return nil, err
	}
	for _, fd := range all {
		text, err := fs.ReadFile(proc, path.Join(dir, fd.Name()))
		if err != nil {
			continue // it has just been closed
		}
		for line := range strings.Lines(string(text)) {
			value, found := strings.CutPrefix(line, "prog_id:")
			if !found {
				continue
			}
			id, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			if err != nil {
				return nil, fmt.Errorf("%s/%s: %w", dir, fd.Name(), err)
			}
			if !slices.Contains(ids, uint32(id)) {
				ids = append(ids, uint32(id))
			}
		}
	}
	return ids, nil
}

// passed sums the packets that interfaces named prefix and a number have received and sent, from /proc/net/dev.
func passed(dev, prefix string) (n uint64, err error) {
	for line := range strings.Lines(dev) {
		name, rest, found := strings.Cut(strings.TrimSpace(line), ":")
		number, ours := strings.CutPrefix(name, prefix)
		if _, err := strconv.Atoi(number); !found || !ours || err != nil {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) < 10 {
			return 0, fmt.Errorf("/proc/net/dev: %q", line)
		}
		for _, packets := range []int{1, 9} {
			p, err := strconv.ParseUint(fields[packets], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/net/dev: %w", err)
			}
			n += p
		}
	}
	return n, nil
}
