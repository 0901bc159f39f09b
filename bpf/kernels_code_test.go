// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"maps"
	"slices"
	"testing"

	"github.com/cilium/ebpf/asm"
)

// code is a program as it is loaded: its own function, and behind it those that it calls.
type code struct {
	insns  asm.Instructions
	offset []asm.RawInstructionOffset
	index  map[asm.RawInstructionOffset]int
	named  map[string]int
}

func read(insns asm.Instructions) *code {
	c := &code{insns, make([]asm.RawInstructionOffset, len(insns)), map[asm.RawInstructionOffset]int{}, map[string]int{}}
	for it := insns.Iterate(); it.Next(); {
		c.offset[it.Index], c.index[it.Offset] = it.Offset, it.Index
		if name := it.Ins.Symbol(); name != "" {
			c.named[name] = it.Index
		}
	}
	return c
}

// target is where a jump or a call goes, len(c.insns) if nowhere.
func (c *code) target(i int) int {
	in := c.insns[i]
	if at, ok := c.named[in.Reference()]; ok {
		return at
	}
	distance := int64(in.Offset)
	if in.IsFunctionCall() || in.OpCode.Class() == asm.Jump32Class && in.OpCode.JumpOp() == asm.Ja {
		distance = in.Constant
	}
	if at, ok := c.index[c.offset[i]+1+asm.RawInstructionOffset(distance)]; ok {
		return at
	}
	return len(c.insns)
}

// next is where code goes on within the function.
func (c *code) next(i int) []int {
	op := c.insns[i].OpCode
	switch {
	case !op.Class().IsJump() || op.JumpOp() == asm.Call:
		return []int{i + 1}
	case op.JumpOp() == asm.Exit:
		return nil
	case op.JumpOp() == asm.Ja:
		return []int{c.target(i)}
	}
	return []int{i + 1, c.target(i)}
}

// loops tells whether code can come to an instruction twice within a function.
// Kernels before 5.3 refuse that; a jump back that makes no circle they take.
func (c *code) loops() bool {
	const onPath, done = 1, 2
	state := make([]int, len(c.insns))
	var circle func(i int) bool
	circle = func(i int) bool {
		if i >= len(c.insns) || state[i] == done {
			return false
		}
		if state[i] == onPath {
			return true
		}
		state[i] = onPath
		if slices.ContainsFunc(c.next(i), circle) {
			return true
		}
		state[i] = done
		return false
	}
	for i := range c.insns {
		if state[i] == 0 && circle(i) {
			return true
		}
	}
	return false
}

// stack returns how many bytes of stack the function at an instruction and those that it calls
// take at most, and in how many frames, itself one of them. Each takes a multiple of 32:
// check_max_stack_depth of verifier.c in 4.19 (70a87ffea8ac); newer kernels take less.
func (c *code) stack(from, frame int) (bytes, frames int) {
	own := max(c.frame(from), 1)
	own = (own + 31) / 32 * 32
	bytes, frames = own, frame
	if frame > maxFrames { // a function that calls itself has no end
		return bytes, frames
	}
	for i, end := from, c.end(from); i < end; i++ {
		if c.insns[i].IsFunctionCall() && c.target(i) < len(c.insns) {
			b, f := c.stack(c.target(i), frame+1)
			bytes, frames = max(bytes, own+b), max(frames, f)
		}
	}
	return bytes, frames
}

// end is where the function at an instruction ends: where the next that is called begins.
func (c *code) end(from int) int {
	end := len(c.insns)
	for i, in := range c.insns {
		if at := c.target(i); in.IsFunctionCall() && at > from {
			end = min(end, at)
		}
	}
	return end
}

// frame is how many bytes below the frame pointer a function reaches. A pointer into the stack is
// followed from the move to the addition as it is written down, not around jumps: clang writes
// the two together.
func (c *code) frame(from int) int {
	depth := 0
	at := map[asm.Register]int{asm.RFP: 0}
	for i, end := from, c.end(from); i < end; i++ {
		in, op := c.insns[i], c.insns[i].OpCode
		class := op.Class()
		base, ok := at[in.Dst]
		switch {
		case class == asm.LdXClass:
			if source, ok := at[in.Src]; ok {
				depth = max(depth, -source-int(in.Offset))
			}
			delete(at, in.Dst)
		case class.IsStore() && ok:
			depth = max(depth, -base-int(in.Offset))
		case isCopy(in):
			delete(at, in.Dst)
			if source, ok := at[in.Src]; ok {
				at[in.Dst] = source
			}
		case op == asm.Add.Op(asm.ImmSource) && ok:
			at[in.Dst] = base + int(in.Constant)
			depth = max(depth, -at[in.Dst])
		case class.IsALU() || class == asm.LdClass:
			delete(at, in.Dst)
		case op.JumpOp() == asm.Call:
			maps.DeleteFunc(at, func(r asm.Register, _ int) bool { return r <= asm.R5 })
		}
	}
	return depth
}

