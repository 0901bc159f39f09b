// SPDX-License-Identifier: Apache-2.0

package tlslib

func (a amd64) step(s *state, b []byte, pc uint64) step {
	var x x86
	if !x.decode(b) {
		return step{}
	}
	t := step{size: x.n}
	switch {
	case x.space == 1 && !x.vex:
		x.twoBytes(s, pc, &t)
	case x.space != 0:
		x.vectors(s, pc, &t)
	default:
		x.oneByte(s, pc, &t)
	}
	return t
}

// address is that of the operand in memory, of an instruction at pc.
func (x *x86) address(s *state, pc uint64) value {
	v := constant(uint64(x.disp))
	switch x.base {
	case -1:
	case -2:
		v = constant(pc + x.n + uint64(x.disp))
	default:
		v = s.regs[x.base].plus(x.disp)
	}
	if x.index < 0 {
		return v
	}
	if i := s.regs[x.index]; i.kind == number && i.off[0] == 0 {
		return v
	}
	return value{}
}

// unindexed is the address of the operand in memory with an index of 0.
func (x *x86) unindexed(s *state) value {
	if x.base < 0 {
		return value{}
	}
	if x.index >= 0 && s.regs[x.index].kind == path {
		return s.regs[x.index].plus(x.disp)
	}
	return s.regs[x.base].plus(x.disp)
}

// write forgets the operand of modrm.
func (x *x86) write(s *state, pc uint64, t *step) {
	if !x.memory() {
		s.regs[x.rm] = value{}
	} else {
		t.at, t.width = x.address(s, pc), 8
	}
}

func (x *x86) is64() bool { return x.rex&8 != 0 }

// narrow is what 32 bits of a value are.
func (x *x86) narrow(v value) value {
	if x.is64() {
		return v
	}
	if v.kind != number || x.size16 {
		return value{}
	}
	return constant(uint64(uint32(v.off[0])))
}

func (x *x86) oneByte(s *state, pc uint64, t *step) {
	if x.stack(s, t) || x.control(pc, t) {
		return
	}
	op, low := x.op, int(x.op&7|x.rex<<3&8)
	switch {
	case op < 0x40:
		x.arithmetic(s, pc, t)
	case op == 0x63, op == 0x69, op == 0x6b:
		s.regs[x.reg] = value{}
	case op == 0x80, op == 0x81, op == 0x83:
		x.withConstant(s, pc, t)
	case op|1 == 0x85: // test
	case op|1 == 0x87: // xchg
		s.regs[x.reg] = value{}
		x.write(s, pc, t)
	case op >= 0x88 && op <= 0x8b:
		x.mov(s, pc, t)
	case op == 0x8d:
		if s.regs[x.reg] = (value{}); x.memory() {
			s.regs[x.reg] = x.narrow(x.address(s, pc))
		}
	case op == 0x8f:
		x.write(s, pc, t)
	case op > 0x90 && op < 0x98:
		s.regs[rax], s.regs[low] = value{}, value{}
	case op == 0x98, op == 0xac, op == 0xad:
		s.regs[rax] = value{}
	case op == 0x99:
		s.regs[rdx] = value{}
	case op|1 == 0xa5: // movs
		t.copied = true
		s.regs[rsi], s.regs[rdi], s.regs[rcx] = value{}, value{}, value{}
	case op|1 == 0xab, op|1 == 0xa7, op|1 == 0xaf: // stos, cmps, scas
		s.regs[rsi], s.regs[rdi], s.regs[rcx] = value{}, value{}, value{}
	case op&^7 == 0xb0:
		s.regs[low] = value{}
	case op&^7 == 0xb8:
		s.regs[low] = x.narrow(constant(uint64(x.imm)))
	case op|1 == 0xc1, op&^3 == 0xd0: // shifts
		x.write(s, pc, t)
	case op|1 == 0xc7: // mov of a constant
		x.write(s, pc, t)
		if v := constant(uint64(x.imm)); op == 0xc7 && !x.memory() {
			s.regs[x.rm] = x.narrow(v)
		}
	case op|1 == 0xf7 && x.modrm>>3&7 >= 2: // not, neg, mul, div
		if x.modrm>>3&7 >= 4 {
			s.regs[rax], s.regs[rdx] = value{}, value{}
		} else {
			x.write(s, pc, t)
		}
	case op|1 == 0xff:
		x.group5(s, pc, t)
	}
}

