// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

var be = binary.BigEndian

// Ethernet types.
const (
	TypeIPv4 = unix.ETH_P_IP
	TypeIPv6 = unix.ETH_P_IPV6
	TypeARP  = unix.ETH_P_ARP
	TypeVLAN = unix.ETH_P_8021Q
	TypeQinQ = unix.ETH_P_8021AD
	// TypeLocal is for experiments (IEEE 802 local experimental): nobody answers it.
	TypeLocal = 0x88b5
)

// Ethernet returns a frame. The pairs in tags are TPID and TCI, outermost first.
func Ethernet(dst, src string, kind uint16, payload []byte, tags ...[2]uint16) []byte {
	var b []byte
	for _, mac := range []string{dst, src} {
		hw, err := net.ParseMAC(mac)
		if err != nil {
			panic(err)
		}
		b = append(b, hw...)
	}
	for _, tag := range tags {
		b = be.AppendUint16(be.AppendUint16(b, tag[0]), tag[1])
	}
	return append(be.AppendUint16(b, kind), payload...)
}

// IPv4 returns a packet. fragment is the 16-bit field with flags and offset; options is a multiple of four bytes.
func IPv4(src, dst string, protocol byte, fragment uint16, options, payload []byte) []byte {
	header := 20 + len(options)
	b := []byte{0x40 | byte(header/4), 0}
	b = be.AppendUint16(b, uint16(header+len(payload)))
	b = be.AppendUint16(b, 0x4242)
	b = be.AppendUint16(b, fragment)
	b = append(b, 64, protocol, 0, 0)
	b = append(b, netip.MustParseAddr(src).AsSlice()...)
	b = append(b, netip.MustParseAddr(dst).AsSlice()...)
	b = append(b, options...)
	be.PutUint16(b[10:], Checksum(b))
	return append(b, payload...)
}

// IPv6 returns a packet.
func IPv6(src, dst string, next byte, payload []byte) []byte {
	b := []byte{0x60, 0, 0, 0}
	b = be.AppendUint16(b, uint16(len(payload)))
	b = append(b, next, 64)
	b = append(b, netip.MustParseAddr(src).AsSlice()...)
	b = append(b, netip.MustParseAddr(dst).AsSlice()...)
	return append(b, payload...)
}

// UDP returns a datagram without a checksum, which IPv4 allows.
func UDP(src, dst uint16, payload []byte) []byte {
	b := be.AppendUint16(nil, src)
	b = be.AppendUint16(b, dst)
	b = be.AppendUint16(b, uint16(8+len(payload)))
	return append(append(b, 0, 0), payload...)
}

// Reset returns a TCP reset, with a payload. Nobody answers it.
func Reset(src, dst uint16, payload []byte) []byte {
	b := be.AppendUint16(nil, src)
	b = be.AppendUint16(b, dst)
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 4, 0, 0, 0, 0, 0, 0)
	return append(b, payload...)
}

// Echo returns an ICMP echo request.
func Echo(payload []byte) []byte {
	b := append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, payload...)
	be.PutUint16(b[2:], Checksum(b))
	return b
}

// ARP returns a request of src, at mac, for dst.
func ARP(mac, src, dst string) []byte {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		panic(err)
	}
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(b, hw...)
	b = append(b, netip.MustParseAddr(src).AsSlice()...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, netip.MustParseAddr(dst).AsSlice()...)
}

// Checksum returns what RFC 1071 does: that of an IPv4 header, and of what is in IP. To an odd length it adds a byte of 0.
func Checksum(b []byte) uint16 {
	var sum uint64 // a packet of BIG TCP is too much for 32 bits
	for i := 0; i < len(b); i += 2 {
		word := uint64(b[i]) << 8
		if i+1 < len(b) {
			word |= uint64(b[i+1])
		}
		sum += word
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Send sends frames, as they are, out of an interface of the namespace that the thread is in.
func Send(ifname string, frames ...[]byte) error {
	fd, err := PacketSocket(ifname)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, frame := range frames {
		if _, err := unix.Write(fd, frame); err != nil {
			return fmt.Errorf("send %d bytes on %s: %w", len(frame), ifname, err)
		}
	}
	return nil
}
