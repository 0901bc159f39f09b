// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"slices"

	"github.com/cilium/ebpf/asm"
)

// Offsets into struct __sk_buff (linux/bpf.h).
const (
	skbLen         = 0
	skbPacketType  = 4
	skbVlanPresent = 20
	skbVlanTCI     = 24
	skbIfindex     = 40
)

// Registers of the code. The direct form calls no helper, so it leaves the packet's bounds
// where the stub was given them.
const (
	regSkb  = asm.R6
	regData = asm.R4 // the linear head of the packet
	regEnd  = asm.R5 // and its end
	regLen  = asm.R9 // bytes of the whole packet; only in the load-bytes form
)

// The stack of the code, below the frame pointer.
const (
	slotScratch = -4 * scratchWords       // cBPF's memory: the last word is here
	slotBytes   = slotScratch - 8         // what bpf_skb_load_bytes read
	slotHead    = slotBytes - maxHead - 8 // a copy of the packet's first bytes
	maxHead     = 96                      // Ethernet, two tags, IPv6 and the ports behind it, and some more
)

// maxDirect is the farthest offset, in bytes, that the direct form reads. The verifier follows
// pointers into a packet for 64 KiB.
const maxDirect = 1<<15 - 1

// maxRounds is how often the code follows a backward jump: so many IPv6 extension headers, or
// authentication headers, does protochain look behind. Past that the agent decides.
const maxRounds = 8

// minSearch is how many comparisons of one value in a row become a binary search.
const minSearch = 6

// Form is a way to run a filter. Each gives the same verdicts.
type Form uint8

// The forms, each smaller than the one before it.
const (
	// Hybrid reads the packet in its linear head, and where that ends before
	// the packet does and before what the filter reads, it starts anew as LoadBytes.
	Hybrid Form = iota
	// LoadBytes copies the first bytes of the packet, and reads others by bpf_skb_load_bytes.
	LoadBytes
	// Agent accepts every packet: the agent filters behind the kernel, by Match.
	Agent
)

// String returns the name that the command line has for the form.
func (f Form) String() string { return [...]string{"hybrid", "load-bytes", "agent"}[f] }

// How says how to inject a filter.
type How struct {
	Form   Form
	Egress bool // the program sees packets that leave
}

// code returns what Inject puts in front of a stub's body: the verdict goes into R4, and R1, R2,
// R3 and R5 are 0, as bpf/src/agent.h says. The error is ErrTooLarge.
func (p program) code(how How) (asm.Instructions, error) {
	t := translator{assembler: &assembler{}, egress: how.Egress}
	t.reject, t.accept = t.label(), t.label()
	switch how.Form {
	case Hybrid:
		t.emit(asm.Mov.Reg(regSkb, asm.R1))
		t.hybrid(p)
	case LoadBytes:
		t.emit(asm.Mov.Reg(regSkb, asm.R1))
		t.loadBytes(p)
	case Agent:
		t.always(t.accept)
	}
	t.relay(16)
	if t.wanted[t.reject] {
		t.bind(t.reject)
		if t.wanted[t.accept] {
			t.emit(asm.Mov.Imm(asm.R0, 0), asm.Return())
		} else {
			t.emit(asm.Mov.Imm(asm.R4, 0))
		}
	}
	if t.wanted[t.accept] {
		t.bind(t.accept)
		t.emit(asm.Mov.Imm(asm.R4, 1))
	}
	for _, r := range []asm.Register{asm.R1, asm.R2, asm.R3, asm.R5} {
		t.emit(asm.Mov.Imm(r, 0))
	}
	return t.finish()
}

// translator writes the code of a program, in one form or in both.
type translator struct {
	*assembler
	egress         bool
	reject, accept label
	short          label // direct: the linear head has ended
	slow           label // direct: the load-bytes form must do it

	// Of the form that is being written:
	direct  bool
	a, x    asm.Register
	head    uint32 // load-bytes: bytes of the copy of the packet's head
	copyAt  int16  // and where it is on the stack
	layout  layout
	labels  []label // of the layout's nodes
	written []bool  // of those: a search before has done it
}

