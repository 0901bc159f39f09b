// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// offloads are what the two ends of the pair do themselves, and what that makes of bulk traffic.
type offloads struct {
	name      string
	near, far string // what ethtool -K is given
	big       int    // bytes: gso_max_size at both ends, for BIG TCP; 0 leaves the 64 KiB
	vlan      bool   // packets as a VLAN interface sends them come, too
	cut       bool   // -s 128

	// What tcpdump shows of what comes in, of UDP that comes in for somebody else, and of what leaves: packets that are
	// longer than the MTU; and complete checksums in what leaves.
	longIn, longForeign, longOut, full bool
	// How what tc and TCX show of what leaves differs from that: one packet for several, and partial checksums for
	// complete ones.
	split, unsummed bool
}

const noTSO = "tso off tx-udp-segmentation off"

var offloadCases = []offloads{
	{name: "all", longIn: true, longForeign: true, longOut: true},
	{name: "all, cut", cut: true, longIn: true, longForeign: true, longOut: true},
	{name: "BIG TCP", big: 185000, longIn: true, longForeign: true, longOut: true},
	{name: "no TSO", near: noTSO, far: noTSO, split: true},
	{name: "no TSO, GRO", near: noTSO + " gro on", far: noTSO + " gro on", longIn: true, split: true},
	{name: "no TSO, GRO, cut", near: noTSO + " gro on", far: noTSO + " gro on", cut: true, longIn: true, split: true},
	{name: "no TSO, GRO by lists", near: noTSO + " gro on rx-gro-list on", far: noTSO, longIn: true, longForeign: true, split: true},
	{name: "no TSO, GRO for forwarding", near: noTSO + " gro on rx-udp-gro-forwarding on", far: noTSO, longIn: true, longForeign: true, split: true},
	{name: "no GSO", near: noTSO + " gso off", far: noTSO + " gso off", split: true},
	{name: "no checksums", near: "tx off", far: "tx off", full: true, split: true, unsummed: true},
	{name: "no checksums, GRO", near: "tx off gro on", far: "tx off gro on", longIn: true, full: true, split: true, unsummed: true},
	{name: "VLAN", vlan: true, longIn: true, longForeign: true, longOut: true},
	{name: "VLAN, no tags", near: "txvlan off", far: "txvlan off", vlan: true, longIn: true, longForeign: true, longOut: true},
	{name: "VLAN, nothing", near: "txvlan off tx off", far: "txvlan off tx off", vlan: true, full: true, split: true, unsummed: true},
}

// set makes the pair so.
func (o offloads) set(t *testing.T, near, far nettest.Space) {
	t.Helper()
	if o.vlan {
		feed(t, near, far)
	}
	for _, end := range []struct {
		s    nettest.Space
		args string
	}{{near, o.near}, {far, o.far}} {
		if end.args != "" {
			end.s.Run(t, append([]string{"ethtool", "-K", "veth0"}, strings.Fields(end.args)...)...)
		}
		if o.big > 0 {
			end.s.Must(t, func() error {
				link, err := netlink.LinkByName("veth0")
				if err != nil {
					return err
				}
				// The one for IPv4 has a name of its own since Linux 6.3.
				return errors.Join(netlink.LinkSetGSOMaxSize(link, o.big), netlink.LinkSetGSOIPv4MaxSize(link, o.big))
			})
		}
	}
}

// offloadCapture is one of the captures that run beside each other, and what tcpdump is given for it.
type offloadCapture struct {
	variant []string
	args    string
}

func (c offloadCapture) name() string {
	return strings.Join([]string{c.variant[1], c.variant[3], strings.SplitN(c.args, " (", 2)[0]}, " ")
}

// deep looks behind what may be in one piece, in packets that come in.
const deep = "-Q in (len >= 1411 and len <= 1414) or tcp[8020:4] = 0x64726f69 or tcp[8032:4] = 0x64726f69 or udp[8008:4] = 0x64726f69"

func offloadCaptures() []offloadCapture {
	all := []offloadCapture{{variants[0], deep}, {variants[3], deep}, {variants[4], deep}}
	for _, v := range variants {
		all = append(all, offloadCapture{v, ""})
	}
	return all
}

