// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/plan"
)

// resample is how far the wall clock may move before the kernel clock's distance
// from it is measured again: it moves with NTP, with the user and, for the
// monotonic clock, with every suspend.
const resample = 100 * time.Millisecond

// clock turns the kernel's time stamps into wall-clock time.
type clock struct {
	now    func() time.Time // the wall clock
	kernel func() int64     // the clock that stamps records, ns
	same   bool             // as the wall clock

	measured     bool
	last, before sample
}

// sample is one measurement: at these two readings of one instant.
type sample struct{ kernel, wall int64 }

func newClock(c plan.Clock) clock {
	id := int32(unix.CLOCK_BOOTTIME)
	if c == plan.Monotonic {
		id = unix.CLOCK_MONOTONIC
	}
	return clock{now: time.Now, kernel: func() int64 {
		var ts unix.Timespec
		if err := unix.ClockGettime(id, &ts); err != nil {
			panic("packet: clock_gettime: " + err.Error()) // both clocks are older than bpf
		}
		return ts.Nano()
	}}
}

// wallClock is the clock of records that have wall-clock time.
func wallClock() clock {
	return clock{now: time.Now, kernel: func() int64 { return time.Now().UnixNano() }, same: true}
}

// wall returns the Unix time, in ns, of a kernel time stamp not later than now. A
// stamp not later than the measurement before the last is turned by that one: the
// phone may have slept in between. Where exactly is not known, so with the
// monotonic clock the packets of the last tenth of a second before a sleep, read
// after it, are late by its length.
func (c *clock) wall(stamp uint64) int64 {
	if c.same {
		return int64(stamp)
	}
	if now := c.now().UnixNano(); !c.measured {
		c.last = c.measure()
		c.before, c.measured = c.last, true
	} else if now-c.last.wall > int64(resample) || now < c.last.wall {
		c.before, c.last = c.last, c.measure()
	}
	s := c.last
	if int64(stamp) <= c.before.kernel {
		s = c.before
	}
	return s.wall + (int64(stamp) - s.kernel)
}

// measure takes the closest of a few readings: the agent may be preempted
// between the two clocks.
func (c *clock) measure() sample {
	var best sample
	shortest := int64(-1)
	for range 3 {
		before := c.kernel()
		wall := c.now().UnixNano()
		after := c.kernel()
		if d := after - before; shortest < 0 || d < shortest {
			best, shortest = sample{before + d/2, wall}, d
		}
	}
	return best
}
