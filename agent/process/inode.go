// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/boottime"
)

// sockets is who has which socket open, by inode, as the last looks into /proc/PID/fd found it.
type sockets struct {
	closed atomic.Bool
	wait   time.Duration             // how long somebody who asks waits for a look
	mu     sync.Mutex                // of what follows
	index  map[uint32][]*life        // as the last look at all processes found it, and later ones at young ones
	next   map[uint32][]*life        // what the running look at all processes has found so far; nil if there is none
	kept   *cache[uint32, []*life]   // what was asked for
	missed *cache[uint32, time.Time] // what was asked for and nobody has, since when
	procs  map[int]*holder
	scan   *scan     // the running look, nil if there is none
	full   time.Time // no look at all processes begins before
	quick  time.Time // none at all begins before
}

// holder is a process as the looks know it.
type holder struct {
	life  *life
	first time.Time // when it was first seen
	holds bool      // it has had a socket open
	asked time.Time // when one of its sockets was asked for last
}

// scan is a look into the descriptors of processes.
type scan struct {
	all  bool // of all processes, not only of young and busy ones
	done chan struct{}
}

const (
	// waiting is less than what a packet may wait.
	waiting = 20 * time.Millisecond
	// youth is how long a process is looked at each time: one that lives for milliseconds only has its sockets by then.
	youth = time.Second
	// busy is how long after one of its sockets was asked for a process is looked at each time, too: it opens more.
	busy = 10 * time.Second
	// breath is how long after a look at young and busy processes the next one may begin, at the soonest.
	breath = 10 * time.Millisecond
	// share is how many times as long as a look took none may begin behind it: one at all processes costs a large phone some
	// tenths of a second of one processor.
	share = 4
	// doubt is how long a socket that nobody has is not looked for again: one that is on its way to another process.
	doubt = time.Second
)

func newSockets() sockets {
	return sockets{
		wait:  waiting,
		index: make(map[uint32][]*life), procs: make(map[int]*holder),
		kept: newCache[uint32, []*life](remembered), missed: newCache[uint32, time.Time](remembered),
	}
}

