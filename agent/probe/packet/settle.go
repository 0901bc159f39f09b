// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"math/rand/v2"
	"time"

	"droidtap/agent/apps"
	"droidtap/agent/owner"
	"droidtap/agent/pcapng"
)

// processPatience is how long after it was seen a packet waits for its process, where others are to be left out: processes are
// looked at ten times a second at most.
const processPatience = 150 * time.Millisecond

// settler completes the packets of one ring: it finds owners that the programs could not tell, leaves out what is not
// wanted of theirs, and names them. It is not safe for concurrent use.
type settler struct {
	*owners
	tells   bool // packets have comments
	first   bool // but only the first of each flow
	picks   bool // packets are left out by their process
	began   time.Time
	seed    [4]uint64 // of hashes
	flows   recent[flow]
	turned  time.Duration // flows were, since began
	cgroups recent[group]
	names   map[nameKey]*named // those by apps

	// Of the blocks that are being settled:
	seen    time.Time     // when that was begun
	at      time.Duration // the same, since began
	apps    *view
	android bool
	closes  int       // of UDP sockets
	port    *port     // of the last packet; nil: there was none
	group   *group    // the same
	lately  *flow     // the same
	key     owner.Key // memory for the flow of a packet
}

func newSettler(o *owners) *settler {
	return &settler{
		owners: o,
		tells:  o.comments != commentNone, first: o.comments == commentFirst, picks: o.byProcess(),
		began:   o.now(),
		seed:    [4]uint64{rand.Uint64(), rand.Uint64(), rand.Uint64(), rand.Uint64()},
		flows:   newRecent[flow](recentFlows),
		cgroups: newRecent[group](recentOwners),
		names:   map[nameKey]*named{},
	}
}

// asked is a packet with what its owner is asked for by.
type asked struct {
	p    *pcapng.Packet
	port *port
	owner.Question

	found  bool         // the answer is there
	answer owner.Answer // to the question, before it was turned
	turned bool         // it is about the sender of a packet on the loopback interface
	parsed bool
	flow   owner.Key // of an ICMP error, that of the packet which it quotes
	begins bool      // it begins a new connection, which may be another's
	isFlow bool
}

// key returns the flow of a packet, if it has one.
func (a *asked) key() (*owner.Key, bool) {
	if !a.parsed {
		a.parsed = true
		a.begins, a.isFlow = a.flow.Read(a.Packet, a.L2, a.Outgoing)
	}
	return &a.flow, a.isFlow
}

// Settle is plugin.Settler's, of one ring.
func (s *settler) Settle(blocks []pcapng.Block, last bool) (done int) {
	s.begin()
	for i, b := range blocks {
		p, isPacket := b.(*pcapng.Packet)
		if !isPacket {
			continue
		}
		v := s.known(p)
		if v == undecided {
			v = s.settle(p, last)
		}
		switch v {
		case undecided:
			return i
		case left:
			blocks[i] = nil
		}
	}
	return len(blocks)
}

// begin takes note of what counts for some blocks.
func (s *settler) begin() {
	s.seen = s.now()
	s.at = s.seen.Sub(s.began)
	s.apps = s.view.Load()
	if s.finder != nil {
		s.closes = s.finder.Closes()
	}
	s.android = s.processes != nil && s.processes.Android()
	if s.at-s.turned >= flowIdle {
		s.turned, s.lately = s.at, nil
		s.flows.turn()
	}
}

// verdict is what becomes of a packet.
type verdict int

const (
	kept verdict = iota
	left
	undecided // until it is asked for again
)

// settle is for a packet about which somebody may have to be asked.
func (s *settler) settle(p *pcapng.Packet, last bool) verdict {
	a := s.ask(p)
	var inode uint32
	if p.UID == pcapng.UIDUnknown {
		found := s.find(&a)
		if found.Wait && !last {
			return undecided
		}
		inode = s.accept(&a, found)
		switch {
		case p.UID >= pcapng.UIDNone:
			a.port.unattributed.Add(1)
			if !s.keep {
				return leave(a.port)
			}
		case s.byOwner() && !s.apps.Admits(p.UID):
			return leave(a.port)
		}
	}
	// The programs have decided about what they knew themselves.
	switch p.UID {
	case pcapng.UIDNone:
		return kept
	case pcapng.UIDUnknown:
		s.comment(p, s.topic(&a), unknown)
		return kept
	}
	n := s.name(&a, inode)
	if s.picks && !n.wanted {
		n = s.otherEnd(&a, n)
		switch {
		case n.wanted:
		case len(n.of) == 0 && !last && a.Age < processPatience:
			return undecided
		default:
			return s.unwanted(&a, n)
		}
	}
	s.comment(p, s.topic(&a), n)
	return kept
}

// ask returns a packet with what there is to be asked.
func (s *settler) ask(p *pcapng.Packet) asked {
	port := s.on(p)
	return asked{p: p, port: port, Question: owner.Question{
		Packet:   whole(p),
		L2:       port.linkType == pcapng.Ethernet,
		Outgoing: p.Direction == pcapng.Outbound,
		Loopback: port.loopback,
		Ifindex:  port.index.Load(),
		// A clock that was set back is no reason to wait.
		Age: s.seen.Sub(time.Unix(0, p.Time)).Abs(),
	}}
}

