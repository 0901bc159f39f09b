// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"bytes"
	"fmt"
	"slices"
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
	hellos  []random // the last ones
	windows []window
	proven  map[uint16]bool // by number of the function
}

// window is what lay around the random of a secret.
type window struct {
	secret
	bytes []byte // from secret.Base on
}

// random returns the client random of a secret's connection.
func (l *libraries) random(r secret) random {
	l.mu.Lock()
	defer l.mu.Unlock()
	if int(r.Number) >= len(l.probed) || !l.probed[r.Number].Guess || l.proven[r.Number] {
		return r.Random
	}
	w := window{r, make([]byte, windowSize)}
	w.bytes = w.bytes[:l.memory(r.PID, r.Base, w.bytes)]
	for _, hello := range l.hellos {
		if l.compare(w, hello) {
			return hello
		}
	}
	if len(l.windows) < mostWindows {
		l.windows = append(l.windows, w)
	}
	return r.Random
}

// hello compares the random of a handshake that was captured with what processes have.
func (l *libraries) hello(r random) {
	l.mu.Lock()
	var found []secret
	if l.hellos = append(l.hellos, r); len(l.hellos) > mostHellos {
		l.hellos = l.hellos[1:]
	}
	l.windows = slices.DeleteFunc(l.windows, func(w window) bool {
		is := l.compare(w, r)
		if is && w.Random != r {
			w.Random = r
			found = append(found, w.secret)
		}
		return is || l.proven[w.Number]
	})
	l.mu.Unlock()
	for _, f := range found {
		l.again(f)
	}
}

// compare tells whether a window has a random, which proves where it is, or tells where it is instead.
func (l *libraries) compare(w window, r random) bool {
	at := bytes.Index(w.bytes, r[:])
	if w.Random != r && at < 0 {
		return false
	}
	p := l.probed[w.Number]
	if l.proven == nil {
		l.proven = map[uint16]bool{}
	}
	l.proven[w.Number] = true
	if w.Random == r {
		l.log.Info("the client random is where it was thought to be", "path", p.name)
		return true
	}
	if p.file == nil {
		return true
	}
	fn := p.Function
	fn.Path = append(slices.Clone(fn.Path[:len(fn.Path)-1]), uint32(at))
	again, err := l.prober.probe(p.file, p.base, fn, w.Number)
	if err != nil {
		l.log.Warn("secrets of a library have wrong names", "path", p.name, "because", err)
		return true
	}
	if err := p.probe.Close(); err != nil {
		l.log.Debug("take off a probe", "error", err)
	}
	p.Function, p.probe = fn, again
	l.log.Info("the client random is elsewhere", "path", p.name, "path of it", fmt.Sprint(fn.Path))
	return true
}
