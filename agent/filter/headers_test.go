// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// cat joins the layers of a packet.
func cat(layers ...[]byte) []byte { return slices.Concat(layers...) }

func be16(v int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(v)) }
func be32(v int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(v)) }

// mac is an Ethernet address that ends in n.
func mac(n int) []byte { return []byte{2, 0, 0, 0, 0, byte(n)} }

var (
	macBroadcast = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	macMulticast = []byte{1, 0, 0x5e, 0, 0, 0xfb}
	macSTP       = []byte{1, 0x80, 0xc2, 0, 0, 0}
)

// frame is an Ethernet frame from mac(1) to mac(2).
func frame(etherType int, payload ...[]byte) []byte {
	return cat(mac(2), mac(1), be16(etherType), cat(payload...))
}

// ipv4 makes an IPv4 packet: tos, the 16 bits of flags and fragment offset, ttl,
// options (a multiple of 4 bytes).
type ipv4 struct {
	tos, frag, ttl int
	src, dst       string
	options        []byte
}

func (h ipv4) wrap(protocol int, payload ...[]byte) []byte {
	body := cat(payload...)
	addr := func(s, otherwise string) []byte {
		if s == "" {
			s = otherwise
		}
		return netip.MustParseAddr(s).AsSlice()
	}
	if h.ttl == 0 {
		h.ttl = 64
	}
	length := 20 + len(h.options)
	return cat([]byte{byte(0x40 | length/4), byte(h.tos)}, be16(length+len(body)), be16(0x1234), be16(h.frag),
		[]byte{byte(h.ttl), byte(protocol)}, be16(0), addr(h.src, "10.0.0.1"), addr(h.dst, "192.168.1.2"), h.options, body)
}

type ipv6 struct{ src, dst string }

func (h ipv6) wrap(next int, payload ...[]byte) []byte {
	body := cat(payload...)
	addr := func(s, otherwise string) []byte {
		if s == "" {
			s = otherwise
		}
		return netip.MustParseAddr(s).AsSlice()
	}
	return cat([]byte{0x60, 0, 0, 0}, be16(len(body)), []byte{byte(next), 64},
		addr(h.src, "2001:db8::1"), addr(h.dst, "2001:db8::2"), body)
}

const (
	fin, syn, rst, psh, ack, urg, ece, cwr = 1, 2, 4, 8, 16, 32, 64, 128

	protoICMP, protoIGMP, protoTCP, protoUDP, protoIPv6, protoGRE, protoESP, protoAH = 1, 2, 6, 17, 41, 47, 50, 51
	protoICMP6, protoPIM, protoVRRP, protoSCTP                                       = 58, 103, 112, 132
	extHopByHop, extRouting, extFragment, extOptions, extNone                        = 0, 43, 44, 60, 59
)

func tcp(sport, dport, flags int, options []byte, payload string) []byte {
	return cat(be16(sport), be16(dport), be32(1000), be32(2000), []byte{byte((20 + len(options)) / 4 << 4), byte(flags)},
		be16(0xffff), be16(0), be16(0), options, []byte(payload))
}

func udp(sport, dport int, payload ...[]byte) []byte {
	body := cat(payload...)
	return cat(be16(sport), be16(dport), be16(8+len(body)), be16(0), body)
}

func icmp(kind, code int) []byte {
	return cat([]byte{byte(kind), byte(code)}, be16(0), be32(0x00010001), []byte("abcdefgh"))
}

// ext is an IPv6 extension header of 8 bytes.
func ext(next int) []byte { return []byte{byte(next), 0, 1, 4, 0, 0, 0, 0} }

// longExt is one of 8 bytes and n times 8 more.
func longExt(next, n int) []byte { return cat([]byte{byte(next), byte(n), 1, 4}, make([]byte, 4+8*n)) }

// ah is an authentication header of 24 bytes.
func ah(next int) []byte { return cat([]byte{byte(next), 4, 0, 0}, be32(1), be32(1), make([]byte, 12)) }

// fragment6 is an IPv6 fragment header; off is in units of 8 bytes.
func fragment6(next, off, more int) []byte {
	return cat([]byte{byte(next), 0}, be16(off<<3|more), be32(77))
}

func tag(tci int) []byte { return cat(be16(tci)) }

// mpls is a label stack entry.
func mpls(label, bottom int) []byte { return be32(label<<12 | bottom<<8 | 64) }

func arp(op int) []byte {
	return cat(be16(1), be16(0x0800), []byte{6, 4}, be16(op), mac(1), []byte{10, 0, 0, 1}, mac(0), []byte{192, 168, 1, 2})
}

// llc is an IEEE 802.3 frame: a length in place of the type.
func llc(dst []byte, header []byte, payload ...[]byte) []byte {
	body := cat(header, cat(payload...))
	return cat(dst, mac(1), be16(len(body)), body)
}

func pppoe(session, protocol int, payload ...[]byte) []byte {
	body := cat(be16(protocol), cat(payload...))
	return cat([]byte{0x11, 0}, be16(session), be16(len(body)), body)
}

func geneve(vni, protocol int, payload ...[]byte) []byte {
	return geneveWith(nil, vni, protocol, payload...)
}

// geneveWith has options, a multiple of 4 bytes.
func geneveWith(options []byte, vni, protocol int, payload ...[]byte) []byte {
	return cat([]byte{byte(len(options) / 4), 0}, be16(protocol), be32(vni<<8), options, cat(payload...))
}

func vxlan(vni int, inner []byte) []byte { return cat([]byte{8, 0, 0, 0}, be32(vni<<8), inner) }

func sctp(sport, dport int) []byte {
	return cat(be16(sport), be16(dport), be32(0), be32(0), []byte{0, 3, 0, 20}, make([]byte, 16))
}

// isis is an IS-IS PDU of a type in its LLC frame.
func isis(pdu int) []byte {
	return llc([]byte{1, 0x80, 0xc2, 0, 0, 0x14}, []byte{0xfe, 0xfe, 3},
		[]byte{0x83, 27, 1, 0, byte(pdu), 1, 0, 0, 1}, make([]byte, 40))
}

// decnet is a DECnet packet between areas and nodes in one of its four forms: with the long header
// or the short one, with a byte of padding before it or none.
func decnet(long, padded bool, src, dst int) []byte {
	le := func(v int) []byte { return binary.LittleEndian.AppendUint16(nil, uint16(v)) }
	header := cat([]byte{2}, le(dst), le(src), []byte{0})
	if long {
		header = cat([]byte{6, 0, 0, 0xaa, 0, 4, 0}, le(dst), []byte{0, 0, 0xaa, 0, 4, 0}, le(src), make([]byte, 4))
	}
	if padded {
		header = cat([]byte{0x81}, header)
	}
	header = cat(header, []byte("decnet"))
	return frame(0x6003, le(len(header)), header, make([]byte, 24))
}
