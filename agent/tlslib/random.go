// SPDX-License-Identifier: Apache-2.0

package tlslib

// randomSize is the bytes of a client random.
const randomSize = 32

// ways counts the ways to a client random that code shows.
type ways map[value]int

// best is the one way that was seen most. There is none if another was seen as often.
func (w ways) best() (way value, ok bool) {
	most := 0
	for v, n := range w {
		if n > most {
			way, most, ok = v, n, true
		} else if n == most {
			ok = false
		}
	}
	return way, ok
}

// add counts a way from the first argument. Offsets of structs are positive.
func (w ways) add(v value) {
	if v.kind != path || v.root != 0 || v.off[v.depth] == 0 {
		return
	}
	for _, n := range v.off[:v.depth+1] {
		if n < 0 || n >= 1<<20 {
			return
		}
	}
	w[v]++
}

// accessorWay is the way that an accessor takes: SSL_get_client_random(ssl, out, max_out) copies the random to out, by a call of
// memcpy or by loads and stores; gnutls_session_get_random(session, client, server) stores the address of it in *client.
func accessorWay(m *image, cpu processor, addr uint64) (value, bool) {
	args := cpu.arguments()
	out := value{kind: path, root: 1}
	calls, inline, pointers := ways{}, ways{}, ways{}
	w := walk{m: m, cpu: cpu, steps: 2000, branches: true}
	copied := func(s *state) {
		if s.regs[args[0]] == out {
			calls.add(s.regs[args[1]])
		}
	}
	w.copied = copied
	w.called = func(s *state, target uint64, tail bool) bool {
		copied(s)
		return true
	}
	w.stored = func(at, v value) {
		to, n := at.under()
		if v.kind != path || v.root != 0 || to != out {
			return
		}
		if n == 0 {
			pointers.add(v)
		}
		// What was read at a place is a path with nothing added. The place is the one before it.
		if v.depth > 0 && v.off[v.depth] == 0 {
			v.depth--
			inline.add(v.plus(-n))
		}
	}
	w.run(addr, cpu.start())
	for _, found := range []ways{calls, inline, pointers} {
		if way, ok := found.best(); ok {
			return way, true
		}
	}
	return value{}, false
}

// functionWay is the way that the function itself takes, which writes a line with the random: it hands it on, with 32 as the
// argument after it, or reads it byte by byte.
func functionWay(m *image, cpu processor, addr uint64) (value, bool) {
	args, handed, read := cpu.arguments(), ways{}, ways{}
	w := walk{m: m, cpu: cpu, steps: 2000, branches: true}
	w.called = func(s *state, target uint64, tail bool) bool {
		for i := range len(args) - 1 {
			if s.regs[args[i+1]].is(randomSize) {
				handed.add(s.regs[args[i]])
			}
		}
		return true
	}
	// Only with a pointer between: the struct itself has bytes of other kinds.
	w.read = func(base value) {
		if base.depth > 0 {
			read.add(base)
		}
	}
	w.run(addr, cpu.start())
	if way, ok := handed.best(); ok {
		return way, true
	}
	return read.first()
}

// first is the lowest of ways to the bytes of one random.
func (w ways) first() (way value, ok bool) {
	for v := range w {
		if !ok || v.off[v.depth] < way.off[way.depth] {
			way, ok = v, true
		}
	}
	for v := range w {
		v, n := v.under()
		if base, first := way.under(); v != base || n-first >= randomSize {
			return way, false
		}
	}
	return way, ok
}
