// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"os"
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
		return buf, nil
	}
	l.over = false
	if len(l.seen) == 12 {
		return nil, plugin.ErrFlushed
	}
	return nil, os.ErrDeadlineExceeded
}
func (l *looks) Flush() error { return nil }
func (l *looks) Close() error { return nil }

// Perf buffers are looked into less and less often, until a record comes.
func TestIdlePerfReader(t *testing.T) {
	for _, c := range []struct {
		rule  string
		early bool
		at    time.Duration // of the only record
		want  []int         // ms
	}{
		{"no record", false, time.Hour, []int{100, 300, 700, 1500, 3100, 5600, 8100, 10600, 13100, 15600, 18100, 20600}},
		{"a record is found by a look", false, 4 * time.Second, []int{100, 300, 700, 1500, 3100, 5600, 5700, 5900, 6300, 7100, 8700, 11200}},
		{"a record that wakes waits no longer than others", true, 4 * time.Second, []int{100, 300, 700, 1500, 3100, 4100, 4200, 4400, 4800, 5600, 7200, 9700}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			l := &looks{clock: start, at: []time.Duration{c.at}, early: c.early}
			p := newPerfBuffer(l, latency, func() time.Time { return l.clock })
			var err error
			for n := 0; n < 100 && (err == nil || err == errEmpty); n++ {
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
