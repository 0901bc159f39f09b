// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/pcapng"
	"droidtap/scripts/nettest"
)

const (
	phone, server = "10.1.0.1", "192.0.2.7"
	near, far     = 40000, 443
)

// helloOf is a ClientHello with a random.
func helloOf(r random) []byte {
	return append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, r[:]...)
}

// dataOf is a record of application data.
func dataOf(n uint16) []byte {
	return append([]byte{23, 3, 3}, binary.BigEndian.AppendUint16(nil, n)...)
}

// segment is what the phone sends (out) or gets, from its port near.
func segment(out bool, flags byte, payload []byte) []byte {
	from, to := phone, server
	ports := [2]uint16{near, far}
	if !out {
		from, to = to, from
		ports[0], ports[1] = ports[1], ports[0]
	}
	b := nettest.Reset(ports[0], ports[1], nil)
	b[13] = flags
	return nettest.IPv4(from, to, unix.IPPROTO_TCP, 0, nil, append(b, payload...))
}

// emitted keeps what connections have written.
type emitted struct{ blocks []string }

func (e *emitted) emit(b pcapng.Block) {
	s := b.(*pcapng.Secrets)
	e.blocks = append(e.blocks, fmt.Sprintf("%x:%s", s.Key[0], s.Data))
}

func (e *emitted) want(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(e.blocks, want) {
		t.Errorf("written is %q, want %q", e.blocks, want)
	}
	e.blocks = nil
}

const (
	fin, syn, rst, ack = 1, 2, 4, 0x10
)

func TestConnections(t *testing.T) {
	var e emitted
	c := newConnections(e.emit)
	at := time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC).UnixNano()
	see := func(after time.Duration, packet []byte) (hello, early bool) {
		t.Helper()
		at += int64(after)
		_, hello, early = c.follow(&pcapng.Packet{Time: at, Data: packet}, false)
		return
	}
	a, b := random{0xa}, random{0xb}

	see(0, segment(true, syn, nil))
	if hello, _ := see(0, segment(true, ack, helloOf(a))); !hello {
		t.Error("a ClientHello is not seen")
	}
	see(0, segment(true, ack, helloOf(a))) // sent again
	if !c.add(a, []byte("one\n")) || c.add(a, []byte("one\n")) {
		t.Error("a secret is written twice, or never")
	}
	c.add(a, []byte("two\n"))
	e.want(t, "a:one\n", "a:one\ntwo\n")

	// Half closed it goes on, however long.
	see(time.Second, segment(true, fin|ack, nil))
	see(time.Hour, segment(false, ack, dataOf(100)))
	e.want(t)
	see(0, segment(false, fin|ack, nil))
	see(time.Duration(linger), segment(false, fin|ack, nil))
	e.want(t)
	see(1, segment(true, ack, nil))
	e.want(t, "a:")

	// A port that is used again, with no end seen.
	see(0, segment(true, syn, nil))
	see(0, segment(true, ack, helloOf(b)))
	c.add(b, []byte("three\n"))
	see(0, segment(false, syn|ack, nil)) // sent again
	e.want(t, "b:three\n")
	see(0, segment(true, syn, nil))
	e.want(t, "b:")

	// Reset.
	see(0, segment(true, ack, helloOf(a)))
	c.add(a, []byte("four\n"))
	see(0, segment(false, rst, nil))
	see(0, segment(false, rst, nil))
	see(time.Duration(linger)+1, segment(true, syn, nil))
	e.want(t, "a:four\n", "a:")

	if got, want := c.count(), (tally{handshakes: 3, decrypted: 3, keyed: 3, lines: 4}); got != want {
		t.Errorf("counted is %+v, want %+v", got, want)
	}
	if len(c.of)+len(c.flows)+len(c.ended)+c.order.Len() != 0 {
		t.Errorf("%d connections, %d flows and %d ends are kept", len(c.of), len(c.flows), len(c.ended))
	}
}

// TestSecretsAhead: where the packets come late the secrets come first.
func TestSecretsAhead(t *testing.T) {
	var e emitted
	c := newConnections(e.emit)
	c.add(random{1}, []byte("one\n"))
	c.follow(&pcapng.Packet{Data: segment(true, ack, helloOf(random{1}))}, false)
	c.follow(&pcapng.Packet{Data: segment(true, ack, helloOf(random{2}))}, false)
	if got, want := c.count(), (tally{handshakes: 2, decrypted: 1, keyed: 1, lines: 1}); got != want {
		t.Errorf("counted is %+v, want %+v", got, want)
	}
}

// TestLate counts secrets that come when a packet that needs them has been written.
func TestLate(t *testing.T) {
	for _, tc := range []struct {
		rule  string
		out   bool // the first encrypted packet is the client's
		after time.Duration
		label string
		late  uint64
	}{
		{"in time", false, lead, "SERVER_HANDSHAKE_TRAFFIC_SECRET", 0},
		{"behind", false, lead + 1, "SERVER_HANDSHAKE_TRAFFIC_SECRET", 1},
		{"behind, of TLS 1.2", false, lead + 1, "CLIENT_RANDOM", 1},
		{"derived later than others", false, time.Hour, "CLIENT_TRAFFIC_SECRET_0", 0},
		{"early data needs another one", true, time.Hour, "SERVER_HANDSHAKE_TRAFFIC_SECRET", 0},
	} {
		c := newConnections(new(emitted).emit)
		now := time.Unix(1, 0)
		c.now = func() time.Time { return now }
		c.follow(&pcapng.Packet{Data: segment(true, ack, helloOf(random{1}))}, false)
		c.follow(&pcapng.Packet{Data: segment(tc.out, ack, dataOf(10))}, false)
		now = now.Add(tc.after)
		c.add(random{1}, []byte(tc.label+" 01\n"))
		if got := c.count().late; got != tc.late {
			t.Errorf("%s: %d are late", tc.rule, got)
		}
	}
}

