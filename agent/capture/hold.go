// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// besideRecord is about how many bytes a block has beside its record: the struct, its place in the batch, its comment.
const besideRecord = 256

// hold is the batches that wait, so that what is learned of their packets is written ahead of them. The writer's goroutine owns it.
type hold struct {
	followers []plugin.Follower
	lead      time.Duration            // for which each batch waits, from when the writer has it
	known     map[int]pcapng.Interface // the last of each index that came
	queue     []kept                   // the oldest first
	bytes     int                      // of the queue, in memory
	timer     <-chan time.Time         // when the oldest is due, or before; nil: nothing waits
	early     uint64                   // packets that were written before, because too many waited
}

// kept is a batch that waits.
type kept struct {
	*batch
	since time.Time
}

// newHold returns nil where nobody follows. Nothing waits for a classic file, which has nothing but packets.
func newHold(followers []plugin.Follower, classic bool) *hold {
	if len(followers) == 0 {
		return nil
	}
	h := &hold{followers: followers, known: map[int]pcapng.Interface{}}
	for _, f := range followers {
		if !classic {
			h.lead = max(h.lead, f.Lead())
		}
	}
	return h
}

// waits tells whether something does. It does not in a nil hold.
func (h *hold) waits() bool { return h != nil && len(h.queue) > 0 }

// due is when the writer is to look at what waits.
func (h *hold) due() <-chan time.Time {
	if h == nil {
		return nil
	}
	return h.timer
}

// describe notes an interface, and tells whether its index was another's.
func (h *hold) describe(i *pcapng.Interface) bool {
	old, ok := h.known[i.Index]
	h.known[i.Index] = pcapng.Interface{Name: i.Name, LinkType: i.LinkType}
	return ok && (old.Name != i.Name || old.LinkType != i.LinkType)
}

// follow shows the followers what came.
func (h *hold) follow(blocks []pcapng.Block) {
	for _, block := range blocks {
		switch b := block.(type) {
		case *pcapng.Interface:
			h.describe(b)
		case *pcapng.Packet:
			i, ok := h.known[b.Interface]
			if !ok {
				continue // it is not written either
			}
			for _, f := range h.followers {
				f.Follow(b, i.LinkType)
			}
		}
	}
}

// keep puts a batch behind those that wait.
func (h *hold) keep(b *batch, now time.Time) {
	h.queue = append(h.queue, kept{b, now})
	h.bytes += b.inMemory()
}

// next takes out the oldest batch if it is due, or too many bytes wait. Else it returns nil.
func (h *hold) next(now time.Time) *batch {
	switch {
	case len(h.queue) == 0:
		return nil
	case now.Sub(h.queue[0].since) >= h.lead:
	case h.bytes > mostWaiting:
		for _, b := range h.queue[0].blocks {
			if _, ok := b.(*pcapng.Packet); ok {
				h.early++
			}
		}
	default:
		return nil
	}
	return h.pop()
}

// pop takes out the oldest batch. There is one.
func (h *hold) pop() *batch {
	b := h.queue[0].batch
	h.queue[0] = kept{}
	h.queue = h.queue[1:]
	h.bytes -= b.inMemory()
	return b
}

// arm has the writer woken when the oldest batch is due.
func (h *hold) arm(now time.Time, after func(time.Duration) <-chan time.Time) {
	switch {
	case len(h.queue) == 0:
		h.timer, h.queue = nil, nil
	case h.timer == nil:
		h.timer = after(h.queue[0].since.Add(h.lead).Sub(now))
	}
}

// inMemory is about how many bytes a batch needs.
func (b *batch) inMemory() int { return b.bytes + besideRecord*(1+len(b.blocks)) }

// take has the followers see a batch and keeps it, or writes it where there are none.
func (w *writer) take(b *batch) {
	if w.hold == nil {
		w.writeAll(b.blocks)
		w.pool.recycle(b)
		return
	}
	byTime(b.blocks) // several processors write to a ring, and one of them may be interrupted
	w.hold.follow(b.blocks)
	w.hold.keep(b.keep(), w.now())
	w.pool.recycle(b)
	w.writeDue()
}

// byTime sorts packets. Blocks of other kinds keep their place.
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

// writeDue writes what has waited for long enough, behind what was put meanwhile.
func (w *writer) writeDue() {
	h := w.hold
	if h == nil {
		return
	}
	w.writeAside()
	told := h.early > 0
	now := w.now()
	for b := h.next(now); b != nil; b = h.next(now) {
		w.writeAll(b.blocks)
		now = w.now() // the output may have taken its time
	}
	h.arm(now, w.after)
	if h.early > 0 && !told {
		w.log.Warn("too many packets come for all of them to wait for the secrets that belong ahead of them", "bytes", mostWaiting)
	}
}

// catchUp writes all that was captured until now, for whoever wants to see it at once.
func (w *writer) catchUp() {
	if w.hold.waits() {
		w.writeAside()
		w.writeKept()
	}
}

// writeKept writes all that waits.
func (w *writer) writeKept() {
	for w.hold.waits() {
		w.writeAll(w.hold.pop().blocks)
	}
}

// remarks are what there is to say at the end of what should stand ahead of packets and does not, a line each.
func (w *writer) remarks() (all []string) {
	if h := w.hold; h != nil && h.early > 0 {
		all = append(all, fmt.Sprintf("%d packets did not wait %v for the secrets that belong ahead of them: too many came", h.early, h.lead))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unwritten > 0 {
		all = append(all, fmt.Sprintf("%d blocks of secrets are not in the file: the output was too slow for them", w.unwritten))
	}
	if n := w.out.Forgotten(); n > 0 && w.opened > 1 {
		all = append(all, fmt.Sprintf("the secrets of %d connections are not repeated in the files behind the one that has them: there were too many", n))
	}
	return all
}
