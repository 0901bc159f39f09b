// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/pcapng"
)

// staged is a stage between a test and what comes out.
type staged struct {
	*stage
	out   chan *batch
	asks  chan ask // each call of settle waits for its answer
	waits chan chan time.Time
	abort chan struct{}
}

type ask struct {
	n    int // blocks
	last bool
	done chan int
}

func startStage() *staged {
	s := &staged{out: make(chan *batch, 1000), asks: make(chan ask), waits: make(chan chan time.Time, 1), abort: make(chan struct{})}
	s.stage = newStage(settlerFunc(func(blocks []pcapng.Block, last bool) int {
		a := ask{len(blocks), last, make(chan int)}
		s.asks <- a
		return <-a.done
	}), newPool(), func(b *batch) { s.out <- b }, s.abort)
	s.after = func(time.Duration) <-chan time.Time {
		c := make(chan time.Time, 1)
		s.waits <- c
		return c
	}
	go s.run()
	return s
}

// settlerFunc settles what it is asked for, and knows nothing.
type settlerFunc func(blocks []pcapng.Block, last bool) int

func (settlerFunc) Known([]pcapng.Block) int                 { return 0 }
func (f settlerFunc) Settle(b []pcapng.Block, last bool) int { return f(b, last) }

// answer waits until n blocks are asked for, and says how many are done.
func (s *staged) answer(t *testing.T, n int, last bool, done int) {
	t.Helper()
	a := <-s.asks
	if a.n != n || a.last != last {
		t.Errorf("%d blocks are asked for, last %t, want %d and %t", a.n, a.last, n, last)
	}
	a.done <- done
}

// got expects the next batch that comes out to have packets of these times.
func (s *staged) got(t *testing.T, want ...int64) {
	t.Helper()
	var times []int64
	for _, b := range (<-s.out).blocks {
		times = append(times, b.(*pcapng.Packet).Time)
	}
	if d := cmp.Diff(want, times); d != "" {
		t.Error(d)
	}
}

func (s *staged) gotNothing(t *testing.T) {
	t.Helper()
	select {
	case b := <-s.out:
		t.Errorf("%d blocks come out", len(b.blocks))
	default:
	}
}

// packets is a batch of packets of these times.
func packets(times ...int64) *batch {
	b := &batch{bytes: 100 * len(times)}
	for _, time := range times {
		b.blocks = append(b.blocks, &pcapng.Packet{Time: time})
	}
	return b
}

// What waits is asked for again, and what came behind it waits as well.
func TestStageWaits(t *testing.T) {
	s := startStage()
	s.put(packets(1, 2, 3))
	s.answer(t, 3, false, 1)
	again := <-s.waits
	s.put(packets(4))
	s.put(packets(5, 6))
	again <- time.Time{}
	s.answer(t, 2, false, 0)
	again = <-s.waits
	s.gotNothing(t)
	again <- time.Time{}
	s.answer(t, 2, false, 2)
	s.got(t, 1, 2, 3)
	s.answer(t, 1, false, 1)
	s.got(t, 4)
	s.answer(t, 2, false, 1)
	again = <-s.waits
	s.gotNothing(t)
	again <- time.Time{}
	s.answer(t, 1, false, 1)
	s.got(t, 5, 6)

	// Nothing waits, so nobody is woken: the next that is asked for is what comes.
	s.put(packets(7))
	s.answer(t, 1, false, 1)
	s.got(t, 7)
	s.end()
	select {
	case <-s.waits:
		t.Error("it is asked again, and nothing waits")
	default:
	}
}

func TestStageEnds(t *testing.T) {
	s := startStage()
	s.put(packets(1, 2))
	s.answer(t, 2, false, 1)
	<-s.waits
	s.put(packets(3))
	ended := make(chan struct{})
	go func() {
		s.end()
		close(ended)
	}()
	s.answer(t, 1, true, 0) // whatever it says, that was the last
	s.answer(t, 1, true, 1)
	<-ended
	s.got(t, 1, 2)
	s.got(t, 3)
}

