// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// The tests here hold the checks themselves against what they have to find.

// flips fails unless a check finds what a feature brought before it, and nothing from there on.
func flips(t *testing.T, f feature, what string, why func(line kernel) []string) {
	t.Helper()
	if f.since == 0 || f.source == "" {
		t.Errorf("%s has no kernel or no source", what)
	}
	before := strings.Join(why(f.since-1), "; ")
	if want := fmt.Sprintf("%s is of %v (%s)", what, f.since, f.source); !strings.Contains(before, want) {
		t.Errorf("before %v it says %q, not %q", f.since, before, want)
	}
	if from := why(f.since); len(from) > 0 {
		t.Errorf("from %v on it says %q", f.since, from)
	}
}

// kernelsUpTo are the versions from 4.18 to the one before.
func kernelsUpTo(end kernel) iter.Seq[kernel] {
	return func(yield func(kernel) bool) {
		for k := kernel(4_18); k < end; k++ {
			if (k > 4_20 && k < 5_00) || (k > 5_19 && k < 6_00) {
				continue
			}
			if !yield(k) {
				return
			}
		}
	}
}

func TestNewerInstructions(t *testing.T) {
	load := func(src asm.Register) asm.Instruction {
		in := asm.LoadImm(asm.R1, 0, asm.DWord)
		in.Src = src
		return in
	}
	kfunc := asm.Call.Label("")
	kfunc.Src = asm.PseudoKfuncCall
	cast := to(asm.Mov.Reg(asm.R1, asm.R2), 1)
	mayGoto := asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.JCOND)}
	examples := map[string][]asm.Instruction{
		"a jump if less": {asm.JLT.Imm(asm.R1, 0, ""), asm.JLE.Imm(asm.R1, 0, ""),
			asm.JSLT.Imm(asm.R1, 0, ""), asm.JSLE.Imm(asm.R1, 0, "")},
		"a call of a function":                {asm.Call.Label("f")},
		"an arithmetic shift of 32 bits":      {asm.ArSh.Imm32(asm.R1, 1), asm.ArSh.Reg32(asm.R1, asm.R2)},
		"a 32-bit jump":                       {asm.JEq.Imm32(asm.R1, 0, ""), asm.JLT.Reg32(asm.R1, asm.R2, "")},
		"an address in a map":                 {asm.LoadMapValue(asm.R1, 0, 0)},
		"a kernel variable":                   {load(asm.R3)},
		"an atomic that is no plain addition": {asm.Xchg.Mem(asm.R1, asm.R2, asm.DWord, 0), asm.FetchAdd.Mem(asm.R1, asm.R2, asm.DWord, 0)},
		"a callback":                          {load(asm.PseudoFunc)},
		"a kfunc":                             {kfunc},
		"a map by its index":                  {load(asm.R5), load(asm.R6)},
		"a far jump":                          {asm.LongJump("")},
		"a signed division":                   {asm.SDiv.Reg(asm.R1, asm.R2), asm.SMod.Imm(asm.R1, 2)},
		"a move with sign extension":          {asm.MovSX8.Reg(asm.R1, asm.R2), asm.MovSX16.Reg(asm.R1, asm.R2), asm.MovSX32.Reg(asm.R1, asm.R2)},
		"a load with sign extension":          {asm.LoadMemSX(asm.R1, asm.R2, 0, asm.Byte)},
		"a byte swap on every machine":        {asm.BSwap(asm.R1, asm.Half)},
		"a cast of an arena's address":        {cast},
		"may_goto":                            {mayGoto},
	}
	if len(examples) != len(rules) {
		t.Errorf("%d examples of %d rules", len(examples), len(rules))
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			if len(examples[r.name]) == 0 {
				t.Error("there is no example")
			}
			for _, in := range examples[r.name] {
				flips(t, r.feature, r.name, func(line kernel) []string { return reasons(newer(in, ebpf.SchedCLS, line)) })
			}
		})
	}
	t.Run("a CO-RE relocation", func(t *testing.T) {
		in := btf.WithCORERelocationMetadata(asm.Mov.Imm(asm.R1, 0), &btf.CORERelocation{})
		flips(t, kernelBTF, "a CO-RE relocation", func(line kernel) []string { return reasons(newer(in, ebpf.SchedCLS, line)) })
	})
}

