// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
	"droidtap/scripts/workload"
	"droidtap/scripts/workload/verdict"
)

func workloadMain() {
	if err := workload.Main([]string{"workload"}, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		os.Exit(1)
	}
}

// workshop is the pair with a third namespace behind the near one, which forwards for it.
func workshop(t *testing.T) (near, far, behind nettest.Space) {
	t.Helper()
	near, far = nettest.Pair(t)
	behind = nettest.NewSpace(t)
	near.Run(t, "ip", "link", "add", "veth1", "type", "veth", "peer", "name", "veth0", "netns", behind.Name)
	near.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for _, line := range []struct {
		s    nettest.Space
		args string
	}{
		{near, "link set veth1 up"}, {near, "addr add 10.98.0.1/24 dev veth1"}, {near, "addr add fd00:98::1/64 dev veth1 nodad"},
		{behind, "link set veth0 up"}, {behind, "addr add 10.98.0.2/24 dev veth0"}, {behind, "addr add fd00:98::2/64 dev veth0 nodad"},
		{behind, "route add default via 10.98.0.1"}, {behind, "-6 route add default via fd00:98::1"},
		{far, "route add 10.98.0.0/24 via " + nettest.Near4}, {far, "-6 route add fd00:98::/64 via " + nettest.Near6},
	} {
		line.s.Run(t, append([]string{"ip"}, strings.Fields(line.args)...)...)
	}
	return near, far, behind
}

// startWorkload starts it and waits until the capture may start.
func startWorkload(t *testing.T, near, far, behind nettest.Space, rounds int) *nettest.Process {
	t.Helper()
	return nettest.Start(t, near.Command("workload", "run", "-far", far.Name, "-behind", behind.Name, "-rounds", fmt.Sprint(rounds)), "workload: prepared")
}

// finish lets the workload run to its end.
func finish(t *testing.T, work *nettest.Process, rounds int) {
	t.Helper()
	work.Signal(t, unix.SIGUSR1)
	for n := range rounds {
		work.Await(t, fmt.Sprintf("workload: round %d\n", n))
	}
	work.Await(t, "workload: done")
}

// rounds of the workload are 10,000 packets each way.
const rounds = 9

// tier is a way in which owners are found.
type tier struct {
	name string
	args []string
	// where sockets are looked up, or all packets that leave are seen with theirs
	lookup, certain bool
}

var tiers = []tier{
	{"lookup tcx", []string{"--object", "ring", "--backend", "tcx"}, true, true},
	{"lookup tc", []string{"--object", "ring", "--backend", "tc"}, true, true},
	{"flows tcx", []string{"--object", "ring", "--btf", "none", "--backend", "tcx"}, false, true},
	{"flows tc", []string{"--object", "ring", "--btf", "none", "--backend", "tc"}, false, true},
	{"legacy tcx", []string{"--object", "legacy", "--backend", "tcx"}, false, true},
	{"legacy tc", []string{"--object", "legacy", "--backend", "tc"}, false, true},
	{"packet", []string{"--backend", "packet"}, false, false},
}

// captures are what is captured side by side.
var captures = []struct {
	name  string
	args  []string
	wants verdict.Wants
}{
	{"all", nil, verdict.All},
	{"in", []string{"-Q", "in"}, verdict.In},
	{"uid", []string{"--uid", "10124"}, verdict.UID(10124)},
	{"not uid", []string{"--not-uid", "10124"}, verdict.NotUID(10124)},
}

// TestTruth holds what captures say of the owners of a workload's packets against what is known of them.
func TestTruth(t *testing.T) {
	nettest.Require(t, "tcpdump", "agent", "workload")
	for _, tt := range tiers {
		t.Run(tt.name, func(t *testing.T) {
			near, far, behind := workshop(t)
			work := startWorkload(t, near, far, behind, rounds)
			dir := t.TempDir()
			reference := filepath.Join(dir, "reference.pcap")
			tcpdump := startTcpdump(t, near, reference, "-i", "veth0", "-s", "4096")
			agents := make([]*nettest.Process, len(captures))
			for i, c := range captures {
				args := append(append([]string{"-i", "veth0", "-B", "32768", "--comments", "all"}, tt.args...), c.args...)
				agents[i] = startAgent(t, near, filepath.Join(dir, c.name), args...)
			}
			finish(t, work, rounds)
			nettest.Await(t, reference, last)
			for i, c := range captures {
				nettest.Await(t, filepath.Join(dir, c.name), last)
				agents[i].Stop(t, syscall.SIGINT)
			}
			tcpdump.Stop(t, syscall.SIGINT)
			of, err := verdict.Pids(work.Stderr())
			must(t, err)
			work.Stop(t, syscall.SIGTERM)

			f, err := nettest.Read(reference)
			must(t, err)
			r, err := verdict.NewReference(f, workload.Host())
			must(t, err)
			enough(t, r, tcpdump.Stderr())
			for i, c := range captures {
				t.Run(c.name, func(t *testing.T) {
					f, err := nettest.Read(filepath.Join(dir, c.name))
					must(t, err)
					table, err := r.Compare(f, c.wants, verdict.Processes{Pids: of})
					must(t, err)
					must(t, table.Show(t, tt.name+", "+c.name+", Linux "+release(t)))
					judge(t, tt, c.name, table, agents[i].Stderr())
				})
			}
		})
	}
}

// last finds the answer to a packet that comes last.
func last(p nettest.Packet) bool { return p.Length == workload.EndLength+42 && !leaves(p) }

// enough fails the test if tcpdump has less than there should be.
func enough(t *testing.T, r *verdict.Reference, said string) {
	t.Helper()
	if !strings.Contains(said, "\n0 packets dropped by kernel") {
		t.Fatalf("tcpdump lost packets:\n%s", said)
	}
	r.Enough(t)
	for _, c := range workload.Cases() {
		if !slices.ContainsFunc(r.Truths, func(t workload.Truth) bool { return t.Case == c }) {
			t.Errorf("no packet of %q", c)
		}
	}
}

func release(t *testing.T) string {
	t.Helper()
	var name unix.Utsname
	must(t, unix.Uname(&name))
	return unix.ByteSliceToString(name.Release[:])
}

// judge wants nothing wrong, nearly nothing missing, and what is missing counted.
func judge(t *testing.T, tt tier, capture string, table *verdict.Table, said string) {
	t.Helper()
	missing := table.Judge(t, tt.lookup, tt.certain)
	if d := counters(t, said)["dropped by kernel"]; d != 0 {
		t.Errorf("%d packets dropped by kernel", d)
	}
	if n := counters(t, said)["unattributed"]; strings.HasSuffix(capture, "uid") && n < missing {
		t.Errorf("%d packets are missing, and %d are unattributed:\n%s", missing, n, said)
	}
	if table.Extra > 0 && strings.HasSuffix(capture, "uid") {
		t.Errorf("%d packets that tcpdump has not", table.Extra)
	}
}
