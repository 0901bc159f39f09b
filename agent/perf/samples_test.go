// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// sampleAt returns the body of a sample record: its length, its time, and so many bytes more.
func sampleAt(time uint64, more int) []byte {
	body := binary.NativeEndian.AppendUint32(nil, uint32(8+more+pad(more)))
	body = binary.LittleEndian.AppendUint64(body, time)
	body = append(body, bytes.Repeat([]byte{byte(time)}, more)...)
	return append(body, make([]byte, pad(more))...)
}

// pad is what the kernel puts behind so many bytes and the 20 ahead of them.
func pad(more int) int { return (8 - (sampleHead+8+more)%8) % 8 }

// sample writes one, if there is room, and tells whether there was.
func (p paper) sample(time uint64, more int) bool {
	body := sampleAt(time, more)
	if p.free() < Header+len(body) {
		return false
	}
	p.write(unix.PERF_RECORD_SAMPLE, 0, uint16(Header+len(body)), body)
	return true
}

// lost writes a notice of lost records.
func (p paper) lost() {
	if p.free() >= 24 {
		p.write(unix.PERF_RECORD_LOST, 0, 24, make([]byte, 16))
	}
}

// papers returns some rings, and what merges them.
func papers(count, size int) (all []paper, m *Merge) {
	m = &Merge{}
	for range count {
		p := newPaper(size)
		all = append(all, p)
		m.Rings = append(m.Rings, &Samples{Ring: p.Ring})
	}
	return all, m
}

// times are those of all samples that the last look saw. What follows the time has to be the sample's own.
func (m *Merge) times(t *testing.T) (all []uint64) {
	t.Helper()
	buf := make([]byte, 0, 512)
	for {
		raw, err := m.Next(buf)
		if err != nil {
			t.Fatal(err)
		}
		if raw == nil {
			return all
		}
		time := binary.LittleEndian.Uint64(raw)
		more := bytes.TrimRight(raw[8:], "\x00")
		if !bytes.Equal(more, bytes.Repeat([]byte{byte(time)}, len(more))) {
			t.Fatalf("the sample of time %d: %x", time, raw)
		}
		all = append(all, time)
	}
}

// TestMerge has four processors write samples of all lengths in turns that are left to chance, around the rings' ends and with lost records between
// them. They come in the order of their time, and none is missing.
func TestMerge(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	rings, m := papers(4, 4<<10)
	var want, got []uint64
	for time := range uint64(20000) {
		p := rings[random.IntN(len(rings))]
		if p.sample(time, random.IntN(200)) {
			want = append(want, time)
		} else {
			p.lost()
		}
		if random.IntN(20) == 0 {
			p.lost()
		}
		if random.IntN(50) == 0 {
			m.Look()
			got = append(got, m.times(t)...)
			for n, s := range m.Rings {
				if !s.Empty() {
					t.Fatalf("at time %d ring %d is not empty", time, n)
				}
			}
		}
	}
	m.Look()
	got = append(got, m.times(t)...)
	if diff := cmp.Diff(want, got); diff != "" || len(want) < 10000 {
		t.Errorf("%d of %d samples (-want +got):\n%s", len(got), len(want), diff)
	}
}

// TestMergeWrittenMeanwhile has samples written between the looks at one ring and at the next: none comes ahead of an older one.
func TestMergeWrittenMeanwhile(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	rings, m := papers(4, 16<<10)
	var want, got []uint64
	time := uint64(0)
	write := func() {
		for range random.IntN(4) {
			if time++; rings[random.IntN(len(rings))].sample(time, random.IntN(200)) {
				want = append(want, time)
			}
		}
	}
	for range 2000 {
		for _, s := range m.Rings {
			s.glance()
			write()
		}
		m.some = m.some[:0]
		for _, s := range m.Rings {
			if s.look() {
				m.some = append(m.some, s)
			}
			write()
		}
		got = append(got, m.times(t)...)
	}
	m.Look()
	got = append(got, m.times(t)...)
	if diff := cmp.Diff(want, got); diff != "" || len(want) < 10000 {
		t.Errorf("%d of %d samples (-want +got):\n%s", len(got), len(want), diff)
	}
}

