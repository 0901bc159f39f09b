// SPDX-License-Identifier: Apache-2.0

// Package mapped finds the files that processes map to execute them: programs and libraries.
package mapped

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/perf"
)

const (
	// ringSize is the bytes of a processor's ring: more than 50 starts of programs, at 1 kB each.
	ringSize = 64 << 10
	// often is how long after a scan the next one begins where the kernel does not tell of mappings.
	often = time.Second
	// share is the part of the time that scans may take, with the kernel's help or without: one in so many.
	share = 10
)

// events tell of mappings: perf.Events, or nothing at all.
type events interface {
	Next(buf []byte, deadline time.Time) (perf.Record, []byte, error)
	Close() error
}

// Watcher finds files as they are mapped.
type Watcher struct {
	*scanner
	events events // nil: the kernel does not tell
	silent *silence
	every  time.Duration // between scans; 0: only where something may be missing
	ready  chan struct{}
	done   sync.WaitGroup

	todo   []int // processes that the scan has yet to visit
	again  bool  // it is time for a scan when that may be
	next   time.Time
	spent  time.Duration // by the scan
	failed bool          // what is wrong with the list of processes was said
}

// Watch finds what processes have mapped and what they map from now on, on a goroutine of its own, until Close. The kernel tells of each
// mapping at once, and nothing runs while there is none; where it does not, the processes are looked at each second, which is logged.
//
// The kernel's part is a perf event on each processor: CAP_PERFMON, or CAP_SYS_ADMIN up to 5.7.
func Watch(c Config) *Watcher {
	w := newWatcher(c)
	if e, err := openEvents(c); err == nil {
		w.events = e
	} else {
		w.look(err)
	}
	w.done.Go(w.run)
	return w
}

func newWatcher(c Config) *Watcher {
	return &Watcher{scanner: newScanner(c), silent: &silence{end: make(chan struct{})}, ready: make(chan struct{}), again: true}
}

// look has the processes looked at each second.
func (w *Watcher) look(because error) {
	w.Log.Warn("libraries that processes map later are found up to a second late", "because", because)
	w.every, w.again = often, true
}

// openEvents opens the events of executable mappings, and those of names: a child of zygote gets a name when it has its uid, and maps
// nothing that zygote has mapped already.
func openEvents(c Config) (*perf.Events, error) {
	attr := unix.PerfEventAttr{
		Type:   unix.PERF_TYPE_SOFTWARE,
		Config: unix.PERF_COUNT_SW_DUMMY,
		Bits:   unix.PerfBitMmap | unix.PerfBitMmap2 | unix.PerfBitWatermark,
		Wakeup: 1, // byte
	}
	if c.Allow != nil {
		attr.Bits |= unix.PerfBitComm
	}
	e, err := perf.OpenAll(attr, ringSize, c.Log)
	if err != nil {
		return nil, fmt.Errorf("watch what processes map: %w", err)
	}
	return e, nil
}

// Ready is closed when all processes were looked at that ran when the watch began.
func (w *Watcher) Ready() <-chan struct{} { return w.ready }

// Close ends the watch; Found is not called any more when it has returned. It is not for Found to call.
func (w *Watcher) Close() error {
	err := w.silent.Close()
	if w.events != nil {
		err = w.events.Close()
	}
	w.done.Wait()
	return err
}

// run is what the goroutine does. Mappings come first, and a scan between them: it may take a second on a phone.
func (w *Watcher) run() {
	buf := make([]byte, 0, longest)
	events := w.events
	if events == nil {
		events = w.silent
	}
	for n := 0; ; {
		var deadline time.Time
		switch {
		case len(w.todo) > 0:
			deadline = time.Unix(1, 0) // long over: what there is
		case w.again:
			deadline = w.next
			if deadline.IsZero() {
				deadline = time.Unix(1, 0)
			}
		}
		rec, body, err := events.Next(buf, deadline)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			w.step()
		case errors.Is(err, perf.ErrFresh):
			w.again = true
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			w.look(fmt.Errorf("watch what processes map: %w", err))
			events = w.silent
		default:
			w.handle(rec, body)
			// Processes that map without an end do not keep the scan from its own.
			if n++; n%64 == 0 && len(w.todo) > 0 {
				w.step()
			}
		}
	}
}

// handle takes a record.
func (w *Watcher) handle(rec perf.Record, body []byte) {
	switch rec.Type {
	case unix.PERF_RECORD_LOST:
		w.again = true
	case unix.PERF_RECORD_MMAP2:
		m, ok := parseMmap2(body)
		l := line{Mapping: m, executable: true}
		k := mark{node: m.node(), offset: m.Offset}
		if !ok || !l.worth() || w.seen.known(k, &m) || !w.allowed(m.PID) {
			return
		}
		// All of the process is looked at, for where the ELF begins, and what it has mapped with this one comes with it.
		if w.process(m.PID, &m) {
			w.seen.put(k, &m) // on overlayfs the kernel may call it differently here and there
		}
	case unix.PERF_RECORD_COMM:
		if pid, ok := parseComm(body); ok {
			w.visit(pid)
		}
	}
}

// step does a part of a scan, or begins one.
func (w *Watcher) step() {
	begin := time.Now()
	if n := len(w.todo); n > 0 {
		w.visit(w.todo[n-1])
		w.todo = w.todo[:n-1]
	} else {
		w.begin()
	}
	w.spent += time.Since(begin)
	if len(w.todo) > 0 {
		return
	}
	select {
	case <-w.ready:
	default:
		close(w.ready)
	}
	w.next = time.Now().Add(max(w.every, (share-1)*w.spent))
	w.again = w.again || w.every > 0
}

func (w *Watcher) begin() {
	w.again, w.spent = false, 0
	pids, err := w.list()
	if err != nil && !w.failed {
		w.failed = true
		w.Log.Warn("running processes are not looked at", "because", err)
	}
	w.todo = pids
}

// silence are the events of a kernel that tells nothing.
type silence struct {
	once sync.Once
	end  chan struct{}
}

func (s *silence) Next(_ []byte, deadline time.Time) (perf.Record, []byte, error) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case <-s.end:
		return perf.Record{}, nil, os.ErrClosed
	case <-timer.C:
		select { // a scan does not outrun Close
		case <-s.end:
			return perf.Record{}, nil, os.ErrClosed
		default:
		}
		return perf.Record{}, nil, os.ErrDeadlineExceeded
	}
}

func (s *silence) Close() error {
	s.once.Do(func() { close(s.end) })
	return nil
}
