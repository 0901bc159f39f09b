// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// TestClassified wants each packet of the workload to have one truth, and all cases to have packets, both ways where there are two.
func TestClassified(t *testing.T) {
	nettest.Require(t, "tcpdump", "workload")
	near, far, behind := workshop(t)
	const rounds = 8
	work := startWorkload(t, near, far, behind, rounds)
	reference := filepath.Join(t.TempDir(), "reference.pcap")
	tcpdump := startTcpdump(t, near, reference, "-i", "veth0")
	finish(t, work, rounds)
	nettest.Await(t, reference, func(p nettest.Packet) bool { return p.Length == workload.EndLength+42 && !leaves(p) })
	tcpdump.Stop(t, syscall.SIGINT)
	f, err := nettest.Read(reference)
	must(t, err)
	if keep := os.Getenv("KEEP"); keep != "" {
		must(t, exec.Command("cp", reference, keep).Run())
	}
	r, err := verdict.NewReference(f, workload.Host())
	must(t, err)
	t.Log("\n" + r.Census())
	work.Stop(t, syscall.SIGTERM)
}
