// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/agent/sockdiag"
	"droidtap/scripts/nettest"
)

const (
	a4, b4 = "10.1.0.1", "192.0.2.7"
	a6, b6 = "fd00::1", "2001:db8::7"
)

func flow(protocol uint8, local, remote string) sockdiag.Flow {
	return sockdiag.Flow{Protocol: protocol, Local: netip.MustParseAddrPort(local), Remote: netip.MustParseAddrPort(remote)}
}

func udp() []byte { return nettest.UDP(5353, 443, []byte("payload")) }

// tcp is a segment from port 5353 to 443.
func tcp(flags byte) []byte {
	segment := nettest.Reset(5353, 443, nil)
	segment[13] = flags
	return segment
}

// extend puts an IPv6 extension header, as long as its length field says, before what follows.
func extend(next, length byte, fragment uint16, payload []byte) []byte {
	b := make([]byte, 8+8*int(length))
	b[0], b[1] = next, length
	binary.BigEndian.PutUint16(b[2:], fragment)
	return append(b, payload...)
}

// options puts as many destination options headers before a UDP datagram.
func options(headers int) []byte {
	payload := extend(unix.IPPROTO_UDP, 0, 0, udp())
	for range headers - 1 {
		payload = extend(unix.IPPROTO_DSTOPTS, 0, 0, payload)
	}
	return payload
}

func ethernet(kind uint16, payload []byte, tags ...[2]uint16) []byte {
	return nettest.Ethernet(nettest.NearMAC, nettest.FarMAC, kind, payload, tags...)
}

