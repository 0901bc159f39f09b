// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"droidtap/bpf"
)

// kernel is a version, 4.19 as 4_19.
type kernel int

// newest is the kernel that a variant may need.
var newest = map[string]kernel{
	"legacy": 4_19,
	"ring":   5_08,
}

// helpers are the kernels that brought what the objects call, to classifiers:
// docs/kernel-versions.md of iovisor/bcc, and include/uapi/linux/bpf.h.
var helpers = map[asm.BuiltinFunc]kernel{
	asm.FnMapLookupElem:   4_01, // 3.19, classifiers 4.1
	asm.FnMapUpdateElem:   4_01,
	asm.FnSkbLoadBytes:    4_05,
	asm.FnPerfEventOutput: 4_08, // 4.4; with the skb's bytes 555c8a8623a3, 4.8
	asm.FnGetSocketUid:    4_12,
	asm.FnRingbufReserve:  5_08,
	asm.FnRingbufSubmit:   5_08,
	asm.FnRingbufDiscard:  5_08,
	asm.FnRingbufQuery:    5_08,
	// 5.8. Where the kernel has none agent/capture puts bpf_ktime_get_ns in its place.
	asm.FnKtimeGetBootNs: 4_01,
}

var mapTypes = map[ebpf.MapType]kernel{
	ebpf.Array:          3_19,
	ebpf.Hash:           3_19,
	ebpf.PerfEventArray: 4_03,
	ebpf.PerCPUHash:     4_06,
	ebpf.LRUHash:        4_10,
	ebpf.RingBuf:        5_08,
}

const (
	globalData kernel = 5_02
	loops      kernel = 5_03
)

// legacyInsns is how many instructions a program has at most before 5.2.
const legacyInsns = 4096

// TestObjectsFitTheirKernels holds an object against what the oldest kernel of its
// variant has, by reading it: a newer kernel takes it in any case.
func TestObjectsFitTheirKernels(t *testing.T) {
	for _, name := range bpf.Names() {
		t.Run(name, func(t *testing.T) {
			most, ok := newest[strings.Split(name, ".")[1]]
			if !ok {
				t.Fatal("the variant is not in the table")
			}
			spec := open(t, name)
			for _, m := range spec.Maps {
				checkMap(t, m, most)
			}
			if len(spec.Variables) > 0 && most < globalData {
				t.Errorf("there is global data, of 5.2: %v", spec.Variables)
			}
			for _, p := range spec.Programs {
				if most < globalData && len(p.Instructions) > legacyInsns {
					t.Errorf("program %s has %d instructions, more than %d", p.Name, len(p.Instructions), legacyInsns)
				}
				if most < loops && loop(p.Instructions) {
					t.Errorf("program %s has a loop, of 5.3", p.Name)
				}
				for i := range p.Instructions {
					if why := newer(p.Instructions[i], most); why != "" {
						t.Errorf("program %s, instruction %d, %v: %s", p.Name, i, p.Instructions[i], why)
					}
				}
			}
		})
	}
}

func checkMap(t *testing.T, m *ebpf.MapSpec, most kernel) {
	t.Helper()
	since, ok := mapTypes[m.Type]
	if !ok || since > most {
		t.Errorf("map %s is a %v", m.Name, m.Type)
	}
	if strings.HasPrefix(m.Name, ".") && most < globalData {
		t.Errorf("map %s is global data, of 5.2", m.Name)
	}
	const readOnly = unix.BPF_F_RDONLY_PROG // constants of C, as old as global data
	if m.Flags != 0 && (m.Flags != readOnly || most < globalData) {
		t.Errorf("map %s has flags %#x", m.Name, m.Flags)
	}
}

// newer tells what about an instruction is newer than a kernel, or than ISA v2.
func newer(in asm.Instruction, most kernel) string {
	op := in.OpCode
	switch class := op.Class(); {
	case in.IsKfuncCall():
		return "a kfunc"
	case in.IsBuiltinCall():
		if since, ok := helpers[asm.BuiltinFunc(in.Constant)]; !ok || since > most {
			return "the helper is not in the table, or too new"
		}
	case in.IsLoadOfFunctionPointer():
		return "a callback, 5.13"
	case class == asm.Jump32Class:
		return "a 32-bit jump or a far one, ISA v3 and v4"
	case class.IsALU():
		switch op.ALUOp() {
		case asm.SDiv, asm.SMod, asm.MovSX8, asm.MovSX16, asm.MovSX32:
			return "signed division or sign extension, ISA v4"
		case asm.Swap:
			if class == asm.ALU64Class {
				return "a byte swap of ISA v4"
			}
		}
	case op.IsDWordLoad():
		if in.Src == asm.PseudoMapValue && most < globalData {
			return "a load of global data, 5.2"
		}
	case class.IsLoad() && op.Mode() == asm.MemSXMode:
		return "a load with sign extension, ISA v4"
	case class.IsStore() && op.Mode() == asm.AtomicMode && op.AtomicOp() != asm.AddAtomic:
		return "an atomic that is no plain addition, 5.12"
	}
	return ""
}

