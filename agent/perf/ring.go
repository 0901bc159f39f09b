// SPDX-License-Identifier: Apache-2.0

// Package perf reads the rings of perf events: perf_event_open(2).
package perf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Header is the bytes of struct perf_event_header, with which each record begins (include/uapi/linux/perf_event.h).
const Header = 8

// enough is which part of a ring is given back to the kernel without waiting for the next look: what a reader that lags behind has read
// is no reason for the kernel to drop more.
const enough = 16

// Ring is a perf event and its ring. It has one user at a time.
//
// The records are read in place: Look, and for each that Peek finds U32 and Copy, and then Skip. Next does all of it but Look.
type Ring struct {
	fd         int
	pages      []byte // the mapping
	meta       *unix.PerfEventMmapPage
	data       []byte // a power of two
	head, tail uint64 // the kernel's position, of the last look, and ours
	told       uint64 // ours, as far as the kernel knows
}

// Record is one that lies in a ring.
type Record struct {
	Type uint32 // PERF_RECORD_*
	Misc uint16 // PERF_RECORD_MISC_*
	Size uint64 // bytes, with the header
}

// Open opens an event, of a process or of all (-1), on a processor. attr.Size is set here. size is the ring's in bytes, a power of two
// of pages. The error wraps what perf_event_open(2) or mmap(2) says: ENODEV while the processor is offline, EACCES or EPERM
// where perf_event_paranoid or SELinux forbids it.
func Open(attr *unix.PerfEventAttr, pid, cpu, size int) (*Ring, error) {
	attr.Size = uint32(unsafe.Sizeof(*attr))
	fd, err := unix.PerfEventOpen(attr, pid, cpu, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open a perf event of processor %d: %w", cpu, err)
	}
	page := os.Getpagesize()
	pages, err := unix.Mmap(fd, 0, page+size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map %d bytes of processor %d: %w", size, cpu, err), unix.Close(fd))
	}
	return newRing(fd, pages, page), nil
}

// newRing returns the ring in a mapping, or in bytes that stand in for one.
func newRing(fd int, pages []byte, page int) *Ring {
	// The page ahead of the ring begins with the struct, and is larger.
	return &Ring{fd: fd, pages: pages, meta: (*unix.PerfEventMmapPage)(unsafe.Pointer(&pages[0])), data: pages[page:]}
}

// FD is the event's: for poll(2), ioctl(2), and the slot of a map. It is the ring's.
func (r *Ring) FD() int { return r.fd }

// Close closes the event, and gives the memory back.
func (r *Ring) Close() error { return errors.Join(unix.Munmap(r.pages), unix.Close(r.fd)) }

// Look finds what the kernel has written by now, and tells whether there is any to read. It gives the place of all that was skipped back to
// the kernel.
func (r *Ring) Look() bool {
	r.giveBack()
	r.head = atomic.LoadUint64(&r.meta.Data_head)
	return r.head != r.tail
}

func (r *Ring) giveBack() {
	if r.told != r.tail {
		r.told = r.tail
		atomic.StoreUint64(&r.meta.Data_tail, r.tail)
	}
}

// Peek returns the next record, and false if the last look saw no more. The error is for what cannot be a record; nothing
// behind it can be read.
func (r *Ring) Peek() (Record, bool, error) {
	if r.tail == r.head {
		return Record{}, false, nil
	}
	// All records are a multiple of 8 bytes long, so that no header is in two pieces.
	header := r.data[r.tail&uint64(len(r.data)-1):][:Header]
	rec := Record{
		Type: binary.NativeEndian.Uint32(header),
		Misc: binary.NativeEndian.Uint16(header[4:]),
		Size: uint64(binary.NativeEndian.Uint16(header[6:])),
	}
	if rec.Size < Header || rec.Size%8 != 0 || rec.Size > r.head-r.tail {
		return Record{}, false, fmt.Errorf("a perf record of %d bytes where there are %d", rec.Size, r.head-r.tail)
	}
	return rec, true, nil
}

// U32 returns what is so many bytes into the next record, a multiple of 4.
func (r *Ring) U32(at uint64) uint32 {
	return binary.NativeEndian.Uint32(r.data[(r.tail+at)&uint64(len(r.data)-1):])
}

// Copy copies n bytes that are so many bytes into the next record, in up to two pieces, to the start of buf if they fit, or to a
// new slice. n is no more than the ring.
func (r *Ring) Copy(buf []byte, at, n uint64) []byte {
	from := r.data[(r.tail+at)&uint64(len(r.data)-1):]
	if uint64(len(from)) >= n {
		return append(buf[:0], from[:n]...)
	}
	return append(append(buf[:0], from...), r.data[:n-uint64(len(from))]...)
}

// Skip passes over the record that Peek returned. Its place is the kernel's again when enough of them are skipped, or at the next look: our
// position lies beside the kernel's in memory, and whoever writes one takes both away from the other's processor.
func (r *Ring) Skip(rec Record) {
	r.tail += rec.Size
	if r.tail-r.told >= uint64(len(r.data))/enough {
		r.giveBack()
	}
}

// Next returns the next record and what follows its header, in buf if it fits, and skips it. The bytes are nil if the last look saw no
// more.
func (r *Ring) Next(buf []byte) (Record, []byte, error) {
	rec, ok, err := r.Peek()
	if !ok {
		return rec, nil, err
	}
	if buf == nil {
		buf = []byte{} // a record of a header alone is one, too
	}
	body := r.Copy(buf, Header, rec.Size-Header)
	r.Skip(rec)
	return rec, body, nil
}
