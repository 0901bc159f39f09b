// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// writerTo returns a writer with one file, which is out.
func writerTo(t *testing.T, out io.Writer, most uint64, eager bool) *writer {
	t.Helper()
	f := newFiles(func() (plugin.File, error) { return unnamed{out}, nil }, nil, slog.New(slog.DiscardHandler))
	if err := f.begin(); err != nil {
		t.Fatal(err)
	}
	return newWriter(f, most, eager)
}

type unnamed struct{ io.Writer }

func (unnamed) Name() string { return "a file" }
func (unnamed) Close() error { return nil }

// arrivals has what is written to it.
type arrivals chan int

func (a arrivals) Write(b []byte) (int, error) { a <- len(b); return len(b), nil }

// What comes long after the last flush is written at once, and starts no time. The first block that comes soon after it starts the
// rest of that time, and nothing else does.
func TestWriterFlushes(t *testing.T) {
	out, ended := make(arrivals, 10), make(chan struct{})
	w := writerTo(t, out, 0, false)
	clock := start // the writer's
	asked := make(chan time.Duration, 10)
	due := make(chan time.Time)
	w.now = func() time.Time { return clock }
	w.after = func(d time.Duration) <-chan time.Time { asked <- d; return due }
	go func() { w.run(pcapng.Section{}); close(ended) }()
	come := func(n int) {
		w.in <- &batch{blocks: []pcapng.Block{&pcapng.Interface{Index: n, Name: "a"}}}
		for taken := false; !taken; { // else the time may be over before
			w.do(func() { taken = len(w.in) == 0 })
		}
	}
	pass := func(d time.Duration) { w.do(func() { clock = clock.Add(d) }) }
	for round := range 3 {
		pass(flushEvery)
		come(3 * round)
		if n := <-out; n == 0 {
			t.Error("nothing is written")
		}
		pass(flushEvery / 5)
		come(3*round + 1)
		pass(flushEvery / 5)
		come(3*round + 2)
		if d := <-asked; d != flushEvery*4/5 {
			t.Errorf("%v, want %v", d, flushEvery*4/5)
		}
		due <- time.Time{}
		if n := <-out; n == 0 {
			t.Error("nothing is written")
		}
	}
	close(w.in)
	<-ended
	if len(asked) > 0 || len(out) > 0 {
		t.Errorf("%d times more are asked for, %d more are written", len(asked), len(out))
	}
}

// TestPutBoundsSecrets: any process can make secrets, and nobody may read the output.
func TestPutBoundsSecrets(t *testing.T) {
	w := writerTo(t, io.Discard, 0, false)
	for range mostAside + 3 {
		w.put(&pcapng.Secrets{Key: "k", Type: pcapng.TLSKeyLog, Data: []byte("line\n")})
	}
	w.put(&pcapng.Interface{Name: "wlan0"})
	if len(w.aside) != mostAside+1 || w.unwritten != 3 {
		t.Errorf("%d blocks wait, %d are left out", len(w.aside), w.unwritten)
	}
	w.out = pcapng.NewWriter(io.Discard, pcapng.Section{})
	if got := w.remarks(); len(got) != 1 || !strings.HasPrefix(got[0], "3 blocks of secrets") {
		t.Errorf("it says %q", got)
	}
}
