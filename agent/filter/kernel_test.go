// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package filter_test

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
	"droidtap/bpf"
	"droidtap/scripts/libpcaptest"
)

var stubOf = map[pcapng.LinkType]string{
	pcapng.Ethernet: "filter_pcap_l2",
	pcapng.Raw:      "filter_pcap_l3",
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to load bpf programs")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
}

// stub returns a stub's instructions as clang made them, from a real object.
func stub(t *testing.T, name string) asm.Instructions {
	t.Helper()
	spec, err := bpf.Open("packet", "legacy")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range spec.Programs {
		start := slices.IndexFunc(p.Instructions, func(in asm.Instruction) bool { return in.Symbol() == name })
		if start < 0 {
			continue
		}
		end := start + 1
		for end < len(p.Instructions) && p.Instructions[end].Symbol() == "" {
			end++
		}
		body := slices.Clone(p.Instructions[start:end])
		for i := range body {
			body[i] = body[i].WithMetadata(asm.Metadata{})
		}
		body[0] = body[0].WithSymbol(name)
		return body
	}
	t.Fatalf("no program has the function %s", name)
	return nil
}

const (
	verdictRefused = 2 // the kernel did not cut the packet down
	ctxMark        = 8 // offsets into struct __sk_buff
	ctxData        = 76
	ctxDataEnd     = 80
)

// verdictSpec is a program that returns a stub's verdict on the packet. Its mark says how long the packet is to be, if
// not 0, and in the upper half a tag that is to be kept beside it: BPF_PROG_TEST_RUN takes no IP packet that is shorter
// than the IP header, and none with a tag, so those are made of others.
func verdictSpec(t *testing.T, l pcapng.LinkType) *ebpf.CollectionSpec {
	t.Helper()
	refuse := func(next string) asm.Instructions {
		return asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, next),
			asm.Mov.Imm(asm.R0, verdictRefused),
			asm.Return(),
		}
	}
	insns := slices.Concat(asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1).WithSymbol("verdict"),
		asm.LoadMem(asm.R7, asm.R6, ctxMark, asm.Word),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.And.Imm(asm.R2, 0xffff),
		asm.JEq.Imm(asm.R2, 0, "tag"),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnSkbChangeTail.Call(),
	}, refuse("tag"), asm.Instructions{
		asm.Mov.Reg(asm.R3, asm.R7).WithSymbol("tag"),
		asm.RSh.Imm(asm.R3, 16),
		asm.JEq.Imm(asm.R3, 0, "run"),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, 0x0081), // 802.1Q, in network order
		asm.FnSkbVlanPush.Call(),
	}, refuse("run"), asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("run"),
		asm.Mov.Reg(asm.R2, asm.R6),
		asm.Mov.Reg(asm.R3, asm.R6),
		asm.LoadMem(asm.R4, asm.R6, ctxData, asm.Word),
		asm.LoadMem(asm.R5, asm.R6, ctxDataEnd, asm.Word),
		asm.Call.Label(stubOf[l]),
		asm.Return(),
	})
	return &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{"verdict": {
		Name:         "verdict",
		Type:         ebpf.SchedCLS,
		License:      "GPL",
		Instructions: append(insns, stub(t, stubOf[l])...),
	}}}
}

// load loads a spec with one program.
func load(t *testing.T, spec *ebpf.CollectionSpec) *ebpf.Program {
	t.Helper()
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	t.Cleanup(coll.Close)
	return coll.Programs["verdict"]
}

// compile compiles what has to compile.
func compile(t *testing.T, expr string, l pcapng.LinkType) filter.Filter {
	t.Helper()
	f, err := filter.Compile(t.Context(), expr, l, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// compiled is a program with the filter in the stub of the link type.
func compiled(t *testing.T, l pcapng.LinkType, expr string, how filter.How) *ebpf.Program {
	t.Helper()
	spec := verdictSpec(t, l)
	if err := compile(t, expr, l).Inject(spec.Programs["verdict"], how); err != nil {
		t.Fatal(err)
	}
	return load(t, spec)
}

// skb is the head of struct __sk_buff.
type skb struct {
	_    [ctxMark]byte
	Mark uint32
}

const (
	minRun   = 14          // bytes of a packet that BPF_PROG_TEST_RUN takes
	minIPRun = minRun + 40 // and that it takes with whatever it holds
)

// kernelVerdict runs a program over a packet. ok is false where the kernel does
// not run programs over so short a packet.
func kernelVerdict(t *testing.T, p *ebpf.Program, of libpcaptest.Packet) (accepts, ok bool) {
	t.Helper()
	packet, mark := of.Bytes, uint32(of.Tag)<<16
	opts := ebpf.RunOptions{Data: packet}
	if len(packet) >= minRun && len(packet) < minIPRun {
		opts.Data = append(slices.Clone(packet), make([]byte, minIPRun-len(packet))...)
		mark |= uint32(len(packet))
	}
	if mark != 0 {
		opts.Context = skb{Mark: mark}
	}
	ret, err := p.Run(&opts)
	switch {
	case errors.Is(err, unix.EINVAL):
		return false, false
	case err != nil:
		t.Fatalf("run over %d bytes: %v", len(packet), err)
	case ret == verdictRefused:
		return false, false
	case ret > 1:
		t.Fatalf("run over %d bytes: verdict %d", len(packet), ret)
	}
	return ret == 1, true
}
