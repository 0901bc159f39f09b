// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
	"droidtap/scripts/nettest"
)

// numberedFiles are files in a directory, each of so many packets or bytes at most, and no more than last of them.
type numberedFiles struct {
	dir     string
	packets uint64
	bytes   int64
	last    int
	lasts   time.Duration
	room    func(path string) (int64, error) // of a file: what is written beyond fails
	opened  int
	asked   int // times whether a file is full
}

func (n *numberedFiles) Next(string) (plugin.File, error) {
	path := n.path(n.opened)
	room := int64(1) << 40
	if n.room != nil {
		var err error
		if room, err = n.room(path); err != nil {
			return nil, err
		}
	}
	n.opened++
	f, err := os.Create(path)
	return &limited{File: f, room: room}, err
}

func (n *numberedFiles) path(i int) string {
	return filepath.Join(n.dir, fmt.Sprintf("%05d.pcapng", i))
}

func (n *numberedFiles) Full(f plugin.Filling) plugin.Verdict {
	n.asked++
	over := n.packets > 0 && f.Packets >= n.packets || n.bytes > 0 && f.Bytes >= n.bytes || f.Over
	switch {
	case over && n.opened == n.last:
		return plugin.End
	case over:
		return plugin.Next
	}
	return plugin.Keep
}

func (n *numberedFiles) Lasts() time.Duration { return n.lasts }

// limited is a file on a disk that is full after a number of bytes.
type limited struct {
	*os.File
	room int64
}

func (l *limited) Write(b []byte) (int, error) {
	fits := min(int64(len(b)), l.room)
	n, err := l.File.Write(b[:fits])
	l.room -= int64(n)
	if err == nil && n < len(b) {
		err = syscall.ENOSPC
	}
	return n, err
}

func (l *limited) Truncate(size int64) error {
	st, err := l.Stat()
	if err != nil {
		return err
	}
	l.room += st.Size() - size
	_, err = l.Seek(size, 0)
	return errors.Join(err, l.File.Truncate(size))
}

// writing is a writer that writes files, and what it logs.
type writing struct {
	*writer
	files *numberedFiles
	said  strings.Builder
	ended chan error
}

func startWriting(t *testing.T, n *numberedFiles, set func(*writer)) *writing {
	t.Helper()
	n.dir = t.TempDir()
	w := &writing{files: n, ended: make(chan error, 1)}
	log := slog.New(slog.NewTextHandler(&w.said, nil))
	f := newFiles(func() (plugin.File, error) { return n.Next("") }, n, log)
	if err := f.begin(); err != nil {
		t.Fatal(err)
	}
	w.writer = newWriter(f, 0, false)
	if set != nil {
		set(w.writer)
	}
	go func() { w.ended <- w.run(pcapng.Section{}) }()
	w.in <- &batch{blocks: []pcapng.Block{
		&pcapng.Interface{Index: 4, Name: "wlan0", LinkType: pcapng.Ethernet}, &pcapng.Interface{Index: 2, Name: "rmnet0", LinkType: pcapng.Raw},
	}}
	return w
}

// send sends packets of both interfaces whose times are from, from+1 ... to.
func (w *writing) send(from, to int) {
	for from <= to {
		b := &batch{}
		for ; from <= to && len(b.blocks) < 7; from++ {
			b.blocks = append(b.blocks, &pcapng.Packet{Interface: 2 + 2*(from%2), Time: int64(from), Data: []byte("a packet")})
		}
		w.in <- b
	}
}

// taken waits until the writer has dealt with that many packets.
func (w *writing) taken(n uint64) {
	for done := false; !done; {
		w.do(func() { done = w.packets+w.ignored >= n })
	}
}

func (w *writing) end(t *testing.T) error {
	t.Helper()
	close(w.in)
	return <-w.ended
}

// read reads all files, each of which must stand alone, and returns the times of all packets.
func (w *writing) read(t *testing.T) (times []int64, files []nettest.File) {
	t.Helper()
	for i := range w.files.opened {
		f, err := nettest.Read(w.files.path(i))
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Interfaces) != 2 || f.Interfaces[0].Name != "wlan0" || f.Interfaces[1].Name != "rmnet0" {
			t.Fatalf("file %d has interfaces %+v", i, f.Interfaces)
		}
		for _, p := range f.Packets {
			times = append(times, p.Time)
		}
		files = append(files, f)
	}
	return times, files
}

// upTo returns 1 ... n.
func upTo(n int) (all []int64) {
	for i := range n {
		all = append(all, int64(i+1))
	}
	return all
}

