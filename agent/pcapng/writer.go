// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	flushAt = 64 << 10  // bytes that make one write of the output
	maxData = 256 << 10 // libpcap's MAXIMUM_SNAPLEN; Wireshark gives up on a file with a longer packet
)

var errNil = errors.New("write a pcapng block: it is nil")

// Writer writes one pcapng section. It is not safe for concurrent use: one goroutine owns it.
//
// If the output fails in the middle of a block and has a Truncate(int64) error method (as a regular file has), it is
// cut back to the end of the last whole block, counted from the first byte this Writer wrote. An output that did not
// begin empty must not have that method.
type Writer struct {
	out     io.Writer
	buf     []byte // whole blocks that wait
	queued  uint64 // packets in buf
	written int64  // bytes of whole blocks in the output
	packets uint64 // packets in the output
	err     error  // of the first failed write, for good

	current map[int]uint32 // Index to the interface id of its latest Interface block
	ids     map[identity]uint32
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
		out: w,
		// Room for the largest packet behind an almost full buffer: only long comments make it grow.
		buf:     make([]byte, 0, flushAt+maxData+1024),
		current: make(map[int]uint32),
		ids:     make(map[identity]uint32),
	}
	writer.buf = appendSection(writer.buf, s)
	return writer
}

// Write queues b and writes everything queued once that is 64 KiB or more. It keeps nothing of b.
//
// An Interface with the index, name and link type of an earlier one adds nothing to the file. The error is
// ErrInterface, or that of the output, after which the Writer writes no more and always returns the same error.
func (w *Writer) Write(b Block) error {
	if w.err != nil {
		return w.err
	}
	// A type switch instead of a method of Block, so that a *Packet need not live on the heap.
	switch b := b.(type) {
	case *Packet:
		id, ok := w.current[b.Interface]
		if !ok {
			return fmt.Errorf("packet of interface %d: %w", b.Interface, ErrInterface)
		}
		w.buf = appendPacket(w.buf, id, b)
		w.queued++
	case *Interface:
		w.describe(b)
	case *Statistics:
		id, ok := w.current[b.Interface]
		if !ok {
			return fmt.Errorf("statistics of interface %d: %w", b.Interface, ErrInterface)
		}
		w.buf = appendStatistics(w.buf, id, b)
	default:
		return errNil
	}
	if len(w.buf) < flushAt {
		return nil
	}
	return w.Flush()
}

// Flush writes what is queued. Its errors are those of Write.
func (w *Writer) Flush() error {
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
	w.queued = 0
	w.buf = w.buf[:0]
	return nil
}

// Packets returns the number of packets whose whole block has reached the output.
func (w *Writer) Packets() uint64 { return w.packets }

// describe makes b the interface of its index, and adds its block if it is new to the file.
func (w *Writer) describe(b *Interface) {
	key := identity{b.Index, b.Name, b.LinkType}
	id, ok := w.ids[key]
	if !ok {
		id = uint32(len(w.ids))
		key.name = strings.Clone(b.Name)
		w.ids[key] = id
		w.buf = appendInterface(w.buf, b)
	}
	w.current[b.Index] = id
}

// fail records that only n bytes of the buffer got out, and cuts the output back to its last whole block.
func (w *Writer) fail(n int, err error) {
	whole, packets := wholeBlocks(w.buf[:n])
	w.written += int64(whole)
	w.packets += packets
	w.queued = 0
	w.buf = nil
	if f, ok := w.out.(interface{ Truncate(int64) error }); ok && whole < n {
		err = errors.Join(err, f.Truncate(w.written))
	}
	w.err = fmt.Errorf("capture output: %w", err)
}
