// SPDX-License-Identifier: Apache-2.0

package tlslib

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// Where the parts of a synthetic file are: addresses differ from offsets, as they do in real ones.
const (
	textOff, textAddr = 0x1000, 0x21000
	logAt             = textAddr + 0x100 // the function that is handed the secrets
	secondAt          = textAddr + 0x180 // a second copy of it
	accessorAt        = textAddr + 0x200
	callersAt         = textAddr + 0x300
	memcpyAt          = textAddr + 0xf00
	dataOff, dataAddr = 0x2000, 0x42000
	tableOff          = 0x800 // the dynamic section, symbols, names and their hash table, at the same addresses
)

// program puts code and data of a synthetic file together.
type program struct {
	machine elf.Machine
	fixed   bool
	text    [0x1000]byte
	data    []byte
	export  string // the accessor's name
	pc      uint64
	labels  map[string]uint64
}

func newProgram(machine elf.Machine) *program {
	return &program{machine: machine, pc: callersAt, labels: map[string]uint64{}}
}

// text of the program: zeros between.
func (p *program) emit(b ...byte) {
	copy(p.text[p.pc-textAddr:], b)
	p.pc += uint64(len(b))
}

func (p *program) words(w ...uint32) {
	for _, w := range w {
		p.emit(binary.LittleEndian.AppendUint32(nil, w)...)
	}
}

// string puts text into the data.
func (p *program) string(s string) uint64 {
	p.data = append(p.data, s...)
	return dataAddr + uint64(len(p.data)-len(s))
}

func (p *program) label(name string) uint64 {
	if p.labels[name] == 0 {
		p.labels[name] = p.string(name + "\x00")
	}
	return p.labels[name]
}

func (p *program) relative(op []byte, target uint64) {
	end := p.pc + uint64(len(op)) + 4
	p.emit(binary.LittleEndian.AppendUint32(op, uint32(target-end))...)
}

// pass calls a function with a label as its second argument.
func (p *program) pass(name string, target uint64) {
	p.second(p.label(name))
	p.call(target)
}

// second sets the second argument.
func (p *program) second(addr uint64) {
	switch {
	case p.machine == elf.EM_AARCH64:
		p.address(1, addr)
	case p.fixed:
		p.emit(binary.LittleEndian.AppendUint32([]byte{0xbe}, uint32(addr))...)
	default:
		p.relative([]byte{0x48, 0x8d, 0x35}, addr) // lea rsi, [rip + addr]
	}
}

// address is adrp and add of arm64.
func (p *program) address(reg uint32, addr uint64) {
	pages := uint32(addr>>12 - p.pc>>12)
	p.words(0x90000000|pages&3<<29|pages>>2&0x7ffff<<5|reg, 0x91000000|uint32(addr&0xfff)<<10|reg<<5|reg)
}

func (p *program) call(target uint64) {
	if p.machine == elf.EM_AARCH64 {
		p.words(0x94000000 | uint32(target-p.pc)>>2&0x3ffffff)
		return
	}
	p.relative([]byte{0xe8}, target)
}

// passKept calls a function with a label that is kept in a register over another call.
func (p *program) passKept(name string, target uint64) {
	if p.machine == elf.EM_AARCH64 {
		p.address(19, p.label(name))
		p.call(memcpyAt)
		p.words(0xaa1303e1) // mov x1, x19
	} else {
		p.relative([]byte{0x48, 0x8d, 0x1d}, p.label(name)) // lea rbx, [rip + label]
		p.emit(0x48, 0x89, 0x5c, 0x24, 0x18)                // mov [rsp + 0x18], rbx
		p.call(memcpyAt)
		p.emit(0x48, 0x8b, 0x74, 0x24, 0x18) // mov rsi, [rsp + 0x18]
	}
	p.call(target)
}

// passLast jumps to a function, as to the last call of another.
func (p *program) passLast(name string, target uint64) {
	if p.second(p.label(name)); p.machine == elf.EM_AARCH64 {
		p.words(0x14000000 | uint32(target-p.pc)>>2&0x3ffffff)
		return
	}
	p.relative([]byte{0xe9}, target)
}

// accessor is as compilers make SSL_get_client_random with a pointer at 0x58 and the random at 0x70 from that.
func (p *program) accessor() {
	was := p.pc
	p.pc, p.export = accessorAt, "SSL_get_client_random"
	if p.machine == elf.EM_AARCH64 {
		p.words(0xd503233f, // paciasp
			0xb4000062, // cbz x2, +12
			0xf9402c08, // ldr x8, [x0, #0x58]
			0xaa0103e0, // mov x0, x1
			0x9101c101, // add x1, x8, #0x70
			0x14000000|uint32(memcpyAt-p.pc-20)>>2&0x3ffffff)
	} else {
		p.emit(0xf3, 0x0f, 0x1e, 0xfa, // endbr64
			0x48, 0x89, 0xf0, // mov rax, rsi
			0x48, 0x85, 0xd2, 0x74, 0x0b, // test rdx, rdx; je +11
			0x48, 0x8b, 0x77, 0x58, // mov rsi, [rdi + 0x58]
			0x48, 0x83, 0xc6, 0x70, // add rsi, 0x70
			0x48, 0x89, 0xc7) // mov rdi, rax
		p.relative([]byte{0xe9}, memcpyAt)
	}
	p.pc = was
}

