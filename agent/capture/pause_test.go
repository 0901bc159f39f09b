// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// A disk that is full pauses a writer that persists, in the middle of a block as well as where the next file cannot be made; when
// there is room it goes on, and the file tells how many packets are missing.
func TestPause(t *testing.T) {
	for _, c := range []struct {
		name  string
		files numberedFiles
		rooms []int64 // of the files that are opened; -1: it cannot be
	}{
		{"in a file", numberedFiles{}, []int64{5000}},
		{"where the file begins", numberedFiles{}, []int64{50}},
		{"at the next file", numberedFiles{packets: 100}, []int64{1 << 20, -1, 1 << 20}},
		{"in the second file", numberedFiles{packets: 100}, []int64{1 << 20, 3000, 1 << 20}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := c.files
			opens := 0
			n.room = func(string) (int64, error) {
				opens++
				if opens > len(c.rooms) {
					return 1 << 20, nil
				}
				if r := c.rooms[opens-1]; r >= 0 {
					return r, nil
				}
				return 0, fmt.Errorf("%w: less than --min-free", plugin.ErrNoRoom)
			}
			var now time.Time
			w := startWriting(t, &n, func(w *writer) {
				w.persist, w.eager = true, true
				w.now = func() time.Time { return now }
				w.counts = func() []pcapng.Statistics { return []pcapng.Statistics{{Interface: 2}, {Interface: 4}} }
			})
			w.send(1, 200)
			w.taken(200)
			w.do(func() {
				if w.pause.why == nil {
					t.Error("there is no pause")
				}
				now = now.Add(retryEvery - 1)
			})
			lost := uint64(0)
			w.send(201, 300)
			w.taken(300)
			w.do(func() {
				lost = w.lost()
				if w.pause.why == nil || lost < 100 {
					t.Errorf("it goes on too soon: %v, %d lost", w.pause.why, lost)
				}
				now = now.Add(1)
				if l, ok := w.file.(*limited); ok {
					l.room = 1 << 20
				}
			})
			w.send(301, 400)
			w.taken(400)
			w.in <- &batch{blocks: []pcapng.Block{&pcapng.Statistics{Interface: 2}, &pcapng.Statistics{Interface: 4}}}
			if err := w.end(t); err != nil {
				t.Fatal(err)
			}
			times, files := w.read(t)
			for i, f := range files {
				const code = 8 // isb_usrdeliv
				if a, b := f.Interfaces[0].Statistics, f.Interfaces[1].Statistics; a == nil && i == len(files)-1 || a != nil && a[code]+b[code] != uint64(len(f.Packets)) {
					t.Errorf("file %d of %d has %d packets; its statistics: %v, %v", i, len(files), len(f.Packets), a, b)
				}
			}
			want := append(upTo(300-int(lost)), upTo(400)[300:]...)
			if diff := cmp.Diff(want, times); diff != "" || w.lost() != lost {
				t.Errorf("%d lost, then %d; packets (-want +got):\n%s", lost, w.lost(), diff)
			}
			comment := fmt.Sprintf("%d packets were not written, in the 1s before this one: ", lost)
			var told []int64
			for _, f := range files {
				for _, p := range f.Packets {
					if strings.HasPrefix(p.Comment, comment) {
						told = append(told, p.Time)
					} else if p.Comment != "" {
						t.Errorf("comment %q", p.Comment)
					}
				}
			}
			if !cmp.Equal(told, []int64{301}) {
				t.Errorf("it is told at %v, want 301", told)
			}
			for _, line := range []string{"nothing is written until the output works again", fmt.Sprintf(`"packets not written"=%d`, lost)} {
				if strings.Count(w.said.String(), line) != 1 {
					t.Errorf("said:\n%s\nwant once: %s", &w.said, line)
				}
			}
		})
	}
}

// Without that, the same ends the capture.
func TestNoRoomEnds(t *testing.T) {
	w := startWriting(t, &numberedFiles{room: func(string) (int64, error) { return 5000, nil }}, nil)
	w.send(1, 2000)
	<-w.failed
	if err := w.end(t); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v", err)
	}
	times, _ := w.read(t)
	if !cmp.Equal(times, upTo(len(times))) || len(times) == 0 || w.lost() != uint64(2000-len(times)) {
		t.Errorf("%d packets, %d lost", len(times), w.lost())
	}
}
