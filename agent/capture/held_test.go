// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// Followers are told the link type that a packet's interface had when it came, and of no packet without one.
func TestFollowersAreToldTheLinkType(t *testing.T) {
	h := startHolding(t, &numberedFiles{}, &follower{lead: time.Second}, nil)
	of := func(index int, time int64) *pcapng.Packet { return &pcapng.Packet{Interface: index, Time: time} }
	h.pass(&batch{blocks: []pcapng.Block{of(2, 1), of(4, 2), of(9, 3)}})
	h.emit(&pcapng.Interface{Index: 2, Name: "tun0", LinkType: pcapng.Ethernet})
	h.pass(&batch{blocks: []pcapng.Block{of(2, 4), &pcapng.Interface{Index: 4, Name: "tun1", LinkType: pcapng.Raw}, of(4, 5), &pcapng.Statistics{Interface: 4}}})
	if err := h.end(t); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"1/101", "2/1", "4/1", "5/101"}, h.follower.seen); d != "" {
		t.Errorf("seen (-want +got):\n%s", d)
	}
	h.has(t, "1 2@0 tun0 4@2 tun1 5@3")
}

// Whatever comes when, no packet waits longer than it is to, by a clock on which timers are in time, nor less.
func TestHeldForLead(t *testing.T) {
	const lead, step = 20 * time.Millisecond, time.Millisecond
	random := rand.New(rand.NewSource(1))
	h := startHolding(t, &numberedFiles{packets: 50}, &follower{lead: lead}, nil)
	var came []time.Duration // of each packet
	written := 0
	for now := time.Duration(0); now < time.Second/2; now += step {
		for random.Intn(3) == 0 {
			var times []int64
			for range 1 + random.Intn(3) {
				came = append(came, now)
				times = append(times, int64(len(came)))
			}
			h.come(times...)
		}
		h.tick(step)
		all, _ := h.read(t)
		for _, n := range all[written:] {
			if written++; n != int64(written) {
				t.Fatalf("packet %d is the %dth in the files", n, written)
			}
			if waited := now + step - came[n-1]; waited != lead {
				t.Fatalf("packet %d has waited %v, and was to wait %v", n, waited, lead)
			}
		}
	}
	if err := h.end(t); err != nil {
		t.Fatal(err)
	}
	if all, _ := h.read(t); written < 100 || len(all) != len(came) {
		t.Errorf("%d packets came, %d were written in time and %d in all", len(came), written, len(all))
	}
}