func TestNewerKnowsWhatIsOld(t *testing.T) {
	for _, in := range []asm.Instruction{
		asm.Mov.Reg(asm.R1, asm.R2), asm.Mov.Reg32(asm.R1, asm.R2), asm.ArSh.Imm(asm.R1, 1), asm.RSh.Imm32(asm.R1, 1),
		asm.Div.Reg(asm.R1, asm.R2), asm.HostTo(asm.BE, asm.R1, asm.Half), asm.JEq.Imm(asm.R1, 0, ""), asm.Ja.Label(""), asm.Return(),
		asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, 0), asm.LoadMem(asm.R1, asm.R2, 0, asm.Half), asm.LoadMapPtr(asm.R1, 0),
		asm.LoadImm(asm.R1, 1<<40, asm.DWord), asm.LoadAbs(0, asm.Byte), asm.LoadInd(asm.R0, asm.R1, 0, asm.Byte),
	} {
		if why := newer(in, ebpf.SocketFilter, 3_19); why != "" {
			t.Errorf("%v: %s", in, why)
		}
	}
}

func TestNewerHelpers(t *testing.T) {
	for of, p := range programTypes {
		for f, feat := range p.helpers {
			t.Run(fmt.Sprintf("%v for %v", f, of), func(t *testing.T) {
				flips(t, feat, fmt.Sprintf("%v for %v", f, of), func(line kernel) []string { return reasons(newer(f.Call(), of, line)) })
			})
		}
	}
	callx := asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call).SetSource(asm.RegSource), Dst: asm.R1}
	load, call := asm.LoadImm(asm.R1, 0, asm.DWord), asm.Call.Label("")
	load.Src, call.Src = asm.R7, asm.R3
	for _, c := range []struct {
		rule string
		in   asm.Instruction
		of   ebpf.ProgramType
		line kernel
		want string
	}{
		{"a classifier's helper in a socket filter", asm.FnGetSocketUid.Call(), ebpf.SocketFilter, 5_10, "is in no table"},
		{"a socket filter's helper that classifiers had before", asm.FnPerfEventOutput.Call(), ebpf.SocketFilter, 4_19, "is of 5.4"},
		{"a helper that is in no table", asm.FnLoop.Call(), ebpf.SchedCLS, 6_18, "is in no table"},
		{"a call by a register", callx, ebpf.SchedCLS, 6_18, "a call of an unknown kind"},
		{"a call that bpf.h does not name", call, ebpf.SchedCLS, 6_18, "a call of an unknown kind"},
		{"a load that bpf.h does not name", load, ebpf.SchedCLS, 6_18, "a load of an unknown kind"},
	} {
		t.Run(c.rule, func(t *testing.T) { says(t, reasons(newer(c.in, c.of, c.line)), c.want) })
	}
}

// says fails unless one of the reasons is wanted, or none is where none is wanted.
func says(t *testing.T, why []string, want string) {
	t.Helper()
	if got := strings.Join(why, "; "); !strings.Contains(got, want) || want == "" && got != "" {
		t.Errorf("says %q, not %q", got, want)
	}
}

func TestNewerMaps(t *testing.T) {
	for of, f := range mapTypes {
		t.Run(of.String(), func(t *testing.T) {
			flips(t, f, of.String(), func(line kernel) []string { return newerMap(&ebpf.MapSpec{Type: of}, line) })
		})
	}
	for flag, f := range mapFlags {
		name := fmt.Sprintf("flag %#x", flag)
		t.Run(name, func(t *testing.T) {
			flips(t, f, name, func(line kernel) []string { return newerMap(&ebpf.MapSpec{Type: ebpf.Array, Flags: flag}, line) })
		})
	}
	for _, c := range []struct {
		rule, what string
		feature
		spec *ebpf.MapSpec
	}{
		{"constants of C", "global data", globalData, &ebpf.MapSpec{Type: ebpf.Array, Name: ".rodata"}},
		{"the map in a map", "RingBuf", mapTypes[ebpf.RingBuf], &ebpf.MapSpec{Type: ebpf.HashOfMaps, InnerMap: &ebpf.MapSpec{Type: ebpf.RingBuf}}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			flips(t, c.feature, c.what, func(line kernel) []string { return newerMap(c.spec, line) })
		})
	}
	says(t, newerMap(&ebpf.MapSpec{Type: ebpf.Arena}, 6_18), "Arena is in no table")
	says(t, newerMap(&ebpf.MapSpec{Type: ebpf.Array, Flags: 1<<31 | 1}, 6_18), "flag 0x80000000 is in no table")
	t.Run("a variable", func(t *testing.T) {
		spec := &ebpf.CollectionSpec{Variables: map[string]*ebpf.VariableSpec{"v": nil}}
		flips(t, globalData, "variable v: global data", func(line kernel) []string { return refusals(t, spec, line) })
	})
}

