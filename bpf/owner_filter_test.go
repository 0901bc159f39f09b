// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
)

// appOfAllUsers is the key of the map of uids for an app id.
func appOfAllUsers(id uint32) uint32 { return 1<<31 | id }

// TestOwnerFilter has packets of uid 10123 or of nobody, and who was asked for.
func TestOwnerFilter(t *testing.T) {
	const secondUser = 10_00000 + app
	of := func(uid uint32) past { return past{flows: map[flow]uint32{theirFlow(tcp): uid}} }
	in := in4(tcp, tcpHead(false, ack))
	ping := in4(icmp, echo(8))
	for _, c := range []struct {
		rule   string
		past   past
		packet []byte
		asked  settings
		uids   map[uint32]uint8
		want   counts
	}{
		{"asked for", of(app), in, settings{Owner: byOwner}, map[uint32]uint8{10999: 1, app: 1}, counts{In: 1, Received: 1}},
		{"not asked for", of(app), in, settings{Owner: byOwner}, map[uint32]uint8{10999: 1}, counts{In: 1}},
		{"others pass", of(app), in, settings{Owner: byOwner, Others: 1}, map[uint32]uint8{10999: 0}, counts{In: 1, Received: 1}},
		{"others pass, but not this one", of(app), in, settings{Owner: byOwner, Others: 1}, map[uint32]uint8{app: 0}, counts{In: 1}},
		{"root is a uid", of(root), in, settings{Owner: byOwner}, map[uint32]uint8{root: 1}, counts{In: 1, Received: 1}},
		{"root is not asked for", of(root), in, settings{Owner: byOwner}, map[uint32]uint8{app: 1}, counts{In: 1}},
		{"the app of all users", of(app), in, settings{Owner: byOwner}, map[uint32]uint8{appOfAllUsers(app): 1}, counts{In: 1, Received: 1}},
		{"the app of all users, of another", of(secondUser), in, settings{Owner: byOwner}, map[uint32]uint8{appOfAllUsers(app): 1}, counts{In: 1, Received: 1}},
		{"a uid is of one user only", of(secondUser), in, settings{Owner: byOwner}, map[uint32]uint8{app: 1}, counts{In: 1}},
		{"a uid wins over the app of all users", of(secondUser), in, settings{Owner: byOwner}, map[uint32]uint8{appOfAllUsers(app): 1, secondUser: 0}, counts{In: 1}},
		{"the app of all users does not pass", of(secondUser), in, settings{Owner: byOwner, Others: 1}, map[uint32]uint8{appOfAllUsers(app): 0}, counts{In: 1}},
		{"without an owner", past{}, ping, settings{Owner: byOwner, Others: 1}, nil, counts{In: 1, Unattributed: 1}},
		{"without an owner, and that is kept", past{}, ping, settings{Owner: byOwner, Unattributed: 1}, nil, counts{In: 1, Received: 1, Unattributed: 1}},
		{"without an owner, and no filter", past{}, ping, settings{Owner: tell}, nil, counts{In: 1, Received: 1, Unattributed: 1}},
		{"without an owner, and nobody asks", past{}, ping, settings{Owner: ignore}, nil, counts{In: 1, Received: 1}},
		{"an unknown owner is left to the agent", past{}, fragmentOf(make([]byte, 32), 4), settings{Owner: byOwner}, map[uint32]uint8{app: 1}, counts{In: 1, Received: 1}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			forTiers(t, func(t *testing.T, tier tier, s space) {
				c.asked.Snaplen, c.asked.Directions = 64, both
				o := start(t, tier.object, config{settings: tier.offsets(t, c.asked), interfaces: []uint32{0, s.other}, verdicts: c.uids})
				o.remember(t, c.past)
				o.run(t, "l2_ingress", s.other, c.packet)
				if got := o.counts(t, s.other); got != c.want {
					t.Errorf("counts are %+v, want %+v", got, c.want)
				}
				if n := len(o.records(t)); n != int(c.want.Received) {
					t.Errorf("%d records, want %d", n, c.want.Received)
				}
			})
		})
	}
}

