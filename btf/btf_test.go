// SPDX-License-Identifier: Apache-2.0

package btf

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	cilium "github.com/cilium/ebpf/btf"

	"droidtap/btf/facts"
)

const (
	gki    = "5.10.198-android12-9-00019-g6efebf1322d6-ab11471183"
	vendor = "5.10.110-rockchip-rk3588" // what a rock5b says
)

// marked returns BTF that says sk_mark is at this byte.
func marked(t testing.TB, at uint32) []byte {
	t.Helper()
	raw, err := facts.Marshal([]facts.Fact{{Struct: "sock", Member: "sk_mark", Kind: "u32", Bits: at * 8}})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// mark returns the byte at which a spec says sk_mark is.
func mark(t testing.TB, spec *cilium.Spec) uint32 {
	t.Helper()
	var sock *cilium.Struct
	if err := spec.TypeByName("sock", &sock); err != nil {
		t.Fatal(err)
	}
	m, ok := find(sock.Members, 0, "sk_mark")
	if !ok {
		t.Fatalf("no sk_mark in %v", sock)
	}
	return m.Offset.Bytes()
}

// zipped packs by gzip.
func zipped(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// put writes a file into a directory, which it makes.
func put(t testing.TB, dir, name string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestFor puts files that each say another place of sk_mark where they are looked for, in A/ and B/ of a directory.
func TestFor(t *testing.T) {
	const table = 468 // sk_mark of android12-5.10 and android13-5.10
	type files map[string]uint32
	for _, c := range []struct {
		rule          string
		sys           uint32 // what the kernel itself says; 0 where it does not
		release, arch string
		files         files
		mark          uint32 // 0: ErrNone
		source        string // DIR stands for the directory
	}{
		{"the kernel's own comes first", 8, gki, "arm64", files{"A/" + gki + ".btf": 16}, 8, "kernel /sys/kernel/btf/vmlinux"},
		{"the exact release comes before the KMI", 0, gki, "arm64", files{"B/" + gki + ".btf": 16, "A/android12-5.10-arm64.btf": 24}, 16, "file DIR/B/" + gki + ".btf"},
		{"the KMI comes before the facts", 0, gki, "arm64", files{"A/android12-5.10-arm64.btf": 24}, 24, "file DIR/A/android12-5.10-arm64.btf"},
		{"the first directory comes first", 0, gki, "arm64", files{"A/" + gki + ".btf": 16, "B/" + gki + ".btf": 24}, 16, "file DIR/A/" + gki + ".btf"},
		{"gzip is found", 0, gki, "arm64", files{"B/" + gki + ".btf.gz": 16}, 16, "file DIR/B/" + gki + ".btf.gz"},
		{"xz is found, by whatever it is packed", 0, gki, "arm64", files{"B/" + gki + ".btf.xz": 16}, 16, "file DIR/B/" + gki + ".btf.xz"},
		{"the file of another release is not taken", 0, gki, "arm64", files{"A/5.10.198-android12-8.btf": 16, "A/android12-5.10.btf": 16}, table, "facts android12-5.10"},
		{"the file of another architecture is not taken", 0, gki, "arm64", files{"A/android12-5.10-amd64.btf": 16}, table, "facts android12-5.10"},
		{"android12-5.10 has facts", 0, gki, "arm64", nil, table, "facts android12-5.10"},
		{"android13-5.10 has facts", 0, "5.10.177-android13-4-00003-ga7208022a7ea-ab10815828", "arm64", nil, table, "facts android13-5.10"},
		{"a branch without facts is not invented", 0, "6.1.145-android14-11", "arm64", nil, 0, ""},
		{"android12 of another version is another branch", 0, "5.4.42-android12-0", "arm64", nil, 0, ""},
		{"a vendor's kernel of 5.10 is not a GKI", 0, vendor, "arm64", nil, 0, ""},
		{"a vendor's kernel takes no file of a KMI", 0, vendor, "arm64", files{"A/android12-5.10-arm64.btf": 16}, 0, ""},
		{"a vendor's kernel takes a file of its release", 0, vendor, "arm64", files{"A/" + vendor + ".btf": 16}, 16, "file DIR/A/" + vendor + ".btf"},
		{"facts are for arm64", 0, gki, "amd64", nil, 0, ""},
		{"an empty release has no file", 0, "", "arm64", files{"A/.btf": 16}, 0, ""},
	} {
		t.Run(c.rule, func(t *testing.T) {
			dir := t.TempDir()
			for name, at := range c.files {
				content := marked(t, at)
				if !strings.HasSuffix(name, ".btf") {
					content = zipped(t, content)
				}
				put(t, filepath.Join(dir, filepath.Dir(name)), filepath.Base(name), content)
			}
			sys := fstest.MapFS{}
			if c.sys != 0 {
				sys[own] = &fstest.MapFile{Data: marked(t, c.sys)}
			}
			spec, source, err := For(sys, c.release, c.arch, filepath.Join(dir, "A"), filepath.Join(dir, "B"))
			if c.mark == 0 {
				if !errors.Is(err, ErrNone) || spec != nil {
					t.Errorf("For = %v, %v, want ErrNone", source, err)
				}
				return
			}
			if err != nil || source.Skipped != nil {
				t.Fatalf("%v, skipped %v", err, source.Skipped)
			}
			if got := strings.ReplaceAll(source.String(), dir, "DIR"); got != c.source || mark(t, spec) != c.mark {
				t.Errorf("%s with sk_mark at %d, want %s with %d", got, mark(t, spec), c.source, c.mark)
			}

		})
	}
}

// TestForTells passes what is there and cannot be used: it is passed over, and never in silence.
func TestForTells(t *testing.T) {
	broken := []byte("adb push was cut off here")
	for _, c := range []struct {
		rule    string
		prepare func(t *testing.T, dir string, sys fstest.MapFS)
		release string
		told    []string
	}{
		{"the kernel's own cannot be read", func(t *testing.T, dir string, sys fstest.MapFS) {
			sys[own] = &fstest.MapFile{Data: broken}
		}, gki, []string{"read the kernel's BTF: not BTF"}},
		{"a file is broken", func(t *testing.T, dir string, sys fstest.MapFS) {
			put(t, dir, gki+".btf", broken)
			put(t, dir, "android12-5.10-arm64.btf.gz", zipped(t, broken))
		}, gki, []string{"DIR/" + gki + ".btf: not BTF", "DIR/android12-5.10-arm64.btf.gz: not BTF"}},
		{"a file is a link", func(t *testing.T, dir string, sys fstest.MapFS) {
			put(t, dir, "elsewhere", marked(t, 8))
			if err := os.Symlink("elsewhere", filepath.Join(dir, gki+".btf")); err != nil {
				t.Fatal(err)
			}
		}, gki, []string{"open DIR/" + gki + ".btf: too many levels of symbolic links"}},
		{"a directory is a file", func(t *testing.T, dir string, sys fstest.MapFS) {
			if err := os.Remove(dir); err != nil {
				t.Fatal(err)
			}
			put(t, filepath.Dir(dir), filepath.Base(dir), nil)
		}, gki, []string{"look for BTF in DIR: not a directory"}},
		{"a release that leads elsewhere", func(t *testing.T, dir string, sys fstest.MapFS) {
			put(t, filepath.Dir(dir), "x.btf", marked(t, 8))
			put(t, filepath.Join(dir, "5.10.1-android12-9-"), "y", nil)
		}, "5.10.1-android12-9-/../../x", []string{`kernel "5.10.1-android12-9-/../../x": the release is not a file name`}},
		{"a module's BTF has nothing of use", func(t *testing.T, dir string, sys fstest.MapFS) {
			raw, err := facts.Marshal([]facts.Fact{{Struct: "nf_conn", Member: "mark", Kind: "u32"}})
			if err != nil {
				t.Fatal(err)
			}
			put(t, dir, gki+".btf", raw)
		}, gki, []string{facts.ErrNone.Error()}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			dir, sys := filepath.Join(t.TempDir(), "btf"), fstest.MapFS{}
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			c.prepare(t, dir, sys)
			check := func(err error) {
				t.Helper()
				if err == nil {
					t.Fatal("nothing is told")
				}
				for _, want := range c.told {
					if got := strings.ReplaceAll(err.Error(), dir, "DIR"); !strings.Contains(got, want) {
						t.Errorf("%q is not told in %q", want, got)
					}
				}
			}
			_, source, err := For(sys, c.release, "arm64", dir)
			if err != nil || source.Kind != Facts {
				t.Fatalf("For = %v, %v, want the facts", source, err)
			}
			check(source.Skipped)
			_, _, err = For(sys, c.release, "amd64", dir)
			if !errors.Is(err, ErrNone) {
				t.Fatalf("For = %v, want ErrNone", err)
			}
			if !strings.Contains(c.rule, "file is broken") { // the KMI's is another one on amd64
				check(err)
			}
		})
	}
}

func TestForWithout(t *testing.T) {
	if _, source, err := For(nil, gki, "arm64"); err != nil || source.Kind != Facts || source.Skipped != nil {
		t.Errorf("without sys and directories: %v, %v, skipped %v", source, err, source.Skipped)
	}
	if _, source, err := For(nil, gki, "arm64", filepath.Join(t.TempDir(), "none")); err != nil || source.Skipped != nil {
		t.Errorf("a directory that does not exist: %v, skipped %v", err, source.Skipped)
	}
	if _, _, err := For(nil, "", ""); !errors.Is(err, ErrNone) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing at all: %v", err)
	}
}