// TestMergeBesideWriters reads while others write.
func TestMergeBesideWriters(t *testing.T) {
	const each = 5000
	rings, m := papers(4, 64<<10)
	var (
		mu      sync.Mutex // makes one moment of taking the time and writing it
		clock   uint64
		writers sync.WaitGroup
	)
	for _, p := range rings {
		writers.Go(func() {
			for n := range each {
				for written := false; !written; runtime.Gosched() {
					mu.Lock()
					clock++
					written = p.sample(clock, n%100)
					mu.Unlock()
				}
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		writers.Wait()
		close(ended)
	}()
	last, read := uint64(0), 0
	for over := false; !over; {
		select {
		case <-ended:
			over = true
		default:
		}
		m.Look()
		for _, time := range m.times(t) {
			if time <= last {
				t.Fatalf("behind a sample of time %d comes one of %d", last, time)
			}
			last = time
			read++
		}
	}
	if read != len(rings)*each {
		t.Errorf("%d samples, want %d", read, len(rings)*each)
	}
}

// TestMergeOrder is what is not left to chance.
func TestMergeOrder(t *testing.T) {
	for _, c := range []struct {
		rule  string
		write func(a, b paper)
		want  []uint64
	}{
		{"nothing", func(a, b paper) {}, nil},
		{"lost records only", func(a, b paper) { a.lost(); b.lost() }, nil},
		{"one ring only", func(a, b paper) { b.sample(2, 0); b.sample(3, 9) }, []uint64{2, 3}},
		{"of the same time the first ring's is first", func(a, b paper) { b.sample(1, 0); b.sample(7, 0); a.sample(7, 1); a.sample(8, 0) }, []uint64{1, 7, 7, 8}},
		{"a ring keeps its own order", func(a, b paper) { a.sample(5, 0); a.sample(4, 0); b.sample(3, 0); b.sample(6, 0) }, []uint64{3, 5, 4, 6}},
		{"lost records between", func(a, b paper) { a.sample(1, 0); a.lost(); a.sample(3, 0); b.lost(); b.sample(2, 0) }, []uint64{1, 2, 3}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			rings, m := papers(2, 4<<10)
			c.write(rings[0], rings[1])
			if got := m.times(t); got != nil {
				t.Errorf("before a look there are %d", got)
			}
			m.Look()
			if diff := cmp.Diff(c.want, m.times(t)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestMergeShort takes samples that have no room for a time, and says what cannot be a sample.
func TestMergeShort(t *testing.T) {
	for _, c := range []struct {
		rule string
		size uint16
		body []byte
		ok   bool
	}{
		{"empty", 16, []byte{0, 0, 0, 0, 1, 2, 3, 4}, true},
		{"four bytes", 16, []byte{4, 0, 0, 0, 1, 2, 3, 4}, true},
		{"longer than its record", 16, []byte{5, 0, 0, 0, 1, 2, 3, 4}, false},
		{"longer than all", 16, []byte{255, 255, 255, 255, 1, 2, 3, 4}, false},
		{"no multiple of 8", 12, []byte{0, 0, 0, 0}, false},
	} {
		t.Run(c.rule, func(t *testing.T) {
			rings, m := papers(2, 4<<10)
			rings[0].sample(1, 0)
			rings[1].write(unix.PERF_RECORD_SAMPLE, 0, c.size, c.body)
			m.Look()
			for range 2 { // an error stays
				raw, err := m.Next(nil)
				if (err == nil) != c.ok || (raw != nil) != c.ok || c.ok && !bytes.Equal(raw, c.body[4:][:c.body[0]]) {
					t.Fatalf("%x, %v", raw, err)
				}
				if c.ok {
					break
				}
			}
		})
	}
}

// BenchmarkMerge is what a sample of 136 bytes costs, from the look to the copy, where some processors write in turn.
func BenchmarkMerge(b *testing.B) {
	for _, count := range []int{1, 2, 8} {
		b.Run(fmt.Sprintf("%d rings", count), func(b *testing.B) {
			rings, m := papers(8, 128<<10)
			heads := make([]uint64, len(rings))
			written := 0
			for time := uint64(0); rings[0].sample(time, 128); time++ {
				written++
				for _, p := range rings[1:count] {
					if p.sample(time, 128) {
						written++
					}
				}
			}
			for n, p := range rings {
				heads[n] = p.meta.Data_head
			}
			buf := make([]byte, 0, 1<<10)
			b.ReportAllocs()
			left := 0
			for b.Loop() {
				if left == 0 {
					for n, p := range rings {
						p.tail, p.told, p.meta.Data_tail, p.meta.Data_head = 0, 0, 0, heads[n]
					}
					m.Look()
					left = written
				}
				if raw, err := m.Next(buf); raw == nil || err != nil {
					b.Fatal(err)
				}
				left--
			}
		})
	}
}
