// SPDX-License-Identifier: Apache-2.0

package pcapng

import (
	"bytes"
	"fmt"
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
		if SecretsType(le.Uint32(b.body)) != TLSKeyLog {
			t.Fatalf("secrets of type %#x", le.Uint32(b.body))
		}
		all = append(all, string(b.body[8:][:le.Uint32(b.body[4:])]))
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

// TestSecretsAreBounded writes more than are kept.
func TestSecretsAreBounded(t *testing.T) {
	var first, second bytes.Buffer
	w := NewWriter(&first, section)
	var want []string
	for n := range mostSecrets + 100 {
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
	if diff := cmp.Diff(want, secretsIn(t, first.Bytes())); diff != "" {
		t.Errorf("first file (-want +got):\n%.2000s", diff)
	}
	if diff := cmp.Diff(want[100:], secretsIn(t, second.Bytes())); diff != "" {
		t.Errorf("next file (-want +got):\n%.2000s", diff)
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
