// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// secretsIn lists the secrets in a file.
func secretsIn(t *testing.T, file []byte) (all []string) {
	t.Helper()
	for _, b := range walk(t, file) {
		if b.kind != blockSecrets {
			continue
		}
		text := string(b.body[8:][:le.Uint32(b.body[4:])])
		if kind := le.Uint32(b.body); SecretsType(kind) != TLSKeyLog {
			text = fmt.Sprintf("%#x: %s", kind, text)
		}
		all = append(all, text)
	}
	return all
}

func secrets(key, data string) *Secrets { return &Secrets{key, TLSKeyLog, []byte(data)} }

func TestSecrets(t *testing.T) {
	tests := []struct {
		rule         string
		blocks       []Block
		first, again []string // in the file, and in the next one
	}{
		{
			"what is said twice is written once",
			[]Block{secrets("k", "x"), secrets("k", "x")}, []string{"x"}, []string{"x"},
		},
		{
			"the next file has what was said last, in that order",
			[]Block{secrets("k", "x"), secrets("l", "y"), secrets("k", "z")}, []string{"x", "y", "z"}, []string{"y", "z"},
		},
		{
			"what is empty is forgotten",
			[]Block{secrets("k", "x"), secrets("k", ""), secrets("l", "")}, []string{"x"}, nil,
		},
		{
			"what was forgotten is written again",
			[]Block{secrets("k", "x"), secrets("k", ""), secrets("k", "x")}, []string{"x", "x"}, []string{"x"},
		},
		{
			"secrets are cut", []Block{secrets("k", strings.Repeat("x", maxData+1))},
			[]string{strings.Repeat("x", maxData)}, []string{strings.Repeat("x", maxData)},
		},
		{
			"the rest of what goes on is written, and the next file has all of it in one block",
			[]Block{secrets("k", "x\n"), secrets("l", "y\n"), secrets("k", "x\nz\n"), secrets("k", "x\nz\nu\nv\n")},
			[]string{"x\n", "y\n", "z\n", "u\nv\n"}, []string{"y\n", "x\nz\nu\nv\n"},
		},
		{
			"what goes on in the middle of a line is written anew",
			[]Block{secrets("k", "x"), secrets("k", "xy\n")}, []string{"x", "xy\n"}, []string{"xy\n"},
		},
		{
			"less than before, something else and another type are written anew",
			[]Block{secrets("k", "x\ny\n"), secrets("k", "x\n"), secrets("k", "y\n"), &Secrets{"k", 0x57474b4c, []byte("y\nz\n")}, secrets("k", "y\nz\n")},
			[]string{"x\ny\n", "x\n", "y\n", "0x57474b4c: y\nz\n", "y\nz\n"}, []string{"y\nz\n"},
		},
		{
			"lines are cut behind a whole one", []Block{secrets("k", "x\n"), secrets("k", "x\ny\n"+strings.Repeat("z", maxData))},
			[]string{"x\n", "y\n"}, []string{"x\ny\n"},
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
			if diff := cmp.Diff(tt.first, secretsIn(t, first.Bytes())); diff != "" {
				t.Errorf("file (-want +got):\n%.2000s", diff)
			}
			if diff := cmp.Diff(tt.again, secretsIn(t, second.Bytes())); diff != "" {
				t.Errorf("next file (-want +got):\n%.2000s", diff)
			}
		})
	}
}

// TestSecretsAreBounded writes more than are kept: by their number, and by their bytes.
func TestSecretsAreBounded(t *testing.T) {
	const large = 200_000 // bytes
	for _, c := range []struct {
		rule       string
		size, n    int // bytes of the data, and how many there are
		kept, gone int
	}{
		{"small ones", 40, mostSecrets + 100, mostSecrets, 100},
		{"as many as are kept", 40, mostSecrets, mostSecrets, 0},
		{"large ones", large, 30, mostSecretBytes / (large + 5), 30 - mostSecretBytes/(large+5)},
	} {
		t.Run(c.rule, func(t *testing.T) {
			var first, second bytes.Buffer
			w := NewWriter(&first, section)
			var want []string
			for n := range c.n {
				s := secrets(fmt.Sprintf("%05d", n), fmt.Sprintf("%*d\n", c.size-1, n))
				if err := w.Write(s); err != nil {
					t.Fatal(err)
				}
				want = append(want, string(s.Data))
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			w.Next(&second)
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, secretsIn(t, first.Bytes())); diff != "" {
				t.Errorf("first file (-want +got):\n%.2000s", diff)
			}
			if diff := cmp.Diff(want[c.n-c.kept:], secretsIn(t, second.Bytes())); diff != "" {
				t.Errorf("next file (-want +got):\n%.2000s", diff)
			}
			if n := cap(w.buf); n > 2*bufferSize {
				t.Errorf("the buffer keeps %d bytes", n)
			}
			if n := w.Forgotten(); n != uint64(c.gone) {
				t.Errorf("%d are forgotten, want %d", n, c.gone)
			}
		})
	}
}

