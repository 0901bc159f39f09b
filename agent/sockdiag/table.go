// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFlows bounds the table, about 4 MB when it is full. A flow that has not been asked for lately then gives way,
	// and is asked about anew with its next packet.
	maxFlows = 16384
	// valid is how long an answer holds before the kernel is asked again: a port may have changed hands.
	valid = 2 * time.Second
	// retry is how long it holds that the kernel does not know, so that packets of nobody's, a flood of them even, do not
	// cost a system call each.
	retry = 20 * time.Millisecond
	// keepUDP is how long the owner of a UDP flow is remembered once its socket is gone: nothing tells that the port
	// belongs to another then.
	keepUDP = time.Minute
)

// Asker knows whose a flow is: a Conn.
type Asker interface {
	// Owner returns the uid, and false where it is not known.
	Owner(Flow) (uid uint32, known bool, err error)
}

// Table remembers whose flows are, and for some time beyond the end of their sockets. It is not safe for concurrent use.
type Table struct {
	kernel   Asker
	places   map[Flow]int // in entries
	entries  []entry
	hand     int // where the search for one that gives way goes on
	failures uint64
	failure  error
}

type entry struct {
	flow      Flow
	uid       uint32
	known     bool
	answered  bool      // the kernel knew when it was asked last
	used      bool      // since the hand passed, and more than once
	asked     time.Time // last
	confirmed time.Time // uid, last
}

// NewTable returns an empty table.
func NewTable(kernel Asker) *Table {
	return &Table{kernel: kernel, places: map[Flow]int{}}
}

// Owner returns whose the flow of a packet is, and false where that is not known. The time is that of the question, not
// of the packet, for it is now that the kernel knows; it may go back a little. syn says that the packet opens a TCP
// connection (see ParseFlow), which may be another's than the one before on the same addresses and ports.
//
// An owner is remembered while the kernel confirms it. After that, for a TCP flow until a new connection begins, for a
// UDP flow for a minute.
func (t *Table) Owner(f Flow, now time.Time, syn bool) (uid uint32, known bool) {
	e := t.entry(f)
	if syn || !e.fresh(now) {
		t.renew(e, now, syn)
	}
	return e.uid, e.known
}

// Failures returns how often the kernel gave no answer, or could not be asked (ErrNoDiag), and the error of the first
// time. The owners of these flows were taken for unknown.
func (t *Table) Failures() (times uint64, first error) { return t.failures, t.failure }

func (e *entry) fresh(now time.Time) bool {
	age := now.Sub(e.asked).Abs()
	if e.answered {
		return age < valid
	}
	return age < retry
}

func (t *Table) renew(e *entry, now time.Time, syn bool) {
	uid, known, err := t.kernel.Owner(e.flow)
	if err != nil {
		if t.failures == 0 {
			t.failure = err
		}
		t.failures++
	}
	e.asked, e.answered = now, known
	switch {
	case known:
		e.uid, e.known, e.confirmed = uid, true, now
	case syn, e.flow.Protocol == unix.IPPROTO_UDP && now.Sub(e.confirmed).Abs() >= keepUDP:
		e.uid, e.known = 0, false
	}
}

// entry returns that of the flow, a new one if there is none.
func (t *Table) entry(f Flow) *entry {
	place, found := t.places[f]
	switch {
	case found:
		// Not set by a flow's first packet: those of a port scan give way to each other.
		t.entries[place].used = true
		return &t.entries[place]
	case len(t.entries) < maxFlows:
		place = len(t.entries)
		t.entries = append(t.entries, entry{})
	default:
		place = t.giveWay()
		delete(t.places, t.entries[place].flow)
	}
	t.places[f] = place
	t.entries[place] = entry{flow: f}
	return &t.entries[place]
}

// giveWay returns the place of the next flow that was not asked for since the last time round.
func (t *Table) giveWay() int {
	for {
		place := t.hand
		t.hand = (t.hand + 1) % len(t.entries)
		if !t.entries[place].used {
			return place
		}
		t.entries[place].used = false
	}
}
