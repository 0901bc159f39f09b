// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Samples are what bpf_perf_event_output puts into a ring. What a program writes there begins with the time, in 8 bytes, little endian, as
// struct event of bpf/src/agent.h does.
type Samples struct {
	*Ring
	seen uint64 // the kernel's position at the last glance
	next sample // behind those that were taken; size 0: the last look saw no more
}

// sample is one that lies in the ring.
type sample struct {
	rec  Record
	size uint64 // bytes of what the program wrote
	time uint64
	err  error // there can be no record here; its turn is at once
}

// sampleHead is the bytes ahead of what the program wrote: the header, and the length of that, which the kernel rounds up so that all
// of it is a multiple of 8 (include/uapi/linux/perf_event.h).
const sampleHead = Header + 4

// Empty tells whether all was taken that the last look saw.
func (s *Samples) Empty() bool { return s.next.rec.Size == 0 && s.next.err == nil }

// glance is the first of two looks.
func (s *Samples) glance() {
	s.Look()
	s.seen = s.head
}

// look is the second one. It tells whether there is a sample.
func (s *Samples) look() bool {
	s.Look()
	if s.Empty() {
		s.find()
	}
	return !s.Empty()
}

// find finds the next sample. It passes over the kernel's notices of records that it lost: whoever counts what the programs wrote
// knows of them.
func (s *Samples) find() {
	s.next = sample{}
	for {
		rec, ok, err := s.Peek()
		if err != nil {
			s.next.err = err
			return
		}
		if !ok {
			return
		}
		if rec.Type != unix.PERF_RECORD_SAMPLE || rec.Size < sampleHead {
			s.Skip(rec)
			continue
		}
		s.next.rec, s.next.size = rec, uint64(s.U32(Header))
		switch {
		case s.next.size > rec.Size-sampleHead:
			s.next.err = fmt.Errorf("a sample of %d bytes in a perf record of %d", s.next.size, rec.Size)
		case s.next.size >= 8:
			s.next.time = uint64(s.U32(sampleHead)) | uint64(s.U32(sampleHead+4))<<32
		}
		return
	}
}

// take returns the next sample, in buf if it fits.
func (s *Samples) take(buf []byte) ([]byte, error) {
	if s.next.err != nil {
		return nil, s.next.err
	}
	if buf == nil {
		buf = []byte{} // an empty sample is one, too
	}
	raw := s.Copy(buf, sampleHead, s.next.size)
	s.Skip(s.next.rec)
	s.find()
	return raw, nil
}

// Merge takes samples out of several rings in the order of their time.
//
// The rings are looked at one after the other, and the processors go on writing: so each is looked at twice, and what
// is taken are the samples up to the last one that the first round saw. What only the second one saw is there so that nothing is taken ahead
// of an older sample, and waits for the next look. A sample is out of order only where its program was held up between taking the
// time and writing it, by more than a round lasts.
type Merge struct {
	// Rings may be changed before a look, and behind it those that are empty may go. Of samples of the same time the first ring's come first.
	Rings []*Samples
	some  []*Samples // of Rings: they are not empty
}

// Look finds what the rings hold by now.
func (m *Merge) Look() {
	for _, s := range m.Rings {
		s.glance()
	}
	m.some = m.some[:0]
	for _, s := range m.Rings {
		if s.look() {
			m.some = append(m.some, s)
		}
	}
}

// Next returns the oldest sample that there is, in buf if it fits, or nil if the last look saw no more. The error is for what cannot be a
// record.
func (m *Merge) Next(buf []byte) ([]byte, error) {
	left, oldest := false, 0
	for n, s := range m.some {
		left = left || s.tail < s.seen
		if s.next.time < m.some[oldest].next.time {
			oldest = n
		}
	}
	if !left {
		return nil, nil
	}
	s := m.some[oldest]
	raw, err := s.take(buf)
	if s.Empty() {
		m.some = slices.Delete(m.some, oldest, oldest+1)
	}
	return raw, err
}
