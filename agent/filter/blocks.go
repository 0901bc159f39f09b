// SPDX-License-Identifier: Apache-2.0

package filter

import "slices"

// block is instructions that are run in a row, and a return or jump. yes and no are the blocks
// that follow; both the same where it does not branch.
type block struct {
	body    []insn
	end     insn
	yes, no int
	tested  value // what end compares with a constant
}

func (b block) branches() bool { return b.end.isJump() && b.yes != b.no }

// split cuts a program without loops into blocks, in its order.
func split(p program) []block {
	leads := make([]bool, len(p)+1)
	leads[0] = true
	for i, in := range p {
		if in.isJump() || in.isRet() {
			leads[i+1] = true
		}
		if in.isJump() {
			for _, to := range in.next() {
				leads[to] = true
			}
		}
	}
	number := make([]int, len(p)+1)
	n := -1
	for i := range p {
		if leads[i] {
			n++
		}
		number[i] = n
	}
	blocks := make([]block, n+1)
	for i, in := range p {
		b := &blocks[number[i]]
		switch {
		case in.isRet():
			b.end = in
		case in.isJump():
			b.end, b.yes, b.no = in, number[in.jt], number[in.jt]
			if !in.isAlways() {
				b.no = number[in.jf]
			}
		default:
			b.body = append(b.body, in)
			if leads[i+1] {
				b.end, b.yes, b.no = insn{op: opJump}, number[i+1], number[i+1]
			}
		}
	}
	return blocks
}

// registers is a set: bit 0 to 15 for the words of scratch memory, then A and X.
type registers uint32

const (
	registerA registers = 1 << (scratchWords + iota)
	registerX
)

// uses returns the registers that an instruction reads and those that it writes.
func (in insn) uses() (reads, writes registers) {
	if in.op&srcX != 0 && (in.class() == classALU || in.isJump()) {
		reads |= registerX
	}
	switch in.class() {
	case classLd, classLdx:
		switch in.op & modeMask {
		case modeMem:
			reads |= 1 << in.k
		case modeInd:
			reads |= registerX
		}
		writes = registerA
		if in.class() == classLdx {
			writes = registerX
		}
	case classSt:
		reads, writes = registerA, 1<<in.k
	case classStx:
		reads, writes = registerX, 1<<in.k
	case classALU:
		reads |= registerA
		writes = registerA
	case classJmp:
		if !in.isAlways() {
			reads |= registerA
		}
	case classRet:
		if in.op&retA != 0 {
			reads = registerA
		}
	case classMisc:
		reads, writes = registerA, registerX
		if in.op&miscTxa != 0 {
			reads, writes = registerX, registerA
		}
	}
	return reads, writes
}

// needs returns the registers that a block reads before it writes them, out of those that
// are read behind it.
func (b block) needs(behind registers) registers {
	need := behind
	if reads, _ := b.end.uses(); b.branches() || b.end.isRet() {
		need |= reads
	}
	for _, in := range slices.Backward(b.body) {
		reads, writes := in.uses()
		need = need&^writes | reads
	}
	return need
}

// settle leaves out what makes no difference, be it a load that would end the program: as
// libpcap's optimiser does. It returns for each block the registers that it or a later one reads
// before it is written.
func settle(blocks []block) []registers {
	live := make([]registers, len(blocks))
	for i := range slices.Backward(blocks) {
		b := &blocks[i]
		var behind registers
		if b.end.isJump() {
			b.fold()
			b.yes, b.no = through(blocks, b.yes), through(blocks, b.no)
			behind = live[b.yes] | live[b.no]
		}
		body := b.body
		b.body = nil
		live[i] = b.needs(behind)
		for _, in := range slices.Backward(body) {
			reads, writes := in.uses()
			if writes&live[i] != 0 {
				live[i] = live[i]&^writes | reads
				b.body = append(b.body, in)
			}
		}
		slices.Reverse(b.body)
	}
	return live
}

// through returns the block that n leads to if it does nothing else, and else n.
func through(blocks []block, n int) int {
	for len(blocks[n].body) == 0 && blocks[n].end.isJump() && !blocks[n].branches() {
		n = blocks[n].yes
	}
	return n
}

// fold decides a jump about a constant, such as the bytes of an address that its mask leaves out.
func (b *block) fold() {
	var a uint32
	constant := false
	for _, in := range b.body {
		_, writes := in.uses()
		switch {
		case in.op == classLd|modeImm:
			a, constant = in.k, true
		case in.op == classALU|aluAnd && in.k == 0:
			a, constant = 0, true
		case in.class() == classALU && in.op&srcX == 0 && constant:
			a, constant = in.compute(a, in.k)
		case writes&registerA != 0:
			constant = false
		}
	}
	if !constant || !b.branches() || b.end.op&srcX != 0 {
		return
	}
	if !b.end.holds(a, b.end.k) {
		b.yes = b.no
	}
	b.no = b.yes
}

// ways returns for each block in how many ways it is reached. The first is reached.
func ways(blocks []block) []int {
	into := make([]int, len(blocks))
	into[0] = 1
	for i, b := range blocks {
		if into[i] == 0 || !b.end.isJump() {
			continue
		}
		into[b.yes]++
		if b.branches() {
			into[b.no]++
		}
	}
	return into
}

// join makes a program of the blocks that are reached.
func join(blocks []block) program {
	into := ways(blocks)
	at := make([]int, len(blocks))
	n := 0
	for i, b := range blocks {
		at[i] = n
		if into[i] > 0 {
			n += len(b.body) + 1
		}
	}
	p := make(program, 0, n)
	for i, b := range blocks {
		if into[i] == 0 {
			continue
		}
		for _, in := range b.body {
			in.jt = len(p) + 1
			p = append(p, in)
		}
		switch {
		case b.end.isRet():
			p = append(p, b.end)
		case !b.branches():
			p = append(p, insn{op: opJump, jt: at[b.yes], jf: at[b.yes]})
		default:
			p = append(p, insn{op: b.end.op, k: b.end.k, jt: at[b.yes], jf: at[b.no]})
		}
	}
	return p
}
