// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
	"droidtap/scripts/libpcaptest"
)

// generator makes expressions, the same ones on every run.
type generator struct {
	*rand.Rand
	l2 bool
}

func pick[T any](g generator, of ...T) T { return of[g.IntN(len(of))] }

func (g generator) primitive() string {
	v4 := func() string {
		return pick(g, "10.0.0.1", "192.168.1.2", "1.2.3.4", "8.8.8.8", "172.16.5.4", "224.0.0.251", "10.1.2.3")
	}
	v6 := func() string { return pick(g, "2001:db8::1", "2001:db8::2", "fe80::1", "ff02::fb", "ff02::1") }
	port := func() int { return pick(g, 443, 80, 53, 22, 5353, 123, 67, 40000, 5000, 8080) }
	dir := func() string { return pick(g, "", "", "src ", "dst ", "src or dst ", "src and dst ") }
	proto := func() string { return pick(g, "", "", "tcp ", "udp ") }
	choices := []func() string{
		func() string { return dir() + "host " + v4() },
		func() string { return dir() + "host " + v6() },
		func() string { return dir() + "net " + v4() + "/32" },
		func() string {
			return dir() + "net " + pick(g, "10.0.0.0/8", "192.168", "172.16.0.0/12", "2001:db8::/32", "fe80::/10", "224.0.0.0/4")
		},
		func() string { return proto() + dir() + fmt.Sprintf("port %d", port()) },
		func() string { n := port(); return proto() + dir() + fmt.Sprintf("portrange %d-%d", n, n+g.IntN(5000)) },
		func() string {
			return pick(g, "tcp", "udp", "icmp", "icmp6", "ip", "ip6", "igmp", "sctp", "ah", "esp", "pim")
		},
		func() string {
			return pick(g, "ip proto ", "ip6 proto ", "proto ") + pick(g, "6", "17", "1", "58", "44", "47", "50")
		},
		func() string {
			return fmt.Sprintf("len %s %d", pick(g, "<", ">", "<=", ">=", "=", "!="), 40+g.IntN(200))
		},
		func() string { return fmt.Sprintf("%s %d", pick(g, "greater", "less"), 40+g.IntN(1400)) },
		func() string {
			return "tcp[tcpflags] & (" + pick(g, "tcp-syn", "tcp-fin|tcp-ack", "tcp-push", "tcp-rst|tcp-urg") + ") != 0"
		},
		func() string {
			return fmt.Sprintf("%s[%d:%d] %s 0x%x", pick(g, "ip", "ip6", "tcp", "udp", "icmp"), g.IntN(24), pick(g, 1, 2, 4),
				pick(g, "=", "!=", "<", ">", "<=", ">="), g.Uint32()>>uint(g.IntN(32)))
		},
		func() string {
			return fmt.Sprintf("%s[%d] %s %d = %d", pick(g, "ip", "tcp", "udp"), g.IntN(20), pick(g, "&", "|", "^", "+", "-", "*", "/", "%", "<<", ">>"),
				1+g.IntN(15), g.IntN(64))
		},
		func() string {
			return "tcp[((tcp[12] & 0xf0) >> 2):" + pick(g, "1] = 0x16", "2] = 0x1603", "4] = 0x47455420")
		},
		func() string {
			return fmt.Sprintf("ip[ip[%d] & 0x1f:%d] %s ip[%d]", g.IntN(20), pick(g, 1, 2, 4), pick(g, "=", ">", "<="), g.IntN(20))
		},
		func() string { return fmt.Sprintf("len - %d %s ip[2:2]", g.IntN(20), pick(g, "=", ">", "<")) },
		func() string {
			return pick(g, "ip multicast", "ip6 multicast", "ip broadcast", "icmp[icmptype] = icmp-echo", "icmp6[0] = 128")
		},
	}
	if g.l2 {
		choices = append(choices,
			func() string {
				return pick(g, "ether ", "ether src ", "ether dst ") + "host 02:00:00:00:00:0" + pick(g, "1", "2", "9")
			},
			func() string { return pick(g, "arp", "rarp", "broadcast", "multicast", "stp", "llc", "iso", "not ip") },
			func() string {
				return pick(g, "vlan", "vlan 100", "vlan 300", "mpls", "mpls 1024", "pppoes", "pppoes 0x27", "geneve")
			},
			func() string {
				return fmt.Sprintf("ether[%d:%d] %s %d", g.IntN(90), pick(g, 1, 2, 4), pick(g, "=", ">", "&"), g.IntN(300)+1)
			},
			func() string { return "arp[6:2] = " + pick(g, "1", "2") },
		)
	}
	e := choices[g.IntN(len(choices))]()
	if strings.HasSuffix(e, "&") || strings.Contains(e, "] & ") && !strings.ContainsAny(e, "=<>") {
		e += " != 0"
	}
	return e
}

