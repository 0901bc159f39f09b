// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
)

const (
	// windowSize is how many bytes of what a library keeps of a connection are looked through for its random: BoringSSL's
	// SSL3_STATE is no longer.
	windowSize = 1024
	// mostWindows and mostHellos bound what is compared: with a library whose guess is not yet proven, whatever comes first.
	mostWindows = 16
	mostHellos  = 64
)

// guesses are the libraries of which nothing in their file tells where the client random is. The handshakes that are
// captured do: the random is in the memory of the process whose handshake it is.
type guesses struct {
	memory func(pid uint32, at uint64, to []byte) (n int) // reads a process's
	again  func(secret)                                   // writes a secret once more, with the right random

	hellos  chan random
	windows chan window
	ended   chan struct{}
	run     sync.WaitGroup
}

// window is what lay around the random of a secret.
type window struct {
	secret
	bytes []byte // from secret.Base on
}

func newGuesses(memory func(uint32, uint64, []byte) int) guesses {
	return guesses{memory: memory, hellos: make(chan random, mostHellos), windows: make(chan window, mostWindows), ended: make(chan struct{})}
}

// end waits until nothing is compared any more.
func (g *guesses) end() {
	close(g.ended)
	g.run.Wait()
}

// hello has the random of a handshake that was captured compared with what processes have. It does not wait.
func (g *guesses) hello(r random) {
	select {
	case g.hellos <- r:
	default: // there are enough
	}
}

// guess has a secret compared with the handshakes if where its random is was guessed.
func (l *libraries) guess(s secret) {
	f := l.get(s.Number)
	if f == nil || !f.Guess || f.proven.Load() {
		return
	}
	w := window{s, make([]byte, windowSize)}
	w.bytes = w.bytes[:l.memory(s.PID, s.Base, w.bytes)]
	select {
	case l.windows <- w:
	default:
	}
}

// evidence is what prove has gathered.
type evidence struct {
	*libraries
	hellos  []random // the last ones
	windows []window
	votes   map[uint16]map[int]random // by function: where a random was found instead, and which one
}

// prove compares until end.
func (l *libraries) prove() {
	e := &evidence{libraries: l, votes: map[uint16]map[int]random{}}
	for {
		select {
		case <-l.ended:
			return
		case r := <-l.guesses.hellos:
			e.seen(r)
		case w := <-l.guesses.windows:
			e.look(w)
		}
	}
}

// seen compares the random of a handshake.
func (e *evidence) seen(r random) {
	if e.hellos = append(e.hellos, r); len(e.hellos) > mostHellos {
		e.hellos = e.hellos[1:]
	}
	e.windows = slices.DeleteFunc(e.windows, func(w window) bool { return e.compare(w, r) })
}

// look compares a secret.
func (e *evidence) look(w window) {
	if !slices.ContainsFunc(e.hellos, func(r random) bool { return e.compare(w, r) }) && len(e.windows) < mostWindows {
		e.windows = append(e.windows, w)
	}
}

// compare tells whether nothing more is to be learnt of a window: it has the random.
func (e *evidence) compare(w window, r random) bool {
	f := e.get(w.Number)
	if f == nil || f.proven.Load() {
		return true
	}
	if w.Random == r {
		f.proven.Store(true)
		e.log.Info("the client random is where it was thought to be", "path", f.name)
		return true
	}
	at := bytes.Index(w.bytes, r[:])
	if at < 0 {
		return false
	}
	w.Random = r
	e.again(w.secret)
	// One process can show what it likes, and the random of one handshake may lie in several places.
	if other, seen := e.votes[w.Number][at]; seen && other != r {
		e.move(f, at)
		return true
	}
	if e.votes[w.Number] == nil {
		e.votes[w.Number] = map[int]random{}
	}
	e.votes[w.Number][at] = r
	return true
}

// move has a function probed with its random elsewhere.
func (e *evidence) move(f *function, at int) {
	fn := f.Function
	fn.Path = append(slices.Clone(fn.Path[:len(fn.Path)-1]), uint32(at))
	again, err := e.probe(f.file, int64(f.id.base), fn, f.number)
	if err != nil {
		e.log.Warn("secrets of a library have wrong names", "path", f.name, "because", err)
		f.proven.Store(true) // as well as it can be
		return
	}
	e.mu.Lock()
	before := f.probe
	f.probe = again
	e.mu.Unlock()
	f.proven.Store(true)
	if err := before.Close(); err != nil {
		e.log.Debug("take off a probe", "error", err)
	}
	e.log.Info("the client random is elsewhere", "path", f.name, "way to it", fmt.Sprint(fn.Path))
}
