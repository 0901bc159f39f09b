// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/plugin"
)

// looks are perf buffers with records at some of the times when they are looked into.
type looks struct {
	clock time.Time
	at    []time.Duration // of the records, from the start
	early bool            // records wake the reader
	over  bool            // the deadline is, and it was not yet said
	seen  []time.Duration // when they were looked into, from the start
}

var start = time.Unix(1000, 0)

// Next returns what a look at the deadline finds, and then that it was the deadline, as perfEvents does.
func (l *looks) Next(buf []byte, deadline time.Time) ([]byte, error) {
	woken := len(l.at) > 0 && l.early && start.Add(l.at[0]).Before(deadline)
	switch {
	case woken:
		l.clock = start.Add(l.at[0])
	case !l.over:
		l.clock, l.over = deadline, true
		l.seen = append(l.seen, l.clock.Sub(start))
	}
	if len(l.at) > 0 && !start.Add(l.at[0]).After(l.clock) {
		l.at = l.at[1:]
		return append(buf[:0], make([]byte, 64)...), nil
	}
	l.over = false
	if len(l.seen) == 12 {
		return nil, plugin.ErrFlushed
	}
	return nil, os.ErrDeadlineExceeded
}
func (l *looks) Flush() error { return nil }
func (l *looks) Close() error { return nil }

// Perf buffers are looked into less and less often, until a record comes that does not come alone.
func TestIdlePerfReader(t *testing.T) {
	trickle := func(every time.Duration) (at []time.Duration) {
		for d := every; d < time.Minute; d += every {
			at = append(at, d)
		}
		return at
	}
	alone := []time.Duration{4 * time.Second}
	for _, c := range []struct {
		rule  string
		most  time.Duration
		early bool
		at    []time.Duration // of the records
		want  []int           // ms
	}{
		{"no record", latency, false, nil, []int{100, 300, 700, 1500, 3100, 5600, 8100, 10600, 13100, 15600, 18100, 20600}},
		{"a record is found by a look", latency, false, alone, []int{100, 300, 700, 1500, 3100, 5600, 5700, 5900, 6300, 7100, 8700, 11200}},
		{"a record that wakes waits no longer than others", latency, true, alone, []int{100, 300, 700, 1500, 3100, 4100, 4200, 4400, 4800, 5600, 7200, 9700}},
		{"few records may wait", 900 * time.Millisecond, false, trickle(80 * time.Millisecond), []int{100, 300, 700, 1500, 2400, 3300, 4200, 5100, 6000, 6900, 7800, 8700}},
		{"few records may not wait", latency, false, trickle(80 * time.Millisecond), []int{100, 200, 300, 400, 500, 600, 700, 800, 900, 1000, 1100, 1200}},
		{"many records are found soon", 900 * time.Millisecond, false, trickle(10 * time.Millisecond), []int{100, 300, 400, 600, 700, 900, 1000, 1200, 1300, 1500, 1600, 1800}},
		{"few records behind none", 900 * time.Millisecond, false, alone, []int{100, 300, 700, 1500, 3100, 5600, 6500, 8300, 10800, 13300, 15800, 18300}},
		{"few records that wake behind none", 900 * time.Millisecond, true, alone, []int{100, 300, 700, 1500, 3100, 4100, 5000, 6800, 9300, 11800, 14300, 16800}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			l := &looks{clock: start, at: c.at, early: c.early}
			const few = 15 * 64
			p := newPerfBuffer(l, latency, c.most, few, func() time.Time { return l.clock })
			var err error
			for n := 0; n < 1000 && (err == nil || err == errEmpty); n++ {
				_, err = p.next(nil)
			}
			var got []int
			for _, d := range l.seen {
				got = append(got, int(d.Milliseconds()))
			}
			if diff := cmp.Diff(c.want, got); diff != "" || !flushed(err) {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// waking are perf buffers of which each record wakes the reader.
type waking struct {
	clock time.Time
	at    []time.Duration // of the records, from the start
	waits int             // that began
}

func (w *waking) Next(buf []byte, deadline time.Time) ([]byte, error) {
	if w.clock.Sub(start) > time.Minute {
		return nil, plugin.ErrFlushed
	}
	next := deadline
	if len(w.at) > 0 && start.Add(w.at[0]).Before(next) {
		next = start.Add(w.at[0])
	}
	if next.After(w.clock) {
		w.clock = next
		w.waits++
	}
	if len(w.at) == 0 || start.Add(w.at[0]).After(w.clock) {
		return nil, os.ErrDeadlineExceeded
	}
	w.at = w.at[1:]
	return append(buf[:0], make([]byte, 64)...), nil
}
func (w *waking) Flush() error { return nil }
func (w *waking) Close() error { return nil }

// Where each record wakes the reader it is handed on at once, and in a flood no later than a gap.
func TestPromptReader(t *testing.T) {
	const many = 10000
	for _, c := range []struct {
		rule  string
		every time.Duration
		late  time.Duration // the most
		waits int           // the most, beside those of a minute without a record
	}{
		{"alone", 3 * time.Millisecond, 0, many},
		{"in quick succession", 50 * time.Microsecond, gap, many / 20},
		{"all at once", 0, gap, 1},
	} {
		t.Run(c.rule, func(t *testing.T) {
			w := &waking{clock: start}
			for n := range many {
				w.at = append(w.at, time.Duration(n)*c.every)
			}
			came := slices.Clone(w.at)
			p := &promptBuffer{Ring: w, now: func() time.Time { return w.clock }, sleep: func(d time.Duration) { w.clock = w.clock.Add(d) }}
			read, told := 0, 0
			for {
				_, err := p.next(nil)
				if flushed(err) {
					break
				}
				if err == nil {
					read++
					continue
				}
				for ; told < read; told++ {
					if late := w.clock.Sub(start.Add(came[told])); late > c.late {
						t.Fatalf("record %d is handed on %v after it came", told, late)
					}
				}
			}
			if idle := int(time.Minute/seldom) + 1; told != many || w.waits > c.waits+idle {
				t.Errorf("%d of %d records handed on, %d waits", told, many, w.waits)
			}
		})
	}
}