// hybrid writes the direct form, and behind it the other for what that cannot read.
func (t *translator) hybrid(p program) {
	t.direct, t.a, t.x = true, asm.R0, asm.R1
	t.short, t.slow = t.label(), t.label()
	t.write(p, maxDirect)
	if t.wanted[t.short] {
		t.relay(64)
		t.bind(t.short)
		// Where the head is the whole packet, what lies behind it does not exist.
		t.emit(asm.LoadMem(asm.R2, regSkb, skbLen, asm.Word), asm.Sub.Reg(regEnd, regData))
		t.jump(asm.JGE.Reg(regEnd, asm.R2, ""), t.reject)
	}
	if t.wanted[t.short] || t.wanted[t.slow] {
		t.bind(t.slow)
		t.loadBytes(p)
	}
}

func (t *translator) loadBytes(p program) {
	t.direct, t.a, t.x = false, asm.R7, asm.R8
	t.emit(asm.LoadMem(regLen, regSkb, skbLen, asm.Word))
	if t.head = p.copied(); t.head > 0 {
		t.copyAt = slotHead + p.shift()
		t.copyHead()
	}
	t.write(p, t.head)
}

// write writes p in the form that is set. Loads at fixed offsets up to limit need no call.
func (t *translator) write(p program, limit uint32) {
	t.layout = lay(p, t.ends)
	t.labels = make([]label, len(t.layout))
	for n := range t.labels {
		t.labels[n] = t.label()
	}
	// cBPF starts with zeros; the verifier wants it said.
	t.emit(asm.Mov.Imm32(t.a, 0), asm.Mov.Imm32(t.x, 0))
	for word := range uint32(scratchWords) {
		if t.layout.usesScratch(word) {
			t.emit(asm.StoreImm(asm.RFP, scratch(word), 0, asm.Word))
		}
	}
	needs := t.layout.needs(limit)
	t.written = make([]bool, len(t.layout))
	for n := range t.layout {
		if t.written[n] {
			continue
		}
		t.relay(64)
		t.bind(t.labels[n])
		if run := t.layout.run(n); len(run) >= minSearch {
			t.search(run)
		} else {
			t.node(n, needs[n])
		}
	}
}

// follows tells whether a node is what is written behind node n.
func (t *translator) follows(n, to int) bool {
	for n++; n < len(t.written) && t.written[n]; n++ {
	}
	return n == to
}

// ends tells whether an instruction cannot be gone on from: it reads before the packet, which
// rejects, or farther than the direct form can.
func (t *translator) ends(in insn) bool {
	return in.beyond() || t.direct && in.isLoad() && !in.isExt() && in.k+4 > maxDirect
}

func (l layout) usesScratch(word uint32) bool {
	return slices.ContainsFunc(l, func(n node) bool {
		return n.k == word && (n.op == classLd|modeMem || n.op == classLdx|modeMem)
	})
}

func scratch(word uint32) int16 { return int16(slotScratch + 4*int(word)) }

// node writes a node. need is how far the packet must be checked to reach before, or 0.
func (t *translator) node(n int, need uint32) {
	in := t.layout[n].insn
	switch in.class() {
	case classRet:
		t.ret(in)
		return
	case classJmp:
		t.branch(n)
		return
	case classLd:
		t.load(in, t.a, need)
	case classLdx:
		t.load(in, t.x, need)
	case classSt:
		t.emit(asm.StoreMem(asm.RFP, scratch(in.k), t.a, asm.Word))
	case classStx:
		t.emit(asm.StoreMem(asm.RFP, scratch(in.k), t.x, asm.Word))
	case classALU:
		t.compute(in)
	case classMisc:
		if in.op&miscTxa != 0 {
			t.emit(asm.Mov.Reg32(t.a, t.x))
		} else {
			t.emit(asm.Mov.Reg32(t.x, t.a))
		}
	}
	if !t.ends(in) {
		t.goOn(n, t.layout[n].yes)
	}
}

// goOn leads from node n to another.
func (t *translator) goOn(n, to int) {
	if !t.follows(n, to) {
		t.always(t.to(to))
	}
}

// to is the label of a node. What the kernel cannot decide it accepts: see Filter.Match.
func (t *translator) to(n int) label {
	if n == undecided {
		return t.accept
	}
	return t.labels[n]
}

func (t *translator) ret(in insn) {
	switch {
	case in.op&retA != 0:
		t.jump(asm.JNE.Imm(t.a, 0, ""), t.accept)
		t.always(t.reject)
	case in.k != 0:
		t.always(t.accept)
	default:
		t.always(t.reject)
	}
}

