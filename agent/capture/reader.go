// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/perf"
	"github.com/cilium/ebpf/ringbuf"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

const (
	// latency is how long a record may wait in a ring that is not filling up.
	latency = 100 * time.Millisecond
	// arenaSize is how many bytes of records make a batch; a larger record has its own memory.
	arenaSize = 256 << 10
	// minPerCPU holds a few of the largest perf records, in bytes.
	minPerCPU = 256 << 10
)

// batch is some blocks on their way from a reader to the writer. Their bytes
// belong to whoever holds the batch, and most of them lie in arena.
type batch struct {
	blocks []pcapng.Block
	arena  []byte // nil: no batch of a reader's
	used   int    // bytes of arena
	bytes  int    // of all records
}

func newBatch() *batch { return &batch{arena: make([]byte, arenaSize)} }

func (b *batch) reset() *batch {
	clear(b.blocks)
	b.blocks, b.used, b.bytes = b.blocks[:0], 0, 0
	return b
}

// ring is the kernel's end of a stream of records.
type ring interface {
	// next returns the next record, in buf if it fits: os.ErrDeadlineExceeded
	// after the deadline and errFlushed after flush, each when nothing is left.
	next(buf []byte) ([]byte, error)
	deadline(time.Time)
	flush() error
	// idle tells that next would wait, as far as that can be known without asking.
	idle() bool
	// ordered tells whether records come in the order of their time.
	ordered() bool
	Close() error
}

var errFlushed = ringbuf.ErrFlushed

// openRing opens the ring that m is. buffer is in bytes, for all processors, and
// wakeup is how many of them may wait before the reader is woken.
func openRing(m *ebpf.Map, buffer, wakeup int) (ring, error) {
	if m.Type() == ebpf.RingBuf {
		r, err := ringbuf.NewReader(m)
		if err != nil {
			return nil, fmt.Errorf("open the ring buffer: %w", err)
		}
		return ringBuffer{r}, nil
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count the processors: %w", err)
	}
	perCPU := max(buffer/cpus, minPerCPU)
	r, err := perf.NewReaderWithOptions(m, perCPU, perf.ReaderOptions{Watermark: max(1, min(wakeup/cpus, perCPU/4))})
	if err != nil {
		return nil, fmt.Errorf("open the perf buffers: %w", err)
	}
	return perfBuffer{r}, nil
}

type ringBuffer struct{ *ringbuf.Reader }

func (r ringBuffer) next(buf []byte) ([]byte, error) {
	rec := ringbuf.Record{RawSample: buf}
	err := r.ReadInto(&rec)
	return rec.RawSample, err
}
func (r ringBuffer) deadline(t time.Time) { r.SetDeadline(t) }
func (r ringBuffer) flush() error         { return r.Flush() }
func (r ringBuffer) idle() bool           { return r.AvailableBytes() == 0 }
func (r ringBuffer) ordered() bool        { return true }

type perfBuffer struct{ *perf.Reader }

// next skips the kernel's notices of lost records: countsOf finds what is missing.
func (p perfBuffer) next(buf []byte) ([]byte, error) {
	for {
		rec := perf.Record{RawSample: buf}
		if err := p.ReadInto(&rec); err != nil {
			return nil, err
		}
		if rec.LostSamples == 0 {
			return rec.RawSample, nil
		}
	}
}
func (p perfBuffer) deadline(t time.Time) { p.SetDeadline(t) }
func (p perfBuffer) flush() error         { return p.Flush() }
func (p perfBuffer) idle() bool           { return false }
func (p perfBuffer) ordered() bool        { return false }

// foreign is a ring that a source brought.
type foreign struct {
	plugin.Ring
	until time.Time
}

func (f *foreign) next(buf []byte) ([]byte, error) { return f.Next(buf, f.until) }
func (f *foreign) deadline(t time.Time)            { f.until = t }
func (f *foreign) flush() error                    { return f.Flush() }
func (f *foreign) idle() bool {
	i, ok := f.Ring.(interface{ Idle() bool })
	return ok && i.Idle()
}
func (f *foreign) ordered() bool { return true }

// byTime sorts packets that came from the rings of several processors. Blocks of
// other kinds keep their place.
func byTime(blocks []pcapng.Block) {
	slices.SortStableFunc(blocks, func(a, b pcapng.Block) int {
		p, ok := a.(*pcapng.Packet)
		q, ok2 := b.(*pcapng.Packet)
		if !ok || !ok2 {
			return 0
		}
		return cmp.Compare(p.Time, q.Time)
	})
}

// tally is what a reader has seen.
type tally struct {
	records uint64
	bad     uint64 // records that could not be decoded
	why     error  // why the first of them could not
}

func (t tally) plus(u tally) tally {
	return tally{t.records + u.records, t.bad + u.bad, cmp.Or(t.why, u.why)}
}

// read hands the records of a ring to send, in batches, until the ring has been
// flushed and is empty. empty gives batches back.
func read(r ring, decode func([]byte) (pcapng.Block, error), empty <-chan *batch, send func(*batch)) (t tally, err error) {
	b := newBatch()
	deliver := func() {
		if len(b.blocks) == 0 {
			return
		}
		if !r.ordered() {
			byTime(b.blocks)
		}
		send(b)
		select {
		case used := <-empty:
			b = used.reset()
		default:
			b = newBatch()
		}
	}
	r.deadline(time.Now().Add(latency)) // perf buffers never call themselves idle
	for {
		if r.idle() {
			deliver()
			r.deadline(time.Now().Add(latency))
		}
		raw, err := r.next(b.arena[b.used:b.used])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			deliver()
			r.deadline(time.Now().Add(latency))
			continue
		case errors.Is(err, errFlushed), errors.Is(err, plugin.ErrFlushed):
			deliver()
			return t, nil
		case err != nil:
			deliver()
			return t, fmt.Errorf("read records: %w", err)
		}
		t.records++
		block, err := decode(raw)
		if err != nil {
			if t.bad++; t.bad == 1 {
				t.why = err
			}
			continue
		}
		if block == nil {
			continue // its bytes are the next record's
		}
		b.blocks = append(b.blocks, block)
		if len(raw) <= len(b.arena)-b.used {
			b.used += len(raw)
		}
		if b.bytes += len(raw); b.bytes > arenaSize-arenaSize/4 {
			deliver()
		}
	}
}
