// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/btf/facts"
)

// tree makes the directories that the command writes to.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"facts", "min"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// content returns a file's bytes.
func content(t *testing.T, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// listed returns the names that match, without their directory.
func listed(t *testing.T, pattern ...string) (names []string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(pattern...))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		names = append(names, filepath.Base(p))
	}
	return names
}

// TestCommitted makes the BTF of the tables once more: what is committed must be just that.
func TestCommitted(t *testing.T) {
	dir := tree(t)
	for _, name := range listed(t, "..", "facts", "*.csv") {
		if err := os.WriteFile(filepath.Join(dir, "facts", name), content(t, "..", "facts", name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := run([]string{"-dir", dir}, io.Discard); err != nil {
		t.Fatal(err)
	}
	made := listed(t, dir, "min", "*")
	if diff := cmp.Diff(made, listed(t, "..", "min", "*")); diff != "" || len(made) == 0 {
		t.Fatalf("min/: run 'go generate ./btf' and commit it (-made +committed):\n%s", diff)
	}
	for _, name := range made {
		if !bytes.Equal(content(t, dir, "min", name), content(t, "..", "min", name)) {
			t.Errorf("min/%s differs from what its facts give: run 'go generate ./btf' and commit it", name)
		}
	}
}

// kernel writes the BTF of a kernel with these facts.
func kernel(t *testing.T, name string, fs ...facts.Fact) string {
	t.Helper()
	raw, err := facts.Marshal(fs)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

var (
	size   = facts.Fact{Struct: "sock", Member: facts.Size, Kind: "struct", Bits: 6720}
	mark   = facts.Fact{Struct: "sock", Member: "sk_mark", Kind: "u32", Bits: 3744}
	tgid   = facts.Fact{Struct: "task_struct", Member: "tgid", Kind: "s32", Bits: 64}
	moved  = facts.Fact{Struct: "task_struct", Member: "tgid", Kind: "s32", Bits: 96}
	unused = facts.Fact{Struct: "nf_conn", Member: "mark", Kind: "u32"}
)

func TestKMI(t *testing.T) {
	dir := tree(t)
	a, b := kernel(t, "a.btf", size, mark, tgid, unused), kernel(t, "b.btf", mark, moved, size)
	var said strings.Builder
	if err := run([]string{"-dir", dir, "-kmi", "android14-6.1", a, b}, &said); err != nil {
		t.Fatal(err)
	}
	const want = `struct,member,kind,offset_bits,source
sock,(sizeof),struct,6720,a.btf b.btf
sock,sk_mark,u32,3744,a.btf b.btf
`
	if diff := cmp.Diff(want, string(content(t, dir, "facts", "android14-6.1.csv"))); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	for _, line := range []string{
		"a.btf: left out: sock.sk_uid: not in this kernel\n",
		"b.btf: left out: task_struct.tgid s32 at bit 64, elsewhere s32 at bit 96\n",
	} {
		if !strings.Contains(said.String(), line) {
			t.Errorf("%q is not said in:\n%s", line, said.String())
		}
	}
	made := content(t, dir, "min", "android14-6.1-arm64.btf")
	if err := run([]string{"-dir", dir}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(made, content(t, dir, "min", "android14-6.1-arm64.btf")) {
		t.Error("the table gives another BTF than the kernels did")
	}
	if err := run([]string{"-dir", dir, "-kmi", "android14-6.1", "-source", "a phone", a}, io.Discard); err != nil {
		t.Fatal(err)
	}
	if table := string(content(t, dir, "facts", "android14-6.1.csv")); !strings.Contains(table, "sock,sk_mark,u32,3744,a phone\n") {
		t.Errorf("the source is not named in:\n%s", table)
	}
}

func TestOut(t *testing.T) {
	out := filepath.Join(t.TempDir(), "5.10.110-rockchip.btf")
	if err := run([]string{"-out", out, kernel(t, "a.btf", size, mark, unused)}, io.Discard); err != nil {
		t.Fatal(err)
	}
	got, _, err := facts.From(content(t, out))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]facts.Fact{size, mark}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRefuses(t *testing.T) {
	sound := kernel(t, "a.btf", mark)
	for _, c := range []struct {
		rule, want string
		args       []string
	}{
		{"two things to make", "two different things", []string{"-kmi", "android14-6.1", "-out", "x", sound}},
		{"nothing to make", "-kmi or -out", []string{sound}},
		{"nothing to read", "no kernel is named", []string{"-kmi", "android14-6.1"}},
		{"a release is not a KMI", "is not a KMI", []string{"-kmi", "6.1.145-android14-11", sound}},
		{"a KMI is no path", "is not a KMI", []string{"-kmi", "../android14-6.1", sound}},
		{"a file that is not there", "no such file", []string{"-out", "x", sound + "x"}},
		{"a file without facts", facts.ErrNone.Error(), []string{"-out", "x", kernel(t, "b.btf", unused)}},
		{"an option that is none", "not defined", []string{"-arch", "amd64"}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if err := run(append([]string{"-dir", tree(t)}, c.args...), io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("run: %v, want %q", err, c.want)
			}
		})
	}
}
