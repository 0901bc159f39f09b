// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/nettest"
)

// Filters that somebody has at preference 1, as tc has them.
const (
	vendors  = "protocol all bpf direct-action bytecode 1,6_0_0_%d"
	another  = "protocol ip bpf direct-action bytecode 1,6_0_0_%d"
	ofU32    = "protocol ip u32 match u32 0 0 flowid 1:1%.0d"
	accepts  = 0 // TC_ACT_OK: no later filter sees the packet
	drops    = 2 // TC_ACT_SHOT
	incoming = "ingress"
	outgoing = "egress"
)

// tellUDP sends a text, to nobody.
func tellUDP(s nettest.Space, host, text string) error {
	return s.Do(0, func() error {
		c, err := net.Dial("udp", net.JoinHostPort(host, "9"))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.WriteString(c, text)
		return err
	})
}

// obstruct puts a filter at preference 1, ahead of what is there.
func obstruct(t *testing.T, s nettest.Space, filter string, verdict int, directions ...string) {
	t.Helper()
	for _, direction := range directions {
		argv := []string{"tc", "filter", "add", "dev", "veth0", direction, "pref", "1"}
		for _, word := range strings.Fields(fmt.Sprintf(filter, verdict)) {
			argv = append(argv, strings.ReplaceAll(word, "_", " "))
		}
		s.Run(t, argv...)
	}
}

// TestAhead has somebody's filter at preference 1, before a capture or ahead of ours during it: the start does not fail, and what
// the filter accepts or drops is in the file where it is in tcpdump's, or it is said that it may not be.
func TestAhead(t *testing.T) {
	nettest.Require(t, "agent", "agent-old", "tcpdump", "tc")
	both := []string{incoming, outgoing}
	for _, c := range []struct {
		name, filter string
		verdict      int
		directions   []string
		during       bool
		packet       bool   // a packet socket captures
		more, less   string // than tcpdump: the texts that only we have, and that only it has
	}{
		{name: "a vendor's that accepts what comes in", filter: vendors, verdict: accepts, directions: both[:1]},
		{name: "a vendor's that accepts what leaves", filter: vendors, verdict: accepts, directions: both[1:]},
		{name: "a vendor's that drops both", filter: vendors, verdict: drops, directions: both, more: "out4 out6"},
		{name: "another protocol's that accepts what comes in", filter: another, verdict: accepts, directions: both[:1], packet: true},
		{name: "another protocol's that accepts what leaves", filter: another, verdict: accepts, directions: both[1:], less: "out4"},
		{name: "another protocol's that drops what comes in", filter: another, verdict: drops, directions: both[:1], packet: true},
		{name: "another protocol's that drops both", filter: another, verdict: drops, directions: both, packet: true},
		{name: "another kind's, both", filter: ofU32, directions: both, packet: true},
		{name: "a vendor's later that accepts what comes in", filter: vendors, verdict: accepts, directions: both[:1], during: true},
		{name: "a vendor's later that accepts what leaves", filter: vendors, verdict: accepts, directions: both[1:], during: true},
		{name: "a vendor's later that drops both", filter: vendors, verdict: drops, directions: both, during: true, more: "out4 out6"},
	} {
		t.Run(c.name, func(t *testing.T) {
			near, far := nettest.Pair(t)
			acquaint(t, near, far)
			near.Run(t, "tc", "qdisc", "add", "dev", "veth0", "clsact")
			if !c.during {
				obstruct(t, near, c.filter, c.verdict, c.directions...)
			}
			dir := t.TempDir()
			reference, file := filepath.Join(dir, "reference.pcap"), filepath.Join(dir, "out.pcapng")
			tcpdump := startTcpdump(t, near, reference, "-i", "veth0", "udp")
			p := nettest.Start(t, near.Command("agent-old", "-U", "-i", "veth0", "-w", file, "udp"), "capturing on veth0")
			ph := &phone{Space: near}
			if c.during {
				obstruct(t, near, c.filter, c.verdict, c.directions...)
			}
			if !c.packet && c.filter == vendors {
				ph.awaitFirst(t, "veth0")
			}
			before := network(t, near)
			must(t, errors.Join(tellUDP(near, nettest.Far4, "out4"), tellUDP(near, nettest.Far6, "out6"),
				tellUDP(far, nettest.Near4, "in4"), tellUDP(far, nettest.Near6, "in6")))
			for _, f := range []string{file, reference} {
				nettest.Await(t, f, func(p nettest.Packet) bool { return strings.Contains(p.Data, "in6") })
			}
			// Nothing moves any more.
			if d := cmp.Diff(before, network(t, near)); d != "" {
				t.Error(d)
			}
			p.Stop(t, syscall.SIGINT)
			tcpdump.Stop(t, syscall.SIGINT)
			got, want := texts(t, file), texts(t, reference)
			for _, text := range strings.Fields(c.more) {
				want[text]++
			}
			for _, text := range strings.Fields(c.less) {
				want[text]--
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-tcpdump +agent):\n%s\n%s", d, p.Stderr())
			}
			said := p.Stderr()
			if strings.Contains(said, "veth0 is captured by packet: preference 1 at ingress of veth0 is taken") != c.packet {
				t.Errorf("it is said:\n%s", said)
			}
			if c.less != "" && !strings.Contains(said, "filters ahead may hide packets") {
				t.Errorf("it is not said that packets are hidden:\n%s", said)
			}
			if c.during != strings.Contains(said, "was put ahead of ours at "+c.directions[0]+" of veth0 and may hide packets") {
				t.Errorf("it is said:\n%s", said)
			}
		})
	}
}