// TestOffload compares captures of bulk traffic with tcpdump's, packet by packet. What comes in, and what a packet socket
// has of what leaves, is the same. tc and TCX have what leaves before the kernel finishes it: finishing it here gives
// tcpdump's packets.
func TestOffload(t *testing.T) {
	nettest.Require(t, "tcpdump", "agent", "ethtool")
	for _, o := range offloadCases {
		t.Run(o.name, func(t *testing.T) {
			near, far := nettest.Pair(t)
			o.set(t, near, far)
			serve(t, near, 0)
			serve(t, far, 0)
			dir := t.TempDir()
			references := map[string]*reference{"": nil, deep: nil}
			for args := range references {
				references[args] = startReference(t, near, filepath.Join(dir, fmt.Sprint("tcpdump", len(args))), args)
			}
			var agents []*nettest.Process
			captures := offloadCaptures()
			file := func(i int) string { return filepath.Join(dir, fmt.Sprint(i)) }
			for i, c := range captures {
				args := append([]string{"-i", "veth0", "-B", "65536"}, c.variant...)
				if o.cut {
					args = append(args, "-s", "128")
				}
				agents = append(agents, startAgent(t, near, file(i), append(args, options(c.args)...)...))
			}
			mark(t, near, far, startOut, startIn)
			exchangeBulk(t, near, far)
			exchangeForeign(t, far)
			if o.vlan {
				exchangeForeign(t, far, [2]uint16{nettest.TypeVLAN, 42})
			}
			mark(t, near, far, endOut, endIn)
			for i := range captures {
				nettest.Await(t, file(i), func(p nettest.Packet) bool { return p.Length == endIn })
			}
			for _, r := range references {
				r.stop(t)
			}
			o.covered(t, references[""].packets)
			for i, c := range captures {
				t.Run(c.name(), func(t *testing.T) {
					agents[i].Stop(t, syscall.SIGINT)
					if n := counters(t, agents[i].Stderr())["dropped by kernel"]; n != 0 {
						t.Errorf("%d packets dropped", n)
					}
					o.compare(t, c, between(t, file(i)), references[c.args].packets)
				})
			}
		})
	}
}

// options splits options from the expression behind them.
func options(args string) []string {
	if args == "" {
		return nil
	}
	return strings.SplitN(args, " ", 3)
}

// reference is a tcpdump that loses nothing of long packets.
type reference struct {
	*nettest.Process
	file    string
	packets []nettest.Packet // when it is stopped
}

// startReference starts a tcpdump whose ring has no places of one size: in immediate mode it would, of 64 KiB or, at an
// interface without offloads, of the MTU, and cut what is longer (libpcap's pcap-linux.c create_ring).
func startReference(t *testing.T, s nettest.Space, file, args string) *reference {
	t.Helper()
	argv := []string{"tcpdump", "-Z", "root", "-U", "-n", "-B", "65536", "-w", file, "-i", "veth0"}
	return &reference{Process: nettest.Start(t, s.Command(append(argv, options(args)...)...), "listening on"), file: file}
}

// stop stops it when it has the last packet.
func (r *reference) stop(t *testing.T) {
	t.Helper()
	nettest.Await(t, r.file, func(p nettest.Packet) bool { return p.Length == endIn })
	r.Stop(t, syscall.SIGINT)
	if !strings.Contains(r.Stderr(), "\n0 packets dropped by kernel") {
		t.Fatalf("tcpdump lost packets:\n%s", r.Stderr())
	}
	r.packets = between(t, r.file)
}

// covered fails the test if the kernel does not do with tcpdump's packets what the case says.
func (o offloads) covered(t *testing.T, packets []nettest.Packet) {
	t.Helper()
	longest, sums, tagged := map[string]int{}, map[string]int{}, map[bool]int{}
	for i, p := range packets {
		if len(p.Data) != p.Length {
			t.Fatalf("tcpdump has %d bytes of packet %d, of %d", len(p.Data), i, p.Length)
		}
		h, ok := nettest.ParseEthernet(p.Data)
		if !ok {
			continue
		}
		kind := map[byte]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP"}[h.Protocol]
		switch to := h.Destination(p.Data).String(); {
		case leaves(p):
			kind += " out"
			sums[h.Checksum(p.Data)]++
		case to == foreign4 || to == foreign6:
			kind += " in for somebody else"
		default:
			kind += " in"
		}
		longest[kind] = max(longest[kind], p.Length)
		tagged[leaves(p)] += btoi(h.IP > 14)
	}
	const mtu = 14 + 4 + 1500
	t.Logf("%d packets, the longest %v, checksums of what leaves %v", len(packets), longest, sums)
	for kind, long := range map[string]bool{
		"TCP in": o.longIn, "UDP in": o.longIn, "TCP in for somebody else": o.longIn, "UDP in for somebody else": o.longForeign,
		"TCP out": o.longOut, "UDP out": o.longOut,
	} {
		if n := longest[kind]; n == 0 || n > mtu != long || o.big > 0 && kind == "TCP in" && n <= 14+65536 {
			t.Errorf("the longest packet of %s has %d bytes", kind, n)
		}
	}
	want := map[bool]string{true: "full", false: "partial"}[o.full]
	delete(sums, "either")
	if sums[want] == 0 || len(sums) != 1 {
		t.Errorf("what leaves has checksums that are %v, and not all %s", sums, want)
	}
	if (tagged[false] >= 4 && tagged[true] >= 4) != o.vlan {
		t.Errorf("%d tagged packets come in, %d leave", tagged[false], tagged[true])
	}
}