func TestKey(t *testing.T) {
	ip4 := func(fragment uint16, options, payload []byte) []byte {
		return nettest.IPv4(a4, b4, unix.IPPROTO_UDP, fragment, options, payload)
	}
	ip6 := func(next byte, payload []byte) []byte { return nettest.IPv6(a6, b6, next, payload) }
	tcp4 := func(flags byte) []byte { return nettest.IPv4(a4, b4, unix.IPPROTO_TCP, 0, nil, tcp(flags)) }
	udp4 := flow(unix.IPPROTO_UDP, a4+":5353", b4+":443")
	udp6 := flow(unix.IPPROTO_UDP, "["+a6+"]:5353", "["+b6+"]:443")
	plain := ip4(0, nil, udp())
	long := binary.BigEndian.AppendUint16([]byte{0x45, 0}, 0)
	reserved := extend(unix.IPPROTO_UDP, 0, 1, udp())
	reserved[1] = 1
	none := sockdiag.Flow{}
	for _, c := range []struct {
		rule   string
		packet []byte
		l2     bool
		want   sockdiag.Flow
		syn    bool
	}{
		{"IPv4", plain, false, udp4, false},
		{"IPv4 with options", ip4(0, make([]byte, 40), udp()), false, udp4, false},
		{"a first fragment", ip4(0x2000, nil, udp()), false, udp4, false},
		{"another fragment has no ports", ip4(0x2001, nil, udp()), false, none, false},
		{"cut behind the ports", plain[:24], false, udp4, false},
		{"cut in the ports", plain[:23], false, none, false},
		{"cut in the options", ip4(0, make([]byte, 40), udp())[:59], false, none, false},
		{"cut in the header", plain[:19], false, none, false},
		{"a header shorter than any", append([]byte{0x44}, plain[1:]...), false, none, false},
		{"a length of 0 is not known", append(bytes.Clone(long), plain[4:]...), false, udp4, false},
		{"padding is no port", append(ip4(0, nil, nil), udp()...), false, none, false},
		{"neither TCP nor UDP", nettest.IPv4(a4, b4, unix.IPPROTO_ICMP, 0, nil, udp()), false, none, false},
		{"another version", append([]byte{0x55}, plain[1:]...), false, none, false},
		{"nothing", nil, false, none, false},

		{"IPv6", ip6(unix.IPPROTO_UDP, udp()), false, udp6, false},
		{"IPv6 cut behind the ports", ip6(unix.IPPROTO_UDP, udp())[:44], false, udp6, false},
		{"IPv6 cut in the header", ip6(unix.IPPROTO_UDP, udp())[:39], false, none, false},
		{"IPv6 padding is no port", append(ip6(unix.IPPROTO_UDP, udp()[:3]), udp()...), false, none, false},
		{"an IPv6 length of 0 is not known", append(ip6(unix.IPPROTO_UDP, nil), udp()...), false, udp6, false},
		{"a longer extension", ip6(unix.IPPROTO_HOPOPTS, extend(unix.IPPROTO_UDP, 2, 0, udp())), false, udp6, false},
		{"a routing header", ip6(unix.IPPROTO_ROUTING, extend(unix.IPPROTO_UDP, 0, 0, udp())), false, udp6, false},
		{"IPv6, a first fragment", ip6(unix.IPPROTO_FRAGMENT, extend(unix.IPPROTO_UDP, 0, 1, udp())), false, udp6, false},
		{"a reserved byte is no length", ip6(unix.IPPROTO_FRAGMENT, reserved), false, udp6, false},
		{"IPv6, another fragment", ip6(unix.IPPROTO_FRAGMENT, extend(unix.IPPROTO_UDP, 0, 8, udp())), false, none, false},
		{"eight extensions", ip6(unix.IPPROTO_DSTOPTS, options(8)), false, udp6, false},
		{"nine extensions", ip6(unix.IPPROTO_DSTOPTS, options(9)), false, none, false},
		{"a cut extension", ip6(unix.IPPROTO_DSTOPTS, options(1))[:47], false, none, false},
		{"encrypted", ip6(unix.IPPROTO_ESP, udp()), false, none, false},
		{"no next header", ip6(unix.IPPROTO_NONE, udp()), false, none, false},

		{"Ethernet", ethernet(nettest.TypeIPv4, plain), true, udp4, false},
		{"a VLAN tag", ethernet(nettest.TypeIPv4, plain, [2]uint16{nettest.TypeVLAN, 5}), true, udp4, false},
		{"two VLAN tags", ethernet(nettest.TypeIPv6, ip6(unix.IPPROTO_UDP, udp()), [2]uint16{nettest.TypeQinQ, 5},
			[2]uint16{nettest.TypeVLAN, 6}), true, udp6, false},
		{"three VLAN tags", ethernet(nettest.TypeIPv4, plain, [2]uint16{nettest.TypeQinQ, 5}, [2]uint16{nettest.TypeVLAN, 6},
			[2]uint16{nettest.TypeVLAN, 7}), true, none, false},
		{"a frame cut in the tag", ethernet(nettest.TypeIPv4, plain, [2]uint16{nettest.TypeVLAN, 5})[:17], true, none, false},
		{"a frame cut in the header", ethernet(nettest.TypeIPv4, plain)[:13], true, none, false},
		{"a frame without a packet", ethernet(nettest.TypeIPv4, nil), true, none, false},
		{"ARP", ethernet(nettest.TypeARP, nettest.ARP(nettest.NearMAC, a4, b4)), true, none, false},

		{"a SYN", tcp4(2), false, flow(unix.IPPROTO_TCP, a4+":5353", b4+":443"), true},
		{"a SYN of ECN", tcp4(0xc2), false, flow(unix.IPPROTO_TCP, a4+":5353", b4+":443"), true},
		{"a SYN-ACK opens nothing", tcp4(0x12), false, flow(unix.IPPROTO_TCP, a4+":5353", b4+":443"), false},
		{"a segment cut before the flags", tcp4(2)[:33], false, flow(unix.IPPROTO_TCP, a4+":5353", b4+":443"), false},
	} {
		t.Run(c.rule, func(t *testing.T) {
			for _, outgoing := range []bool{true, false} {
				want := c.want
				if !outgoing {
					want.Local, want.Remote = want.Remote, want.Local
				}
				var got Key
				syn, ok := got.Read(c.packet, c.l2, outgoing)
				if syn != c.syn || ok != (c.want != none) || ok && got != keyOf(want) {
					t.Errorf("outgoing %v: %x, want %x; syn %v, ok %v", outgoing, got, keyOf(want), syn, ok)
				}
			}
		})
	}
}

