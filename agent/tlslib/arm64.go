// SPDX-License-Identifier: Apache-2.0

package tlslib

import (
	"encoding/binary"
	"math/bits"
)

// arm64 carries out the instructions by which compilers pass addresses on; of all others it forgets the register that they may
// write. Encodings: Arm Architecture Reference Manual for A-profile, C4.1.
type arm64 struct{}

func (arm64) arguments() [6]int { return [6]int{0, 1, 2, 3, 4, 5} }

func (arm64) start() (s state) {
	for i := range uint8(6) {
		s.regs[i] = value{kind: path, root: i}
	}
	s.regs[31] = value{kind: path, root: stack}
	return s
}

func (arm64) called(s *state) {
	for i := range 32 {
		if i < 19 || i == 30 {
			s.regs[i] = value{}
		}
		// Of v8 to v15 only the lower halves are kept.
		s.vecs[i] = value{}
	}
}

// sext is the number in the lower n bits of w, with its sign.
func sext(w uint32, n int) int64 { return int64(int32(w<<(32-n)) >> (32 - n)) }

func (arm64) step(s *state, b []byte, pc uint64) step {
	if len(b) < 4 {
		return step{}
	}
	w := binary.LittleEndian.Uint32(b)
	switch {
	case w>>16 == 0: // udf: padding
		return step{}
	case w>>26&7 == 5: // 101x: branches, exceptions, system
		return armBranch(w, pc)
	case w>>25&5 == 4: // x1x0: loads and stores
		return armMemory(s, w)
	case w>>26&7 == 4: // 100x: with an immediate
		armImmediate(s, w, pc)
	default:
		armOther(s, w)
	}
	return step{size: 4}
}

func armBranch(w uint32, pc uint64) step {
	t := step{size: 4}
	switch {
	case w>>26 == 5:
		t.flow, t.target = jump, pc+uint64(sext(w, 26)<<2)
	case w>>26 == 0x25:
		t.flow, t.target = call, pc+uint64(sext(w, 26)<<2)
	case w>>24 == 0x54 || w>>25&0x3f == 0x1a: // b.cond, cbz, cbnz
		t.flow, t.target = branch, pc+uint64(sext(w>>5, 19)<<2)
	case w>>25&0x3f == 0x1b: // tbz, tbnz
		t.flow, t.target = branch, pc+uint64(sext(w>>5, 14)<<2)
	case w>>25 == 0x6b: // by a register
		if t.flow = end; w>>21&0xf == 1 || w>>21&0xf == 9 { // blr, blraa
			t.flow = call
		}
	case w>>21 == 0x6a1: // brk
		t.flow = end
	}
	return t
}

func (s *state) set(r uint32, v value) { s.regs[r&31] = v }

// get is a register in an instruction in which 31 is not sp but zero.
func (s *state) get(r uint32) value {
	if r&31 == 31 {
		return constant(0)
	}
	return s.regs[r&31]
}

func armImmediate(s *state, w uint32, pc uint64) {
	rd, rn := w&31, w>>5&31
	var v value
	switch w >> 23 & 7 {
	case 0, 1: // adr, adrp
		imm := sext(w>>5&0x7ffff<<2|w>>29&3, 21)
		if v = constant(pc + uint64(imm)); w>>31 == 1 {
			v = constant(pc&^0xfff + uint64(imm)<<12)
		}
	case 2: // add, sub
		imm := int64(w >> 10 & 0xfff << (w >> 22 & 1 * 12))
		if w>>30&1 == 1 {
			imm = -imm
		}
		if w>>31 == 1 || s.regs[rn].kind == number {
			v = s.regs[rn].plus(imm)
		}
		if w>>29&1 == 1 && rd == 31 {
			return // cmp
		}
		s.set(rd, v)
		return
	case 4: // and, orr, eor, ands
		if w>>29&3 == 1 && rn == 31 {
			v = armBits(w)
		}
		if w>>29&3 != 3 && rd == 31 {
			s.set(rd, value{}) // and sp, ...: what is on the stack is not known any more
			return
		}
	case 5: // movn, movz, movk
		if w>>29&3 == 2 {
			v = constant(uint64(w>>5&0xffff) << (w >> 21 & 3 * 16))
		}
	}
	if rd != 31 {
		s.set(rd, v)
	}
}

