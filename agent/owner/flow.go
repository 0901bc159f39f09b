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

// lifetime is how long the programs and we go by what was learnt of a flow, in ns (bpf/src/owner.h learnt). A TCP socket in
// TIME_WAIT lives 60 s.
func lifetime(protocol uint8) int64 {
	if protocol == unix.IPPROTO_TCP {
		return 120e9
	}
	return 60e9
}
