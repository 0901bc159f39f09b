// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"math"

	"github.com/cilium/ebpf/asm"
)

// label is a place in the code that jumps lead to.
type label int

// assembler collects code whose jumps all lead forwards.
type assembler struct {
	code    asm.Instructions
	places  []int  // of each label, or unbound
	bound   int    // where the last label is that something jumps to
	tooFar  bool   // a jump does not reach its end
	wanted  []bool // of each label: something jumps to it
	pending []jump // not yet linked, in the order of their places
}

type jump struct {
	from int
	to   label
}

const unbound = -1

func (a *assembler) label() label {
	a.places = append(a.places, unbound)
	a.wanted = append(a.wanted, false)
	return label(len(a.places) - 1)
}

func (a *assembler) emit(insns ...asm.Instruction) { a.code = append(a.code, insns...) }

// jump emits a jump to a label that is not bound yet.
func (a *assembler) jump(in asm.Instruction, to label) {
	in.Metadata = asm.Metadata{} // a name to jump to
	a.wanted[to] = true
	a.pending = append(a.pending, jump{len(a.code), to})
	a.code = append(a.code, in)
}

func (a *assembler) always(to label) { a.jump(ja, to) }

// ja is an unconditional jump whose offset is not yet known.
var ja = asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Ja)}

// bind puts a label behind what was emitted.
func (a *assembler) bind(l label) {
	a.places[l] = len(a.code)
	if a.wanted[l] {
		a.bound = len(a.code)
	}
}

// relay keeps jumps within reach: their offset is an int16. To each label that an early jump is
// still waiting for it emits one more jump, for the early one to end at. within is the most
// instructions that are emitted before the next call.
func (a *assembler) relay(within int) {
	if len(a.pending) == 0 || len(a.code)+within+len(a.pending)-a.pending[0].from < math.MaxInt16 {
		return
	}
	late := map[label]bool{}
	var order []label
	rest := a.pending[:0]
	for _, j := range a.pending {
		switch {
		case a.places[j.to] != unbound:
			a.link(j, a.places[j.to])
		case !late[j.to]:
			late[j.to] = true
			order = append(order, j.to)
			rest = append(rest, j)
		default:
			rest = append(rest, j)
		}
	}
	a.pending = rest
	if len(order) == 0 {
		return
	}
	over, through := len(a.code), a.reached()
	if through {
		a.emit(ja)
	}
	relays := map[label]int{}
	for _, to := range order {
		relays[to] = len(a.code)
		a.emit(ja)
	}
	for _, j := range a.pending {
		a.link(j, relays[j.to])
	}
	a.pending = a.pending[:0]
	for _, to := range order {
		a.pending = append(a.pending, jump{relays[to], to})
	}
	if through {
		a.link(jump{from: over}, len(a.code))
	}
}

// reached tells whether what is emitted next can be reached: the verifier refuses the rest.
func (a *assembler) reached() bool {
	if len(a.code) == 0 || a.bound == len(a.code) {
		return true
	}
	last := a.code[len(a.code)-1].OpCode.JumpOp()
	return last != asm.Ja && last != asm.Exit
}

func (a *assembler) link(j jump, place int) {
	distance := place - j.from - 1
	a.tooFar = a.tooFar || distance > math.MaxInt16
	a.code[j.from].Offset = int16(distance)
}

// finish returns the code, with every jump at its place. All labels that are jumped to are bound.
func (a *assembler) finish() (asm.Instructions, error) {
	for _, j := range a.pending {
		a.link(j, a.places[j.to])
	}
	if a.tooFar {
		return nil, ErrTooLarge
	}
	return a.code, nil
}
