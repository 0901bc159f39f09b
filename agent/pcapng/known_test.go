// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// knownIn lists what a file says of addresses ("10.0.0.1 a b") and connections ("secret").
func knownIn(t *testing.T, file []byte) (known []string) {
	t.Helper()
	for _, b := range walk(t, file) {
		switch b.kind {
		case blockNames:
			// Records are built like options.
			for _, o := range walkOptions(t, b.body) {
				n := map[uint16]int{nrbIPv4: 4, nrbIPv6: 16}[o.Code]
				address, ok := netip.AddrFromSlice([]byte(o.Value[:n]))
				if !ok || !strings.HasSuffix(o.Value, "\x00") {
					t.Fatalf("record %d: %q", o.Code, o.Value)
				}
				known = append(known, address.String()+" "+strings.ReplaceAll(strings.TrimSuffix(o.Value[n:], "\x00"), "\x00", " "))
			}
		case blockSecrets:
			if SecretsType(le.Uint32(b.body)) != TLSKeyLog {
				t.Fatalf("secrets of type %#x", le.Uint32(b.body))
			}
			known = append(known, string(b.body[8:][:le.Uint32(b.body[4:])]))
		}
	}
	return known
}

func names(address string, names ...string) *Names {
	return &Names{[]Name{{netip.MustParseAddr(address), names}}}
}

func secrets(key, data string) *Secrets { return &Secrets{key, TLSKeyLog, []byte(data)} }

func TestKnown(t *testing.T) {
	long := strings.Repeat("n", 300)
	tests := []struct {
		rule         string
		blocks       []Block
		first, again []string // in the file, and in the next one
	}{
		{
			"what is said twice is written once",
			[]Block{names("10.0.0.1", "a"), secrets("k", "x"), names("10.0.0.1", "a"), secrets("k", "x"), names("::ffff:10.0.0.1", "a")},
			[]string{"10.0.0.1 a", "x"}, []string{"10.0.0.1 a", "x"},
		},
		{
			"the next file has what was said last, in that order",
			[]Block{names("10.0.0.1", "a"), names("2001:db8::1", "b"), names("10.0.0.1", "c", "d"), secrets("k", "x"), secrets("l", "y"), secrets("k", "z")},
			[]string{"10.0.0.1 a", "2001:db8::1 b", "10.0.0.1 c d", "x", "y", "z"}, []string{"2001:db8::1 b", "10.0.0.1 c d", "y", "z"},
		},
		{
			"what is empty is forgotten",
			[]Block{names("10.0.0.1", "a"), names("10.0.0.1"), secrets("k", "x"), secrets("k", ""), names("10.0.0.2", ""), names("10.0.0.3"), secrets("l", "")},
			[]string{"10.0.0.1 a", "x"}, nil,
		},
		{
			"what was forgotten is written again",
			[]Block{names("10.0.0.1", "a"), names("10.0.0.1"), names("10.0.0.1", "a"), secrets("k", "x"), secrets("k", ""), secrets("k", "x")},
			[]string{"10.0.0.1 a", "10.0.0.1 a", "x", "x"}, []string{"10.0.0.1 a", "x"},
		},
		{
			"names are cut, and are never two",
			[]Block{names("10.0.0.1", long, "a\x00b", "c\xff"), names("10.0.0.2", strings.Split("1 2 3 4 5 6 7 8 9", " ")...)},
			[]string{"10.0.0.1 " + long[:255] + " a\ufffdb c\ufffd", "10.0.0.2 1 2 3 4 5 6 7 8"},
			[]string{"10.0.0.1 " + long[:255] + " a\ufffdb c\ufffd", "10.0.0.2 1 2 3 4 5 6 7 8"},
		},
		{
			"no address has no name", []Block{&Names{[]Name{{Names: []string{"a"}}}}, &Names{}}, nil, nil,
		},
		{
			"secrets are cut", []Block{secrets("k", strings.Repeat("x", maxData+1))},
			[]string{strings.Repeat("x", maxData)}, []string{strings.Repeat("x", maxData)},
		},
	}
	for _, tt := range tests {
		t.Run(tt.rule, func(t *testing.T) {
			var first, second bytes.Buffer
			w, err := write(&first, tt.blocks)
			if err != nil {
				t.Fatal(err)
			}
			w.Next(&second)
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.first, knownIn(t, first.Bytes())); diff != "" {
				t.Errorf("file (-want +got):\n%.2000s", diff)
			}
			if diff := cmp.Diff(tt.again, knownIn(t, second.Bytes())); diff != "" {
				t.Errorf("next file (-want +got):\n%.2000s", diff)
			}
		})
	}
}

// TestKnownIsBounded names more addresses than are kept.
func TestKnownIsBounded(t *testing.T) {
	var first, second bytes.Buffer
	w := NewWriter(&first, section)
	var want []string
	for n := range mostKnown + 100 {
		address := netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})
		name := strings.Repeat("n", 200) + fmt.Sprint(n)
		if err := w.Write(&Names{[]Name{{address, []string{name}}}}); err != nil {
			t.Fatal(err)
		}
		want = append(want, address.String()+" "+name)
	}
	for n := range mostKnown + 100 {
		if err := w.Write(secrets(fmt.Sprint(n), fmt.Sprint("secret ", n))); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprint("secret ", n))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	w.Next(&second)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, knownIn(t, first.Bytes())); diff != "" {
		t.Errorf("first file (-want +got):\n%.2000s", diff)
	}
	want = append(want[100:mostKnown+100:mostKnown+100], want[mostKnown+200:]...)
	if diff := cmp.Diff(want, knownIn(t, second.Bytes())); diff != "" {
		t.Errorf("next file (-want +got):\n%.2000s", diff)
	}
	for _, b := range walk(t, second.Bytes()) {
		if len(b.body) > flushAt+4096 {
			t.Errorf("a block of %d bytes", len(b.body))
		}
	}
}

// TestKnownIsTheWriters changes what was written.
func TestKnownIsTheWriters(t *testing.T) {
	var first, second bytes.Buffer
	text := []string{"a"}
	data := []byte("x")
	w, err := write(&first, []Block{&Names{[]Name{{netip.MustParseAddr("::1"), text}}}, &Secrets{"k", TLSKeyLog, data}})
	if err != nil {
		t.Fatal(err)
	}
	text[0], data[0] = "b", 'y'
	w.Next(&second)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"::1 a", "x"}, knownIn(t, second.Bytes())); diff != "" {
		t.Errorf("next file (-want +got):\n%s", diff)
	}
}