var aluOps = map[uint16]asm.ALUOp{
	aluAdd: asm.Add, aluSub: asm.Sub, aluMul: asm.Mul, aluDiv: asm.Div, aluOr: asm.Or,
	aluAnd: asm.And, aluMod: asm.Mod, aluXor: asm.Xor, aluLsh: asm.LSh, aluRsh: asm.RSh,
}

// compute writes an instruction that changes A. cBPF rejects at a division by 0 and shifts
// by more than 31 bits to 0; eBPF does neither.
func (t *translator) compute(in insn) {
	kind, byX := in.op&opMask, in.op&srcX != 0
	op := aluOps[kind]
	shift := kind == aluLsh || kind == aluRsh
	divide := kind == aluDiv || kind == aluMod
	switch {
	case kind == aluNeg:
		t.emit(asm.Mov.Reg32(asm.R2, t.a), asm.Mov.Imm32(t.a, 0), asm.Sub.Reg32(t.a, asm.R2))
	case byX && shift:
		done, zero := t.label(), t.label()
		t.jump(asm.JGT.Imm(t.x, 31, ""), zero)
		t.emit(op.Reg32(t.a, t.x))
		t.always(done)
		t.bind(zero)
		t.emit(asm.Mov.Imm32(t.a, 0))
		t.bind(done)
	case byX:
		if divide {
			t.jump(asm.JEq.Imm(t.x, 0, ""), t.reject)
		}
		t.emit(op.Reg32(t.a, t.x))
	case divide && in.k == 0:
		t.emit(asm.Mov.Imm32(asm.R2, 0))
		t.jump(asm.JEq.Imm(asm.R2, 0, ""), t.reject)
	case shift && in.k > 31:
		t.emit(asm.Mov.Imm32(t.a, 0))
	default:
		t.emit(op.Imm32(t.a, int32(in.k)))
	}
}

// jumpOps are the jumps that are taken where a comparison holds, and where it does not; jset has none of these.
var jumpOps = map[uint16]struct{ op, inverse asm.JumpOp }{
	jumpEq:  {asm.JEq, asm.JNE},
	jumpGt:  {asm.JGT, asm.JLE},
	jumpGe:  {asm.JGE, asm.JLT},
	jumpSet: {asm.JSet, asm.InvalidJumpOp},
}

func (t *translator) branch(n int) {
	in := t.layout[n]
	if in.isAlways() || in.yes == in.no {
		t.goOn(n, in.yes)
		return
	}
	ops := jumpOps[in.op&opMask]
	if t.follows(n, in.yes) && ops.inverse != asm.InvalidJumpOp {
		t.compare(ops.inverse, in.insn, in.no)
		return
	}
	t.compare(ops.op, in.insn, in.yes)
	t.goOn(n, in.no)
}

// compare jumps to a node if op holds between A and the operand of in. The immediate value of
// a jump is extended by its sign, which changes nothing for jset.
func (t *translator) compare(op asm.JumpOp, in insn, to int) {
	switch {
	case in.op&srcX != 0:
		t.jump(op.Reg(t.a, t.x, ""), t.to(to))
	case op == asm.JSet:
		t.jump(op.Imm(t.a, int32(in.k), ""), t.to(to))
	default:
		t.jump(t.against(op, in.k), t.to(to))
	}
}

// against compares A, which is 32 bits wide, with k.
func (t *translator) against(op asm.JumpOp, k uint32) asm.Instruction {
	if k < beforePacket {
		return op.Imm(t.a, int32(k), "")
	}
	t.emit(asm.Mov.Imm32(asm.R2, int32(k)))
	return op.Reg(t.a, asm.R2, "")
}

// search writes a run of comparisons as a binary search.
func (t *translator) search(run []int) {
	var ks []uint32
	for _, n := range run {
		ks = append(ks, t.layout[n].k)
		t.written[n] = true
	}
	slices.Sort(ks)
	missed := t.label()
	t.split(slices.Compact(ks), t.to(t.layout[run[0]].yes), missed)
	t.bind(missed)
	t.goOn(run[0], t.layout[run[len(run)-1]].no)
}

func (t *translator) split(ks []uint32, found, missed label) {
	t.relay(16)
	if len(ks) <= 3 {
		for _, k := range ks {
			t.jump(t.against(asm.JEq, k), found)
		}
		t.always(missed)
		return
	}
	upper := t.label()
	middle := len(ks) / 2
	t.jump(t.against(asm.JGE, ks[middle]), upper)
	t.split(ks[:middle], found, missed)
	t.bind(upper)
	t.split(ks[middle:], found, missed)
}
