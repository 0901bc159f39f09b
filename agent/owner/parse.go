// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

var be = binary.BigEndian

// kind is what a packet is to those who ask for its owner.
type kind uint8

const (
	nobodys kind = iota // the kernel's own, or no IP
	unread              // cut off before it tells, or of a protocol that is not known here
	ported              // TCP or UDP
	echo                // a request or reply of ICMP or ICMPv6
	later               // a fragment but the first
)

// head is what the start of a packet tells.
type head struct {
	kind     kind
	protocol uint8
	src, dst netip.AddrPort // of an echo the identifier is the port of src; of a later fragment there are none
	begins   bool           // a TCP connection: SYN without ACK, not quoted
	request  bool           // of an echo
	// quoted says that this is the packet which an ICMP error is about, and which went the other way.
	quoted bool
	first  bool     // a first fragment
	whole  fragment // of which it is one, if first or later
}

// fragment identifies the packet that it is one of, as struct fragment of bpf/src/owner.h.
type fragment struct {
	src, dst netip.Addr
	id       uint32
	protocol uint8 // IPv4's; 0 for IPv6
}

// parse reads the head of a packet, which may be cut short and hold anything: an Ethernet frame with up to two VLAN tags
// (l2), or what begins with an IP header.
func parse(packet []byte, l2 bool) head {
	if l2 {
		var k kind
		if packet, k = behindEthernet(packet); k != ported {
			return head{kind: k}
		}
	}
	return parseIP(packet, false)
}

// behindEthernet returns the IP packet of a frame, with ported.
func behindEthernet(frame []byte) ([]byte, kind) {
	const addresses, tag, maxTags = 12, 4, 2 // the first two in bytes
	off := addresses
	for range maxTags + 1 {
		if len(frame) < off+2 {
			return nil, unread
		}
		switch be.Uint16(frame[off:]) {
		case unix.ETH_P_IP, unix.ETH_P_IPV6:
			return frame[off+2:], ported
		case unix.ETH_P_8021Q, unix.ETH_P_8021AD:
			off += tag
		default:
			return nil, nobodys
		}
	}
	return nil, unread
}

// parseIP reads from the IP header on. quoted says that an ICMP error has it.
func parseIP(packet []byte, quoted bool) head {
	if len(packet) == 0 {
		return head{kind: unread}
	}
	h := head{kind: unread, quoted: quoted}
	var src, dst netip.Addr
	var payload []byte
	ok := false
	switch packet[0] >> 4 {
	case 4:
		src, dst, payload, ok = h.parseIPv4(packet)
	case 6:
		src, dst, payload, ok = h.parseIPv6(packet)
	}
	if !ok {
		return head{kind: unread}
	}
	h.src, h.dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
	if h.kind == later {
		return h
	}
	return h.parseTransport(payload)
}

// parseIPv4 returns what the packet carries, without the padding of a short Ethernet frame.
func (h *head) parseIPv4(packet []byte) (src, dst netip.Addr, payload []byte, ok bool) {
	const shortest, offset, more = 20, 0x1fff, 0x2000 // RFC 791, 3.1
	if len(packet) < shortest {
		return
	}
	header, total := int(packet[0]&0xf)*4, int(be.Uint16(packet[2:]))
	// The length is 0 where the network card is to cut up what does not fit in 16 bits (BIG TCP).
	if total > 0 && total < len(packet) {
		packet = packet[:total]
	}
	if header < shortest || header > len(packet) {
		return
	}
	src, dst = netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:]))
	h.protocol = packet[9]
	h.fragment(be.Uint16(packet[6:])&offset != 0, be.Uint16(packet[6:])&more != 0,
		fragment{src, dst, uint32(be.Uint16(packet[4:])), h.protocol})
	return src, dst, packet[header:], true
}

func (h *head) fragment(behind, more bool, whole fragment) {
	switch {
	case behind:
		h.kind, h.whole = later, whole
	case more:
		h.first, h.whole = true, whole
	}
}

// maxExtensions bounds the headers between that of IPv6 and what it carries. The kernel itself takes more, nobody sends them.
const maxExtensions = 8

func (h *head) parseIPv6(packet []byte) (src, dst netip.Addr, payload []byte, ok bool) {
	const header, fragmentOffset, more = 40, 0xfff8, 1 // RFC 8200, 3 and 4.5
	if len(packet) < header {
		return
	}
	src, dst = netip.AddrFrom16([16]byte(packet[8:])), netip.AddrFrom16([16]byte(packet[24:]))
	next, rest := packet[6], packet[header:]
	// The length is 0 in a jumbogram (RFC 2675).
	if size := int(be.Uint16(packet[4:])); size > 0 && size < len(rest) {
		rest = rest[:size]
	}
	for range maxExtensions + 1 {
		size := 8
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS, unix.IPPROTO_FRAGMENT:
			if len(rest) < size {
				return
			}
		default:
			h.protocol = next
			return src, dst, rest, true
		}
		if next == unix.IPPROTO_FRAGMENT {
			field := be.Uint16(rest[2:])
			h.fragment(field&fragmentOffset != 0, field&more != 0, fragment{src, dst, be.Uint32(rest[4:]), 0})
		} else {
			size += int(rest[1]) * 8
		}
		if h.kind == later {
			h.protocol = rest[0]
			return src, dst, nil, true
		}
		if len(rest) < size {
			return
		}
		next, rest = rest[0], rest[size:]
	}
	return
}

// parseTransport reads what the packet carries.
func (h *head) parseTransport(b []byte) head {
	switch h.protocol {
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		if len(b) < 4 {
			return head{kind: unread}
		}
		h.kind = ported
		h.src = netip.AddrPortFrom(h.src.Addr(), be.Uint16(b))
		h.dst = netip.AddrPortFrom(h.dst.Addr(), be.Uint16(b[2:]))
		const flags, flagSYN, flagACK = 13, 0x02, 0x10 // RFC 9293, 3.1
		h.begins = !h.quoted && h.protocol == unix.IPPROTO_TCP && len(b) > flags && b[flags]&(flagSYN|flagACK) == flagSYN
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return h.parseICMP(b)
	case unix.IPPROTO_IGMP:
		h.kind = nobodys
	}
	return *h
}

// parseICMP reads a message of RFC 792 or RFC 4443.
func (h *head) parseICMP(b []byte) head {
	const size = 8 // of the header of an echo or an error
	if len(b) == 0 {
		return head{kind: unread}
	}
	isEcho, request, isError := false, false, false
	if h.protocol == unix.IPPROTO_ICMPV6 {
		isEcho, request = b[0] == 128 || b[0] == 129, b[0] == 128
		isError = b[0] >= 1 && b[0] <= 4 // unreachable, too big, time exceeded, parameter problem
	} else {
		isEcho, request = b[0] == 8 || b[0] == 0, b[0] == 8
		switch b[0] {
		case 3, 4, 5, 11, 12: // unreachable, source quench, redirect, time exceeded, parameter problem
			isError = true
		}
	}
	switch {
	case !isEcho && !isError, isError && h.quoted: // nobody reports an error about an error
		h.kind = nobodys
	case len(b) < size:
		return head{kind: unread}
	case isError:
		return parseIP(b[size:], true)
	default:
		h.kind, h.request = echo, request
		h.src = netip.AddrPortFrom(h.src.Addr(), be.Uint16(b[4:]))
	}
	return *h
}