// stack carries out push, pop and leave.
func (x *x86) stack(s *state, t *step) bool {
	op, low := x.op, int(x.op&7|x.rex<<3&8)
	switch {
	case op&^7 == 0x50: // push
		s.regs[rsp] = s.regs[rsp].plus(-8)
		t.at, t.width, t.stored[0] = s.regs[rsp], 8, s.regs[low]
	case op&^7 == 0x58: // pop
		s.regs[low] = s.load(s.regs[rsp])
		s.regs[rsp] = s.regs[rsp].plus(8)
	case op == 0x68, op == 0x6a:
		s.regs[rsp] = s.regs[rsp].plus(-8)
		t.at, t.width, t.stored[0] = s.regs[rsp], 8, constant(uint64(x.imm))
	case op == 0xc9: // leave
		s.regs[rsp] = s.regs[5].plus(8)
		s.regs[5] = s.load(s.regs[5])
	default:
		return false
	}
	return true
}

// control is true for a jump, a call or an end.
func (x *x86) control(pc uint64, t *step) bool {
	op, target := x.op, pc+x.n+uint64(x.imm)
	switch {
	case op&^15 == 0x70, op&^3 == 0xe0: // jcc, loop, jrcxz
		t.flow, t.target = branch, target
	case op == 0xe8:
		t.flow, t.target = call, target
	case op == 0xe9, op == 0xeb:
		t.flow, t.target = jump, target
	case op|1 == 0xc3, op == 0xcc, op == 0xcf, op == 0xf4: // ret, int3, iret, hlt
		t.flow = end
	default:
		return false
	}
	return true
}

// group5 is inc, dec, call, jmp and push of an operand.
func (x *x86) group5(s *state, pc uint64, t *step) {
	switch x.modrm >> 3 & 7 {
	case 0, 1:
		x.write(s, pc, t)
	case 2, 3:
		t.flow = call
		// -fno-plt calls by the slot of the symbol: it stands for the function.
		if x.memory() && x.base == -2 {
			t.target = pc + x.n + uint64(x.disp)
		}
	case 4, 5:
		// The walk ends there, but the arguments of a last call are told.
		t.flow = jump
	case 6:
		s.regs[rsp] = s.regs[rsp].plus(-8)
		t.at, t.width = s.regs[rsp], 8
	}
}

func (x *x86) mov(s *state, pc uint64, t *step) {
	wide := x.op&1 == 1
	switch {
	case x.op < 0x8a: // to the operand
		v := value{}
		if wide {
			v = x.narrow(s.regs[x.reg])
		}
		if x.write(s, pc, t); !x.memory() {
			s.regs[x.rm] = v
		} else if t.stored[0] = v; !x.is64() {
			t.stored[0] = value{}
		}
	case !wide:
		s.regs[x.reg] = value{}
	case !x.memory():
		s.regs[x.reg] = x.narrow(s.regs[x.rm])
	case x.is64():
		s.regs[x.reg] = s.load(x.address(s, pc))
	default:
		s.regs[x.reg] = value{}
	}
}

// arithmetic is add, or, adc, sbb, and, sub, xor, cmp of two operands.
func (x *x86) arithmetic(s *state, pc uint64, t *step) {
	kind := x.op >> 3
	if kind == 7 {
		return
	}
	switch x.op & 7 {
	case 0:
		x.write(s, pc, t)
	case 1:
		zero, sum := kind == 6 && !x.memory() && x.reg == x.rm, value{}
		if !x.memory() && kind == 0 && x.is64() {
			sum = added(s.regs[x.rm], s.regs[x.reg])
		}
		if x.write(s, pc, t); zero {
			s.regs[x.rm] = constant(0)
		} else if !x.memory() {
			s.regs[x.rm] = sum
		}
	case 2, 3:
		v := value{}
		if !x.memory() && x.op&1 == 1 {
			if kind == 6 && x.reg == x.rm {
				v = constant(0)
			} else if kind == 0 && x.is64() {
				v = added(s.regs[x.reg], s.regs[x.rm])
			}
		}
		s.regs[x.reg] = v
	case 4:
		s.regs[rax] = value{}
	case 5:
		if s.regs[rax] = x.narrow(s.regs[rax]).plus(x.imm); kind != 0 {
			s.regs[rax] = value{}
		}
	}
}

