// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"cmp"
	"slices"
)

// undecided stands for a node where the program would jump back once more than the code can.
const undecided = -1

// node is an instruction in the code. yes and no are the nodes where it goes on.
type node struct {
	insn
	yes, no int
	into    int // how many nodes lead here
}

// layout is a program in the order in which its code is written. What is not reached is left
// out, since the verifier refuses it, and everything leads forwards: an instruction of a loop
// is there once for each round.
type layout []node

// place is an instruction and the number of jumps backwards before it. What lies behind all
// loops is there once.
type place struct{ round, at int }

const behindLoops = maxRounds + 1

// lay lays a program out. Where ends says so an instruction leads nowhere.
func lay(p program, ends func(insn) bool) layout {
	again := p.loopsAgain()
	next := func(from place, to int) (place, bool) {
		switch {
		case !again[to]:
			return place{behindLoops, to}, true
		case to > from.at:
			return place{from.round, to}, true
		}
		return place{from.round + 1, to}, from.round < maxRounds
	}
	start, _ := next(place{}, 0)
	if again[0] {
		start = place{}
	}
	index := map[place]int{start: 0}
	reached := []place{start}
	for i := 0; i < len(reached); i++ {
		in := p[reached[i].at]
		if ends(in) {
			continue
		}
		for _, at := range in.next() {
			to, decided := next(reached[i], at)
			if _, known := index[to]; decided && !known {
				index[to] = 0
				reached = append(reached, to)
			}
		}
	}
	slices.SortFunc(reached, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.round, b.round), cmp.Compare(a.at, b.at))
	})
	for n, at := range reached {
		index[at] = n
	}
	l := make(layout, len(reached))
	for n, from := range reached {
		l[n].insn = p[from.at]
		l[n].yes, l[n].no = undecided, undecided
		if ends(l[n].insn) || l[n].isRet() {
			continue
		}
		find := func(at int) int {
			to, decided := next(from, at)
			if !decided {
				return undecided
			}
			l[index[to]].into++
			return index[to]
		}
		l[n].yes = find(l[n].jt)
		if l[n].isJump() && !l[n].isAlways() {
			l[n].no = find(l[n].jf)
		}
	}
	return l
}

// loopsAgain tells of each instruction whether the program can jump backwards from there on.
func (p program) loopsAgain() []bool {
	again := make([]bool, len(p))
	if !p.loops() {
		return again
	}
	for changed := true; changed; {
		changed = false
		for i, in := range slices.Backward(p) {
			for _, to := range in.next() {
				if !again[i] && (to <= i || again[to]) {
					again[i], changed = true, true
				}
			}
		}
	}
	return again
}

// needs returns for each node how far the packet must be checked to reach before a load at a
// fixed offset, or 0: it is known already. The check looks ahead to all loads that follow in
// any case, since without their bytes the program ends the same way. Loads that end behind
// limit are not counted.
func (l layout) needs(limit uint32) []uint32 {
	const everything = 1<<32 - 1
	need := make([]uint32, len(l))
	known := make([]uint32, len(l)) // up to where the packet reaches, on every way here
	for n := 1; n < len(known); n++ {
		known[n] = everything
	}
	for n, in := range l {
		if end, ok := in.isAbs(); ok && end <= limit && end > known[n] {
			need[n] = l.ahead(n, limit)
			known[n] = need[n]
		}
		for _, to := range []int{in.yes, in.no} {
			if to != undecided {
				known[to] = min(known[to], known[n])
			}
		}
	}
	return need
}

func (l layout) ahead(n int, limit uint32) uint32 {
	var furthest uint32
	for n != undecided && !l[n].isJump() {
		if end, ok := l[n].isAbs(); ok && end <= limit {
			furthest = max(furthest, end)
		}
		n = l[n].yes
	}
	return furthest
}

// run returns the nodes, from n on, that do nothing but compare A with a constant each, and go to
// the same node where it is equal and on to the next one otherwise.
func (l layout) run(n int) []int {
	var run []int
	for to := l[n].yes; l[n].op == opJumpEq && l[n].yes == to; n = l[n].no {
		if len(run) > 0 && l[n].into != 1 {
			break
		}
		run = append(run, n)
	}
	return run
}
