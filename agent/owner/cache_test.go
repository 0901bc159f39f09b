// SPDX-License-Identifier: Apache-2.0

package owner

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/pcapng"
	"droidtap/agent/sockdiag"
	"droidtap/scripts/nettest"
)

func TestFragments(t *testing.T) {
	piece := func(offset uint16, payload []byte) Question {
		return Question{Packet: nettest.IPv4(b4, a4, unix.IPPROTO_UDP, offset, nil, payload)}
	}
	later := piece(0x2001, make([]byte, 8))
	old := later
	old.Age = Patience
	k, f := newFake()
	k.uid = 10001
	if a := f.Find(later); a.UID != pcapng.UIDUnknown || !a.Wait {
		t.Errorf("without the first one: %+v", a)
	}
	if a := f.Find(old); a.UID != pcapng.UIDUnknown || a.Wait {
		t.Errorf("without the first one, in the end: %+v", a)
	}
	f.Find(piece(0x2000, nettest.UDP(443, 5353, nil)))
	k.uid = nobody
	for range 2 {
		if a := f.Find(later); a.UID != 10001 {
			t.Errorf("behind the first one: %+v", a)
		}
	}
	// What an error quotes went the other way, and is no packet of its own.
	k, f = newFake()
	k.uid = 10001
	sent := func(offset uint16) Question {
		packet := nettest.IPv4(a4, b4, unix.IPPROTO_UDP, offset, nil, nettest.UDP(5353, 443, nil))
		return in(append([]byte{11, 1, 0, 0, 0, 0, 0, 0}, packet...), unix.IPPROTO_ICMP)
	}
	f.Find(sent(0x2000))
	if a := f.Find(sent(0x2001)); a.UID != pcapng.UIDUnknown {
		t.Errorf("an error about a fragment whose first was not seen: %+v", a)
	}
	f.Find(Question{Packet: nettest.IPv4(a4, b4, unix.IPPROTO_UDP, 0x2000, nil, nettest.UDP(5353, 443, nil)), Outgoing: true})
	if a := f.Find(sent(0x2001)); a.UID != 10001 {
		t.Errorf("an error about a fragment: %+v", a)
	}
	k, f = newFake()
	k.uid = 10001
	f.Find(piece(0x2000, nettest.UDP(443, 5353, nil)))
	k.now += reassembly
	k.uid = nobody
	if a := f.Find(later); a.UID != pcapng.UIDUnknown {
		t.Errorf("long behind the first one: %+v", a)
	}
	// What the programs saw.
	k, f = newFake()
	whole := fragment{netip.MustParseAddr(b4), netip.MustParseAddr(a4), 0x4242, unix.IPPROTO_UDP}
	k.firsts[whole] = ports{src: 443, dst: 5353, protocol: unix.IPPROTO_UDP, seen: k.now}
	k.flows[udpFlow] = learnt{uid: 10003, seen: k.now}
	if a := f.Find(later); a.UID != 10003 {
		t.Errorf("behind a first one that the programs saw: %+v", a)
	}
	for i := range 3 * maxFragments {
		q := piece(0x2000, nettest.UDP(443, 5353, nil))
		be.PutUint16(q.Packet[4:], uint16(i))
		f.Find(q)
	}
	if n := len(f.fragments.at); n != maxFragments {
		t.Errorf("%d packets are remembered, want %d", n, maxFragments)
	}
}

// TestCost counts what would be system calls.
func TestCost(t *testing.T) {
	k, f := newFake()
	k.uid = 10001
	for range 1000 {
		f.Find(datagramIn())
		k.now += int64(time.Millisecond)
	}
	if k.asked+k.looked > 2 {
		t.Errorf("a known flow asked the kernel %d times and looked at flows %d times in 1000 packets of a second", k.asked, k.looked)
	}
	k, f = newFake()
	for range 1000 {
		f.Find(datagramIn())
		k.now += int64(time.Millisecond)
	}
	if k.asked > 51 || k.looked > 51 {
		t.Errorf("an unknown flow asked the kernel %d times and looked at flows %d times in 1000 packets of a second", k.asked, k.looked)
	}
}

func TestCacheIsBounded(t *testing.T) {
	k, f := newFake()
	k.uid = 10001
	ask := func(i int) bool {
		q := in(nettest.UDP(uint16(i), uint16(i>>16), nil), unix.IPPROTO_UDP)
		before := k.asked
		f.Find(q)
		return k.asked != before
	}
	const busy = 100
	for i := range maxFlows {
		ask(i)
	}
	for i := range busy {
		ask(i)
	}
	clear(k.flows)
	for i := range 2 * maxFlows {
		ask(maxFlows + i)
		if ask(i % busy) {
			t.Fatalf("flow %d gives way although it is used all the time", i%busy)
		}
		clear(k.flows)
	}
	if len(f.cache.entries) != maxFlows || len(f.cache.places) != maxFlows {
		t.Errorf("%d entries, %d places, want %d", len(f.cache.entries), len(f.cache.places), maxFlows)
	}
	if !ask(busy) {
		t.Error("a quiet flow did not give way")
	}
	for flow, place := range f.cache.places {
		if f.cache.entries[place].flow != flow {
			t.Fatalf("the place of %+v is that of %+v", flow, f.cache.entries[place].flow)
		}
	}
}

func TestParsePing(t *testing.T) {
	const line = "   51: 0100007F:1234 00000000:0000 07 00000000:00000000 00:00000000 00000000 10123        0 4026 2 0000000000000000 0  "
	if id, s, ok := parsePing(line); !ok || id != 0x1234 || s.UID != 10123 || s.Inode != 4026 {
		t.Errorf("%d, %+v, %v", id, s, ok)
	}
	for _, bad := range []string{"", "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops", line[:90]} {
		if id, s, ok := parsePing(bad); ok {
			t.Errorf("%q is %d, %+v", bad, id, s)
		}
	}
}

func TestCloses(t *testing.T) {
	c := &closes{protocol: unix.IPPROTO_UDP}
	f := udpFlow
	other := sockdiag.Flow{Protocol: unix.IPPROTO_UDP, Local: netip.MustParseAddrPort(a4 + ":1")}
	c.add(10, 5353, false)
	c.add(20, 1, false)
	c.add(30, 5353, false)
	c.add(40, 0, true)
	c.add(50, 5353, false)
	for _, want := range []struct {
		flow     sockdiag.Flow
		from, to int64
		between  bool
	}{
		{f, 0, 9, false}, {f, 0, 10, true}, {f, 10, 29, false}, {f, 29, 10, false}, {f, 10, 30, true}, {f, 30, 39, false}, {f, 30, 40, true},
		{f, 40, 49, false}, {f, 49, 50, true}, {f, 50, 99, false}, {f, 0, 99, true}, {f, 99, 99, false},
		{other, 0, 19, false}, {other, 20, 39, false}, {other, 20, 40, true}, {other, 40, 99, false}, {tcpFlow, 0, 99, false},
	} {
		if got := c.between(want.flow, want.from, want.to); got != want.between {
			t.Errorf("%s %d to %d: %v", want.flow.Local, want.from, want.to, got)
		}
	}
	for i := range int64(maxCloses) {
		c.add(100+i, 2, false)
	}
	// What is not told any more may have been.
	if !c.between(other, 20, 30) || c.between(other, 50, 60) {
		t.Error("what the log has forgotten did not happen")
	}
}
