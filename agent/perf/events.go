// SPDX-License-Identifier: Apache-2.0

package perf

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

	"golang.org/x/sys/unix"

	"droidtap/agent/boottime"
)

// ErrFresh is what Events.Next returns once when processors have got new events: what happened on them before may be missing.
var ErrFresh = errors.New("perf events were opened anew")

// pause is how long the list of the processors that are online holds. It is read only when something has come.
const pause = 2500 * time.Millisecond

// Events are an event on each processor that is online, and on each that comes online: the kernel takes an event off its processor
// for good when that goes offline (kernel/events/core.c perf_event_exit_cpu), as all but the first one do while a phone sleeps.
//
// Nothing runs while nothing comes.
type Events struct {
	attr   unix.PerfEventAttr
	size   int
	log    *slog.Logger
	clock  io.Closer
	bell   *os.File // an eventfd that ends a wait
	bellFD int32
	closed atomic.Bool
	slept  atomic.Bool // perhaps: some events may be dead
	woken  atomic.Bool // by Wake

	mu       sync.Mutex              // of what follows; Close waits for it before it unmaps
	lead     func(cpu, fd int) error // Lead's; nil: nothing
	uevents  int                     // the socket; -1: none
	online   func() ([]byte, error)
	compared time.Time // when online was asked
	rings    []*eventRing
	off      []bool // by processor: it has no event
	at       int    // of rings, where the next record is looked for
	fresh    bool   // to be said
	message  []byte
	fds      []unix.PollFd
}

// eventRing is that of a processor.
type eventRing struct {
	*Ring
	cpu     int
	dead    bool // poll(2) says so at once, each time
	retired bool // another has taken its place
}

// OpenAll opens an event of all processes on each processor; attr and size are Open's. A record wakes the reader as attr says. The
// errors are Open's, too, but for that of a processor that is offline.
func OpenAll(attr unix.PerfEventAttr, size int, log *slog.Logger) (_ *Events, err error) {
	attr.Read_format |= unix.PERF_FORMAT_TOTAL_TIME_ENABLED // alive's
	e := &Events{attr: attr, size: size, log: log, uevents: -1, online: Online, message: make([]byte, 256)}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	// It blocks, so that the runtime's poller leaves it alone; it is read only when it is full.
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	e.bell, e.bellFD = os.NewFile(uintptr(fd), "eventfd"), int32(fd)
	if e.uevents, err = OpenUevents(); err != nil {
		log.Debug("processors that come online are found late", "because", err) // by compare
	}
	if e.clock, err = boottime.OnSet(e.resumed); err != nil {
		return nil, err
	}
	possible, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return nil, fmt.Errorf("count the processors: %w", err)
	}
	e.off = make([]bool, last(string(possible))+1)
	for cpu := range e.off {
		if err := e.equip(cpu); err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
	}
	if len(e.rings) == 0 {
		return nil, fmt.Errorf("open a perf event: %w", unix.ENODEV)
	}
	e.fresh = false
	e.watch()
	return e, nil
}

// resumed is called after a sleep, and when the clock was set: where BOOTTIME does not count a sleep the two cannot be told apart.
func (e *Events) resumed() {
	e.slept.Store(true)
	_ = e.wake() // fails behind Close only
}

// ErrWoken is what Events.Next returns once behind Wake.
var ErrWoken = errors.New("the wait for perf events was ended")

// Wake ends a wait of Next, or the next one. The error wraps os.ErrClosed behind Close.
func (e *Events) Wake() error {
	e.woken.Store(true)
	return e.wake()
}

// Lead has f lead other events to the rings (PERF_EVENT_IOC_SET_OUTPUT): it is called with each event that there is, and with each
// that takes the place of another, before that is given up. Call it before Next.
func (e *Events) Lead(f func(cpu, fd int) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lead = f
	for _, r := range e.rings {
		if err := f(r.cpu, r.fd); err != nil {
			return err
		}
	}
	return nil
}

func (e *Events) wake() error {
	_, err := e.bell.Write(binary.NativeEndian.AppendUint64(nil, 1))
	return err
}

// equip opens an event of a processor. What lies in the ring of an old one is read all the same.
func (e *Events) equip(cpu int) error {
	r, err := Open(&e.attr, -1, cpu, e.size)
	e.off[cpu] = errors.Is(err, unix.ENODEV)
	if err != nil {
		return err
	}
	if e.lead != nil {
		if err := e.lead(cpu, r.fd); err != nil {
			return errors.Join(err, r.Close())
		}
	}
	for _, old := range e.rings {
		if old.cpu == cpu && !old.retired {
			old.retired = true
			// It may be alive after all, and would go on to write what the new one writes.
			_ = unix.IoctlSetInt(old.fd, unix.PERF_EVENT_IOC_DISABLE, 0)
		}
	}
	e.rings = append(e.rings, &eventRing{Ring: r, cpu: cpu})
	e.fresh = true
	return nil
}

// reequip is equip for a processor that was offline. No error of its own ends the others.
func (e *Events) reequip(cpu int) {
	if err := e.equip(cpu); err != nil && !errors.Is(err, unix.ENODEV) {
		e.log.Warn("a processor is not watched", "processor", cpu, "because", err)
	}
}

