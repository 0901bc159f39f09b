// SPDX-License-Identifier: Apache-2.0

package packet

import "droidtap/agent/pcapng"

// Known is plugin.Settler's, of one ring.
func (s *settler) Known(blocks []pcapng.Block) (done int) {
	s.begin()
	for i, b := range blocks {
		p, isPacket := b.(*pcapng.Packet)
		if !isPacket {
			continue
		}
		switch s.known(p) {
		case undecided:
			return i
		case left:
			blocks[i] = nil
		}
	}
	return len(blocks)
}

// on returns the interface of a packet.
func (s *settler) on(p *pcapng.Packet) *port {
	if s.port == nil || s.port.number != p.Interface {
		s.port = s.ports.numbered(p.Interface)
	}
	return s.port
}

// known completes a packet about which nobody has to be asked.
func (s *settler) known(p *pcapng.Packet) verdict {
	switch {
	case p.UID == pcapng.UIDUnknown:
		return undecided
	case p.UID == pcapng.UIDNone, !s.tells && !s.picks:
		return kept // by the programs
	}
	port := s.on(p)
	if port.loopback {
		return undecided // it has two owners
	}
	n, sure := s.recall(p)
	if !sure {
		return undecided
	}
	var f *flow
	if n == nil || s.first {
		begins, isFlow := s.key.Read(whole(p), port.linkType == pcapng.Ethernet, p.Direction == pcapng.Outbound)
		if isFlow {
			f = s.flow(&s.key)
		}
		switch {
		case n != nil:
		case f == nil || s.finder == nil:
			n = s.ofUID(p.UID)
		case begins || !s.counts(f, p.UID):
			return undecided
		default:
			n = f.named
		}
	}
	if s.picks && !n.wanted {
		if len(n.of) == 0 {
			return undecided
		}
		return leave(port)
	}
	s.comment(p, f, n)
	return kept
}

// recall returns the owner of a packet whose process its cgroup tells, and nil where that tells none. It is not sure where somebody has to
// be asked.
func (s *settler) recall(p *pcapng.Packet) (n *named, sure bool) {
	switch {
	case s.processes == nil:
		return s.ofUID(p.UID), true
	case !s.android || p.Cgroup == 0:
		return nil, true
	}
	key := cgroupKey{p.UID, p.Cgroup}
	g := s.group
	if g == nil || g.key != key || !s.holds(&g.held) {
		if g = s.cgroups.get(key.hash(&s.seed)); g == nil || g.key != key || !s.holds(&g.held) {
			return nil, false
		}
		s.group = g
	}
	if len(g.of) == 0 {
		return nil, true
	}
	return g.named, true
}

// comment gives a packet of a flow, which may be nil, the comment on its owner, if it is to have one.
func (s *settler) comment(p *pcapng.Packet, f *flow, of *named) {
	if !s.tells {
		return
	}
	if s.first && f != nil {
		p.Topic = &f.topic
	}
	p.Comments = of.comments
}