// TestVerdicts changes who is asked for: what was remembered of a uid holds until the generation is another.
func TestVerdicts(t *testing.T) {
	const meets = app + 256 // the same word
	in := in4(tcp, tcpHead(false, ack))
	forTiers(t, func(t *testing.T, tier tier, s space) {
		set := tier.offsets(t, settings{Snaplen: 64, Directions: both, Owner: byOwner})
		o := start(t, tier.object, config{settings: set, interfaces: []uint32{0, s.other}, verdicts: map[uint32]uint8{app: 0, meets: 1}})
		generation := uint64(0)
		for _, step := range []struct {
			rule    string
			uid     uint32
			changes map[uint32]uint8
			forgets bool
			records int
		}{
			{"it is not asked for", app, nil, false, 0},
			{"another in its word is", meets, nil, false, 1},
			{"and the first is not yet", app, nil, false, 0},
			{"it is, but nobody says so", app, map[uint32]uint8{app: 1}, false, 0},
			{"it is", app, nil, true, 1},
			{"and from memory", app, nil, false, 1},
			{"it is not any more", app, map[uint32]uint8{app: 0}, true, 0},
		} {
			for uid, verdict := range step.changes {
				if err := o.Maps["uids"].Put(uid, verdict); err != nil {
					t.Fatal(err)
				}
			}
			if step.forgets {
				generation += 2
				if err := o.Maps["verdicts"].Put(uint32(0), append([]uint64{generation}, make([]uint64, 256)...)); err != nil {
					t.Fatal(err)
				}
			}
			o.remember(t, past{flows: map[flow]uint32{theirFlow(tcp): step.uid}})
			o.run(t, "l2_ingress", s.other, in)
			if n := len(o.records(t)); n != step.records {
				t.Errorf("%s: %d records, want %d", step.rule, n, step.records)
			}
		}
	})
}

// TestOwnerOnLoopback has a packet that is seen once, and has a sender and a receiver.
func TestOwnerOnLoopback(t *testing.T) {
	const wanted, sender, receiver = app, 10124, 10125
	from, at := swap(theirFlow(tcp)), theirFlow(tcp)
	for _, c := range []struct {
		rule   string
		flows  map[flow]uint32
		owner  uint32
		others uint32
		want   uids // of the record; 0: there is none
	}{
		{"the sender is wanted", map[flow]uint32{from: wanted, at: receiver}, byOwner, 0, all(wanted)},
		{"the receiver is wanted", map[flow]uint32{from: sender, at: wanted}, byOwner, 0, all(wanted)},
		{"both are", map[flow]uint32{from: sender, at: receiver}, byOwner, 1, all(receiver)},
		{"neither is", map[flow]uint32{from: sender, at: receiver}, byOwner, 0, all(0)},
		{"the sender is wanted, the receiver not known", map[flow]uint32{from: wanted}, byOwner, 0, all(wanted)},
		{"the sender is not wanted, the receiver not known", map[flow]uint32{from: sender}, byOwner, 0, uids{await, await, 0}},
		{"the receiver is wanted, the sender not known", map[flow]uint32{at: wanted}, byOwner, 0, all(wanted)},
		{"the receiver is not wanted, the sender not known", map[flow]uint32{at: receiver}, byOwner, 0, uids{await, await, 0}},
		{"neither is known", nil, byOwner, 0, uids{await, await, 0}},
		{"tell: the receiver", map[flow]uint32{from: sender, at: receiver}, tell, 0, all(receiver)},
		{"tell: else the sender", map[flow]uint32{from: sender}, tell, 0, all(sender)},
		{"tell: nobody", nil, tell, 0, uids{await, await, none}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			forTiers(t, func(t *testing.T, tier tier, _ space) {
				o := start(t, tier.object, config{settings: tier.offsets(t, settings{Snaplen: 64, Directions: both, Owner: c.owner, Others: c.others}), uids: []uint32{wanted}})
				o.remember(t, past{flows: c.flows})
				o.run(t, "l2_ingress", loopback, in4(tcp, tcpHead(false, ack)))
				var got uint32
				if all := o.records(t); len(all) == 1 {
					got = all[0].UID
				}
				if want := c.want.of(tier); got != want {
					t.Errorf("uid is %#x, want %#x", got, want)
				}
			})
		})
	}
}

