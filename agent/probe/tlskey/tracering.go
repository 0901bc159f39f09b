// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"droidtap/agent/perf"
	"droidtap/agent/plugin"
)

// traceRing is a plugin.Ring of events of tracefs: on each processor a perf event of each of them, which are led to one ring.
type traceRing struct {
	record  func(e *traced, pid, tid uint32, at uint64, raw []byte) ([]byte, error)
	rings   *perf.Events
	flushed atomic.Bool
	sample  []byte // that was read last
	lost    atomic.Uint64

	mu     sync.Mutex // of what follows
	closed bool
	events []*traced
	known  map[uint16]*traced // by their ids, those that are removed, too: the rings may hold records of them
	cpus   map[int]*traceCPU
}

// traceCPU is what is led to the ring of a processor.
type traceCPU struct {
	ring int             // its event
	fds  map[*traced]int // the others
}

// traceSize is how many bytes of records may wait on a processor: those of 25 handshakes.
const traceSize = 1 << 15

func openTraceRing(record func(*traced, uint32, uint32, uint64, []byte) ([]byte, error), log *slog.Logger) (*traceRing, error) {
	r := &traceRing{record: record, known: map[uint16]*traced{}, cpus: map[int]*traceCPU{}}
	var err error
	if r.rings, err = perf.OpenAll(attr(unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_DUMMY), max(traceSize, os.Getpagesize()), log); err != nil {
		return nil, fmt.Errorf("open the rings of uprobes: %w", err)
	}
	if err := r.rings.Lead(r.equip); err != nil {
		return nil, errors.Join(err, r.rings.Close())
	}
	return r, nil
}

// attr is of an event with records in the order of their places in enum perf_event_sample_format of perf_event.h: pid and tid, time,
// and what the event itself says. CLOCK_BOOTTIME is not for events that an NMI may interrupt (perf_event_set_clock).
func attr(kind uint32, config uint64) unix.PerfEventAttr {
	return unix.PerfEventAttr{
		Type: kind, Config: config, Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
		Sample: 1, Sample_type: unix.PERF_SAMPLE_TID | unix.PERF_SAMPLE_TIME | unix.PERF_SAMPLE_RAW,
		Bits: unix.PerfBitUseClockID, Clockid: unix.CLOCK_MONOTONIC, Wakeup: 1,
	}
}

// equip leads all events of a processor to a new ring.
func (r *traceRing) equip(cpu, ring int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return os.ErrClosed
	}
	c := &traceCPU{ring: ring, fds: map[*traced]int{}}
	for _, e := range r.events {
		if err := c.add(cpu, e); err != nil {
			return errors.Join(err, c.Close())
		}
	}
	old := r.cpus[cpu]
	r.cpus[cpu] = c
	if old != nil {
		return old.Close() // those of a processor that was offline are dead
	}
	return nil
}

// add leads an event to the ring.
func (c *traceCPU) add(cpu int, e *traced) error {
	a := attr(unix.PERF_TYPE_TRACEPOINT, uint64(e.id))
	fd, err := unix.PerfEventOpen(&a, -1, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open the event of a uprobe on processor %d: %w", cpu, err)
	}
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_OUTPUT, c.ring); err != nil {
		return errors.Join(fmt.Errorf("lead a uprobe to the ring of processor %d: %w", cpu, err), unix.Close(fd))
	}
	c.fds[e] = fd
	return nil
}

func (c *traceCPU) remove(e *traced) error {
	fd, ok := c.fds[e]
	if !ok {
		return nil
	}
	delete(c.fds, e)
	return unix.Close(fd)
}

func (c *traceCPU) Close() error {
	var errs []error
	for e := range c.fds {
		errs = append(errs, c.remove(e))
	}
	return errors.Join(errs...)
}

// add has an event recorded on all processors.
func (r *traceRing) add(e *traced) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return os.ErrClosed
	}
	r.events, r.known[e.id] = append(r.events, e), e
	for number, c := range r.cpus {
		// One that went offline needs none: it gets a new ring when it comes back.
		if err := c.add(number, e); err != nil && !errors.Is(err, unix.ENODEV) {
			return errors.Join(err, r.drop(e))
		}
	}
	return nil
}

// remove ends that.
func (r *traceRing) remove(e *traced) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.drop(e)
}

func (r *traceRing) drop(e *traced) error {
	var errs []error
	r.events = slices.DeleteFunc(r.events, func(other *traced) bool { return other == e })
	for _, c := range r.cpus {
		errs = append(errs, c.remove(e))
	}
	return errors.Join(errs...)
}

// Next is that of plugin.Ring.
func (r *traceRing) Next(buf []byte, deadline time.Time) ([]byte, error) {
	for {
		flushed := r.flushed.Load() // before the look: what came before is not left behind
		if flushed {
			deadline = time.Unix(1, 0)
		}
		rec, body, err := r.rings.Next(r.sample, deadline)
		switch {
		case errors.Is(err, perf.ErrFresh), errors.Is(err, perf.ErrWoken):
			continue
		case flushed && errors.Is(err, os.ErrDeadlineExceeded):
			return nil, plugin.ErrFlushed
		case err != nil:
			return nil, err
		}
		r.sample = body
		if raw, err := r.decode(rec, body, buf); raw != nil || err != nil {
			return raw, err
		}
	}
}

// decode makes a record of what a perf record holds; nil: it holds none of ours.
func (r *traceRing) decode(rec perf.Record, body, buf []byte) ([]byte, error) {
	const head = 4 + 4 + 8 + 4 // pid, tid, time, and the bytes that follow
	ne := binary.NativeEndian
	if rec.Type == unix.PERF_RECORD_LOST && len(body) >= 16 {
		r.lost.Add(ne.Uint64(body[8:]))
		return nil, nil
	}
	if rec.Type != unix.PERF_RECORD_SAMPLE || len(body) < head {
		return nil, nil
	}
	raw := body[head:]
	if n := ne.Uint32(body[16:]); uint64(n) < uint64(len(raw)) {
		raw = raw[:n]
	}
	if len(raw) < 2 {
		return nil, nil
	}
	r.mu.Lock()
	e := r.known[ne.Uint16(raw)]
	r.mu.Unlock()
	if e == nil {
		return nil, nil
	}
	s, err := r.record(e, ne.Uint32(body), ne.Uint32(body[4:]), ne.Uint64(body[8:]), raw)
	if err != nil {
		return nil, err
	}
	return append(buf[:0], s...), nil
}

// Lost returns how many secrets found no room.
func (r *traceRing) Lost() uint64 { return r.lost.Load() }

// Flush has Next return what is there and then plugin.ErrFlushed.
func (r *traceRing) Flush() error {
	r.flushed.Store(true)
	return r.rings.Wake()
}

// Close ends a wait of Next. Another call does nothing.
func (r *traceRing) Close() error {
	r.mu.Lock()
	var errs []error
	for _, c := range r.cpus {
		errs = append(errs, c.Close())
	}
	r.closed, r.cpus = true, nil
	r.mu.Unlock()
	return errors.Join(append(errs, r.rings.Close())...)
}
