// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"droidtap/agent/plan"
	"droidtap/android"
)

func TestChoosesHook(t *testing.T) {
	wlan, clat := android.Interface{Index: 7, Name: "wlan0"}, android.Interface{Index: 8, Name: "v4-wlan0"}
	first := []filter{{pref: 1, kind: "u32", proto: unix.ETH_P_IP, handle: 1}}
	netd := []filter{{pref: 4, kind: "bpf", proto: unix.ETH_P_IPV6, handle: 1}}
	tcx := []plan.Hook{plan.TCX, plan.TC, plan.Packet}
	tc := []plan.Hook{plan.TC, plan.Packet}
	for _, c := range []struct {
		rule  string
		seen  Seen
		hooks []plan.Hook
		want  string // the hook, and a part of its reason
		not   string // the first that it is not, and a part of why
	}{
		{"TCX needs nothing", Seen{ifc: wlan, Qdisc: "ingress"}, tcx, "tcx: ahead of all programs of tc", ""},
		{"a clsact is made", Seen{ifc: wlan}, tc, "tc: preference 1 of a clsact that is made", ""},
		{"netd's is used", Seen{ifc: wlan, Qdisc: "clsact", there: [2][]filter{netd, netd}}, tc, "tc: preference 1 of the clsact that is there", ""},
		{"none is made on v4-", Seen{ifc: clat}, tc, "packet: a packet socket", "tc: no clsact"},
		{"netd's is used on v4-", Seen{ifc: clat, Qdisc: "clsact"}, tc, "tc: preference 1", ""},
		{"an ingress qdisc has no egress", Seen{ifc: wlan, Qdisc: "ingress"}, tc, "packet: ", "tc: no clsact"},
		{"a filter ahead at ingress", Seen{ifc: wlan, Qdisc: "clsact", there: [2][]filter{first, nil}}, tc, "packet: ", "tc: preference 1 at ingress"},
		{"a filter ahead at egress is ahead of a packet socket, too", Seen{ifc: wlan, Qdisc: "clsact", there: [2][]filter{nil, first}}, tc,
			"tc: preference 1 of the clsact that is there, but preference 1 at egress", ""},
		{"a TCX program ahead", Seen{ifc: wlan, ahead: [2][]string{{"guard"}, nil}}, tc, "packet: ", "tc: at ingress of wlan0 TCX programs run ahead (guard)"},
		{"tc alone, behind others", Seen{ifc: wlan, Qdisc: "clsact", there: [2][]filter{first, nil}}, tc[:1], "tc: preference 1 of the clsact that is there, preference 1 at ingress", ""},
		{"tc alone, and impossible", Seen{ifc: clat}, tc[:1], ": ", "tc: no clsact"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			got := c.seen.Choose(c.hooks)
			if s := got.Chosen + ": " + got.Why; !strings.HasPrefix(s, c.want) {
				t.Errorf("%s, want %s", s, c.want)
			}
			not := ""
			if len(got.Not) > 0 {
				not = got.Not[0].Name + ": " + got.Not[0].Why
			}
			if !strings.HasPrefix(not, c.not) || c.not == "" && not != "" {
				t.Errorf("not %s, want %s", not, c.not)
			}
		})
	}
}

// TestLook shows what is attached, by everybody.
func TestLook(t *testing.T) {
	n := newNetwork(t, "veth0")
	l, err := link.AttachTCX(link.TCXOptions{Interface: n.ifc.Index, Program: count(t).prog, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours := attach(t, plan.TC, n.ifc, Egress, count(t))
	defer ours.Close()
	seen, err := Look(n.ifc)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, o := range seen.Others {
		lines = append(lines, o.String())
	}
	all := strings.Join(lines, "\n")
	if seen.Qdisc != "clsact" || len(lines) != 2 || !strings.Contains(all, "tcx ingress bpf ") || !strings.Contains(all, "tc egress 1 bpf droidtap:") {
		t.Errorf("qdisc %q, attached:\n%s", seen.Qdisc, all)
	}
	if out := seen.Outgoing(); len(out) != 1 {
		t.Errorf("at egress: %v", out)
	}
	behind := attach(t, plan.TC, n.ifc, Ingress, count(t))
	defer behind.Close()
	if w := behind.(Attachment).Warning(); !strings.Contains(w, "TCX programs run ahead") {
		t.Errorf("warning %q", w)
	}
}