// isCopy tells whether an instruction copies all of a register to another.
func isCopy(in asm.Instruction) bool {
	return in.OpCode == asm.Mov.Op(asm.RegSource)
}

// held is where the context may be: in which registers, and in which slots of eight bytes of the
// function's stack, counted down from the frame pointer.
type held struct {
	registers uint16
	slots     uint64
}

func (h held) in(r asm.Register) bool { return h.registers>>r&1 == 1 }

// scratch are the registers that a call leaves undefined; all but the first are its arguments.
const scratch = 1<<asm.R0 | 1<<asm.R1 | 1<<asm.R2 | 1<<asm.R3 | 1<<asm.R4 | 1<<asm.R5

// after is where the context may be behind an instruction. Not followed is a context that a
// function returns, or that is reached by another pointer to the stack than the frame pointer.
func (h held) after(in asm.Instruction) held {
	set := func(r asm.Register, is bool) {
		h.registers &^= 1 << r
		if is {
			h.registers |= 1 << r
		}
	}
	op := in.OpCode
	slot := uint64(1) << ((-in.Offset - 1) / 8 & 63)
	switch class := op.Class(); {
	case op.JumpOp() == asm.Call || isAbs(in):
		h.registers &^= scratch
	case isCopy(in):
		set(in.Dst, h.in(in.Src))
	case class.IsALU() && op.ALUOp() == asm.Mov, class == asm.LdClass:
		set(in.Dst, false)
	case class == asm.LdXClass:
		set(in.Dst, in.Src == asm.RFP && op.Size() == asm.DWord && h.slots&slot != 0)
	case class.IsStore() && in.Dst == asm.RFP:
		h.slots &^= slot
		if class == asm.StXClass && op.Size() == asm.DWord && h.in(in.Src) {
			h.slots |= slot
		}
	}
	return h
}

// contexts returns where the context may be before each instruction, on any way there.
func (c *code) contexts() []held {
	before := make([]held, len(c.insns))
	reached := make([]bool, len(c.insns))
	var work []int
	join := func(i int, h held) {
		if i >= len(c.insns) {
			return
		}
		h = held{h.registers | before[i].registers, h.slots | before[i].slots}
		if !reached[i] || h != before[i] {
			before[i], reached[i], work = h, true, append(work, i)
		}
	}
	join(0, held{registers: 1 << asm.R1})
	for len(work) > 0 {
		i := work[len(work)-1]
		work = work[:len(work)-1]
		if c.insns[i].IsFunctionCall() {
			join(c.target(i), held{registers: before[i].registers & scratch &^ (1 << asm.R0)})
		}
		for _, to := range c.next(i) {
			join(to, before[i].after(c.insns[i]))
		}
	}
	return before
}

func TestLoop(t *testing.T) {
	nop, exit := asm.Mov.Imm(asm.R0, 0), asm.Return()
	wide := asm.LoadImm(asm.R1, 1<<40, asm.DWord)
	far := asm.LongJump("")
	far.Constant = -2
	for _, c := range []struct {
		rule  string
		insns asm.Instructions
		is    bool
	}{
		{"straight on", asm.Instructions{nop, nop, exit}, false},
		{"a jump to itself", asm.Instructions{nop, to(asm.JEq.Imm(asm.R0, 0, ""), -1), exit}, true},
		{"a 32-bit jump to itself", asm.Instructions{nop, to(asm.JEq.Imm32(asm.R0, 0, ""), -1), exit}, true},
		{"a jump back into the way here", asm.Instructions{nop, nop, to(asm.JEq.Imm(asm.R0, 0, ""), -2), exit}, true},
		{"that jump by name", asm.Instructions{nop, nop.WithSymbol("back"), asm.JEq.Imm(asm.R0, 0, "back"), exit}, true},
		{"that jump across an instruction of two slots", asm.Instructions{nop, wide, to(asm.JEq.Imm(asm.R0, 0, ""), -3), exit}, true},
		{"a far jump back", asm.Instructions{nop, far, exit}, true},
		{"a jump back to the common end", asm.Instructions{to(asm.JEq.Imm(asm.R0, 0, ""), 2), nop, exit, nop, to(asm.Ja.Label(""), -3)}, false},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if read(c.insns).loops() != c.is {
				t.Errorf("loops is %v", !c.is)
			}
		})
	}
}

// to gives a jump its distance.
func to(in asm.Instruction, offset int16) asm.Instruction {
	in.Offset = offset
	return in
}
