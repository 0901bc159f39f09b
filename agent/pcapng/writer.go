// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

const (
	flushAt = 64 << 10  // bytes that make one write of the output
	maxData = 256 << 10 // libpcap's MAXIMUM_SNAPLEN; Wireshark gives up on a file with a longer packet

	// bufferSize has room for the largest packet behind an almost full buffer: only long comments, and the secrets at the start
	// of a file, make it grow.
	bufferSize = flushAt + maxData + 1024
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

	current map[int]uint32 // Index to the interface id of its latest Interface block; for pcap: to where it is in latest
	ids     map[identity]uint32
	safe    int          // of ids: those whose blocks are in the output
	latest  []*Interface // of each Index, in the order of the first ones: what the next file begins with
	secrets known
	// recalled is the bytes of the secrets with which the file began.
	recalled int64
	classic  *classic // nil: the files are pcapng
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
		current: make(map[int]uint32),
		ids:     make(map[identity]uint32),
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
	if b == nil {
		return errNil
	}
	b = w.remember(b) // after a failure, too, for when it is over
	if w.err != nil {
		return w.err
	}
	var err error
	if w.classic != nil {
		err = w.addRecord(b)
	} else {
		err = w.addBlock(b)
	}
	if err != nil || len(w.buf) < flushAt {
		return err
	}
	return w.Flush()
}

// addBlock queues a block of a pcapng file.
func (w *Writer) addBlock(b Block) error {
	// A type switch instead of a method of Block, so that a *Packet need not live on the heap.
	switch b := b.(type) {
	case *Packet:
		id, ok := w.current[b.Interface]
		if !ok {
			return fmt.Errorf("packet of interface %d: %w", b.Interface, ErrInterface)
		}
		w.buf = appendPacket(w.buf, id, b, w.news(b))
		w.queued++
	case *Interface:
		w.identify(b)
	case *Statistics:
		id, ok := w.current[b.Interface]
		if !ok {
			return fmt.Errorf("statistics of interface %d: %w", b.Interface, ErrInterface)
		}
		w.buf = appendStatistics(w.buf, id, b)
	case *Secrets:
		w.buf = appendSecrets(w.buf, b)
	}
	return nil
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
	w.out, w.written, w.safe, w.recalled = out, 0, 0, 0
	w.Resume()
}

// Resume has a Writer write again whose output had failed and may do so no more: it goes on behind the last whole block, to
// which the output has been cut back. The packets and statistics that were queued are lost.
func (w *Writer) Resume() {
	w.queued, w.err = 0, nil
	w.buf = w.buf[:0]
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
	maps.DeleteFunc(w.ids, func(_ identity, id uint32) bool { return int(id) >= w.safe })
	clear(w.current)
	for _, i := range w.latest {
		w.identify(i)
	}
	w.recall()
}

// remember keeps what files to come begin with, and returns what the one that is written lacks of b.
func (w *Writer) remember(b Block) Block {
	switch b := b.(type) {
	case *Interface:
		return w.rememberInterface(b)
	case *Secrets:
		return w.rememberSecrets(b)
	}
	return b
}

// rememberInterface makes b the interface of its index in files to come, and returns a copy of it.
func (w *Writer) rememberInterface(b *Interface) *Interface {
	kept := *b
	kept.Name, kept.Filter = strings.Clone(b.Name), strings.Clone(b.Filter)
	at := slices.IndexFunc(w.latest, func(i *Interface) bool { return i.Index == b.Index })
	if at < 0 {
		at = len(w.latest)
		w.latest = append(w.latest, &kept)
	} else {
		w.latest[at] = &kept
	}
	if w.classic != nil {
		w.current[b.Index] = uint32(at)
	}
	return &kept
}

// identify makes b the interface of its index in this file, and adds its block if it is new to it.
func (w *Writer) identify(b *Interface) {
	key := identity{b.Index, b.Name, b.LinkType}
	id, ok := w.ids[key]
	if !ok {
		id = uint32(len(w.ids))
		w.ids[key] = id
		w.buf = appendInterface(w.buf, b)
	}
	w.current[b.Index] = id
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
	w.queued = 0
	w.buf = w.buf[:0]
	if f, ok := w.out.(interface{ Truncate(int64) error }); ok && whole < n {
		err = errors.Join(err, f.Truncate(w.written))
	}
	w.err = fmt.Errorf("capture output: %w", err)
}