func added(a, b value) value {
	if b.kind == number {
		return a.plus(b.off[0])
	}
	if a.kind == number {
		return b.plus(a.off[0])
	}
	return value{}
}

// withConstant is add, or, adc, sbb, and, sub, xor, cmp with a constant.
func (x *x86) withConstant(s *state, pc uint64, t *step) {
	kind, v := x.modrm>>3&7, value{}
	if kind == 7 {
		return
	}
	if !x.memory() && x.op != 0x80 {
		if v = x.narrow(s.regs[x.rm]); kind == 0 {
			v = v.plus(x.imm)
		} else if kind == 5 {
			v = v.plus(-x.imm)
		} else {
			v = value{}
		}
	}
	if x.write(s, pc, t); !x.memory() {
		s.regs[x.rm] = v
	}
}

func (x *x86) twoBytes(s *state, pc uint64, t *step) {
	op := x.op
	switch {
	case op&^15 == 0x80:
		t.flow, t.target = branch, pc+x.n+uint64(x.imm)
	case op == 0x0b, op == 0xb9: // ud2
		t.flow = end
	case op == 0x05 || op == 0x34: // syscall
		s.regs[rax], s.regs[rcx], s.regs[11] = value{}, value{}, value{}
	case op == 0xa2 || op == 0x01 || op == 0x31 || op == 0xc7:
		s.regs[rax], s.regs[rcx], s.regs[rdx], s.regs[3] = value{}, value{}, value{}, value{}
	case op&^15 == 0x40, op|1 == 0xb7, op|1 == 0xbf, op == 0xaf, op|1 == 0xbd, op == 0xb8:
		if op == 0xb6 && x.memory() {
			t.base = x.unindexed(s)
		}
		s.regs[x.reg] = value{} // cmovcc, movzx, movsx, imul, bit scans
	case op&^15 == 0x90: // setcc
		x.write(s, pc, t)
	case op == 0xa3: // bt
	case op >= 0xa4 && op <= 0xad && op&7 >= 3, op == 0xb3, op == 0xba, op == 0xbb, op|1 == 0xb1, op|1 == 0xc1:
		x.write(s, pc, t)
		if s.regs[rax] = (value{}); op|1 == 0xc1 {
			s.regs[x.reg] = value{}
		}
	case op&^7 == 0xc8: // bswap
		s.regs[op&7|x.rex<<3&8] = value{}
	case op == 0x0d, op >= 0x18 && op <= 0x1f: // hints, endbr64
	default:
		x.vectors(s, pc, t)
	}
}

// vectors carries out the moves of 8 and 16 bytes between memory and vector registers, and forgets what others write.
func (x *x86) vectors(s *state, pc uint64, t *step) {
	op := x.op
	load := op == 0x10 || op == 0x28 || op == 0x6f || op == 0x7e && x.rep == 0xf3
	store := op == 0x11 || op == 0x29 || op == 0x7f || op == 0xd6
	switch {
	case x.space == 1 && load && x.memory():
		s.vecs[x.reg] = s.load(x.address(s, pc))
	case x.space == 1 && load:
		s.vecs[x.reg] = s.vecs[x.rm]
	case x.space == 1 && store && x.memory():
		t.at, t.width, t.stored[0] = x.address(s, pc), 16, s.vecs[x.reg]
	default:
		s.vecs[x.reg] = value{}
		if x.memory() {
			return
		}
		// Some write to integer registers: which does not matter.
		s.vecs[x.rm] = value{}
		if op == 0x7e || op == 0xd7 || op == 0x50 || op == 0xc5 || op&^1 == 0x2c || x.space > 1 || x.vex {
			s.regs[x.reg], s.regs[x.rm] = value{}, value{}
		}
	}
}
