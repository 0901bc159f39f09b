// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
	"droidtap/scripts/libpcaptest"
)

// FuzzExpression has any text for an expression: an error of one line, or a filter whose forms all come into being and
// whose verdicts are libpcap's.
func FuzzExpression(f *testing.F) {
	for _, file := range []string{"expressions.txt", "expressions-l3.txt"} {
		text, err := os.ReadFile("testdata/" + file)
		if err != nil {
			f.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			f.Add(strings.TrimSpace(line), file == "expressions.txt")
		}
	}
	for _, expr := range []string{"", "(", "((((", "a\x00b", "host 999999999999999999999999", "ip[0xffffffff]", "ether[-1] = 1", "len >> 40 = 1",
		"1 / 0 = 1", "tcp[tcp[tcp[tcp[0]]]] = 1", "not not not not tcp", "portrange 1-", "\xff\xfe", "inbound and ifindex 4294967295", "vlan 4096", "mpls 1048576"} {
		f.Add(expr, true)
		f.Add(expr, false)
	}
	packets := map[pcapng.LinkType][]libpcaptest.Packet{}
	for l, of := range map[pcapng.LinkType][][]byte{pcapng.Ethernet: frames(), pcapng.Raw: ipPackets()} {
		for i, p := range corpus(of, 0) {
			if i%7 == 0 {
				packets[l] = append(packets[l], libpcaptest.Packet{Bytes: p})
			}
		}
	}
	f.Fuzz(func(t *testing.T, expr string, l2 bool) {
		l := pcapng.Raw
		if l2 {
			l = pcapng.Ethernet
		}
		if len(expr) > 1<<10 {
			return // TestLongExpression has those; here they only take time
		}
		started := time.Now()
		of, err := filter.Compile(t.Context(), expr, l, 0xffffff00)
		if err != nil {
			if strings.ContainsRune(strings.TrimSpace(err.Error()), '\n') {
				t.Errorf("%q: error of several lines: %q", expr, err)
			}
			return
		}
		if took := time.Since(started); took > time.Minute {
			t.Errorf("%q takes %v", expr, took)
		}
		for _, form := range append(slices.Clone(forms), filter.Agent) {
			if _, err := of.DumpEBPF(filter.How{Form: form}); err != nil {
				t.Errorf("%q in form %v: %v", expr, form, err)
			}
		}
		packets := slices.DeleteFunc(slices.Clone(packets[l]), func(p libpcaptest.Packet) bool { return filter.Endless(of, p.Bytes) })
		want, err := libpcaptest.Verdicts(expr, l, 0xffffff00, packets)
		if err != nil {
			t.Fatalf("%q: libpcap refuses it: %v", expr, err)
		}
		if strings.Contains(expr, "bound") || strings.Contains(expr, "ifindex") {
			return // libpcap's interpreter does not know them
		}
		for i, p := range packets {
			if got := of.Match(p.Bytes, filter.Meta{Length: uint32(len(p.Bytes))}); got != want[i] {
				t.Fatalf("%q: accepted is %v, and libpcap says %v: %x", expr, got, want[i], p.Bytes)
			}
		}
	})
}

// fuzzed are expressions that look into packets in every way.
var fuzzed = []string{
	"port 443", "host 10.0.0.1 or host 2001:db8::1", "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420", "vlan 100 and ip", "mpls and ip6",
	"pppoes and tcp", "geneve and udp", "ip protochain 6", "ip6 protochain 17", "ip[ip[0] & 0xf:2] > ip[2:2] - len", "ether[len - 1] = 0",
	"llc u", "icmp6[icmp6type] = icmp6-neighborsolicit", "len % ip[8] = 1 or ip[3] / ip[4] > 2", "not ip multicast and less 200",
}

// FuzzPacket has any bytes for a packet: the verdicts in the kernel and in the agent are libpcap's.
func FuzzPacket(f *testing.F) {
	for i, p := range frames() {
		f.Add(uint8(i), p, uint16(0))
	}
	f.Add(uint8(3), frames()[0], uint16(100))
	type loaded struct {
		filter.Filter
		programs []*ebpf.Program
	}
	var filters []loaded // made by the process that uses them
	prepare := func(t *testing.T) {
		if os.Geteuid() == 0 {
			if err := rlimit.RemoveMemlock(); err != nil {
				t.Fatal(err)
			}
		}
		for _, expr := range fuzzed {
			of := loaded{Filter: compile(t, expr, pcapng.Ethernet)}
			for _, form := range forms {
				if os.Geteuid() != 0 {
					break // the agent's verdict alone, then
				}
				spec := verdictSpec(t, pcapng.Ethernet)
				if err := of.Inject(spec.Programs["verdict"], filter.How{Form: form}); err != nil {
					t.Fatal(err)
				}
				coll, err := ebpf.NewCollection(spec)
				if err != nil {
					t.Fatal(err)
				}
				of.programs = append(of.programs, coll.Programs["verdict"])
			}
			filters = append(filters, of)
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, packet []byte, tag uint16) {
		if filters == nil {
			prepare(t)
		}
		if len(packet) > 4000 || len(packet) == 0 {
			return // BPF_PROG_TEST_RUN takes no more
		}
		if len(packet) < minRun {
			tag = 0
		}
		p := libpcaptest.Packet{Bytes: packet, Tag: tag & 0xfff}
		n := int(which) % len(fuzzed)
		if filter.Endless(filters[n].Filter, packet) {
			if filters[n].Match(packet, filter.Meta{Length: uint32(len(packet))}) {
				t.Errorf("%q matches what it never comes to an end over: %x", fuzzed[n], packet)
			}
			return // libpcap never does
		}
		want, err := libpcaptest.Verdicts(fuzzed[n], pcapng.Ethernet, 0, []libpcaptest.Packet{p})
		if err != nil {
			t.Fatal(err)
		}
		if got := filters[n].Match(packet, filter.Meta{Length: uint32(len(packet)), VlanPresent: p.Tag != 0, VlanTCI: p.Tag}); got != want[0] {
			t.Errorf("%q in the agent: accepted is %v, and libpcap says %v: %x tag %d", fuzzed[n], got, want[0], packet, p.Tag)
		}
		for i, prog := range filters[n].programs {
			got, ok := kernelVerdict(t, prog, p)
			if ok && got != want[0] && (!got || filters[n].Exact(forms[i])) {
				t.Errorf("%q in form %v: accepted is %v, and libpcap says %v: %x tag %d", fuzzed[n], forms[i], got, want[0], packet, p.Tag)
			}
		}
	})
}
