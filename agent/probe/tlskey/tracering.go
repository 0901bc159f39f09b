// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"droidtap/agent/boottime"
	"droidtap/agent/perf"
	"droidtap/agent/plugin"
)

// traceRing is a plugin.Ring of events of tracefs: a perf ring on each processor, and there a perf event of each of them that writes
// to it.
//
// The kernel takes perf events off a processor for good when that goes offline (kernel/events/core.c, perf_event_exit_cpu), as
// all but the first one do in a sleep. So there are new ones after a sleep, and for processors that are found to have come online.
type traceRing struct {
	record func(e *traced, pid, tid uint32, at uint64, raw []byte) ([]byte, error)
	log    *slog.Logger
	clock  io.Closer
	bell   *os.File // an eventfd that ends a wait
	bellFD int32

	flushed, closed, slept atomic.Bool

	reading sync.Mutex // of Next, which may wait; Close waits for it
	said    error      // by the next call when it has found no more
	polled  []unix.PollFd
	sample  []byte // that was read last

	mu     sync.Mutex // of what follows
	events []*traced
	known  map[uint16]*traced // by their ids, those that are removed, too: the rings may hold records of them
	cpus   []*traceCPU
	lost   uint64 // records for which a ring had no room
}

// traceCPU is the ring of a processor.
type traceCPU struct {
	number  int
	ring    *perf.Ring
	fds     map[*traced]int // of the perf events that write to it
	retired bool            // another has its place: it is closed when it is empty
}

// traceSize is how many bytes of records may wait on a processor: those of 25 handshakes.
const traceSize = 1 << 15

