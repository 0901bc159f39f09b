// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

const (
	flushAt = 64 << 10  // bytes that make one write of the output
	maxData = 256 << 10 // libpcap's MAXIMUM_SNAPLEN; Wireshark gives up on a file with a longer packet

	// bufferSize has room for the largest packet behind an almost full buffer: only long comments, and the secrets at the start
	// of a file, make it grow.
	bufferSize = flushAt + maxData + 1024

	// mostIndexes bounds what a Writer keeps of interfaces, 24 bytes for each.
	mostIndexes = 1 << 16
)

var errNil = errors.New("write a pcapng block: it is nil")

// Writer writes pcapng files of one section each, or pcap files, one after the other. It is not safe for concurrent use: one goroutine
// owns it.
//
// If the output fails in the middle of a block and has a Truncate(int64) error method (as a regular file has), it is
// cut back to the end of the last whole block, counted from the first byte this Writer wrote to it. An output that did not
// begin empty must not have that method.
type Writer struct {
	section Section
	out     io.Writer
	buf     []byte // whole blocks that wait
	queued  uint64 // packets in buf
	written int64  // bytes of whole blocks in the output
	packets uint64 // packets in all outputs
	err     error  // of the first failed write
	stretch int    // number of the file, or of its part behind a failure, with which comments may be lost

	interfaces []described // by Index
	order      []int       // the Indexes that were described, in the order in which the next file begins with them
	ids        []identity  // of the interfaces in this pcapng file, by their ids
	safe       int         // of ids: those whose blocks are in the output

	secrets known
	// recalled is the bytes of the secrets with which the file began.
	recalled int64
	classic  *classic // nil: the files are pcapng
}

// described is what was said of an Index.
type described struct {
	latest  *Interface // nil: none was described
	id      uint32     // of it, in this pcapng file
	packets uint64     // of the Index in this pcapng file, those that are queued included
}

// identity is what makes two Interface blocks the same interface: an index may be given to another one later.
type identity struct {
	index    int
	name     string
	linkType LinkType
}

// NewWriter returns a Writer to w with the section header queued. Nothing is written before Write has gathered
// 64 KiB, or Flush.
func NewWriter(w io.Writer, s Section) *Writer {
	writer := &Writer{
		section: s,
		out:     w,
		buf:     make([]byte, 0, bufferSize),
	}
	writer.buf = appendSection(writer.buf, s)
	return writer
}

// Write queues b and writes everything queued once that is 64 KiB or more. It keeps nothing of b.
//
// An Interface with the index, name and link type of an earlier one adds nothing to the file, but the next file begins
// with the later one. Secrets that the file has already add nothing to it either. The error is ErrInterface or
// ErrLinkType, or that of the output, after which the Writer writes no more and always returns the same error, until Resume
// or Next.
func (w *Writer) Write(b Block) error {
	var err error
	// A type switch instead of a method of Block, so that a *Packet need not live on the heap.
	switch b := b.(type) {
	case *Packet:
		return w.WritePacket(b)
	case *Interface:
		err = w.addInterface(b)
	case *Statistics:
		err = w.addStatistics(b)
	case *Secrets:
		err = w.addSecrets(b)
	default:
		return errNil
	}
	return w.added(err)
}

// WritePacket is Write, of which most calls are for packets.
func (w *Writer) WritePacket(p *Packet) error {
	if w.err != nil {
		return w.err
	}
	of := w.of(p.Interface)
	if of == nil {
		return fmt.Errorf("packet of interface %d: %w", p.Interface, ErrInterface)
	}
	if w.classic != nil {
		return w.added(w.addRecord(of.latest, p))
	}
	w.buf = appendPacket(w.buf, of.id, p, w.news(p))
	w.queued++
	of.packets++
	return w.added(nil)
}

// added writes what is queued if that is enough and there was no error.
func (w *Writer) added(err error) error {
	if err != nil || len(w.buf) < flushAt {
		return err
	}
	return w.Flush()
}

// addStatistics queues statistics.
func (w *Writer) addStatistics(s *Statistics) error {
	if w.err != nil || w.classic != nil {
		return w.err
	}
	of := w.of(s.Interface)
	if of == nil {
		return fmt.Errorf("statistics of interface %d: %w", s.Interface, ErrInterface)
	}
	w.buf = appendStatistics(w.buf, of.id, s)
	return nil
}

// of returns what was said of an Index, or nil if nothing was.
func (w *Writer) of(index int) *described {
	if uint(index) >= uint(len(w.interfaces)) || w.interfaces[index].latest == nil {
		return nil
	}
	return &w.interfaces[index]
}

// news returns the comments of a packet without what the file says of its topic already.
func (w *Writer) news(p *Packet) []string {
	t := p.Topic
	if t == nil || len(p.Comments) == 0 {
		return p.Comments
	}
	if t.stretch == w.stretch && t.text == p.Comments[0] {
		return p.Comments[1:]
	}
	t.stretch, t.text = w.stretch, p.Comments[0]
	return p.Comments
}

