// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"sync"
	"time"
)

// secret mirrors struct secret of bpf/src/tlskey.bpf.c: one call of the function that is handed the secrets. TestABI holds the two
// together. Where tracefs does the work the record is made the same.
type secret struct {
	Time      uint64 // ns, by plan.Clock
	Base      uint64 // the pointer to which the last offset of the path was added
	LabelAt   uint64 // pointer to the label
	PID       uint32 // of the process
	TID       uint32 // of the thread
	UID       uint32 // of the thread; unknown if nobody can say any more
	Size      uint32 // bytes of the secret, as the argument says
	LabelSize uint32 // bytes of the label, as the argument says; 0: it ends with a zero
	Number    uint16 // of the function
	Failed    uint8  // noLabel, noRandom, noSecret
	Pad       uint8
	Label     [48]byte // cut, and zeros
	Random    [32]byte
	Secret    [64]byte // cut, and zeros
}

const secretSize = 192

// What of a secret could not be read: enum failure of bpf/src/tlskey.bpf.c.
const (
	noLabel = 1 << iota
	noRandom
	noSecret
)

// unknownUID is nobody's.
const unknownUID = 1<<32 - 1

// reader makes secrets of records. The zero value is ready to use.
type reader struct {
	mu    sync.Mutex
	stuck map[uint32]bool // processes whose memory is being read: it may never come
}

// parse reads a record, and completes it. It does not keep raw.
func (r *reader) parse(raw []byte) (s secret, err error) {
	if s, err = parseSecret(raw); err == nil {
		s.complete(r.read)
	}
	return s, err
}

func parseSecret(raw []byte) (s secret, err error) {
	if len(raw) < secretSize {
		return s, fmt.Errorf("a record of %d bytes, where a secret has %d", len(raw), secretSize)
	}
	ne := binary.NativeEndian
	return secret{
		Time:      ne.Uint64(raw),
		Base:      ne.Uint64(raw[8:]),
		LabelAt:   ne.Uint64(raw[16:]),
		PID:       ne.Uint32(raw[24:]),
		TID:       ne.Uint32(raw[28:]),
		UID:       ne.Uint32(raw[32:]),
		Size:      ne.Uint32(raw[36:]),
		LabelSize: ne.Uint32(raw[40:]),
		Number:    ne.Uint16(raw[44:]),
		Failed:    raw[46],
		Label:     [48]byte(raw[48:96]),
		Random:    [32]byte(raw[96:128]),
		Secret:    [64]byte(raw[128:192]),
	}, nil
}

// put writes the bytes of a record.
func (s *secret) put(to []byte) {
	ne := binary.NativeEndian
	ne.PutUint64(to, s.Time)
	ne.PutUint64(to[8:], s.Base)
	ne.PutUint64(to[16:], s.LabelAt)
	ne.PutUint32(to[24:], s.PID)
	ne.PutUint32(to[28:], s.TID)
	ne.PutUint32(to[32:], s.UID)
	ne.PutUint32(to[36:], s.Size)
	ne.PutUint32(to[40:], s.LabelSize)
	ne.PutUint16(to[44:], s.Number)
	to[46], to[47] = s.Failed, 0
	copy(to[48:], s.Label[:])
	copy(to[96:], s.Random[:])
	copy(to[128:], s.Secret[:])
}

// page is the smallest one that processes have, in bytes.
const page = 4096

// complete makes the label what it is to be. The program could not read it where its page is not yet in the process's memory:
// the function itself comes to it later, or never. What it read is all there is where the label ends before the page does.
func (s *secret) complete(read func(pid uint32, at uint64, to []byte) int) {
	label := s.Label[:]
	if s.LabelSize != 0 {
		label = label[:min(int64(len(label)), int64(s.LabelSize))]
	}
	if s.Failed&noLabel != 0 {
		here := label[:min(len(label), int(page-s.LabelAt%page))]
		if s.LabelSize != 0 || here[0] == 0 || !bytes.Contains(here, []byte{0}) {
			here = label[:read(s.PID, s.LabelAt, label)]
		}
		if s.LabelSize != 0 && len(here) == len(label) || s.LabelSize == 0 && bytes.Contains(here, []byte{0}) {
			s.Failed &^= noLabel
		}
	}
	if n := bytes.IndexByte(label, 0); n >= 0 {
		label = label[:n]
	}
	clear(s.Label[len(label):])
	if len(label) == 0 {
		s.Failed |= noLabel
	}
}

// patience is how long memory is waited for, and mostStuck of how many processes.
const (
	patience  = 10 * time.Millisecond
	mostStuck = 4
)

// read reads memory of a process that may be hostile, to which it can make us wait for ever (userfaultfd(2)): nothing more is read of
// that one until it has an end. It returns how many bytes it got.
func (r *reader) read(pid uint32, at uint64, to []byte) int {
	if !r.begin(pid) {
		return 0
	}
	got := make(chan []byte, 1)
	go func() {
		b := make([]byte, len(to))
		n := readMemory(pid, at, b)
		r.mu.Lock()
		delete(r.stuck, pid)
		r.mu.Unlock()
		got <- b[:n]
	}()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case b := <-got:
		return copy(to, b)
	case <-late.C:
		return 0
	}
}

// begin tells whether a process's memory may be read.
func (r *reader) begin(pid uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stuck[pid] || len(r.stuck) == mostStuck {
		return false
	}
	if r.stuck == nil {
		r.stuck = map[uint32]bool{}
	}
	r.stuck[pid] = true
	return true
}

func readMemory(pid uint32, at uint64, to []byte) int {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil || at > math.MaxInt64 {
		return 0
	}
	defer f.Close() // was only read
	n, _ := f.ReadAt(to, int64(at))
	return n
}
