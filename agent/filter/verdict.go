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
//
// A packet over which the program would run for ever does not match. libpcap 1.10.3 writes such
// programs: behind an authentication header protochain goes on at that header's length, not
// behind it (gencode.c gen_protochain), and some packets lead it round in a circle.
func (f Filter) Match(packet []byte, m Meta) bool {
	accepts, _ := f.run(packet, m)
	return accepts
}

// registerFile is what a run holds: at the same instruction with the same ones it goes the same way.
type registerFile struct {
	a, x uint32
	mem  [scratchWords]uint32
}

// run tells whether the program accepts a packet, and whether it ends.
func (f Filter) run(packet []byte, m Meta) (accepts, ends bool) {
	var r registerFile
	// To find a circle: what the registers were a while ago, at a jump backwards (R. P. Brent's
	// algorithm).
	var seen registerFile
	rounds, next, where := 0, 1, 0
	for i := 0; ; {
		in := f.program[i]
		if in.isAlways() && in.jt <= i {
			if rounds > 0 && i == where && r == seen {
				return false, false
			}
			if rounds++; rounds == next {
				seen, where, next = r, i, 2*next
			}
		}
		i = in.jt
		switch in.class() {
		case classRet:
			if in.op&retA != 0 {
				return r.a != 0, true
			}
			return in.k != 0, true
		case classLd, classLdx:
			v, ok := in.load(packet, m, r.x, &r.mem)
			if !ok {
				return v != 0, true
			}
			if in.class() == classLd {
				r.a = v
			} else {
				r.x = v
			}
		case classSt:
			r.mem[in.k] = r.a
		case classStx:
			r.mem[in.k] = r.x
		case classALU:
			v, ok := in.compute(r.a, in.operand(r.x))
			if !ok {
				return false, true
			}
			r.a = v
		case classJmp:
			if !in.holds(r.a, in.operand(r.x)) {
				i = in.jf
			}
		case classMisc:
			if in.op&miscTxa != 0 {
				r.a = r.x
			} else {
				r.x = r.a
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
