// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

func TestSpread(t *testing.T) {
	for name, c := range map[string]struct {
		values []float64
		want   spread
	}{
		"none":                              {nil, spread{}},
		"one":                               {[]float64{3}, spread{3, 3, 3}},
		"the one in the middle":             {[]float64{9, 1, 2}, spread{2, 1, 9}},
		"the mean of the two in the middle": {[]float64{4, 1, 9, 2}, spread{3, 1, 9}},
	} {
		t.Run(name, func(t *testing.T) {
			before := append([]float64(nil), c.values...)
			if got := spreadOf(c.values); got != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
			if diff := cmp.Diff(before, c.values); diff != "" {
				t.Errorf("the rounds are in another order: %s", diff)
			}
		})
	}
}

func TestRatios(t *testing.T) {
	for name, c := range map[string]struct{ of, by, want []float64 }{
		"of the same round":             {[]float64{10, 40}, []float64{20, 20}, []float64{0.5, 2}},
		"no round to compare with":      {[]float64{10, 40}, []float64{20}, []float64{0.5}},
		"nothing to divide by":          {[]float64{10, 40}, []float64{0, 20}, []float64{2}},
		"noise below zero is no ratio":  {[]float64{10, 40}, []float64{-5, 20}, []float64{2}},
		"next to nothing is no ratio":   {[]float64{math.MaxFloat64}, []float64{math.SmallestNonzeroFloat64}, nil},
		"less than nothing has a ratio": {[]float64{-10}, []float64{20}, []float64{-0.5}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, ratios(c.of, c.by)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCounters(t *testing.T) {
	const tcpdumps = "tcpdump: listening on cap0\n10 packets captured\n12 packets received by filter\n2 packets dropped by kernel\n"
	for name, c := range map[string]struct {
		kind kind
		text string
		want counters
		fail bool
	}{
		"tcpdump":               {tcpdump, tcpdumps, counters{10, 2}, false},
		"one packet":            {tcpdump, "1 packet captured\n1 packet received by filter\n0 packets dropped by kernel\n", counters{1, 0}, false},
		"interface's drops":     {tcpdump, tcpdumps + "3 packets dropped by interface\n", counters{10, 2}, false},
		"agent: both drops":     {agent, tcpdumps + "5 packets dropped by agent, 7 unattributed\n", counters{10, 7}, false},
		"agent without its own": {agent, tcpdumps, counters{10, 2}, true},
		"dumpcap": {dumpcap, "Packets captured: 10\nPackets received/dropped on interface 'cap0': 10/3 (pcap:3/dumpcap:0/flushed:0/ps_ifdrop:0) (76.9%)\n",
			counters{10, 3}, false},
		"nothing":    {tcpdump, "", counters{}, true},
		"too much":   {tcpdump, "99999999999999999999 packets captured\n0 packets dropped by kernel\n", counters{}, true},
		"a fragment": {tcpdump, "x10 packets captured\n0 packets dropped by kernel\n", counters{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.kind.counters(c.text)
			if (err != nil) != c.fail {
				t.Fatalf("error %v", err)
			}
			if err == nil && got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

// words are bytes of 32-bit little-endian numbers.
func words(numbers ...uint32) (b []byte) {
	for _, n := range numbers {
		b = le.AppendUint32(b, n)
	}
	return b
}

func TestCountPackets(t *testing.T) {
	header := words(0xa1b2c3d4, 0x00040002, 0, 0, 262144, 1)
	record := words(1, 2, 4, 60, 0)
	section := words(0x0a0d0d0a, 28, 0x1a2b3c4d, 1, 0xffffffff, 0xffffffff, 28)
	ifc := words(1, 20, 1, 0, 20)
	packet := words(6, 36, 0, 1, 2, 4, 60, 0, 36)
	statistics := words(5, 24, 0, 1, 2, 24)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, c := range map[string]struct {
		file []byte
		want uint64
		fail bool
	}{
		"an empty file":                    {nil, 0, false},
		"pcap without packets":             {header, 0, false},
		"pcap":                             {join(header, record, record), 2, false},
		"pcap in nanoseconds":              {join(words(0xa1b23c4d), header[4:], record), 1, false},
		"pcap: torn header":                {header[:20], 0, true},
		"pcap: torn packet header":         {join(header, record, record[:15]), 1, true},
		"pcap: torn packet":                {join(header, record, record[:18]), 1, true},
		"pcap: more than there was":        {join(header, words(1, 2, 8, 4, 0, 0)), 0, true},
		"pcap: too long":                   {join(header, words(1, 2, 1<<30, 1<<30, 0)), 0, true},
		"pcapng":                           {join(section, ifc, packet, statistics, packet), 2, false},
		"pcapng: sections":                 {join(section, ifc, packet, section, ifc, packet), 2, false},
		"pcapng: no interface":             {join(section, packet), 0, true},
		"pcapng: torn":                     {join(section, ifc, packet, packet[:35]), 1, true},
		"pcapng: torn head of a block":     {join(section, ifc, packet, packet[:5]), 1, true},
		"pcapng: two lengths":              {join(section, words(1, 20, 1, 0, 24)), 0, true},
		"pcapng: no length":                {join(section, words(1, 0, 0)), 0, true},
		"pcapng: block too small":          {join(section, ifc, words(6, 12, 12)), 0, true},
		"pcapng: packet beyond its block":  {join(section, ifc, words(6, 36, 0, 1, 2, 8, 60, 0, 36)), 0, true},
		"pcapng: a block that is too long": {join(section, words(6, 1<<24)), 0, true},
		"something else":                   {[]byte("text"), 0, true},
		"less than a number":               {[]byte{1, 2}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := countPackets(bytes.NewReader(c.file))
			if got != c.want || (err != nil) != c.fail {
				t.Errorf("%d packets, error %v", got, err)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	text := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	proc := fstest.MapFS{
		"7/task/7/schedstat": text("1000 5 3\n"),
		"7/task/7/status":    text("Name:\tx\nvoluntary_ctxt_switches:\t4\nnonvoluntary_ctxt_switches:\t100\n"),
		"7/task/8/schedstat": text("500 5 3\n"),
		"7/task/8/status":    text("voluntary_ctxt_switches:\t2\n"),
		"7/task/9":           &fstest.MapFile{Mode: 0o755 | 1<<31}, // it has just ended
		"7/status":           text("VmPeak:\t  99 kB\nVmHWM:\t  2048 kB\n"),
		"7/comm":             text("ksoftirqd/0\n"),
		"8/status":           text("VmHWM:\n"),
		"7/fdinfo/3":         text("pos:\t0\nprog_type:\t3\nprog_id:\t12\n"),
		"7/fdinfo/4":         text("link_type:\ttcx\nprog_id:\t12\n"),
		"7/fdinfo/5":         text("link_type:\ttcx\nprog_id:\t13\n"),
		"7/fdinfo/6":         text("pos:\t0\n"),
		"8/fdinfo/3":         text("prog_id:\tx\n"),
	}
	if ids, err := programIDs(proc, 7); err != nil || !cmp.Equal(ids, []uint32{12, 13}) {
		t.Errorf("programs %v, %v", ids, err)
	}
	if _, err := programIDs(proc, 8); err == nil {
		t.Error("a program has no number")
	}
	if u, err := usageOf(proc, 7); err != nil || u != (usage{1500, 6}) {
		t.Errorf("%+v, %v", u, err)
	}
	if _, err := usageOf(proc, 6); err == nil {
		t.Error("a process that is none has usage")
	}
	if kib, err := peakOf(proc, 7); err != nil || kib != 2048 {
		t.Errorf("%d KiB, %v", kib, err)
	}
	if _, err := peakOf(proc, 8); err == nil {
		t.Error("no peak, and no error")
	}
	if pid, err := pidOf(proc, "ksoftirqd/0"); err != nil || pid != 7 {
		t.Errorf("pid %d, %v", pid, err)
	}
	if _, err := pidOf(proc, "ksoftirqd/1"); err == nil {
		t.Error("a thread that is none has a pid")
	}
}

func TestPassed(t *testing.T) {
	const dev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       7    0    0    0     0          0         0      100       7    0    0    0     0       0          0
  cap0:    6400     100    0    0    0     0          0         0      640      10    0    0    0     0       0          0
 cap12:      64       1    0    0    0     0          0         0        0       0    0    0    0     0       0          0
 capx1:      64       1    0    0    0     0          0         0        0       0    0    0    0     0       0          0
`
	if n, err := passed(dev, "cap"); err != nil || n != 111 {
		t.Errorf("%d packets, %v", n, err)
	}
	for _, torn := range []string{"cap0: 1 2 3\n", strings.Replace(dev, "     100    0", "       x    0", 1)} {
		if _, err := passed(torn, "cap"); err == nil {
			t.Errorf("no error of %q", torn)
		}
	}
}

func TestCommand(t *testing.T) {
	s := setting{Device: "cap0", Snaplen: 96, Buffer: 32, Dir: "/d"}
	rotated, whole := s, s
	rotated.Rotated, rotated.AtOnce = true, true
	whole.Snaplen = 0
	for name, c := range map[string]struct {
		tool    tool
		setting setting
		want    string
	}{
		"tcpdump": {tool{Kind: tcpdump, Expr: "port 443"}, s, "tcpdump -i cap0 -s 96 -n -Z root -B 32768 -w /d/capture.pcap port 443"},
		"dumpcap": {tool{Kind: dumpcap}, whole, "dumpcap -i cap0 -s 262144 -q -B 32 -w /d/capture.pcapng"},
		"agent":   {tool{Kind: agent}, s, "/agent -i cap0 -s 96 --comments first -B 32768 -w /d/capture.pcapng"},
		"uids": {tool{Kind: agent, UIDs: 3, Comments: "all"}, s,
			"/agent -i cap0 -s 96 --comments all --uid 10001,10002,10003 -B 32768 -w /d/capture.pcapng"},
		"a file a second": {tool{Kind: tcpdump}, rotated, "tcpdump -i cap0 -s 96 -n -Z root -B 32768 -G 1 -U -w /d/%s-capture.pcap"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, strings.Join(c.tool.command("/agent", c.setting), " ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// sample is a report with two rounds: the ratios are of the rounds, not of the medians.
func sample() report {
	l := load{Name: floodLoad, Tools: []tool{{Kind: tcpdump}, {Kind: dumpcap}, {Kind: agent}}}
	made := func(kernel, reader float64, inFile uint64) capture {
		return capture{Offered: 100, Expected: 100, InFile: inFile, Said: counters{inFile, 100 - inFile}, Sender: 500 + kernel, Kernel: kernel, Reader: reader}
	}
	rounds := map[string][]capture{
		l.key(l.Tools[0]): {made(300, 100, 100), made(900, 100, 90)},
		l.key(l.Tools[1]): {made(300, 900, 100), made(300, 900, 100)},
		l.key(l.Tools[2]): {made(100, 60, 100), made(-50, 40, 99)},
	}
	return report{Rounds: 2, Results: summarize(l, rounds)}
}

func TestSummarize(t *testing.T) {
	r := sample()
	x, ok := r.find(floodLoad, agent)
	if !ok {
		t.Fatal("no result of the agent")
	}
	if want := (spread{0.2, -0.01, 0.4}); math.Abs(x.TotalRatio.Median-0.195) > 1e-9 || x.TotalRatio.Max != want.Max || x.TotalRatio.Min != want.Min {
		t.Errorf("total %v of tcpdump's", x.TotalRatio)
	}
	if want := (spread{0.5, 0.4, 0.6}); x.ReaderRatio != want {
		t.Errorf("reader %v of tcpdump's, want %v", x.ReaderRatio, want)
	}
	if x.Lost != 1 || x.SaidLost != 1 || x.InFile != (spread{99.5, 99, 100}) {
		t.Errorf("lost %d, said %d, in the file %v", x.Lost, x.SaidLost, x.InFile)
	}
	if x.Bare != (spread{500, 500, 500}) {
		t.Errorf("without a capture %v", x.Bare)
	}
	if base, _ := r.find(floodLoad, tcpdump); base.TotalRatio != (spread{1, 1, 1}) {
		t.Errorf("tcpdump is %v of itself", base.TotalRatio)
	}
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		tool  tool
		c     capture
		wrong int
	}{
		"nothing lost":              {tool{Kind: agent}, capture{Expected: 10, InFile: 10, Said: counters{10, 0}}, 0},
		"lost and counted":          {tool{Kind: agent}, capture{Expected: 10, InFile: 7, Said: counters{7, 3}}, 0},
		"lost in silence":           {tool{Kind: agent}, capture{Expected: 10, InFile: 7, Said: counters{7, 0}}, 1},
		"counted and not lost":      {tool{Kind: agent}, capture{Expected: 10, InFile: 10, Said: counters{10, 1}}, 1},
		"more than there was":       {tool{Kind: agent}, capture{Expected: 10, InFile: 11, Said: counters{11, 0}}, 1},
		"captured is not written":   {tool{Kind: agent}, capture{Expected: 10, InFile: 9, Said: counters{10, 1}}, 1},
		"others are not held to it": {tool{Kind: tcpdump}, capture{Expected: 10, InFile: 7, Said: counters{7, 0}}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := &bench{}
			if b.check(load{Name: "x"}, c.tool, c.c); len(b.wrong) != c.wrong {
				t.Errorf("%q", b.wrong)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	r := sample()
	r.Programs = []programCost{{Name: unmatchedProgram, Above: spread{30, 30, 30}}}
	r.StartUps = []startUp{{Tool: "tcpdump", Peak: spread{99, 99, 99}}, {Tool: "agent", Peak: spread{20, 20, 20}}}
	r.Curves = []curve{{Name: uidCurve, Points: []point{{1, 100, 100}, {10, 150, 150}, {100, 90, 90}}}}
	r.Binaries = []built{{"build/host/agent", 9e6}, {"build/arm64/agent", 7e6}}
	got := map[string]string{}
	for _, x := range r.targets() {
		got[x.Name] = x.verdict()
	}
	for name, want := range map[string]string{
		"kernel and reader, " + floodLoad:      "met",
		"kernel and reader, " + largeFloodLoad: "not measured",
		"program, " + unmatchedProgram:         "missed by 5",
		"memory with a ring of 4 MiB":          "met",
		"growth with " + uidCurve:              "missed by 0.25",
		"binary, build/arm64/agent":            "met",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	if _, ok := got["binary, build/host/agent"]; ok {
		t.Error("the size of the host's agent has a target")
	}
}

func TestTable(t *testing.T) {
	r := sample()
	r.Wrong = []string{"agent: 1 packet"}
	r.Targets = r.targets()
	var out strings.Builder
	if err := r.write(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{floodLoad, "99.5", "0.50 (0.40..0.60)", "25 (-50..100)", "WRONG COUNTER: agent: 1 packet", "not measured"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestChart(t *testing.T) {
	r := sample()
	if _, ok := r.chart(); ok {
		t.Error("a chart without its loads")
	}
	groups := []group{{"64 B & more", []bar{{"tcpdump", 300, 100, 12.34}, {"agent", 0, 50, 0}}}}
	var out bytes.Buffer
	if err := writeChart(&out, groups, `by <us>, "today"`); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"64 B &amp; more", "300 + 100, 12 % lost", "0 + 50<", "by &lt;us&gt;", "prefers-color-scheme: dark"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	// It is XML, the whole of it.
	d := xml.NewDecoder(&out)
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestFrames: as many are to the rare port as the bench expects, and the others are of so many flows.
func TestFrames(t *testing.T) {
	of := traffic{Length: 64, Flows: 60_000, Count: 120_001}
	frame := of.frame()
	if len(frame) != of.Length {
		t.Fatalf("%d bytes", len(frame))
	}
	seen, matching := map[string]int{}, uint64(0)
	for n := range of.Count {
		of.address(frame, n)
		if frame[portsAt+2] == rare>>8 && frame[portsAt+3] == rare&0xff {
			matching++
		} else {
			seen[string(frame[portsAt:portsAt+4])]++
		}
	}
	if want := some(uint64(of.Count)); matching != want {
		t.Errorf("%d to port %d, want %d", matching, rare, want)
	}
	if want := of.Flows - of.Flows/rarity; len(seen) != want {
		t.Errorf("%d flows, want %d", len(seen), want)
	}
}
