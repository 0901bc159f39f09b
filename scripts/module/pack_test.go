// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/zip"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// module packs the module as "make module" does, with the stand-in for the agent.
func module(t *testing.T, version string, at int64) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "droidtap.zip")
	if err := build("../../android/module", "testdata/agent", "../../LICENSE", version, at, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTwiceTheSameBytes(t *testing.T) {
	var texts [2][]byte
	for i := range texts {
		var err error
		if texts[i], err = os.ReadFile(module(t, "v1", 1_790_000_000)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(texts[0], texts[1]) {
		t.Error("two zips of the same files differ")
	}
}

func TestWhatIsInTheZip(t *testing.T) {
	r, err := zip.OpenReader(module(t, "v1", 1_790_000_000))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got []string
	for _, f := range r.File {
		got = append(got, f.Mode().String()+" "+f.Name)
		if f.Flags&8 != 0 {
			t.Errorf("%s: its size stands behind it", f.Name)
		}
		if y, m, d := f.Modified.UTC().Date(); y != 1980 || m != 1 || d != 1 {
			t.Errorf("%s is of %s", f.Name, f.Modified)
		}
		c, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(c) // compares the checksum, too
		if err != nil || len(text) == 0 {
			t.Errorf("%s: %d bytes, %v", f.Name, len(text), err)
		}
	}
	want := []string{
		"-rw-r--r-- LICENSE", "-rw-r--r-- README.md", "-rw-r--r-- action.sh", "-rwxr-xr-x agent", "-rw-r--r-- agent.args", "-rw-r--r-- common.sh",
		"-rw-r--r-- customize.sh", "-rw-r--r-- module.prop", "-rw-r--r-- service.sh", "-rw-r--r-- supervisor.sh", "-rw-r--r-- uninstall.sh",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestTwoFilesOfOneName(t *testing.T) {
	if err := pack(io.Discard, []file{{name: "a"}, {name: "b"}, {name: "a"}}); err == nil {
		t.Error("no error")
	}
}

func TestProperties(t *testing.T) {
	const text = "id=droidtap\nname=d\nversion=@VERSION@\nversionCode=@CODE@\nauthor=a\ndescription=b c\n"
	for _, tc := range []struct {
		name, text, version string
		at                  int64
		want                string // "": an error
	}{
		{"filled in", text, "v1-2-gabc", 1_790_000_000, "id=droidtap\nname=d\nversion=v1-2-gabc\nversionCode=29833333\nauthor=a\ndescription=b c\n"},
		{"no version", text, "", 1_790_000_000, ""},
		{"a version of two lines", text, "v1\nid=other", 1_790_000_000, ""},
		{"no time", text, "v1", 0, ""},
		{"larger than a manager's integer", text, "v1", 60 << 31, ""},
		{"an id with a space", strings.Replace(text, "droidtap", "droid tap", 1), "v1", 60, ""},
		{"a line too many", text + "updateJson=x\n", "v1", 60, ""},
		{"another order", strings.Replace(text, "name=d\n", "", 1) + "name=d\n", "v1", 60, ""},
		{"an empty value", strings.Replace(text, "author=a", "author=", 1), "v1", 60, ""},
		{"a last line without an end", strings.TrimSuffix(text, "\n"), "v1", 60, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := properties(tc.text, tc.version, tc.at)
			if string(got) != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("got %q, %v, want %q", got, err, tc.want)
			}
		})
	}
}
