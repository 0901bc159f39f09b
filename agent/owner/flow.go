// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"droidtap/agent/sockdiag"
)

// flow returns the flow of a packet as this machine sees it. Of an echo it is the pinger's: the identifier is the local port
// and the remote one 0.
func (h head) flow(outgoing bool) sockdiag.Flow {
	f := sockdiag.Flow{Protocol: h.protocol, Local: h.dst, Remote: h.src}
	if outgoing != h.quoted {
		f.Local, f.Remote = h.src, h.dst
	}
	if h.kind == echo {
		f.Local = netip.AddrPortFrom(f.Local.Addr(), h.src.Port())
		f.Remote = netip.AddrPortFrom(f.Remote.Addr(), 0)
	}
	return f
}

// answering tells whether this machine answers an echo with the packet, or is asked to, which the kernel does.
func (h head) answering(outgoing bool) bool {
	return h.kind == echo && h.request != (outgoing != h.quoted)
}

// FlowOf returns the flow of a packet, by which what was said of one packet can be said of the next. The source is the local
// end of an outgoing packet, also on the loopback interface. begins says that the packet opens a TCP connection, which may
// be another's than the one before on the same addresses and ports.
//
// It is not ok for what is neither TCP, UDP nor an echo, for fragments but the first, and for what is cut off before the
// ports. Of an ICMP error it is the flow of the packet that it quotes.
func FlowOf(q Question) (f sockdiag.Flow, begins, ok bool) {
	h := parse(q.Packet, q.L2)
	if h.kind != ported && h.kind != echo {
		return sockdiag.Flow{}, false, false
	}
	f = h.flow(q.Outgoing)
	f.Ifindex = q.Ifindex
	return f, h.begins, true
}

// lifetime is how long the programs and we go by what was learnt of a flow, in ns (bpf/src/owner.h learnt). A TCP socket in
// TIME_WAIT lives 60 s.
func lifetime(protocol uint8) int64 {
	if protocol == unix.IPPROTO_TCP {
		return 120e9
	}
	return 60e9
}
