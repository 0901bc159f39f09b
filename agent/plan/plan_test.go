// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestMake(t *testing.T) {
	lacks := errors.New("not supported")
	old := Kernel{Release: "4.19.206", RingBuf: lacks, BootNs: lacks, TCX: lacks}
	middle := Kernel{Release: "5.10.238-android12-9", TCX: lacks}
	recent := Kernel{Release: "6.12.23-android16-5"}
	for _, tc := range []struct {
		rule   string
		kernel Kernel
		wish   Wish
		want   Plan
	}{
		{"a recent kernel gets ring and TCX", recent, Wish{},
			Plan{Variants: []Variant{Ring, Legacy}, Hook: TCX, Clock: Boottime}},
		{"without TCX it is clsact", middle, Wish{},
			Plan{Variants: []Variant{Ring, Legacy}, Hook: Clsact, Clock: Boottime}},
		{"without anything new it is legacy, clsact and the monotonic clock", old, Wish{},
			Plan{Variants: []Variant{Legacy}, Hook: Clsact, Clock: Monotonic}},
		{"a variant that was asked for is the only one tried, whatever the kernel says", old, Wish{Variant: Ring},
			Plan{Variants: []Variant{Ring}, Hook: Clsact, Clock: Monotonic}},
		{"clsact may be asked for where TCX is", recent, Wish{Hook: Clsact},
			Plan{Variants: []Variant{Ring, Legacy}, Hook: Clsact, Clock: Boottime}},
		{"the release decides nothing", Kernel{Release: "2.6.32"}, Wish{},
			Plan{Variants: []Variant{Ring, Legacy}, Hook: TCX, Clock: Boottime}},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			got, err := Make(tc.kernel, tc.wish)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Why) != 3 {
				t.Errorf("%d reasons for 3 choices: %q", len(got.Why), got.Why)
			}
			got.Why = nil
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestMakeSaysWhatTheKernelLacks(t *testing.T) {
	lacks := errors.New("tcx: not supported (kernel 6.6)")
	p, err := Make(Kernel{TCX: lacks}, Wish{})
	if err != nil {
		t.Fatal(err)
	}
	if why := strings.Join(p.Why, "\n"); !strings.Contains(why, lacks.Error()) {
		t.Errorf("reasons do not tell the kernel's answer:\n%s", why)
	}
	if _, err = Make(Kernel{TCX: lacks}, Wish{Hook: TCX}); !errors.Is(err, ErrImpossible) || !errors.Is(err, lacks) {
		t.Errorf("asking for TCX where there is none: %v", err)
	}
}

func TestWishNamesWhatThereIs(t *testing.T) {
	for _, w := range []Wish{{Hook: "xdp"}, {Variant: "core"}} {
		if err := w.Check(); err == nil {
			t.Errorf("%+v is accepted", w)
		}
		if _, err := Make(Kernel{}, w); err == nil {
			t.Errorf("Make accepts %+v", w)
		}
	}
}