// TestOwnerIsLearnt has one packet of root's that leaves, and what is known afterwards.
func TestOwnerIsLearnt(t *testing.T) {
	known := all(1)
	for _, c := range []struct {
		rule    string
		asked   settings
		ifindex uint32 // 0: other
		flows   map[flow]uint32
		packet  []byte
		learnt  flow
		want    uids // 1: root's flow is known, 0: it is not
		filter  string
	}{
		{"from what begins a connection", settings{Owner: tell}, 0, nil, packet4(true, tcp, 0, tcpHead(true, syn)), theirFlow(tcp), known, ""},
		{"from the answer", settings{Owner: tell}, 0, nil, packet4(true, tcp, 0, tcpHead(true, syn|ack)), theirFlow(tcp), known, ""},
		{"over what was known", settings{Owner: tell}, 0, theirs, packet4(true, tcp, 0, tcpHead(true, syn)), theirFlow(tcp), known, ""},
		{"from UDP", settings{Owner: tell}, 0, theirs, packet4(true, udp, 0, udpHead(true)), theirFlow(udp), known, ""},
		{"from IPv6", settings{Owner: tell}, 0, nil, packet6(true, udp, udpHead(true)), theirFlow6(udp), known, ""},
		{"from a ping", settings{Owner: tell}, 0, nil, packet4(true, icmp, 0, echo(8)), pinger(icmp), known, ""},
		{"from a first fragment", settings{Owner: tell}, 0, nil, packet4(true, udp, 0x2000, udpHead(true)), theirFlow(udp), known, ""},
		{"from what ends a connection", settings{Owner: tell}, 0, nil, packet4(true, tcp, 0, tcpHead(true, fin|ack)), theirFlow(tcp), uids{0, 1, 1}, ""},
		{"from a reset", settings{Owner: tell}, 0, nil, packet4(true, tcp, 0, tcpHead(true, rst)), theirFlow(tcp), uids{0, 1, 1}, ""},
		{"from the midst of a connection, where no socket is looked up", settings{Owner: tell}, 0, nil, packet4(true, tcp, 0, tcpHead(true, ack)), theirFlow(tcp), uids{0, 1, 0}, ""},
		{"and on the loopback interface", settings{Owner: tell}, loopback, nil, packet4(true, tcp, 0, tcpHead(true, ack)), theirFlow(tcp), uids{0, 1, 1}, ""},
		{"if only what comes in is recorded, too", settings{Owner: byOwner, Directions: ingress}, 0, nil, packet4(true, udp, 0, udpHead(true)), theirFlow(udp), known, ""},
		{"if the filter does not match, too", settings{Owner: byOwner}, 0, nil, packet4(true, udp, 0, udpHead(true)), theirFlow(udp), known, "less 0"},
		{"not from the answer to a ping", settings{Owner: tell}, 0, nil, packet4(true, icmp, 0, echo(0)), pinger(icmp), all(0), ""},
		{"not if nobody asks for owners", settings{Owner: ignore}, 0, nil, packet4(true, udp, 0, udpHead(true)), theirFlow(udp), all(0), ""},
	} {
		t.Run(c.rule, func(t *testing.T) {
			forTiers(t, func(t *testing.T, tier tier, s space) {
				asked, ifindex := c.asked, c.ifindex
				if ifindex == 0 {
					ifindex = s.other
				}
				if asked.Directions == 0 {
					asked.Directions = both
				}
				asked.Snaplen = 64
				o := start(t, tier.object, config{settings: tier.offsets(t, asked), interfaces: []uint32{0, ifindex}, edit: func(spec *ebpf.CollectionSpec) {
					if c.filter != "" {
						inject(t, spec, c.filter, pcapng.Raw, filter.Hybrid)
					}
				}})
				o.remember(t, past{flows: c.flows})
				before := bootTime(t)
				o.run(t, "l3_egress", ifindex, c.packet)
				var got owner
				found := o.Maps["shared_flows"].Lookup(c.learnt, &got) == nil && got.UID == root
				if want := c.want.of(tier) == 1; found != want {
					t.Fatalf("known is %v: %+v", found, got)
				}
				// A fragment has no flags of TCP, and the tests' other packets none but these.
				if began := strings.Contains(c.rule, "begins") || strings.Contains(c.rule, "answer") || strings.Contains(c.rule, "over"); found && began != (got.Born == got.Seen) {
					t.Errorf("it was born at %d and seen at %d", got.Born, got.Seen)
				}
				if found && (got.Seen < before || got.Seen > bootTime(t)) {
					t.Errorf("it was seen at %d, and now is %d", got.Seen, before)
				}
			})
		})
	}
}

