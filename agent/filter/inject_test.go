// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
	"droidtap/bpf"
)

// open opens an object by its name in bpf.Names.
// packetObjects are those that have stubs.
func packetObjects() []string {
	return slices.DeleteFunc(bpf.Names(), func(name string) bool { return !strings.HasPrefix(name, "packet.") })
}

func open(t *testing.T, name string) *ebpf.CollectionSpec {
	t.Helper()
	part := strings.Split(name, ".")
	spec, err := bpf.Open(part[0], part[1])
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// functions is the code of every function of a program, as text.
func functions(insns asm.Instructions) map[string]string {
	all := map[string]string{}
	name := insns[0].Symbol()
	called := insns.FunctionReferences()
	for i := range insns {
		if s := insns[i].Symbol(); slices.Contains(called, s) {
			name = s
		}
		all[name] += fmt.Sprintf("%v\n", insns[i])
	}
	return all
}

// inject puts expr into every program that is for the link type.
func inject(t *testing.T, spec *ebpf.CollectionSpec, expr string, l pcapng.LinkType, form filter.Form) {
	t.Helper()
	f := compile(t, expr, l)
	for name, p := range spec.Programs {
		if strings.HasPrefix(name, "l2") != (l == pcapng.Ethernet) {
			continue
		}
		form := form
		if p.Type == ebpf.SocketFilter {
			form = filter.LoadBytes // it may not look at the packet directly
		}
		if err := f.Inject(p, filter.How{Form: form, Egress: strings.HasSuffix(name, "egress")}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestInjectChangesTheStubOnly(t *testing.T) {
	for _, name := range packetObjects() {
		for l, stub := range stubOf {
			t.Run(name+" "+stub, func(t *testing.T) {
				before, after := open(t, name), open(t, name)
				inject(t, after, "tcp port 443", l, filter.Hybrid)
				changed := 0
				for program, p := range before.Programs {
					was, is := functions(p.Instructions), functions(after.Programs[program].Instructions)
					if was[stub] != is[stub] {
						changed++
					}
					if was[stub] != "" && was[stub] == is[stub] {
						t.Errorf("%s of program %s has no filter", stub, program)
					}
					if !strings.HasSuffix(is[stub], body(was[stub])) {
						t.Errorf("%s of program %s does not end with the stub's own body:\n%s", stub, program, is[stub])
					}
					delete(was, stub)
					delete(is, stub)
					if diff := cmp.Diff(was, is); diff != "" {
						t.Errorf("other functions of program %s have changed:\n%s", program, diff)
					}
				}
				if changed == 0 {
					t.Error("no program has changed")
				}
			})
		}
	}
}

// body is a function's text without its name.
func body(function string) string {
	_, code, _ := strings.Cut(function, ":\n")
	return strings.TrimLeft(code, "\t ")
}

func TestProgramWithoutStub(t *testing.T) {
	other := &ebpf.ProgramSpec{
		Name:         "other",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0).WithSymbol("other"), asm.Return()},
	}
	const want = "inject filter: program other has no function filter_pcap_l2"
	if err := compile(t, "tcp", pcapng.Ethernet).Inject(other, filter.How{}); err == nil || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
}

// counts mirrors struct counts of bpf/src/packet.bpf.c.
type counts struct{ In, Out, Received, Dropped, Unattributed, Ifindex uint64 }

// loadPacket loads an object of the packet probe that records both directions, and counts everything in entry 0.
func loadPacket(t *testing.T, spec *ebpf.CollectionSpec) *ebpf.Collection {
	t.Helper()
	settings := struct {
		Snaplen, Directions uint32
		_                   [10]uint32
	}{Snaplen: 64, Directions: 3}
	if v, ok := spec.Variables["settings"]; ok {
		if err := v.Set(settings); err != nil {
			t.Fatal(err)
		}
	} else {
		spec.Maps["settings"].Contents = []ebpf.MapKV{{Key: uint32(0), Value: settings}}
	}
	spec.Maps["interfaces"].Contents = []ebpf.MapKV{{Key: uint32(0), Value: make([]counts, ebpf.MustPossibleCPU())}}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	t.Cleanup(coll.Close)
	return coll
}

// received is how many packets have matched the filter so far.
func received(t *testing.T, coll *ebpf.Collection) uint64 {
	t.Helper()
	var cpus []counts
	if err := coll.Maps["interfaces"].Lookup(uint32(0), &cpus); err != nil {
		t.Fatal(err)
	}
	var sum uint64
	for _, c := range cpus {
		sum += c.Received
	}
	return sum
}

// TestRealProgramsAgreeWithTcpdump runs a few filters where they run in a capture: in every program of every object.
func TestRealProgramsAgreeWithTcpdump(t *testing.T) {
	needRoot(t)
	needTcpdump(t)
	programs := map[pcapng.LinkType][]string{
		pcapng.Ethernet: {"l2_ingress", "l2_egress", "l2_socket"},
		pcapng.Raw:      {"l3_ingress", "l3_egress", "l3_socket"},
	}
	for l, names := range programs {
		packets := corpus(frames(), 150)
		if l == pcapng.Raw {
			packets = corpus(ipPackets(), 150)
		}
		file := pcapFile(l, packets)
		logNotRun(t, packets)
		for _, expr := range []string{
			"tcp port 443",
			"host 2001:db8::1 and not udp",
			"tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420",
			"ip[12:4] > ip[16:4] or len < 60",
		} {
			want := tcpdumpVerdicts(t, file, len(packets), expr)
			for _, object := range packetObjects() {
				for _, form := range forms {
					spec := open(t, object)
					inject(t, spec, expr, l, form)
					coll := loadPacket(t, spec)
					for _, name := range names {
						t.Run(fmt.Sprintf("%s %s %v %s", object, name, form, expr), func(t *testing.T) {
							compareCounted(t, coll, name, packets, want)
						})
					}
				}
			}
		}
	}
}

// logNotRun counts what compareCounted leaves out: these programs cannot cut a packet down, as verdictSpec's does.
func logNotRun(t *testing.T, packets [][]byte) {
	t.Helper()
	pass := load(t, &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{"verdict": {
		Type:         ebpf.SchedCLS,
		License:      "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	}}})
	notRun := 0
	for _, packet := range packets {
		if _, err := pass.Run(&ebpf.RunOptions{Data: packet}); errors.Is(err, unix.EINVAL) {
			notRun++
		}
	}
	t.Logf("%d of %d packets are too short for BPF_PROG_TEST_RUN", notRun, len(packets))
	if notRun > len(packets)/3 {
		t.Error("these are too many: make the corpus longer")
	}
}

func compareCounted(t *testing.T, coll *ebpf.Collection, program string, packets [][]byte, want []bool) {
	socket := coll.Programs[program].Type() == ebpf.SocketFilter
	for i, packet := range packets {
		data := packet
		if socket {
			data = append(make([]byte, 14), packet...) // BPF_PROG_TEST_RUN takes off an Ethernet header
		}
		before := received(t, coll)
		ret, err := coll.Programs[program].Run(&ebpf.RunOptions{Data: data})
		if errors.Is(err, unix.EINVAL) {
			continue
		}
		if err != nil || !socket && int32(ret) != -1 || socket && (ret != 0) != want[i] {
			t.Fatalf("packet %d: verdict %d, error %v", i, int32(ret), err)
		}
		if got := received(t, coll) > before; got != want[i] {
			t.Errorf("packet %d: received is %v, and tcpdump says %v: %x", i, got, want[i], packet)
		}
	}
}