// TestNewer holds the check itself against what it has to find.
func TestNewer(t *testing.T) {
	for _, c := range []struct {
		rule string
		in   asm.Instruction
		most kernel
		is   bool
	}{
		{"move", asm.Mov.Reg(asm.R1, asm.R2), 4_19, false},
		{"32-bit move", asm.Mov.Reg32(asm.R1, asm.R2), 4_19, false},
		{"jump", asm.JEq.Imm(asm.R1, 0, ""), 4_19, false},
		{"32-bit jump", asm.JEq.Imm32(asm.R1, 0, ""), 5_08, true},
		{"byte swap", asm.HostTo(asm.BE, asm.R1, asm.Half), 4_19, false},
		{"byte swap of ISA v4", asm.BSwap(asm.R1, asm.Half), 5_08, true},
		{"division", asm.Div.Reg(asm.R1, asm.R2), 4_19, false},
		{"signed division", asm.SDiv.Reg(asm.R1, asm.R2), 5_08, true},
		{"addition in memory", asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, 0), 4_19, false},
		{"exchange in memory", asm.Xchg.Mem(asm.R1, asm.R2, asm.DWord, 0), 5_08, true},
		{"helper of 4.12", asm.FnGetSocketUid.Call(), 4_19, false},
		{"helper of 5.8 in 4.19", asm.FnRingbufReserve.Call(), 4_19, true},
		{"helper of 5.8 in 5.8", asm.FnRingbufReserve.Call(), 5_08, false},
		{"helper that is in no table", asm.FnLoop.Call(), 5_08, true},
		{"global data in 4.19", asm.LoadMapValue(asm.R1, 0, 0), 4_19, true},
		{"global data in 5.8", asm.LoadMapValue(asm.R1, 0, 0), 5_08, false},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if why := newer(c.in, c.most); (why != "") != c.is {
				t.Errorf("says %q", why)
			}
		})
	}
}

// loop tells whether code can come to an instruction twice within a function.
// Kernels before 5.3 refuse that; a jump back that makes no circle they take.
func loop(insns asm.Instructions) bool {
	index := map[asm.RawInstructionOffset]int{}
	offset := make([]asm.RawInstructionOffset, len(insns))
	for it := insns.Iterate(); it.Next(); {
		index[it.Offset], offset[it.Index] = it.Index, it.Offset
	}
	next := func(i int) []int {
		op := insns[i].OpCode
		if op.Class() != asm.JumpClass || op.JumpOp() == asm.Call {
			return []int{i + 1}
		}
		to := index[offset[i]+1+asm.RawInstructionOffset(insns[i].Offset)]
		switch op.JumpOp() {
		case asm.Exit:
			return nil
		case asm.Ja:
			return []int{to}
		}
		return []int{i + 1, to}
	}
	const onPath, done = 1, 2
	state := make([]int, len(insns))
	var circle func(i int) bool
	circle = func(i int) bool {
		if i >= len(insns) || state[i] == done {
			return false
		}
		if state[i] == onPath {
			return true
		}
		state[i] = onPath
		if slices.ContainsFunc(next(i), circle) {
			return true
		}
		state[i] = done
		return false
	}
	for i := range insns {
		if state[i] == 0 && circle(i) {
			return true
		}
	}
	return false
}

func TestLoop(t *testing.T) {
	to := func(in asm.Instruction, offset int16) asm.Instruction {
		in.Offset = offset
		return in
	}
	nop, exit := asm.Mov.Imm(asm.R0, 0), asm.Return()
	wide := asm.LoadImm(asm.R1, 1<<40, asm.DWord)
	for _, c := range []struct {
		rule  string
		insns asm.Instructions
		is    bool
	}{
		{"straight on", asm.Instructions{nop, nop, exit}, false},
		{"a jump to itself", asm.Instructions{nop, to(asm.JEq.Imm(asm.R0, 0, ""), -1), exit}, true},
		{"a jump back into the way here", asm.Instructions{nop, nop, to(asm.JEq.Imm(asm.R0, 0, ""), -2), exit}, true},
		{"that jump across an instruction of two slots", asm.Instructions{nop, wide, to(asm.JEq.Imm(asm.R0, 0, ""), -3), exit}, true},
		{"a jump back to the common end", asm.Instructions{to(asm.JEq.Imm(asm.R0, 0, ""), 2), nop, exit, nop, to(asm.Ja.Label(""), -3)}, false},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if loop(c.insns) != c.is {
				t.Errorf("loop is %v", !c.is)
			}
		})
	}
}
