// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"os"
	"strings"
	"testing"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
)

// expressions reads a file of testdata: one on a line, # begins a comment.
func expressions(t *testing.T, file string) []string {
	t.Helper()
	text, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			all = append(all, line)
		}
	}
	return all
}

// forms are those that decide in the kernel.
var forms = []filter.Form{filter.Hybrid, filter.LoadBytes}

// wire is what one link type's filters are compared over.
type wire struct {
	linkType pcapng.LinkType
	packets  [][]byte
	file     []byte
	tooShort int // packets over which the kernel does not run programs
}

func newWire(l pcapng.LinkType) *wire {
	const mutants = 150
	packets := corpus(frames(), mutants)
	if l == pcapng.Raw {
		packets = corpus(ipPackets(), mutants)
	}
	w := &wire{linkType: l, packets: packets, file: pcapFile(l, packets)}
	for _, p := range packets {
		if len(p) < minRun {
			w.tooShort++
		}
	}
	return w
}

// compare holds the injected filter against tcpdump, packet by packet.
func (w *wire) compare(t *testing.T, expr string) {
	want := tcpdumpVerdicts(t, w.file, len(w.packets), expr)
	for _, form := range forms {
		w.compareForm(t, expr, form, want)
	}
}

func (w *wire) compareForm(t *testing.T, expr string, form filter.Form, want []bool) {
	p := compiled(t, w.linkType, expr, filter.How{Form: form})
	accepted, notRun := 0, 0
	for i, packet := range w.packets {
		got, ok := kernelVerdict(t, p, packet)
		if !ok {
			notRun++
			continue
		}
		if got != want[i] {
			t.Errorf("form %v, packet %d: accepted is %v, and tcpdump says %v: %x", form, i, got, want[i], packet)
		}
		if got {
			accepted++
		}
	}
	if notRun != w.tooShort {
		t.Errorf("the kernel ran no program over %d packets, and %d are shorter than %d bytes", notRun, w.tooShort, minRun)
	}
	if run := len(w.packets) - notRun; accepted == 0 || accepted == run {
		t.Errorf("accepts %d of %d packets, which tells nothing: change the expression or the corpus", accepted, run)
	}
}

func differential(t *testing.T, l pcapng.LinkType, all []string) {
	t.Helper()
	needRoot(t)
	needTcpdump(t)
	w := newWire(l)
	t.Logf("%d expressions over %d packets, of which %d are too short for BPF_PROG_TEST_RUN", len(all), len(w.packets), w.tooShort)
	for _, expr := range all {
		t.Run(expr, func(t *testing.T) { w.compare(t, expr) })
	}
}

func TestVerdictIsThatOfTcpdump(t *testing.T) {
	differential(t, pcapng.Ethernet, expressions(t, "expressions.txt"))
}

func TestVerdictIsThatOfTcpdumpWithoutEthernetHeader(t *testing.T) {
	differential(t, pcapng.Raw, expressions(t, "expressions-l3.txt"))
}

// TestScratchMemory has what elibpcap 1.1.0 refuses where it reads packets by
// bpf_skb_load_bytes, since it takes cBPF's scratch memory for the packet. They
// are why this package has an injector of its own.
func TestScratchMemory(t *testing.T) {
	differential(t, pcapng.Ethernet, []string{
		"ip[2:2] - ((ip[0] & 0xf) << 2) > 40",
		"(ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2) != 0",
		"tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0)",
		"geneve",
		"geneve 10 and ip",
		"ip[0] + ip[1] > 0x45",
		"ip[2:2] / ip[8] > 1",
		"ip[2:2] % ip[8] = 3",
		"tcp[4:4] ^ tcp[8:4] != 0",
		"ip[12:4] = ip[16:4]",
		"ip[12:4] > ip[16:4]",
		"ip[12:4] - ip[16:4] > 0x10000000",
		"tcp[0:2] > tcp[2:2]",
		"tcp[0:2] = tcp[2:2]",
		"(tcp[13] & 2 != 0) and (tcp[0:2] > tcp[2:2])",
		"len % ip[8] = 1",
		"ip[2:2] = len - 14",
		"ip[2:2] < len - 14",
		"(ip[2:2] + 14) != len",
	})
}
