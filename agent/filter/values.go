// SPDX-License-Identifier: Apache-2.0

package filter

import "slices"

// value names what a register holds: two places where a value has one name hold the same
// number, whatever the packet.
type value int

// values names values by how they are made.
type values struct {
	names map[origin]value
	last  value
}

// origin is how a value is made: an instruction, and what A and X are there, where it matters.
type origin struct {
	op   uint16
	k    uint32
	a, x value
}

// fresh returns a value that is like no other.
func (vs *values) fresh() value {
	vs.last++
	return vs.last
}

func (vs *values) of(o origin) value {
	v, ok := vs.names[o]
	if !ok {
		v = vs.fresh()
		vs.names[o] = v
	}
	return v
}

// facts is what is known of values at a place in a program. It is never changed, only replaced.
type facts []fact

// fact is what is known of one value: what it may be, or how some comparisons went.
type fact struct {
	of    value
	among []uint32 // nil: anything
	tests []test
}

type test struct {
	op    uint16
	k     uint32
	holds bool
}

// Most of what is known is not worth its keep: a list compares one value with hundreds of constants.
const (
	maxFacts = 24
	maxAmong = 8
	maxTests = 8
)

func (fs facts) find(v value) int {
	return slices.IndexFunc(fs, func(f fact) bool { return f.of == v })
}

// decide tells how a comparison of v with a constant goes, if that is known.
func (fs facts) decide(v value, op uint16, k uint32) (holds, known bool) {
	at := fs.find(v)
	if at < 0 {
		return false, false
	}
	return fs[at].decide(op, k)
}

// few tells whether v is known to be one of a few numbers.
func (fs facts) few(v value) bool {
	at := fs.find(v)
	return at >= 0 && fs[at].among != nil
}

func (f fact) decide(op uint16, k uint32) (holds, known bool) {
	for i, v := range f.among {
		h := insn{op: op}.holds(v, k)
		if i > 0 && h != holds {
			return false, false
		}
		holds = h
	}
	if f.among != nil {
		return holds, true
	}
	for _, t := range f.tests {
		if t.op == op && t.k == k {
			return t.holds, true
		}
	}
	return false, false
}

// with returns facts to which the outcome of a comparison is added.
func (fs facts) with(v value, t test) facts {
	at := fs.find(v)
	f := fact{of: v}
	if at >= 0 {
		f = fs[at]
	}
	switch {
	case f.among != nil:
		f.among = slices.DeleteFunc(slices.Clone(f.among), func(k uint32) bool { return insn{op: t.op}.holds(k, t.k) != t.holds })
	case t.op == opJumpEq && t.holds:
		f = fact{of: v, among: []uint32{t.k}}
	case len(f.tests) < maxTests:
		f.tests = append(slices.Clone(f.tests), t)
	}
	switch {
	case at >= 0:
		fs = slices.Clone(fs)
		fs[at] = f
	case len(fs) < maxFacts:
		fs = append(slices.Clone(fs), f)
	}
	return fs
}

// or returns what is known where either fs or others hold.
func (fs facts) or(others facts) facts {
	var both facts
	for _, f := range fs {
		at := others.find(f.of)
		if at < 0 {
			continue
		}
		g := others[at]
		either := fact{of: f.of}
		if f.among != nil && g.among != nil {
			either.among = slices.Compact(slices.Sorted(slices.Values(slices.Concat(f.among, g.among))))
			if len(either.among) > maxAmong {
				either.among = nil
			}
		}
		if either.among == nil {
			for _, t := range slices.Concat(f.tests, g.tests) {
				h1, ok1 := f.decide(t.op, t.k)
				h2, ok2 := g.decide(t.op, t.k)
				if ok1 && ok2 && h1 == h2 && len(either.tests) < maxTests && !slices.Contains(either.tests, test{t.op, t.k, h1}) {
					either.tests = append(either.tests, test{t.op, t.k, h1})
				}
			}
		}
		if either.among != nil || either.tests != nil {
			both = append(both, either)
		}
	}
	return both
}
