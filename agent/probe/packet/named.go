// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"math/bits"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/owner"
	"droidtap/agent/pcapng"
	"droidtap/agent/process"
)

const (
	// How long it holds which process a flow or a cgroup is of: a process may take another name, and another one a socket.
	nameHolds = 2 * time.Second
	// and that nothing tells it.
	namelessHolds = 50 * time.Millisecond
	// recentOwners bounds the cgroups, and the owners, whose names are known, recentFlows the flows: a server has 100,000.
	recentOwners, recentFlows = 4096, 100_000
	// flowIdle is how long a flow without packets is remembered: longer than a TCP socket is in TIME_WAIT, so that one whose socket is
	// gone keeps its process.
	flowIdle = 3 * time.Minute
)

type cgroupKey struct {
	uid    uint32
	cgroup uint64 // 0: only the uid counts
}

func (k *cgroupKey) hash(seed *[4]uint64) uint64 {
	high, low := bits.Mul64(k.cgroup^seed[0], uint64(k.uid)^seed[1])
	return high ^ low
}

// held is an owner, and how long it is taken for the one. It is empty as long as nobody has been asked.
type held struct {
	*named
	until time.Duration // since settler.began
}

// group is what is known of a cgroup.
type group struct {
	key cgroupKey
	held
}

// named is an owner with its names. It does not change.
type named struct {
	uid      uint32
	of       []process.Process // of its processes, those that have the socket; none: not known
	wanted   bool              // one of them is
	comments []string          // one line, shared by all packets: not to be changed, nor appended to
	apps     *view             // by which it was named
}

// nameKey is what most owners differ in.
type nameKey struct {
	uid   uint32
	first process.Process // of its processes
}

// flow is what is known of one.
type flow struct {
	key   owner.Key
	topic pcapng.Topic // of its comments
	held               // by whom, as its socket told
	// closes of UDP sockets, when that was asked for: the port of a flow of UDP may be another's since.
	closes int
}

// holds tells whether an owner that was found out counts still.
func (s *settler) holds(h *held) bool { return h.named != nil && s.at < h.until && h.apps == s.apps }

// ofUID is for a packet whose process nobody tells.
func (s *settler) ofUID(uid uint32) *named { return s.ofCgroup(cgroupKey{uid: uid}) }

func (s *settler) ofCgroup(key cgroupKey) *named {
	hash := key.hash(&s.seed)
	g := s.cgroups.get(hash)
	switch {
	case g == nil || g.key != key:
		g = &group{key: key}
		s.cgroups.put(hash, g)
	case s.holds(&g.held):
		return g.named
	}
	var of []process.Process
	if key.cgroup != 0 {
		if p, ok := s.processes.OfCgroup(key.cgroup); ok {
			of = []process.Process{p}
		}
	}
	return s.hold(&g.held, key.uid, of)
}

// counts tells whether a flow's owner, as its socket told it, still counts for a packet of the uid.
func (s *settler) counts(f *flow, uid uint32) bool {
	return s.holds(&f.held) && f.uid == uid && (f.closes == s.closes || f.key.Protocol() != unix.IPPROTO_UDP)
}

// ofFlow finds the process by the flow's socket. One that is gone belongs to whom it belonged.
func (s *settler) ofFlow(a *asked, f *flow, inode uint32) *named {
	s.closes = s.finder.Closes()
	if !a.begins && s.counts(f, a.p.UID) {
		return f.named
	}
	if inode == 0 {
		inode = s.finder.Inode(a.Question, a.p.UID)
	}
	var of []process.Process
	if inode != 0 {
		of = s.processes.OfInode(inode)
	}
	if len(of) == 0 && !a.begins && f.named != nil && f.uid == a.p.UID {
		of = f.of
	}
	f.closes = s.closes
	return s.hold(&f.held, a.p.UID, of)
}

// hold takes a uid and its processes for the owner from now on.
func (s *settler) hold(h *held, uid uint32, of []process.Process) *named {
	h.until = s.at + nameHolds
	if len(of) == 0 && s.processes != nil {
		h.until = s.at + namelessHolds
	}
	h.named = s.named(uid, of)
	return h.named
}

// named returns an owner with its names as they are now.
func (s *settler) named(uid uint32, of []process.Process) *named {
	key := nameKey{uid: uid}
	if len(of) > 0 {
		key.first = of[0]
	}
	n, known := s.names[key]
	if known && n.apps == s.apps && slices.Equal(n.of, of) {
		return n
	}
	n = &named{uid: uid, of: slices.Clone(of), apps: s.apps}
	var shown *process.Process
	if p, ok := s.wants(of); ok {
		n.wanted, shown = true, &p
	} else if len(of) > 0 {
		shown = &of[0]
	}
	if s.tells {
		var names []string
		if s.book != nil {
			names = s.book.Names(uid)
		}
		n.comments = oneComment(ownerText(uid, names, shown))
	}
	if len(s.names) >= recentOwners {
		clear(s.names)
	}
	s.names[key] = n
	return n
}

// flow returns what is known of a flow.
func (s *settler) flow(key *owner.Key) *flow {
	if s.lately != nil && s.lately.key.Is(key) { // packets come in trains
		return s.lately
	}
	hash := key.Hash(&s.seed)
	f := s.flows.get(hash)
	if f == nil || !f.key.Is(key) {
		f = &flow{key: *key}
		s.flows.put(hash, f)
	}
	s.lately = f
	return f
}