// OfInode returns the processes that have a socket open, by its inode, the lowest pid first. Who has it may have changed
// since it was found; a process that is gone is still told.
//
// An inode that is not known yet is looked for in the descriptors of all processes, which goes on in the background where it
// takes longer than 20 ms, the longest that a caller waits: then it is nil, or not all of them, and to be asked for again. It
// is nil at once where the last look was just now (100 ms, for young and busy processes 10 ms), and for a second where nobody was found.
func (t *Table) OfInode(inode uint32) []Process {
	s := &t.sockets
	if inode == 0 { // that of a socket that nobody has open
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var mine *scan // the last look that was begun since
	var timeout <-chan time.Time
	for {
		if found := t.holders(inode); found != nil {
			return found
		}
		if since, ok := s.missed.get(inode); ok && t.now().Sub(since) < doubt {
			return nil
		}
		running := s.scan
		if running == nil {
			if mine != nil && mine.all {
				s.missed.put(inode, t.now())
				return nil
			}
			if running = t.begin(); running == nil {
				return nil
			}
			mine = running
		}
		if timeout == nil {
			timeout = time.After(s.wait)
		}
		s.mu.Unlock()
		over := false
		select {
		case <-running.done:
		case <-timeout:
			over = true
		}
		s.mu.Lock()
		if over {
			return t.holders(inode)
		}
	}
}

// holders returns who is known to have a socket. The caller holds the lock.
func (t *Table) holders(inode uint32) []Process {
	s := &t.sockets
	lives, ok := s.kept.get(inode)
	if !ok {
		if lives = s.next[inode]; lives == nil {
			lives = s.index[inode]
		}
		if lives == nil {
			return nil
		}
		s.kept.put(inode, lives)
	}
	found := make([]Process, len(lives))
	for i, l := range lives {
		if h := s.procs[l.PID]; h != nil && h.life == l {
			h.asked = t.now()
		}
		if l.due(t.now()) {
			t.proc.look(l)
		}
		found[i] = l.Process
	}
	return found
}

// begin begins a look, if it is time for one. The caller holds the lock.
func (t *Table) begin() *scan {
	s, now := &t.sockets, t.now()
	if now.Before(s.quick) {
		return nil
	}
	run := &scan{all: !now.Before(s.full), done: make(chan struct{})}
	s.scan = run
	t.ends.Go(func() { t.look(run, now) })
	return run
}

// look is one scan.
func (t *Table) look(run *scan, begun time.Time) {
	s := &t.sockets
	s.mu.Lock()
	if run.all {
		s.next = make(map[uint32][]*life, len(s.index))
	}
	s.mu.Unlock()
	pids, err := t.proc.pids()
	if err != nil {
		t.log.Debug("look for the processes of sockets", "error", err)
	}
	inodes := make([]uint32, 0, 64)
	for _, pid := range s.order(pids, run.all, begun) {
		if s.closed.Load() {
			break
		}
		inodes = t.proc.sockets(pid, inodes[:0])
		t.found(pid, inodes, run.all, begun)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := t.now()
	s.scan, s.quick = nil, now.Add(max(breath, share*now.Sub(begun)))
	if run.all {
		s.quick = now.Add(breath)
		s.full = now.Add(max(patience, share*now.Sub(begun)))
		s.replace()
	}
	close(run.done)
}

// order forgets the processes that are gone, and returns those to look at: those that came last first, since they may be
// gone soon, or are busy, then those that have had sockets.
func (s *sockets) order(pids []int, all bool, now time.Time) []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	procs := make(map[int]*holder, len(pids))
	for _, pid := range pids {
		h := s.procs[pid]
		if h == nil {
			h = &holder{life: &life{Process: Process{PID: pid}}, first: now}
			if len(s.procs) == 0 { // the first look: most are old, and found tells the others
				h.first = now.Add(-youth)
			}
		}
		procs[pid] = h
	}
	s.procs = procs
	var ranks [3][]int
	for _, pid := range slices.Backward(pids) { // /proc lists them upwards
		switch h := procs[pid]; {
		case now.Sub(h.first) < youth, now.Sub(h.asked) < busy:
			ranks[0] = append(ranks[0], pid)
		case !all:
		case h.holds:
			ranks[1] = append(ranks[1], pid)
		default:
			ranks[2] = append(ranks[2], pid)
		}
	}
	return slices.Concat(ranks[:]...)
}

// found takes note of the sockets that a process has open.
func (t *Table) found(pid int, inodes []uint32, all bool, begun time.Time) {
	if len(inodes) == 0 {
		return
	}
	start, err := t.proc.start(pid)
	if err != nil {
		return // gone: who asks next may find who has them now
	}
	s := &t.sockets
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.procs[pid]
	if h.life.start != 0 && h.life.start != start {
		h.life = &life{Process: Process{PID: pid}} // a later process of that pid
	}
	h.holds, h.life.start = true, start
	// The names of what lives on are read when they are asked for.
	if young(start) && h.life.due(t.now()) {
		h.first = begun
		t.proc.look(h.life)
	}
	into := s.index
	if all {
		into = s.next
	}
	for _, inode := range inodes {
		if !all {
			s.kept.remove(inode) // it has one more
		}
		at, known := slices.BinarySearchFunc(into[inode], pid, func(l *life, pid int) int { return cmp.Compare(l.PID, pid) })
		if !known {
			// A new slice: kept has the old one.
			into[inode] = slices.Insert(slices.Clone(into[inode]), at, h.life)
		}
	}
}

// young tells whether a process began within the last second, by its start in clock ticks after boot.
func young(start uint64) bool {
	const ticks = 100 // USER_HZ of include/asm-generic/param.h, on all architectures of phones
	return uint64(boottime.Now())*ticks/uint64(time.Second) < start+ticks*uint64(youth/time.Second)
}

// replace makes what a look at all processes has found the index. What was asked for and somebody else has now is
// forgotten; what nobody has any more stays known.
func (s *sockets) replace() {
	s.index, s.next = s.next, nil
	s.kept.each(func(inode uint32, lives []*life) {
		if now := s.index[inode]; now != nil && !slices.Equal(now, lives) {
			s.kept.remove(inode)
		}
	})
}

// pids returns those of all processes.
func (p procfs) pids() ([]int, error) {
	f, err := os.Open(string(p))
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	_ = f.Close() // was only read
	var pids []int
	for _, name := range names {
		if pid, ok := number(name, ""); ok {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// sockets appends the inodes of the sockets that a process has open, some more than once.
func (p procfs) sockets(pid int, inodes []uint32) []uint32 {
	f, err := os.Open(filepath.Join(string(p), strconv.Itoa(pid), "fd"))
	if err != nil {
		return inodes
	}
	defer f.Close()                // was only read
	names, _ := f.Readdirnames(-1) // the process may end meanwhile
	var room [64]byte
	for _, name := range names {
		n, err := unix.Readlinkat(int(f.Fd()), name, room[:])
		if err != nil {
			continue
		}
		digits, ok := bytes.CutPrefix(room[:n], []byte("socket:["))
		digits, closed := bytes.CutSuffix(digits, []byte("]"))
		if inode, err := strconv.ParseUint(string(digits), 10, 32); err == nil && ok && closed {
			inodes = append(inodes, uint32(inode))
		}
	}
	return inodes
}
