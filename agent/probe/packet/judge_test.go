// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package packet

import (
	"slices"
	"testing"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
	"droidtap/android"
)

// running is an expression that runs in a form on one interface.
func running(t *testing.T, expr string, form filter.Form) filters {
	t.Helper()
	f, err := filter.Compile(t.Context(), expr, pcapng.Raw, 0)
	if err != nil {
		t.Fatal(err)
	}
	w := wire{framing: android.L3}
	return filters{expr: expr, wires: map[int]wire{rawIndex: w}, of: map[wire]fitted{w: {f, form}}}
}

// TestJudge has three filters, the one after the other at the times 100 and 200, and records of any time: what the
// program of that time took, and another may have.
func TestJudge(t *testing.T) {
	const a, b, c = "len = 1", "len = 2", "len = 3"
	for _, tc := range []struct {
		rule  string
		forms [3]filter.Form
		kept  map[uint64][]int // lengths of 1 to 4, by time
	}{
		{"all are exact: what came was taken", [3]filter.Form{}, map[uint64][]int{50: {1, 2, 3, 4}, 150: {1, 2, 3, 4}, 250: {1, 2, 3, 4}}},
		{"the first one takes all", [3]filter.Form{filter.Agent, 0, 0}, map[uint64][]int{50: {1, 2, 3}, 150: {1, 2, 3, 4}, 250: {1, 2, 3, 4}}},
		{"the second one does", [3]filter.Form{0, filter.Agent, 0}, map[uint64][]int{50: {1, 2, 3}, 150: {2, 3}, 250: {1, 2, 3, 4}}},
		{"the last one does", [3]filter.Form{0, 0, filter.Agent}, map[uint64][]int{50: {1, 2, 3}, 150: {2, 3}, 250: {3}}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			j := &judge{now: running(t, a, tc.forms[0])}
			j = &judge{now: running(t, b, tc.forms[1]), before: j, until: 100}
			j = &judge{now: running(t, c, tc.forms[2]), before: j.forget(200), until: 200}
			for time, kept := range tc.kept {
				var got []int
				for length := 1; length <= 4; length++ {
					if j.keeps(event{Time: time, Ifindex: rawIndex, Len: uint32(length)}, make([]byte, length)) {
						got = append(got, length)
					}
				}
				if !slices.Equal(got, kept) {
					t.Errorf("of time %d it keeps lengths %v, want %v", time, got, kept)
				}
			}
			if j.forget(1<<63).before != nil {
				t.Error("nothing is ever forgotten")
			}
		})
	}
}
