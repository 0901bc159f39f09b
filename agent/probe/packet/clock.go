// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"droidtap/agent/boottime"
	"droidtap/agent/plan"
)

const (
	// resample is how long a measurement of the clocks serves, in ns. The kernel slews its clocks together, so this
	// is for what changes by less than jump.
	resample = int64(100 * time.Millisecond)
	// jump is how much the wall clock may move against CLOCK_MONOTONIC, in ns, before the clocks are measured
	// at once: more than what lies between two readings, unless the agent is preempted between them.
	jump = int64(time.Millisecond)
	// precision is the difference of two measurements, in ns, that is none.
	precision = int64(time.Microsecond)
	// fallingAsleep is how long a phone takes into a sleep and out of it while the agent is frozen, in ns.
	fallingAsleep = int64(time.Second)
	// remembered is how many changes of the wall clock are known at a time. Records are read within a second, as a rule.
	remembered = 16
)

// clock turns the kernel's time stamps into wall-clock time. The distance of the two changes when the wall clock is set
// and, for the monotonic clock, when the phone sleeps; a stamp is turned by the distance that held at that time. It may
// be used by several goroutines at once.
//
// What stays inexact, by as much as the clock was changed: packets between a change of the wall clock and the moment when
// the agent runs and notices, which is a fraction of a millisecond on an idle processor; with the monotonic clock, packets
// that come last before a sleep and are read after it. Those that come first after a sleep, before the agent runs
// again, are right.
type clock struct {
	now    func() (wall, awake int64) // Unix time and CLOCK_MONOTONIC, ns
	kernel func() int64               // the clock that stamps records, ns
	boot   func() int64               // CLOCK_BOOTTIME, ns
	same   bool                       // as the wall clock

	mu      sync.Mutex // of whoever replaces known
	known   atomic.Pointer[history]
	running atomic.Int64 // a kernel time at which the newest of known held
}

// history is what was measured; it does not change.
type history struct {
	spans  [remembered]span // the newest one first
	n      int
	asleep bounds // CLOCK_BOOTTIME's distance from the kernel's clock: grows in a sleep if that stands still
	drift  int64  // the wall clock's distance from CLOCK_MONOTONIC when that was last measured
	at     int64  // CLOCK_MONOTONIC then
}

// span is a time in which the wall clock kept its distance from the kernel's clock.
type span struct {
	from  int64 // kernel time, ns
	ahead bounds
}

// bounds are what a distance of two clocks lies between, both included, in ns.
type bounds struct{ low, high int64 }

func (b bounds) middle() int64 { return b.low + (b.high-b.low)/2 }

// narrow returns what both allow, and false if they contradict each other: the distance has changed.
func (b bounds) narrow(by bounds) (bounds, bool) {
	both := bounds{max(b.low, by.low), min(b.high, by.high)}
	switch gap := both.low - both.high; {
	case gap > precision:
		return by, false
	case gap > 0:
		return by, true
	}
	return both, true
}

func newClock(c plan.Clock) *clock {
	boot := func() int64 { return int64(boottime.Now()) }
	kernel := boot
	if c == plan.Monotonic {
		kernel = func() int64 { return int64(boottime.Awake()) }
	}
	start := time.Now()
	return &clock{kernel: kernel, boot: boot, now: func() (wall, awake int64) {
		now := time.Now() // both clocks, without a system call
		return now.UnixNano(), int64(now.Sub(start))
	}}
}

// wallClock is the clock of records that have wall-clock time.
func wallClock() *clock {
	return &clock{kernel: func() int64 { return time.Now().UnixNano() }, same: true}
}

// watch has the clocks measured from now on as soon as the wall clock was set or the phone has slept. Without it
// that is noticed with the next look. The caller closes what it returns.
func (c *clock) watch() (io.Closer, error) {
	if c.same {
		return io.NopCloser(nil), nil
	}
	w, err := boottime.OnSet(func() { c.measure() })
	if err != nil {
		return nil, err
	}
	c.measure() // what is set from now on is told
	return w, nil
}

// look measures the clocks if what is known of them may not hold any more. Call it before wall, for some of the stamps.
func (c *clock) look() {
	if c.same {
		return
	}
	wall, awake := c.now()
	if h := c.known.Load(); h == nil || h.stale(wall, awake) {
		c.measure()
	} else {
		c.running.Store(wall - h.spans[0].ahead.middle())
	}
}

// wall returns the Unix time, in ns, of a kernel time stamp not later than the last look.
func (c *clock) wall(stamp uint64) int64 {
	if c.same {
		return int64(stamp)
	}
	h := c.known.Load()
	if h == nil {
		h = c.measure()
	}
	return int64(stamp) + h.ahead(int64(stamp))
}

// stale tells by two readings whether the clocks are to be measured again.
func (h *history) stale(wall, awake int64) bool {
	moved := wall - awake - h.drift
	return awake-h.at > resample || moved > jump || moved < -jump
}

// ahead returns how far the wall clock was ahead of the kernel's at a kernel time. Before the oldest change that is
// known, that is what it was then.
func (h *history) ahead(stamp int64) int64 {
	for i := range h.n {
		if stamp >= h.spans[i].from {
			return h.spans[i].ahead.middle()
		}
	}
	return h.spans[h.n-1].ahead.middle()
}

// measure reads the clocks and notes what has changed.
func (c *clock) measure() *history {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.readings()
	h := &history{n: 1, asleep: m.asleep, drift: m.drift, at: m.at}
	h.spans[0] = m.span
	if old := c.known.Load(); old != nil {
		h.follow(old, c.running.Load())
	}
	c.known.Store(h)
	c.running.Store(m.from)
	return h
}

// follow makes h, which is one measurement, the continuation of old. running is a kernel time at which old held.
func (h *history) follow(old *history, running int64) {
	awake, sleepless := old.asleep.narrow(h.asleep)
	h.asleep = awake
	now := h.spans[0]
	first := old.spans[0]
	if ahead, holds := first.ahead.narrow(now.ahead); holds {
		h.spans, h.n = old.spans, old.n
		h.spans[0].ahead = ahead
		return
	}
	if !sleepless {
		// Where in between the phone slept is not known. What came in that time came rather after the sleep: it may
		// be what ended it, while with traffic from outside no phone falls asleep.
		now.from = max(first.from, min(now.from, max(running, now.from-fallingAsleep)))
	}
	h.spans[0] = now
	h.n = 1 + copy(h.spans[1:], old.spans[:old.n])
}

// measurement is what was read of the clocks at one moment.
type measurement struct {
	span
	asleep    bounds
	drift, at int64
}

// readings takes the closest of a few: the agent may be preempted between two clocks.
func (c *clock) readings() measurement {
	var best measurement
	shortest := int64(-1)
	for range 3 {
		before := c.kernel()
		wall, awake := c.now()
		boot := c.boot()
		after := c.kernel()
		if d := after - before; shortest < 0 || d < shortest {
			shortest = d
			best = measurement{
				span:   span{from: before, ahead: bounds{wall - after, wall - before}},
				asleep: bounds{boot - after, boot - before},
				drift:  wall - awake,
				at:     awake,
			}
		}
	}
	return best
}
