// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"sync/atomic"
	"time"

	"droidtap/agent/plugin"
)

const (
	// settleEvery is how long a stage waits before it asks again for what was not yet known.
	settleEvery = 5 * time.Millisecond
	// mostWaiting is how many bytes of records wait in a stage.
	mostWaiting = 16 << 20
)

// stage has the blocks of a ring settled on their way from the reader to the writer. It keeps their order: what is behind
// a block that waits, waits, too. The reader goes on meanwhile.
type stage struct {
	settler plugin.Settler
	batches pool
	send    func(*batch) // to the writer
	abort   <-chan struct{}
	after   func(time.Duration) <-chan time.Time
	in      chan *batch
	behind  atomic.Int64 // batches that were put and not sent: while there are any, the settler is the stage's goroutine's
	ended   chan struct{}

	queue []*batch
	bytes int // of queue's records
}

func newStage(s plugin.Settler, batches pool, send func(*batch), abort <-chan struct{}) *stage {
	return &stage{settler: s, batches: batches, send: send, abort: abort, after: time.After, in: make(chan *batch, 4), ended: make(chan struct{})}
}

// put takes a batch; on an abort it may be lost. As a rule all is known, and it goes on at once. It is called from one goroutine only.
func (s *stage) put(b *batch) {
	if s.behind.Load() == 0 {
		if b.settled = s.settler.Known(b.blocks); b.settled == len(b.blocks) {
			s.pass(b)
			return
		}
	}
	s.behind.Add(1)
	kept := b.keep()
	s.batches.recycle(b)
	select {
	case s.in <- kept:
	case <-s.abort:
	}
}

// pass sends a batch that is settled.
func (s *stage) pass(b *batch) {
	b.compact()
	if len(b.blocks) == 0 {
		s.batches.recycle(b)
		return
	}
	s.send(b)
}

// end has all settled that is there, and waits for that. Nothing may be put any more.
func (s *stage) end() {
	close(s.in)
	<-s.ended
}

// run ends by end. It wakes up only while something waits: an idle phone sleeps.
func (s *stage) run() {
	defer close(s.ended)
	var again <-chan time.Time // nil: nothing waits
	for {
		select {
		case b, open := <-s.in:
			if !open {
				s.advance(true)
				return
			}
			s.queue = append(s.queue, b)
			s.bytes += b.bytes
			if len(s.queue) > 1 && s.bytes <= mostWaiting {
				continue // the first one was asked for lately
			}
		case <-again:
			again = nil
		}
		s.advance(false)
		switch {
		case len(s.queue) == 0:
			again = nil
		case again == nil:
			again = s.after(settleEvery)
		}
	}
}

// advance sends the batches that are settled, or all of them if that was last.
func (s *stage) advance(last bool) {
	for len(s.queue) > 0 {
		b := s.queue[0]
		if !s.finish(b, last || s.bytes > mostWaiting) {
			return
		}
		s.queue[0] = nil
		s.queue = s.queue[1:]
		s.bytes -= b.bytes
		s.pass(b)
		s.behind.Add(-1)
	}
}

// finish tells whether all blocks of a batch are settled.
func (s *stage) finish(b *batch, last bool) bool {
	left := b.blocks[b.settled:]
	b.settled += min(max(0, s.settler.Settle(left, last)), len(left))
	return last || b.settled == len(b.blocks)
}
