// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"fmt"

	"github.com/cilium/ebpf/asm"
	"github.com/cloudflare/cbpfc"
	"golang.org/x/net/bpf"
)

// Stack slots of the injected code, below the frame pointer. What cbpfc needs
// for cBPF's scratch memory lies below stackTop.
const (
	slotBytes = -8  // what bpf_skb_load_bytes read
	slotSkb   = -16 // the context
	slotA     = -24 // cBPF's A while a helper runs and another register is loaded
	stackTop  = 24
)

// Registers of the injected code. All but regA and regTmp outlive a helper call:
// A is what most loads write, and cbpfc never keeps a value in its third working
// register from one cBPF instruction to the next.
const (
	regA        = asm.R0
	regTmp      = asm.R2
	regEnd      = asm.R6 // skb->len
	regStart    = asm.R7 // 0: packet "pointers" are offsets
	regIndirect = asm.R8
	regX        = asm.R9
)

// find returns the index of the first instruction of a function, or -1.
func find(insns asm.Instructions, function string) int {
	for i := range insns {
		if insns[i].Symbol() == function {
			return i
		}
	}
	return -1
}

// inject returns insns with the code of a filter in front of the stub at index at.
// The stub's body then sees the verdict in R4, as bpf/src/agent.h says.
func inject(code, insns asm.Instructions, at int) asm.Instructions {
	out := make(asm.Instructions, 0, len(insns)+len(code))
	out = append(out, insns[:at]...)
	// The function now begins with the filter: its name and its BTF move there.
	out = append(out, code[0].WithMetadata(insns[at].Metadata))
	out = append(out, code[1:]...)
	out = append(out, insns[at].WithMetadata(asm.Metadata{}))
	return append(out, insns[at+1:]...)
}

// translate makes of a classic program the code that inject puts in front of stub.
// The error wraps ErrUnsupported or ErrTooLarge.
//
// elibpcap.Inject is not used: its load-bytes mode takes loads of cBPF's scratch
// memory for loads of the packet and refuses 19 of 324 common expressions (v1.1.0,
// adjust_ebpf_skb_load_bytes.go).
func translate(cbpf []bpf.Instruction, stub string) (asm.Instructions, error) {
	if err := unsupported(cbpf); err != nil {
		return nil, err
	}
	prefix := "_" + stub
	result := prefix + "_result"
	translated, err := cbpfc.ToEBPF(cbpf, cbpfc.EBPFOpts{
		PacketStart: regStart,
		PacketEnd:   regEnd,
		Working:     [4]asm.Register{regA, regX, regTmp, regIndirect},
		Result:      regA,
		ResultLabel: result,
		LabelPrefix: prefix,
		StackOffset: stackTop,
	})
	if err != nil {
		return nil, fmt.Errorf("translate to eBPF: %w", err)
	}

	code := asm.Instructions{
		asm.StoreMem(asm.RFP, slotSkb, asm.R1, asm.DWord),
		asm.Mov.Reg(regStart, asm.R4),
		asm.Mov.Reg(regEnd, asm.R5),
		// cBPF starts with A = X = 0; the verifier wants it said.
		asm.Mov.Imm(regA, 0),
		asm.Mov.Imm(regX, 0),
		asm.Mov.Imm(regIndirect, 0),
	}
	for _, in := range translated {
		if in.OpCode.Class().IsLoad() && in.Src != asm.RFP {
			code = append(code, loadBytes(in, prefix+"_nomatch")...)
		} else {
			code = append(code, in)
		}
	}
	code = append(code,
		asm.Mov.Reg(asm.R4, regA).WithSymbol(result),
		asm.Mov.Imm(asm.R1, 0),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R5, 0),
	)
	return code, nil
}

// loadBytes replaces a load of packet bytes through a pointer by a call of
// bpf_skb_load_bytes at the same offset. Outside the packet it does not match, as
// in cBPF; cbpfc's own check of the bounds stands before each load as well.
func loadBytes(in asm.Instruction, noMatch string) asm.Instructions {
	var out asm.Instructions
	if in.Dst != regA {
		out = append(out, asm.StoreMem(asm.RFP, slotA, regA, asm.DWord))
	}
	if in.Src == regStart {
		out = append(out, asm.Mov.Imm(asm.R2, int32(in.Offset)))
	} else {
		if in.Src != asm.R2 {
			out = append(out, asm.Mov.Reg(asm.R2, in.Src))
		}
		out = append(out,
			asm.Sub.Reg(asm.R2, regStart),
			asm.Add.Imm(asm.R2, int32(in.Offset)))
	}
	out = append(out,
		asm.LoadMem(asm.R1, asm.RFP, slotSkb, asm.DWord),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, slotBytes),
		asm.Mov.Imm(asm.R4, int32(in.OpCode.Size().Sizeof())),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, noMatch),
		asm.LoadMem(in.Dst, asm.RFP, slotBytes, in.OpCode.Size()))
	if in.Dst != regA {
		out = append(out, asm.LoadMem(regA, asm.RFP, slotA, asm.DWord))
	}
	// Other instructions jump to the load by its name.
	out[0].Metadata = in.Metadata
	return out
}
