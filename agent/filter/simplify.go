// SPDX-License-Identifier: Apache-2.0

package filter

import "slices"

// simplify returns a shorter program with the same verdicts. It is for what libpcap's own
// optimiser would take too long over: a list of hundreds of hosts or ports, each of which looks
// at the same headers anew. It does for such lists what that optimiser does:
//
//   - what was asked already is not asked again (the type of the frame for each host);
//   - a register that holds a value already is not loaded with it again;
//   - in a row of questions of which each one alone accepts, those about one value stand together
//     (all sources, then all destinations), so that the code can search among them.
//
// In a packet that is cut off inside a header libpcap's program may end elsewhere than the one
// it was made of; on lists this one ends where that of libpcap's optimiser does. It passes
// once over the program.
func simplify(p program) program {
	if p.loops() {
		return p
	}
	s := simplifier{values: values{names: map[origin]value{}}, blocks: split(p)}
	s.live = settle(s.blocks)
	s.states = make([]*state, len(s.blocks))
	start := state{a: s.values.of(origin{op: classLd | modeImm}), x: s.values.of(origin{op: classLd | modeImm})}
	for w := range start.mem {
		start.mem[w] = s.values.fresh()
	}
	s.states[0] = &start
	for b := range s.blocks {
		s.block(b)
	}
	s.live = settle(s.blocks)
	s.group()
	return join(s.blocks)
}

// state is what is known where a block begins.
type state struct {
	a, x  value
	mem   [scratchWords]value
	facts facts
	reach uint32  // up to where the packet is known to have bytes
	done  []value // loads at other offsets that went well
}

func (s state) or(t state, vs *values) state {
	merge := func(v, w value) value {
		if v == w {
			return v
		}
		return vs.fresh()
	}
	both := state{a: merge(s.a, t.a), x: merge(s.x, t.x), facts: s.facts.or(t.facts), reach: min(s.reach, t.reach)}
	for i := range both.mem {
		both.mem[i] = merge(s.mem[i], t.mem[i])
	}
	for _, v := range s.done {
		if slices.Contains(t.done, v) {
			both.done = append(both.done, v)
		}
	}
	return both
}

// differs returns the registers that hold other values in t.
func (s state) differs(t state) (r registers) {
	if s.a != t.a {
		r |= registerA
	}
	if s.x != t.x {
		r |= registerX
	}
	for i := range s.mem {
		if s.mem[i] != t.mem[i] {
			r |= 1 << i
		}
	}
	return r
}

// maxDone is how many loads are remembered.
const maxDone = 8

// simplifier passes over the blocks in their order. All that leads to a block comes before it.
type simplifier struct {
	values values
	blocks []block
	live   []registers
	states []*state // where each block begins; nil: it is not reached
}

// step follows one instruction of a body. redundant: it changes nothing. safe: the program
// cannot end there.
func (s *simplifier) step(st *state, in insn) (redundant, safe bool) {
	safe = true
	o := origin{op: in.op, k: in.k}
	switch in.class() {
	case classSt:
		redundant = st.mem[in.k] == st.a
		st.mem[in.k] = st.a
		return redundant, true
	case classStx:
		redundant = st.mem[in.k] == st.x
		st.mem[in.k] = st.x
		return redundant, true
	case classMisc:
		redundant = st.a == st.x
		if in.op&miscTxa != 0 {
			st.a = st.x
		} else {
			st.x = st.a
		}
		return redundant, true
	case classALU:
		o.a = st.a
		if in.op&srcX != 0 {
			o.x = st.x
		}
		kind := in.op & opMask
		v := s.values.of(o)
		safe = kind != aluDiv && kind != aluMod || in.op&srcX == 0 || st.try(v)
		redundant = v == st.a
		st.a = v
		return redundant, safe
	}
	v := s.loaded(st, in, o)
	if in.isLoad() && !in.isExt() {
		if end, abs := in.isAbs(); abs {
			safe = end <= st.reach
			st.reach = max(st.reach, end)
		} else {
			safe = !in.beyond() && st.try(v)
		}
	}
	if in.class() == classLd {
		redundant = st.a == v
		st.a = v
	} else {
		redundant = st.x == v
		st.x = v
	}
	return redundant && safe, safe
}

// loaded names what a load gives. The same bytes have one name in A and in X.
func (s *simplifier) loaded(st *state, in insn, o origin) value {
	switch in.op & modeMask {
	case modeMem:
		return st.mem[in.k]
	case modeInd:
		o.x = st.x
	case modeImm, modeLen:
		o.op &^= classMask
	}
	return s.values.of(o)
}

// try notes that something that might fail went well, and tells whether it had before.
func (st *state) try(v value) bool {
	if slices.Contains(st.done, v) {
		return true
	}
	if len(st.done) < maxDone {
		st.done = append(slices.Clone(st.done), v)
	}
	return false
}

