// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// write prints the report as tables.
func (r report) write(w io.Writer) error {
	m := r.Machine
	fmt.Fprintf(w, "%s, Linux %s, %s, %d processors, load average %s\n%s\n", m.Date, m.Kernel, m.CPU, m.CPUs, m.LoadAverage, strings.Join(m.Tools, "; "))
	fmt.Fprintf(w, "sender and kernel on processor 0, tools on processor %d, niceness %d, rings of %d MiB, files in memory\n", captureCPU, niceness, bufferMiB)
	fmt.Fprintf(w, "medians (least..most) of %d rounds; ns of processor time for a packet offered; x: to the load's first tool in the same round\n", r.Rounds)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(r.Results) > 0 {
		fmt.Fprintln(t, "\n\tin file %\tkernel ns\treader ns\tboth ns\treader x\tboth x\twake-ups\tMiB\tfile kB\tlost\tit says")
	}
	for i, x := range r.Results {
		if i == 0 || r.Results[i-1].Load != x.Load {
			fmt.Fprintf(t, "%s%s\n", x.Load, strings.Repeat("\t", 11))
		}
		fmt.Fprintf(t, "  %s\t%.4g\t%s\t%s\t%s\t%s\t%s\t%.0f\t%.1f\t%.0f\t%d\t%d\n", x.Tool, x.InFile.Median, x.Kernel.text(0), x.Reader.text(0), x.Total.text(0),
			ratioText(x.ReaderRatio), ratioText(x.TotalRatio), x.Wakeups.Median, x.Peak.Median, x.Bytes.Median/1e3, x.Lost, x.SaidLost)
	}
	r.writePrograms(t)
	r.writeStart(t)
	r.writeTargets(t)
	if err := t.Flush(); err != nil {
		return err
	}
	for _, line := range r.Wrong {
		fmt.Fprintf(w, "\nWRONG COUNTER: %s\n", line)
	}
	return nil
}

// ratioText is "-" where there was nothing to divide by.
func ratioText(s spread) string {
	if s == (spread{}) {
		return "-"
	}
	return s.text(2)
}

func (r report) writePrograms(w io.Writer) {
	if len(r.Programs) > 0 {
		fmt.Fprintln(w, "\nprograms, ns for a packet above an empty program\tabove\tempty")
	}
	for _, p := range r.Programs {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", p.Name, p.Above.text(0), p.Empty.text(0))
	}
	for _, c := range r.Curves {
		fmt.Fprintf(w, "\ngrowth with %s\tprogram ns\treader ns\tboth x\n", c.Name)
		for _, p := range c.Points {
			fmt.Fprintf(w, "  %d\t%.0f\t%.0f\t%.2f\n", p.Of, p.Program, p.Reader, p.total()/c.Points[0].total())
		}
	}
}

func (r report) writeStart(w io.Writer) {
	if len(r.StartUps) > 0 {
		fmt.Fprintf(w, "\nring of %d MiB\tready ms\tfirst packet ms\tx\tclosed ms\tgone ms\tMiB\n", startBuffer)
	}
	for _, s := range r.StartUps {
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Tool, s.Ready.text(0), s.First.text(0), s.FirstRatio.text(2), s.Closed.text(0), s.Gone.text(0), s.Peak.text(1))
	}
	if len(r.Idle) > 0 {
		fmt.Fprintln(w, "\nwhile nothing passes\twake-ups/s\tswitches/s\tCPU us/s")
	}
	for _, i := range r.Idle {
		fmt.Fprintf(w, "  %s\t%.1f\t%.1f\t%.0f\n", i.Tool, i.Wakeups, i.Switches, i.CPU)
	}
	for _, b := range r.Binaries {
		fmt.Fprintf(w, "\n%s\t%d bytes\n", b.Path, b.Bytes)
	}
}

func (r report) writeTargets(w io.Writer) {
	if len(r.Targets) > 0 {
		fmt.Fprintln(w, "\ntargets\tat most\tis\t")
	}
	for _, t := range r.Targets {
		fmt.Fprintf(w, "  %s\t%g %s\t%.3g\t%s\n", t.Name, t.Most, t.Unit, t.Got, t.verdict())
	}
}
