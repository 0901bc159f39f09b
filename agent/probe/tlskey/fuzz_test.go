// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// FuzzSecret: all but the head of a record comes from a process that may be hostile.
func FuzzSecret(f *testing.F) {
	for _, s := range []secret{
		{Label: [48]byte{'L'}}, {LabelAt: page - 3, Failed: noLabel, Label: [48]byte{'L', 'A', 'B'}}, {LabelAt: 1<<64 - 1, LabelSize: 1<<32 - 1, Failed: noLabel},
		{LabelSize: 3, Label: [48]byte{'L', 'A', 'B', 'X'}},
	} {
		raw := make([]byte, secretSize)
		s.put(raw)
		f.Add(raw, uint8(5))
	}
	f.Fuzz(func(t *testing.T, raw []byte, there uint8) {
		s, err := parseSecret(raw)
		if err != nil {
			return
		}
		s.complete(func(_ uint32, _ uint64, to []byte) int {
			n := min(int(there), len(to))
			for i := range to[:n] {
				to[i] = 'm'
			}
			return n
		})
		label, rest, ended := bytes.Cut(s.Label[:], []byte{0})
		if ended && len(bytes.Trim(rest, "\x00")) > 0 {
			t.Errorf("behind the label %q there is %q", label, rest)
		}
		if len(label) == 0 && s.Failed&noLabel == 0 {
			t.Error("an empty label is none")
		}
		if s.LabelSize > 0 && len(label) > int(s.LabelSize) {
			t.Errorf("the label %q has more than %d bytes", label, s.LabelSize)
		}
	})
}

// FuzzTraced: of what lies in a perf ring nothing is believed.
func FuzzTraced(f *testing.F) {
	f.Add(make([]byte, 300), uint8(pointerWord+2), true)
	f.Fuzz(func(t *testing.T, raw []byte, words uint8, sized bool) {
		e := &traced{sized: sized}
		for i := range max(int(words)%32, pointerWord+1) {
			e.at = append(e.at, 16+8*i)
		}
		tr := &traces{ahead: func() int64 { return 0 }}
		out, err := tr.record(e, 1<<31, 1<<31, 0, raw)
		if err != nil {
			return
		}
		s, err := parseSecret(out)
		if err != nil {
			t.Fatal(err)
		}
		if want := upTo32(binary.NativeEndian.Uint64(raw[e.at[sizeWord]:])); s.Size != want {
			t.Errorf("the size is %d, want %d", s.Size, want)
		}
	})
}

func TestOffsetsAreThoseOfAllWords(t *testing.T) {
	const good = "name: k1\nID: 1\nformat:\n\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n" +
		"\tfield:unsigned long __probe_ip;\toffset:8;\tsize:8;\tsigned:0;\n" +
		"\tfield:u64 a0;\toffset:16;\tsize:8;\tsigned:0;\n\tfield:u64 a1;\toffset:24;\tsize:8;\tsigned:0;\n"
	if at := offsets(good, 2); len(at) != 2 || at[0] != 16 || at[1] != 24 {
		t.Errorf("%v", at)
	}
	if at := offsets(good, 3); at != nil {
		t.Errorf("the three words are at %v", at)
	}
	for _, bad := range []string{"", "\tfield:u64 a0;\toffset:x;\tsize:8;\n", "\tfield:u32 a0;\toffset:8;\tsize:4;\n", "\tfield:u64 a0;\toffset:99999999;\tsize:8;\n"} {
		if at := offsets(bad, 1); at != nil {
			t.Errorf("%q: %v", bad, at)
		}
	}
}
