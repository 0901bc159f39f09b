// SPDX-License-Identifier: Apache-2.0

package filter

import "encoding/binary"

// Meta is what a filter may ask of a packet beside its bytes.
type Meta struct {
	Length      uint32 // bytes of the whole packet, of which there may be fewer
	Outgoing    bool
	Ifindex     uint32
	VlanPresent bool // a tag is kept beside the packet
	VlanTCI     uint16
}

// Match runs the classic program over a packet as libpcap's bpf_filter does. It is the filter
// of packets that the kernel could not judge. Where it would read bytes of the packet that are
// not there (packet is shorter than m.Length) it matches: nothing is lost that might.
func (f Filter) Match(packet []byte, m Meta) bool {
	var a, x uint32
	var mem [scratchWords]uint32
	for i := 0; ; {
		in := f.program[i]
		i = in.jt
		switch in.class() {
		case classRet:
			if in.op&retA != 0 {
				return a != 0
			}
			return in.k != 0
		case classLd, classLdx:
			v, ok := in.load(packet, m, x, &mem)
			if !ok {
				return v != 0
			}
			if in.class() == classLd {
				a = v
			} else {
				x = v
			}
		case classSt:
			mem[in.k] = a
		case classStx:
			mem[in.k] = x
		case classALU:
			v, ok := in.compute(a, in.operand(x))
			if !ok {
				return false
			}
			a = v
		case classJmp:
			if !in.holds(a, in.operand(x)) {
				i = in.jf
			}
		case classMisc:
			if in.op&miscTxa != 0 {
				a = x
			} else {
				x = a
			}
		}
	}
}

func (in insn) operand(x uint32) uint32 {
	if in.op&srcX != 0 {
		return x
	}
	return in.k
}

// load returns what the instruction loads. ok is false where the program ends instead, with the
// verdict v.
func (in insn) load(packet []byte, m Meta, x uint32, mem *[scratchWords]uint32) (v uint32, ok bool) {
	switch in.op & modeMask {
	case modeImm:
		return in.k, true
	case modeMem:
		return mem[in.k], true
	case modeLen:
		return m.Length, true
	}
	if in.isExt() {
		return m.ext(in.k), true
	}
	at := uint64(in.k)
	if in.op&modeMask == modeInd {
		at += uint64(x)
	}
	end := at + uint64(in.size())
	switch {
	case in.beyond() || end > uint64(m.Length):
		return 0, false
	case end > uint64(len(packet)):
		return 1, false
	}
	bytes := packet[at:end]
	switch len(bytes) {
	case 4:
		v = binary.BigEndian.Uint32(bytes)
	case 2:
		v = uint32(binary.BigEndian.Uint16(bytes))
	default:
		v = uint32(bytes[0])
	}
	if in.op&modeMask == modeMsh {
		v = v & 0xf << 2
	}
	return v, true
}

func (m Meta) ext(k uint32) uint32 {
	switch {
	case k == extPacketType && m.Outgoing:
		return packetOutgoing
	case k == extIfindex:
		return m.Ifindex
	case k == extVlanTag:
		return uint32(m.VlanTCI)
	case k == extVlanThere && m.VlanPresent:
		return 1
	}
	return 0
}

// compute returns what the instruction makes of A. A division by zero ends the program: it rejects.
func (in insn) compute(a, operand uint32) (v uint32, ok bool) {
	switch in.op & opMask {
	case aluAdd:
		return a + operand, true
	case aluSub:
		return a - operand, true
	case aluMul:
		return a * operand, true
	case aluDiv:
		if operand == 0 {
			return 0, false
		}
		return a / operand, true
	case aluMod:
		if operand == 0 {
			return 0, false
		}
		return a % operand, true
	case aluOr:
		return a | operand, true
	case aluAnd:
		return a & operand, true
	case aluXor:
		return a ^ operand, true
	case aluLsh:
		return a << operand, true // Go: 0 from 32 on, as libpcap has it
	case aluRsh:
		return a >> operand, true
	}
	return -a, true
}

// holds tells whether a jump goes to jt.
func (in insn) holds(a, operand uint32) bool {
	switch in.op & opMask {
	case jumpEq:
		return a == operand
	case jumpGt:
		return a > operand
	case jumpGe:
		return a >= operand
	case jumpSet:
		return a&operand != 0
	}
	return true
}
