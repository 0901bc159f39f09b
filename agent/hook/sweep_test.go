// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"droidtap/agent/plan"
	"droidtap/android"
)

func TestSweep(t *testing.T) {
	n := newNetwork(t, "alone")
	both, _, _, _, _ := n.pair(t, "both")
	mixed, _, _, _, _ := n.pair(t, "mixed")
	must(t, netlink.QdiscAdd(theirQdisc(mixed)))
	for _, dir := range directions {
		n.foreign(t, mixed, dir, 1, unix.ETH_P_ALL)
	}
	killed := startAgent(t, "alone", "both", "mixed")
	living := startAgent(t, "both", "mixed")
	mine := attach(t, plan.TC, mixed, Egress, count(t))

	if lines, err := Sweep(); err != nil || len(lines) > 0 {
		t.Fatalf("Sweep beside living agents removed %q, %v", lines, err)
	}
	killed.kill(t)
	lines, err := Sweep()
	must(t, err)
	pid := killed.cmd.Process.Pid
	var want []string
	for _, name := range []string{"alone", "both", "mixed"} {
		for _, dir := range directions {
			want = append(want, fmt.Sprintf("%s: %s filter at preference 1, left by process %d", name, dir, pid))
		}
		if name == "alone" {
			want = append(want, "alone: clsact qdisc, created by a killed run")
		}
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("Sweep (-want +got):\n%s", diff)
	}
	for ifc, kept := range map[android.Interface]int{n.ifc: 0, both: 1, mixed: 2} {
		for _, dir := range directions {
			left, err := filters(ifc.Index, dir)
			must(t, err)
			want := kept
			if ifc == mixed && dir == Egress {
				want++ // mine
			}
			if want > 0 {
				want++ // the entry of the preference itself
			}
			if len(left) != want {
				t.Errorf("%s %s: left %+v, want %d", ifc.Name, dir, left, want)
			}
		}
	}
	must(t, mine.Close())
	living.stop(t)
	if a, b, m := qdisc(t, n.ifc), qdisc(t, both), qdisc(t, mixed); a != "" || b != "" || m != "clsact" {
		t.Errorf("in the end qdiscs are %q, %q, %q, want only the foreign clsact", a, b, m)
	}
	if lines, err := Sweep(); err != nil || len(lines) > 0 {
		t.Errorf("a second Sweep removed %q, %v", lines, err)
	}
}