func TestNewerRegisters(t *testing.T) {
	says(t, reasons(newerField(20*8, 8, ebpf.Kprobe, 5_08)), "")
	says(t, reasons(newerField(21*8, 8, ebpf.Kprobe, 6_18)), "pt_regs: 8 bytes from offset 168")
	says(t, reasons(newerField(4, 8, ebpf.Kprobe, 6_18)), "pt_regs: 8 bytes from offset 4")
}

func TestNewerFields(t *testing.T) {
	for _, f := range fields {
		for _, of := range []ebpf.ProgramType{ebpf.SchedCLS, ebpf.SocketFilter} {
			for at := f.from; at < f.to; at += f.size {
				t.Run(fmt.Sprintf("%s at %d for %v", f.name, at, of), func(t *testing.T) {
					if of == ebpf.SocketFilter && !f.socket {
						says(t, reasons(newerField(at, f.size, of, 6_18)), "not for SocketFilter")
						return
					}
					flips(t, f.feature, f.name, func(line kernel) []string { return reasons(newerField(at, f.size, of, line)) })
				})
			}
		}
	}
	for _, c := range []struct {
		rule       string
		from, size int
		line       kernel
		want       string
	}{
		{"the first byte of a field", 24, 1, 4_19, ""},
		{"the second byte of a field, before 5.0", 25, 1, 4_20, "from within a field is of 5.0"},
		{"the second byte of a field", 25, 1, 5_00, ""},
		{"the upper half of a field, before 5.0", 26, 2, 4_19, "from within a field is of 5.0"},
		{"two fields at once", 16, 8, 5_10, "8 bytes from offset 16"},
		{"half of a pointer to the packet", 76, 2, 5_10, "2 bytes from offset 76"},
		{"half of the socket's pointer", 168, 4, 5_10, "4 bytes from offset 168"},
		{"two elements of cb", 48, 8, 4_19, ""},
		{"a byte within cb", 51, 1, 4_19, ""},
		{"behind cb", 64, 8, 4_19, "8 bytes from offset 64"},
		{"at no multiple of the size", 50, 4, 4_19, "4 bytes from offset 50"},
		{"what only socket programs have", 88, 4, 5_10, "in no table"},
		{"before the context", -4, 4, 5_10, "in no table"},
		{"what is behind the table", 184, 8, 5_10, "in no table"},
	} {
		t.Run(c.rule, func(t *testing.T) { says(t, reasons(newerField(c.from, c.size, ebpf.SchedCLS, c.line)), c.want) })
	}
}

