// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/nettest"
)

// eachVariant runs a test by each object and hook.
func eachVariant(t *testing.T, f func(t *testing.T, variant []string)) {
	t.Helper()
	eachOf(t, variants, f)
}

// eachOf runs a test by some of the variants.
func eachOf(t *testing.T, some [][]string, f func(t *testing.T, variant []string)) {
	t.Helper()
	for _, variant := range some {
		t.Run(variant[1]+" "+variant[3], func(t *testing.T) { f(t, variant) })
	}
}

// reached sends a datagram of that many bytes to the near end, once, and waits until it is in the file. What the interface
// lost on the way is not sent again, so it is to be captured by now.
func reached(t *testing.T, far nettest.Space, file string, size int) {
	t.Helper()
	awaitCarrier(t, far, "veth0")
	far.Must(t, func() error { return sendUDP(nettest.Near4, size) })
	nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 14+20+8+size })
}

var gapLine = regexp.MustCompile(`(?m)^(\d+) gaps on (\S+), of \S+ in all, each with a comment in the file`)

// told fails the test unless the summary tells of that many gaps on an interface, and the file of each.
func told(t *testing.T, p *nettest.Process, file, ifname string, gaps int) nettest.File {
	t.Helper()
	counted := 0
	for _, m := range gapLine.FindAllStringSubmatch(p.Stderr(), -1) {
		if m[2] == ifname {
			counted, _ = strconv.Atoi(m[1])
		}
	}
	f, err := nettest.Read(file)
	must(t, err)
	var comments []string
	for _, i := range f.Interfaces {
		for _, c := range i.Comments {
			if i.Name == ifname && strings.HasPrefix(c, "gap: "+ifname) {
				comments = append(comments, c)
			}
		}
	}
	if counted != gaps || len(comments) != gaps {
		t.Errorf("%d gaps on %s are counted and %d are in the file, want %d:\n%s\n%s", counted, ifname, len(comments), gaps, strings.Join(comments, "\n"), p.Stderr())
	}
	return f
}

// commented tells whether the file shows a comment at a packet.
func commented(f nettest.File, text string) bool {
	return slices.ContainsFunc(f.Packets, func(p nettest.Packet) bool { return strings.Contains(p.Comment, text) })
}

// TestFilterRemoved has somebody delete clsact under a capture, as netd does: what was in it is there again at once, and the
// file tells.
func TestFilterRemoved(t *testing.T) {
	nettest.Require(t, "agent", "tc")
	eachVariant(t, func(t *testing.T, variant []string) {
		near, far := nettest.Pair(t)
		was := network(t, near)
		file := filepath.Join(t.TempDir(), "removed.pcapng")
		if variant[3] != "tc" {
			near.Run(t, "tc", "qdisc", "add", "dev", "veth0", "clsact")
		}
		p := startAgent(t, near, file, append(append([]string{"-i", "veth0"}, variant...), "udp")...)
		reached(t, far, file, 100)
		near.Run(t, "tc", "qdisc", "del", "dev", "veth0", "clsact")
		gaps := 0
		if variant[3] == "tc" {
			p.Await(t, "agent: veth0: somebody removed our tc filter, and nothing was captured for ")
			gaps = 1
		}
		reached(t, far, file, 200)
		p.Stop(t, syscall.SIGINT)
		f := told(t, p, file, "veth0", gaps)
		if gaps > 0 && !commented(f, "gap: veth0: somebody removed our tc filter") {
			t.Error("no packet has the comment")
		}
		if d := cmp.Diff(was, network(t, near)); d != "" {
			t.Errorf("it left something (-before +after):\n%s", d)
		}
	})
}

// rejoin gives near a new veth0, as Pair did.
func rejoin(t *testing.T, near, far nettest.Space, args ...string) {
	t.Helper()
	near.Run(t, append(append([]string{"ip", "link", "add", "veth0", "address", nettest.NearMAC}, args...), "type", "veth",
		"peer", "name", "veth0", "address", nettest.FarMAC, "netns", far.Name)...)
	for _, end := range []struct {
		nettest.Space
		v4, v6 string
	}{{near, nettest.Near4, nettest.Near6}, {far, nettest.Far4, nettest.Far6}} {
		end.Run(t, "ip", "addr", "add", end.v4+"/24", "dev", "veth0")
		end.Run(t, "ip", "addr", "add", end.v6+"/64", "dev", "veth0")
		end.Run(t, "ip", "link", "set", "veth0", "up")
	}
}

// TestInterfaceReturns has the only interface of a capture go and come back: the capture waits for it, and the file knows it
// as one.
func TestInterfaceReturns(t *testing.T) {
	nettest.Require(t, "agent", "tshark")
	eachVariant(t, func(t *testing.T, variant []string) {
		near, far := nettest.Pair(t)
		file := filepath.Join(t.TempDir(), "returned.pcapng")
		p := startAgent(t, near, file, append(append([]string{"-i", "veth0"}, variant...), "udp")...)
		reached(t, far, file, 100)
		index := strings.TrimSpace(near.Run(t, "cat", "/sys/class/net/veth0/ifindex"))
		for n, args := range [][]string{nil, {"index", index}} {
			near.Run(t, "ip", "link", "del", "veth0")
			p.Await(t, "agent: interface veth0 went away: it is captured again when it comes back\n")
			rejoin(t, near, far, args...)
			p.AwaitTimes(t, "and is captured again, by "+variant[3], n+1)
			reached(t, far, file, 200+n)
		}
		p.Stop(t, syscall.SIGINT)
		f := told(t, p, file, "veth0", 2)
		if !commented(f, "gap: veth0 was gone for ") {
			t.Error("no packet has the comment")
		}
		if len(f.Interfaces) != 1 || len(f.Packets) != 3 {
			t.Errorf("%d interfaces and %d packets in the file", len(f.Interfaces), len(f.Packets))
		}
		if s := f.Interfaces[0].Statistics; s[6] != 3 || s[7] != 0 || s[8] != 3 { // accepted, dropped, in the file
			t.Errorf("counted: %v", s)
		}
		if n := strings.Count(wireshark(t, "tshark", "-r", file), "\n"); n != 3 {
			t.Errorf("tshark shows %d packets", n)
		}
		nothingLeft(t, near)
	})
}
