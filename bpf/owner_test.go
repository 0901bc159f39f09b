// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"testing"
	"time"

	host "droidtap/agent/kernel"
)

// tier is a way in which owners are found: an object, and whether it looks sockets up.
type tier struct {
	name, object string
	lookup       bool
}

var tiers = []tier{
	{"legacy", "packet.legacy.o", false},
	{"flows", "packet.ring.o", false},
	{"lookup", "packet.ring.o", true},
}

// offsets fills in where the kernel's structs have what a lookup reads, and asks for cgroups.
func (tier tier) offsets(t testing.TB, s settings) settings {
	t.Helper()
	s.Cgroups = 1
	if !tier.lookup {
		return s
	}
	types, err := host.FindTypes("auto", "")
	if types.SockUID == 0 {
		t.Skipf("needs the kernel's types: %v", err)
	}
	s.SockUID, s.SockCgroup, s.CgroupNode, s.NodeID = types.SockUID, types.SockCgroup, types.CgroupNode, types.NodeID
	return s
}

// forTiers runs a test for each of them, in a namespace whose interface other is not the loopback one.
func forTiers(t *testing.T, test func(t *testing.T, tier tier, s space)) {
	t.Helper()
	needRoot(t)
	for _, tier := range tiers {
		t.Run(tier.name, func(t *testing.T) { test(t, tier, newSpace(t, 65536)) })
	}
}

// past is what the maps hold before a packet.
type past struct {
	flows  map[flow]uint32
	age    time.Duration // of the flows
	first  []fragment    // fragments of theirFlow(udp)
	old    time.Duration // age of those
	closed uint16
	since  time.Duration // the port was closed
}

func (c *capture) remember(t *testing.T, p past) {
	t.Helper()
	now := bootTime(t)
	put := func(m string, key, value any) {
		if err := c.Maps[m].Put(key, value); err != nil {
			t.Fatal(err)
		}
	}
	for f, uid := range p.flows {
		put("shared_flows", f, owner{UID: uid, Cgroup: 77, Seen: now - uint64(p.age)})
	}
	for _, f := range p.first {
		put("shared_fragments", f, firstPorts{Src: [2]byte{1, 187}, Dst: [2]byte{0x9c, 0x40}, Protocol: udp, Seen: now - uint64(p.old)})
	}
	if p.closed != 0 {
		put("shared_closed", uint32(p.closed), now-uint64(p.since))
	}
}

// uids are whose a packet is in each tier.
type uids struct{ legacy, flows, lookup uint32 }

func all(uid uint32) uids { return uids{uid, uid, uid} }

func (u uids) of(tier tier) uint32 {
	return map[string]uint32{"legacy": u.legacy, "flows": u.flows, "lookup": u.lookup}[tier.name]
}

const (
	app   = 10123
	root  = 0 // the socket of BPF_PROG_TEST_RUN is root's, and no control socket
	none  = uidNone
	await = uidUnknown
)

var (
	nobodys = uids{await, await, none} // nothing is known, and no socket is found
	theirs  = map[flow]uint32{theirFlow(tcp): app, theirFlow(udp): app, theirFlow6(tcp): app, theirFlow6(udp): app,
		pinger(icmp): app, pinger6: app}
)

// owned is a case: the last of some packets is of somebody.
type owned struct {
	rule    string
	past    past
	program string
	packets [][]byte
	want    uids
}

func in4(protocol byte, payload []byte) []byte {
	return ethernet(packet4(false, protocol, 0, payload), typeIP4)
}
func in6(next byte, payload []byte) []byte { return ethernet(packet6(false, next, payload), typeIP6) }