// What is forgotten by request or has grown does not count twice: others have its room.
func TestSecretsGiveTheirRoomBack(t *testing.T) {
	w := NewWriter(io.Discard, section)
	for n := range 100 {
		line := strings.Repeat("x", maxData/2-1) + "\n"
		for _, s := range []*Secrets{secrets("grows", line), secrets("grows", line+line), secrets(fmt.Sprint(n), line), secrets(fmt.Sprint(n), "")} {
			if err := w.Write(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	if k := &w.secrets; k.gone != 0 || len(k.of) != 1 || k.order.Len() != 1 || k.bytes != len("grows")+maxData {
		t.Errorf("%d are forgotten, %d and %d kept, with %d bytes", k.gone, len(k.of), k.order.Len(), k.bytes)
	}
}

// Each file has all lines, whatever of them was written before it began, lost with the output, or forgotten.
func TestSecretsGoOn(t *testing.T) {
	for _, c := range []struct {
		rule string
		do   func(*Writer) // between the first lines and all of them
		want []string
	}{
		{"in the next file", func(w *Writer) {}, []string{"x\n", "y\n"}},
		{"behind a failure", func(w *Writer) { w.Resume() }, []string{"x\n", "y\n"}},
		{"behind what was written before a failure", func(w *Writer) { w.Flush(); w.Resume() }, []string{"x\n", "x\n", "y\n"}},
		{"forgotten", func(w *Writer) { w.Write(secrets("k", "")) }, []string{"x\n", "x\ny\n"}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			var file bytes.Buffer
			w := NewWriter(io.Discard, section)
			w.Write(secrets("k", "x\n"))
			w.Next(&file)
			c.do(w)
			w.Write(secrets("k", "x\ny\n"))
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, secretsIn(t, file.Bytes())); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestSecretsAreTheWriters changes what was written.
func TestSecretsAreTheWriters(t *testing.T) {
	var first, second bytes.Buffer
	data := []byte("x")
	w, err := write(&first, []Block{&Secrets{"k", TLSKeyLog, data}})
	if err != nil {
		t.Fatal(err)
	}
	data[0] = 'y'
	w.Next(&second)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"x"}, secretsIn(t, second.Bytes())); diff != "" {
		t.Errorf("next file (-want +got):\n%s", diff)
	}
}

// TestRecalled tells the secrets with which a file begins from others.
func TestRecalled(t *testing.T) {
	w := NewWriter(io.Discard, Section{})
	head := w.Size()
	for n := range 100 {
		if err := w.Write(&Secrets{Key: string(rune(n)), Type: TLSKeyLog, Data: bytes.Repeat([]byte("x\n"), 500)}); err != nil {
			t.Fatal(err)
		}
	}
	if w.Size() < head+100_000 || w.Recalled() != 0 {
		t.Errorf("%d bytes, and %d of them from before", w.Size(), w.Recalled())
	}
	for range 2 {
		w.Next(io.Discard)
		if w.Size() != head+w.Recalled() || w.Recalled() < 100_000 {
			t.Errorf("the next file begins with %d bytes, and %d of them from before", w.Size(), w.Recalled())
		}
		recalled := w.Recalled()
		if err := w.Write(&Secrets{Key: "new", Type: TLSKeyLog, Data: []byte("line\n")}); err != nil || w.Recalled() != recalled {
			t.Errorf("%v; %d bytes from before", err, w.Recalled())
		}
		if err := w.Flush(); err != nil || w.Recalled() != recalled {
			t.Errorf("%v; %d bytes from before", err, w.Recalled())
		}
		w.Next(io.Discard)
	}
}