// acquaint has the two know each other's hardware address without asking.
func acquaint(t *testing.T, near, far nettest.Space) {
	t.Helper()
	for _, n := range []struct {
		nettest.Space
		addr, mac string
	}{{near, nettest.Far4, nettest.FarMAC}, {near, nettest.Far6, nettest.FarMAC}, {far, nettest.Near4, nettest.NearMAC}, {far, nettest.Near6, nettest.NearMAC}} {
		n.Run(t, "ip", "neigh", "add", n.addr, "lladdr", n.mac, "dev", "veth0")
	}
}

// texts counts the packets of a file with each of the texts of TestAhead.
func texts(t *testing.T, file string) map[string]int {
	t.Helper()
	f, err := nettest.Read(file)
	must(t, err)
	n := map[string]int{"in4": 0, "in6": 0, "out4": 0, "out6": 0}
	for _, p := range f.Packets {
		for text := range n {
			if strings.HasSuffix(p.Data, text) {
				n[text]++
			}
		}
	}
	return n
}

var moved = "was put ahead of ours at ingress of veth0 and may hide packets; it is captured by tc"

// TestTwoBehindOne has two agents behind a filter that comes later: both move ahead of it once, and neither of the other.
func TestTwoBehindOne(t *testing.T) {
	nettest.Require(t, "agent-old", "tc")
	near, far := nettest.Pair(t)
	near.Run(t, "tc", "qdisc", "add", "dev", "veth0", "clsact")
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "one.pcapng"), filepath.Join(dir, "two.pcapng")}
	var agents []*nettest.Process
	for _, file := range files {
		agents = append(agents, nettest.Start(t, near.Command("agent-old", "-U", "-i", "veth0", "-w", file, "udp"), "capturing on veth0"))
	}
	obstruct(t, near, vendors, accepts, incoming)
	for _, p := range agents {
		p.Await(t, moved)
	}
	ph := &phone{Space: near}
	there := ph.order(t, "veth0", incoming)
	if want := []string{"1 bpf ours", "1 bpf ours"}; len(there) != 3 || !slices.Equal(there[:2], want) {
		t.Errorf("the order is %q", there)
	}
	for n := range 5 {
		// Both look again, for something has changed.
		near.Run(t, "tc", "filter", "add", "dev", "veth0", incoming, "pref", "9", "protocol", "ip", "u32", "match", "u32", "0", "0", "flowid", "1:1")
		near.Run(t, "tc", "filter", "del", "dev", "veth0", incoming, "pref", "9")
		must(t, tellUDP(far, nettest.Near4, fmt.Sprint("round ", n)))
		for _, file := range files {
			nettest.Await(t, file, func(p nettest.Packet) bool { return strings.HasSuffix(p.Data, fmt.Sprint("round ", n)) })
		}
	}
	for _, p := range agents {
		p.Stop(t, syscall.SIGINT)
		if n := strings.Count(p.Stderr(), moved); n != 1 {
			t.Errorf("it moved %d times:\n%s", n, p.Stderr())
		}
	}
	if there := ph.order(t, "veth0", incoming); len(there) != 1 {
		t.Errorf("%q are left", there)
	}
}

// TestNoFight has somebody put a filter ahead of ours again and again: ours moves ahead more and more seldom.
func TestNoFight(t *testing.T) {
	nettest.Require(t, "agent-old", "tc")
	near, _ := nettest.Pair(t)
	near.Run(t, "tc", "qdisc", "add", "dev", "veth0", "clsact")
	file := filepath.Join(t.TempDir(), "fight.pcapng")
	p := nettest.Start(t, near.Command("agent-old", "-U", "-i", "veth0", "-w", file, "udp"), "capturing on veth0")
	for n := 1; n <= 3; n++ {
		obstruct(t, near, vendors, accepts, incoming)
		p.AwaitTimes(t, moved, n)
	}
	p.Stop(t, syscall.SIGINT)
	f, err := nettest.Read(file)
	must(t, err)
	at := f.Interfaces[0].Commented // as the agent has them, not as they come to be seen
	if len(at) != 3 {
		t.Fatalf("it moved %d times, and three filters were put ahead", len(at))
	}
	// The wall clock may be slewed a little meanwhile.
	const almost = 990 * time.Millisecond
	if first, second := time.Duration(at[1]-at[0]), time.Duration(at[2]-at[1]); first < almost || second < 2*almost {
		t.Errorf("it moves ahead again after %v and %v", first, second)
	}
	if there := (&phone{Space: near}).order(t, "veth0", incoming); len(there) != 3 {
		t.Errorf("%q are left, and three were put there", there)
	}
}