// Over 1,000 files no packet is lost, doubled or out of order, and each has its own statistics.
func TestRotation(t *testing.T) {
	for _, c := range []struct {
		name  string
		files numberedFiles
	}{
		{"by packets", numberedFiles{packets: 10}},
		{"by bytes", numberedFiles{bytes: 500}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w *writing
			w = startWriting(t, &c.files, func(wr *writer) {
				// The source counts a packet when it sends it: what is counted here is what was handed to the writer.
				wr.counts = func() []pcapng.Statistics {
					return []pcapng.Statistics{{Interface: 2, Received: 2 * wr.packets}, {Interface: 4, Received: 7, Accepted: 3, Dropped: 1, Comment: "unattributed=2 kept"}}
				}
			})
			const n = 10_000
			w.send(1, n)
			if err := w.end(t); err != nil {
				t.Fatal(err)
			}
			times, files := w.read(t)
			if diff := cmp.Diff(upTo(n), times); diff != "" {
				t.Errorf("packets (-want +got):\n%s", diff)
			}
			if len(files) < 1000 {
				t.Errorf("%d files", len(files))
			}
			const received, dropped, delivered = 4, 7, 8 // codes of options
			for i, f := range files[:len(files)-1] {     // the capture itself sends those of the last one
				for number, other := range []int{1, 0} {
					s, n := f.Interfaces[number].Statistics, 0
					for _, p := range f.Packets {
						if p.Interface == number {
							n++
						}
						if p.Comment != "" {
							t.Fatalf("file %d: a packet has the comment %q of the counters", i, p.Comment)
						}
					}
					want := []uint64{2 * uint64(len(f.Packets)), 0, uint64(n)}
					if number == 0 {
						want = []uint64{0, 0, uint64(n)}
						if i == 0 {
							want = []uint64{7, 1, uint64(n)}
						}
					}
					if diff := cmp.Diff(want, []uint64{s[received], s[dropped], s[delivered]}); diff != "" {
						t.Fatalf("file %d, interface %d of %d (-want +got):\n%s", i, number, other, diff)
					}
				}
			}
			if w.lost() != 0 || w.written.Load() != n {
				t.Errorf("%d packets lost, %d written", w.lost(), w.written.Load())
			}
		})
	}
}

// A limit that is far away, too, is kept to the packet, while the rotator is asked for few of them.
func TestRotationIsExact(t *testing.T) {
	const n, limit = 10_000, 150_000
	head := pcapng.NewWriter(io.Discard, pcapng.Section{})
	for _, b := range []pcapng.Block{&pcapng.Interface{Name: "wlan0"}, &pcapng.Interface{Index: 1, Name: "rmnet0"}} {
		if err := head.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	empty := head.Size()
	if err := head.Write(&pcapng.Packet{Data: []byte("a packet")}); err != nil {
		t.Fatal(err)
	}
	each := head.Size() - empty
	for _, c := range []struct {
		name  string
		files numberedFiles
		want  int // packets of a file
	}{
		{"by packets", numberedFiles{packets: 1300}, 1300},
		{"by bytes", numberedFiles{bytes: limit}, int((limit - empty + each - 1) / each)},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := startWriting(t, &c.files, nil)
			w.send(1, n)
			if err := w.end(t); err != nil {
				t.Fatal(err)
			}
			times, files := w.read(t)
			if diff := cmp.Diff(upTo(n), times); diff != "" {
				t.Errorf("packets (-want +got):\n%s", diff)
			}
			for i, f := range files[:len(files)-1] {
				if len(f.Packets) != c.want {
					t.Errorf("file %d has %d packets, want %d", i, len(f.Packets), c.want)
				}
			}
			if c.files.asked > n/2 {
				t.Errorf("the rotator is asked %d times", c.files.asked)
			}
		})
	}
}

// The capture ends with the last file that is wanted, and not before another packet would need one more.
func TestRotationEnds(t *testing.T) {
	w := startWriting(t, &numberedFiles{packets: 10, last: 3}, nil)
	w.send(1, 30)
	w.taken(30)
	select {
	case <-w.enough:
		t.Fatal("it ended with a packet that still fits")
	default:
	}
	w.send(31, 40)
	<-w.enough
	if err := w.end(t); err != nil {
		t.Fatal(err)
	}
	if times, _ := w.read(t); !cmp.Equal(times, upTo(30)) {
		t.Errorf("packets %v", times)
	}
}

// The time of a file begins with its first packet, ends it without another one, and makes no empty file.
func TestRotationByTime(t *testing.T) {
	over := make(chan chan struct{}, 10)
	w := startWriting(t, &numberedFiles{lasts: time.Minute}, func(w *writer) {
		w.timer = func(d time.Duration) (<-chan struct{}, func() error) {
			if d != time.Minute {
				t.Errorf("a timer of %v", d)
			}
			c := make(chan struct{})
			over <- c
			return c, func() error { return nil }
		}
	})
	for i := range 3 {
		if len(over) != 0 {
			t.Fatal("a file without packets has a time")
		}
		w.in <- &batch{blocks: []pcapng.Block{&pcapng.Packet{Interface: 2, Time: int64(i) + 1}}}
		close(<-over)
		for done := false; !done; { // until the writer has seen it
			w.do(func() { done = w.file == nil })
		}
		if w.files.opened != i+1 {
			t.Errorf("%d files", w.files.opened)
		}
	}
	if err := w.end(t); err != nil {
		t.Fatal(err)
	}
	if times, files := w.read(t); !cmp.Equal(times, upTo(3)) || len(files) != 3 {
		t.Errorf("packets %v in %d files", times, len(files))
	}
}

// Packets that come when the time of a file is over are in the next one, also where the writer did not get to see that before.
func TestRotationByTimeWithPackets(t *testing.T) {
	over := make(chan struct{})
	w := startWriting(t, &numberedFiles{lasts: time.Minute}, func(w *writer) {
		w.timer = func(time.Duration) (<-chan struct{}, func() error) { return over, func() error { return nil } }
	})
	w.send(1, 10)
	w.taken(10)
	w.do(func() {
		close(over)
		w.timer = func(time.Duration) (<-chan struct{}, func() error) { return nil, func() error { return nil } }
		w.writeAll([]pcapng.Block{&pcapng.Packet{Interface: 2, Time: 11}, &pcapng.Packet{Interface: 4, Time: 12}})
	})
	w.send(13, 20)
	if err := w.end(t); err != nil {
		t.Fatal(err)
	}
	if times, files := w.read(t); !cmp.Equal(times, upTo(20)) || len(files) != 2 || len(files[0].Packets) != 10 {
		t.Errorf("packets %v in %d files", times, len(files))
	}
}