// TestOwnerIn has packets that come in from another machine. No socket is there.
func TestOwnerIn(t *testing.T) {
	known := past{flows: theirs}
	one := func(packet []byte) [][]byte { return [][]byte{packet} }
	udp4 := in4(udp, udpHead(false))
	runOwned(t, []owned{
		{"no flow", past{}, "l2_ingress", one(in4(tcp, tcpHead(false, 0))), nobodys},
		{"the owner of its flow", known, "l2_ingress", one(in4(tcp, tcpHead(false, 0))), all(app)},
		{"an answer to a connection", known, "l2_ingress", one(in4(tcp, tcpHead(false, syn|ack))), all(app)},
		{"the flow of another protocol does not count", past{flows: map[flow]uint32{theirFlow(udp): app}}, "l2_ingress", one(in4(tcp, tcpHead(false, 0))), nobodys},
		{"the sender's flow does not count", past{flows: map[flow]uint32{swap(theirFlow(tcp)): app}}, "l2_ingress", one(in4(tcp, tcpHead(false, 0))), nobodys},
		{"behind IPv4 options", known, "l2_ingress", one(ethernet(withOptions(packet4(false, tcp, 0, tcpHead(false, 0)), 10), typeIP4)), all(app)},
		{"behind a VLAN tag", known, "l2_ingress", one(ethernet(packet4(false, tcp, 0, tcpHead(false, 0)), tagVLAN, typeIP4)), all(app)},
		{"behind two VLAN tags", known, "l2_ingress", one(ethernet(packet4(false, tcp, 0, tcpHead(false, 0)), tagQinQ, tagVLAN, typeIP4)), all(app)},
		{"IPv6", known, "l2_ingress", one(in6(udp, udpHead(false))), all(app)},
		{"without an Ethernet header", known, "l3_ingress", one(packet4(false, tcp, 0, tcpHead(false, 0))), all(app)},
		{"IPv6 without an Ethernet header", known, "l3_ingress", one(packet6(false, udp, udpHead(false))), all(app)},
		{"UDP without a payload", known, "l3_ingress", one(packet4(false, udp, 0, udpHead(false)[:8])), all(app)},
		{"cut off in the ports", known, "l3_ingress", one(packet4(false, udp, 0, udpHead(false)[:3])), all(none)},
		{"neither IPv4 nor IPv6", known, "l2_ingress", one(frame(60)), all(none)},
		{"another protocol", known, "l2_ingress", one(in4(47, make([]byte, 40))), all(none)},

		{"a flow of 119 s", past{flows: theirs, age: 119 * time.Second}, "l2_ingress", one(in4(tcp, tcpHead(false, 0))), all(app)},
		{"a flow of 121 s", past{flows: theirs, age: 121 * time.Second}, "l2_ingress", one(in4(tcp, tcpHead(false, 0))), nobodys},
		{"a UDP flow of 59 s", past{flows: theirs, age: 59 * time.Second}, "l2_ingress", one(udp4), all(app)},
		{"a UDP flow of 61 s", past{flows: theirs, age: 61 * time.Second}, "l2_ingress", one(udp4), nobodys},
		{"a UDP flow whose port was closed since", past{flows: theirs, age: 2 * time.Second, closed: 40000, since: time.Second}, "l2_ingress", one(udp4), uids{await, await, app}},
		{"a UDP flow whose port was closed before", past{flows: theirs, age: time.Second, closed: 40000, since: 2 * time.Second}, "l2_ingress", one(udp4), all(app)},
		{"a TCP flow does not mind", past{flows: theirs, age: 2 * time.Second, closed: 40000, since: time.Second}, "l2_ingress", one(in4(tcp, tcpHead(false, 0))), all(app)},
		{"what begins a connection is of no flow", known, "l2_ingress", one(in4(tcp, tcpHead(false, syn))), nobodys},
		{"nor is what follows", known, "l2_ingress", [][]byte{in4(tcp, tcpHead(false, syn)), in4(tcp, tcpHead(false, 0))}, uids{await, await, app}},
		{"nor with IPv6", known, "l2_ingress", [][]byte{in6(tcp, tcpHead(false, syn)), in6(tcp, tcpHead(false, 0))}, uids{await, await, app}},
	})
}

