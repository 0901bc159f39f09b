// SPDX-License-Identifier: Apache-2.0

package tlslib

import "encoding/binary"

// amd64 carries out the instructions by which compilers pass addresses on; of all others it forgets the registers that they may
// write. Encodings: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, appendix A.
type amd64 struct{}

// Registers by their numbers in instructions.
const (
	rax, rcx, rdx, rsp, rsi, rdi = 0, 1, 2, 4, 6, 7
)

func (amd64) arguments() [6]int { return [6]int{rdi, rsi, rdx, rcx, 8, 9} }

func (a amd64) start() (s state) {
	for i, r := range a.arguments() {
		s.regs[r] = value{kind: path, root: uint8(i)}
	}
	s.regs[rsp] = value{kind: path, root: stack}
	return s
}

func (amd64) called(s *state) {
	for _, r := range [...]int{rax, rcx, rdx, rsi, rdi, 8, 9, 10, 11} {
		s.regs[r] = value{}
	}
	s.vecs = [32]value{}
}

// x86 is an instruction taken apart.
type x86 struct {
	rex    byte // W 8, R 4, X 2, B 1
	size16 bool // 0x66
	rep    byte // 0xf2, 0xf3 or 0
	space  int  // of opcodes: 0 one byte, 1 0f, 2 0f38, 3 0f3a
	vex    bool
	wide   bool // more than 16 bytes of a vector
	op     byte
	modrm  byte
	reg    int
	// The operand of modrm: a register if mod is 3, or memory at base + index + disp.
	rm          int
	base, index int // -1: none; -2: rip
	disp        int64
	imm         int64
	n           uint64 // bytes of it all
}

func (x *x86) memory() bool { return x.modrm>>6 != 3 }

// decode takes the instruction at the beginning of b apart. It is false for what is none or is not known.
func (x *x86) decode(b []byte) bool {
	i := 0
	// get is false-free: a short instruction ends with zeros and fails at the end.
	get := func() byte {
		if i++; i <= len(b) {
			return b[i-1]
		}
		return 0
	}
	x.op = get()
prefixes:
	for ; i < 15; x.op = get() {
		switch x.op {
		case 0x66:
			x.size16 = true
		case 0xf2, 0xf3:
			x.rep = x.op
		case 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x67, 0xf0:
		default:
			break prefixes
		}
	}
	if x.op>>4 == 4 {
		x.rex, x.op = x.op&15, get()
	}
	if !x.opcode(get) {
		return false
	}
	modrm, imm := x.form()
	if imm < 0 {
		return false
	}
	if modrm {
		i = x.operand(b, i)
	}
	if x.space == 0 && x.op|1 == 0xf7 && x.modrm>>3&7 < 2 { // test with a constant
		imm = 1
		if x.op == 0xf7 {
			imm = x.z()
		}
	}
	var tmp [8]byte
	if i > len(b) || imm > len(b)-i {
		return false
	}
	copy(tmp[:], b[i:i+imm])
	switch x.n = uint64(i + imm); imm {
	case 1:
		x.imm = int64(int8(tmp[0]))
	case 2:
		x.imm = int64(int16(binary.LittleEndian.Uint16(tmp[:])))
	case 4:
		x.imm = int64(int32(binary.LittleEndian.Uint32(tmp[:])))
	case 8:
		x.imm = int64(binary.LittleEndian.Uint64(tmp[:]))
	}
	return x.n <= 15
}

// opcode reads the opcode, and the prefixes of vector instructions.
func (x *x86) opcode(get func() byte) bool {
	switch x.op {
	case 0x0f:
		x.space, x.op = 1, get()
		switch x.op {
		case 0x38:
			x.space, x.op = 2, get()
		case 0x3a:
			x.space, x.op = 3, get()
		}
	case 0xc5: // VEX of 2 bytes
		p := get()
		x.vex, x.rex, x.space = true, ^p>>5&4, 1
		x.vector(p)
		x.op = get()
	case 0xc4: // VEX of 3
		p, q := get(), get()
		x.vex, x.rex, x.space = true, ^p>>5&7|q>>4&8, int(p&31)
		x.vector(q)
		x.op = get()
	case 0x62: // EVEX
		p, q, r := get(), get(), get()
		x.vex, x.rex, x.space = true, ^p>>5&7|q>>4&8, int(p&7)
		x.vector(q)
		x.wide = true // what it is exactly does not matter
		_ = r
		x.op = get()
	}
	return x.space <= 3 && (!x.vex || x.space > 0)
}

