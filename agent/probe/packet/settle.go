// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"bytes"
	"cmp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/apps"
	"droidtap/agent/owner"
	"droidtap/agent/pcapng"
	"droidtap/agent/process"
	"droidtap/agent/sockdiag"
)

const (
	// How long it holds which process a flow or a cgroup is of: a process may take another name, and another one a socket.
	nameHolds = 2 * time.Second
	// and that nothing tells it.
	namelessHolds = 50 * time.Millisecond
	// processPatience is how long after it was seen a packet waits for its process, where others are to be left out: processes are
	// looked at ten times a second at most.
	processPatience = 150 * time.Millisecond
	// recentNames bounds the flows and cgroups whose names are known, recentFlows those whose first packet had a comment.
	recentNames, recentFlows = 4096, 1 << 15
)

// settler completes the packets of one ring: it finds owners that the programs could not tell, leaves out what is not
// wanted of theirs, and names them. One goroutine uses it.
type settler struct {
	*owners
	ofFlows   recent[flowID, *named]
	ofCgroups recent[cgroupKey, *named]
	topics    recent[flowID, *pcapng.Topic] // of each flow, if it is to be commented on once
}

func newSettler(o *owners) *settler {
	return &settler{
		owners:    o,
		ofFlows:   recent[flowID, *named]{most: recentNames},
		ofCgroups: recent[cgroupKey, *named]{most: recentNames},
		topics:    recent[flowID, *pcapng.Topic]{most: recentFlows},
	}
}

// flowID is a flow as this machine sees it, its ports in host byte order.
type flowID struct {
	local, remote         [16]byte
	localPort, remotePort uint16
	protocol              uint8
}

// eitherWay returns the same for both directions of a flow.
func (f flowID) eitherWay() flowID {
	if cmp.Or(bytes.Compare(f.local[:], f.remote[:]), cmp.Compare(f.localPort, f.remotePort)) > 0 {
		return flowID{f.remote, f.local, f.remotePort, f.localPort, f.protocol}
	}
	return f
}

type cgroupKey struct {
	uid    uint32
	cgroup uint64 // 0: only the uid counts
}

// named is an owner with its names.
type named struct {
	uid      uint32
	of       []process.Process // of its processes, those that have the socket; none: not known
	wanted   bool              // one of them is
	comments []string          // one line, shared by all packets: not to be changed, nor appended to
	apps     *view             // by which it was named
	until    time.Time
	closes   int // of sockets, when it was found: the port of a flow of UDP may be another's since
}

// asked is a packet with what its owner is asked for by.
type asked struct {
	p    *pcapng.Packet
	port *port
	owner.Question
	now time.Time

	found  bool         // the answer is there
	answer owner.Answer // to the question, before it was turned
	turned bool         // it is about the sender of a packet on the loopback interface
	parsed bool
	flow   flowID // of an ICMP error, that of the packet which it quotes
	begins bool   // it begins a new connection, which may be another's
	isFlow bool
}

// key returns the flow of a packet, if it has one.
func (a *asked) key() (flowID, bool) {
	if !a.parsed {
		a.parsed = true
		var f sockdiag.Flow
		if f, a.begins, a.isFlow = owner.FlowOf(a.Question); a.isFlow {
			a.flow = flowID{f.Local.Addr().As16(), f.Remote.Addr().As16(), f.Local.Port(), f.Remote.Port(), f.Protocol}
		}
	}
	return a.flow, a.isFlow
}

// Settle is plugin.Settler's, of one ring.
func (s *settler) Settle(blocks []pcapng.Block, last bool) (done int) {
	now := s.now()
	for i, b := range blocks {
		p, isPacket := b.(*pcapng.Packet)
		if !isPacket {
			continue
		}
		a := s.ask(p, now)
		switch s.settle(&a, last) {
		case undecided:
			return i
		case left:
			blocks[i] = nil
		}
	}
	return len(blocks)
}

func (s *settler) ask(p *pcapng.Packet, now time.Time) asked {
	port := s.ports.numbered(p.Interface)
	return asked{p: p, port: port, now: now, Question: owner.Question{
		Packet:   whole(p),
		L2:       port.linkType == pcapng.Ethernet,
		Outgoing: p.Direction == pcapng.Outbound,
		Loopback: port.loopback,
		Ifindex:  port.index.Load(),
		// A clock that was set back is no reason to wait.
		Age: now.Sub(time.Unix(0, p.Time)).Abs(),
	}}
}

// verdict is what becomes of a packet.
type verdict int

const (
	kept verdict = iota
	left
	undecided // until it is asked for again
)

func (s *settler) settle(a *asked, last bool) verdict {
	v := s.view.Load()
	var inode uint32
	if a.p.UID == pcapng.UIDUnknown {
		found := s.find(a)
		if found.Wait && !last {
			return undecided
		}
		inode = s.accept(a, found, v)
		switch {
		case a.p.UID >= pcapng.UIDNone:
			a.port.unattributed.Add(1)
			if !s.keep {
				return a.leave()
			}
		case s.byOwner() && !v.Admits(a.p.UID):
			return a.leave()
		}
	}
	// The programs have decided about what they knew themselves.
	switch a.p.UID {
	case pcapng.UIDNone:
		return kept
	case pcapng.UIDUnknown:
		s.comment(a, unknown)
		return kept
	}
	n := s.name(a, inode, v)
	if s.byProcess() && !n.wanted {
		n = s.otherEnd(a, n, v)
		switch {
		case n.wanted:
		case len(n.of) == 0 && !last && a.Age < processPatience:
			return undecided
		default:
			return s.unwanted(a, n)
		}
	}
	s.comment(a, n.comments)
	return kept
}

