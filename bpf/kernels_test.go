// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"droidtap/bpf"
)

// TestObjectsFitTheirKernels holds an object against what the kernels of its variant have, by
// reading it: a newer kernel takes it in any case. What it cannot read out of an object is how
// many steps the verifier takes over it, of which it grants 131,072 on 4.19.
func TestObjectsFitTheirKernels(t *testing.T) {
	for _, name := range bpf.Names() {
		if len(linesOf(name)) == 0 {
			t.Errorf("the variant of %s is not in the table", name)
		}
		for _, line := range linesOf(name) {
			t.Run(fmt.Sprintf("%s on %v", name, line), func(t *testing.T) {
				for _, why := range refusals(t, open(t, name), line) {
					t.Error(why)
				}
			})
		}
	}
}

// linesOf are the kernels of an object, by its name in bpf.Names.
func linesOf(name string) []kernel { return lines[strings.Split(name, ".")[1]] }

// refusals tells what of an object a kernel has not.
func refusals(t *testing.T, spec *ebpf.CollectionSpec, line kernel) []string {
	t.Helper()
	var all []string
	add := func(where string, why []string) {
		for _, w := range why {
			all = append(all, where+": "+w)
		}
	}
	for name, m := range spec.Maps {
		add("map "+name, newerMap(m, line))
	}
	for name := range spec.Variables {
		add("variable "+name, reasons(globalData.missing("global data", line)))
	}
	for name, p := range spec.Programs {
		add("program "+name, newerProgram(p, line))
	}
	add("types", newerTypes(t, spec, line))
	return all
}

// reasons are those that are any.
func reasons(why ...string) []string {
	return slices.DeleteFunc(why, func(w string) bool { return w == "" })
}

func newerMap(m *ebpf.MapSpec, line kernel) []string {
	why := reasons(mapTypes[m.Type].missing(m.Type.String(), line))
	for flags := m.Flags; flags != 0; flags &= flags - 1 {
		lowest := flags & -flags
		why = append(why, reasons(mapFlags[lowest].missing(fmt.Sprintf("flag %#x", lowest), line))...)
	}
	if strings.HasPrefix(m.Name, ".") {
		why = append(why, reasons(globalData.missing("global data", line))...)
	}
	if m.InnerMap != nil {
		why = append(why, newerMap(m.InnerMap, line)...)
	}
	return why
}

func newerProgram(p *ebpf.ProgramSpec, line kernel) []string {
	why := reasons(programTypes[p.Type].missing(p.Type.String(), line))
	if p.Flags != 0 {
		why = append(why, fmt.Sprintf("flags %#x are in no table", p.Flags))
	}
	c := read(p.Instructions)
	// The limit counts slots: a load of 64 bits has two.
	if n := p.Instructions.Size() / asm.InstructionSize; n > legacyInsns {
		why = append(why, reasons(longPrograms.missing(fmt.Sprintf("a program of %d instructions", n), line))...)
	}
	if c.loops() {
		why = append(why, reasons(loops.missing("a loop", line))...)
	}
	if bytes, frames := c.stack(0, 1); bytes > maxStack || frames > maxFrames {
		why = append(why, fmt.Sprintf("there are %d bytes of stack in %d functions", bytes, frames))
	}
	why = append(why, newerMixture(p.Instructions, line)...)
	context := c.contexts()
	for i, in := range p.Instructions {
		for _, w := range reasons(newer(in, p.Type, line), newerAccess(in, context[i], p.Type, line)) {
			why = append(why, fmt.Sprintf("instruction %d, %v: %s", i, in, w))
		}
	}
	return why
}

// newerMixture tells what a program with more functions than one may not do.
func newerMixture(insns asm.Instructions, line kernel) []string {
	if !slices.ContainsFunc(insns, func(in asm.Instruction) bool { return in.IsFunctionCall() }) {
		return nil
	}
	var why []string
	if slices.ContainsFunc(insns, isAbs) {
		why = reasons(absInFunctions.missing("a load as of cBPF beside a call of a function", line))
	}
	if slices.ContainsFunc(insns, func(in asm.Instruction) bool {
		return in.IsBuiltinCall() && asm.BuiltinFunc(in.Constant) == asm.FnTailCall
	}) {
		why = append(why, reasons(tailInFunctions.missing("a tail call beside a call of a function", line))...)
	}
	return why
}

func isAbs(in asm.Instruction) bool {
	return in.OpCode.Class() == asm.LdClass && (in.OpCode.Mode() == asm.AbsMode || in.OpCode.Mode() == asm.IndMode)
}

// newer tells what about an instruction in a program of a type a kernel has not.
func newer(in asm.Instruction, of ebpf.ProgramType, line kernel) string {
	op := in.OpCode
	for _, r := range rules {
		if why := r.missing(r.name, line); why != "" && r.is(in, op) {
			return why
		}
	}
	switch {
	case btf.CORERelocationMetadata(&in) != nil:
		return kernelBTF.missing("a CO-RE relocation", line)
	case op.JumpOp() == asm.Call && (in.Src > asm.PseudoKfuncCall || op.Source() == asm.RegSource):
		return "a call of an unknown kind"
	case op.IsDWordLoad() && in.Src > asm.R6: // BPF_PSEUDO_MAP_IDX_VALUE is the last
		return "a load of an unknown kind"
	case in.IsBuiltinCall():
		f := asm.BuiltinFunc(in.Constant)
		return programTypes[of].helpers[f].missing(fmt.Sprintf("%v for %v", f, of), line)
	}
	return ""
}

// newerAccess tells what a kernel refuses that an instruction does with the context.
func newerAccess(in asm.Instruction, context held, of ebpf.ProgramType, line kernel) string {
	op := in.OpCode
	switch class := op.Class(); {
	case class == asm.LdXClass && context.in(in.Src):
		return newerField(int(in.Offset), op.Size().Sizeof(), of, line)
	case class.IsStore() && context.in(in.Dst):
		return "a store to the context: the agent changes nothing"
	case class.IsALU() && op.ALUOp() != asm.Mov && context.in(in.Dst):
		return "arithmetic on the context: what is at the sum may not be read (28e33f9d78ee, 4.18)"
	}
	return ""
}

// newerField tells why a kernel refuses a load of size bytes from an offset of the context: struct __sk_buff, or struct pt_regs
// (kprobe_prog_is_valid_access of kernel/trace/bpf_trace.c).
func newerField(offset, size int, of ebpf.ProgramType, line kernel) string {
	if of == ebpf.Kprobe {
		if offset%size != 0 || offset+size > ptRegs {
			return fmt.Sprintf("pt_regs: %d bytes from offset %d", size, offset)
		}
		return ""
	}
	i := slices.IndexFunc(fields, func(f field) bool { return f.from <= offset && offset < f.to })
	if i < 0 {
		return fmt.Sprintf("offset %d of the context is in no table", offset)
	}
	f := fields[i]
	if of != ebpf.SchedCLS && !f.socket {
		return fmt.Sprintf("%s: not for %v", f.name, of)
	}
	if why := f.missing(f.name, line); why != "" {
		return why
	}
	inside := (offset - f.from) % f.size
	switch {
	case offset%size != 0 || offset+size > f.to,
		f.access == wholly && size != f.size,
		f.access == partly && inside+size > f.size:
		return fmt.Sprintf("%s: %d bytes from offset %d", f.name, size, offset)
	case f.access == partly && inside > 0:
		return narrowInside.missing(f.name+": a load from within a field", line)
	}
	return ""
}
