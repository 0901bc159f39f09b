// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"strings"
	"testing"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
	"droidtap/scripts/libpcaptest"
)

// lists are what long expressions are made of, short enough for libpcap's optimiser to be the reference.
func lists(l2 bool) []string {
	hosts := numbered("host 10.0.0.%d", 12)
	all := []string{
		hosts,
		"not (" + hosts + ")",
		"tcp and (" + hosts + ")",
		"(" + hosts + ") and (" + numbered("port %d", 60) + " or port 443)",
		"(" + hosts + ") and tcp port 443",
		numbered("not host 10.0.0.%d", 5),
		numbered("src host 10.0.0.%d", 12) + " or dst host 8.8.8.8",
		numbered("net 10.0.%d.0/24", 9) + " or net 10.0.0.0/24 or net 8.8.8.0/24 or net 192.168.0.0/16",
		numbered("host 2001:db8::%d", 12),
		numbered("net 2001:db8:%d::/48", 9) + " or net 2001:db8::/48 or net ff00::/8",
		numbered("port %d", 60) + " or port 443",
		numbered("tcp port %d", 60) + " or udp port 53",
		numbered("udp dst port %d", 60),
		numbered("portrange %d0-%d9", 9),
		numbered("(host 10.0.0.%d and tcp port 443)", 8),
		"port 443 or host 10.0.0.1 or host 8.8.8.8 or port 80 or net 172.16.0.0/12",
	}
	if l2 {
		all = append(all, numbered("ether host 02:00:00:00:00:0%d", 9), "vlan and ("+hosts+")", "not arp and ("+hosts+")")
	}
	return all
}

// TestSimplified holds what a long expression goes through, in place of libpcap's optimiser, against that one: on lists
// over every packet, cut ones too, and on the expressions of the files over whole packets.
func TestSimplified(t *testing.T) {
	for _, c := range []struct {
		linkType pcapng.LinkType
		file     string
		whole    [][]byte
	}{{pcapng.Ethernet, "expressions.txt", frames()}, {pcapng.Raw, "expressions-l3.txt", ipPackets()}} {
		cut := newWire(c.linkType).packets
		for _, p := range c.whole[:60] {
			for n := range min(len(p), 80) {
				cut = append(cut, libpcaptest.Packet{Bytes: p[:n]})
			}
		}
		for _, expr := range lists(c.linkType == pcapng.Ethernet) {
			simplified(t, expr, c.linkType, cut)
		}
		var whole []libpcaptest.Packet
		for _, p := range c.whole {
			whole = append(whole, libpcaptest.Packet{Bytes: p})
		}
		for _, expr := range expressions(t, c.file) {
			if !strings.Contains(expr, "protochain") { // is not optimised by libpcap either, and not simplified
				simplified(t, expr, c.linkType, whole)
			}
		}
	}
}

func simplified(t *testing.T, expr string, l pcapng.LinkType, packets []libpcaptest.Packet) {
	t.Helper()
	want, err := libpcaptest.Verdicts(expr, l, 0, packets)
	if err != nil {
		t.Fatalf("%q: %v", expr, err)
	}
	f, err := filter.Simplified(expr, l)
	if err != nil {
		t.Fatalf("%q: %v", expr, err)
	}
	for i, p := range packets {
		got := f.Match(p.Bytes, filter.Meta{Length: uint32(len(p.Bytes)), VlanPresent: p.Tag != 0, VlanTCI: p.Tag})
		if got != want[i] {
			t.Errorf("%q, packet %d: accepted is %v, and libpcap says %v: %x tag %d", expr, i, got, want[i], p.Bytes, p.Tag)
			return
		}
	}
}
