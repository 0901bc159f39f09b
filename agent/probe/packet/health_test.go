// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"testing"
	"time"
)

func TestPulse(t *testing.T) {
	type beat struct {
		counted, seen uint64
		after         time.Duration // since the beat before
		unseen        bool
	}
	const tick = 2 * time.Second
	for _, tc := range []struct {
		rule  string
		beats []beat
	}{
		{"what an interface counted before is not asked of us", []beat{{1000, 0, 0, false}, {1000, 0, tick, false}, {1000, 0, tick, false}}},
		{"nothing is seen of what comes", []beat{{0, 0, 0, false}, {10, 0, tick, false}, {20, 0, tick, true}}},
		{"not before two seconds", []beat{{0, 0, 0, false}, {10, 0, tick, false}, {20, 0, time.Second, false}, {30, 0, time.Second, true}}},
		{"something is seen", []beat{{0, 0, 0, false}, {10, 1, tick, false}, {20, 2, tick, false}, {30, 3, tick, false}}},
		{"it ceases to be seen", []beat{{0, 0, 0, false}, {10, 10, tick, false}, {20, 10, tick, false}, {30, 10, tick, true}}},
		{"it is seen again in time", []beat{{0, 0, 0, false}, {10, 0, tick, false}, {20, 1, tick, false}, {30, 1, tick, false}, {40, 2, tick, false}}},
		{"a few that a driver keeps to itself", []beat{{0, 0, 0, false}, {1, 0, tick, false}, {2, 0, tick, false}, {3, 0, tick, false}}},
		{"a few, and nothing more", []beat{{0, 0, 0, false}, {10, 0, tick, false}, {10, 0, tick, false}, {10, 0, tick, false}}},
		{"the interface begins anew", []beat{{100, 0, 0, false}, {110, 0, tick, false}, {5, 0, tick, false}, {10, 0, tick, false}, {20, 0, tick, true}}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			var p pulse
			now := time.Hour
			for i, b := range tc.beats {
				now += b.after
				if got := p.beat(b.counted, b.seen, now); got != b.unseen {
					t.Errorf("beat %d: %v, want %v", i, got, b.unseen)
				}
			}
		})
	}
}
