// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Transport says where the parts of a TCP or UDP packet are: offsets in its bytes.
type Transport struct {
	Protocol                byte // IPPROTO_TCP or IPPROTO_UDP
	IP, Header, Payload, At int  // At is the checksum's
}

// ParseEthernet parses a whole frame, with VLAN tags or without. It is no TCP or UDP packet where ok is false: another
// protocol, a fragment, or headers that are cut; h.Payload is 0 then.
func ParseEthernet(frame string) (h Transport, ok bool) {
	at := 12
	for {
		if len(frame) < at+2 {
			return h, false
		}
		switch be.Uint16([]byte(frame[at:])) {
		case TypeVLAN, TypeQinQ:
			at += 4
		case TypeIPv4, TypeIPv6:
			return ParseIP(frame, at+2)
		default:
			return h, false
		}
	}
}

// ParseIP does so for a packet whose IP header is at an offset.
func ParseIP(packet string, ip int) (h Transport, ok bool) {
	h.IP = ip
	b := []byte(packet[min(len(packet), ip):])
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		h.Protocol, h.Header = b[9], ip+int(b[0]&15)*4
		if be.Uint16(b[6:])&0x3fff != 0 {
			return h, false
		}
	case len(b) >= 40 && b[0]>>4 == 6:
		h.Protocol, h.Header = b[6], ip+40
		// The jumbo payload option, the only one here, stands in packets of BIG TCP.
		if h.Protocol == 0 && len(b) >= 48 {
			h.Protocol, h.Header = b[40], ip+48
		}
	default:
		return h, false
	}
	switch {
	case h.Protocol == unix.IPPROTO_TCP && len(packet) >= h.Header+20:
		h.At, h.Payload = h.Header+16, h.Header+int(packet[h.Header+12]>>4)*4
	case h.Protocol == unix.IPPROTO_UDP && len(packet) >= h.Header+8:
		h.At, h.Payload = h.Header+6, h.Header+8
	default:
		return h, false
	}
	if h.Payload > len(packet) {
		h.Payload = 0
	}
	return h, h.Payload > 0
}

// pseudo returns the sum, not yet inverted, of the pseudo-header of a packet of that length.
func (h Transport) pseudo(packet string) uint16 {
	addresses := packet[h.IP+12 : h.IP+20]
	if packet[h.IP]>>4 == 6 {
		addresses = packet[h.IP+8 : h.IP+40]
	}
	b := be.AppendUint32([]byte(addresses), uint32(len(packet)-h.Header))
	return ^Checksum(append(b, 0, 0, 0, h.Protocol))
}

// Checksum returns what stands in the place of the packet's checksum: "full", the checksum; "partial", the sum of the
// pseudo-header, to which whoever finishes the packet adds the rest (CHECKSUM_PARTIAL, Linux include/linux/skbuff.h);
// "either", where these are equal, as in one of 65,536 packets; "none", nothing; or "wrong". The packet must not be cut.
func (h Transport) Checksum(packet string) string {
	sum, pseudo := be.Uint16([]byte(packet[h.At:])), h.pseudo(packet)
	switch all := Checksum(be.AppendUint16([]byte(packet[h.Header:] + "\x00")[:(len(packet)-h.Header+1)&^1], pseudo)); {
	case all == 0 && sum == pseudo:
		return "either"
	case all == 0:
		return "full"
	case sum == pseudo:
		return "partial"
	case sum == 0 && h.Protocol == unix.IPPROTO_UDP:
		return "none"
	default:
		return "wrong"
	}
}

const (
	tcpFIN = 1
	tcpPSH = 8
	tcpCWR = 128
)

