// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"os"
	"strings"
	"testing"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
	"droidtap/scripts/libpcaptest"
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
	packets  []libpcaptest.Packet
	tooShort int // packets over which the kernel does not run programs
}

// thin leaves one of n with -short: for the emulated phone, where loading a program takes a tenth of a second.
func thin[T any](all []T, n int) []T {
	if !testing.Short() {
		return all
	}
	var some []T
	for i := 0; i < len(all); i += n {
		some = append(some, all[i])
	}
	return some
}

// newWire makes the corpus. Of some Ethernet packets there is a second one, with a tag that is kept beside it.
func newWire(l pcapng.LinkType) *wire {
	const mutants = 150
	w := &wire{linkType: l}
	all := corpus(frames(), mutants)
	if l == pcapng.Raw {
		all = corpus(ipPackets(), mutants)
	}
	for i, p := range all {
		w.packets = append(w.packets, libpcaptest.Packet{Bytes: p})
		if l == pcapng.Ethernet && i%5 == 0 && len(p) >= minRun {
			w.packets = append(w.packets, libpcaptest.Packet{Bytes: p, Tag: []uint16{100, 200, 300}[i%3]})
		}
	}
	w.packets = thin(w.packets, 11)
	for _, p := range w.packets {
		if len(p.Bytes) < minRun {
			w.tooShort++
		}
	}
	return w
}

// compare holds a filter in every form against libpcap's verdicts, packet by packet: in the kernel, and in the agent.
func (w *wire) compare(t *testing.T, expr string, f filter.Filter, want []bool) (accepted int) {
	t.Helper()
	for _, form := range forms {
		spec := verdictSpec(t, w.linkType)
		if err := f.Inject(spec.Programs["verdict"], filter.How{Form: form}); err != nil {
			t.Fatalf("%q: %v", expr, err)
		}
		p := load(t, spec)
		notRun := 0
		for i, packet := range w.packets {
			got, ok := kernelVerdict(t, p, packet)
			switch {
			case !ok:
				notRun++
			case got != want[i] && (!got || f.Exact(form)):
				t.Fatalf("%q in form %v, packet %d: accepted is %v, and libpcap says %v: %x tag %d", expr, form, i, got, want[i], packet.Bytes, packet.Tag)
			}
		}
		if notRun != w.tooShort {
			t.Fatalf("the kernel ran no program over %d packets, and %d are shorter than %d bytes", notRun, w.tooShort, minRun)
		}
		p.Close()
	}
	for i, packet := range w.packets {
		got := f.Match(packet.Bytes, filter.Meta{Length: uint32(len(packet.Bytes)), VlanPresent: packet.Tag != 0, VlanTCI: packet.Tag})
		if got != want[i] {
			t.Fatalf("%q in the agent, packet %d: accepted is %v, and libpcap says %v: %x tag %d", expr, i, got, want[i], packet.Bytes, packet.Tag)
		}
		if got {
			accepted++
		}
	}
	return accepted
}

func differential(t *testing.T, l pcapng.LinkType, all []string) {
	t.Helper()
	needRoot(t)
	w := newWire(l)
	if !testing.Short() && len(w.packets) < 1000 {
		t.Errorf("only %d packets", len(w.packets))
	}
	all = thin(all, 7)
	t.Logf("%d expressions over %d packets, of which %d are too short for BPF_PROG_TEST_RUN", len(all), len(w.packets), w.tooShort)
	for _, expr := range all {
		t.Run(expr, func(t *testing.T) {
			want, err := libpcaptest.Verdicts(expr, l, 0, w.packets)
			if err != nil {
				t.Fatal(err)
			}
			if n := w.compare(t, expr, compile(t, expr, l), want); (n == 0 || n == len(want)) && !testing.Short() {
				t.Errorf("accepts %d of %d packets, which tells nothing: change the expression or the corpus", n, len(want))
			}
		})
	}
}

func TestVerdictIsThatOfLibpcap(t *testing.T) {
	l2, l3 := expressions(t, "expressions.txt"), expressions(t, "expressions-l3.txt")
	if len(l2) < 400 || len(l3) < 100 {
		t.Errorf("only %d and %d expressions", len(l2), len(l3))
	}
	differential(t, pcapng.Ethernet, l2)
}

func TestVerdictIsThatOfLibpcapWithoutEthernetHeader(t *testing.T) {
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
