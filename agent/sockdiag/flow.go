// SPDX-License-Identifier: Apache-2.0

// Package sockdiag tells whose a TCP or UDP flow is where no socket comes with the packet: it asks the kernel by
// NETLINK_SOCK_DIAG (sock_diag(7)), as ss does, and remembers the answers.
package sockdiag

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Flow is a TCP or UDP flow as this machine sees it.
type Flow struct {
	Protocol uint8 // unix.IPPROTO_TCP or unix.IPPROTO_UDP
	// Of one address family; IPv4-mapped addresses count as IPv4, and zones are not read.
	Local, Remote netip.AddrPort
	// Ifindex is the interface that the flow is seen on. A socket bound to an interface, as all that speak to a
	// link-local address are, is found on that one only; with 0 none of them is found.
	Ifindex uint32
}

var be = binary.BigEndian

// ParseFlow reads the flow of a packet, which may be cut short: an Ethernet frame with up to two VLAN tags (l2), or
// what begins with an IP header. The source is the local end of an outgoing packet, the destination that of another.
// syn says that the packet opens a TCP connection. The Ifindex is left to the caller.
//
// It is not ok for what is neither TCP nor UDP, for fragments but the first, and where the ports are not there.
func ParseFlow(packet []byte, l2, outgoing bool) (f Flow, syn, ok bool) {
	if l2 {
		packet = behindEthernet(packet)
	}
	protocol, src, dst, segment := parseIP(packet)
	if protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_UDP || len(segment) < 4 {
		return Flow{}, false, false
	}
	f = Flow{
		Protocol: protocol,
		Local:    netip.AddrPortFrom(src, be.Uint16(segment)),
		Remote:   netip.AddrPortFrom(dst, be.Uint16(segment[2:])),
	}
	if !outgoing {
		f.Local, f.Remote = f.Remote, f.Local
	}
	const flags, flagSYN, flagACK = 13, 0x02, 0x10 // RFC 9293, 3.1
	syn = protocol == unix.IPPROTO_TCP && len(segment) > flags && segment[flags]&(flagSYN|flagACK) == flagSYN
	return f, syn, true
}

// behindEthernet returns the IP packet of a frame, nil if there is none.
func behindEthernet(frame []byte) []byte {
	const addresses, tag, maxTags = 12, 4, 2 // the first two in bytes
	off := addresses
	for range maxTags + 1 {
		if len(frame) < off+2 {
			break
		}
		switch be.Uint16(frame[off:]) {
		case unix.ETH_P_IP, unix.ETH_P_IPV6:
			return frame[off+2:]
		case unix.ETH_P_8021Q, unix.ETH_P_8021AD:
			off += tag
		default:
			return nil
		}
	}
	return nil
}

// parseIP returns what the packet carries, without the padding of a short Ethernet frame; segment is nil where that is
// not to be told.
func parseIP(packet []byte) (protocol uint8, src, dst netip.Addr, segment []byte) {
	if len(packet) == 0 {
		return
	}
	switch packet[0] >> 4 {
	case 4:
		return parseIPv4(packet)
	case 6:
		return parseIPv6(packet)
	}
	return
}

func parseIPv4(packet []byte) (protocol uint8, src, dst netip.Addr, segment []byte) {
	const shortest, offset = 20, 0x1fff // RFC 791, 3.1
	if len(packet) < shortest {
		return
	}
	header, total := int(packet[0]&0xf)*4, int(be.Uint16(packet[2:]))
	// The length is 0 where the network card is to cut up what does not fit in 16 bits (BIG TCP).
	if total > 0 && total < len(packet) {
		packet = packet[:total]
	}
	if header < shortest || header > len(packet) || be.Uint16(packet[6:])&offset != 0 {
		return
	}
	return packet[9], netip.AddrFrom4([4]byte(packet[12:])), netip.AddrFrom4([4]byte(packet[16:])), packet[header:]
}

// maxExtensions bounds the headers between that of IPv6 and the segment. The kernel itself takes more, nobody sends them.
const maxExtensions = 8

func parseIPv6(packet []byte) (protocol uint8, src, dst netip.Addr, segment []byte) {
	const header, fragmentOffset = 40, 0xfff8 // RFC 8200, 3 and 4.5
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
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(rest) < size {
				return
			}
			size += int(rest[1]) * 8
		case unix.IPPROTO_FRAGMENT:
			if len(rest) < size || be.Uint16(rest[2:])&fragmentOffset != 0 {
				return
			}
		default:
			return next, src, dst, rest
		}
		if len(rest) < size {
			return
		}
		next, rest = rest[0], rest[size:]
	}
	return
}
