// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// paper is a ring in plain memory, into which the test writes in place of the kernel.
type paper struct{ *Ring }

func newPaper(size int) paper {
	page := os.Getpagesize()
	return paper{newRing(-1, make([]byte, page+size), page)}
}

// write writes a record whose header says size, and whose body is that.
func (p paper) write(kind uint32, misc, size uint16, body []byte) {
	header := binary.NativeEndian.AppendUint32(nil, kind)
	header = binary.NativeEndian.AppendUint16(header, misc)
	header = binary.NativeEndian.AppendUint16(header, size)
	head := p.meta.Data_head
	for _, b := range append(header, body...) {
		p.data[head%uint64(len(p.data))] = b
		head++
	}
	atomic.StoreUint64(&p.meta.Data_head, head)
}

// free is the bytes that can be written.
func (p paper) free() int {
	return len(p.data) - int(p.meta.Data_head-atomic.LoadUint64(&p.meta.Data_tail))
}

// TestRing reads records of all lengths around the ring's end, and gives their place back.
func TestRing(t *testing.T) {
	p := newPaper(512)
	buf := make([]byte, 0, 128)
	for number := range 1000 {
		body := bytes.Repeat([]byte{byte(number)}, number*8%256)
		want := Record{Type: uint32(number), Misc: uint16(number), Size: uint64(Header + len(body))}
		if p.Look() {
			t.Fatalf("before record %d there is one", number)
		}
		p.write(want.Type, want.Misc, uint16(want.Size), body)
		if _, got, err := p.Next(buf); got != nil || err != nil {
			t.Fatalf("record %d is there before a look: %x, %v", number, got, err)
		}
		if !p.Look() {
			t.Fatalf("record %d is not seen", number)
		}
		rec, got, err := p.Next(buf)
		if diff := cmp.Diff(want, rec); diff != "" || err != nil || got == nil || !bytes.Equal(got, body) {
			t.Fatalf("record %d: %x, want %x, %v (-want +got):\n%s", number, got, body, err, diff)
		}
		if len(got) <= cap(buf) && cap(got) != cap(buf) {
			t.Fatalf("record %d is not in the buffer", number)
		}
		if p.Look(); p.meta.Data_tail != p.meta.Data_head {
			t.Fatalf("behind record %d the kernel is told %d, want %d", number, p.meta.Data_tail, p.meta.Data_head)
		}
	}
	p.write(1, 0, Header, nil)
	p.Look()
	if _, got, err := p.Next(nil); got == nil || err != nil {
		t.Errorf("a record of a header alone is none: %v", err)
	}
}

// TestRingGivesBack has room for more in the ring while a reader works off what one look saw, and all of it behind the next look.
func TestRingGivesBack(t *testing.T) {
	p := newPaper(64 << 10)
	const size = 256
	for p.free() >= size {
		p.write(1, 0, size, make([]byte, size-Header))
	}
	p.Look()
	for read := 0; ; read += size {
		if kept := read - p.free(); kept < 0 || kept > len(p.data)/8 {
			t.Fatalf("when %d bytes are read %d are free", read, p.free())
		}
		if rec, ok, _ := p.Peek(); ok {
			p.Skip(rec)
			continue
		}
		break
	}
	if p.Look() || p.free() != len(p.data) {
		t.Errorf("%d bytes are free at the end", p.free())
	}
}

// TestRingBroken reads nothing from records that cannot be.
func TestRingBroken(t *testing.T) {
	for _, c := range []struct {
		rule string
		size uint16
	}{
		{"shorter than its header", 0}, {"no multiple of 8", 12}, {"longer than what is there", 32},
	} {
		p := newPaper(512)
		p.write(unix.PERF_RECORD_LOST, 0, c.size, make([]byte, 16))
		p.Look()
		if _, got, err := p.Next(nil); err == nil || got != nil || p.meta.Data_tail != 0 {
			t.Errorf("%s: %x, %v", c.rule, got, err)
		}
	}
}

// TestOpenNowhere says which processor has no event, and why.
func TestOpenNowhere(t *testing.T) {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY}
	if _, err := Open(&attr, 0, 1<<15, os.Getpagesize()); !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v, want ENODEV or EINVAL", err)
	}
	if _, err := Open(&attr, 0, 0, 3*os.Getpagesize()); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a ring of three pages: %v, want EINVAL", err)
	}
}
