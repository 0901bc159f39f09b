// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"droidtap/agent/boottime"
	"droidtap/agent/perf"
	"droidtap/agent/plugin"
)

// perfEvents reads a BPF_MAP_TYPE_PERF_EVENT_ARRAY: the map's slot N holds a perf event of processor N, with a ring. The records come in
// the order of their time.
//
// The kernel takes an event off its processor for good when that goes offline (kernel/events/core.c,
// perf_event_exit_cpu), and bpf_perf_event_output fails there from then on. So the processor gets a new event when it is
// online again. An uevent tells of it, but for two cases: a sleep, in which the kernel switches off all but the first one,
// and drivers that call cpu_up themselves, for which we compare now and then.
//
// cilium/ebpf's perf.Reader opens each event once, and where a processor is offline its version 0.22 puts those of all
// later ones into wrong slots (its issue 2100).
type perfEvents struct {
	array     *ebpf.Map // the map forgets the events when whoever put them there closes it
	ringSize  int       // bytes, without the page ahead of it
	watermark int       // bytes in a ring that wake the reader
	log       *slog.Logger
	clock     io.Closer
	bell      *os.File // an eventfd that ends a wait
	bellFD    int32    // its number: File.Fd is not for a file that another goroutine closes
	flushed   atomic.Bool
	closed    atomic.Bool
	slept     atomic.Bool // perhaps: no event may be good any more
	reading   bool        // the reader's: it has mu

	mu       sync.Mutex // of what follows; Close waits for it before it unmaps
	uevents  int        // the socket; -1: none
	online   func() ([]byte, error)
	compared time.Time // when online was asked
	off      []bool    // by processor: it was offline when it was last looked at
	rings    []*perfRing
	merge    perf.Merge // of rings
	said     error      // by the next call when it has found no more
	message  []byte     // an uevent
	fds      []unix.PollFd
}

// perfRing is a perf event with its ring, and what becomes of it.
type perfRing struct {
	perf.Samples
	cpu     int
	dead    bool      // poll(2) says so at once, each time
	retired time.Time // when another took its slot; zero: it is there
}

// openPerfEvents opens the events of the processors that are online. ringSize is in bytes for each, and is rounded up;
// watermark is less. uevents is a socket of perf.OpenUevents, which is the reader's from then on, or -1.
func openPerfEvents(m *ebpf.Map, ringSize, watermark, uevents int, log *slog.Logger) (_ *perfEvents, err error) {
	page := os.Getpagesize()
	pages := (ringSize + page - 1) / page
	p := &perfEvents{
		ringSize:  page << bits.Len(uint(pages-1)),
		watermark: watermark,
		log:       log,
		uevents:   uevents,
		online:    perf.Online,
		off:       make([]bool, m.MaxEntries()),
		message:   make([]byte, 256), // its first line is all that matters
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open the perf buffers: %w", err), p.Close())
		}
	}()
	// It blocks, so that the runtime's poller leaves it alone; it is read only when it is full.
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	p.bell, p.bellFD = os.NewFile(uintptr(fd), "eventfd"), int32(fd)
	if p.array, err = m.Clone(); err != nil {
		return nil, err
	}
	if p.clock, err = boottime.OnSet(p.resumed); err != nil {
		return nil, err
	}
	for cpu := range int(m.MaxEntries()) {
		if err := p.equip(cpu); err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, err
		}
	}
	p.watch()
	return p, nil
}

// resumed has all events opened anew. It is called when the clock was set, too: where BOOTTIME does not count a sleep the two
// cannot be told apart, and new events harm nothing.
func (p *perfEvents) resumed() {
	p.slept.Store(true)
	if err := p.wake(); err != nil {
		p.log.Debug("open perf events after a sleep", "error", err)
	}
}

// wake ends a wait. The error wraps os.ErrClosed behind Close.
func (p *perfEvents) wake() error {
	_, err := p.bell.Write(binary.NativeEndian.AppendUint64(nil, 1))
	return err
}

// equip puts a new event into the slot of a processor. What lies in the old one's ring is read all the same. The error
// wraps ENODEV while the processor is offline.
func (p *perfEvents) equip(cpu int) error {
	r, err := openPerfRing(cpu, p.ringSize, p.watermark)
	p.off[cpu] = errors.Is(err, unix.ENODEV)
	if err != nil {
		return err
	}
	if err := p.array.Put(uint32(cpu), uint32(r.FD())); err != nil {
		return errors.Join(fmt.Errorf("put the event of processor %d into its slot: %w", cpu, err), r.Close())
	}
	for _, old := range p.rings {
		if old.cpu == cpu && old.retired.IsZero() {
			old.retired = time.Now()
		}
	}
	p.rings = append(p.rings, r) // behind the old one, whose records come first
	return nil
}

// reequip is equip for a processor that was offline. No error of its own ends a capture of the others.
func (p *perfEvents) reequip(cpu int) {
	switch err := p.equip(cpu); {
	case errors.Is(err, unix.ENODEV): // again, or still
	case err != nil:
		p.log.Warn("packets are dropped", "processor", cpu, "because", err)
	default:
		p.log.Info("opened a new perf event", "processor", cpu)
	}
}

