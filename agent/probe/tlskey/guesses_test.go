// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"io"
	"log/slog"
	"os"
	"slices"
	"testing"
	"unsafe"

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
	state := new([windowSize]byte)
	right := random{1, 2, 3}
	copy(state[at:], right[:])
	base := uint64(uintptr(unsafe.Pointer(state)))
	seen := func(thought uint32) secret {
		return secret{PID: uint32(os.Getpid()), Base: base, Random: random(state[thought:])}
	}
	for _, c := range []struct {
		rule    string
		thought uint32
		packets string     // when the handshake was captured: "before" the secret was, or "after"
		paths   [][]uint32 // of all probes
		again   int
	}{
		{"a guess that is right", at, "before", [][]uint32{{0x30, at}}, 0},
		{"one that is known to be later", at, "after", [][]uint32{{0x30, at}}, 0},
		{"a wrong one", 0x30, "before", [][]uint32{{0x30, 0x30}, {0x30, at}}, 0},
		{"a wrong one that is known to be later", 0x30, "after", [][]uint32{{0x30, 0x30}, {0x30, at}}, 1},
	} {
		t.Run(c.rule, func(t *testing.T) {
			p := &paths{}
			var again []secret
			l := newLibraries(p, func(s secret) { again = append(again, s) }, new(reader).read, slog.New(slog.DiscardHandler))
			f, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := l.add(f, 0, "libx.so", tlslib.Function{Path: []uint32{0x30, c.thought}, Guess: true}); err != nil {
				t.Fatal(err)
			}
			for range mostHellos + 1 {
				l.hello(random{9})
			}
			if c.packets == "before" {
				l.hello(right)
			}
			got := l.random(seen(c.thought))
			if want := c.packets == "before" || c.thought == at; (got == right) != want {
				t.Errorf("the random is %x", got)
			}
			if c.packets == "after" {
				l.hello(right)
			}
			if len(again) != c.again || c.again > 0 && again[0].Random != right {
				t.Errorf("%d secrets are taken again", len(again))
			}
			if !slices.EqualFunc(p.of, c.paths, slices.Equal[[]uint32]) {
				t.Errorf("probed with paths %v, want %v", p.of, c.paths)
			}
			if p.closed != len(c.paths)-1 || len(l.windows) != 0 || len(l.hellos) > mostHellos {
				t.Errorf("%d probes are closed, %d windows are kept", p.closed, len(l.windows))
			}
			if other := (random{7}); l.random(secret{Random: other}) != other {
				t.Error("a guess that is proven is asked again")
			}
		})
	}
}