// armBits is the constant of a logical immediate of 32 or 64 bits, not of a repeated one.
func armBits(w uint32) value {
	n, r, ones := w>>22&1, int(w>>16&63), int(w>>10&63)+1
	if n == 0 && (ones > 32 || w>>10&0x20 != 0) {
		return value{}
	}
	m := uint64(1)<<ones - 1
	if n == 1 {
		return constant(bits.RotateLeft64(m, -r))
	}
	return constant(uint64(bits.RotateLeft32(uint32(m), -r)))
}

func armOther(s *state, w uint32) {
	rd := w & 31
	switch {
	case w&0x7fe0ffe0 == 0x2a0003e0 && rd != 31: // mov: orr rd, zr, rm
		v := s.get(w >> 16)
		if w>>31 == 0 && v.kind != number {
			v = value{}
		}
		s.set(rd, v)
	case w&0xffe0fc00 == 0x8b000000 && rd != 31: // add rd, rn, rm
		v := value{}
		if a, b := s.get(w>>5), s.get(w>>16); b.kind == number {
			v = a.plus(b.off[0])
		} else if a.kind == number {
			v = b.plus(a.off[0])
		}
		s.set(rd, v)
	case w>>25&7 == 7: // vectors; some of these write to an integer register
		s.vecs[rd] = value{}
		if rd != 31 {
			s.set(rd, value{})
		}
	case rd != 31:
		s.set(rd, value{})
	}
}

// armAccess is a load or store taken apart.
type armAccess struct {
	load, pair, vec bool
	scale           uint32 // 1<<scale bytes of each register
	imm             int64
	mode            uint32 // 0 plain, 1 writes the address back after, 3 before
}

// access takes a load or store of an addressing mode with a constant apart.
func access(w uint32) (a armAccess, ok bool) {
	a.load, a.pair, a.vec = w>>22&1 == 1, w>>27&7 == 5, w>>26&1 == 1
	switch {
	case a.pair:
		opc := w >> 30
		if a.scale = 2 + opc; !a.vec {
			a.scale = 2 + opc>>1
		}
		if a.imm, a.mode = sext(w>>15, 7)<<a.scale, w>>23&3; a.mode == 2 {
			a.mode = 0
		}
	case w>>27&7 == 7 && (w>>24&3 == 1 || w>>24&3 == 0 && w>>21&1 == 0):
		a.scale = w >> 30
		if a.vec && w>>23&1 == 1 {
			a.scale += 4
		} else if !a.vec && w>>23&1 == 1 {
			a.load = true // with the sign, or a prefetch
		}
		if a.imm = int64(w>>10&0xfff) << a.scale; w>>24&3 == 0 {
			a.imm, a.mode = sext(w>>12, 9), w>>10&3
		}
	default: // by a register, exclusive, literal, several vectors
		return a, false
	}
	return a, true
}

func armMemory(s *state, w uint32) step {
	t := step{size: 4}
	rt, rn := w&31, w>>5&31
	a, ok := access(w)
	if !ok {
		if !a.vec && w>>21&0x1ff == 0x1c3 && w>>10&3 == 2 { // ldrb wt, [xn, xm]
			t.base = s.regs[rn]
			if i := s.get(w >> 16); i.kind == path {
				t.base = i
			}
		}
		if s.vecs[rt] = (value{}); !a.vec && rt != 31 {
			s.set(rt, value{})
		}
		return t
	}
	at := s.regs[rn]
	if a.mode != 1 {
		at = at.plus(a.imm)
	}
	back := s.regs[rn].plus(a.imm)
	if a.load {
		if !a.vec && a.scale == 0 {
			t.base = at
		}
		armLoad(s, a, w, at)
	} else {
		t.at, t.width = at, 1<<a.scale
		t.stored[0] = armStored(s, rt, a.vec, a.scale)
		if a.pair {
			t.stored[1] = armStored(s, w>>10, a.vec, a.scale)
		}
	}
	if a.mode&1 == 1 {
		s.set(rn, back)
	}
	return t
}

func armStored(s *state, r uint32, vec bool, scale uint32) value {
	switch {
	case vec && scale >= 3:
		return s.vecs[r&31]
	case !vec && scale == 3:
		return s.get(r)
	}
	return value{}
}

func armLoad(s *state, a armAccess, w uint32, at value) {
	put := func(r uint32, i int64) {
		v := value{}
		if a.scale >= 3 {
			v = s.load(at.plus(i << a.scale))
		}
		if r &= 31; a.vec {
			s.vecs[r] = v
		} else if r != 31 {
			s.regs[r] = v
		}
	}
	put(w, 0)
	if a.pair {
		put(w>>10, 1)
	}
}
