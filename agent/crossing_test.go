// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/netd"
	"droidtap/scripts/nettest"
)

// TestCrossing has packets cross the clat and the tethering offload: each is in the file once on each interface, as tcpdump shows it
// there; and where a program of netd's redirects what leaves v4-*, which tcpdump does not see, tc and TCX do.
func TestCrossing(t *testing.T) {
	nettest.Require(t, "agent", "agent-old", "tcpdump")
	for _, way := range []int{0, 1, 3} {
		t.Run(ways[way].name, func(t *testing.T) {
			p := newPhone(t)
			ifnames := []string{"rmnet_data0", "ncm0", clat}
			p.offload(t)
			dir := t.TempDir()
			file := filepath.Join(dir, "out.pcapng")
			var references []*nettest.Process
			for _, ifname := range ifnames {
				references = append(references, startTcpdump(t, p.Space, filepath.Join(dir, ifname), "-i", ifname, "udp or tcp"))
			}
			agent := p.start(t, true, file, ways[way].agent, "-i", "any", "udp or tcp")
			for _, network := range []string{"udp", "tcp"} {
				must(t, nettest.Ask(p.Space, network, p.beyond(), "clat by "+network))
				for _, s := range p.servers {
					if s.ifname == "rmnet_data0" {
						must(t, nettest.Ask(p.client, network, s.at, "tethered by "+network+" ipv"+s.family))
					}
				}
			}
			must(t, nettest.Ask(p.Space, "udp", p.beyond(), "end of clat"))
			for _, s := range p.servers {
				if s.ifname == "rmnet_data0" {
					must(t, nettest.Ask(p.client, "udp", s.at, "end of ipv"+s.family))
				}
			}
			must(t, p.Check())
			for _, ifname := range ifnames {
				for _, end := range map[string][]string{clat: {"end of clat"}, "ncm0": {"end of ipv4", "end of ipv6"}, "rmnet_data0": {"end of clat", "end of ipv4", "end of ipv6"}}[ifname] {
					awaitSightings(t, file, end, map[string]int{ifname + " in": 1})
					nettest.Await(t, filepath.Join(dir, ifname), func(p nettest.Packet) bool { return strings.Contains(p.Data, end) })
				}
			}
			for _, r := range references {
				r.Stop(t, syscall.SIGINT)
			}
			agent.Stop(t, syscall.SIGINT)
			f, err := nettest.Read(file)
			must(t, err)
			for _, ifname := range ifnames {
				compareCrossing(t, f, ifname, filepath.Join(dir, ifname), ways[way].name)
			}
		})
	}
}

// offload has netd translate, and carry the client's packets past the stack.
func (p *phone) offload(t *testing.T) {
	t.Helper()
	for _, ifname := range []string{"wlan0", "rmnet_data0", "ncm0"} {
		must(t, p.Join(ifname))
	}
	must(t, p.Clat(clat, "rmnet_data0", netd.DefaultTranslation))
	must(t, p.Tether("rmnet_data0", "ncm0"))
	mac, err := net.ParseMAC("02:00:00:00:01:02")
	must(t, err)
	for addr, to := range map[string]string{"10.96.0.2": "ncm0", "fd00:96::2": "ncm0", tunThere4: "rmnet_data0", tunThere6: "rmnet_data0"} {
		a := netip.MustParseAddr(addr)
		if to == "ncm0" {
			must(t, p.Offload(a, to, mac))
			p.network.Run(t, "ip", "route", "add", addr, "dev", "rmnet_data0")
		} else {
			must(t, p.Offload(a, to, nil))
			via := map[bool]string{true: "10.96.0.1", false: "fd00:96::1"}[a.Is4()]
			p.client.Run(t, "ip", "route", "add", addr, "via", via)
		}
	}
}