// alive tells whether an event is on its processor: else the time for which it was enabled stands still.
func (r *eventRing) alive() bool {
	var was, is [16]byte // the count, and that time in ns
	_, err := unix.Read(r.fd, was[:])
	_, err2 := unix.Read(r.fd, is[:])
	return err == nil && err2 == nil && was != is
}

// Next waits for the next record until the deadline, if that is not zero, and returns it and what follows its header, in buf if it
// fits. The error is ErrFresh or os.ErrDeadlineExceeded, wraps os.ErrClosed behind Close, or else ends it.
func (e *Events) Next(buf []byte, deadline time.Time) (Record, []byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for !e.closed.Load() {
		for ; e.at < len(e.rings); e.at++ {
			if rec, body, err := e.rings[e.at].Next(buf); body != nil || err != nil {
				return rec, body, err
			}
		}
		if e.fresh {
			e.fresh = false
			return Record{}, nil, ErrFresh
		}
		if e.look() {
			continue
		}
		over, err := e.wait(deadline)
		if err != nil {
			return Record{}, nil, err
		}
		if !e.look() && !e.fresh && over {
			return Record{}, nil, os.ErrDeadlineExceeded
		}
	}
	return Record{}, nil, os.ErrClosed
}

// look finds what the rings hold by now, and closes those that will hold nothing more.
func (e *Events) look() (more bool) {
	e.at = 0
	before := len(e.rings)
	e.rings = slices.DeleteFunc(e.rings, func(r *eventRing) bool {
		if r.Look() {
			more = true
			return false
		}
		if !r.retired {
			return false
		}
		if err := r.Close(); err != nil {
			e.log.Debug("close a perf event", "processor", r.cpu, "error", err)
		}
		return true
	})
	if len(e.rings) != before {
		e.watch()
	}
	return more
}

// watch sets what is waited for: the bell, the uevents, and the rings.
func (e *Events) watch() {
	e.fds = append(e.fds[:0], unix.PollFd{Fd: e.bellFD, Events: unix.POLLIN}, unix.PollFd{Fd: int32(e.uevents), Events: unix.POLLIN})
	for _, r := range e.rings {
		fd := int32(r.fd)
		if r.dead {
			fd = -1 // poll(2) passes it over
		}
		e.fds = append(e.fds, unix.PollFd{Fd: fd, Events: unix.POLLIN})
	}
}

// wait waits until the rings are worth a look, or the time is over, and gives processors that came online their events.
func (e *Events) wait(deadline time.Time) (over bool, err error) {
	timeout := -1
	if !deadline.IsZero() {
		timeout = int((max(0, time.Until(deadline)) + time.Millisecond - 1) / time.Millisecond)
	}
	n, err := unix.Poll(e.fds, timeout)
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, os.NewSyscallError("poll", err)
	}
	if e.fds[0].Revents != 0 {
		if _, err := io.ReadFull(e.bell, e.message[:8]); err != nil {
			return false, err
		}
		if e.woken.Swap(false) {
			return false, ErrWoken
		}
	}
	for i, r := range e.rings {
		r.dead = r.dead || e.fds[2+i].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
	}
	if e.fds[1].Revents != 0 {
		e.hear()
	}
	if e.slept.Swap(false) {
		e.revive()
	}
	e.compare()
	e.watch()
	return n == 0, nil
}

// revive opens the events of all processors that have none, or a dead one.
func (e *Events) revive() {
	alive := make([]bool, len(e.off))
	for _, r := range e.rings {
		alive[r.cpu] = alive[r.cpu] || !r.retired && r.alive()
	}
	for cpu := range e.off {
		if !alive[cpu] {
			e.reequip(cpu)
		}
	}
}

// compare finds processors that came online without an uevent: some phones' drivers call cpu_up and not device_online
// (drivers/soc/samsung/exynos-cpu_hotplug.c).
func (e *Events) compare() {
	now := time.Now()
	if now.Sub(e.compared) < pause {
		return
	}
	e.compared = now
	list, err := e.online()
	if err != nil {
		e.log.Debug("list the processors that are online", "error", err)
		return
	}
	for cpu := range e.off {
		switch on := Listed(string(list), cpu); {
		case !on:
			e.off[cpu] = true
		case e.off[cpu]:
			e.reequip(cpu)
		}
	}
}

// hear takes the uevents that are there.
func (e *Events) hear() {
	for {
		n, err := unix.Read(e.uevents, e.message)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.ENOBUFS):
			e.slept.Store(true) // some were lost: of any processor
		case err != nil:
			e.log.Debug("read uevents", "error", err)
			_ = unix.Close(e.uevents) // it would end each wait
			e.uevents = -1
			return
		default:
			if cpu, ok := CameOnline(e.message[:n]); ok && cpu < len(e.off) {
				e.reequip(cpu)
			}
		}
	}
}

// Close ends a wait of Next. Another call does nothing.
func (e *Events) Close() error {
	if e.closed.Swap(true) {
		return nil
	}
	var errs []error
	if e.clock != nil {
		errs = append(errs, e.clock.Close())
	}
	if e.bell != nil {
		errs = append(errs, e.wake())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range slices.Backward(e.rings) {
		errs = append(errs, r.Close())
	}
	if e.bell != nil {
		errs = append(errs, e.bell.Close())
	}
	if e.uevents >= 0 {
		errs = append(errs, unix.Close(e.uevents))
	}
	e.rings, e.uevents = nil, -1
	return errors.Join(errs...)
}
