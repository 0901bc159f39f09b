// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"droidtap/agent/pcapng"
)

// flushEvery is how long a block may wait in the writer's buffer.
const flushEvery = time.Second

// writer owns the file: nothing else writes to it while run runs.
type writer struct {
	out   *pcapng.Writer // set by run
	in    chan *batch
	empty chan *batch // batches that readers may use again
	most  uint64      // packets to write; 0: no limit
	eager bool        // flush after each batch
	after func(time.Duration) <-chan time.Time

	mu    sync.Mutex
	aside []pcapng.Block // guarded by mu: to be written before the next batch
	more  chan struct{}  // aside is not empty, as a rule

	enough    chan struct{}  // closed when most packets are written
	failed    chan struct{}  // closed when the output has failed
	written   atomic.Uint64  // packets that have reached the output
	packets   uint64         // handed to out
	delivered map[int]uint64 // the same by interface
	err       error          // why failed is closed
	ignored   uint64         // packets that could not be handed to out
	notes     map[int][]note // by interface: comments for its next packet
}

// mostNotes is how many comments wait for the next packet of an interface: the last ones.
const mostNotes = 8

// note is a comment on an interface, from a time on.
type note struct {
	time int64 // ns, wall clock
	text string
}

func newWriter(most uint64, eager bool) *writer {
	return &writer{
		most: most, eager: eager, after: time.After,
		in:        make(chan *batch, 4),
		empty:     make(chan *batch, 4),
		more:      make(chan struct{}, 1),
		enough:    make(chan struct{}),
		failed:    make(chan struct{}),
		delivered: map[int]uint64{},
		notes:     map[int][]note{},
	}
}

// run writes to out what comes until in is closed, and flushes.
func (w *writer) run(out *pcapng.Writer) {
	w.out = out
	var due <-chan time.Time // of the blocks in the buffer; nil: there is none
	for {
		select {
		case b, open := <-w.in:
			if open && len(b.blocks) == 0 {
				w.recycle(b)
				continue
			}
			w.writeAside()
			if !open {
				w.flush()
				w.written.Store(out.Packets())
				return
			}
			w.writeAll(b.blocks)
			w.recycle(b)
		case <-w.more:
			w.writeAside()
		case <-due:
			w.flush()
			w.written.Store(out.Packets())
			due = nil
			continue
		}
		switch {
		case w.eager:
			w.flush()
		case due == nil:
			due = w.after(flushEvery)
		}
		w.written.Store(out.Packets())
	}
}

// put has blocks written before each batch that is sent from now on. It never waits: whoever keeps the hooks in place
// must go on while nobody reads the output.
func (w *writer) put(blocks ...pcapng.Block) {
	w.mu.Lock()
	w.aside = append(w.aside, blocks...)
	w.mu.Unlock()
	select {
	case w.more <- struct{}{}:
	default: // the writer has been told and not looked yet
	}
}

// writeAside writes what was put.
func (w *writer) writeAside() {
	w.mu.Lock()
	blocks := w.aside
	w.aside = nil
	w.mu.Unlock()
	w.writeAll(blocks)
}

func (w *writer) writeAll(blocks []pcapng.Block) {
	for _, block := range blocks {
		w.write(block)
	}
}

// recycle gives a reader's batch back.
func (w *writer) recycle(b *batch) {
	if b.arena == nil {
		return
	}
	select {
	case w.empty <- b:
	default:
	}
}

func (w *writer) write(block pcapng.Block) {
	p, isPacket := block.(*pcapng.Packet)
	if isPacket && w.most > 0 && w.packets == w.most {
		return
	}
	if w.err != nil {
		if isPacket {
			w.ignored++
		}
		return
	}
	if s, ok := block.(*pcapng.Statistics); ok {
		s.Delivered = w.delivered[s.Interface]
		if s.Comment != "" {
			notes := append(w.notes[s.Interface], note{s.Time, s.Comment})
			w.notes[s.Interface] = notes[max(0, len(notes)-mostNotes):]
		}
	}
	if isPacket && len(w.notes) > 0 {
		w.annotate(p)
	}
	err := w.out.Write(block)
	if err != nil && !errors.Is(err, pcapng.ErrInterface) {
		w.fail(err)
	}
	switch {
	case isPacket && err != nil:
		w.ignored++
	case isPacket:
		w.packets++
		w.delivered[p.Interface]++
		if w.packets == w.most {
			close(w.enough)
		}
	}
}

// annotate gives a packet the comments on its interface that are not younger. Records from before may still come after them.
func (w *writer) annotate(p *pcapng.Packet) {
	notes := w.notes[p.Interface]
	for len(notes) > 0 && notes[0].time <= p.Time {
		p.Comments = append(p.Comments, notes[0].text)
		notes = notes[1:]
	}
	if w.notes[p.Interface] = notes; len(notes) == 0 {
		delete(w.notes, p.Interface)
	}
}

func (w *writer) flush() {
	if w.err != nil {
		return
	}
	if err := w.out.Flush(); err != nil {
		w.fail(err)
	}
}

// lost returns the packets that run took and that are not in the output.
func (w *writer) lost() uint64 { return w.ignored + w.packets - w.out.Packets() }

func (w *writer) fail(err error) {
	w.err = err
	close(w.failed)
}