// block simplifies one block, whose state is known, and leads on to those that follow it.
func (s *simplifier) block(n int) {
	if s.states[n] == nil {
		return
	}
	b, st := &s.blocks[n], *s.states[n]
	var body []insn
	for _, in := range b.body {
		if redundant, _ := s.step(&st, in); !redundant {
			body = append(body, in)
		}
	}
	b.body = body
	if b.end.isRet() {
		return
	}
	b.tested = st.a
	if holds, known := s.decide(st, b); known {
		if !holds {
			b.yes = b.no
		}
		b.no = b.yes
	}
	if !b.branches() {
		b.yes = s.lead(st, b.yes)
		b.no = b.yes
		s.arrive(b.yes, st)
		return
	}
	yes, no := st, st
	yes.facts, no.facts = s.outcomes(st, b)
	b.yes, b.no = s.lead(yes, b.yes), s.lead(no, b.no)
	s.arrive(b.yes, yes)
	s.arrive(b.no, no)
}

// decide tells how the jump of a block goes from a state, if that is known.
func (s *simplifier) decide(st state, b *block) (holds, known bool) {
	if !b.branches() || b.end.op&srcX != 0 {
		return false, false
	}
	return st.facts.decide(st.a, b.end.op, b.end.k)
}

func (s *simplifier) outcomes(st state, b *block) (yes, no facts) {
	if b.end.op&srcX != 0 {
		return st.facts, st.facts
	}
	return st.facts.with(st.a, test{b.end.op, b.end.k, true}), st.facts.with(st.a, test{b.end.op, b.end.k, false})
}

func (s *simplifier) arrive(n int, st state) {
	if s.states[n] == nil {
		s.states[n] = &st
		return
	}
	both := s.states[n].or(st, &s.values)
	s.states[n] = &both
}

// maxAsked is how many open questions may lie between a block and the one where all answers meet: those
// about a value that is known to be one of a few, as the protocol is behind "port".
const maxAsked = 4

// lead returns the furthest block that is reached for certain from block n with what st knows,
// without what lies between doing anything that matters there.
func (s *simplifier) lead(st state, n int) int {
	return s.follow(st, st, n, maxAsked)
}

// follow does that. real is what the registers hold, st what they would hold had everything
// since been run. -1: there is none.
func (s *simplifier) follow(real, st state, n, asks int) int {
	best := n
	if real.differs(st)&s.live[n] != 0 {
		best = -1
	}
	b := &s.blocks[n]
	if b.end.isRet() {
		return best
	}
	for _, in := range b.body {
		if _, safe := s.step(&st, in); !safe {
			return best
		}
	}
	holds, known := s.decide(st, b)
	next := -1
	switch {
	case known || !b.branches():
		to := b.yes
		if known && !holds {
			to = b.no
		}
		next = s.follow(real, st, to, asks)
	case asks > 0 && b.end.op&srcX == 0 && st.facts.few(st.a):
		yes, no := st, st
		yes.facts, no.facts = s.outcomes(st, b)
		if next = s.follow(real, yes, b.yes, asks-1); next != s.follow(real, no, b.no, asks-1) {
			next = -1
		}
	}
	if next >= 0 {
		return next
	}
	return best
}

// group puts the questions about one value together where the order does not matter: in a row of
// blocks that lead to the same place if they hold, and else to the next, and only from the one before.
func (s *simplifier) group() {
	into := ways(s.blocks)
	grouped := make([]bool, len(s.blocks))
	for i := range s.blocks {
		if into[i] == 0 || grouped[i] || !s.blocks[i].branches() {
			continue
		}
		row := s.row(i, into)
		for _, n := range row {
			grouped[n] = true
		}
		s.sort(row)
	}
}

// row returns the longest row of such blocks that begins with block n.
func (s *simplifier) row(n int, into []int) []int {
	row := []int{n}
	first := s.blocks[n]
	if s.live[first.yes] != 0 {
		return row
	}
	for {
		last := s.blocks[row[len(row)-1]]
		n = last.no
		b := s.blocks[n]
		if len(b.body) == 0 && b.tested != last.tested {
			break // what A holds there comes from elsewhere
		}
		if !b.branches() || b.yes != first.yes || into[n] != 1 || b.end.op&srcX != 0 || first.end.op&srcX != 0 {
			break
		}
		var writes registers
		for _, in := range b.body {
			_, w := in.uses()
			writes |= w
		}
		if writes&^registerA != 0 || len(b.body) > 0 && b.needs(0)&registerA != 0 {
			break
		}
		row = append(row, n)
	}
	// What follows the row must not need what its last block left in A.
	for len(row) > 1 && s.live[s.blocks[row[len(row)-1]].no]&registerA != 0 {
		row = row[:len(row)-1]
	}
	return row
}

// sort puts a row in order: by value, in the order in which the values first come. The blocks
// change places, so that all still leads forwards.
func (s *simplifier) sort(row []int) {
	if len(row) < 3 {
		return
	}
	first := map[value]int{}
	old := make([]block, len(row))
	for i, n := range row {
		old[i] = s.blocks[n]
		if _, known := first[old[i].tested]; !known {
			first[old[i].tested] = i
		}
	}
	behind := old[len(old)-1].no
	slices.SortStableFunc(old, func(a, b block) int { return first[a.tested] - first[b.tested] })
	for i, n := range row {
		b := old[i]
		if i > 0 && b.tested == old[i-1].tested {
			b.body = nil // A holds it
		}
		b.no = behind
		if i+1 < len(row) {
			b.no = row[i+1]
		}
		s.blocks[n] = b
	}
}