// compareCrossing compares what two captures have of an interface. What leaves v4-* is netd's to redirect before tcpdump's turn: tc and
// TCX have it all the same.
func compareCrossing(t *testing.T, f nettest.File, ifname, reference, way string) {
	t.Helper()
	r, err := nettest.Read(reference)
	must(t, err)
	var got, left []nettest.Packet
	for _, p := range f.Packets {
		switch {
		case f.Interfaces[p.Interface].Name != ifname:
		case ifname == clat && p.Direction == 2:
			left = append(left, p)
		default:
			got = append(got, p)
		}
	}
	missing, extra := compare(finished(r.Packets), finished(r.Packets), finished(got))
	if d := cmp.Diff(describe(missing), describe(extra)); d != "" {
		t.Errorf("%s: %d packets, tcpdump has %d (-missing +extra):\n%s", ifname, len(got), len(r.Packets), abbreviate(d))
	}
	if len(got) < 5 {
		t.Errorf("%s: %d packets only", ifname, len(got))
	}
	if ifname != clat {
		return
	}
	texts := map[string]int{}
	for _, p := range left {
		for _, text := range []string{"clat by udp", "clat by tcp", "end of clat"} {
			if strings.HasSuffix(p.Data, text) {
				texts[text]++
			}
		}
	}
	want := map[string]int{"clat by udp": 1, "clat by tcp": 1, "end of clat": 1}
	if way == "packet" {
		want = map[string]int{}
	}
	if d := cmp.Diff(want, texts); d != "" {
		t.Errorf("%s: of what leaves (-want +got):\n%s", ifname, d)
	}
}

// finished replaces checksums that are right, or that the kernel finishes behind our hook: then packets before and behind it are the same.
func finished(packets []nettest.Packet) (all []nettest.Packet) {
	for _, p := range packets {
		h, ok := nettest.ParseIP(p.Data, 0)
		if !ok {
			h, ok = nettest.ParseEthernet(p.Data)
		}
		if ok && slices.Contains([]string{"full", "partial", "either"}, h.Checksum(p.Data)) {
			p.Data = p.Data[:h.At] + "--" + p.Data[h.At+2:]
		}
		all = append(all, p)
	}
	return all
}

// TestClatUnharmed has netd start and stop the offload of a clat in the middle of a capture, time and again: it never fails, for it
// finds no clsact of ours, and the capture goes over to what sees every packet.
func TestClatUnharmed(t *testing.T) {
	nettest.Require(t, "agent", "agent-old")
	for _, way := range []int{0, 1, 3} {
		for _, ifname := range []string{"any", clat} {
			t.Run(ways[way].name+" "+ifname, func(t *testing.T) {
				p := newPhone(t)
				must(t, p.Join("rmnet_data0"))
				file := filepath.Join(t.TempDir(), "out.pcapng")
				agent := p.start(t, true, file, ways[way].agent, "-i", ifname)
				for n := range 10 {
					must(t, p.Clat(clat, "rmnet_data0", netd.DefaultTranslation))
					if n > 0 && n%5 == 0 {
						must(t, p.Restart())
						must(t, p.Join("rmnet_data0"))
						continue
					}
					if n < 3 && ways[way].name == "tc" {
						p.awaitFirst(t, clat)
						text := fmt.Sprintf("clat %d.", n)
						must(t, nettest.Ask(p.Space, "udp", p.beyond(), text))
						awaitSightings(t, file, text, map[string]int{clat + " in": 1, clat + " out": 1})
					}
					must(t, p.Check())
					must(t, p.StopClat(clat))
				}
				must(t, p.Check())
				agent.Stop(t, syscall.SIGINT)
				if left := p.Run(t, "tc", "qdisc", "show", "dev", clat); strings.Contains(left, "clsact") {
					t.Errorf("it left on %s:\n%s", clat, left)
				}
				must(t, p.Clat(clat, "rmnet_data0", netd.DefaultTranslation))
				must(t, nettest.Ask(p.Space, "udp", p.beyond(), "after it"))
			})
		}
	}
}