// Segment returns what the kernel makes of a packet for a device that does not do it: packets of at most size bytes of
// payload, with checksums that are full or partial (Linux net/ipv4/tcp_offload.c tcp_gso_segment, udp_offload.c
// __udp_gso_segment). A full checksum of zero is written as 0xffff.
func (h Transport) Segment(packet string, size int, full bool) []string {
	var segments []string
	payload := packet[h.Payload:]
	for at := 0; at == 0 || at < len(payload); at += max(1, size) {
		last := at+size >= len(payload)
		b := []byte(packet[:h.Payload] + payload[at:min(len(payload), at+size)])
		ip, l4 := b[h.IP:], b[h.Header:]
		if ip[0]>>4 == 4 {
			be.PutUint16(ip[2:], uint16(len(ip)))
			be.PutUint16(ip[4:], be.Uint16(ip[4:])+uint16(len(segments)))
			be.PutUint16(ip[10:], 0)
			be.PutUint16(ip[10:], Checksum(ip[:h.Header-h.IP]))
		} else {
			be.PutUint16(ip[4:], uint16(len(l4)))
		}
		if h.Protocol == unix.IPPROTO_TCP {
			be.PutUint32(l4[4:], be.Uint32(l4[4:])+uint32(at))
			if !last {
				l4[13] &^= tcpFIN | tcpPSH
			}
			if at > 0 {
				l4[13] &^= tcpCWR
			}
		} else {
			be.PutUint16(l4[4:], uint16(len(l4)))
		}
		be.PutUint16(b[h.At:], h.pseudo(string(b)))
		if full {
			sum := Checksum(l4)
			if sum == 0 {
				sum = 0xffff
			}
			be.PutUint16(b[h.At:], sum)
		}
		segments = append(segments, string(b))
	}
	return segments
}

// Streams puts the payload of TCP packets together by their sequence numbers. The key is "source > destination". The
// packets are whole, and begin at the IP header at an offset, 14 for an Ethernet header. It is an error where a stream
// does not begin, has a gap, or is sent again with other bytes.
func Streams(packets []string, ip int) (map[string]string, error) {
	type stream struct {
		first uint32
		bytes []byte
		known []bool
	}
	streams := map[string]*stream{}
	for i, p := range packets {
		h, ok := ParseIP(p, ip)
		if !ok || h.Protocol != unix.IPPROTO_TCP {
			continue
		}
		key := h.flow(p)
		seq, flags := be.Uint32([]byte(p[h.Header+4:])), p[h.Header+13]
		s := streams[key]
		if flags&2 != 0 { // SYN
			if s == nil {
				streams[key] = &stream{first: seq + 1}
			}
			continue
		}
		if s == nil {
			return nil, fmt.Errorf("packet %d: %s does not begin", i, key)
		}
		at, end := int(int32(seq-s.first)), int(int32(seq-s.first))+len(p)-h.Payload
		if at < 0 || at == end { // a keepalive's, or no payload
			continue
		}
		for len(s.bytes) < end {
			s.bytes, s.known = append(s.bytes, 0), append(s.known, false)
		}
		for j := at; j < end; j++ {
			c := p[h.Payload+j-at]
			if s.known[j] && s.bytes[j] != c {
				return nil, fmt.Errorf("packet %d: %s sends byte %d again as another one", i, key, j)
			}
			s.bytes[j], s.known[j] = c, true
		}
	}
	all := map[string]string{}
	for key, s := range streams {
		for i, known := range s.known {
			if !known {
				return nil, fmt.Errorf("%s: byte %d of %d is missing", key, i, len(s.bytes))
			}
		}
		all[key] = string(s.bytes)
	}
	return all, nil
}

// Source returns the address that the packet is from.
func (h Transport) Source(packet string) netip.Addr { return h.address(packet, 0) }

// Destination returns the address that the packet is for.
func (h Transport) Destination(packet string) netip.Addr { return h.address(packet, 1) }

func (h Transport) address(packet string, n int) netip.Addr {
	at, size := h.IP+12, 4
	if packet[h.IP]>>4 == 6 {
		at, size = h.IP+8, 16
	}
	a, _ := netip.AddrFromSlice([]byte(packet[at+n*size:][:size]))
	return a
}

// flow returns "source > destination".
func (h Transport) flow(packet string) string {
	return netip.AddrPortFrom(h.Source(packet), be.Uint16([]byte(packet[h.Header:]))).String() + " > " +
		netip.AddrPortFrom(h.Destination(packet), be.Uint16([]byte(packet[h.Header+2:]))).String()
}
