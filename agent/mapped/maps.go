// SPDX-License-Identifier: Apache-2.0

package mapped

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
)

// Mapping is a part of a file that a process has mapped to execute it, as a line of /proc/PID/maps or a PERF_RECORD_MMAP2 has it.
type Mapping struct {
	PID          int    // of the process, not the thread
	Start, End   uint64 // addresses
	Offset       uint64 // of Start in the file, in bytes
	Base         uint64 // where in the file the ELF begins that it is of, in bytes: not 0 for a library inside an APK
	Major, Minor uint32 // the device; of btrfs and overlayfs it is not what stat(2) says
	Inode        uint64
	Generation   uint64 // of the inode; 0: not known
	Name         string // the path in the mount namespace of the process, or what was its path if Deleted
	Deleted      bool
}

// node is a file.
type node struct {
	major, minor uint32
	inode        uint64
}

func (m *Mapping) node() node { return node{m.Major, m.Minor, m.Inode} }

// line is one of /proc/PID/maps.
type line struct {
	Mapping
	executable bool
}

// longest is the bytes of a line that are looked at: a path may have PATH_MAX, each of which may be escaped.
const longest = 128 + 4*4096

// parseLine reads a line of /proc/PID/maps without its end (fs/proc/task_mmu.c show_map_vma), and returns false for what is none. The PID
// is left to the caller. It keeps nothing of b.
func parseLine(b []byte) (l line, ok bool) {
	var fields [5][]byte // addresses, permissions, offset, device, inode
	for i := range fields {
		fields[i], b, _ = bytes.Cut(b, []byte{' '})
	}
	start, end, ok1 := pair(fields[0], '-', 64)
	major, minor, ok2 := pair(fields[3], ':', 32)
	offset, ok3 := number(fields[2], 16, 64)
	inode, ok4 := number(fields[4], 10, 64)
	if !ok1 || !ok2 || !ok3 || !ok4 || len(fields[1]) != 4 || start >= end || end-start > math.MaxUint64-offset {
		return line{}, false
	}
	l.Start, l.End, l.Offset = start, end, offset
	l.Major, l.Minor, l.Inode = uint32(major), uint32(minor), inode
	l.executable = fields[1][2] == 'x'
	if l.executable { // nobody asks for the names of others
		l.Name, l.Deleted = name(bytes.TrimLeft(b, " "))
	}
	return l, true
}

// number reads digits alone: strconv takes a sign and, of base 0, more.
func number(b []byte, base, bits int) (uint64, bool) {
	n, err := strconv.ParseUint(string(b), base, bits)
	return n, err == nil
}

func pair(b []byte, separator byte, bits int) (first, second uint64, ok bool) {
	one, two, _ := bytes.Cut(b, []byte{separator})
	first, ok1 := number(one, 16, bits)
	second, ok2 := number(two, 16, bits)
	return first, second, ok1 && ok2
}

// gone is what the kernel has behind the name of a file that has none any more (fs/d_path.c). A file may be called so, too: who opens it
// by its name tries both.
const gone = " (deleted)"

// name reads one, in which a newline is \012 and nothing else is escaped (seq_file_path).
func name(b []byte) (string, bool) {
	s := strings.ReplaceAll(string(b), `\012`, "\n")
	return strings.CutSuffix(s, gone)
}

// each calls f with each line until it returns false. Lines that are none are passed over, and so is what a name has behind the
// longest: directories may be deeper than PATH_MAX.
//
// lines has room for the longest.
func each(lines *bufio.Reader, f func(line) bool) error {
	for rest := false; ; {
		b, err := lines.ReadSlice('\n')
		if l, ok := parseLine(bytes.TrimSuffix(b, []byte{'\n'})); ok && !rest && !f(l) {
			return nil
		}
		rest = errors.Is(err, bufio.ErrBufferFull)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !rest:
			return err
		}
	}
}

// worth tells whether a file may be a library: it is one at all, and not code that a runtime has just compiled.
func (l *line) worth() bool {
	return l.executable && l.Inode != 0 && !strings.HasPrefix(l.Name, "/memfd:jit-") && !strings.HasPrefix(l.Name, "/dev/ashmem")
}
