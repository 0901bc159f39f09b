// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
)

// chartLoads are those of the chart.
var chartLoads = []string{floodLoad, pacedLoad, largeFloodLoad, largePacedLoad}

// bar is one tool's of one load, in ns for a packet.
type bar struct {
	Tool           string
	Kernel, Reader float64
	Lost           float64 // percent
}

// text is its figures.
func (b bar) text() string {
	t := fmt.Sprintf("%.0f + %.0f", b.Kernel, b.Reader)
	if b.Lost > 0 {
		t += fmt.Sprintf(", %.2g %% lost", b.Lost)
	}
	return t
}

// group is the bars of one load.
type group struct {
	Load string
	Bars []bar
}

// chart takes what it shows from the report. ok is false where one of its loads was not measured.
func (r report) chart() (groups []group, ok bool) {
	for _, name := range chartLoads {
		g := group{Load: name}
		for _, k := range []kind{tcpdump, dumpcap, agent} {
			x, found := r.find(name, k)
			if !found {
				return nil, false
			}
			// Noise may have the kernel do with a capture less than without.
			g.Bars = append(g.Bars, bar{string(k), max(0, x.Kernel.Median), x.Reader.Median, 100 - x.InFile.Median})
		}
		groups = append(groups, g)
	}
	return groups, true
}

const (
	chartWidth = 720
	chartLeft  = 64  // of the bars: room for the tools' names
	chartRight = 160 // for the figures
	barHeight  = 14
	barStep    = 18
)

// The colours are for light and dark pages alike.
const chartStyle = `<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.load { font-weight: 600 }
.note { fill: #59636e }
.kernel { fill: #9ec5e8 }
.reader { fill: #2f74b5 }
.agent .kernel { fill: #f3bd86 }
.agent .reader { fill: #d9730d }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.note { fill: #9198a1 }
.kernel { fill: #3b6a96 }
.reader { fill: #79b8f2 }
.agent .kernel { fill: #8a5a2b }
.agent .reader { fill: #f0a04b }
}
</style>
`

// writeChart draws the groups, each with a scale of its own: a packet of 1,400 bytes costs several times as much.
func writeChart(w io.Writer, groups []group, note string) error {
	var b strings.Builder
	y := 18
	fmt.Fprintf(&b, `<text x="0" y="%d">processor time for a packet, in ns: in the kernel (pale) and in the tool (strong)</text>`+"\n", y)
	for _, g := range groups {
		y += 30
		fmt.Fprintf(&b, `<text class="load" x="0" y="%d">%s</text>`+"\n", y, escape(g.Load))
		y += 8
		most := 1.0
		for _, x := range g.Bars {
			most = max(most, x.Kernel+x.Reader)
		}
		scale := (chartWidth - chartLeft - chartRight) / most
		for _, x := range g.Bars {
			kernel, reader := x.Kernel*scale, x.Reader*scale
			fmt.Fprintf(&b, `<g class="%s"><text x="0" y="%d">%s</text>`, escape(x.Tool), y+barHeight-3, escape(x.Tool))
			fmt.Fprintf(&b, `<rect class="kernel" x="%d" y="%d" width="%.1f" height="%d"/>`, chartLeft, y, kernel, barHeight)
			fmt.Fprintf(&b, `<rect class="reader" x="%.1f" y="%d" width="%.1f" height="%d"/>`, chartLeft+kernel, y, reader, barHeight)
			fmt.Fprintf(&b, `<text x="%.1f" y="%d">%s</text></g>`+"\n", chartLeft+kernel+reader+6, y+barHeight-3, x.text())
			y += barStep
		}
	}
	y += 20
	fmt.Fprintf(&b, `<text class="note" x="0" y="%d">%s</text>`+"\n", y, escape(note))
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" role="img" aria-label="processor time for a packet: tcpdump, dumpcap and agent">`+"\n%s%s</svg>\n",
		chartWidth, y+8, chartWidth, chartStyle, b.String())
	return err
}

var escape = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;").Replace