func TestBefore(t *testing.T) {
	for _, tc := range []struct {
		rule    string
		packets [][]byte
		early   []bool
	}{
		{"encrypted packets are told once", [][]byte{segment(true, ack, dataOf(10)), segment(false, ack, dataOf(10))}, []bool{true, false}},
		{"what is no record does not matter", [][]byte{segment(true, ack, []byte("GET /")), segment(true, ack, dataOf(0)), segment(true, ack, []byte{23, 3})}, []bool{false, false, false}},
		{"TLS that begins later is whole", [][]byte{segment(true, ack, helloOf(random{1})), segment(true, ack, dataOf(10))}, []bool{false, false}},
		{"a port that is used again is another one's", [][]byte{segment(true, syn, nil), segment(true, ack, dataOf(10))}, []bool{false, false}},
	} {
		c := newConnections(new(emitted).emit)
		c.began(netip.AddrPortFrom(netip.MustParseAddr(phone), near), netip.AddrPortFrom(netip.MustParseAddr(server), far), unix.IPPROTO_TCP)
		for i, p := range tc.packets {
			if _, _, early := c.follow(&pcapng.Packet{Data: p}, false); early != tc.early[i] {
				t.Errorf("%s: packet %d is early: %v", tc.rule, i, early)
			}
		}
	}
	c := newConnections(new(emitted).emit)
	if _, _, early := c.follow(&pcapng.Packet{Data: segment(true, ack, dataOf(10))}, false); early {
		t.Error("a connection that nobody told of is from before")
	}
}

func TestBeforeQUIC(t *testing.T) {
	datagram := func(port uint16, first byte) []byte {
		return nettest.IPv4(phone, server, unix.IPPROTO_UDP, 0, nil, nettest.UDP(near, port, []byte{first, 1, 2}))
	}
	c := newConnections(new(emitted).emit)
	for _, port := range []uint16{443, 444} {
		c.began(netip.AddrPortFrom(netip.MustParseAddr(phone), near), netip.AddrPortFrom(netip.MustParseAddr(server), port), unix.IPPROTO_UDP)
	}
	for _, tc := range []struct {
		rule   string
		packet []byte
		early  bool
	}{
		{"a long header begins one", datagram(443, 0xc0), false},
		{"another port may be anything", datagram(444, 0x40), false},
		{"no QUIC", datagram(443, 0x00), false},
		{"a short header", datagram(443, 0x4f), true},
		{"once", datagram(443, 0x4f), false},
	} {
		if _, _, early := c.follow(&pcapng.Packet{Data: tc.packet}, false); early != tc.early {
			t.Errorf("%s: early is %v", tc.rule, early)
		}
	}
}

func TestBounds(t *testing.T) {
	var e emitted
	c := newConnections(e.emit)
	for n := range mostConnections + 3 {
		var r random
		binary.BigEndian.PutUint32(r[:], uint32(n))
		c.add(r, []byte("x\n"))
	}
	if len(c.of) != mostConnections || c.order.Len() != mostConnections {
		t.Errorf("%d connections are kept", len(c.of))
	}
	if n := len(e.blocks); n != mostConnections+3+3 {
		t.Errorf("%d blocks are written", n)
	}
	line := make([]byte, 1000)
	for n := range 100 {
		line[0] = byte(n)
		c.add(random{0xff}, line)
	}
	if got := c.count().excess; got != 100-mostSecrets/1000 {
		t.Errorf("%d secrets were left out", got)
	}
}

func TestClientHello(t *testing.T) {
	whole := helloOf(random{1, 2, 3})
	change := func(at int, to byte) []byte {
		b := slices.Clone(whole)
		b[at] = to
		return b
	}
	for _, c := range []struct {
		rule    string
		payload []byte
		is      bool
	}{
		{"a ClientHello", whole, true},
		{"with more behind it", append(slices.Clone(whole), 1, 2, 3), true},
		{"cut in the random", whole[:len(whole)-1], false},
		{"a ServerHello", change(5, 2), false},
		{"another record", change(0, 23), false},
		{"no TLS", change(1, 2), false},
		{"nothing", nil, false},
	} {
		if r, is := clientHello(c.payload); is != c.is || is && r != (random{1, 2, 3}) {
			t.Errorf("%s: %v, %x", c.rule, is, r)
		}
	}
}

// FuzzFollow: a packet may hold anything.
func FuzzFollow(f *testing.F) {
	f.Add(segment(true, ack, helloOf(random{1})), false)
	f.Add(segment(true, ack, dataOf(10)), false)
	f.Add(nettest.Ethernet(nettest.NearMAC, nettest.FarMAC, unix.ETH_P_IP, segment(true, syn, nil)), true)
	f.Fuzz(func(t *testing.T, packet []byte, l2 bool) {
		c := newConnections(func(pcapng.Block) {})
		c.began(netip.AddrPortFrom(netip.MustParseAddr(phone), near), netip.AddrPortFrom(netip.MustParseAddr(server), far), unix.IPPROTO_TCP)
		for range 2 {
			if _, hello, early := c.follow(&pcapng.Packet{Data: packet}, l2); hello && early {
				t.Error("a connection begins, and began before")
			}
		}
	})
}
