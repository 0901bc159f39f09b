// SPDX-License-Identifier: Apache-2.0

package tlslib

// What is known of the contents of a register.
const (
	unknown = iota
	number  // the constant off[0]
	path    // what the argument root is, plus off[0], read as a pointer, plus off[1] and so on for depth pointers
)

// stack is the root of a path from the stack pointer, beyond those of the arguments.
const stack = 15

// maxDepth is how many pointers of a path are followed.
const maxDepth = 3

type value struct {
	kind, root, depth uint8
	off               [maxDepth + 1]int64
}

func constant(n uint64) value { return value{kind: number, off: [maxDepth + 1]int64{int64(n)}} }

// plus is the value with a constant added.
func (v value) plus(n int64) value {
	if v.kind != unknown {
		v.off[v.depth] += n
	}
	return v
}

// under is the path without its last offset, and the offset.
func (v value) under() (value, int64) {
	n := v.off[v.depth]
	v.off[v.depth] = 0
	return v, n
}

func (v value) is(n uint64) bool { return v.kind == number && v.off[0] == int64(n) }

// slots is how many places of the stack are remembered.
const slots = 24

// state is what is known of the registers at a place of the code. Integer registers have their number in instructions (31 is sp on
// arm64, 4 is rsp on x86_64), vector registers likewise.
type state struct {
	regs  [32]value
	vecs  [32]value
	saved [slots]struct {
		off int64
		v   value
	}
	count int
}

// store remembers a value on the stack.
func (s *state) store(addr, v value) {
	if addr.kind != path || addr.root != stack || addr.depth != 0 {
		return
	}
	for i := range s.count {
		if s.saved[i].off == addr.off[0] {
			s.saved[i].v = v
			return
		}
	}
	if s.count < slots {
		s.saved[s.count].off, s.saved[s.count].v = addr.off[0], v
		s.count++
	}
}

// load is what is read at an address as 8 bytes or more.
func (s *state) load(addr value) value {
	if addr.kind != path {
		return value{}
	}
	if addr.root == stack {
		for i := range s.count {
			if addr.depth == 0 && s.saved[i].off == addr.off[0] {
				return s.saved[i].v
			}
		}
		return value{}
	}
	if addr.depth == maxDepth {
		return value{}
	}
	addr.depth++
	return addr
}

// How an instruction goes on.
const (
	next = iota
	branch
	jump
	call
	end // return, a jump to where a register says, or what is no instruction
)

// step is what an instruction does besides changing registers.
type step struct {
	size   uint64 // bytes of it; 0: no instruction
	flow   int
	target uint64 // of a branch, jump or call; 0: unknown
	// A store, of one register or two.
	stored [2]value
	at     value
	width  int64 // bytes of each; 0: it stores nothing
	copied bool  // x86_64's rep movs: it copies from rsi to rdi
	// base is the address of a load of one byte, without its index.
	base value
}

// processor is the code of an architecture.
type processor interface {
	// step carries out the instruction at the beginning of b, which is at pc.
	step(s *state, b []byte, pc uint64) step
	// start is the state at a function's first instruction.
	start() state
	// called forgets what a call changes.
	called(s *state)
	// arguments are the numbers of the registers of the first six arguments.
	arguments() [6]int
}

// walk follows code from an address, with bounds, and tells of calls and stores.
type walk struct {
	m        *image
	cpu      processor
	branches bool // both ways, not only the one that does not jump
	steps    int  // at most so many instructions
	// called is told of each call, and of each jump (tail), which may be the last call of a function; it ends the walk by false.
	called func(s *state, target uint64, tail bool) bool
	stored func(at, v value)
	copied func(s *state)
	read   func(base value) // of a byte, told once for each instruction
}

func (w *walk) run(pc uint64, s state) {
	type place struct {
		pc uint64
		s  state
	}
	todo, seen := []place{{pc, s}}, map[uint64]uint8{}
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for s := &p.s; ; w.steps-- {
			// Another way to the same place may know more: it is followed a second time.
			if seen[p.pc] == 2 {
				break
			}
			seen[p.pc]++
			if w.steps == 0 {
				return
			}
			t := w.cpu.step(s, w.m.at(p.pc, 16), p.pc)
			if t.size == 0 || t.flow == end {
				break
			}
			if w.read != nil && t.base.kind == path && seen[p.pc] == 1 {
				w.read(t.base)
			}
			w.tell(s, t)
			p.pc += t.size
			switch t.flow {
			case branch:
				if w.branches && len(todo) < 64 {
					todo = append(todo, place{t.target, *s})
				}
			case jump, call:
				if w.called != nil && !w.called(s, t.target, t.flow == jump) {
					return
				}
				if t.flow == jump {
					p.pc = t.target
				} else {
					w.cpu.called(s)
				}
			}
			if t.flow == jump && t.target == 0 {
				break
			}
		}
	}
}

func (w *walk) tell(s *state, t step) {
	if t.copied && w.copied != nil {
		w.copied(s)
	}
	for i := range int64(2) {
		if t.width == 0 || i == 1 && t.stored[1].kind == unknown {
			break
		}
		at := t.at.plus(i * t.width)
		s.store(at, t.stored[i])
		if w.stored != nil {
			w.stored(at, t.stored[i])
		}
	}
}
