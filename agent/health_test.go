// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"droidtap/scripts/nettest"
)

// returning is a program that does nothing but return a verdict.
func returning(t *testing.T, kind ebpf.ProgramType, verdict int32) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         kind,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
		License:      "GPL",
	})
	must(t, err)
	t.Cleanup(func() { _ = prog.Close() })
	return prog
}

// dropTCX puts a program that drops everything ahead of all others at ingress of near's veth0.
func dropTCX(t *testing.T, near nettest.Space) link.Link {
	t.Helper()
	prog := returning(t, ebpf.SchedCLS, 2) // TCX_DROP
	return onVeth0(t, near, func(index int) (link.Link, error) {
		return link.AttachTCX(link.TCXOptions{Interface: index, Program: prog, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
	})
}

// dropXDP has a program drop everything that comes in at near's veth0, ahead of the network stack.
func dropXDP(t *testing.T, near nettest.Space) link.Link {
	t.Helper()
	prog := returning(t, ebpf.XDP, 1) // XDP_DROP
	return onVeth0(t, near, func(index int) (link.Link, error) {
		return link.AttachXDP(link.XDPOptions{Program: prog, Interface: index, Flags: link.XDPGenericMode})
	})
}

// onVeth0 attaches something to near's veth0, until the test ends.
func onVeth0(t *testing.T, near nettest.Space, attach func(index int) (link.Link, error)) (l link.Link) {
	t.Helper()
	near.Must(t, func() error {
		ifc, err := net.InterfaceByName("veth0")
		if err != nil {
			return err
		}
		l, err = attach(ifc.Index)
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// drip sends 20 datagrams a second from a namespace, until the test ends.
func drip(t *testing.T, s nettest.Space, uid int, to string) {
	t.Helper()
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		stopped <- s.Do(uid, func() error {
			c, err := net.Dial("udp", net.JoinHostPort(to, "9"))
			if err != nil {
				return err
			}
			defer c.Close()
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for {
				_, _ = c.Write(make([]byte, 100)) // an answer that nobody listens is an error now and then
				select {
				case <-tick.C:
				case <-stop:
					return nil
				}
			}
		})
	}()
	t.Cleanup(func() {
		close(stop)
		must(t, <-stopped)
	})
}

// startLive starts an agent of that name on veth0.
func startLive(t *testing.T, near nettest.Space, agent, file string, args ...string) *nettest.Process {
	t.Helper()
	argv := append([]string{agent, "-U", "-w", file, "-i", "veth0"}, args...)
	return nettest.Start(t, near.Command(append(argv, "udp port 9")...), "capturing on")
}

// TestUnseen hides packets from a capture, which notices by the interface's own counters.
func TestUnseen(t *testing.T) {
	nettest.Require(t, "agent", "agent-old")
	for _, c := range []struct {
		rule, agent, at string
		args            []string
	}{
		{"from tcx", "agent", "tcx", nil},
		{"from tc", "agent-old", "tc", nil},
		{"from tc by the legacy object", "agent-old", "tc", []string{"--object", "legacy"}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			t.Parallel()
			near, far := nettest.Pair(t)
			file := filepath.Join(t.TempDir(), "unseen.pcapng")
			p := startLive(t, near, c.agent, file, c.args...)
			reached(t, far, file, 200)
			dropTCX(t, near)
			drip(t, far, 0, nettest.Near4)
			why := "veth0: it counts packets that it receives, and " + c.at + " sees none of them; it is captured by packet, not " + c.at + ", from here on"
			p.Await(t, "agent: "+why)
			reached(t, far, file, 300)
			p.Stop(t, syscall.SIGINT)
			if f := told(t, p, file, "veth0", 1); !commented(f, "gap: "+why) {
				t.Error("no packet has the comment")
			}
			if !strings.Contains(p.Stderr(), "in the file; 1 times its hook saw nothing\n") {
				t.Errorf("the summary does not count it:\n%s", p.Stderr())
			}
			nothingOfOurs(t, near)
		})
	}
	t.Run("where no other hook may be used", func(t *testing.T) {
		t.Parallel()
		near, far := nettest.Pair(t)
		file := filepath.Join(t.TempDir(), "tc.pcapng")
		p := startLive(t, near, "agent", file, "--backend", "tc")
		dropped := dropTCX(t, near)
		drip(t, far, 0, nettest.Near4)
		const why = "veth0 counts packets that it receives, and tc sees none of them: no other hook may be used"
		p.Await(t, "agent: "+why+"\n")
		must(t, dropped.Close())
		reached(t, far, file, 300)
		p.Stop(t, syscall.SIGINT)
		if f := told(t, p, file, "veth0", 0); !slices.Contains(f.Interfaces[0].Comments, why) {
			t.Errorf("the file does not tell: %q", f.Interfaces[0].Comments)
		}
	})
	t.Run("from all", func(t *testing.T) { t.Parallel(); unseenByAll(t) })
}

// unseenByAll has XDP hide packets from all hooks: they are tried, one after the other, then it is the first one again.
func unseenByAll(t *testing.T) {
	near, far := nettest.Pair(t)
	file := filepath.Join(t.TempDir(), "xdp.pcapng")
	p := startLive(t, near, "agent", file)
	reached(t, far, file, 200)
	xdp := dropXDP(t, near)
	drip(t, far, 0, nettest.Near4)
	for _, said := range []string{
		"and tcx sees none of them; it is captured by tc, not tcx",
		"and tc sees none of them; it is captured by packet, not tc",
		"agent: veth0 counts packets that it receives and that no hook sees (tcx, tc, packet): they pass by the kernel's network stack, as with hardware offload\n",
		"no hook sees more than another; it is captured by tcx, not packet",
	} {
		p.Await(t, said)
	}
	must(t, xdp.Close())
	reached(t, far, file, 300)
	p.Stop(t, syscall.SIGINT)
	told(t, p, file, "veth0", 3)
	if n := strings.Count(p.Stderr(), "no hook sees (tcx"); n != 1 {
		t.Errorf("it is said %d times:\n%s", n, p.Stderr())
	}
	nothingOfOurs(t, near)
}

// nothingOfOurs fails the test if filters or programs are left at near's veth0, but for those of the test.
func nothingOfOurs(t *testing.T, near nettest.Space) {
	t.Helper()
	if out := network(t, near); strings.Contains(out, "droidtap") {
		t.Errorf("left behind:\n%s", out)
	}
}

// TestSeen has packets flow that a capture is not to see, or that its filter leaves out: nothing is hidden then.
func TestSeen(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	near.Run(t, "ip", "link", "add", "idle", "type", "veth", "peer", "name", "idle1")
	for _, name := range []string{"idle", "idle1"} { // without an address of the link's, whose multicast group it would report
		near.Run(t, "ip", "link", "set", name, "addrgenmode", "none", "up")
	}
	type capture struct {
		*nettest.Process
		args string
		some bool
	}
	var all []capture
	for _, c := range []struct {
		args string
		some bool // packets are captured
	}{
		{"-i veth0 -Q in", true},
		{"-i veth0 -Q out", true},
		{"-i veth0 --uid 10123", true},
		{"-i veth0 --uid 10124 -Q in", false},
		{"-i veth0 udp port 10", false},
		{"-i any -Q out", true},
		{"-i lo", true},
		{"-i lo -Q out", true},
		{"-i idle", false},
	} {
		for _, variant := range [][]string{variants[0], variants[1], variants[4]} {
			file := filepath.Join(t.TempDir(), "seen.pcapng")
			args := append(slices.Clone(variant), strings.Fields(c.args)...)
			all = append(all, capture{startAgent(t, near, file, args...), strings.Join(args, " "), c.some})
		}
	}
	drip(t, far, 0, nettest.Near4)
	drip(t, near, 10123, nettest.Far4)
	drip(t, near, 10123, "127.0.0.1")
	// One that has to notice three times, one after the other, and begins later: any of the others would have by then.
	near2, far2 := nettest.Pair(t)
	dropXDP(t, near2)
	drip(t, far2, 0, nettest.Near4)
	late := startLive(t, near2, "agent", filepath.Join(t.TempDir(), "late.pcapng"))
	for _, said := range []string{"tcx sees none", "tc sees none", "no hook sees"} {
		late.Await(t, said)
	}
	for _, c := range all {
		c.Stop(t, syscall.SIGINT)
		said := c.Stderr()
		if strings.Contains(said, "counts packets") || strings.Contains(said, "gaps on") {
			t.Errorf("%s:\n%s", c.args, said)
		}
		if got := counters(t, said)["captured"]; got > 0 != c.some {
			t.Errorf("%s: %d packets captured, some expected: %v", c.args, got, c.some)
		}
	}
}