// TestNewerContext follows the context to loads of tstamp, of 5.0: found is what may be one of them.
func TestNewerContext(t *testing.T) {
	const tstamp = 152
	load := func(r asm.Register) asm.Instruction { return asm.LoadMem(asm.R0, r, tstamp, asm.DWord) }
	copied, zero, exit := asm.Mov.Reg(asm.R6, asm.R1), asm.Mov.Imm(asm.R6, 0), asm.Return()
	spill := asm.StoreMem(asm.RFP, -8, asm.R1, asm.DWord)
	fill := asm.LoadMem(asm.R7, asm.RFP, -8, asm.DWord)
	const found, none = "tstamp is of 5.0", ""
	for _, c := range []struct {
		rule  string
		insns asm.Instructions
		want  string
	}{
		{"in the register of the first argument", asm.Instructions{load(asm.R1), exit}, found},
		{"in no other", asm.Instructions{load(asm.R2), exit}, none},
		{"copied", asm.Instructions{copied, load(asm.R6), exit}, found},
		{"kept across a call", asm.Instructions{copied, asm.FnMapLookupElem.Call(), load(asm.R6), exit}, found},
		{"lost in a call", asm.Instructions{asm.FnMapLookupElem.Call(), load(asm.R1), exit}, none},
		{"lost in a load as of cBPF", asm.Instructions{copied, asm.LoadAbs(0, asm.Byte), load(asm.R1), exit}, none},
		{"written over by a constant", asm.Instructions{copied, zero, load(asm.R6), exit}, none},
		{"written over by a load", asm.Instructions{copied, asm.LoadMem(asm.R6, asm.R6, 0, asm.Word), load(asm.R6), exit}, none},
		{"written over by a map", asm.Instructions{copied, asm.LoadMapPtr(asm.R6, 0), load(asm.R6), exit}, none},
		{"written over on one way of two", asm.Instructions{copied, to(asm.JEq.Imm(asm.R2, 0, ""), 1), zero, load(asm.R6), exit}, found},
		{"written over on both", asm.Instructions{copied, to(asm.JEq.Imm(asm.R2, 0, ""), 2), zero, to(asm.Ja.Label(""), 1), zero, load(asm.R6), exit}, none},
		{"spilled and filled", asm.Instructions{spill, fill, load(asm.R7), exit}, found},
		{"spilled to another slot", asm.Instructions{asm.StoreMem(asm.RFP, -16, asm.R1, asm.DWord), fill, load(asm.R7), exit}, none},
		{"half of it spilled", asm.Instructions{asm.StoreMem(asm.RFP, -8, asm.R1, asm.Word), fill, load(asm.R7), exit}, none},
		{"half of it filled", asm.Instructions{spill, asm.LoadMem(asm.R7, asm.RFP, -8, asm.Word), load(asm.R7), exit}, none},
		{"spilled and written over", asm.Instructions{spill, asm.StoreMem(asm.RFP, -4, asm.R2, asm.Byte), fill, load(asm.R7), exit}, none},
		{"handed to a function", asm.Instructions{asm.Mov.Reg(asm.R3, asm.R1), asm.Call.Label("f"), exit, load(asm.R3).WithSymbol("f"), exit}, found},
		{"kept from a function", asm.Instructions{copied, asm.Call.Label("f"), exit, load(asm.R6).WithSymbol("f"), exit}, none},
		{"lost in a function", asm.Instructions{asm.Call.Label("f"), load(asm.R1), exit, asm.Mov.Imm(asm.R0, 0).WithSymbol("f"), exit}, none},
		{"around a loop", asm.Instructions{load(asm.R6), asm.Mov.Reg(asm.R6, asm.R7), asm.Mov.Reg(asm.R7, asm.R1), to(asm.Ja.Label(""), -4)}, found},
		{"written to", asm.Instructions{copied, asm.StoreMem(asm.R6, 48, asm.R2, asm.Word), exit}, "a store to the context"},
		{"a constant written to it", asm.Instructions{asm.StoreImm(asm.R1, 48, 0, asm.Word), exit}, "a store to the context"},
		{"added to", asm.Instructions{copied, asm.Add.Imm(asm.R6, tstamp), exit}, "arithmetic on the context"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			var why []string
			context := read(c.insns).contexts()
			for i, in := range c.insns {
				why = append(why, reasons(newerAccess(in, context[i], ebpf.SchedCLS, 4_19))...)
			}
			says(t, why, c.want)
		})
	}
}

func TestNewerPrograms(t *testing.T) {
	nop, exit := asm.Mov.Imm(asm.R0, 0), asm.Return()
	call, function := asm.Call.Label("f"), asm.Instructions{nop.WithSymbol("f"), exit}
	long := append(slices.Repeat(asm.Instructions{asm.LoadImm(asm.R0, 0, asm.DWord)}, legacyInsns/2), exit)
	for _, c := range []struct {
		rule, what string
		feature
		insns asm.Instructions
	}{
		{"more than 4,096 slots", "a program of 4097 instructions", longPrograms, long},
		{"a loop", "a loop", loops, asm.Instructions{nop, to(asm.Ja.Label(""), -2)}},
		{"a load as of cBPF beside a function", "a load as of cBPF beside a call of a function", absInFunctions,
			slices.Concat(asm.Instructions{copyOfContext, asm.LoadAbs(0, asm.Byte), call, exit}, function)},
		{"a CO-RE relocation", "a CO-RE relocation", kernelBTF,
			asm.Instructions{btf.WithCORERelocationMetadata(nop, &btf.CORERelocation{}), exit}},
		{"a field of the context", "tstamp", fields[slices.IndexFunc(fields, func(f field) bool { return f.name == "tstamp" })].feature,
			asm.Instructions{asm.LoadMem(asm.R0, asm.R1, 152, asm.DWord), exit}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			flips(t, c.feature, c.what, func(line kernel) []string {
				return newerProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: c.insns}, line)
			})
		})
	}
	for of, p := range programTypes {
		t.Run(of.String(), func(t *testing.T) {
			flips(t, p.feature, of.String(), func(line kernel) []string {
				return newerProgram(&ebpf.ProgramSpec{Type: of, Instructions: asm.Instructions{nop, exit}}, line)
			})
		})
	}
	t.Run("a tail call beside a function", func(t *testing.T) {
		insns := slices.Concat(asm.Instructions{asm.FnTailCall.Call(), call, exit}, function)
		flips(t, tailInFunctions, "a tail call beside a call of a function", func(line kernel) []string { return newerMixture(insns, line) })
		says(t, newerMixture(asm.Instructions{asm.FnTailCall.Call(), asm.LoadAbs(0, asm.Byte), exit}, 4_19), "")
	})
	t.Run("4,096 slots", func(t *testing.T) {
		says(t, newerProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: long[1:]}, 4_19), "")
	})
	t.Run("flags", func(t *testing.T) {
		says(t, newerProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Flags: 1, Instructions: asm.Instructions{nop, exit}}, 6_18), "flags 0x1 are in no table")
	})
	t.Run("a type that is in no table", func(t *testing.T) {
		says(t, newerProgram(&ebpf.ProgramSpec{Type: ebpf.Netfilter, Instructions: asm.Instructions{nop, exit}}, 6_18), "Netfilter is in no table")
	})
}

