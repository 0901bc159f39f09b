// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Segment is what a packet carries: a TCP segment, or a UDP datagram with no flags.
type Segment struct {
	Protocol uint8 // unix.IPPROTO_TCP or unix.IPPROTO_UDP
	Src, Dst netip.AddrPort
	Flags    byte   // of TCP (RFC 9293, 3.1): 1 is FIN, 2 SYN, 4 RST, 0x10 ACK
	Payload  []byte // as far as it was captured
}

// ParseSegment reads a packet, which may be cut short and hold anything: an Ethernet frame with up to two VLAN tags (l2), or what begins
// with an IP header. It returns false for what is no TCP or UDP, for fragments but the first, and where the header is cut short.
func ParseSegment(packet []byte, l2 bool) (s Segment, ok bool) {
	if l2 {
		var k kind
		if packet, k = behindEthernet(packet); k != ported {
			return s, false
		}
	}
	if len(packet) == 0 {
		return s, false
	}
	var h head
	var src, dst netip.Addr
	var b []byte
	switch packet[0] >> 4 {
	case 4:
		src, dst, b, ok = h.parseIPv4(packet)
	case 6:
		src, dst, b, ok = h.parseIPv6(packet)
	}
	if !ok || h.kind == later {
		return s, false
	}
	const offset, flags, shortest, datagram = 12, 13, 20, 8 // RFC 9293, 3.1, and RFC 768
	size := datagram
	if h.protocol == unix.IPPROTO_TCP {
		if len(b) < shortest {
			return s, false
		}
		s.Flags, size = b[flags], max(shortest, int(b[offset]>>4)*4)
	} else if h.protocol != unix.IPPROTO_UDP || len(b) < datagram {
		return s, false
	}
	s.Protocol = h.protocol
	s.Src, s.Dst = netip.AddrPortFrom(src, be.Uint16(b)), netip.AddrPortFrom(dst, be.Uint16(b[2:]))
	s.Payload = b[min(size, len(b)):]
	return s, true
}
