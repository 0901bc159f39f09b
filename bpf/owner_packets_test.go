// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	hexadecimal "encoding/hex"
	"net/netip"
	"slices"
)

// The packets of the tests of owners go between here, port 40000, and there, port 443.

const tcp, udp, icmp, icmpv6 = 6, 17, 1, 58

const fin, syn, rst, ack = 1, 2, 4, 16

var (
	here4, there4 = [4]byte{10, 0, 0, 1}, [4]byte{192, 0, 2, 1}
	here6, there6 = netip.MustParseAddr("2001:db8::1").As16(), netip.MustParseAddr("2001:db8::2").As16()

	typeIP4 = []byte{8, 0}
	typeIP6 = []byte{0x86, 0xdd}
	tagVLAN = []byte{0x81, 0, 0, 100}
	tagQinQ = []byte{0x88, 0xa8, 0, 10}
)

func v4(a, b, c, d byte) [16]byte { return netip.AddrFrom4([4]byte{a, b, c, d}).As16() }

func theirFlow(protocol uint8) flow {
	return flow{Local: v4(10, 0, 0, 1), Remote: v4(192, 0, 2, 1), LocalPort: [2]byte{0x9c, 0x40}, RemotePort: [2]byte{1, 187}, Protocol: protocol}
}

func theirFlow6(protocol uint8) flow {
	return flow{Local: here6, Remote: there6, LocalPort: [2]byte{0x9c, 0x40}, RemotePort: [2]byte{1, 187}, Protocol: protocol}
}

// pinger is the flow of echo.
func pinger(protocol uint8) flow {
	return flow{Local: v4(10, 0, 0, 1), Remote: v4(192, 0, 2, 1), LocalPort: [2]byte{0x12, 0x34}, Protocol: protocol}
}

var pinger6 = flow{Local: here6, Remote: there6, LocalPort: [2]byte{0x12, 0x34}, Protocol: icmpv6}

func swap(f flow) flow {
	f.Local, f.Remote, f.LocalPort, f.RemotePort = f.Remote, f.Local, f.RemotePort, f.LocalPort
	return f
}

// portsOf is both ports as they stand in a header.
func portsOf(out bool) []byte {
	here, there := []byte{0x9c, 0x40}, []byte{1, 187}
	if out {
		return slices.Concat(here, there)
	}
	return slices.Concat(there, here)
}

func tcpHead(out bool, flags byte) []byte {
	return slices.Concat(portsOf(out), make([]byte, 8), []byte{0x50, flags, 0, 0, 0, 0, 0, 0})
}

func udpHead(out bool) []byte {
	return slices.Concat(portsOf(out), []byte{0, 32, 0, 0}, make([]byte, 24))
}

// echo is an ICMP message of a type with the identifier 0x1234.
func echo(kind byte) []byte {
	return append([]byte{kind, 0, 0, 0, 0x12, 0x34, 0, 1}, make([]byte, 24)...)
}

func icmpError(kind byte, quoted []byte) []byte {
	return append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, quoted...)
}

// packet4 is an IPv4 packet. fragment is the field of that name, in host byte order.
func packet4(out bool, protocol byte, fragment uint16, payload []byte) []byte {
	src, dst := here4[:], there4[:]
	if !out {
		src, dst = dst, src
	}
	head := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0}
	binary.BigEndian.PutUint16(head[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(head[6:], fragment)
	return slices.Concat(head, src, dst, payload)
}

// withOptions puts words of options behind an IPv4 header that has none.
func withOptions(packet []byte, words int) []byte {
	packet[0] += byte(words)
	return slices.Insert(packet, 20, make([]byte, 4*words)...)
}

func packet6(out bool, next byte, payload []byte) []byte {
	src, dst := here6, there6
	if !out {
		src, dst = dst, src
	}
	head := []byte{0x60, 0, 0, 0, 0, 0, next, 64}
	binary.BigEndian.PutUint16(head[4:], uint16(len(payload)))
	return slices.Concat(head, src[:], dst[:], payload)
}

// fragmentOf is a fragment of an ICMP message that comes in.
func fragmentOf(payload []byte, fragment uint16) []byte {
	return ethernet(packet4(false, icmp, fragment, payload), typeIP4)
}

// extended puts IPv6 extension headers before a payload: one of 16 bytes for each type, and a fragment header of 8 that
// says that there are no fragments. It returns the type of the first.
func extended(headers []byte, next byte, payload []byte) (byte, []byte) {
	for _, h := range slices.Backward(headers) {
		head := make([]byte, 16)
		head[1] = 1
		if h == 44 {
			head = make([]byte, 8)
		}
		head[0] = next
		next, payload = h, append(head, payload...)
	}
	return next, payload
}

func hex(b []byte) []byte { return hexadecimal.AppendEncode(nil, b) }

// ethernet puts an Ethernet header with types, the last being the payload's, before a packet.
func ethernet(packet []byte, types ...[]byte) []byte {
	toAll := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0}
	return slices.Concat(toAll, slices.Concat(types...), packet)
}
