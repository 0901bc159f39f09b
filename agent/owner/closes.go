// SPDX-License-Identifier: Apache-2.0

package owner

import "droidtap/agent/sockdiag"

// late is by how much the kernel may tell too late that a port was closed, in ns. It was some 25 µs on a quiet PC, and up to 34 ms
// where the processor was busy.
const late = 20e6

// maxCloses bounds the closes that are told apart. Of what was before those, nothing is said to be undisturbed.
const maxCloses = 1024

// closes remembers when sockets of a protocol were closed: UDP's, or TCP listeners. Who had a port at one time had it at
// another if none was in between.
type closes struct {
	protocol uint8
	last     [1 << 16]int64 // by port; only what is written to takes memory
	every    int64          // when any port may have been closed
	log      [maxCloses]struct {
		time int64
		port uint16
		any  bool
	}
	next  int   // in log
	floor int64 // the last that is not in the log any more
}

// add notes a close of a port, or of any; the time is not before that of the others.
func (c *closes) add(time int64, port uint16, any bool) {
	if any {
		c.every = time
	} else {
		c.last[port] = time
	}
	place := &c.log[c.next%maxCloses]
	c.floor = max(c.floor, place.time)
	place.time, place.port, place.any = time, port, any
	c.next++
}

// after tells whether the port was closed after a time.
func (c *closes) after(f sockdiag.Flow, time int64) bool {
	return f.Protocol == c.protocol && max(c.last[f.Local.Port()], c.every) > time
}

// between tells whether the port was closed after the earlier one of two times and not after the later one.
func (c *closes) between(f sockdiag.Flow, one, other int64) bool {
	from, to := min(one, other), max(one, other)
	switch {
	case !c.after(f, from):
		return false
	case !c.after(f, to), from < c.floor:
		return true
	}
	for i := range min(c.next, maxCloses) {
		e := c.log[(c.next-1-i)%maxCloses]
		if e.time <= from {
			break
		}
		if e.time <= to && (e.any || e.port == f.Local.Port()) {
			return true
		}
	}
	return false
}