// compare holds got against tcpdump's packets.
func (o offloads) compare(t *testing.T, c offloadCapture, got, want []nettest.Packet) {
	t.Helper()
	snaplen := longest(c.variant)
	if o.cut {
		snaplen = 128
	}
	if c.args == deep && o.longIn && len(want) == 0 {
		t.Error("tcpdump has no packet with that so far behind")
	}
	finish := c.args == "" && (o.split || o.unsummed) && !slices.Contains(c.variant, "packet")
	for _, leaving := range []bool{false, true} {
		way := func(all []nettest.Packet) []nettest.Packet {
			return slices.DeleteFunc(slices.Clone(all), func(p nettest.Packet) bool { return leaves(p) != leaving })
		}
		got, want := way(got), way(want)
		if leaving && finish {
			o.unfinished(t, got, want, snaplen)
			continue
		}
		if diff := cmp.Diff(describe(shorten(want, snaplen)), describe(got)); diff != "" {
			t.Errorf("leaving %v: %d packets, tcpdump has %d (-tcpdump +agent):\n%s", leaving, len(got), len(want), abbreviate(diff))
		}
	}
	if !finish {
		if diff := cmp.Diff(describe(shorten(want, snaplen)), describe(got)); diff != "" {
			t.Errorf("the order differs")
		}
	}
}

// shorten cuts packets at snaplen bytes.
func shorten(packets []nettest.Packet, snaplen int) []nettest.Packet {
	packets = slices.Clone(packets)
	for i, p := range packets {
		packets[i].Data = p.Data[:min(len(p.Data), snaplen)]
	}
	return packets
}

// unfinished holds packets that leave, as tc and TCX have them, against what tcpdump has: those that the kernel made of
// them.
func (o offloads) unfinished(t *testing.T, got, want []nettest.Packet, snaplen int) {
	t.Helper()
	split, left := map[byte]int{}, want
	for i, p := range got {
		h, ok := nettest.ParseEthernet(p.Data)
		n, whole := gather(h, p, left)
		if n == 0 || len(whole) != p.Length {
			t.Fatalf("packet %d of %d bytes: tcpdump has no packets of that payload", i, p.Length)
		}
		segments := []string{whole}
		if ok {
			switch sum := h.Checksum(whole); {
			case sum == "partial" || sum == "either":
				first, _ := nettest.ParseEthernet(left[0].Data)
				segments = h.Segment(whole, left[0].Length-first.Payload, o.full)
			case h.Protocol == unix.IPPROTO_TCP:
				t.Errorf("packet %d has a %s checksum", i, sum)
			}
		}
		if n > 1 {
			split[h.Protocol]++
		}
		if diff := cmp.Diff(describe(shorten([]nettest.Packet{{Length: p.Length, Data: whole}}, snaplen)), describe(got[i:i+1])); diff != "" {
			t.Fatalf("packet %d (-tcpdump +agent):\n%s", i, abbreviate(diff))
		}
		if diff := cmp.Diff(mangled(left[:n]), segments); diff != "" {
			t.Fatalf("packet %d, of %d bytes, finished (-tcpdump +agent):\n%s", i, p.Length, abbreviate(diff))
		}
		left = left[n:]
	}
	if len(left) > 0 {
		t.Errorf("%d of tcpdump's %d packets are missing", len(left), len(want))
	}
	if tcp, udp := split[unix.IPPROTO_TCP], split[unix.IPPROTO_UDP]; (tcp > 0) != o.split || (udp > 0) != o.split {
		t.Errorf("%d packets of TCP and %d of UDP stand for several", tcp, udp)
	}
}

// gather returns how many of tcpdump's packets have together as much payload as p, and p with that payload, whole; 0
// where they end before. A packet that is no TCP or UDP, with no h, is as one of theirs.
func gather(h nettest.Transport, p nettest.Packet, from []nettest.Packet) (n int, whole string) {
	whole = p.Data[:h.Payload]
	for n == 0 || len(whole) < p.Length {
		if n == len(from) {
			return 0, ""
		}
		part, _ := nettest.ParseEthernet(from[n].Data)
		whole += from[n].Data[part.Payload:]
		n++
	}
	return n, whole
}

// mangled returns the bytes of packets, with 0xffff for a TCP checksum of 0: some kernel functions write the one, some
// the other (CSUM_MANGLED_0).
func mangled(packets []nettest.Packet) []string {
	var all []string
	for _, p := range packets {
		if h, ok := nettest.ParseEthernet(p.Data); ok && p.Data[h.At:h.At+2] == "\x00\x00" {
			p.Data = p.Data[:h.At] + "\xff\xff" + p.Data[h.At+2:]
		}
		all = append(all, p.Data)
	}
	return all
}
