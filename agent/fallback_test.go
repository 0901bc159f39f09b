// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"

	"droidtap/agent/capture"
	"droidtap/agent/kernel"
	"droidtap/agent/plan"
	"droidtap/scripts/nettest"
)

// oldMain is an agent on a kernel that says it has no TCX.
func oldMain() {
	runAs(func(c *cli.Context) error {
		cfg, err := configure(c)
		if err != nil {
			return err
		}
		cfg.Ask = func(release string) plan.Kernel {
			k := kernel.Ask(release)
			k.TCX = errors.New("no TCX in this test")
			return k
		}
		ctx, abort, stop := signals(c.Context, false, nil)
		defer stop()
		sum, err := capture.Run(ctx, abort, cfg)
		printSummary(os.Stderr, sum)
		return err
	})
}

// TestFallback puts things in the way of a tc filter: a packet socket takes the interface where it sees more, and they stay
// where they are.
func TestFallback(t *testing.T) {
	nettest.Require(t, "tcpdump", "agent-old", "tc")
	for _, c := range []struct {
		name   string
		put    []string // tc's commands
		shown  string   // of what is put
		packet bool     // a packet socket captures
		says   string
	}{
		{"nothing", nil, "", false, ""},
		{"a clsact of somebody's", []string{"qdisc add dev veth0 clsact"}, "qdisc clsact ffff:", false, ""},
		{"a qdisc without egress", []string{"qdisc add dev veth0 ingress"}, "qdisc ingress ffff:", true,
			"agent: veth0 is captured by packet: attach tc egress to veth0: no clsact qdisc may be created: an ingress qdisc is in its place"},
		{"a filter ahead of what comes in", []string{"qdisc add dev veth0 clsact", "filter add dev veth0 ingress pref 1 protocol ip u32 match u32 0 0 flowid 1:1"},
			"pref 1 u32", true, "agent: veth0 is captured by packet: preference 1 at ingress of veth0 is taken"},
		{"a filter ahead of what leaves, which a packet socket comes after", []string{"qdisc add dev veth0 clsact",
			"filter add dev veth0 egress pref 1 protocol ip u32 match u32 0 0 flowid 1:1"},
			"pref 1 u32", false, "agent: preference 1 at egress of veth0 is taken, ours is 6: filters ahead may hide packets"},
		{"both", []string{"qdisc add dev veth0 clsact", "filter add dev veth0 ingress pref 1 protocol ip u32 match u32 0 0 flowid 1:1",
			"filter add dev veth0 egress pref 1 protocol ip u32 match u32 0 0 flowid 1:1"}, "pref 1 u32", true,
			"a packet socket on veth0 sees what leaves after all filters there: tc egress 1 u32 may hide packets"},
	} {
		t.Run(c.name, func(t *testing.T) {
			near, far := nettest.Pair(t)
			for _, line := range c.put {
				near.Run(t, append([]string{"tc"}, strings.Fields(line)...)...)
			}
			show := func() string {
				return near.Run(t, "tc", "qdisc", "show", "dev", "veth0") + near.Run(t, "tc", "filter", "show", "dev", "veth0", "ingress") +
					near.Run(t, "tc", "filter", "show", "dev", "veth0", "egress")
			}
			before := show()
			if !strings.Contains(before, c.shown) {
				t.Fatalf("it is not there:\n%s", before)
			}
			dir := t.TempDir()
			reference, file := filepath.Join(dir, "reference.pcap"), filepath.Join(dir, "out.pcapng")
			tcpdump := startTcpdump(t, near, reference, "-i", "veth0", "udp")
			p := nettest.Start(t, near.Command("agent-old", "-v", "-U", "-i", "veth0", "-w", file, "udp"), "capturing on veth0")
			for _, from := range []struct {
				nettest.Space
				to string
			}{{near, nettest.Far4}, {far, nettest.Near4}, {near, nettest.Far6}, {far, nettest.Near6}} {
				from.Must(t, func() error { return errors.Join(sendUDP(from.to, 10), sendUDP(from.to, 1000)) })
			}
			mark(t, near, far, endOut, endIn)
			for _, name := range []string{reference, file} {
				nettest.Await(t, name, func(p nettest.Packet) bool { return p.Length == endIn })
			}
			p.Stop(t, syscall.SIGINT)
			tcpdump.Stop(t, syscall.SIGINT)
			want, err := nettest.Read(reference)
			must(t, err)
			got, err := nettest.Read(file)
			must(t, err)
			seen := got.Packets
			if !c.packet && strings.Contains(c.says, "may hide packets") {
				// They do: what ends at their action leaves by IPv4 without us.
				want.Packets = withoutSentIPv4(want.Packets)
				seen = withoutSentIPv4(seen)
			}
			missing, extra := compare(want.Packets, want.Packets, seen)
			if d := cmp.Diff(describe(missing), describe(extra)); d != "" || len(want.Packets) < 8 {
				t.Errorf("%d packets, tcpdump has %d (-missing +extra):\n%s", len(got.Packets), len(want.Packets), abbreviate(d))
			}
			said := p.Stderr()
			if !strings.Contains(said, c.says) || strings.Contains(said, "veth0 is captured by packet") != c.packet || strings.Contains(said, "\nveth0 was captured by packet: ") != c.packet {
				t.Errorf("it is said:\n%s", said)
			}
			if want := fmt.Sprintf("%d packets received by filter\n", len(got.Packets)); !strings.Contains(said, want) {
				t.Errorf("it is not said %q:\n%s", want, said)
			}
			if after := show(); after != before {
				t.Errorf("after it there is\n%s\nbefore\n%s", after, before)
			}
		})
	}
}

func withoutSentIPv4(all []nettest.Packet) (rest []nettest.Packet) {
	for _, p := range all {
		if sent := leaves(p) || p.Length == endOut; !sent || p.Data[12:14] != "\x08\x00" {
			rest = append(rest, p)
		}
	}
	return rest
}
