// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"golang.org/x/sys/unix"

	"droidtap/agent/sockdiag"
)

const (
	// maxFlows bounds the cache, about 2 MB when it is full. A flow that has not been asked for lately then gives way, and
	// is asked about anew with its next packet.
	maxFlows = 8192
	// valid is how long an answer holds before it is asked for again, in ns.
	valid = 2e9
	// retry is how long it holds that nobody is known, so that packets of nobody's, a flood of them even, do not cost a
	// system call each.
	retry = 20e6
	// skew is by how much the time of a packet, which is that of another clock, may be later than that of the reply to it, in ns.
	skew = 2e6
	// handshake is by how much the kernel may be late to answer a SYN, in ns: it does so before anything else.
	handshake = 10e6
)

// entry is what is known of a flow. Times are ns by the clock of the programs, 0 for never.
type entry struct {
	flow      sockdiag.Flow
	uid       uint32
	inode     uint32 // of a socket that was of holder at the time open
	holder    uint32
	cgroup    uint64
	known     bool  // uid has, or had, the flow
	answered  bool  // when it was asked for last: known, or none
	none      bool  // its local end is not of this machine
	used      bool  // since the hand passed, and more than once
	asked     int64 // for it, last
	confirmed int64 // uid, last
	kernel    int64 // when sock_diag answered last, whatever it said
	open      int64
}

// cache remembers flows.
type cache struct {
	places  map[sockdiag.Flow]int // in entries
	entries []entry
	hand    int // where the search for one that gives way goes on
}

// entry returns that of the flow, a new one if there is none. It is valid until the next call.
func (c *cache) entry(f sockdiag.Flow) *entry {
	place, found := c.places[f]
	switch {
	case found:
		// Not set by a flow's first packet: those of a port scan give way to each other.
		c.entries[place].used = true
		return &c.entries[place]
	case len(c.entries) < maxFlows:
		place = len(c.entries)
		c.entries = append(c.entries, entry{})
	default:
		place = c.giveWay()
		delete(c.places, c.entries[place].flow)
	}
	c.places[f] = place
	c.entries[place] = entry{flow: f}
	return &c.entries[place]
}

// giveWay returns the place of the next flow that was not asked for since the last time round.
func (c *cache) giveWay() int {
	for {
		place := c.hand
		c.hand = (c.hand + 1) % len(c.entries)
		if !c.entries[place].used {
			return place
		}
		c.entries[place].used = false
	}
}

// sight is when and how a packet of a flow was seen.
type sight struct {
	now, at  int64 // ns by the clock of the programs: of the question, of the packet
	outgoing bool
	begins   bool // a TCP connection
}

// holds tells whether what is known of a flow answers for a packet, or nothing better is to be had.
func (e *entry) holds(s sight, c *closes) bool {
	undisturbed := !c.between(e.flow, e.confirmed, s.at)
	switch {
	case e.known && undisturbed && c.after(e.flow, s.at):
		return true // whoever has the port now, the packet is of before
	case e.known && e.answered && !undisturbed:
		return false
	case e.answered && e.asked >= s.at:
		return true
	case s.begins:
		return false
	case e.answered:
		return s.now-e.asked < valid
	}
	return s.now-e.asked < retry
}

// set notes whose the flow is.
func (e *entry) set(uid uint32, cgroup uint64, confirmed int64) {
	if !e.known || e.uid != uid {
		e.cgroup = 0
	}
	if cgroup != 0 {
		e.cgroup = cgroup
	}
	e.uid, e.confirmed = uid, confirmed
	e.known, e.answered, e.none = true, true, false
}

// opened notes a socket that is there now. One without an inode, as of a connection that nobody has open any more, tells nothing.
func (e *entry) opened(s sockdiag.Socket, now int64) {
	if s.Inode != 0 {
		e.inode, e.holder, e.open = s.Inode, s.UID, now
	}
}

// socket returns the inode of the uid's socket that a packet is of, 0 where that may be another than the one that is known.
func (e *entry) socket(uid uint32, s sight, c *closes) uint32 {
	if e.holder != uid || c.between(e.flow, e.open, s.at) || s.begins && e.open < s.at-skew {
		return 0
	}
	return e.inode
}

// unset notes that nobody is known to have the flow now. Whoever had it, it stays his: a TCP flow until a new connection
// begins, others for a while, and a UDP flow no longer than its port is open.
func (e *entry) unset(s sight, c *closes) {
	e.answered, e.none = false, false
	aged := e.flow.Protocol != unix.IPPROTO_TCP && s.at-e.confirmed >= lifetime(e.flow.Protocol)
	if s.begins || aged || s.at > e.confirmed && c.between(e.flow, e.confirmed, s.at) {
		e.known = false
	}
}

// fragments remembers what the first fragments of packets had.
type fragments struct {
	at   map[fragment]int // in ring
	ring [maxFragments]struct {
		head
		seen int64
	}
	next int
}

const (
	// maxFragments bounds the packets whose fragments are told apart: the oldest is forgotten.
	maxFragments = 1024
	// reassembly is how long Linux waits for the last fragment of a packet, in ns (net.ipv4.ipfrag_time).
	reassembly = 30e9
)

func (f *fragments) keep(h head, at int64) {
	place, found := f.at[h.whole]
	if !found {
		place = f.next
		f.next = (f.next + 1) % maxFragments
		delete(f.at, f.ring[place].whole)
		f.at[h.whole] = place
	}
	f.ring[place].head, f.ring[place].seen = h, at
}

// first returns the head of the packet's first fragment.
func (f *fragments) first(whole fragment, at int64) (head, bool) {
	place, found := f.at[whole]
	if !found || at-f.ring[place].seen >= reassembly {
		return head{}, false
	}
	return f.ring[place].head, true
}
