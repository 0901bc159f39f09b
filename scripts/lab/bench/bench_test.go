// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		Load
		want string
	}{
		{"what is lost is counted", Load{Tool: "agent, ring", Load: unread.name, Offered: 10, Captured: 7, Dropped: 3}, ""},
		{"too little is counted", Load{Tool: "agent, ring", Load: "flood", Offered: 10, Captured: 7, Dropped: 2}, "agent, ring, flood: 3 packets lost, 2 counted"},
		{"too much is counted", Load{Tool: "agent, ring", Load: "flood", Offered: 10, Captured: 10, Dropped: 1}, "agent, ring, flood: 0 packets lost, 1 counted"},
		{"tcpdump may count as it likes", Load{Tool: tcpdump, Load: "flood", Offered: 10, Captured: 7, Dropped: 2}, ""},
		{"there must be what is counted", Load{Tool: "agent, ring", Load: unread.name, Offered: 10, Captured: 10}, "agent, ring, " + unread.name + ": no packet was lost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ""
			if err := (Report{Loads: []Load{c.Load}}).Check(); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestSum(t *testing.T) {
	got := sum([]Load{
		{Load: "flood", Tool: tcpdump, Offered: 10, Captured: 9, Dropped: 1, Total: 5, Reader: 1},
		{Load: "flood", Tool: tcpdump, Offered: 10, Captured: 8, Dropped: 2, Total: 90, Reader: 3},
		{Load: "flood", Tool: tcpdump, Offered: 10, Captured: 10, Dropped: 0, Total: 4, Reader: 2},
	})
	if want := (Load{"flood", tcpdump, 30, 27, 3, 5, 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestTable(t *testing.T) {
	r := Report{
		Kernel: "5.10.0",
		Costs:  []Cost{{"ring", "no match", 10, 12}, {"ring", "captured", 110.4, 120.6}, {"legacy", "no match", 20, 22}, {"legacy", "captured", 210, 220}},
		Loads: []Load{
			{Load: "flood", Tool: tcpdump, Offered: 1000, Captured: 1000, Total: 400, Reader: 100},
			{Load: "flood", Tool: "agent, ring", Offered: 1000, Captured: 1000, Total: 200, Reader: 80},
			{Load: "flood", Tool: "agent, legacy", Offered: 1000, Captured: 900, Dropped: 100, Total: 300, Reader: 90},
		},
	}
	const want = `
Linux 5.10.0, emulated. ns are instructions: compare them with each other, not with those of a phone.

programs, ns above an empty one    ring out     ring in  legacy out   legacy in
no match                                 10          12          20          22
captured                                110         121         210         220

packets that come in                         offered captured     lost  counted    reader ns, ratio   kernel too, ratio
flood                         tcpdump           1000     1000        0        0        100     1.00        400     1.00
                              agent, ring       1000     1000        0        0         80     0.80        200     0.50
                              agent, legacy     1000      900      100      100         90        -        300        -
`
	var got strings.Builder
	if err := r.Table(&got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want[1:], got.String()); diff != "" {
		t.Error(diff)
	}
}

func TestDropped(t *testing.T) {
	for _, c := range []struct {
		name, said string
		want       int
		fails      bool
	}{
		{"the agent", "5 packets captured\n9 packets received by filter\n3 packets dropped by kernel\n1 packets dropped by agent, 2 unattributed\n", 4, false},
		{"tcpdump", "5 packets captured\n9 packets received by filter\n4 packets dropped by kernel\n", 4, false},
		{"tcpdump, by the device as well", "4 packets dropped by kernel\n2 packets dropped by interface\n", 6, false},
		{"who says nothing", "5 packets captured\n", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := dropped(c.said)
			if got != c.want || (err != nil) != c.fails {
				t.Errorf("%d, %v; want %d", got, err, c.want)
			}
		})
	}
}

func TestBusy(t *testing.T) {
	const text = "version 15\ntimestamp 4295013555\ncpu0 0 0 0 0 0 0 1700 6400 22\ndomain0 3 0 0 1 2 3 4 5 6\ncpu1 0 0 0 0 0 0 300 1 2\n"
	if got, err := busy(text); err != nil || got != 2000 {
		t.Errorf("%d, %v; want 2000", got, err)
	}
	if _, err := busy("version 15\n"); err == nil {
		t.Error("no error without processors")
	}
}