var copyOfContext = asm.Mov.Reg(asm.R6, asm.R1)

func TestNewerStack(t *testing.T) {
	nop, exit, call := asm.Mov.Imm(asm.R0, 0), asm.Return(), asm.Call.Label
	byPointer := func(n int32) asm.Instructions {
		return asm.Instructions{asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -n)}
	}
	var deep asm.Instructions
	for i := range maxFrames {
		deep = append(deep, call(fmt.Sprint(i+1)).WithSymbol(fmt.Sprint(i)), exit)
	}
	for _, c := range []struct {
		rule          string
		insns         asm.Instructions
		bytes, frames int
	}{
		{"none is 32", asm.Instructions{nop, exit}, 32, 1},
		{"32 is 32", asm.Instructions{asm.StoreImm(asm.RFP, -32, 0, asm.Word), exit}, 32, 1},
		{"40 is 64", asm.Instructions{asm.LoadMem(asm.R0, asm.RFP, -40, asm.DWord), exit}, 64, 1},
		{"by a pointer", append(byPointer(500), exit), 512, 1},
		{"by a store through a pointer", append(byPointer(500), asm.StoreImm(asm.R2, -40, 0, asm.Word), exit), 544, 1},
		{"by a load through a pointer", append(byPointer(500), asm.LoadMem(asm.R0, asm.R2, -40, asm.Word), exit), 544, 1},
		{"not by a number", asm.Instructions{asm.Mov.Imm(asm.R2, 0), asm.Add.Imm(asm.R2, -4000), exit}, 32, 1},
		{"not by a number in place of a pointer", append(byPointer(8), asm.Mov.Imm(asm.R2, 0), asm.Add.Imm(asm.R2, -4000), exit), 32, 1},
		{"not by a map in place of a pointer", append(byPointer(8), asm.LoadMapPtr(asm.R2, 0), asm.Add.Imm(asm.R2, -4000), exit), 32, 1},
		{"not by what was loaded in place of a pointer", append(byPointer(8), asm.LoadMem(asm.R2, asm.R2, 0, asm.Byte),
			asm.Add.Imm(asm.R2, -4000), exit), 32, 1},
		{"not by a pointer that a call has undone", append(byPointer(8), asm.FnMapLookupElem.Call(), asm.Add.Imm(asm.R2, -4000), exit), 32, 1},
		{"with the function that is called", slices.Concat(byPointer(8), asm.Instructions{call("f"), exit,
			asm.StoreImm(asm.RFP, -100, 0, asm.Word).WithSymbol("f"), exit}), 160, 2},
		{"with the greater of two, not with both", slices.Concat(asm.Instructions{call("f"), call("g"), exit,
			asm.StoreImm(asm.RFP, -64, 0, asm.Word).WithSymbol("f"), exit, asm.StoreImm(asm.RFP, -96, 0, asm.Word).WithSymbol("g"), exit}), 128, 2},
		{"along a chain of calls", slices.Concat(deep, asm.Instructions{nop.WithSymbol("8"), exit}), 9 * 32, 9},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if bytes, frames := read(c.insns).stack(0, 1); bytes != c.bytes || frames != c.frames {
				t.Errorf("%d bytes in %d functions, not %d in %d", bytes, frames, c.bytes, c.frames)
			}
		})
	}
	for _, c := range []struct {
		rule  string
		insns asm.Instructions
		want  string
	}{
		{"512 bytes are taken", asm.Instructions{asm.StoreImm(asm.RFP, -512, 0, asm.Word), exit}, ""},
		{"more are not", asm.Instructions{asm.StoreImm(asm.RFP, -516, 0, asm.Word), exit}, "544 bytes of stack in 1 functions"},
		{"nor are nine functions", slices.Concat(deep, asm.Instructions{nop.WithSymbol("8"), exit}), "288 bytes of stack in 9 functions"},
		{"nor is one that calls itself", asm.Instructions{call("f").WithSymbol("f"), exit}, "in 9 functions"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			says(t, newerProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, Instructions: c.insns}, 4_19), c.want)
		})
	}
}
