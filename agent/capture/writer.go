// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"droidtap/agent/pcapng"
)

const (
	// flushEvery is how long a block may wait in the writer's buffer, and syncEvery how long what was written may be lost
	// by a power cut: less than a second in all, with what a sync takes (make bench-powercut). What comes after as long
	// without any is written and synced at once, in the wake-up that brought it.
	flushEvery = 250 * time.Millisecond
	syncEvery  = 250 * time.Millisecond
	// retryEvery is how often a writer tries again that may go on when there is room, while packets come.
	retryEvery = time.Second
)

// writer owns the files: nothing else writes to them while run runs.
type writer struct {
	*files
	out    *pcapng.Writer // set by run
	syncer *syncer
	in     chan *batch
	pool   pool
	most   uint64 // packets to write; 0: no limit
	eager  bool   // flush after each batch
	// persist: a failure of the output pauses the writer, and does not end the capture.
	persist bool
	format  func(io.Writer, pcapng.Section) *pcapng.Writer
	after   func(time.Duration) <-chan time.Time
	now     func() time.Time
	hold    *hold // nil: what comes is written at once

	mu    sync.Mutex
	aside []pcapng.Block // guarded by mu: to be written before the next batch
	// unwritten is how many secrets found no room there; guarded by mu.
	unwritten uint64
	more      chan struct{} // aside is not empty, as a rule
	asked     chan func()   // to be done on the writer's goroutine; see do
	ended     chan struct{} // closed when nothing of that is done any more

	enough    chan struct{}  // closed when there are enough packets or files
	failed    chan struct{}  // closed when the output has failed
	written   atomic.Uint64  // packets that have reached the output
	packets   uint64         // handed to out
	sated     bool           // enough is closed
	err       error          // why failed is closed
	ignored   uint64         // packets that could not be handed to out
	misfits   bool           // that some have another link type than their file was said
	notes     map[int][]note // by interface: comments for its next packet
	pause     pause
	unflushed bool      // something was handed to out since the last flush
	flushedAt time.Time // when it was, or run began
}

// pause is when the output has failed and may do so no more.
type pause struct {
	why    error // nil: there is none
	since  time.Time
	next   time.Time // when it is tried again
	trying bool      // it is being tried
	said   bool      // a packet of this try has the comment on it
	told   uint64    // packets that were lost, and are told in a file
}

func newWriter(f *files, most uint64, eager bool) *writer {
	return &writer{
		files: f, most: most, eager: eager, format: pcapng.NewWriter, after: time.After, now: time.Now,
		in:     make(chan *batch, 4),
		pool:   newPool(),
		more:   make(chan struct{}, 1),
		asked:  make(chan func()),
		ended:  make(chan struct{}),
		enough: make(chan struct{}),
		failed: make(chan struct{}),
		notes:  map[int][]note{},
	}
}

// start opens the first file. A writer that persists begins without one where there is no room yet.
func (w *writer) start() error {
	err := w.begin()
	if err != nil && w.persist && noRoom(err) {
		w.fail(err)
		return nil
	}
	return err
}

// run writes to the file that is open, and those after it, what comes until in is closed. The error is of files that could not
// be closed, or of the output that failed: then failed is closed, too, unless the writer is one that persists.
func (w *writer) run(head pcapng.Section) error {
	out := io.Writer(io.Discard)
	if w.file != nil {
		out = w.file
	}
	w.out = w.format(out, head)
	w.flushedAt = w.now()
	go w.closeAll()
	every := syncEvery
	if w.eager {
		every = 0
	}
	w.syncer = newSyncer(every, w.log)
	go w.syncer.run()
	defer w.syncer.end()
	var due <-chan time.Time // of the blocks in the buffer; nil: there is none
	for {
		w.written.Store(w.out.Packets())
		more := false // comes soon
		select {
		case b, open := <-w.in:
			w.writeAside()
			if !open {
				return w.finish()
			}
			more = b.more
			w.take(b)
		case <-w.more:
			w.writeAside()
		case <-w.hold.due():
			w.hold.timer = nil
			w.writeDue()
		case f := <-w.asked:
			f() // as a rule that leaves nothing to be flushed: a question has nothing written or synced
		case <-w.over:
			w.look()
			w.fits()
			continue
		case <-due:
			w.flush()
			due = nil
			continue
		}
		switch wait := flushEvery - w.now().Sub(w.flushedAt); {
		case !w.unflushed:
			due = nil
		case w.eager, wait <= 0 && !more:
			w.flush()
			due = nil
		case due == nil:
			due = w.after(max(wait, flushEvery/2))
		}
	}
}

// finish ends the last file. Its statistics have been sent.
func (w *writer) finish() error {
	w.writeKept()
	w.flush()
	w.written.Store(w.out.Packets())
	w.files.end()
	close(w.ended)
	closed := w.wait()
	switch {
	case w.err != nil:
		return w.err // that it cannot be closed says the same again
	case w.pause.why != nil:
		return errors.Join(w.pause.why, closed)
	}
	return closed
}

// do has f done on the writer's goroutine, waits for that and returns true, or false if the writer has ended.
func (w *writer) do(f func()) bool {
	done := make(chan struct{})
	select {
	case w.asked <- func() { f(); close(done) }:
		<-done
		return true
	case <-w.ended:
		return false
	}
}

// mostAside is how many blocks may wait aside before secrets are left out: any process can make them, and they are not read again.
const mostAside = 1 << 16

// put has blocks written before each batch that is sent from now on. It never waits: whoever keeps the hooks in place
// must go on while nobody reads the output.
func (w *writer) put(blocks ...pcapng.Block) {
	w.mu.Lock()
	for _, b := range blocks {
		if _, is := b.(*pcapng.Secrets); is && len(w.aside) >= mostAside {
			w.unwritten++
			continue
		}
		w.aside = append(w.aside, b)
	}
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
	if w.hold == nil {
		w.writeAll(blocks)
		return
	}
	for i, b := range blocks {
		if b, ok := b.(*pcapng.Interface); ok && w.hold.describe(b) {
			w.writeKept() // the packets that wait are of the interface that had the index when they came
		}
		w.writeAll(blocks[i : i+1])
	}
}

func (w *writer) writeAll(blocks []pcapng.Block) {
	w.look()
	for _, block := range blocks {
		switch b := block.(type) {
		case *pcapng.Packet:
			w.writePacket(b)
		case *pcapng.Statistics:
			w.writeStatistics(b)
		default:
			w.write(b)
		}
	}
	w.unflushed = w.unflushed || len(blocks) > 0
}
