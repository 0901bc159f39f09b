// SPDX-License-Identifier: Apache-2.0

package btf

import (
	"bytes"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cilium "github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"droidtap/btf/facts"
)

var update = flag.Bool("update", false, "rewrite testdata/offsets.csv from real kernels' BTF")

// golden is what each real kernel's BTF says, in a table of facts whose source is the kernel's file.
const golden = "testdata/offsets.csv"

// branches are the kernels in golden, by the KMI that they are of; "" has none.
var branches = map[string][]string{
	"android12-5.10": {"a12-5.10-2021-09-arm64", "a12-5.10-2022-08-arm64", "a12-5.10-2023-04-arm64"},
	"android13-5.10": {"a13-5.10-2022-04-arm64", "a13-5.10-2023-04-arm64"},
	"":               {"rock5b-5.10-f9d1b1529-arm64"},
}

// kernels returns the table golden by kernel.
func kernels(t *testing.T) map[string][]facts.Fact {
	t.Helper()
	all := map[string][]facts.Fact{}
	for _, f := range read(t, golden) {
		all[f.Source] = append(all[f.Source], f)
	}
	return all
}

// read reads a table of facts.
func read(t *testing.T, path string) []facts.Fact {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := facts.Read(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return fs
}

// plain returns facts without their source.
func plain(fs []facts.Fact) (bare []facts.Fact) {
	for _, f := range fs {
		f.Source = ""
		bare = append(bare, f)
	}
	return bare
}

// TestFacts holds every fact of a branch against what every kernel of the branch says, and what is embedded too.
func TestFacts(t *testing.T) {
	all := kernels(t)
	for kmi, files := range branches {
		if kmi == "" {
			continue
		}
		t.Run(kmi, func(t *testing.T) {
			table := plain(read(t, filepath.Join("facts", kmi+".csv")))
			for _, file := range files {
				if diff := cmp.Diff(plain(all[file]), table); diff != "" {
					t.Errorf("%s (-kernel +facts):\n%s", file, diff)
				}
			}
			raw, err := embedded.ReadFile("min/" + kmi + "-arm64.btf")
			if err != nil {
				t.Fatal(err)
			}
			if len(raw) > 1300 {
				t.Errorf("%d bytes", len(raw))
			}
			got, _, err := facts.From(raw)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(table, got); diff != "" {
				t.Errorf("(-facts +embedded):\n%s", diff)
			}
		})
	}
	tables, err := filepath.Glob("facts/*.csv")
	if err != nil || len(tables) != len(branches)-1 {
		t.Errorf("tables %v, %v: each needs kernels to be checked against", tables, err)
	}
}

// TestVendor shows why a kernel of 5.10 that is no GKI must not get the facts of one.
func TestVendor(t *testing.T) {
	all := kernels(t)
	_, odd := facts.Common(all["a12-5.10-2023-04-arm64"], all[branches[""][0]])
	told := errors.Join(odd...).Error()
	for _, member := range []string{"sock.sk_uid ", "sock.sk_cgrp_data ", "sock.sk_socket ", "cgroup.kn ", "task_struct.tgid "} {
		if !strings.Contains(told, member) {
			t.Errorf("%s is where a GKI has it; different are:\n%s", member, told)
		}
	}
	if _, source, err := For(nil, vendor, "arm64"); !errors.Is(err, ErrNone) {
		t.Errorf("For of %s = %v, %v, want ErrNone", vendor, source, err)
	}
}

// realDir finds the real kernels' BTF. It is not part of the project: 1.2 MB each.
func realDir(t *testing.T) string {
	t.Helper()
	dir, given := os.LookupEnv("DROIDTAP_SHARED")
	if !given {
		dir = "../../shared"
	}
	dir = filepath.Join(dir, "btf")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && !given {
		return ""
	} else if err != nil {
		t.Fatalf("the real kernels' BTF: %v", err)
	}
	return dir
}

// TestReal holds the golden table against the real BTF, as this package and as cilium/ebpf reads it.
func TestReal(t *testing.T) {
	dir := realDir(t)
	if dir == "" {
		t.Logf("the real kernels' BTF is neither in DROIDTAP_SHARED nor in ../../shared: %s, made from it, was not held against it", golden)
		return
	}
	all := map[string][]facts.Fact{}
	if !*update {
		all = kernels(t)
	}
	var table []facts.Fact
	for _, kmi := range []string{"android12-5.10", "android13-5.10", ""} {
		for _, file := range branches[kmi] {
			raw, err := Read(filepath.Join(dir, file+".btf.xz"))
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := facts.From(raw)
			if err != nil {
				t.Fatal(err)
			}
			same(t, raw, got)
			if diff := cmp.Diff(plain(all[file]), got); diff != "" && !*update {
				t.Errorf("%s (-golden +kernel):\n%s", file, diff)
			}
			for _, f := range got {
				f.Source = file
				table = append(table, f)
			}
		}
	}
	if *update {
		var b bytes.Buffer
		if err := facts.Write(&b, table); err != nil {
			t.Fatal(err)
		}
		put(t, "testdata", filepath.Base(golden), b.Bytes())
	}
}

// TestRunning holds what is read of the running kernel's own BTF, if it has one, against what cilium/ebpf reads.
func TestRunning(t *testing.T) {
	raw, err := os.ReadFile("/sys/" + own)
	if errors.Is(err, fs.ErrNotExist) {
		t.Log("this kernel has no BTF of its own to try")
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := facts.From(raw)
	if err != nil {
		t.Fatal(err)
	}
	same(t, raw, got)
	_, source, err := For(os.DirFS("/sys"), "", "")
	if err != nil || source.Kind != Kernel || source.Skipped != nil {
		t.Errorf("For = %v, %v, skipped %v", source, err, source.Skipped)
	}
}

// same fails where cilium/ebpf sees a member elsewhere, or another size.
func same(t *testing.T, raw []byte, fs []facts.Fact) {
	t.Helper()
	spec, err := cilium.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fs {
		types, err := spec.AnyTypesByName(f.Struct)
		if err != nil {
			t.Fatalf("%s: %v", f.Struct, err)
		}
		if !slices.ContainsFunc(types, func(typ cilium.Type) bool { return says(typ, f) }) {
			t.Errorf("%s: cilium/ebpf sees otherwise in %v", f, types)
		}
	}
}

// says tells whether a type is as the fact has it.
func says(typ cilium.Type, f facts.Fact) bool {
	s, ok := cilium.UnderlyingType(typ).(*cilium.Struct)
	if !ok {
		return false
	}
	if f.Member == facts.Size {
		return s.Size*8 == f.Bits
	}
	m, ok := find(s.Members, 0, f.Member)
	return ok && uint32(m.Offset) == f.Bits
}

// find returns a member with its offset from the outermost struct.
func find(ms []cilium.Member, base cilium.Bits, name string) (cilium.Member, bool) {
	for _, m := range ms {
		m.Offset += base
		if m.Name == name {
			return m, true
		}
		if m.Name != "" {
			continue
		}
		var inner []cilium.Member
		switch s := cilium.UnderlyingType(m.Type).(type) {
		case *cilium.Struct:
			inner = s.Members
		case *cilium.Union:
			inner = s.Members
		}
		if m, ok := find(inner, m.Offset, name); ok {
			return m, true
		}
	}
	return cilium.Member{}, false
}
