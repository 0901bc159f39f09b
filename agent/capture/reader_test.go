// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// busyRing has records of one size at once, and is never empty before its end.
type busyRing struct {
	left, size int
}

func (r *busyRing) next(buf []byte) ([]byte, error) {
	if r.left == 0 {
		return nil, plugin.ErrFlushed
	}
	r.left--
	if cap(buf) < r.size {
		buf = make([]byte, r.size)
	}
	raw := buf[:r.size]
	binary.LittleEndian.PutUint64(raw, uint64(r.left))
	return raw, nil
}
func (r *busyRing) lends() bool            { return false }
func (r *busyRing) lend() (lender, uint64) { return nil, 0 }
func (r *busyRing) flush() error           { return nil }
func (r *busyRing) Close() error           { return nil }

// numbered decodes the records of busyRing; those of odd number are bad.
type numbered struct{ bad bool }

func (numbered) Prepare(*ebpf.CollectionSpec, plugin.Target) error         { return nil }
func (numbered) Attach(*ebpf.Collection, plugin.Target) (io.Closer, error) { return nil, nil }
func (n numbered) Decode(raw []byte, p *pcapng.Packet) (pcapng.Block, error) {
	number := binary.LittleEndian.Uint64(raw)
	if n.bad && number%2 == 1 {
		return nil, errors.New("odd")
	}
	*p = pcapng.Packet{Time: int64(number), Data: raw}
	return p, nil
}

func numberedStream(r ring) *stream { return &stream{ring: r, decode: numbered{}.Decode} }

// A ring that is never idle must not make one endless batch, whatever the size of
// its records and whatever batches come back.
func TestBatchesAreBounded(t *testing.T) {
	for _, size := range []int{40, 1500, arenaSize - 1, arenaSize + 1} {
		const records = 3000
		batches := newPool()
		got := 0
		send := func(b *batch) {
			got += len(b.blocks)
			if b.bytes > 2*arenaSize || len(b.blocks) > slabSize {
				t.Fatalf("size %d: a batch of %d blocks and %d bytes", size, len(b.blocks), b.bytes)
			}
			batches.recycle(&batch{blocks: b.blocks[:1]}) // such as emit sends
			batches.recycle(b)
		}
		tally, err := read(numberedStream(&busyRing{records, size}), batches, send)
		if err != nil || got != records || tally.records != records || tally.bad != 0 {
			t.Errorf("size %d: %d of %d records, tally %+v, %v", size, got, records, tally, err)
		}
	}
}

func TestBadRecordsAreCounted(t *testing.T) {
	got := 0
	s := &stream{ring: &busyRing{100, 64}, decode: numbered{bad: true}.Decode}
	tally, err := read(s, newPool(), func(b *batch) { got += len(b.blocks) })
	if err != nil || got != 50 || tally.records != 100 || tally.bad != 50 || tally.why == nil {
		t.Errorf("%d blocks, tally %+v, %v", got, tally, err)
	}
}

// Packets are sorted by their time, and those of one time stay as they came.
func TestByTime(t *testing.T) {
	var blocks []pcapng.Block
	for n := range 500 {
		blocks = append(blocks, &pcapng.Packet{Time: int64(n * 7919 % 100), Length: uint32(n)})
	}
	byTime(blocks)
	for i := range blocks[1:] {
		p, q := blocks[i].(*pcapng.Packet), blocks[i+1].(*pcapng.Packet)
		if p.Time > q.Time || p.Time == q.Time && p.Length > q.Length {
			t.Fatalf("packet %d of time %d is before packet %d of time %d", p.Length, p.Time, q.Length, q.Time)
		}
	}
}

// askedRing is a plugin.Ring that has one record each time it is asked to wait, until it ends; it notes how it was asked.
type askedRing struct {
	left  int
	there bool
	asked []string
}

func (r *askedRing) Next(buf []byte, deadline time.Time) ([]byte, error) {
	switch {
	case deadline.IsZero():
		r.asked = append(r.asked, "wait without an end")
		if r.left == 0 {
			return nil, plugin.ErrFlushed
		}
		r.left--
		r.there = true
		return append(buf[:0], make([]byte, 64)...), nil
	case time.Until(deadline) > 0:
		r.asked = append(r.asked, "wait "+time.Until(deadline).String())
	default:
		r.asked = append(r.asked, "look")
		if r.there {
			r.there = false
			return append(buf[:0], make([]byte, 64)...), nil
		}
	}
	return nil, os.ErrDeadlineExceeded
}
func (r *askedRing) Flush() error { return nil }
func (r *askedRing) Close() error { return nil }

// A ring that wakes by itself is asked for all that is there, and then to wait as long as it takes, with nothing held back.
func TestIdleReaderWaits(t *testing.T) {
	r := &askedRing{left: 2}
	_, err := read(numberedStream(&foreign{Ring: r}), newPool(), func(b *batch) {
		r.asked = append(r.asked, fmt.Sprintf("%d handed on", len(b.blocks)))
	})
	round := []string{"wait without an end", "look", "look", "2 handed on"}
	want := slices.Concat([]string{"look"}, round, round, []string{"wait without an end"})
	if diff := cmp.Diff(want, r.asked); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// What is counted adds up, whether the output works or not.
func TestWriterCounts(t *testing.T) {
	full := errors.New("full")
	for _, tc := range []struct {
		rule              string
		out               io.Writer
		most              uint64
		captured, ignored uint64
	}{
		{"all", discard{}, 0, 10, 0},
		{"no more than -c", discard{}, 4, 4, 0},
		{"the output fails", failing{full}, 0, 0, 10},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			w := writerTo(t, tc.out, tc.most, true)
			go func() {
				defer close(w.in)
				w.in <- &batch{blocks: []pcapng.Block{&pcapng.Interface{Index: 1, Name: "a", LinkType: pcapng.Raw}}}
				for range 5 {
					w.in <- &batch{blocks: []pcapng.Block{&pcapng.Packet{Interface: 1}, &pcapng.Packet{Interface: 1}}}
				}
			}()
			w.run(pcapng.Section{})
			if got := w.written.Load(); got != tc.captured || w.lost() != tc.ignored {
				t.Errorf("%d captured, %d lost, want %d and %d", got, w.lost(), tc.captured, tc.ignored)
			}
			select {
			case <-w.failed:
				if !errors.Is(w.err, full) {
					t.Errorf("error %v", w.err)
				}
			default:
				if tc.ignored > 0 {
					t.Error("nobody is told that the output failed")
				}
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// A packet of an interface that was not described is counted, and nothing else is lost for it.
func TestWriterStrayPacket(t *testing.T) {
	w := writerTo(t, discard{}, 0, false)
	go func() {
		defer close(w.in)
		w.in <- &batch{blocks: []pcapng.Block{&pcapng.Packet{Interface: 7}, &pcapng.Interface{Index: 1, Name: "a"}, &pcapng.Packet{Interface: 1}}}
	}()
	w.run(pcapng.Section{})
	if w.written.Load() != 1 || w.lost() != 1 || w.err != nil {
		t.Errorf("%d written, %d lost, %v", w.written.Load(), w.lost(), w.err)
	}
}
