// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io"
)

// Table writes the report as tables.
func (r Report) Table(w io.Writer) error {
	t := table{w: w}
	t.line("Linux %s, emulated. ns are instructions: compare them with each other, not with those of a phone.\n", r.Kernel)
	t.costs(r.Costs)
	t.loads(r.Loads)
	return t.err
}

// table is what is written, up to the first error.
type table struct {
	w   io.Writer
	err error
}

func (t *table) line(format string, values ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, format+"\n", values...)
	}
}

// costs writes a line for each case, with all objects in it.
func (t *table) costs(all []Cost) {
	head := fmt.Sprintf("%-30s", "programs, ns above an empty one")
	var cases []string
	lines := map[string]string{}
	for _, c := range all {
		if c.Case == all[0].Case {
			head += fmt.Sprintf(" %11s %11s", c.Object+" out", c.Object+" in")
		}
		if lines[c.Case] == "" {
			cases = append(cases, c.Case)
		}
		lines[c.Case] += fmt.Sprintf(" %11.0f %11.0f", c.Out, c.In)
	}
	t.line("%s", head)
	for _, c := range cases {
		t.line("%-31s%s", c, lines[c])
	}
	t.line("")
}

// loads writes a line for each tool, with how its figures are to tcpdump's where neither lost a packet.
func (t *table) loads(all []Load) {
	t.line("%-29s %-13s %8s %8s %8s %8s %19s %19s", "packets that come in", "", "offered", "captured", "lost", "counted",
		"reader ns, ratio", "kernel too, ratio")
	var peer Load
	for _, l := range all {
		name := ""
		if l.Tool == tcpdump {
			name, peer = l.Load, l
		}
		ratio := func(of, to float64) string {
			if l.Lost() != 0 || peer.Lost() != 0 || to == 0 {
				return fmt.Sprintf("%10.0f %8s", of, "-")
			}
			return fmt.Sprintf("%10.0f %8.2f", of, of/to)
		}
		t.line("%-29s %-13s %8d %8d %8d %8d %19s %19s", name, l.Tool, l.Offered, l.Captured, l.Lost(), l.Dropped,
			ratio(l.Reader, peer.Reader), ratio(l.Total, peer.Total))
	}
}
