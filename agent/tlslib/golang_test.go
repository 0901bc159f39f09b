// SPDX-License-Identifier: Apache-2.0

package tlslib

import (
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// goProgram is a client with C in it where there is cgo; its own function makes the linker keep a second copy's name.
var goProgram = map[string]string{
	"go.mod": "module tlsprogram\n\ngo 1.21\n",
	"main.go": `package main

import (
	"crypto/tls"
	"os"
)

func main() {
	c, err := tls.Dial("tcp", os.Args[1], &tls.Config{})
	if err == nil {
		c.Close()
	}
	(&Config{}).writeKeyLog("label", nil, nil)
}

type Config struct{}

//go:noinline
func (c *Config) writeKeyLog(label string, clientRandom, secret []byte) { println(label) }
`,
	"c.go": "package main\n\nimport \"C\"\n",
}

// buildGo builds files with the Go of the tests and returns the program.
func buildGo(t *testing.T, files map[string]string, env []string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", append([]string{"build", "-buildvcs=false", "-o", "program"}, args...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return filepath.Join(dir, "program")
}

// symbols returns the offsets in the file of the functions whose names end with one of goKeyLog or goMaster.
func symbols(t *testing.T, path string) map[string]uint64 {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]uint64{}
	for _, s := range all {
		if !strings.HasSuffix(s.Name, goKeyLog[0]) && !strings.HasSuffix(s.Name, goMaster) {
			continue
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_LOAD && s.Value >= p.Vaddr && s.Value < p.Vaddr+p.Filesz {
				found[s.Name] = s.Value - p.Vaddr + p.Off
			}
		}
	}
	return found
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// withoutSections cuts off what says where the sections are.
func withoutSections(b []byte) []byte {
	b = bytes.Clone(b)
	clear(b[40:48])
	clear(b[58:64])
	return b
}

// offsetsOf returns what findGo finds, by name.
func offsetsOf(t *testing.T, r io.ReaderAt, size int) map[string]uint64 {
	t.Helper()
	fns, err := findGo(r, int64(size))
	if err != nil {
		t.Error(err)
	}
	found := map[string]uint64{}
	for _, fn := range fns {
		name, _, _ := strings.Cut(fn.Why, ", built by ")
		found[name] = fn.Offset
		if fn.Guess != strings.HasPrefix(name, "main.") {
			t.Errorf("%s: guess %v", name, fn.Guess)
		}
	}
	return found
}

func TestFindGo(t *testing.T) {
	arm64, amd64 := []string{"GOARCH=arm64", "CGO_ENABLED=0"}, []string{"GOARCH=amd64", "CGO_ENABLED=0"}
	for _, tt := range []struct {
		name string
		env  []string
		args []string
	}{
		{"x86_64", amd64, nil},
		{"x86_64, PIE", amd64, []string{"-buildmode=pie"}},
		{"with C", []string{"CGO_ENABLED=1"}, []string{"-ldflags=-linkmode=external"}},
		{"with C, PIE", []string{"CGO_ENABLED=1"}, []string{"-ldflags=-linkmode=external", "-buildmode=pie"}},
		{"arm64", arm64, nil},
		{"arm64, PIE", arm64, []string{"-buildmode=pie"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := buildGo(t, goProgram, tt.env, tt.args...)
			want := symbols(t, path)
			if len(want) != 3 {
				t.Fatalf("the program has %v", want)
			}
			b := readFile(t, path)
			if diff := cmp.Diff(want, offsetsOf(t, bytes.NewReader(b), len(b))); diff != "" {
				t.Error("as built: ", diff)
			}
			bare := withoutSections(b)
			if diff := cmp.Diff(want, offsetsOf(t, bytes.NewReader(bare), len(bare))); diff != "" {
				t.Error("without sections: ", diff)
			}
			// As it is in an APK.
			apk := io.NewSectionReader(bytes.NewReader(append(make([]byte, 4096), b...)), 4096, int64(len(b)))
			if diff := cmp.Diff(want, offsetsOf(t, apk, len(b))); diff != "" {
				t.Error("in a larger file: ", diff)
			}
		})
	}
}

func TestFindGoStripped(t *testing.T) {
	for _, mode := range []string{"exe", "pie"} {
		env := []string{"GOARCH=amd64", "CGO_ENABLED=0"}
		want := symbols(t, buildGo(t, goProgram, env, "-buildmode="+mode))
		b := readFile(t, buildGo(t, goProgram, env, "-buildmode="+mode, "-ldflags=-s -w"))
		if f, err := elf.NewFile(bytes.NewReader(b)); err != nil || f.Section(".symtab") != nil {
			t.Fatalf("%s: it is not stripped, or %v", mode, err)
		}
		// The linker places the code before it leaves out the symbols.
		if diff := cmp.Diff(want, offsetsOf(t, bytes.NewReader(b), len(b))); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
	}
}

func TestFindGoRegisters(t *testing.T) {
	for machine, want := range map[elf.Machine][]Function{
		elf.EM_X86_64:  {{Label: 5, LabelSize: 11, Random: 14, Secret: 8, Size: 7}, {Label: NoRegister, LabelSize: NoRegister, Fixed: "CLIENT_RANDOM", Random: 9, Secret: 11, Size: 14}},
		elf.EM_AARCH64: {{Label: 1, LabelSize: 2, Random: 3, Secret: 6, Size: 7}, {Label: NoRegister, LabelSize: NoRegister, Fixed: "CLIENT_RANDOM", Random: 5, Secret: 2, Size: 3}},
	} {
		arch := map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}[machine]
		files := map[string]string{"go.mod": goProgram["go.mod"], "main.go": strings.ReplaceAll(goProgram["main.go"], "writeKeyLog(", "write(")}
		b := readFile(t, buildGo(t, files, []string{"GOARCH=" + arch, "CGO_ENABLED=0"}))
		got, err := findGo(bytes.NewReader(b), int64(len(b)))
		if err != nil || len(got) != 2 {
			t.Fatalf("%v: %v, %v", machine, got, err)
		}
		for i := range want {
			want[i].Library, want[i].Machine, want[i].Path = "Go", machine, []uint32{0}
			want[i].Offset, want[i].Why = got[i].Offset, got[i].Why
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v: %s", machine, diff)
		}
	}
}

