// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

// flow mirrors struct flow of bpf/src/packet.bpf.c. Ports are big endian.
type flow struct {
	Local, Remote         [16]byte
	LocalPort, RemotePort [2]byte
	Protocol              uint8
	_                     [3]uint8
}

const tcp, udp, icmp = 6, 17, 1

// ports is 40000 and 443 as they stand in a header.
func ports(out bool) []byte {
	there, here := []byte{1, 187}, []byte{0x9c, 0x40}
	if out {
		return slices.Concat(here, there)
	}
	return slices.Concat(there, here)
}

// ip4 is a packet between 10.0.0.1 and 192.0.2.1.
func ip4(out bool, protocol byte, fragment uint16, options int) []byte {
	here, there := []byte{10, 0, 0, 1}, []byte{192, 0, 2, 1}
	if !out {
		here, there = there, here
	}
	head := []byte{byte(0x45 + options), 0, 0, 60, 0, 1, 0, 0, 64, protocol, 0, 0}
	binary.BigEndian.PutUint16(head[6:], fragment)
	return slices.Concat(head, here, there, make([]byte, 4*options), ports(out), make([]byte, 40))
}

var (
	here6  = netip.MustParseAddr("2001:db8::1").As16()
	there6 = netip.MustParseAddr("2001:db8::2").As16()
)

func ip6(out bool, protocol byte) []byte {
	src, dst := here6, there6
	if !out {
		src, dst = dst, src
	}
	return slices.Concat([]byte{0x60, 0, 0, 0, 0, 44, protocol, 64}, src[:], dst[:], ports(out), make([]byte, 40))
}

// ethernet puts an Ethernet header with types, the last being the payload's, before a packet.
func ethernet(packet []byte, types ...[]byte) []byte {
	return slices.Concat(make([]byte, 12), slices.Concat(types...), packet)
}

var (
	typeIP4   = []byte{8, 0}
	typeIP6   = []byte{0x86, 0xdd}
	tagVLAN   = []byte{0x81, 0, 0, 100}
	tagQinQ   = []byte{0x88, 0xa8, 0, 10}
	theirFlow = func(protocol uint8) flow {
		return flow{Local: v4(10, 0, 0, 1), Remote: v4(192, 0, 2, 1), LocalPort: [2]byte{0x9c, 0x40}, RemotePort: [2]byte{1, 187}, Protocol: protocol}
	}
	theirFlow6 = flow{Local: here6, Remote: there6, LocalPort: [2]byte{0x9c, 0x40}, RemotePort: [2]byte{1, 187}, Protocol: udp}
)

func v4(a, b, c, d byte) [16]byte { return netip.AddrFrom4([4]byte{a, b, c, d}).As16() }

func swap(f flow) flow {
	f.Local, f.Remote, f.LocalPort, f.RemotePort = f.Remote, f.Local, f.RemotePort, f.LocalPort
	return f
}

