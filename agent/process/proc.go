// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// procfs is where it is mounted.
type procfs string

// read returns the first bytes of a file of a process, as many as there is room for. An error that is fs.ErrNotExist
// says that the process is gone.
func (p procfs) read(pid int, name string, room []byte) ([]byte, error) {
	f, err := os.Open(filepath.Join(string(p), strconv.Itoa(pid), name))
	if err != nil {
		return nil, err
	}
	n, err := io.ReadFull(f, room)
	_ = f.Close() // was only read
	switch {
	// ESRCH is what an open file of /proc answers once its process is gone.
	case errors.Is(err, syscall.ESRCH):
		return nil, fs.ErrNotExist
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return room[:n], nil
	}
	return nil, err
}

// Start returns when a process began, in clock ticks after boot: it tells it from a later one of the same pid. An error that is
// fs.ErrNotExist says that the process is gone.
func Start(pid int) (uint64, error) { return procfs("/proc").start(pid) }

// start returns when a process began, in clock ticks after boot: it tells it from a later one of the same pid.
func (p procfs) start(pid int) (uint64, error) {
	var room [1024]byte
	stat, err := p.read(pid, "stat", room[:])
	if err != nil {
		return 0, err
	}
	start, ok := parseStart(stat)
	if !ok {
		return 0, errors.New("no start in stat")
	}
	return start, nil
}

// parseStart returns field 22 of /proc/PID/stat.
func parseStart(stat []byte) (uint64, bool) {
	// Field 2, the command, may itself hold spaces and brackets (proc(5)); field 3 follows its last bracket.
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, false
	}
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 20 {
		return 0, false
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return start, err == nil
}

// ParseUID reads the real uid of /proc/PID/status: proc_pid_status(5). The process's name, ahead of it, has its newlines escaped.
func ParseUID(status []byte) (uint32, bool) {
	_, b, ok := bytes.Cut(status, []byte("\nUid:\t"))
	b, _, ended := bytes.Cut(b, []byte{'\t'})
	uid, err := strconv.ParseUint(string(b), 10, 32)
	return uint32(uid), ok && ended && err == nil
}

// names returns the process's two names, "" for what it has not.
func (p procfs) names(pid int) (comm, name string) {
	var room [255]byte
	// Up to 15 bytes, a newline among them if the process likes, and one newline.
	if b, err := p.read(pid, "comm", room[:16]); err == nil {
		comm = string(bytes.TrimSuffix(b, []byte("\n")))
		comm = comm[:min(len(comm), 15)]
	}
	if b, err := p.read(pid, "cmdline", room[:]); err == nil {
		b, _, _ = bytes.Cut(b, []byte{0})
		name = string(b)
	}
	return comm, name
}

// within tells whether a process is in a cgroup of version 2 whose path ends so, such as "/uid_10123/pid_4242".
func (p procfs) within(pid int, end string) bool {
	room := make([]byte, 4096)
	b, err := p.read(pid, "cgroup", room)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return strings.HasSuffix(path, end)
		}
	}
	return false
}

// life is a process from its start to its end, however often its pid is used.
type life struct {
	Process
	start uint64        // 0: nobody has looked yet
	read  time.Time     // when somebody looked last
	every time.Duration // how long that holds
	gone  bool
}

// A child of zygote gets its name some milliseconds after its fork, and may get another one when the app is bound to
// it: names are read again the sooner the younger the process is.
const (
	soonest = 10 * time.Millisecond
	seldom  = time.Second
)

// due tells whether it is time to look again, and begins the next wait if it is.
func (l *life) due(now time.Time) bool {
	if l.gone || !l.read.IsZero() && now.Sub(l.read) < l.every {
		return false
	}
	l.read, l.every = now, min(max(2*l.every, soonest), seldom)
	return true
}

// look reads the names of a process, if it is still the same one.
func (p procfs) look(l *life) {
	before, err := p.start(l.PID)
	comm, name := p.names(l.PID)
	after, err2 := p.start(l.PID)
	if err = errors.Join(err, err2); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return // no descriptors, say: what is known holds
	}
	if err != nil || before != after || l.start != 0 && l.start != before {
		l.gone = l.start != 0
		return
	}
	l.start = before
	if comm != "" {
		l.Comm = comm
	}
	if name != "" { // a process that ends loses it before it is gone
		l.Name = name
	}
}