func TestFindGoWithoutTLS(t *testing.T) {
	files := map[string]string{"go.mod": goProgram["go.mod"], "main.go": "package main\n\nfunc main() { println(\"hello\") }\n"}
	b := readFile(t, buildGo(t, files, []string{"CGO_ENABLED=0"}))
	if _, err := findGo(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "crypto/tls is not linked") {
		t.Errorf("a Go binary without crypto/tls: %v", err)
	}
	b = readFile(t, "/bin/sh")
	if _, err := findGo(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrNone) {
		t.Errorf("a C binary: %v", err)
	}
}

func TestFindGoOfOtherCode(t *testing.T) {
	b := readFile(t, buildGo(t, goProgram, []string{"GOARCH=amd64", "CGO_ENABLED=0"}))
	fns, err := findGo(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, code, want string }{
		{"Go 1.16", "\x64\x48\x8b\x0c\x25\xf8\xff\xff\xff", errOldGo.Error()},
		{"Go 1.16, PIE", "\x48\xc7\xc1\xf8\xff\xff\xff\x64\x48\x8b\x09", errOldGo.Error()},
		{"a version to come", "\xf3\x0f\x1e\xfa" + strings.Repeat("\x90", 8), "begins with f30f1efa"},
	} {
		for _, fn := range fns {
			copy(b[fn.Offset:], tt.code)
		}
		if _, err := findGo(bytes.NewReader(b), int64(len(b))); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
	copy(b[fns[1].Offset:], "\x4c\x8d\xa4\x24\x00\xff\xff\xff\x4d\x3b\x66\x10")
	if got, err := findGo(bytes.NewReader(b), int64(len(b))); err != nil || len(got) != 1 || got[0].Offset != fns[1].Offset {
		t.Errorf("of a function with a large frame and two that are not understood: %v, %v", got, err)
	}
}