// TestOwner has captures that ask for app 10123. The socket of BPF_PROG_TEST_RUN is
// root's, and other is an interface that is not the loopback one.
func TestOwner(t *testing.T) {
	const app, root = 10123, 0
	l2v4 := ethernet(ip4(false, tcp, 0, 0), typeIP4)
	forPacketObjects(t, func(t *testing.T, name string) {
		s := newSpace(t, 65536)
		other := s.other
		for _, c := range []struct {
			rule    string
			known   map[flow]uint32
			uids    []uint32
			program string
			ifindex uint32
			packet  []byte
			want    counts
			uid     uint32 // of the record
		}{
			{"in: no flow, no owner", nil, []uint32{app}, "l2_ingress", other, l2v4, counts{In: 1, Unattributed: 1}, 0},
			{"in: the owner of its flow", map[flow]uint32{theirFlow(tcp): app}, []uint32{app}, "l2_ingress", other, l2v4, counts{In: 1, Received: 1}, app},
			{"in: one of two uids", map[flow]uint32{theirFlow(tcp): app}, []uint32{10999, app}, "l2_ingress", other, l2v4, counts{In: 1, Received: 1}, app},
			{"in: the owner is not wanted", map[flow]uint32{theirFlow(tcp): 10124}, []uint32{app}, "l2_ingress", other, l2v4, counts{In: 1}, 0},
			{"in: the flow of another protocol does not count", map[flow]uint32{theirFlow(udp): app}, []uint32{app}, "l2_ingress", other, l2v4, counts{In: 1, Unattributed: 1}, 0},
			{"in: the sender's flow does not count", map[flow]uint32{swap(theirFlow(tcp)): app}, []uint32{app}, "l2_ingress", other, l2v4, counts{In: 1, Unattributed: 1}, 0},
			{"in: behind IPv4 options", map[flow]uint32{theirFlow(tcp): app}, []uint32{app}, "l2_ingress", other, ethernet(ip4(false, tcp, 0, 10), typeIP4), counts{In: 1, Received: 1}, app},
			{"in: behind a VLAN tag", map[flow]uint32{theirFlow(tcp): app}, []uint32{app}, "l2_ingress", other, ethernet(ip4(false, tcp, 0, 0), tagVLAN, typeIP4), counts{In: 1, Received: 1}, app},
			{"in: behind two VLAN tags", map[flow]uint32{theirFlow(tcp): app}, []uint32{app}, "l2_ingress", other, ethernet(ip4(false, tcp, 0, 0), tagQinQ, tagVLAN, typeIP4), counts{In: 1, Received: 1}, app},
			{"in: IPv6", map[flow]uint32{theirFlow6: app}, []uint32{app}, "l2_ingress", other, ethernet(ip6(false, udp), typeIP6), counts{In: 1, Received: 1}, app},
			{"in: the first fragment has ports", map[flow]uint32{theirFlow(udp): app}, []uint32{app}, "l2_ingress", other, ethernet(ip4(false, udp, 0x2000, 0), typeIP4), counts{In: 1, Received: 1}, app},
			{"in: a later fragment has none", map[flow]uint32{theirFlow(udp): app}, []uint32{app}, "l2_ingress", other, ethernet(ip4(false, udp, 0x2001, 0), typeIP4), counts{In: 1, Unattributed: 1}, 0},
			{"in: ICMP has no ports", map[flow]uint32{theirFlow(icmp): app}, []uint32{app}, "l2_ingress", other, ethernet(ip4(false, icmp, 0, 0), typeIP4), counts{In: 1, Unattributed: 1}, 0},
			{"in: neither IPv4 nor IPv6", nil, []uint32{app}, "l2_ingress", other, frame(60), counts{In: 1, Unattributed: 1}, 0},
			{"in: without an Ethernet header", map[flow]uint32{theirFlow(tcp): app}, []uint32{app}, "l3_ingress", other, ip4(false, tcp, 0, 0), counts{In: 1, Received: 1}, app},
			{"in: IPv6 without an Ethernet header", map[flow]uint32{theirFlow6: app}, []uint32{app}, "l3_ingress", other, ip6(false, udp), counts{In: 1, Received: 1}, app},

			{"loopback in: the sender is wanted", map[flow]uint32{swap(theirFlow(tcp)): app, theirFlow(tcp): 10124}, []uint32{app}, "l2_ingress", loopback, l2v4, counts{In: 1, Received: 1}, app},
			{"loopback in: the receiver is wanted", map[flow]uint32{swap(theirFlow(tcp)): 10124, theirFlow(tcp): app}, []uint32{app}, "l2_ingress", loopback, l2v4, counts{In: 1, Received: 1}, app},
			{"loopback in: neither is wanted", map[flow]uint32{swap(theirFlow(tcp)): 10124}, []uint32{app}, "l2_ingress", loopback, l2v4, counts{In: 1}, 0},

			{"out: the socket's owner", nil, []uint32{root}, "l2_egress", other, ethernet(ip4(true, tcp, 0, 0), typeIP4), counts{Out: 1, Received: 1}, root},
			{"out: the socket's owner is not wanted", nil, []uint32{app}, "l2_egress", other, ethernet(ip4(true, tcp, 0, 0), typeIP4), counts{Out: 1}, 0},
			{"out: root's own UDP on an app's flow is root's", map[flow]uint32{theirFlow(udp): app}, []uint32{app}, "l2_egress", other, ethernet(ip4(true, udp, 0, 0), typeIP4), counts{Out: 1}, 0},
			{"out: on TCP root gives way to the flow's owner", map[flow]uint32{theirFlow(tcp): app}, []uint32{app}, "l2_egress", other, ethernet(ip4(true, tcp, 0, 0), typeIP4), counts{Out: 1, Received: 1}, app},
			{"out: a packet of no flow has its socket's owner", nil, []uint32{root}, "l2_egress", other, frame(60), counts{Out: 1, Received: 1}, root},
			{"out: IPv6 without an Ethernet header", nil, []uint32{root}, "l3_egress", other, ip6(true, udp), counts{Out: 1, Received: 1}, root},
		} {
			t.Run(c.rule, func(t *testing.T) {
				s.enter(t)
				o := start(t, name, config{
					settings:   settings{Snaplen: 64, Directions: both, Owner: 2},
					interfaces: []uint32{0, c.ifindex}, uids: c.uids,
				})
				for f, uid := range c.known {
					if err := o.Maps["shared_flows"].Put(f, uid); err != nil {
						t.Fatal(err)
					}
				}
				o.run(t, c.program, c.ifindex, c.packet)
				if got := o.counts(t, c.ifindex); got != c.want {
					t.Errorf("counts are %+v, want %+v", got, c.want)
				}
				all := o.records(t)
				if len(all) != int(c.want.Received) {
					t.Fatalf("%d records, want %d", len(all), c.want.Received)
				}
				if len(all) == 1 && all[0].UID != c.uid {
					t.Errorf("uid is %d, want %d", all[0].UID, c.uid)
				}
			})
		}
	})
}

// TestOwnerIsLearnt sends a request and then the reply to it.
func TestOwnerIsLearnt(t *testing.T) {
	const root = 0
	forPacketObjects(t, func(t *testing.T, name string) {
		s := newSpace(t, 65536)
		other := s.other
		for _, c := range []struct {
			rule       string
			directions uint32
			owner      uint32
			records    int
			flows      int
		}{
			{"from what leaves", both, 1, 2, 1},
			{"from what leaves, even if only replies are recorded", ingress, 1, 1, 1},
			{"only if somebody asks for owners", both, 0, 2, 0},
		} {
			t.Run(c.rule, func(t *testing.T) {
				s.enter(t)
				o := start(t, name, config{
					settings:   settings{Snaplen: 64, Directions: c.directions, Owner: c.owner},
					interfaces: []uint32{0, other}, uids: []uint32{root},
				})
				o.run(t, "l2_egress", other, ethernet(ip4(true, tcp, 0, 0), typeIP4))
				o.run(t, "l2_ingress", other, ethernet(ip4(false, tcp, 0, 0), typeIP4))
				if n := len(o.records(t)); n != c.records {
					t.Errorf("%d records, want %d", n, c.records)
				}
				var f flow
				var uid uint32
				flows := 0
				for it := o.Maps["shared_flows"].Iterate(); it.Next(&f, &uid); flows++ {
					if f != theirFlow(tcp) || uid != root {
						t.Errorf("flow %+v of %d", f, uid)
					}
				}
				if flows != c.flows {
					t.Errorf("%d flows are known, want %d", flows, c.flows)
				}
			})
		}
	})
}