// unwanted is for a packet whose process is not one of those that are, or is not known.
func (s *settler) unwanted(a *asked, n *named) verdict {
	if len(n.of) > 0 {
		return a.leave()
	}
	a.port.unattributed.Add(1)
	if !s.keep {
		return a.leave()
	}
	s.comment(a, n.comments)
	return kept
}

func (a *asked) leave() verdict {
	a.port.refused.Add(1)
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
func (s *settler) accept(a *asked, found owner.Answer, v *view) (inode uint32) {
	if found.Other < pcapng.UIDNone && (found.UID >= pcapng.UIDNone || s.byOwner() && !v.Admits(found.UID) && v.Admits(found.Other)) {
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
func (s *settler) name(a *asked, inode uint32, v *view) *named {
	if s.processes == nil {
		return s.ofCgroup(cgroupKey{uid: a.p.UID}, a.now, v)
	}
	if a.p.Cgroup != 0 && s.processes.Android() {
		if n := s.ofCgroup(cgroupKey{a.p.UID, a.p.Cgroup}, a.now, v); len(n.of) > 0 {
			return n
		}
	}
	if s.finder != nil && s.face(a) {
		if _, ok := a.key(); ok {
			return s.ofFlow(a, inode, v)
		}
	}
	return s.ofCgroup(cgroupKey{uid: a.p.UID}, a.now, v)
}

func (s *settler) ofCgroup(key cgroupKey, now time.Time, v *view) *named {
	n, known := s.ofCgroups.get(key)
	if known && n.apps == v && now.Before(n.until) {
		return n
	}
	var of []process.Process
	if key.cgroup != 0 {
		if p, ok := s.processes.OfCgroup(key.cgroup); ok {
			of = []process.Process{p}
		}
	}
	n = s.renew(n, key.uid, of, now, v)
	s.ofCgroups.put(key, n)
	return n
}

// ofFlow finds the process by the flow's socket. One that is gone belongs to whom it belonged.
func (s *settler) ofFlow(a *asked, inode uint32, v *view) *named {
	n, known := s.ofFlows.get(a.flow)
	if known && n.uid != a.p.UID {
		n = nil
	}
	closes := 0
	if a.flow.protocol == unix.IPPROTO_UDP {
		closes = s.finder.Closes()
	}
	if n != nil && !a.begins && n.apps == v && n.closes == closes && a.now.Before(n.until) {
		return n
	}
	if inode == 0 {
		inode = s.finder.Inode(a.Question, a.p.UID)
	}
	var of []process.Process
	if inode != 0 {
		of = s.processes.OfInode(inode)
	}
	if len(of) == 0 && n != nil && !a.begins {
		of = n.of
	}
	n = s.renew(n, a.p.UID, of, a.now, v)
	n.closes = closes
	s.ofFlows.put(a.flow, n)
	return n
}

// renew returns the owner with its names as they are now: n, if that has them. It may be nil.
func (s *settler) renew(n *named, uid uint32, of []process.Process, now time.Time, v *view) *named {
	until := now.Add(nameHolds)
	if len(of) == 0 && s.processes != nil {
		until = now.Add(namelessHolds)
	}
	if n != nil && n.uid == uid && n.apps == v && slices.Equal(n.of, of) {
		n.until = until
		return n
	}
	n = &named{uid: uid, of: slices.Clone(of), apps: v, until: until}
	var shown *process.Process
	if p, ok := s.wants(of); ok {
		n.wanted, shown = true, &p
	} else if len(of) > 0 {
		shown = &of[0]
	}
	if s.comments != commentNone {
		var names []string
		if s.book != nil {
			names = s.book.Names(uid)
		}
		n.comments = oneComment(ownerText(uid, names, shown))
	}
	return n
}

// otherEnd returns the process at the other end of a packet on the loopback interface, if that is wanted, where n is not: then the
// packet counts as its. Else it returns n.
func (s *settler) otherEnd(a *asked, n *named, v *view) *named {
	if !a.Loopback || s.finder == nil || s.processes == nil {
		return n
	}
	found, other, p := s.find(a), *a, *a.p
	other.p = &p
	other.turn()
	if p.UID = found.UID; other.turned {
		p.UID = found.Other
	}
	if p.UID >= pcapng.UIDNone || s.byOwner() && !v.Admits(p.UID) {
		return n
	}
	if _, ok := other.key(); !ok {
		return n
	}
	if o := s.ofFlow(&other, 0, v); o.wanted {
		a.p.UID, a.p.Cgroup = p.UID, 0
		return o
	}
	return n
}

var unknown = oneComment(ownerText(pcapng.UIDUnknown, nil, nil))

// oneComment makes a list that whoever appends to it copies.
func oneComment(text string) []string { return []string{text}[:1:1] }

// comment gives a packet its comment, if it is to have one.
func (s *settler) comment(a *asked, comments []string) {
	switch s.comments {
	case commentNone:
		return
	case commentFirst:
		if key, ok := a.key(); ok {
			if a.Loopback { // both ways come in there
				key = key.eitherWay()
			}
			topic, known := s.topics.get(key)
			if !known {
				topic = &pcapng.Topic{}
				s.topics.put(key, topic)
			}
			a.p.Topic = topic
		}
	}
	a.p.Comments = comments
}

// view is what the book said last.
type view struct{ apps.Rules }

// Known is plugin.Settler's.
func (s *settler) Known(blocks []pcapng.Block) (done int) { return 0 }
