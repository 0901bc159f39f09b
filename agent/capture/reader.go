// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"droidtap/agent/pcapng"
	"droidtap/agent/perf"
	"droidtap/agent/plugin"
)

const (
	// latency is how long a record may wait in a ring that is not filling up, and brief where what it is about has to be
	// asked for while it is there.
	latency = 100 * time.Millisecond
	brief   = 20 * time.Millisecond
	// prompt is where packets wait for what becomes of a record. A wake-up costs whoever makes the record more than all the
	// rest, and some are made at once.
	prompt = 2 * time.Millisecond
	// seldom is latency's place where nothing came for long, and the kernel cannot tell that something comes.
	seldom = 2500 * time.Millisecond
	// arenaSize is how many bytes of records make a batch; a larger record has its own memory.
	arenaSize = 256 << 10
	// fullSize is how many of them are enough.
	fullSize = arenaSize - arenaSize/4
	// minPerCPU holds a few of the largest perf records, in bytes.
	minPerCPU = 256 << 10
)

// batch is some blocks on their way from a reader to the writer. Their bytes
// belong to whoever holds the batch, and most of them lie in arena.
type batch struct {
	blocks  []pcapng.Block
	arena   []byte // nil: no batch of a reader's, or the arena is that of a later one
	used    int    // bytes of arena
	bytes   int    // of all records
	settled int    // of blocks
}

func newBatch() *batch { return &batch{arena: make([]byte, arenaSize)} }

func (b *batch) reset() *batch {
	clear(b.blocks)
	b.blocks, b.used, b.bytes, b.settled = b.blocks[:0], 0, 0, 0
	return b
}

// ring is the kernel's end of a stream of records.
type ring interface {
	// next returns the next record, in buf if it fits. When none is there it returns errEmpty, once; called again it
	// waits. After flush, when nothing is left, the error is one of which flushed is true.
	next(buf []byte) ([]byte, error)
	flush() error
	// ordered tells whether records come in the order of their time.
	ordered() bool
	Close() error
}

// errEmpty asks to hand on what came from a ring, for the next call may wait for long.
var errEmpty = errors.New("the ring is empty")

// flushed tells whether a ring has ended by flush.
func flushed(err error) bool { return errors.Is(err, plugin.ErrFlushed) }

// openRing opens the ring that m is, in which a record is to wait no longer than latency. buffer is in bytes, for all processors, and
// wakeup is how many of them may wait before the reader is woken.
func openRing(m *ebpf.Map, buffer, wakeup int, latency time.Duration, log *slog.Logger) (ring, error) {
	if m.Type() == ebpf.RingBuf {
		return openRingBuffer(m, wakeup, latency)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count the processors: %w", err)
	}
	perCPU := max(buffer/cpus, minPerCPU)
	// Before the events: a processor that comes online in between is not missed.
	uevents, err := perf.OpenUevents()
	if err != nil {
		log.Warn("packets will be dropped on processors that come online", "because", err)
	}
	p, err := openPerfEvents(m, perCPU, max(1, min(wakeup/cpus, perCPU/4)), uevents, log)
	if err != nil {
		return nil, err
	}
	return newPerfBuffer(p, latency, time.Now), nil
}

// perfBuffer looks into the buffers at times: the kernel wakes for a number of bytes, which is set when they are opened,
// and the first record has fewer. The times are latency apart while records come, and up to seldom while none do.
type perfBuffer struct {
	plugin.Ring
	latency time.Duration
	now     func() time.Time
	pause   time.Duration // before the look that comes next
	until   time.Time     // then it comes
	recent  bool          // a record came since the last one
}

func newPerfBuffer(r plugin.Ring, latency time.Duration, now func() time.Time) *perfBuffer {
	p := &perfBuffer{Ring: r, latency: latency, now: now}
	p.await(latency)
	return p
}

func (p *perfBuffer) await(pause time.Duration) {
	p.pause = pause
	p.until = p.now().Add(pause)
}

func (p *perfBuffer) next(buf []byte) ([]byte, error) {
	for {
		raw, err := p.Next(buf, p.until)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && p.recent:
			p.recent = false
			p.await(p.latency)
			return nil, errEmpty
		case errors.Is(err, os.ErrDeadlineExceeded):
			p.await(min(2*p.pause, seldom))
			continue
		case err != nil:
			return nil, err
		}
		if !p.recent && p.pause > p.latency {
			p.await(p.latency) // this one is not to wait for the rest of a long pause
		}
		p.recent = true
		return raw, nil
	}
}
func (p *perfBuffer) flush() error  { return p.Flush() }
func (p *perfBuffer) ordered() bool { return false }

// foreign is a ring that a source brought. It wakes by itself when it has records.
type foreign struct {
	plugin.Ring
	told bool // errEmpty was returned since the last record
}

func (f *foreign) next(buf []byte) ([]byte, error) {
	var until time.Time // none
	if !f.told {
		until = time.Unix(1, 0) // over: what is there, without a wait
	}
	raw, err := f.Next(buf, until)
	f.told = errors.Is(err, os.ErrDeadlineExceeded)
	if f.told {
		return nil, errEmpty
	}
	return raw, err
}
func (f *foreign) flush() error  { return f.Flush() }
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
// flushed and is empty. empty gives batches back, in the order in which they were sent. Where batches wait, small ones share
// an arena, which belongs to the last of them.
func read(r ring, decode func([]byte) (pcapng.Block, error), empty <-chan *batch, send func(*batch), wait bool) (t tally, err error) {
	b := newBatch()
	deliver := func() {
		if len(b.blocks) == 0 {
			return
		}
		if !r.ordered() {
			byTime(b.blocks)
		}
		if wait && b.used <= fullSize {
			send(&batch{blocks: b.blocks, bytes: b.bytes})
			b.blocks, b.bytes = nil, 0
			return
		}
		send(b)
		select {
		case used := <-empty:
			b = used.reset()
		default:
			b = newBatch()
		}
	}
	for {
		raw, err := r.next(b.arena[b.used:b.used])
		switch {
		case err == errEmpty:
			deliver()
			continue
		case flushed(err):
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
		if b.bytes += len(raw); b.bytes > fullSize || b.used > fullSize {
			deliver()
		}
	}
}
