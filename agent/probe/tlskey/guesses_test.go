// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"io"
	"log/slog"
	"os"
	"slices"
	"testing"

	"droidtap/agent/tlslib"
)

// paths keeps where it was told that the random is.
type paths struct {
	of     [][]uint32
	closed int
}

func (p *paths) probe(_ *os.File, _ int64, fn tlslib.Function, _ uint16) (io.Closer, error) {
	p.of = append(p.of, slices.Clone(fn.Path))
	return p, nil
}

func (p *paths) Close() error {
	p.closed++
	return nil
}

// TestGuesses has a library's memory in this process: its client random is where it was thought to be, or elsewhere.
func TestGuesses(t *testing.T) {
	const at = 0x58
	first, second := random{1, 2, 3}, random{4, 5, 6}
	seen := func(r random, thought uint32) window {
		state := make([]byte, windowSize)
		copy(state[at:], r[:])
		return window{secret{Random: random(state[thought:])}, state}
	}
	for _, c := range []struct {
		rule    string
		thought uint32
		windows []random // of two handshakes, or twice of one
		paths   [][]uint32
		again   int
		proven  bool
	}{
		{"a guess that is right", at, []random{first}, [][]uint32{{0x30, at}}, 0, true},
		{"a wrong one", 0x30, []random{first, second}, [][]uint32{{0x30, 0x30}, {0x30, at}}, 2, true},
		{"one process cannot move it", 0x30, []random{first, first, first}, [][]uint32{{0x30, 0x30}}, 3, false},
	} {
		for _, order := range []string{"handshakes first", "secrets first"} {
			t.Run(c.rule+", "+order, func(t *testing.T) {
				p := &paths{}
				l := newLibraries(p, nil, slog.New(slog.DiscardHandler))
				f, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if err := l.add(&library{name: "libx.so", file: f}, tlslib.Function{Path: []uint32{0x30, c.thought}, Guess: true}); err != nil {
					t.Fatal(err)
				}
				var again []random
				l.again = func(s secret) { again = append(again, s.Random) }
				e := &evidence{libraries: l, votes: map[uint16]map[int]random{}}
				tell := []func(){func() { e.seen(random{9}); e.seen(first); e.seen(second) }, func() {
					for _, r := range c.windows {
						e.look(seen(r, c.thought))
					}
				}}
				if order == "secrets first" {
					slices.Reverse(tell)
				}
				for _, f := range tell {
					f()
				}
				if len(again) != c.again || len(again) > 0 && again[0] != first {
					t.Errorf("written again: %x", again)
				}
				if !slices.EqualFunc(p.of, c.paths, slices.Equal[[]uint32]) || p.closed != len(c.paths)-1 {
					t.Errorf("probed with paths %v, and %d closed; want %v", p.of, p.closed, c.paths)
				}
				if got := l.get(0).proven.Load(); got != c.proven || len(e.windows) != 0 {
					t.Errorf("proven: %v; %d windows are kept", got, len(e.windows))
				}
			})
		}
	}
}

// TestGuessesAreBounded: neither handshakes nor secrets wait for anybody.
func TestGuessesAreBounded(t *testing.T) {
	l := newLibraries(&paths{}, func(uint32, uint64, []byte) int { return 0 }, slog.New(slog.DiscardHandler))
	if err := l.add(&library{}, tlslib.Function{Path: []uint32{0}, Guess: true}); err != nil {
		t.Fatal(err)
	}
	e := &evidence{libraries: l, votes: map[uint16]map[int]random{}}
	for n := range 10 * mostHellos {
		l.hello(random{byte(n), byte(n >> 8), 1})
		l.guess(secret{})
		e.seen(random{byte(n), byte(n >> 8), 1})
		e.look(window{})
	}
	if len(e.hellos) != mostHellos || len(e.windows) != mostWindows {
		t.Errorf("%d handshakes and %d secrets are kept", len(e.hellos), len(e.windows))
	}
}
