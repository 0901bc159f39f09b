// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/unix"

	"droidtap/agent/sockdiag"
)

// Key is a flow as this machine sees it, to be compared and hashed by the word: what was said of one packet can be said of the next
// that has the same. IPv4 addresses are v4-mapped.
type Key struct {
	local0, local1, remote0, remote1 uint64 // halves of the addresses, as they stand in memory, little-endian
	transport                        uint64 // the protocol << 32 | the local port << 16 | the remote one
}

var le = binary.LittleEndian

// keyOf makes one of a flow.
func keyOf(f sockdiag.Flow) Key {
	local, remote := f.Local.Addr().As16(), f.Remote.Addr().As16()
	return Key{
		le.Uint64(local[:]), le.Uint64(local[8:]), le.Uint64(remote[:]), le.Uint64(remote[8:]),
		uint64(f.Protocol)<<32 | uint64(f.Local.Port())<<16 | uint64(f.Remote.Port()),
	}
}

// Is tells whether it is the same flow.
func (k *Key) Is(other *Key) bool {
	// Go would call a function for ==.
	return (k.local0^other.local0)|(k.local1^other.local1)|(k.remote0^other.remote0)|(k.remote1^other.remote1)|(k.transport^other.transport) == 0
}

// Protocol returns unix.IPPROTO_TCP, IPPROTO_UDP, IPPROTO_ICMP or IPPROTO_ICMPV6.
func (k *Key) Protocol() uint8 { return uint8(k.transport >> 32) }

// EitherWay returns the same for a flow and for the one that it is at its other end.
func (k *Key) EitherWay() Key {
	other := Key{k.remote0, k.remote1, k.local0, k.local1, k.transport&^0xffffffff | uint64(bits.RotateLeft32(uint32(k.transport), 16))}
	if k.before(&other) {
		return *k
	}
	return other
}

func (k *Key) before(other *Key) bool {
	switch {
	case k.local0 != other.local0:
		return k.local0 < other.local0
	case k.local1 != other.local1:
		return k.local1 < other.local1
	}
	return k.transport < other.transport
}

// Hash returns a number by which keys are spread evenly. Who does not know the seed cannot choose flows that fall together.
func (k *Key) Hash(seed *[4]uint64) uint64 {
	local := fold(k.local0^seed[0], k.local1^seed[1])
	remote := fold(k.remote0^seed[2], k.remote1^seed[3])
	return fold(local^k.transport, remote^seed[0])
}

func fold(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return high ^ low
}

// Read makes k the flow of a packet, which is as parse takes it. The source is the local end of an outgoing packet, also on the
// loopback interface. begins says that the packet opens a TCP connection, which may be another's than the one before on the same
// addresses and ports.
//
// It is not ok for what is neither TCP, UDP nor an echo, for fragments but the first, and for what is cut off before the
// ports. Of an ICMP error it is the flow of the packet that it quotes.
func (k *Key) Read(packet []byte, l2, outgoing bool) (begins, ok bool) {
	const (
		ethernet, ipv4, ipv6 = 14, 20, 40 // bytes of headers
		segment              = 14         // bytes behind them, as far as the flags of TCP
		fragment             = 0x3fff     // its offset, and whether there are more
		flags, syn, ack      = 13, 0x02, 0x10
	)
	// Here is what most packets are: TCP or UDP behind an IPv4 header without options, or an IPv6 header without extensions, no fragment,
	// no VLAN tag, and not cut short.
	ip := packet
	if l2 {
		if len(packet) < ethernet || be.Uint16(packet[12:]) != unix.ETH_P_IP && be.Uint16(packet[12:]) != unix.ETH_P_IPV6 {
			return k.read(packet, l2, outgoing)
		}
		ip = packet[ethernet:]
	}
	if len(ip) < ipv4+segment {
		return k.read(packet, l2, outgoing)
	}
	var carried int // bytes, as the header has it; less than 1: not known
	var protocol byte
	var behind []byte // the header
	switch {
	case ip[0] == 0x45 && be.Uint16(ip[6:])&fragment == 0:
		carried, protocol, behind = int(be.Uint16(ip[2:]))-ipv4, ip[9], ip[ipv4:]
		source, destination := mapped(ip[12:16]), mapped(ip[16:20])
		if !outgoing {
			source, destination = destination, source
		}
		k.local0, k.local1, k.remote0, k.remote1 = 0, source, 0, destination
	case ip[0]>>4 == 6 && len(ip) >= ipv6+segment:
		carried, protocol, behind = int(be.Uint16(ip[4:])), ip[6], ip[ipv6:]
		source, destination := ip[8:24], ip[24:40]
		if !outgoing {
			source, destination = destination, source
		}
		k.local0, k.local1 = le.Uint64(source), le.Uint64(source[8:])
		k.remote0, k.remote1 = le.Uint64(destination), le.Uint64(destination[8:])
	}
	if carried < segment || protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_UDP {
		return k.read(packet, l2, outgoing)
	}
	ports := be.Uint32(behind)
	if !outgoing {
		ports = bits.RotateLeft32(ports, 16)
	}
	k.transport = uint64(protocol)<<32 | uint64(ports)
	return protocol == unix.IPPROTO_TCP && behind[flags]&(syn|ack) == syn, true
}

// mapped returns the second half of a v4-mapped address.
func mapped(address []byte) uint64 { return uint64(le.Uint32(address))<<32 | 0xffff0000 }

// read is Read for all packets.
func (k *Key) read(packet []byte, l2, outgoing bool) (begins, ok bool) {
	h := parse(packet, l2)
	if h.kind != ported && h.kind != echo {
		return false, false
	}
	*k = keyOf(h.flow(outgoing))
	return h.begins, true
}
