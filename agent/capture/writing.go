// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// mostNotes is how many comments wait for the next packet of an interface: the last ones.
const mostNotes = 8

// note is a comment on an interface, from a time on.
type note struct {
	time int64 // ns, wall clock
	text string
}

// writePacket writes a packet, in the next file if the one that is open is full.
func (w *writer) writePacket(p *pcapng.Packet) {
	if w.sated || !w.room(w.size()) && !w.fits() {
		return
	}
	if !w.working() && !w.usable() {
		w.ignored++
		return
	}
	if len(w.notes) > 0 {
		w.annotate(p)
	}
	if w.pause.trying {
		w.tell(p)
	}
	err := w.out.WritePacket(p)
	if err != nil || w.out.Queued() == 0 {
		w.wrote(err, true)
	}
	if err != nil {
		w.ignored++
		return
	}
	w.count()
	if w.packets++; w.packets == w.most {
		w.satisfied()
	}
}

// size is how many bytes the file has for its rotator. What it began with counts for nothing: a limit that is less than that would
// leave each file a single packet.
func (w *writer) size() int64 { return w.out.Size() - w.out.Recalled() }

// fits makes room for a packet in a file, where there may be several, and returns false if there is no more file for it.
func (w *writer) fits() bool {
	if w.file == nil {
		return true
	}
	switch w.full(w.size()) {
	case plugin.Next:
		w.turn()
	case plugin.End:
		w.satisfied()
		return false
	}
	return true
}

// turn ends the file that is open. The next packet begins another one: where none comes, nothing is written.
func (w *writer) turn() {
	now := w.now().UnixNano()
	for _, s := range w.counts() {
		total := s
		s.Time, s.Start, s.End = now, now, now
		w.writeCounters(&s) // its comment is about no packet
		w.before[s.Interface] = total
	}
	w.flush()
	w.files.end()
	w.out.Next(io.Discard) // it is told of interfaces meanwhile
}

// usable tells whether something can be written now, and opens a file for it if need be.
func (w *writer) usable() bool {
	switch {
	case w.err != nil:
		return false
	case w.pause.why == nil, w.pause.trying:
	case w.now().Before(w.pause.next):
		return false
	default:
		w.pause.trying = true
		w.out.Resume()
	}
	if w.file != nil {
		return true
	}
	if err := w.begin(); err != nil {
		w.fail(err)
		return false
	}
	w.out.Next(w.file)
	return true
}

// working tells whether the output works, as far as is known.
func (w *writer) working() bool {
	return w.err == nil && w.file != nil && (w.pause.why == nil || w.pause.trying)
}

// writeStatistics is writeCounters, and keeps the comment for the next packet.
func (w *writer) writeStatistics(s *pcapng.Statistics) {
	if s.Comment != "" {
		notes := append(w.notes[s.Interface], note{s.Time, s.Comment})
		w.notes[s.Interface] = notes[max(0, len(notes)-mostNotes):]
	}
	w.writeCounters(s)
}

// writeCounters writes what was counted of an interface since its file began.
func (w *writer) writeCounters(s *pcapng.Statistics) {
	if !w.working() {
		return
	}
	s.Delivered = w.out.Delivered(s.Interface)
	w.since(s)
	w.write(s)
}

// write writes a block to the file that is open. The error of the output has been dealt with.
func (w *writer) write(b pcapng.Block) error {
	worked := w.working()
	err := w.out.Write(b)
	w.wrote(err, worked)
	return err
}

// wrote deals with what came of writing a block; worked tells whether the output worked before.
func (w *writer) wrote(err error, worked bool) {
	switch {
	case err == nil:
		if w.out.Queued() == 0 {
			w.flushed()
		}
	case errors.Is(err, pcapng.ErrLinkType):
		if !w.misfits {
			w.misfits = true
			w.log.Warn("some packets are left out: pcapng, or a capture on any, would have them", "because", err)
		}
	case worked && !errors.Is(err, pcapng.ErrInterface):
		w.fail(err)
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

// tell gives the first packet behind a pause the comment on it.
func (w *writer) tell(p *pcapng.Packet) {
	n := w.lost() - w.pause.told // nothing is queued
	if n > 0 && !w.pause.said {
		p.Comments = append(p.Comments, fmt.Sprintf("%d packets were not written, in the %v before this one: %v",
			n, w.now().Sub(w.pause.since).Round(time.Millisecond), w.pause.why))
		w.pause.said = true
	}
}

func (w *writer) flush() {
	w.unflushed = false
	if !w.working() {
		return
	}
	if err := w.out.Flush(); err != nil {
		w.fail(err)
		return
	}
	w.flushed()
	w.flushedAt = w.now()
	if w.file != nil {
		w.syncer.wrote(w.file) // and not behind each write of a full buffer: one sync is for all that one look found
	}
}

// flushed is called when all that was written is in the file.
func (w *writer) flushed() {
	if w.file == nil || w.pause.why == nil {
		return
	}
	w.log.Warn("the output works again", "path", w.file.Name(), "packets not written", w.lost(),
		"after", w.now().Sub(w.pause.since).Round(time.Millisecond))
	w.pause = pause{told: w.lost()}
}

// fail is called once for each time that the output stops working.
func (w *writer) fail(err error) {
	if !w.persist {
		w.err = err
		close(w.failed)
		return
	}
	if w.pause.why == nil {
		w.log.Warn("nothing is written until the output works again", "because", err)
		w.pause.since = w.now()
	}
	w.pause.why, w.pause.trying, w.pause.said = err, false, false
	w.pause.next = w.now().Add(retryEvery)
}

// noRoom tells whether an error of the output's is over when there is room.
func noRoom(err error) bool {
	return errors.Is(err, plugin.ErrNoRoom) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// satisfied says that there are enough packets or files.
func (w *writer) satisfied() {
	if !w.sated {
		w.sated = true
		close(w.enough)
	}
}

// lost returns the packets that run took and that are not in the output.
func (w *writer) lost() uint64 { return w.ignored + w.packets - w.out.Packets() }