// TestOwnerOfFragments has fragments and IPv6 extension headers.
func TestOwnerOfFragments(t *testing.T) {
	known := past{flows: theirs}
	whole := udpHead(false)
	later4 := fragment{Src: v4(192, 0, 2, 1), Dst: v4(10, 0, 0, 1), ID: [4]byte{0, 0, 0, 1}, Protocol: udp, Version: 4}
	of := func(offset uint16, more bool, id byte, payload []byte) []byte {
		flags := offset
		if more {
			flags |= 0x2000
		}
		p := packet4(false, udp, flags, payload)
		p[5] = id
		return ethernet(p, typeIP4)
	}
	of6 := func(offset byte, more byte, id byte, payload []byte) []byte {
		return in6(44, append([]byte{udp, 0, 0, offset<<3 | more, 0, 0, 0, id}, payload...))
	}
	more := make([]byte, 32)
	aged := func(age time.Duration) past { return past{flows: theirs, first: []fragment{later4}, old: age} }
	cases := []owned{
		{"the first has ports", known, "l2_ingress", [][]byte{of(0, true, 1, whole)}, all(app)},
		{"a later one follows it", known, "l2_ingress", [][]byte{of(0, true, 1, whole), of(4, false, 1, more)}, all(app)},
		{"the last but one, too", known, "l2_ingress", [][]byte{of(0, true, 1, whole), of(4, true, 1, more)}, all(app)},
		{"the first did not come", known, "l2_ingress", [][]byte{of(4, false, 1, more)}, all(await)},
		{"that of another packet came", known, "l2_ingress", [][]byte{of(0, true, 2, whole), of(4, false, 1, more)}, all(await)},
		{"the first came 29 s ago", aged(29 * time.Second), "l2_ingress", [][]byte{of(4, false, 1, more)}, all(app)},
		{"the first came 31 s ago", aged(31 * time.Second), "l2_ingress", [][]byte{of(4, false, 1, more)}, all(await)},
		{"the first goes the other way", known, "l2_ingress", [][]byte{ethernet(packet4(true, udp, 0x2000, udpHead(true)), typeIP4), of(4, false, 1, more)}, all(await)},
		{"IPv6: a later one follows the first", known, "l2_ingress", [][]byte{of6(0, 1, 1, whole), of6(4, 0, 1, more)}, all(app)},
		{"IPv6: the first did not come", known, "l2_ingress", [][]byte{of6(4, 0, 1, more)}, all(await)},
		{"IPv6: that of another packet came", known, "l2_ingress", [][]byte{of6(0, 1, 2, whole), of6(4, 0, 1, more)}, all(await)},
		{"IPv6: all in one", known, "l2_ingress", [][]byte{of6(0, 0, 1, whole)}, all(app)},
		{"a later one of an answer to a ping", known, "l2_ingress", [][]byte{fragmentOf(echo(0), 0x2000), fragmentOf(more, 4)}, all(app)},
		{"a later one of a ping", known, "l2_ingress", [][]byte{fragmentOf(echo(8), 0x2000), fragmentOf(more, 4)}, all(none)},
	}
	for _, c := range []struct {
		headers []byte
		want    uids
	}{
		{[]byte{0}, all(app)},
		{[]byte{60}, all(app)},
		{[]byte{43}, all(app)},
		{[]byte{0, 43, 60}, all(app)},
		{[]byte{0, 43, 44}, all(app)},
		{[]byte{0, 60, 43, 60}, uids{await, app, app}},
		{[]byte{0, 60, 43, 44, 60, 60}, uids{await, app, app}},
		{[]byte{0, 60, 43, 44, 60, 60, 60}, all(await)},
	} {
		next, payload := extended(c.headers, udp, whole)
		cases = append(cases, owned{"IPv6 extension headers " + string(hex(c.headers)), known, "l2_ingress", [][]byte{in6(next, payload)}, c.want})
	}
	runOwned(t, cases)
}

// TestOwnerOfICMP has what comes in.
func TestOwnerOfICMP(t *testing.T) {
	known := past{flows: theirs}
	one := func(packet []byte) [][]byte { return [][]byte{packet} }
	sent4, sent6 := packet4(true, udp, 0, udpHead(true)), packet6(true, tcp, tcpHead(true, 0))
	cases := []owned{
		{"an answer to a ping", known, "l2_ingress", one(in4(icmp, echo(0))), all(app)},
		{"to another ping", past{}, "l2_ingress", one(in4(icmp, echo(0))), nobodys},
		{"a ping", known, "l2_ingress", one(in4(icmp, echo(8))), all(none)},
		{"a timestamp request", known, "l2_ingress", one(in4(icmp, echo(13))), all(none)},
		{"an error without a flow", past{}, "l2_ingress", one(in4(icmp, icmpError(3, sent4))), nobodys},
		{"an error about a ping", known, "l2_ingress", one(in4(icmp, icmpError(11, packet4(true, icmp, 0, echo(8))))), all(app)},
		{"an error about an answer to a ping", known, "l2_ingress", one(in4(icmp, icmpError(11, packet4(true, icmp, 0, echo(0))))), all(none)},
		{"an error that quotes eight bytes", known, "l2_ingress", one(in4(icmp, icmpError(3, packet4(true, tcp, 0, tcpHead(true, 0)[:8])))), all(app)},
		{"an error that quotes no ports", known, "l2_ingress", one(in4(icmp, icmpError(3, packet4(true, tcp, 0, tcpHead(true, 0)[:3])))), all(none)},
		{"an error about a later fragment", known, "l2_ingress", one(in4(icmp, icmpError(3, packet4(true, udp, 4, udpHead(true))))), all(none)},
		{"an error about what begins a connection", known, "l2_ingress", one(in4(icmp, icmpError(3, packet4(true, tcp, 0, tcpHead(true, syn))))), all(app)},
		{"an error about an error", known, "l2_ingress", one(in4(icmp, icmpError(3, packet4(true, icmp, 0, icmpError(3, sent4))))), all(none)},
		{"ICMPv6: an answer to a ping", known, "l2_ingress", one(in6(icmpv6, echo(129))), all(app)},
		{"ICMPv6: a ping", known, "l2_ingress", one(in6(icmpv6, echo(128))), all(none)},
		{"ICMPv6: a neighbour solicitation", known, "l2_ingress", one(in6(icmpv6, echo(135))), all(none)},
		{"without an Ethernet header", known, "l3_ingress", one(packet4(false, icmp, 0, icmpError(3, sent4))), all(app)},
	}
	for _, kind := range []byte{3, 4, 5, 11, 12} {
		cases = append(cases, owned{"error " + string(hex([]byte{kind})), known, "l2_ingress", one(in4(icmp, icmpError(kind, sent4))), all(app)})
	}
	for _, kind := range []byte{1, 2, 3, 4} {
		cases = append(cases, owned{"ICMPv6 error " + string(hex([]byte{kind})), known, "l2_ingress", one(in6(icmpv6, icmpError(kind, sent6))), all(app)})
	}
	runOwned(t, cases)
}