// Next is that of plugin.Ring, but for records that are fewer than the watermark and came before the deadline: they are found
// at the deadline only. From a record to the next call the rings are the reader's, and Close waits for that call: to lock them for each
// record would cost as much as to read it.
func (p *perfEvents) Next(buf []byte, deadline time.Time) ([]byte, error) {
	if !p.reading {
		p.mu.Lock()
		p.reading = true
	}
	raw, err := p.next(buf, deadline)
	if err != nil {
		p.reading = false
		p.mu.Unlock()
	}
	return raw, err
}

func (p *perfEvents) next(buf []byte, deadline time.Time) ([]byte, error) {
	for !p.closed.Load() {
		if raw, err := p.merge.Next(buf); raw != nil || err != nil {
			return raw, err
		}
		if err := p.said; err != nil {
			p.said = nil
			return nil, err
		}
		if err := p.wait(deadline); err != nil {
			return nil, err
		}
		p.look()
	}
	return nil, os.ErrClosed
}

// look finds what the rings hold by now, and closes those that will hold nothing more.
func (p *perfEvents) look() {
	p.merge.Look()
	changed := false
	for n, r := range p.rings {
		// A program that took the event out of the slot just before it changed may still be writing. It cannot be
		// interrupted but by interrupts.
		if !r.retired.IsZero() && r.Empty() && time.Since(r.retired) > latency {
			if err := r.Close(); err != nil {
				p.log.Debug("close a perf event", "processor", r.cpu, "error", err)
			}
			p.rings[n], changed = nil, true
		}
	}
	if changed {
		p.rings = slices.DeleteFunc(p.rings, func(r *perfRing) bool { return r == nil })
		p.watch()
	}
}

// watch sets what is waited for, the bell, the uevents, and the rings, and what is merged.
func (p *perfEvents) watch() {
	p.merge.Rings = p.merge.Rings[:0]
	p.fds = append(p.fds[:0], unix.PollFd{Fd: p.bellFD, Events: unix.POLLIN}, unix.PollFd{Fd: int32(p.uevents), Events: unix.POLLIN})
	for _, r := range p.rings {
		p.merge.Rings = append(p.merge.Rings, &r.Samples)
		fd := int32(r.FD())
		if r.dead {
			fd = -1 // poll(2) passes it over
		}
		p.fds = append(p.fds, unix.PollFd{Fd: fd, Events: unix.POLLIN})
	}
}

// wait waits until the rings are worth a look, and gives processors that came online their events.
func (p *perfEvents) wait(deadline time.Time) error {
	timeout := -1
	if !deadline.IsZero() {
		timeout = int((max(0, time.Until(deadline)) + time.Millisecond - 1) / time.Millisecond)
	}
	n, err := unix.Poll(p.fds, timeout)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("poll", err)
	}
	if n == 0 {
		p.said = os.ErrDeadlineExceeded
	}
	if p.fds[0].Revents != 0 {
		if _, err := io.ReadFull(p.bell, p.message[:8]); err != nil {
			return err
		}
		if p.flushed.Load() {
			p.said = plugin.ErrFlushed
		}
	}
	dead := false
	for i, r := range p.rings {
		if p.fds[2+i].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0 {
			r.dead, dead = true, true
		}
	}
	before := len(p.rings)
	if p.fds[1].Revents != 0 {
		p.hear()
	}
	if p.slept.Swap(false) {
		for cpu := range int(p.array.MaxEntries()) {
			p.reequip(cpu)
		}
	}
	p.compare()
	if dead || len(p.rings) != before || p.uevents != int(p.fds[1].Fd) {
		p.watch()
	}
	return nil
}

// Flush has Next return what is there and then plugin.ErrFlushed. The error wraps os.ErrClosed behind Close.
func (p *perfEvents) Flush() error {
	p.flushed.Store(true)
	return p.wake()
}

// Close ends a wait of Next. Another call does nothing. The reader itself calls it behind an error of Next.
func (p *perfEvents) Close() error {
	if p.closed.Swap(true) {
		return nil
	}
	var errs []error
	if p.clock != nil {
		errs = append(errs, p.clock.Close())
	}
	if p.bell != nil {
		errs = append(errs, p.wake())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range slices.Backward(p.rings) {
		errs = append(errs, r.Close())
	}
	if p.array != nil {
		errs = append(errs, p.array.Close())
	}
	if p.bell != nil {
		errs = append(errs, p.bell.Close())
	}
	if p.uevents >= 0 {
		errs = append(errs, unix.Close(p.uevents))
	}
	p.rings, p.uevents = nil, -1
	return errors.Join(errs...)
}

// openPerfRing opens an event that only bpf_perf_event_output writes to. size is in bytes, a power of two of pages.
func openPerfRing(cpu, size, watermark int) (*perfRing, error) {
	r, err := perf.Open(&unix.PerfEventAttr{
		Type:        unix.PERF_TYPE_SOFTWARE,
		Config:      unix.PERF_COUNT_SW_BPF_OUTPUT,
		Sample_type: unix.PERF_SAMPLE_RAW,
		Bits:        unix.PerfBitWatermark,
		Wakeup:      uint32(watermark),
	}, -1, cpu, size)
	if err != nil {
		return nil, err
	}
	return &perfRing{Samples: perf.Samples{Ring: r}, cpu: cpu}, nil
}
