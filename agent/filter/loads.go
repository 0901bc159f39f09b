// SPDX-License-Identifier: Apache-2.0

package filter

import "github.com/cilium/ebpf/asm"

// copied returns how many bytes at the start of the packet are worth a copy, a multiple of 8.
func (p program) copied() uint32 {
	n := 0
	for _, in := range p {
		if end, ok := in.isAbs(); ok && end <= maxHead {
			n++
		}
	}
	if n < 2 {
		return 0
	}
	head, _ := p.reads()
	return (head + 7) &^ 7
}

// shift returns where the copy is to begin between aligned words, so that most loads of words
// are aligned: behind an Ethernet header words lie 2 bytes off.
func (p program) shift() int16 {
	var aligned [2]int
	for _, in := range p {
		if end, ok := in.isAbs(); ok && end <= maxHead && in.size() == 4 && in.k%2 == 0 {
			aligned[in.k/2%2]++
		}
	}
	if aligned[1] > aligned[0] {
		return 2
	}
	return 0
}

// copyHead copies the first bytes of the packet to the stack, or all if it is shorter.
func (t *translator) copyHead() {
	copied, whole := t.label(), t.label()
	t.emit(asm.Mov.Imm(asm.R0, 0))
	for at := slotHead; at < int(t.copyAt)+int(t.head); at += 8 {
		t.emit(asm.StoreMem(asm.RFP, int16(at), asm.R0, asm.DWord)) // the verifier wants it
	}
	t.emit(asm.Mov.Reg(asm.R4, regLen))
	t.jump(asm.JLT.Imm(asm.R4, 1, ""), copied) // the helper refuses 0 bytes
	t.jump(asm.JLE.Imm(asm.R4, int32(t.head), ""), whole)
	t.emit(asm.Mov.Imm(asm.R4, int32(t.head)))
	t.bind(whole)
	t.emit(
		asm.Mov.Reg(asm.R1, regSkb),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, int32(t.copyAt)),
		asm.FnSkbLoadBytes.Call(),
	)
	t.bind(copied)
}

// load writes a load into dst.
func (t *translator) load(in insn, dst asm.Register, need uint32) {
	end, abs := in.isAbs()
	switch mode := in.op & modeMask; {
	case mode == modeImm:
		t.emit(asm.Mov.Imm32(dst, int32(in.k)))
		return
	case mode == modeMem:
		t.emit(asm.LoadMem(dst, asm.RFP, scratch(in.k), asm.Word))
		return
	case mode == modeLen:
		t.emit(asm.LoadMem(dst, regSkb, skbLen, asm.Word))
		return
	case in.isExt():
		t.ext(in, dst)
		return
	case in.beyond():
		t.always(t.reject)
		return
	case t.ends(in):
		t.always(t.slow)
		return
	case t.direct && abs:
		t.directly(in, dst, need)
	case t.direct:
		t.directlyFromX(in, dst)
	case abs && end <= t.head:
		if need > 0 {
			t.jump(asm.JLT.Imm(regLen, int32(need), ""), t.reject)
		}
		t.fromCopy(in, dst)
	default:
		t.call(in, dst)
	}
	t.order(in, dst)
}

func width(in insn) asm.Size { return widths[in.size()] }

var widths = map[uint32]asm.Size{1: asm.Byte, 2: asm.Half, 4: asm.Word}

// fromCopy loads from the copy of the head. The verifier wants loads from the stack aligned, so
// one that is not is put together from smaller ones.
func (t *translator) fromCopy(in insn, dst asm.Register) {
	at := t.copyAt + int16(in.k)
	for done := uint32(0); done < in.size(); {
		n := in.size()
		for done+n > in.size() || (int32(at)+int32(done))%int32(n) != 0 {
			n /= 2
		}
		if done == 0 {
			t.emit(asm.LoadMem(dst, asm.RFP, at, widths[n]))
		} else {
			t.emit(
				asm.LoadMem(asm.R2, asm.RFP, at+int16(done), widths[n]),
				asm.LSh.Imm32(asm.R2, int32(8*done)),
				asm.Or.Reg32(dst, asm.R2),
			)
		}
		done += n
	}
}

// order makes a number of what was loaded: network byte order, or the length of an IP header.
func (t *translator) order(in insn, dst asm.Register) {
	switch {
	case in.op&modeMask == modeMsh:
		t.emit(asm.And.Imm32(dst, 0xf), asm.LSh.Imm32(dst, 2))
	case in.size() > 1:
		t.emit(asm.HostTo(asm.BE, dst, width(in)))
	}
}

func (t *translator) directly(in insn, dst asm.Register, need uint32) {
	if need > 0 {
		t.emit(asm.Mov.Reg(asm.R2, regData), asm.Add.Imm(asm.R2, int32(need)))
		t.jump(asm.JGT.Reg(asm.R2, regEnd, ""), t.short)
	}
	t.emit(asm.LoadMem(dst, regData, int16(in.k), width(in)))
}

func (t *translator) directlyFromX(in insn, dst asm.Register) {
	t.jump(asm.JGT.Imm(t.x, maxDirect, ""), t.slow)
	t.emit(
		asm.Mov.Reg(asm.R3, regData),
		asm.Add.Reg(asm.R3, t.x),
		asm.Mov.Reg(asm.R2, asm.R3),
		asm.Add.Imm(asm.R2, int32(in.k+in.size())),
	)
	t.jump(asm.JGT.Reg(asm.R2, regEnd, ""), t.short)
	t.emit(asm.LoadMem(dst, asm.R3, int16(in.k), width(in)))
}

// call writes a load by bpf_skb_load_bytes. Its offset is 32 bits wide, so it has to be
// within the packet before; the helper sees to the end.
func (t *translator) call(in insn, dst asm.Register) {
	t.emit(asm.Mov.Imm32(asm.R2, int32(in.k)))
	if in.op&modeMask == modeInd {
		t.emit(asm.Add.Reg(asm.R2, t.x))
	}
	t.jump(asm.JGE.Reg(asm.R2, regLen, ""), t.reject)
	t.emit(
		asm.Mov.Reg(asm.R1, regSkb),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, slotBytes),
		asm.Mov.Imm(asm.R4, int32(in.size())),
		asm.FnSkbLoadBytes.Call(),
	)
	t.jump(asm.JNE.Imm(asm.R0, 0, ""), t.reject)
	t.emit(asm.LoadMem(dst, asm.RFP, slotBytes, width(in)))
}

func (t *translator) ext(in insn, dst asm.Register) {
	switch {
	case in.k == extPacketType && t.egress:
		// The hook comes before the kernel marks what it hands to packet sockets.
		t.emit(asm.Mov.Imm32(dst, packetOutgoing))
	case in.k == extPacketType:
		t.emit(asm.LoadMem(dst, regSkb, skbPacketType, asm.Word))
	case in.k == extIfindex:
		t.emit(asm.LoadMem(dst, regSkb, skbIfindex, asm.Word))
	case in.k == extVlanTag:
		t.emit(asm.LoadMem(dst, regSkb, skbVlanTCI, asm.Word))
	case in.k == extVlanThere:
		t.emit(asm.LoadMem(dst, regSkb, skbVlanPresent, asm.Word))
	}
}
