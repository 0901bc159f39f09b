// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"fmt"

	"golang.org/x/net/bpf"
)

// Parts of a classic opcode (linux/bpf_common.h, linux/filter.h).
const (
	classMask = 0x07
	classLd   = 0x00
	classLdx  = 0x01
	classSt   = 0x02
	classStx  = 0x03
	classALU  = 0x04
	classJmp  = 0x05
	classRet  = 0x06
	classMisc = 0x07

	modeMask = 0xe0
	modeImm  = 0x00
	modeAbs  = 0x20
	modeInd  = 0x40
	modeMem  = 0x60
	modeLen  = 0x80
	modeMsh  = 0xa0

	sizeMask = 0x18 // 0x00 a word, 0x08 half of one, 0x10 a byte

	opMask = 0xf0
	aluAdd = 0x00
	aluSub = 0x10
	aluMul = 0x20
	aluDiv = 0x30
	aluOr  = 0x40
	aluAnd = 0x50
	aluLsh = 0x60
	aluRsh = 0x70
	aluNeg = 0x80
	aluMod = 0x90
	aluXor = 0xa0

	jumpAlways = 0x00
	jumpEq     = 0x10
	jumpGt     = 0x20
	jumpGe     = 0x30
	jumpSet    = 0x40

	srcX    = 0x08 // the operand is X, not K
	retA    = 0x10 // a return value is A, not K
	miscTxa = 0x80

	opReturn = classRet // of K
	opJump   = classJmp | jumpAlways
	opJumpEq = classJmp | jumpEq
)

// scratchWords is how many words of memory a classic program has.
const scratchWords = 16

// Offsets at and above this one are not bytes of the packet. Linux keeps what it knows of a
// packet there (linux/filter.h); libpcap's compiler uses these four.
const (
	beforePacket  = 0x80000000
	extPacketType = 0xfffff000 + 4
	extIfindex    = 0xfffff000 + 8
	extVlanTag    = 0xfffff000 + 44
	extVlanThere  = 0xfffff000 + 48
)

// packetOutgoing is PACKET_OUTGOING of linux/if_packet.h.
const packetOutgoing = 4

// insn is a classic instruction whose jumps are unlimited: jt and jf are indexes into the
// program, and an unconditional jump goes to jt.
type insn struct {
	op     uint16
	k      uint32
	jt, jf int
}

func (in insn) class() uint16 { return in.op & classMask }
func (in insn) size() uint32  { return 4 >> (in.op & sizeMask >> 3) }

func (in insn) isRet() bool    { return in.class() == classRet }
func (in insn) isJump() bool   { return in.class() == classJmp }
func (in insn) isAlways() bool { return in.op == opJump }

// isLoad tells whether the instruction reads the packet or what is known of it.
func (in insn) isLoad() bool {
	switch in.class() {
	case classLd:
		return in.op&modeMask == modeAbs || in.op&modeMask == modeInd
	case classLdx:
		return in.op&modeMask == modeMsh
	}
	return false
}

// isAbs tells whether the instruction reads the packet at a fixed offset, and end is the
// offset behind what it reads.
func (in insn) isAbs() (end uint32, ok bool) {
	if in.op&modeMask == modeInd || !in.isLoad() || in.k >= beforePacket {
		return 0, false
	}
	return in.k + in.size(), true
}

// isExt tells whether the instruction reads what the kernel knows of the packet.
func (in insn) isExt() bool {
	if in.class() != classLd || in.op&modeMask != modeAbs {
		return false
	}
	switch in.k {
	case extPacketType, extIfindex, extVlanTag, extVlanThere:
		return true
	}
	return false
}

// beyond tells whether the instruction reads where no packet can have bytes: it ends the
// program, and rejects.
func (in insn) beyond() bool { return in.isLoad() && in.k >= beforePacket && !in.isExt() }

// program is a classic program. Every way through it ends at a return.
type program []insn

// parse makes a program of libpcap's. libpcap wrote it, so an error is a mistake here or there.
func parse(raw []bpf.RawInstruction) (program, error) {
	p := make(program, len(raw))
	for i, in := range raw {
		n := insn{op: in.Op, k: in.K}
		scratch := false
		switch n.class() {
		case classJmp:
			n.jt, n.jf = i+1+int(in.Jt), i+1+int(in.Jf)
			if n.isAlways() {
				n.jt = i + 1 + int(int32(in.K)) // protochain jumps backwards
				n.jf = n.jt
			}
		case classRet:
		case classLd, classLdx:
			scratch = in.Op&modeMask == modeMem
			n.jt = i + 1
		default:
			scratch = n.class() == classSt || n.class() == classStx
			n.jt = i + 1
		}
		for _, to := range n.next() {
			if to < 0 || to >= len(raw) {
				return nil, fmt.Errorf("instruction %d of libpcap's program leads to %d of %d", i, to, len(raw))
			}
		}
		if scratch && in.K >= scratchWords {
			return nil, fmt.Errorf("instruction %d of libpcap's program uses word %d of %d", i, in.K, scratchWords)
		}
		p[i] = n
	}
	for i := range p {
		p[i].jt, p[i].jf = p.through(p[i].jt), p.through(p[i].jf)
	}
	return p, nil
}

// through returns where the program comes to from i by forward jumps alone: libpcap makes long
// jumps of short ones and those.
func (p program) through(i int) int {
	for p[i].isAlways() && p[i].jt > i {
		i = p[i].jt
	}
	return i
}

// next returns where the program may go on behind an instruction.
func (in insn) next() []int {
	switch {
	case in.isRet():
		return nil
	case in.isJump() && !in.isAlways():
		return []int{in.jt, in.jf}
	}
	return []int{in.jt}
}

// loops tells whether the program jumps backwards.
func (p program) loops() bool {
	for i, in := range p {
		if in.isAlways() && in.jt <= i {
			return true
		}
	}
	return false
}

// rejectsAll tells whether no return accepts.
func (p program) rejectsAll() bool {
	for _, in := range p {
		if in.isRet() && (in.op&retA != 0 || in.k != 0) {
			return false
		}
	}
	return true
}

// reads tells how far into the packet the program may look: bytes at fixed offsets, and
// whether there are others, whose place depends on the packet (or that are too far away).
func (p program) reads() (head uint32, further bool) {
	for _, in := range p {
		if !in.isLoad() || in.isExt() || in.beyond() {
			continue
		}
		if end, ok := in.isAbs(); ok && end <= maxHead {
			head = max(head, end)
		} else {
			further = true
		}
	}
	return head, further
}

// describe says how a program runs in a form, and why.
func (p program) describe(form Form) string {
	head, further := p.reads()
	var where string
	switch {
	case head == 0 && !further:
		where = "reads no bytes of the packet"
	case !further:
		where = fmt.Sprintf("reads headers, up to byte %d", head)
	case head == 0:
		where = "reads where the packet's own bytes say"
	default:
		where = fmt.Sprintf("reads headers, up to byte %d, and where the packet's own bytes say", head)
	}
	how := map[Form]string{
		Hybrid:    "directly where the packet's linear head reaches that far, by bpf_skb_load_bytes otherwise",
		LoadBytes: "by a copy of the head and bpf_skb_load_bytes; hybrid would be larger",
		Agent:     "behind the kernel, in the agent: no code for it fits there",
	}[form]
	if form == Hybrid && head == 0 && !further {
		how = "no packet access"
	}
	text := fmt.Sprintf("form %s: %s; %s", form, where, how)
	if p.loops() && form != Agent {
		text += fmt.Sprintf("; past %d headers of protochain the agent decides", maxRounds)
	}
	return text
}
