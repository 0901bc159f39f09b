// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"slices"
	"time"

	"droidtap/agent/pcapng"
)

const (
	// settleEvery is how long a stage waits before it asks again for what was not yet known.
	settleEvery = 5 * time.Millisecond
	// mostWaiting is how many bytes of records wait in a stage.
	mostWaiting = 16 << 20
)

// settle is plugin.Settler's.
type settle func(blocks []pcapng.Block, last bool) (done int)

// stage has the blocks of a ring settled on their way from the reader to the writer. It keeps their order: what is behind
// a block that waits, waits, too. The reader goes on meanwhile.
type stage struct {
	settle settle
	send   func(*batch) // to the writer
	abort  <-chan struct{}
	after  func(time.Duration) <-chan time.Time
	in     chan *batch
	ended  chan struct{}

	queue []*batch
	bytes int // of queue's records
}

func newStage(s settle, send func(*batch), abort <-chan struct{}) *stage {
	return &stage{settle: s, send: send, abort: abort, after: time.After, in: make(chan *batch, 4), ended: make(chan struct{})}
}

// put takes a batch; on an abort it may be lost.
func (s *stage) put(b *batch) {
	select {
	case s.in <- b:
	case <-s.abort:
	}
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
		b.blocks = slices.DeleteFunc(b.blocks, func(b pcapng.Block) bool { return b == nil })
		// An empty one, too, by way of the writer: others may share its arena.
		s.send(b)
	}
}

// finish tells whether all blocks of a batch are settled.
func (s *stage) finish(b *batch, last bool) bool {
	left := b.blocks[b.settled:]
	b.settled += min(max(0, s.settle(left, last)), len(left))
	return last || b.settled == len(b.blocks)
}