// TestOwnerOut has packets of root's socket. The kernel's own are made in owner_live_test.go.
func TestOwnerOut(t *testing.T) {
	known := past{flows: theirs}
	out4 := func(protocol byte, payload []byte) [][]byte {
		return [][]byte{ethernet(packet4(true, protocol, 0, payload), typeIP4)}
	}
	received := packet4(false, udp, 0, udpHead(false))
	runOwned(t, []owned{
		{"a connection's first", known, "l2_egress", out4(tcp, tcpHead(true, syn)), all(root)},
		{"the answer to one", known, "l2_egress", out4(tcp, tcpHead(true, syn|ack)), all(root)},
		{"TCP of a flow", known, "l2_egress", out4(tcp, tcpHead(true, ack)), uids{app, root, root}},
		{"TCP of no flow", past{}, "l2_egress", out4(tcp, tcpHead(true, ack)), uids{await, root, root}},
		{"TCP of an old flow", past{flows: theirs, age: 121 * time.Second}, "l2_egress", out4(tcp, tcpHead(true, ack)), uids{await, root, root}},
		{"UDP on an app's flow", known, "l2_egress", out4(udp, udpHead(true)), all(root)},
		{"a ping", known, "l2_egress", out4(icmp, echo(8)), all(root)},
		{"a timestamp request", known, "l2_egress", out4(icmp, echo(13)), all(root)},
		{"the answer to a ping", known, "l2_egress", out4(icmp, echo(0)), uids{none, root, root}},
		{"an error about what came to an app", known, "l2_egress", out4(icmp, icmpError(3, received)), uids{app, root, root}},
		{"an error about what came to nobody", past{}, "l2_egress", out4(icmp, icmpError(3, received)), uids{none, root, root}},
		{"another protocol", known, "l2_egress", out4(47, make([]byte, 40)), all(root)},
		{"no IP", known, "l2_egress", [][]byte{frame(60)}, all(root)},
		{"without an Ethernet header", known, "l3_egress", [][]byte{packet6(true, udp, udpHead(true))}, all(root)},
	})
}

func runOwned(t *testing.T, cases []owned) {
	t.Helper()
	forTiers(t, func(t *testing.T, tier tier, s space) {
		o := start(t, tier.object, config{settings: tier.offsets(t, settings{Snaplen: 64, Directions: both, Owner: tell}), interfaces: []uint32{0, s.other}})
		for _, c := range cases {
			t.Run(c.rule, func(t *testing.T) {
				s.enter(t)
				before := o.counts(t, s.other)
				o.forgetAll(t)
				o.remember(t, c.past)
				for _, packet := range c.packets {
					o.run(t, c.program, s.other, packet)
				}
				all := o.records(t)
				if len(all) != len(c.packets) {
					t.Fatalf("%d records of %d packets", len(all), len(c.packets))
				}
				last := all[len(all)-1]
				if want := c.want.of(tier); last.UID != want {
					t.Errorf("uid is %#x, want %#x", last.UID, want)
				}
				if learnt := last.UID == app; learnt != (last.Cgroup == 77) {
					t.Errorf("cgroup of uid %#x is %d", last.UID, last.Cgroup)
				}
				ownerless := uint64(0)
				for _, r := range all {
					if r.UID == none {
						ownerless++
					}
				}
				if got := o.counts(t, s.other).Unattributed - before.Unattributed; got != ownerless {
					t.Errorf("%d packets are counted as unattributed, and %d are", got, ownerless)
				}
			})
		}
	})
}

// forgetAll empties the maps of what was learnt.
func (c *capture) forgetAll(t *testing.T) {
	t.Helper()
	for name, key := range map[string]any{"shared_flows": new(flow), "shared_fragments": new(fragment)} {
		for c.Maps[name].NextKey(nil, key) == nil {
			if err := c.Maps[name].Delete(key); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := c.Maps["shared_closed"].Put(uint32(40000), uint64(0)); err != nil { // the only one here
		t.Fatal(err)
	}
}