// unwanted is for a packet whose process is not one of those that are, or is not known.
func (s *settler) unwanted(a *asked, n *named) verdict {
	if len(n.of) > 0 {
		return leave(a.port)
	}
	a.port.unattributed.Add(1)
	if !s.keep {
		return leave(a.port)
	}
	s.comment(a.p, s.topic(a), n)
	return kept
}

func leave(of *port) verdict {
	of.refused.Add(1)
	return left
}

func (s *settler) find(a *asked) owner.Answer {
	if !a.found {
		a.found, a.answer = true, owner.Answer{UID: pcapng.UIDUnknown, Other: pcapng.UIDNone}
		if s.finder != nil {
			// The age counts from now: what was asked before in this batch has taken its time, and the finder has a clock of its own.
			a.Age = s.now().Sub(time.Unix(0, a.p.Time)).Abs()
			if a.Age > longest {
				// A packet socket tells the time that stands in the skb, which may be the sender's, of another clock
				// (net/packet/af_packet.c tpacket_get_timestamp): so from the TCP peer on mac80211_hwsim, 5.10.
				a.Age = owner.Patience
			}
			a.answer = s.finder.Find(a.Question)
		}
	}
	return a.answer
}

// accept notes what was found of a packet, and returns the inode of its socket, 0 where that is not known. On the loopback
// interface a packet has two owners: one that is admitted wins, else the receiver.
func (s *settler) accept(a *asked, found owner.Answer) (inode uint32) {
	if found.Other < pcapng.UIDNone && (found.UID >= pcapng.UIDNone || s.byOwner() && !s.apps.Admits(found.UID) && s.apps.Admits(found.Other)) {
		a.p.UID, a.p.Cgroup = found.Other, 0
		a.turn()
		return 0
	}
	a.p.UID, a.p.Cgroup = found.UID, found.Cgroup
	return found.Inode
}

// turn makes it about the other end of a packet on the loopback interface.
func (a *asked) turn() { a.Outgoing, a.turned, a.parsed = !a.Outgoing, !a.turned, false }

// face makes it about the end that is the uid's, of a packet on the loopback interface, and tells whether one is: the programs tell
// the uid of either.
func (s *settler) face(a *asked) bool {
	if !a.Loopback || a.turned {
		return true
	}
	switch found := s.find(a); a.p.UID {
	case found.UID:
		return true
	case found.Other:
		a.turn()
		return true
	}
	return false
}

// name returns the owner of a packet whose uid is known. inode is that of its socket; 0: to be found out, if it matters.
func (s *settler) name(a *asked, inode uint32) *named {
	if s.processes == nil {
		return s.ofUID(a.p.UID)
	}
	if a.p.Cgroup != 0 && s.android {
		if n := s.ofCgroup(cgroupKey{a.p.UID, a.p.Cgroup}); len(n.of) > 0 {
			return n
		}
	}
	if s.finder != nil && s.face(a) {
		if f := s.flowOf(a); f != nil {
			return s.ofFlow(a, f, inode)
		}
	}
	return s.ofUID(a.p.UID)
}

// otherEnd returns the process at the other end of a packet on the loopback interface, if that is wanted, where n is not: then the
// packet counts as its. Else it returns n.
func (s *settler) otherEnd(a *asked, n *named) *named {
	if !a.Loopback || s.finder == nil || s.processes == nil {
		return n
	}
	found, other, p := s.find(a), *a, *a.p
	other.p = &p
	other.turn()
	if p.UID = found.UID; other.turned {
		p.UID = found.Other
	}
	if p.UID >= pcapng.UIDNone || s.byOwner() && !s.apps.Admits(p.UID) {
		return n
	}
	f := s.flowOf(&other)
	if f == nil {
		return n
	}
	if o := s.ofFlow(&other, f, 0); o.wanted {
		a.p.UID, a.p.Cgroup = p.UID, 0
		return o
	}
	return n
}

// flowOf is flow of a packet, nil if it has none.
func (s *settler) flowOf(a *asked) *flow {
	if key, ok := a.key(); ok {
		return s.flow(key)
	}
	return nil
}

// topic returns the flow which a comment on a packet is about, nil if it has none.
func (s *settler) topic(a *asked) *flow {
	key, ok := a.key()
	switch {
	case !ok:
		return nil
	case a.Loopback: // both ways come in there
		either := key.EitherWay()
		key = &either
	}
	return s.flow(key)
}

// unknown is the owner of a packet that has one nobody knows.
var unknown = &named{comments: oneComment(ownerText(pcapng.UIDUnknown, nil, nil))}

// oneComment makes a list that whoever appends to it copies.
func oneComment(text string) []string { return []string{text}[:1:1] }

// view is what the book said last.
type view struct{ apps.Rules }