func openTraceRing(record func(*traced, uint32, uint32, uint64, []byte) ([]byte, error), log *slog.Logger) (_ *traceRing, err error) {
	r := &traceRing{record: record, log: log, known: map[uint16]*traced{}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open the rings of uprobes: %w", err), r.Close())
		}
	}()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC) // it blocks, so that the runtime's poller leaves it alone
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	r.bell, r.bellFD = os.NewFile(uintptr(fd), "eventfd"), int32(fd)
	// The clock is set more often than the phone sleeps, and new events harm nothing.
	if r.clock, err = boottime.OnSet(func() { r.slept.Store(true); r.wake() }); err != nil {
		return nil, err
	}
	n, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count the processors: %w", err)
	}
	for cpu := range n {
		if err := r.equip(cpu); err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
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

// equip gives a processor a ring, with all events, in the place of the one that it has. The error wraps ENODEV while it is offline.
func (r *traceRing) equip(number int) error {
	size := max(traceSize, os.Getpagesize())
	own := attr(unix.PERF_TYPE_SOFTWARE, unix.PERF_COUNT_SW_DUMMY)
	ring, err := perf.Open(&own, -1, number, size)
	if err != nil {
		return err
	}
	cpu := &traceCPU{number: number, ring: ring, fds: map[*traced]int{}}
	for _, e := range r.events {
		if err := cpu.add(e); err != nil {
			return errors.Join(err, cpu.Close())
		}
	}
	for _, old := range r.cpus {
		if old.number == number && !old.retired {
			old.retired = true
			r.say(old.removeAll())
		}
	}
	r.cpus = append(r.cpus, cpu) // behind the old one, whose records come first
	return nil
}

// say tells of an error that harms nothing.
func (r *traceRing) say(err error) {
	if err != nil {
		r.log.Debug("close a perf event", "error", err)
	}
}

// add has an event write to the ring.
func (c *traceCPU) add(e *traced) error {
	a := attr(unix.PERF_TYPE_TRACEPOINT, uint64(e.id))
	fd, err := unix.PerfEventOpen(&a, -1, c.number, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open the event of a uprobe on processor %d: %w", c.number, err)
	}
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_OUTPUT, c.ring.FD()); err != nil {
		return errors.Join(fmt.Errorf("lead a uprobe to the ring of processor %d: %w", c.number, err), unix.Close(fd))
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

func (c *traceCPU) removeAll() error {
	var errs []error
	for e := range c.fds {
		errs = append(errs, c.remove(e))
	}
	return errors.Join(errs...)
}

func (c *traceCPU) Close() error { return errors.Join(c.removeAll(), c.ring.Close()) }

// add has an event recorded on all processors.
func (r *traceRing) add(e *traced) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed.Load() {
		return os.ErrClosed
	}
	r.events, r.known[e.id] = append(r.events, e), e
	for _, c := range r.cpus {
		if c.retired {
			continue
		}
		// Of a processor that went offline there is none, and none is needed.
		if err := c.add(e); err != nil && !errors.Is(err, unix.ENODEV) {
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

func (r *traceRing) wake() {
	_, err := r.bell.Write(binary.NativeEndian.AppendUint64(nil, 1))
	r.say(err)
}

// Next is that of plugin.Ring.
func (r *traceRing) Next(buf []byte, deadline time.Time) ([]byte, error) {
	r.reading.Lock()
	defer r.reading.Unlock()
	for !r.closed.Load() {
		if raw, err := r.take(buf); raw != nil || err != nil {
			return raw, err
		}
		if err := r.said; err != nil {
			r.said = nil
			return nil, err
		}
		if err := r.wait(deadline); err != nil {
			return nil, err
		}
	}
	return nil, os.ErrClosed
}

// take returns the next record that the rings hold, or nil. It closes those that will hold nothing more.
func (r *traceRing) take(buf []byte) (raw []byte, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.cpus {
		c.ring.Look()
		for raw == nil && err == nil {
			rec, body, failed := c.ring.Next(r.sample)
			if body == nil || failed != nil {
				err = failed
				break
			}
			r.sample = body
			raw, err = r.decode(rec, body, buf)
		}
		if raw != nil || err != nil {
			return raw, err
		}
	}
	r.cpus = slices.DeleteFunc(r.cpus, func(c *traceCPU) bool {
		if c.retired {
			r.say(c.Close())
		}
		return c.retired
	})
	return nil, nil
}

// decode makes a record of what a perf record holds; nil: it holds none of ours.
func (r *traceRing) decode(rec perf.Record, body, buf []byte) ([]byte, error) {
	const head = 4 + 4 + 8 + 4 // pid, tid, time, and the bytes that follow
	ne := binary.NativeEndian
	if rec.Type == unix.PERF_RECORD_LOST && len(body) >= 16 {
		r.lost += ne.Uint64(body[8:])
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
	e := r.known[ne.Uint16(raw)]
	if e == nil {
		return nil, nil
	}
	s, err := r.record(e, ne.Uint32(body), ne.Uint32(body[4:]), ne.Uint64(body[8:]), raw)
	if err != nil {
		return nil, err
	}
	return append(buf[:0], s...), nil
}

// wait waits until the rings are worth a look.
func (r *traceRing) wait(deadline time.Time) error {
	timeout := -1
	if !deadline.IsZero() {
		timeout = int((max(0, time.Until(deadline)) + time.Millisecond - 1) / time.Millisecond)
	}
	r.mu.Lock()
	r.polled = append(r.polled[:0], unix.PollFd{Fd: r.bellFD, Events: unix.POLLIN})
	for _, c := range r.cpus {
		r.polled = append(r.polled, unix.PollFd{Fd: int32(c.ring.FD()), Events: unix.POLLIN})
	}
	r.mu.Unlock()
	n, err := unix.Poll(r.polled, timeout)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("poll", err)
	}
	if n == 0 {
		r.said = os.ErrDeadlineExceeded
	}
	if r.polled[0].Revents != 0 {
		var count [8]byte
		if _, err := io.ReadFull(r.bell, count[:]); err != nil {
			return err
		}
		if r.flushed.Load() {
			r.said = plugin.ErrFlushed
		}
	}
	if r.slept.Swap(false) {
		return r.renew()
	}
	return nil
}

// renew gives all processors that are online new rings.
func (r *traceRing) renew() error {
	n, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count the processors: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for cpu := range n {
		if err := r.equip(cpu); err != nil && !errors.Is(err, unix.ENODEV) {
			r.log.Warn("secrets are lost", "processor", cpu, "because", err)
		}
	}
	return nil
}

// Lost returns how many secrets found no room.
func (r *traceRing) Lost() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

// Flush has Next return what is there and then plugin.ErrFlushed.
func (r *traceRing) Flush() error {
	r.flushed.Store(true)
	r.wake()
	return nil
}

// Close ends a wait of Next. Another call does nothing.
func (r *traceRing) Close() error {
	if r.closed.Swap(true) {
		return nil
	}
	var errs []error
	if r.clock != nil {
		errs = append(errs, r.clock.Close())
	}
	if r.bell != nil {
		r.wake()
	}
	r.reading.Lock()
	defer r.reading.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range slices.Backward(r.cpus) {
		errs = append(errs, c.Close())
	}
	r.cpus = nil
	if r.bell != nil {
		errs = append(errs, r.bell.Close())
	}
	return errors.Join(errs...)
}
