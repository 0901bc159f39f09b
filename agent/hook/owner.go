// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// owner is what the name of a filter of ours (TCA_BPF_NAME) tells. The kernel keeps it, so it holds for processes that
// were killed and is gone when netd removes the clsact under us, which no memory of our own would notice.
type owner struct {
	ns    uint64 // inode of the pid namespace: in another one pid means another process
	pid   int
	start uint64 // field 22 of /proc/PID/stat: clock ticks after boot; tells a re-used pid from the process that made the filter
	made  bool   // the clsact was created by a process of ours
}

const (
	namePrefix = "droidtap:"
	nameMade   = ":clsact"
)

// String returns the filter name, such as "droidtap:4026531836:1234:567890:clsact".
func (o owner) String() string {
	name := fmt.Sprintf("%s%d:%d:%d", namePrefix, o.ns, o.pid, o.start)
	if o.made {
		name += nameMade
	}
	return name
}

// parseOwner reads a filter name; false says that the filter is not ours.
func parseOwner(name string) (owner, bool) {
	var o owner
	rest, ok := strings.CutPrefix(name, namePrefix)
	if !ok {
		return owner{}, false
	}
	rest, o.made = strings.CutSuffix(rest, nameMade)
	ns, rest, _ := strings.Cut(rest, ":")
	pid, start, _ := strings.Cut(rest, ":")
	n, err := strconv.ParseUint(ns, 10, 64)
	p, err1 := strconv.ParseUint(pid, 10, 31)
	s, err2 := strconv.ParseUint(start, 10, 64)
	o.ns, o.pid, o.start = n, int(p), s
	// What does not print as it was read, such as 007, was not written by us.
	if errors.Join(err, err1, err2) != nil || o.String() != name {
		return owner{}, false
	}
	return o, true
}

// errNoProcess says that there is no process of that pid, or only its remains.
var errNoProcess = errors.New("no such process")

// startTime returns the start of a process in clock ticks after boot. proc is os.DirFS("/proc").
func startTime(proc fs.FS, pid int) (uint64, error) {
	stat, err := fs.ReadFile(proc, fmt.Sprintf("%d/stat", pid))
	// ESRCH is what an open file of /proc answers once its process is gone.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return 0, errNoProcess
	}
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	// Field 2, the command, may itself hold spaces and brackets (proc(5)); field 3 follows its last bracket.
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < 20 {
		return 0, fmt.Errorf("parse start time of process %d: %d fields", pid, len(fields))
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, errNoProcess
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse start time of process %d: %w", pid, err)
	}
	return start, nil
}

// dead says whether the process is certainly gone; where /proc will not tell, it is taken to live, as are those of
// another pid namespace than ours.
func (o owner) dead(proc fs.FS, ours uint64) bool {
	return o.ns == ours && dead(proc, o.pid, func(start uint64) bool { return start == o.start })
}

// dead is owner's for a process of our own pid namespace, which is known by its start.
func dead(proc fs.FS, pid int, known func(start uint64) bool) bool {
	start, err := startTime(proc, pid)
	return errors.Is(err, errNoProcess) || err == nil && !known(start)
}

// self returns this process as an owner.
func self() (owner, error) {
	pid := os.Getpid()
	start, err := startTime(os.DirFS("/proc"), pid)
	return owner{ns: pidNamespace(), pid: pid, start: start}, err
}

// pidNamespace returns the inode of this process's pid namespace, 0 on a kernel without (CONFIG_PID_NS).
func pidNamespace() uint64 {
	var st syscall.Stat_t
	if syscall.Stat("/proc/self/ns/pid", &st) != nil {
		return 0
	}
	return st.Ino
}