// TestOwnerWithoutMatch has a filter that nothing matches: what comes in later depends on the packet all the same.
func TestOwnerWithoutMatch(t *testing.T) {
	forTiers(t, func(t *testing.T, tier tier, s space) {
		o := start(t, tier.object, config{
			settings:   tier.offsets(t, settings{Snaplen: 64, Directions: both, Owner: byOwner}),
			interfaces: []uint32{0, s.other},
			edit:       func(spec *ebpf.CollectionSpec) { inject(t, spec, "less 0", pcapng.Ethernet, filter.Hybrid) },
		})
		o.remember(t, past{flows: theirs})
		o.run(t, "l2_ingress", s.other, ethernet(packet4(false, udp, 0x2000, udpHead(false)), typeIP4))
		id := fragment{Src: v4(192, 0, 2, 1), Dst: v4(10, 0, 0, 1), ID: [4]byte{0, 0, 0, 1}, Protocol: udp, Version: 4}
		var first firstPorts
		if err := o.Maps["shared_fragments"].Lookup(id, &first); err != nil || first.Src != [2]byte{1, 187} || first.Protocol != udp {
			t.Errorf("of the first fragment is known %+v: %v", first, err)
		}
		for _, packet := range [][]byte{in4(tcp, tcpHead(false, syn)), in6(tcp, tcpHead(false, syn)),
			ethernet(withOptions(packet4(false, tcp, 0, tcpHead(false, syn)), 1), typeIP4)} {
			o.remember(t, past{flows: theirs})
			o.run(t, "l2_ingress", s.other, packet)
			of := theirFlow(tcp)
			if packet[12] == typeIP6[0] {
				of = theirFlow6(tcp)
			}
			var left owner
			if known := o.Maps["shared_flows"].Lookup(of, &left) == nil; known != tier.lookup {
				t.Errorf("the flow before the connection is known: %v", known)
			}
		}
		if got := o.counts(t, s.other); got.Received != 0 {
			t.Errorf("counts are %+v", got)
		}
	})
}

// TestOwnerIsRefreshed has a flow that goes on: it stays known.
func TestOwnerIsRefreshed(t *testing.T) {
	forTiers(t, func(t *testing.T, tier tier, s space) {
		o := start(t, tier.object, config{settings: tier.offsets(t, settings{Snaplen: 64, Directions: both, Owner: tell}), interfaces: []uint32{0, s.other}})
		key := theirFlow(udp)
		then := bootTime(t) / 2 // seconds ago, or days
		if err := o.Maps["shared_flows"].Put(key, owner{UID: root, Cgroup: 1, Seen: then}); err != nil {
			t.Fatal(err)
		}
		o.run(t, "l2_egress", s.other, ethernet(packet4(true, udp, 0, udpHead(true)), typeIP4))
		var got owner
		if err := o.Maps["shared_flows"].Lookup(key, &got); err != nil {
			t.Fatal(err)
		}
		if got.Seen <= then {
			t.Errorf("a flow was seen at %d, and before it at %d", got.Seen, then)
		}
	})
}
