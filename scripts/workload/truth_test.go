// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

const behind4 = "10.98.0.2"

// v4Frame and v6Frame are Ethernet frames, whose addresses of hardware say nothing.
func v4Frame(src, dst string, protocol byte, fragment uint16, l4 []byte) []byte {
	return nettest.Ethernet(nettest.FarMAC, nettest.NearMAC, nettest.TypeIPv4, nettest.IPv4(src, dst, protocol, fragment, nil, l4))
}

func v6Frame(src, dst string, next byte, payload []byte) []byte {
	return nettest.Ethernet(nettest.FarMAC, nettest.NearMAC, nettest.TypeIPv6, nettest.IPv6(src, dst, next, payload))
}

func udpTo(src, dst int, text string) []byte {
	return nettest.UDP(uint16(src), uint16(dst), []byte(text))
}

// tcpSYN is a SYN with that sequence number, tcpACK an acknowledgement.
func tcpSYN(src, dst int, seq byte) []byte {
	b := nettest.Reset(uint16(src), uint16(dst), nil)
	b[7], b[13] = seq, 2
	return b
}

func tcpACK(src, dst int) []byte {
	b := tcpSYN(src, dst, 0)
	b[13] = 0x10
	return b
}

func TestClassify(t *testing.T) {
	const near4, far4, near6, far6 = nettest.Near4, nettest.Far4, nettest.Near6, nettest.Far6
	bob := port(1, UDP, 5)
	pinged := nettest.Echo(nil)
	be.PutUint16(pinged[4:], uint16(port(1, Ping, 0)))
	reply := append([]byte(nil), pinged...)
	reply[0] = 0
	unreachable := func(quoted []byte) []byte { return append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, quoted...) }
	packet := func(src, dst string, l4 []byte) []byte { return nettest.IPv4(src, dst, unix.IPPROTO_UDP, 0, nil, l4) }
	reused, again := sharedPort(UDPReuse), sharedPort(TCPReuse)
	for _, c := range []struct {
		rule   string
		frames [][]byte
		want   []Truth // of each: case, protocol, way and uid
	}{
		{"the near port of what leaves", [][]byte{v4Frame(near4, far4, unix.IPPROTO_UDP, 0, udpTo(bob, 7, "a"))},
			[]Truth{{Case: UDP, Version: 4, Protocol: "udp", Out: true, UID: 10124}}},
		{"of what comes in", [][]byte{v6Frame(far6, near6, unix.IPPROTO_UDP, udpTo(7, bob, "a"))},
			[]Truth{{Case: UDP, Version: 6, Protocol: "udp", UID: 10124}}},
		{"behind extension headers", [][]byte{v6Frame(near6, far6, 0, append([]byte{60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0}, udpTo(bob, 7, "a")...))},
			[]Truth{{Case: UDP, Version: 6, Protocol: "udp", Out: true, UID: 10124}}},
		{"a later fragment as the first one", [][]byte{
			v4Frame(far4, near4, unix.IPPROTO_UDP, 0x2000, udpTo(7, bob, "a")), v4Frame(far4, near4, unix.IPPROTO_UDP, 2, []byte("rest of it"))},
			[]Truth{{Case: UDP, Version: 4, Protocol: "udp", UID: 10124}, {Case: UDP, Version: 4, Protocol: "udp", UID: 10124}}},
		{"a ping's reply is the pinger's", [][]byte{v4Frame(near4, far4, unix.IPPROTO_ICMP, 0, pinged), v4Frame(far4, near4, unix.IPPROTO_ICMP, 0, reply)},
			[]Truth{{Case: Ping, Version: 4, Protocol: "icmp", Out: true, UID: 10124}, {Case: Ping, Version: 4, Protocol: "icmp", UID: 10124}}},
		{"another's ping has no owner here", [][]byte{v4Frame(far4, near4, unix.IPPROTO_ICMP, 0, pinged), v4Frame(near4, far4, unix.IPPROTO_ICMP, 0, reply)},
			[]Truth{{Case: Echoed, Version: 4, Protocol: "icmp", UID: None}, {Case: Echoed, Version: 4, Protocol: "icmp", Out: true, UID: None}}},
		{"an error is of the packet's owner that it quotes", [][]byte{v4Frame(far4, near4, unix.IPPROTO_ICMP, 0, unreachable(packet(near4, far4, udpTo(bob, 9, ""))))},
			[]Truth{{Case: UDP, Version: 4, Protocol: "icmp", UID: 10124}}},
		{"an error about nobody's port", [][]byte{v4Frame(near4, far4, unix.IPPROTO_ICMP, 0, unreachable(packet(far4, near4, udpTo(9, sharedPort(Closed), ""))))},
			[]Truth{{Case: Closed, Version: 4, Protocol: "icmp", Out: true, UID: None}}},
		{"an error about what is forwarded", [][]byte{v4Frame(near4, far4, unix.IPPROTO_ICMP, 0, unreachable(packet(far4, behind4, udpTo(9, bob, ""))))},
			[]Truth{{Case: Forwarded, Version: 4, Protocol: "icmp", Out: true, UID: None}}},
		{"what is forwarded, at a user's port", [][]byte{v4Frame(far4, behind4, unix.IPPROTO_UDP, 0, udpTo(7, bob, "a")), v4Frame(behind4, far4, unix.IPPROTO_UDP, 0, udpTo(bob, 7, "a"))},
			[]Truth{{Case: Forwarded, Version: 4, Protocol: "udp", UID: None}, {Case: Forwarded, Version: 4, Protocol: "udp", Out: true, UID: None}}},
		{"a reused UDP port by the payload", [][]byte{v4Frame(far4, near4, unix.IPPROTO_UDP, 0, udpTo(7, reused, "010125"))},
			[]Truth{{Case: UDPReuse, Version: 4, Protocol: "udp", UID: 10125}}},
		{"a reused TCP port by the connections that it had", [][]byte{
			v4Frame(far4, near4, unix.IPPROTO_TCP, 0, tcpSYN(7, again, 1)), v4Frame(far4, near4, unix.IPPROTO_TCP, 0, tcpSYN(7, again, 1)),
			v4Frame(near4, far4, unix.IPPROTO_TCP, 0, tcpACK(again, 7)), v4Frame(far4, near4, unix.IPPROTO_TCP, 0, tcpSYN(7, again, 2))},
			[]Truth{
				{Case: TCPReuse, Version: 4, Protocol: "tcp", UID: 10123}, {Case: TCPReuse, Version: 4, Protocol: "tcp", UID: 10123},
				{Case: TCPReuse, Version: 4, Protocol: "tcp", Out: true, UID: 10123}, {Case: TCPReuse, Version: 4, Protocol: "tcp", UID: 10124}}},
		{"ARP", [][]byte{nettest.Ethernet(nettest.FarMAC, nettest.NearMAC, nettest.TypeARP, nettest.ARP(nettest.NearMAC, near4, far4))},
			[]Truth{{Case: Kernel, Protocol: "other", UID: None}}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			classifier := NewClassifier(Host())
			var got []Truth
			for _, f := range c.frames {
				truth, err := classifier.Classify(f)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, Truth{Case: truth.Case, Version: truth.Version, Protocol: truth.Protocol, Out: truth.Out, UID: truth.UID})
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestUnclassified has packets that nobody can know the owner of: the workload must not make them.
func TestUnclassified(t *testing.T) {
	for _, c := range []struct {
		rule  string
		frame []byte
		err   string
	}{
		{"a fragment whose first one is missing", v4Frame(nettest.Far4, nettest.Near4, unix.IPPROTO_UDP, 2, []byte("rest of it")), "without its first"},
		{"no case's port", v4Frame(nettest.Far4, nettest.Near4, unix.IPPROTO_UDP, 0, udpTo(7, 80, "a")), "near port 80"},
		{"a connection that does not begin", v4Frame(nettest.Far4, nettest.Near4, unix.IPPROTO_TCP, 0, tcpACK(7, sharedPort(TCPReuse))), "no beginning"},
	} {
		if _, err := NewClassifier(Host()).Classify(c.frame); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: error %v, want %q", c.rule, err, c.err)
		}
	}
}

// TestPorts wants each port to be one user's and one case's.
func TestPorts(t *testing.T) {
	seen := map[int]bool{}
	check := func(p, uid int, c Case) {
		t.Helper()
		if seen[p] {
			t.Errorf("port %d is used twice", p)
		}
		seen[p] = true
		if gotUID, got, ok := caseOf(p); !ok || gotUID != uid || got != c {
			t.Errorf("port %d: %s of user %d, want %s of user %d", p, got, gotUID, c, uid)
		}
	}
	for user, uid := range UIDs {
		for c := range cases {
			for _, round := range []int{0, 32} {
				for _, w := range ways {
					check(port(user, c, number(round, w)), uid, c)
				}
			}
		}
	}
	for c := cases + 1; c < others; c++ {
		check(sharedPort(c), None, c)
	}
	if _, _, ok := caseOf(echoPort); ok {
		t.Error("the far end's port is a case's")
	}
}