// What waits is bounded in bytes: the oldest are written, it is said once and counted.
func TestHoldIsBounded(t *testing.T) {
	h := startHolding(t, &numberedFiles{}, &follower{lead: time.Second}, nil)
	large := func(times ...int64) {
		b := packets(times...)
		for _, block := range b.blocks {
			block.(*pcapng.Packet).Interface = 2
		}
		b.bytes = mostWaiting/2 - 2000
		h.pass(b)
	}
	large(1, 2)
	large(3)
	h.has(t, "")
	h.come(4, 5)
	h.has(t, "")
	large(6)
	h.has(t, "1 2")
	large(7)
	h.has(t, "1 2 3")
	many := make([]int64, mostWaiting/besideRecord) // of no bytes each: they need memory all the same
	h.come(many...)
	h.do(func() {
		if h.hold.bytes > mostWaiting || h.hold.early != 7+uint64(len(many)) {
			t.Errorf("%d bytes wait, %d packets were early", h.hold.bytes, h.hold.early)
		}
	})
	if err := h.end(t); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(h.said.String(), "too many packets come"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	want := fmt.Sprintf("%d packets did not wait 1s for the secrets that belong ahead of them: too many came", 7+len(many))
	if d := cmp.Diff([]string{want}, h.remarks()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A capture with -c ends with its last packet, and one whose output fails loses what waits, which is counted.
func TestHoldEnds(t *testing.T) {
	const lead = time.Millisecond
	h := startHolding(t, &numberedFiles{}, &follower{lead: lead}, func(w *writer) { w.most = 3 })
	h.come(1, 2)
	h.tick(lead)
	h.come(3, 4)
	select {
	case <-h.enough:
		t.Error("it is enough before the packets are written")
	default:
	}
	h.tick(lead)
	<-h.enough
	h.come(5)
	if err := h.end(t); err != nil {
		t.Fatal(err)
	}
	h.has(t, "1 2 3")

	room := int64(0)
	h = startHolding(t, &numberedFiles{room: func(string) (int64, error) { return 1 << 20, nil }}, &follower{lead: lead}, nil)
	h.come(1)
	h.tick(lead)
	h.do(func() { h.file.(*limited).room = room })
	h.come(2, 3)
	h.tick(lead)
	<-h.failed
	h.come(4)
	if err := h.end(t); err == nil || h.lost() != 3 || h.written.Load() != 1 {
		t.Errorf("%d lost, %d written, error %v", h.lost(), h.written.Load(), err)
	}
	h.has(t, "1")
}

// A classic file has no secrets that packets could wait for, and where nobody follows nothing is kept.
func TestHoldIsLeftOut(t *testing.T) {
	f := []plugin.Follower{&follower{lead: 1}, &follower{lead: 3}, &follower{lead: 2}}
	if h := newHold(f, true); h.lead != 0 {
		t.Errorf("it waits for %v", h.lead)
	}
	if h := newHold(f, false); h.lead != 3 {
		t.Errorf("it waits for %v, and not for the longest", h.lead)
	}
	if h := newHold(nil, false); h != nil || h.waits() || h.due() != nil {
		t.Error("it waits for nobody")
	}
}

// following is a source that follows the packets of its own ring.
type following struct {
	settling
	*follower
}

// A capture ends at once and with all that waits, or without it where it is to end at once and the output does not move.
func TestFollowed(t *testing.T) {
	for _, tc := range []struct {
		rule  string
		abort bool
	}{
		{"at the end all is written", false},
		{"an abort waits for nothing", true},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			ctx, stop := context.WithCancel(context.Background())
			abort := make(chan struct{})
			var file namedBuffer
			out, stuck := io.Writer(&file), make(chan struct{})
			if tc.abort {
				out = blocked{stuck}
				defer close(stuck)
			}
			source := &following{follower: &follower{lead: time.Hour}}
			ring := &tenRecords{busyRing: busyRing{10, 64}, read: stop, flushed: make(chan struct{})}
			s := streamOf(source)
			s.ring, s.settler = ring, nil
			c := &capture{
				Config:  Config{Ready: func(string) {}, Log: slog.New(slog.DiscardHandler)},
				writer:  writerTo(t, out, 0, false),
				failure: make(chan error, 1),
				abort:   abort,
				running: []*running{{Probe: Probe{Name: "fake", Source: source}, attached: source, streams: []*stream{s}}},
			}
			source.learn = func(p *pcapng.Packet) {
				switch {
				case p.Time == 5:
					c.emit(&pcapng.Secrets{Key: "k", Type: pcapng.TLSKeyLog, Data: []byte("a")})
				case p.Time == 0 && tc.abort:
					close(abort)
				}
			}
			c.emit(&pcapng.Interface{Index: 1, Name: "tun0"})
			var sum Summary
			err := c.run(ctx, plugin.Target{}, &sum, pcapng.Section{})
			if tc.abort {
				if !errors.Is(err, ErrAborted) || sum.Captured != 0 || sum.Ignored != 6 { // it says that it received 10-4
					t.Errorf("%d captured, %d ignored, error %v", sum.Captured, sum.Ignored, err)
				}
				return
			}
			const want = "tun0 a 0@0 1@0 2@0 3@0 4@0 5@0 6@0 7@0 8@0 9@0" // in the order of their time
			if err != nil || sum.Captured != 10 || sum.Ignored != 0 || sum.Notes != nil || len(source.seen) != 10 {
				t.Errorf("%d captured, %d ignored, notes %q, %d seen, error %v", sum.Captured, sum.Ignored, sum.Notes, len(source.seen), err)
			}
			if got := story(file.Bytes()); got != want {
				t.Errorf("file: %s\nwant: %s", got, want)
			}
		})
	}
}

// Small batches that wait have no more memory than they need.
func TestHeldBatchesAreSmall(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	source := &following{follower: &follower{lead: time.Hour}}
	c := &capture{
		Config:  Config{Ready: func(string) {}, Log: slog.New(slog.DiscardHandler)},
		writer:  writerTo(t, io.Discard, 0, false),
		failure: make(chan error, 1),
		running: []*running{{Probe: Probe{Name: "fake", Source: source}, attached: source}},
	}
	c.running[0].streams = []*stream{{ring: &pausing{busyRing: busyRing{1000, 64}}, decode: source.Decode}}
	waiting, spares := 0, 0
	source.learn = func(p *pcapng.Packet) {
		if p.Time > 0 {
			return
		}
		waiting = len(c.writer.hold.queue)
		for _, b := range c.writer.hold.queue {
			spares += len(b.arena) + cap(b.packets) + cap(b.blocks) - len(b.blocks)
		}
		stop()
	}
	c.emit(&pcapng.Interface{Index: 1, Name: "tun0"})
	if err := c.run(ctx, plugin.Target{}, &Summary{}, pcapng.Section{}); err != nil || waiting != 999 || spares != 0 {
		t.Errorf("%d batches wait with room for %d more, %v", waiting, spares, err)
	}
}

// blocked is an output on which nobody reads.
type blocked struct{ end chan struct{} }

func (b blocked) Write([]byte) (int, error) { <-b.end; return 0, io.ErrClosedPipe }

// What readers use again is not what packets that wait are made of.
func TestHeldKeep(t *testing.T) {
	for _, lead := range []time.Duration{0, time.Millisecond, time.Hour} {
		t.Run(lead.String(), func(t *testing.T) {
			const records, size = 20_000, 128
			var file bytes.Buffer
			w := writerTo(t, &file, 0, false)
			w.hold = newHold([]plugin.Follower{&follower{lead: lead}}, false)
			ended := make(chan error)
			go func() { ended <- w.run(pcapng.Section{}) }()
			w.put(&pcapng.Interface{Name: "rmnet0"})
			s := newStage(everyThird{}, w.pool, func(b *batch) { w.in <- b }, nil)
			go s.run()
			_, err := read(numberedStream(&pausing{busyRing: busyRing{records, size}}), w.pool, s.put)
			s.end()
			close(w.in)
			if err := errors.Join(err, <-ended); err != nil {
				t.Fatal(err)
			}
			le, n := binary.LittleEndian, 0
			for b := file.Bytes(); len(b) > 0; b = b[le.Uint32(b[4:]):] {
				if le.Uint32(b) != 6 {
					continue
				}
				n++
				if time, number := le.Uint32(b[16:]), le.Uint64(b[28:]); uint64(time) != number {
					t.Fatalf("the packet of time %d has the bytes of %d", time, number)
				}
			}
			if n != (records+2)/3 {
				t.Errorf("%d packets", n)
			}
		})
	}
}

// everyThird leaves the others out, and knows what to do with those of half the time.
type everyThird struct{}

func (everyThird) Known(blocks []pcapng.Block) (done int) {
	for done < len(blocks) && blocks[done].(*pcapng.Packet).Time%200 < 100 {
		done++
	}
	return everyThird{}.Settle(blocks[:done], false)
}

func (everyThird) Settle(blocks []pcapng.Block, _ bool) int {
	for i, b := range blocks {
		if b.(*pcapng.Packet).Time%3 != 0 {
			blocks[i] = nil
		}
	}
	return len(blocks)
}

func BenchmarkWriter(b *testing.B) {
	for _, size := range []int{100, 1400} {
		for _, lead := range []time.Duration{-1, 0, 20 * time.Millisecond} {
			name := fmt.Sprintf("%d bytes, held %v", size, lead)
			if lead < 0 {
				name = fmt.Sprintf("%d bytes, no follower", size)
			}
			b.Run(name, func(b *testing.B) {
				f := newFiles(func() (plugin.File, error) { return unnamed{io.Discard}, nil }, nil, slog.New(slog.DiscardHandler))
				if err := f.begin(); err != nil {
					b.Fatal(err)
				}
				w := newWriter(f, 0, false)
				if lead >= 0 {
					w.hold = newHold([]plugin.Follower{silent{lead}}, false)
				}
				w.put(&pcapng.Interface{Name: "rmnet0"})
				go func() {
					read(numberedStream(&busyRing{b.N, size}), w.pool, func(b *batch) { w.in <- b })
					close(w.in)
				}()
				b.ReportAllocs()
				w.run(pcapng.Section{})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
				if w.hold != nil {
					b.ReportMetric(100*float64(w.hold.early)/float64(b.N), "%early")
				}
			})
		}
	}
}

type silent struct{ lead time.Duration }

func (silent) Follow(*pcapng.Packet, pcapng.LinkType) {}
func (s silent) Lead() time.Duration                  { return s.lead }
