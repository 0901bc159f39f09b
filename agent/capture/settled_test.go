// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// settling is a source with a ring of ten packets, the owners of which it learns when it is asked for the last time; of
// every third it then knows that it is not wanted. It notes what is asked of it.
type settling struct {
	numbered
	asked func() // for the first time
	mu    sync.Mutex
	said  []string
	end   error
}

// say notes what was not yet said, and tells whether it was not.
func (s *settling) say(what string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.said, what) {
		return false
	}
	s.said = append(s.said, what)
	return true
}

func (s *settling) Close() error { s.say("detach"); return nil }
func (s *settling) End() error   { s.say("end"); return s.end }
func (s *settling) Counts(*ebpf.Collection) (plugin.Counts, error) {
	s.say("counts")
	return plugin.Counts{Received: 10, Refused: 4}, nil
}
func (s *settling) Decode(raw []byte, p *pcapng.Packet) (pcapng.Block, error) {
	b, err := s.numbered.Decode(raw, p)
	p.Interface = 1
	return b, err
}
func (s *settling) Known([]pcapng.Block) int { return 0 }
func (s *settling) Settle(blocks []pcapng.Block, last bool) int {
	if !last {
		if s.say("not yet") {
			s.asked()
		}
		return 0
	}
	s.say("last")
	for i, b := range blocks {
		if p := b.(*pcapng.Packet); p.Time%3 == 0 {
			blocks[i] = nil
		} else {
			p.Comments = []string{"uid=10123"}
		}
	}
	return len(blocks)
}

// tenRecords is a ring that has them at once, and ends when it is flushed.
type tenRecords struct {
	busyRing
	read    func() // called when they were read
	flushed chan struct{}
	empty   bool
}

func (r *tenRecords) next(buf []byte) ([]byte, error) {
	switch {
	case r.left > 0:
		return r.busyRing.next(buf)
	case !r.empty:
		r.empty = true
		return nil, errEmpty
	}
	r.read()
	<-r.flushed
	return nil, plugin.ErrFlushed
}
func (r *tenRecords) flush() error { close(r.flushed); return nil }

type namedBuffer struct{ bytes.Buffer }

func (namedBuffer) Close() error { return nil }
func (namedBuffer) Name() string { return "buffer" }

// TestSettled runs captures whose packets wait for the end.
func TestSettled(t *testing.T) {
	for _, tc := range []struct {
		rule    string
		settler bool
		end     error
		written uint64
		want    []string
	}{
		{"a source is asked until its ring is drained, and then ended", true, nil, 6, []string{"not yet", "detach", "last", "end", "counts"}},
		{"what its end says is said", true, os.ErrInvalid, 6, []string{"not yet", "detach", "last", "end", "counts"}},
		{"what does not settle goes by no stage", false, nil, 10, []string{"detach", "end", "counts"}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			ctx, stop := context.WithCancel(context.Background())
			source := &settling{end: tc.end, asked: stop}
			ring := &tenRecords{busyRing: busyRing{10, 64}, read: func() {}, flushed: make(chan struct{})}
			s := streamOf(source)
			s.ring = ring
			if !tc.settler {
				s.settler, ring.read = nil, stop
			}
			var file namedBuffer
			c := &capture{
				Config:  Config{Ready: func(string) {}, Log: slog.New(slog.DiscardHandler)},
				writer:  writerTo(t, &file, 0, false),
				failure: make(chan error, 1),
				running: []*running{{Probe: Probe{Name: "fake", Source: source}, attached: source, streams: []*stream{s}}},
			}
			c.emit(&pcapng.Interface{Index: 1, Name: "a"})
			var sum Summary
			err := c.run(ctx, plugin.Target{}, &sum, pcapng.Section{})
			if !errors.Is(err, tc.end) {
				t.Errorf("error %v, want %v", err, tc.end)
			}
			if d := cmp.Diff(tc.want, source.said); d != "" {
				t.Error(d)
			}
			if sum.Captured != tc.written || sum.Ignored != 0 {
				t.Errorf("%d packets captured, %d ignored, want %d", sum.Captured, sum.Ignored, tc.written)
			}
			if n := bytes.Count(file.Bytes(), []byte("uid=10123")); tc.settler && n != 6 {
				t.Errorf("%d comments in the file", n)
			}
		})
	}
}
