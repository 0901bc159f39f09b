// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/cilium/ebpf"

	"droidtap/agent/perf"
	"droidtap/agent/plugin"
)

const (
	// A record waits in a ring that is not filling up for latency at first, and the longer the longer records keep coming: up to
	// longest where they are few, else up to soon, so that it costs a power cut half a second to be on the disk then. It waits
	// brief where what it is about has to be asked for while it is there.
	latency = 100 * time.Millisecond
	soon    = 500 * time.Millisecond
	longest = time.Second
	brief   = 20 * time.Millisecond
	// few is how many bytes of records those are.
	few = 64 << 10
	// prompt is where packets wait for what becomes of a record. A wake-up costs whoever makes the record more than all the
	// rest, and some are made at once.
	prompt = 2 * time.Millisecond
	// minPerCPU holds a few of the largest perf records, in bytes.
	minPerCPU = 256 << 10
)

// ring is the kernel's end of a stream of records.
type ring interface {
	// next returns the next record, in the order of their time. When none is there it returns errEmpty, once; called again it
	// waits. After flush, when nothing is left, the error is one of which flushed is true.
	next(buf []byte) ([]byte, error)
	// lends tells whether next returns records where they lie in the ring. Else they are copied, to buf if they fit.
	lends() bool
	// lend returns who is to be told when the records that next returned since the last call are not needed any more, and the
	// number of this loan. It is called only if lends.
	lend() (lender, uint64)
	flush() error
	Close() error
}

// copying is what a ring is that lends nothing.
type copying struct{}

func (copying) lends() bool            { return false }
func (copying) lend() (lender, uint64) { return nil, 0 }

// errEmpty asks to hand on what came from a ring, for the next call may wait for long.
var errEmpty = errors.New("the ring is empty")

// flushed tells whether a ring has ended by flush.
func flushed(err error) bool { return errors.Is(err, plugin.ErrFlushed) }

// ringOptions say how a ring is read.
type ringOptions struct {
	buffer int           // bytes, for all processors
	wakeup int           // how many of them may wait before the reader is woken
	each   bool          // it is woken for each record
	most   time.Duration // for which a record waits where others keep coming
}

// openRing opens the ring that m is.
func openRing(m *ebpf.Map, o ringOptions, log *slog.Logger) (ring, error) {
	if m.Type() == ebpf.RingBuf {
		return openRingBuffer(m, o)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count the processors: %w", err)
	}
	perCPU := max(o.buffer/cpus, minPerCPU)
	// Before the events: a processor that comes online in between is not missed.
	uevents, err := perf.OpenUevents()
	if err != nil {
		log.Warn("packets will be dropped on processors that come online", "because", err)
	}
	watermark := 1
	if !o.each {
		watermark = max(1, min(o.wakeup/cpus, perCPU/4))
	}
	p, err := openPerfEvents(m, perCPU, watermark, uevents, log)
	if err != nil {
		return nil, err
	}
	if o.each {
		return &promptBuffer{Ring: p, now: time.Now, sleep: time.Sleep}, nil
	}
	return newPerfBuffer(p, min(o.most, latency), o.most, perCPU/16, time.Now), nil
}

// foreign is a ring that a source brought. It wakes by itself when it has records.
type foreign struct {
	copying
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
func (f *foreign) flush() error { return f.Flush() }

// tally is what a reader has seen.
type tally struct {
	records uint64
	bad     uint64 // records that could not be decoded
	why     error  // why the first of them could not
}

func (t tally) plus(u tally) tally {
	return tally{t.records + u.records, t.bad + u.bad, cmp.Or(t.why, u.why)}
}

// read hands the records of a stream to send, in batches, until its ring has been flushed and is empty.
func read(s *stream, batches pool, send func(*batch)) (t tally, err error) {
	b := batches.get(!s.lends())
	deliver := func() {
		if s.lends() {
			b.ring, b.loan = s.lend()
		}
		if len(b.blocks) == 0 {
			b.release()
			b.reset()
			return
		}
		send(b)
		b = batches.get(!s.lends())
	}
	for looked := false; ; {
		raw, err := s.next(b.arena[b.used:b.used])
		if err != nil {
			deliver()
			looked = false
			switch {
			case err == errEmpty:
				continue
			case flushed(err):
				return t, nil
			}
			return t, fmt.Errorf("read records: %w", err)
		}
		if !looked {
			looked = true
			if s.look != nil {
				s.look()
			}
		}
		t.records++
		b.bytes += len(raw)
		block, err := s.decode(raw[:len(raw):len(raw)], b.fresh())
		if err != nil {
			if t.bad++; t.bad == 1 {
				t.why = err
			}
		} else if block != nil { // else the bytes are the next record's
			b.add(block, raw)
		}
		if b.full() {
			b.more = true
			deliver()
			looked = false
		}
	}
}
