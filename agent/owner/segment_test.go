// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

func TestParseSegment(t *testing.T) {
	segment := append(tcp(0x18), "hello"...)
	options := append(append(tcp(0x10)[:20:20], make([]byte, 8)...), "hello"...)
	options[12] = 7 << 4
	far := append(tcp(0x10)[:20:20], "hello"...)
	far[12] = 15 << 4
	near := append(tcp(0x10)[:20:20], "hello"...)
	near[12] = 1 << 4
	ip4 := func(protocol byte, fragment uint16, b []byte) []byte {
		return nettest.IPv4(a4, b4, protocol, fragment, nil, b)
	}
	for _, c := range []struct {
		rule    string
		packet  []byte
		l2      bool
		flags   byte
		payload string
		is      bool
	}{
		{"TCP", ip4(unix.IPPROTO_TCP, 0, segment), false, 0x18, "hello", true},
		{"padding is no payload", append(ip4(unix.IPPROTO_TCP, 0, segment), "....."...), false, 0x18, "hello", true},
		{"behind Ethernet", ethernet(unix.ETH_P_IP, ip4(unix.IPPROTO_TCP, 0, segment)), true, 0x18, "hello", true},
		{"options are no payload", ip4(unix.IPPROTO_TCP, 0, options), false, 0x10, "hello", true},
		{"options that are cut off", ip4(unix.IPPROTO_TCP, 0, far), false, 0x10, "", true},
		{"a header shorter than any", ip4(unix.IPPROTO_TCP, 0, near), false, 0x10, "hello", true},
		{"a first fragment", ip4(unix.IPPROTO_TCP, 0x2000, segment), false, 0x18, "hello", true},
		{"another fragment", ip4(unix.IPPROTO_TCP, 1, segment), false, 0, "", false},
		{"a header that is cut", ip4(unix.IPPROTO_TCP, 0, segment)[:39], false, 0, "", false},
		{"UDP", ip4(unix.IPPROTO_UDP, 0, udp()), false, 0, "payload", true},
		{"UDP that is cut", ip4(unix.IPPROTO_UDP, 0, udp())[:27], false, 0, "", false},
		{"IPv6", nettest.IPv6(a6, b6, unix.IPPROTO_TCP, segment), false, 0x18, "hello", true},
		{"another protocol", ip4(unix.IPPROTO_ICMP, 0, segment), false, 0, "", false},
		{"another version", []byte{0x50, 0}, false, 0, "", false},
		{"nothing", nil, false, 0, "", false},
		{"an empty frame", nil, true, 0, "", false},
	} {
		s, is := ParseSegment(c.packet, c.l2)
		if is != c.is || s.Flags != c.flags || string(s.Payload) != c.payload {
			t.Errorf("%s: %v, flags %#x, payload %q", c.rule, is, s.Flags, s.Payload)
		}
		if is && (s.Src.Port() != 5353 || s.Dst.Port() != 443 || s.Src.Addr() != netip.MustParseAddr(a4) && s.Src.Addr() != netip.MustParseAddr(a6)) {
			t.Errorf("%s: from %v to %v", c.rule, s.Src, s.Dst)
		}
	}
}