// The first ones are not waited for any longer when too much waits. The reader never is.
func TestStageOverflows(t *testing.T) {
	s := startStage()
	s.put(packets(1))
	s.answer(t, 1, false, 0)
	<-s.waits
	for n := range int64(200) {
		s.put(packets(2 + n)) // does not wait for an answer
	}
	large := packets(1000)
	large.bytes = mostWaiting - 250
	s.put(large)
	for n := range int64(199) { // two of a hundred bytes may stay, beside the large one
		s.answer(t, 1, true, 0)
		s.got(t, 1+n)
	}
	s.answer(t, 1, false, 0)
	s.gotNothing(t)
	go s.end()
	for _, want := range []int64{200, 201, 1000} {
		s.answer(t, 1, true, 1)
		s.got(t, want)
	}
	<-s.ended
}

// Blocks that are set to nil are left out, and so are batches without any.
func TestStageLeavesOut(t *testing.T) {
	out := make(chan *batch, 3)
	s := newStage(settlerFunc(func(blocks []pcapng.Block, _ bool) int {
		for i, b := range blocks {
			if b.(*pcapng.Packet).Time%2 == 1 {
				blocks[i] = nil
			}
		}
		return len(blocks)
	}), newPool(), func(b *batch) { out <- b }, nil)
	go s.run()
	for _, b := range []*batch{packets(1, 2, 3, 4), packets(5, 7), packets(8)} {
		s.put(b)
	}
	s.end()
	o := &staged{out: out}
	o.got(t, 2, 4)
	o.got(t, 8)
	o.gotNothing(t)
}

// On an abort nobody takes what comes out, and all ends all the same.
func TestStageAborts(t *testing.T) {
	abort := make(chan struct{})
	c := &capture{writer: &writer{in: make(chan *batch)}, abort: abort}
	s := newStage(settlerFunc(func(blocks []pcapng.Block, last bool) int { return len(blocks) }), newPool(), c.send, abort)
	go s.run()
	s.put(packets(1)) // the stage has nowhere to send it
	close(abort)
	for n := range int64(100) {
		s.put(packets(n))
	}
	s.end()
}

// pausing is a ring that is empty behind each record, as one is that is read at once.
type pausing struct {
	busyRing
	paused bool
}

func (r *pausing) next(buf []byte) ([]byte, error) {
	if r.paused = !r.paused; !r.paused {
		return nil, errEmpty
	}
	return r.busyRing.next(buf)
}

// What a reader uses again is of a batch that was written.
func TestBatchesAreUsedAgain(t *testing.T) {
	const records, size = 20_000, 128
	batches, out := newPool(), make(chan *batch, 4)
	written := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := range out {
			for _, block := range b.blocks {
				p := block.(*pcapng.Packet)
				if n := binary.LittleEndian.Uint64(p.Data); int64(n) != p.Time || n != uint64(records-1-written) {
					t.Errorf("packet %d of time %d has the bytes of %d", written, p.Time, n)
				}
				written++
			}
			batches.recycle(b)
		}
	}()
	// Some wait for what comes behind them, so batches pile up.
	n := 0
	s := newStage(settlerFunc(func(blocks []pcapng.Block, last bool) int {
		if n++; n%3 == 0 && !last {
			return 0
		}
		return len(blocks)
	}), batches, func(b *batch) { out <- b }, nil)
	s.after = func(time.Duration) <-chan time.Time {
		c := make(chan time.Time)
		close(c)
		return c
	}
	go s.run()
	_, err := read(numberedStream(&pausing{busyRing: busyRing{records, size}}), batches, s.put)
	s.end()
	close(out)
	<-done
	if err != nil || written != records {
		t.Errorf("%d of %d records, %v", written, records, err)
	}
}