// vector reads what stands for the prefixes 66, f3 and f2, and the length.
func (x *x86) vector(p byte) {
	x.size16, x.rep, x.wide = p&3 == 1, [4]byte{0, 0, 0xf3, 0xf2}[p&3], p&4 != 0
}

// z is the size of a constant that is never 8 bytes.
func (x *x86) z() int {
	if x.size16 {
		return 2
	}
	return 4
}

// form tells whether the opcode has a modrm byte, and the size of its constant; negative if it is none.
func (x *x86) form() (modrm bool, imm int) {
	op := x.op
	switch x.space {
	case 1:
		return x.form0f()
	case 2:
		return true, 0
	case 3:
		return true, 1
	}
	switch {
	case op < 0x40:
		return op&7 < 4, [8]int{0, 0, 0, 0, 1, x.z(), -1, -1}[op&7]
	case op < 0x60, op >= 0x6c && op < 0x70, op >= 0x90 && op < 0x9a, op >= 0x9b && op < 0xa0:
		return false, 0
	case op < 0x63:
		return false, -1
	case op == 0x63:
		return true, 0
	case op < 0x70:
		return op&1 == 1, [4]int{x.z(), x.z(), 1, 1}[op&3]
	case op < 0x80, op&^7 == 0xb0, op&^7 == 0xe0, op == 0xeb, op == 0x6a, op == 0xa8, op == 0xcd:
		return false, 1
	case op < 0x84:
		return true, [4]int{1, x.z(), -1, 1}[op&3]
	case op < 0x90, op&^3 == 0xd0, op&^7 == 0xd8, op|1 == 0xff, op|1 == 0xf7:
		return true, 0
	case op&^3 == 0xa0:
		return false, 8
	case op&^7 == 0xb8:
		if x.rex&8 != 0 {
			return false, 8
		}
		return false, x.z()
	case op == 0xa9:
		return false, x.z()
	case op|1 == 0xc1, op == 0xc6:
		return true, 1
	case op == 0xc7:
		return true, x.z()
	case op == 0xc2, op == 0xca:
		return false, 2
	case op == 0xe8, op == 0xe9:
		return false, 4
	case op == 0x9a, op == 0xce, op&^3 == 0xd4 && op != 0xd7, op == 0xea, op == 0xc8:
		return false, -1
	}
	return false, 0
}

func (x *x86) form0f() (modrm bool, imm int) {
	op := x.op
	switch {
	case op >= 0x05 && op <= 0x0b, op == 0x0e, op&^7 == 0x30, op == 0x77, op == 0xa0, op == 0xa1, op == 0xa2,
		op == 0xa8, op == 0xa9, op == 0xaa, op&^7 == 0xc8:
		return false, 0
	case op&^15 == 0x80:
		return false, 4
	case op&^3 == 0x70 && op != 0x77, op == 0xa4, op == 0xac, op == 0xba, op == 0xc2, op >= 0xc4 && op <= 0xc6:
		return true, 1
	}
	return true, 0
}

// operand reads modrm, sib and displacement from i on and returns where they end.
func (x *x86) operand(b []byte, i int) int {
	if i >= len(b) {
		return len(b) + 1
	}
	x.modrm = b[i]
	i++
	x.reg, x.rm = int(x.modrm>>3&7|x.rex<<1&8), int(x.modrm&7|x.rex<<3&8)
	x.base, x.index = x.rm, -1
	mod := x.modrm >> 6
	if mod == 3 {
		return i
	}
	n := [3]int{0, 1, 4}[mod]
	if x.modrm&7 == 4 {
		if i >= len(b) {
			return len(b) + 1
		}
		sib := b[i]
		i++
		x.base = int(sib&7 | x.rex<<3&8)
		if x.index = int(sib>>3&7 | x.rex<<2&8); x.index == rsp {
			x.index = -1
		}
		if sib&7 == 5 && mod == 0 {
			x.base, n = -1, 4
		}
	} else if x.modrm&7 == 5 && mod == 0 {
		x.base, n = -2, 4
	}
	if i+n > len(b) {
		return len(b) + 1
	}
	switch n {
	case 1:
		x.disp = int64(int8(b[i]))
	case 4:
		x.disp = int64(int32(binary.LittleEndian.Uint32(b[i:])))
	}
	return i + n
}