// TestParseKinds is for what has no ports of its own.
func TestParseKinds(t *testing.T) {
	icmp6 := func(kind byte, payload []byte) []byte {
		return append([]byte{kind, 0, 0, 0, 0x12, 0x34, 0, 0}, payload...)
	}
	udp6 := nettest.IPv6(a6, b6, unix.IPPROTO_UDP, udp())
	for _, c := range []struct {
		rule   string
		packet []byte
		want   kind
		quoted bool
	}{
		{"an echo request of ICMPv6", nettest.IPv6(a6, b6, unix.IPPROTO_ICMPV6, icmp6(128, nil)), echo, false},
		{"an echo cut in the identifier", nettest.IPv6(a6, b6, unix.IPPROTO_ICMPV6, icmp6(128, nil)[:7]), unread, false},
		{"a message cut before the type", nettest.IPv6(a6, b6, unix.IPPROTO_ICMPV6, nil), unread, false},
		{"a neighbour's advertisement", nettest.IPv6(a6, b6, unix.IPPROTO_ICMPV6, icmp6(136, nil)), nobodys, false},
		{"too big", nettest.IPv6(b6, a6, unix.IPPROTO_ICMPV6, icmp6(2, udp6)), ported, true},
		{"an error behind extensions", nettest.IPv6(b6, a6, unix.IPPROTO_DSTOPTS, extend(unix.IPPROTO_ICMPV6, 0, 0, icmp6(1, udp6))), ported, true},
		{"an error that quotes too little", nettest.IPv6(b6, a6, unix.IPPROTO_ICMPV6, icmp6(2, udp6[:43])), unread, false},
		{"an error that quotes nothing", nettest.IPv6(b6, a6, unix.IPPROTO_ICMPV6, icmp6(2, nil)), unread, false},
		{"a later fragment", nettest.IPv6(a6, b6, unix.IPPROTO_FRAGMENT, extend(unix.IPPROTO_UDP, 0, 8, nil)), later, false},
		{"a timestamp request", nettest.IPv4(a4, b4, unix.IPPROTO_ICMP, 0, nil, icmp6(13, nil)), nobodys, false},
	} {
		t.Run(c.rule, func(t *testing.T) {
			h := parse(c.packet, false)
			if h.kind != c.want || h.quoted != c.quoted {
				t.Errorf("%+v, want kind %d", h, c.want)
			}
			if c.want == echo && (h.src.Port() != 0x1234 || !h.request) {
				t.Errorf("%+v, want identifier 0x1234", h)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	plain := nettest.IPv4(a4, b4, unix.IPPROTO_UDP, 0, nil, udp())
	f.Add(ethernet(nettest.TypeIPv4, nettest.IPv4(a4, b4, unix.IPPROTO_TCP, 0, make([]byte, 4), tcp(2))), true, true)
	f.Add(ethernet(nettest.TypeIPv6, nettest.IPv6(a6, b6, unix.IPPROTO_DSTOPTS, options(3)), [2]uint16{nettest.TypeVLAN, 5}), true, false)
	f.Add(nettest.IPv6(a6, b6, unix.IPPROTO_TCP, tcp(2)), false, false)
	f.Add(nettest.IPv6(a6, b6, unix.IPPROTO_FRAGMENT, extend(unix.IPPROTO_UDP, 0, 9, udp())), false, false)
	f.Add(nettest.IPv4(b4, a4, unix.IPPROTO_ICMP, 0, nil, append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, plain...)), false, true)
	f.Add(nettest.IPv4(b4, a4, unix.IPPROTO_ICMP, 0x2000, nil, nettest.Echo(nil)), false, true)
	f.Fuzz(func(t *testing.T, packet []byte, l2, outgoing bool) {
		var short, long Key
		begins, ok := short.Read(packet, l2, outgoing)
		if b, is := long.read(packet, l2, outgoing); b != begins || is != ok || ok && short != long {
			t.Errorf("%x, begins %v, ok %v; the long way %x, begins %v, ok %v", short, begins, ok, long, b, is)
		}
		h := parse(packet, l2)
		if h.kind == nobodys || h.kind == unread {
			return
		}
		flow := h.flow(outgoing)
		if flow.Local.Addr().BitLen() != flow.Remote.Addr().BitLen() || !flow.Local.IsValid() ||
			h.begins && h.protocol != unix.IPPROTO_TCP || (h.kind == later || h.first) != (h.whole != fragment{}) {
			t.Errorf("%+v is of the flow %+v", h, flow)
		}
		back := h.flow(!outgoing)
		if back.Local.Addr() != flow.Remote.Addr() || back.Remote.Addr() != flow.Local.Addr() ||
			h.kind == ported && back.Local != flow.Remote {
			t.Errorf("the other direction of %+v is %+v", flow, back)
		}
		_, finder := newFake()
		finder.Find(Question{Packet: packet, L2: l2, Outgoing: outgoing})
	})
}
