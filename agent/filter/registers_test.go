// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/net/bpf"

	"droidtap/agent/pcapng"
)

// TestRegistersAndScratchMemory has classic programs that libpcap does not write
// today: everything is in use while a load calls a helper. The reference is the
// interpreter of x/net/bpf.
func TestRegistersAndScratchMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to load bpf programs")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		t.Fatal(err)
	}
	verdict := []bpf.Instruction{bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: maxSnaplen}}
	full := func(last ...bpf.Instruction) []bpf.Instruction {
		var insns []bpf.Instruction
		for n := range 16 {
			insns = append(insns, bpf.LoadConstant{Dst: bpf.RegA, Val: uint32(0x1000 + n)}, bpf.StoreScratch{Src: bpf.RegA, N: n})
		}
		insns = append(insns, bpf.LoadConstant{Dst: bpf.RegA, Val: 77}, bpf.LoadMemShift{Off: 14})
		for n := range 16 { // A is still 77: all of the scratch memory, xor-ed into it
			insns = append(insns, bpf.StoreScratch{Src: bpf.RegA, N: 0}, bpf.LoadScratch{Dst: bpf.RegX, N: n}, bpf.LoadScratch{Dst: bpf.RegA, N: 0})
			if n > 0 {
				insns = append(insns, bpf.ALUOpX{Op: bpf.ALUOpXor})
			}
		}
		return append(insns, last...)
	}
	var sum uint32 = 77
	for n := 1; n < 16; n++ {
		sum ^= uint32(0x1000 + n)
	}
	for _, c := range []struct {
		rule    string
		program []bpf.Instruction
	}{
		{"A outlives ldxb", append([]bpf.Instruction{
			bpf.LoadAbsolute{Off: 20, Size: 4},
			bpf.LoadMemShift{Off: 14},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x14151617, SkipTrue: 1},
		}, verdict...)},
		{"X of ldxb is used with that A", append([]bpf.Instruction{
			bpf.LoadAbsolute{Off: 20, Size: 1},
			bpf.LoadMemShift{Off: 14},
			bpf.ALUOpX{Op: bpf.ALUOpAdd},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0x14 + 20, SkipTrue: 1},
		}, verdict...)},
		{"X outlives a load", append([]bpf.Instruction{
			bpf.LoadMemShift{Off: 14},
			bpf.LoadAbsolute{Off: 30, Size: 2},
			bpf.LoadIndirect{Off: 14, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 34, SkipTrue: 1},
		}, verdict...)},
		{"all of the scratch memory and A outlive ldxb", full(append([]bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: sum, SkipTrue: 1},
		}, verdict...)...)},
		{"a word at a far offset", append([]bpf.Instruction{
			bpf.LoadAbsolute{Off: 40000, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipFalse: 1},
		}, verdict...)},
	} {
		t.Run(c.rule, func(t *testing.T) {
			vm, err := bpf.NewVM(c.program)
			if err != nil {
				t.Fatal(err)
			}
			hybrid, loadBytes := withStub(t, c.program, Hybrid), withStub(t, c.program, LoadBytes)
			for n := 14; n <= 64; n++ {
				packet := make([]byte, n)
				for i := range packet {
					packet[i] = byte(i)
				}
				if n > 14 {
					packet[14] = 0x45
				}
				want, err := vm.Run(packet)
				if err != nil {
					t.Fatal(err)
				}
				for form, p := range []*ebpf.Program{hybrid, loadBytes} {
					got, err := p.Run(&ebpf.RunOptions{Data: packet})
					if err != nil {
						t.Fatal(err)
					}
					if (got == 1) != (want > 0) {
						t.Errorf("verdict of form %v on %d bytes is %d, want that of %d", Form(form), n, got, want)
					}
				}
			}
		})
	}
}

// withStub loads a program that returns the verdict of cbpf, put into a stub that is as short as can be.
func withStub(t *testing.T, cbpf []bpf.Instruction, form Form) *ebpf.Program {
	t.Helper()
	stub := stubs[pcapng.Ethernet]
	spec := &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{"verdict": {
		Type:    ebpf.SchedCLS,
		License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R4, asm.R1, 76, asm.Word).WithSymbol("verdict"),
			asm.LoadMem(asm.R5, asm.R1, 80, asm.Word),
			asm.Call.Label(stub),
			asm.Return(),
			asm.Mov.Imm(asm.R0, 1).WithSymbol(stub),
			asm.JNE.Reg(asm.R4, asm.R5, "out"),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return().WithSymbol("out"),
		},
	}}}
	raw, err := bpf.Assemble(cbpf)
	if err != nil {
		t.Fatal(err)
	}
	p, err := parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	f := Filter{linkType: pcapng.Ethernet, program: p}
	if err := f.Inject(spec.Programs["verdict"], How{Form: form}); err != nil {
		t.Fatal(err)
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	t.Cleanup(coll.Close)
	return coll.Programs["verdict"]
}