// inline is an accessor that copies 16 and 16 bytes by itself, from 0x160 on in the struct.
func (p *program) inline() {
	was := p.pc
	p.pc, p.export = accessorAt, "SSL_get_client_random"
	if p.machine == elf.EM_AARCH64 {
		p.words(0x91058008, // add x8, x0, #0x160
			0xad400500, // ldp q0, q1, [x8]
			0xad000420, // stp q0, q1, [x1]
			0xd65f03c0)
	} else {
		p.emit(0x0f, 0x10, 0x87, 0x60, 1, 0, 0, // movups xmm0, [rdi + 0x160]
			0xc5, 0xfa, 0x6f, 0x8f, 0x70, 1, 0, 0, // vmovdqu xmm1, [rdi + 0x170]
			0x0f, 0x11, 0x06, // movups [rsi], xmm0
			0xc5, 0xfa, 0x7f, 0x4e, 0x10, // vmovdqu [rsi + 0x10], xmm1
			0xc3)
	}
	p.pc = was
}

// writer is a function that hands the random on, as OpenSSL's does: a pointer at 0xa8, the random at 0xb8 from that.
func (p *program) writer(at uint64) {
	was := p.pc
	if p.pc = at; p.machine == elf.EM_AARCH64 {
		p.words(0xf9405402, // ldr x2, [x0, #0xa8]
			0xd2800403, // mov x3, #0x20
			0x9102e042) // add x2, x2, #0xb8
	} else {
		p.emit(0x48, 0x8b, 0x87, 0xa8, 0, 0, 0, // mov rax, [rdi + 0xa8]
			0xb9, 0x20, 0, 0, 0, // mov ecx, 0x20
			0x48, 0x8d, 0x90, 0xb8, 0, 0, 0) // lea rdx, [rax + 0xb8]
	}
	p.call(memcpyAt)
	p.pc = was
}

// hexer is a function that reads the random byte by byte, as BoringSSL's does where clang expands the encoder: 0x40, 0x38.
func (p *program) hexer(at uint64) {
	was := p.pc
	if p.pc = at; p.machine == elf.EM_AARCH64 {
		p.words(0xaa0003f3, // mov x19, x0
			0x94000000|uint32(memcpyAt-p.pc-4)>>2&0x3ffffff,
			0xf9402277, // ldr x23, [x19, #0x40]
			0xaa1f03e8, // mov x8, xzr
			0x9100e2ea, // add x10, x23, #0x38
			0x3868694c, // ldrb w12, [x10, x8]
			0x91000508, // add x8, x8, #1
			0xf100811f, // cmp x8, #0x20
			0x54ffffa1, // b.ne -12
			0xd65f03c0)
	} else {
		p.emit(0x53, 0x48, 0x89, 0xfb) // push rbx; mov rbx, rdi
		p.call(memcpyAt)
		p.emit(0x4c, 0x8b, 0x7b, 0x40, 0x31, 0xc0, // mov r15, [rbx + 0x40]; xor eax, eax
			0x41, 0x0f, 0xb6, 0x54, 0x07, 0x38, // movzx edx, byte [r15 + rax + 0x38]
			0x48, 0xff, 0xc0, 0x48, 0x83, 0xf8, 0x20, // inc rax; cmp rax, 32
			0x75, 0xf1, 0x5b, 0xc3) // jne -15; pop rbx; ret
	}
	p.pc = was
}

// file is the whole of it.
func (p *program) file() []byte {
	le := binary.LittleEndian
	b := make([]byte, dataOff, dataOff+len(p.data))
	copy(b, elf.ELFMAG)
	b[4], b[5], b[6] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	le.PutUint16(b[16:], uint16(elf.ET_DYN))
	if p.fixed {
		le.PutUint16(b[16:], uint16(elf.ET_EXEC))
	}
	le.PutUint16(b[18:], uint16(p.machine))
	le.PutUint64(b[32:], 64) // e_phoff
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 4)
	for i, h := range [4][5]uint64{
		{uint64(elf.PT_LOAD), uint64(elf.PF_R), 0, 0, textOff},
		{uint64(elf.PT_LOAD), uint64(elf.PF_R | elf.PF_X), textOff, textAddr, uint64(len(p.text))},
		{uint64(elf.PT_LOAD), uint64(elf.PF_R), dataOff, dataAddr, uint64(len(p.data))},
		{uint64(elf.PT_DYNAMIC), uint64(elf.PF_R), tableOff, tableOff, 64},
	} {
		ph := b[64+56*i:]
		le.PutUint32(ph, uint32(h[0]))
		le.PutUint32(ph[4:], uint32(h[1]))
		le.PutUint64(ph[8:], h[2])
		le.PutUint64(ph[16:], h[3])
		le.PutUint64(ph[32:], h[4])
		le.PutUint64(ph[40:], h[4])
	}
	p.exports(b[tableOff:])
	copy(b[textOff:], p.text[:])
	return append(b, p.data...)
}

// exports writes a dynamic section with one symbol: in a hash table of one bucket.
func (p *program) exports(b []byte) {
	le := binary.LittleEndian
	const hash, symbols, names = 0x100, 0x140, 0x200
	for i, e := range [][2]uint64{
		{uint64(elf.DT_HASH), tableOff + hash}, {uint64(elf.DT_SYMTAB), tableOff + symbols}, {uint64(elf.DT_STRTAB), tableOff + names},
	} {
		le.PutUint64(b[16*i:], e[0])
		le.PutUint64(b[16*i+8:], e[1])
	}
	for i, w := range []uint32{1, 2, 1, 0, 0} { // one bucket, two chains; the bucket has symbol 1
		le.PutUint32(b[hash+4*i:], w)
	}
	s := b[symbols+24:]
	le.PutUint32(s, 1)
	le.PutUint16(s[6:], 1)
	le.PutUint64(s[8:], accessorAt)
	copy(b[names+1:], p.export)
}

func (p *program) reader() *bytes.Reader { return bytes.NewReader(p.file()) }
