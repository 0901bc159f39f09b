// SPDX-License-Identifier: Apache-2.0

package mapped

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"droidtap/agent/process"
)

// Config is what to look for.
type Config struct {
	// Proc is where procfs is mounted; "" is /proc.
	Proc string
	// Allow tells whether a process counts, by the real uid of it; nil: all do. It may be asked again at any time: a child of zygote gets its uid
	// after its fork.
	Allow func(pid int, uid uint32) bool
	// Found is called for each ELF in a file that a process has mapped to execute it, one at a time: once, or again when so many
	// others came in between that it was forgotten. The file is the very one, open to be read, and is Found's to close.
	Found func(Mapping, *os.File)
	Log   *slog.Logger
}

// scanner looks into processes.
type scanner struct {
	Config
	seen   *seen
	states map[int]state
	lines  *bufio.Reader
}

// state is what of a process tells that it may have mapped something since.
type state struct{ start, size uint64 }

// remembered holds the libraries of a phone several times; in memory it is less than 1 MB.
const remembered = 4096

func newScanner(c Config) *scanner {
	if c.Proc == "" {
		c.Proc = "/proc"
	}
	return &scanner{Config: c, seen: newSeen(remembered), states: map[int]state{}, lines: bufio.NewReaderSize(nil, longest)}
}

// Running finds what the processes have mapped that run now. The error is that of listing them.
func Running(c Config) error {
	s := newScanner(c)
	pids, err := s.list()
	for _, pid := range pids {
		s.visit(pid)
	}
	return err
}

// Executes returns which of some inodes, on whatever device, a process has mapped to execute them. It looks at all processes.
func Executes(inodes map[uint64]bool) map[uint64]bool {
	s, found := newScanner(Config{}), map[uint64]bool{}
	pids, _ := s.list()
	for _, pid := range pids {
		f, err := os.Open(filepath.Join(s.Proc, strconv.Itoa(pid), "maps"))
		if err != nil {
			continue // it is gone
		}
		s.lines.Reset(f)
		_ = each(s.lines, func(l line) bool {
			if l.executable && inodes[l.Inode] {
				found[l.Inode] = true
			}
			return len(found) < len(inodes)
		})
		_ = f.Close() // was only read
	}
	return found
}

// list returns the processes that there are, and forgets others.
func (s *scanner) list() ([]int, error) {
	dir, err := os.Open(s.Proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close() // was only read
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	states := make(map[int]state, len(names))
	for _, name := range names {
		if pid, err := strconv.ParseUint(name, 10, 31); err == nil {
			pids = append(pids, int(pid))
			if st, ok := s.states[int(pid)]; ok {
				states[int(pid)] = st
			}
		}
	}
	s.states = states
	return pids, nil
}

// visit looks into a process that counts, if its size is another than when it was visited last.
func (s *scanner) visit(pid int) {
	if !s.allowed(pid) {
		return
	}
	var room [1024]byte
	is, ok := parseStat(s.read(pid, "stat", room[:]))
	if !ok || s.states[pid] == is {
		return
	}
	s.states[pid] = is // what it maps from now on changes it again
	s.process(pid, nil)
}

func (s *scanner) allowed(pid int) bool {
	if s.Allow == nil {
		return true
	}
	var room [2048]byte
	uid, ok := process.ParseUID(s.read(pid, "status", room[:]))
	return ok && s.Allow(pid, uid)
}

// read returns the first bytes of a file of a process, none if it is gone.
func (s *scanner) read(pid int, file string, room []byte) []byte {
	f, err := os.Open(filepath.Join(s.Proc, strconv.Itoa(pid), file))
	if err != nil {
		return nil
	}
	n, _ := io.ReadFull(f, room)
	_ = f.Close() // was only read
	return room[:n]
}

// parseStat reads fields 22 and 23 of /proc/PID/stat: proc_pid_stat(5).
func parseStat(b []byte) (state, bool) {
	// Field 2, the command, may itself hold spaces and brackets; field 3 follows its last bracket.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 21 {
		return state{}, false
	}
	start, ok := number(fields[19], 10, 64)
	size, ok2 := number(fields[20], 10, 64)
	return state{start, size}, ok && ok2
}

// process looks at all that a process has mapped. It tells whether a mapping is still there that the kernel told of.
func (s *scanner) process(pid int, told *Mapping) (there bool) {
	f, err := os.Open(filepath.Join(s.Proc, strconv.Itoa(pid), "maps"))
	if err != nil {
		s.complain("list what a process has mapped", pid, err)
		return false
	}
	defer f.Close() // was only read
	var around parts
	s.lines.Reset(f)
	err = each(s.lines, func(l line) bool {
		l.PID = pid
		around.add(&l)
		is := told != nil && l.Start <= told.Start && told.Start < l.End
		if is && l.node() == told.node() {
			l.Generation = told.Generation
		}
		if done := !l.worth() || s.meet(l.Mapping, around.offsets); is {
			there = done
		}
		return true
	})
	if err != nil {
		s.complain("list what a process has mapped", pid, err)
	}
	return there
}

func (s *scanner) complain(what string, pid int, err error) {
	if !vanished(err) {
		s.Log.Debug(what, "pid", pid, "error", err)
	}
}

// vanished tells whether an error says that a process is gone: ESRCH is what an open file of /proc answers then.
func vanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// parts are the offsets at which a file is mapped that lies at consecutive addresses, but for what belongs to no file.
type parts struct {
	node    node
	offsets []uint64
}

// enough parts has no library: four are usual, and more where some were protected in pieces.
const enough = 64

func (p *parts) add(l *line) {
	switch {
	case l.Inode == 0:
		return
	case l.node() != p.node:
		p.node, p.offsets = l.node(), p.offsets[:0]
	case len(p.offsets) == enough:
		p.offsets = slices.Delete(p.offsets, 0, enough/2)
	}
	p.offsets = append(p.offsets, l.Offset)
}

// base returns where in a file the ELF begins of which something at an offset is: where it begins is mapped, too, and the dynamic linkers
// map it first.
func base(f *os.File, offsets []uint64, offset uint64) (uint64, bool) {
	sorted := slices.Sorted(slices.Values(offsets))
	for _, at := range slices.Backward(slices.Compact(sorted)) {
		if at <= offset && isELF(f, at) {
			return at, true
		}
	}
	return 0, isELF(f, 0)
}

// meet tells of the ELF that an executable mapping is of, if it is new. It returns false if the process, or the mapping, is gone.
func (s *scanner) meet(m Mapping, offsets []uint64) bool {
	executable := mark{node: m.node(), offset: m.Offset}
	if s.seen.known(executable, &m) {
		return true
	}
	f, err := Open(s.Proc, &m)
	if err != nil {
		s.complain("open what a process has mapped", m.PID, err)
		if !vanished(err) { // it will not be better for the next one
			s.seen.put(executable, &m)
		}
		return !vanished(err)
	}
	s.seen.put(executable, &m)
	at, ok := base(f, offsets, m.Offset)
	elf := mark{node: m.node(), offset: at, elf: true}
	if !ok || s.seen.known(elf, &m) {
		_ = f.Close() // was only read
		return true
	}
	s.seen.put(elf, &m)
	m.Base = at
	s.Found(m, f)
	return true
}
