// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/plan"
	"droidtap/agent/plugin"
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
		{"not before the next tick", []beat{{0, 0, 0, false}, {10, 0, tick, false}, {20, 0, time.Second, false}, {30, 0, time.Second, true}}},
		{"something is seen", []beat{{0, 0, 0, false}, {10, 1, tick, false}, {20, 2, tick, false}, {30, 3, tick, false}}},
		{"it ceases to be seen", []beat{{0, 0, 0, false}, {10, 10, tick, false}, {20, 10, tick, false}, {30, 10, tick, true}}},
		{"it is seen again in time", []beat{{0, 0, 0, false}, {10, 0, tick, false}, {20, 1, tick, false}, {30, 1, tick, false}, {40, 2, tick, false}}},
		{"a few that a driver keeps to itself", []beat{{0, 0, 0, false}, {1, 0, tick, false}, {2, 0, tick, false}, {3, 0, tick, false}}},
		{"a few, and nothing more", []beat{{0, 0, 0, false}, {10, 0, tick, false}, {10, 0, tick, false}, {10, 0, tick, false}}},
		{"a few in a long time", []beat{{0, 0, 0, false}, {3, 0, tick, false}, {3, 0, 29 * time.Second, false}, {6, 0, tick, false}, {6, 0, 30 * time.Second, false},
			{7, 0, tick, false}, {8, 0, tick, false}, {9, 0, tick, false}}},
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

// TestSighted leaves out what saw nothing, as long as another may see something.
func TestSighted(t *testing.T) {
	all := []plan.Hook{plan.TCX, plan.TC, plan.Packet}
	k := &keeper{target: plugin.Target{Plan: plan.Plan{Hooks: all}}}
	for _, c := range []struct {
		rule        string
		blind, want []plan.Hook
	}{
		{"nothing is known", nil, all},
		{"one saw nothing", []plan.Hook{plan.TCX}, []plan.Hook{plan.TC, plan.Packet}},
		{"none saw anything", []plan.Hook{plan.Packet, plan.TC, plan.TCX}, all},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if d := cmp.Diff(c.want, k.sighted(&tap{health: health{blind: c.blind}})); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