// Flush writes what is queued. Its errors are those of Write.
func (w *Writer) Flush() error {
	if w.err == nil && w.classic != nil {
		w.addHead()
	}
	if w.err != nil || len(w.buf) == 0 {
		return w.err
	}
	n, err := w.out.Write(w.buf)
	if err == nil && n < len(w.buf) {
		err = io.ErrShortWrite
	}
	if err != nil {
		w.fail(min(max(n, 0), len(w.buf)), err)
		return w.err
	}
	w.written += int64(n)
	w.packets += w.queued
	w.safe = len(w.ids)
	w.queued = 0
	w.buf = w.buf[:0]
	if cap(w.buf) > 2*bufferSize {
		w.buf = make([]byte, 0, bufferSize) // megabytes of secrets begin a file, and are not needed again soon
	}
	return nil
}

// Packets returns the number of packets whose whole block has reached an output.
func (w *Writer) Packets() uint64 { return w.packets }

// Delivered returns how many packets of an Index the pcapng file has, those that are queued included.
func (w *Writer) Delivered(index int) uint64 {
	if of := w.of(index); of != nil {
		return of.packets
	}
	return 0
}

// Size returns how many bytes the file has, those that are queued included.
func (w *Writer) Size() int64 { return w.written + int64(len(w.buf)) }

// Recalled returns how many bytes of them are secrets from before, with which the file began.
func (w *Writer) Recalled() int64 { return w.recalled }

// Queued returns how many bytes of them are queued.
func (w *Writer) Queued() int { return len(w.buf) }

// Waiting returns how many packets are among them.
func (w *Writer) Waiting() uint64 { return w.queued }

// Next begins another file, which stands alone: what the packets to come need of what was written is queued again. What was
// queued for the one before is lost if Flush has not written it.
func (w *Writer) Next(out io.Writer) {
	w.drop(w.buf)
	w.out, w.written, w.safe, w.recalled = out, 0, 0, 0
	for _, index := range w.order {
		w.interfaces[index].packets = 0
	}
	w.Resume()
}

// Resume has a Writer write again whose output had failed and may do so no more: it goes on behind the last whole block, to
// which the output has been cut back. The packets and statistics that were queued are lost.
func (w *Writer) Resume() {
	w.drop(w.buf)
	w.err = nil
	w.stretch++
	if w.classic != nil {
		if w.written == 0 {
			w.classic.linkType = 0
		}
		return
	}
	if w.written == 0 {
		w.buf = appendSection(w.buf, w.section)
	}
	w.ids = w.ids[:w.safe]
	for _, index := range w.order {
		w.identify(w.interfaces[index].latest)
	}
	w.recall()
}

// addInterface makes b the interface of its Index, in files to come, too.
func (w *Writer) addInterface(b *Interface) error {
	if b.Index < 0 || b.Index >= mostIndexes {
		return fmt.Errorf("describe interface %d: %w", b.Index, ErrInterface)
	}
	if b.Index >= len(w.interfaces) {
		w.interfaces = append(w.interfaces, make([]described, b.Index+1-len(w.interfaces))...)
	}
	of := &w.interfaces[b.Index]
	if of.latest == nil {
		w.order = append(w.order, b.Index)
	}
	kept := *b
	kept.Name, kept.Filter = strings.Clone(b.Name), strings.Clone(b.Filter)
	of.latest = &kept // after a failure, too, for when it is over
	if w.err == nil && w.classic == nil {
		w.identify(&kept)
	}
	return w.err
}

// identify makes i the interface of its Index in this file, and adds its block if it is new to it.
func (w *Writer) identify(i *Interface) {
	key := identity{i.Index, i.Name, i.LinkType}
	id := slices.Index(w.ids, key)
	if id < 0 {
		id = len(w.ids)
		w.ids = append(w.ids, key)
		w.buf = appendInterface(w.buf, i)
	}
	w.interfaces[i.Index].id = uint32(id)
}

// fail records that only n bytes of the buffer got out, and cuts the output back to its last whole block.
func (w *Writer) fail(n int, err error) {
	var whole, interfaces int
	var packets uint64
	if w.classic != nil {
		whole, packets = wholeRecords(w.buf[:n], w.written == 0)
	} else {
		whole, packets, interfaces = wholeBlocks(w.buf[:n])
	}
	w.written += int64(whole)
	w.packets += packets
	w.safe += interfaces
	w.drop(w.buf[whole:])
	if f, ok := w.out.(interface{ Truncate(int64) error }); ok && whole < n {
		err = errors.Join(err, f.Truncate(w.written))
	}
	w.err = fmt.Errorf("capture output: %w", err)
}

// drop empties the buffer, of which the blocks in lost reach no output.
func (w *Writer) drop(lost []byte) {
	for w.classic == nil && len(lost) > 0 {
		if le.Uint32(lost) == blockPacket {
			id := le.Uint32(lost[8:])
			w.interfaces[w.ids[id].index].packets--
		}
		lost = lost[le.Uint32(lost[4:]):]
	}
	w.queued, w.buf = 0, w.buf[:0]
}