// expression is some primitives, combined.
func (g generator) expression(depth int) string {
	if depth == 0 || g.IntN(4) == 0 {
		return g.primitive()
	}
	left, right := g.expression(depth-1), g.expression(depth-1)
	switch g.IntN(5) {
	case 0:
		return "not (" + left + ")"
	case 1:
		return "(" + left + ") and not (" + right + ")"
	case 2:
		return left + " and " + right
	default:
		return "(" + left + ") or (" + right + ")"
	}
}

// refusals are the errors of generated expressions, and why each is right. What libpcap refuses the agent refuses, in
// libpcap's words.
var refusals = map[string]string{
	"expression rejects all packets":                 "libpcap's optimiser sees that nothing can match",
	"no VLAN match after MPLS":                       "libpcap looks for tags in front of labels only",
	"no VLAN support for PPP":                        "libpcap looks for tags in front of a PPPoE session only",
	"unsupported protocol over mpls":                 "libpcap looks for IP behind labels only",
	"link-layer multicast filters supported only on": "there is no Ethernet header behind pppoes",
	"ethernet addresses supported only on ethernet/": "there is no Ethernet header behind pppoes",
	"link-layer broadcast filters supported only on": "there is no Ethernet header behind pppoes",
}

func TestGenerated(t *testing.T) {
	needRoot(t)
	for _, c := range []struct {
		linkType pcapng.LinkType
		n        int
	}{{pcapng.Ethernet, 650}, {pcapng.Raw, 350}} {
		w := newWire(c.linkType)
		g := generator{rand.New(rand.NewPCG(3, uint64(c.linkType))), c.linkType == pcapng.Ethernet}
		compared := 0
		seen := map[string]int{}
		for tried := 0; compared < c.n; tried++ {
			if tried > 2*c.n {
				t.Fatalf("only %d of %d expressions of link type %d compile: %v", compared, tried, c.linkType, seen)
			}
			expr := g.expression(3)
			want, refused := libpcaptest.Verdicts(expr, c.linkType, 0, w.packets)
			f, err := filter.Compile(t.Context(), expr, c.linkType, 0)
			if refused != nil || err != nil {
				if why := w.refusal(expr, refused, err); why != "" {
					t.Error(why)
				}
				seen[fmt.Sprint(refused)]++
				continue
			}
			w.compare(t, expr, f, want)
			compared++
		}
		t.Logf("link type %d: %d expressions over %d packets; refused: %v", c.linkType, compared, len(w.packets), seen)
	}
}

// refusal tells what is wrong with an error, or with its absence.
func (w *wire) refusal(expr string, libpcap, ours error) string {
	if libpcap == nil || ours == nil {
		return fmt.Sprintf("%q: libpcap says %v, and the filter %v", expr, libpcap, ours)
	}
	if !strings.HasSuffix(ours.Error(), libpcap.Error()) {
		return fmt.Sprintf("%q: %q, in libpcap's words %q", expr, ours, libpcap)
	}
	for text := range refusals {
		if strings.HasPrefix(libpcap.Error(), text) {
			return ""
		}
	}
	return fmt.Sprintf("%q is refused for no reason that is listed: %v", expr, libpcap)
}
