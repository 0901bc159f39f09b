// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"encoding/binary"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/plan"
	"droidtap/bpf"
	"droidtap/bpf/abitest"
)

// TestABI holds Go structs against the BTF of the object.
func TestABI(t *testing.T) {
	spec, err := bpf.Open("tlskey", string(plan.Ring))
	if err != nil {
		t.Fatal(err)
	}
	for name, mirror := range map[string]any{"secret": secret{}, "settings": settings{}} {
		t.Run(name, func(t *testing.T) { abitest.Mirrors(t, spec, name, mirror) })
	}
	if n := binary.Size(secret{}); n != secretSize {
		t.Errorf("secretSize is %d, and the struct has %d bytes", secretSize, n)
	}
}

func TestParseReadsWhatPutWrote(t *testing.T) {
	want := secret{
		Time: 1<<40 + 1, Base: 1<<40 + 2, LabelAt: 1<<40 + 3, PID: 4, TID: 5, UID: 6, Size: 7, LabelSize: 8, Number: 12,
		Failed: noRandom | noSecret, Label: [48]byte{'l', 'a'}, Random: [32]byte{9}, Secret: [64]byte{10, 63: 11},
	}
	raw := make([]byte, secretSize)
	want.put(raw)
	got, err := new(reader).parse(raw)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v; put -, parsed +\n%s", err, diff)
	}
	if _, err := new(reader).parse(raw[1:]); err == nil {
		t.Error("a record that is cut off is none")
	}
}
