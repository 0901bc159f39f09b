// SPDX-License-Identifier: Apache-2.0

package btf

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
	cilium "github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"droidtap/btf/facts"
)

// Kinds of CO-RE relocation: enum bpf_core_relo_kind of include/uapi/linux/bpf.h.
const (
	byteOffset  = 0
	fieldExists = 2
	typeSize    = 9
)

// relocation is one that clang would put into an object.
type relocation struct {
	kind  uint32
	path  []string // struct, member, member of that ...
	local int32    // what the instruction holds before
}

func (r relocation) String() string { return fmt.Sprintf("%d:%s", r.kind, strings.Join(r.path, ".")) }

// program is an object's view of the kernel's structs: the same names and kinds, and every member elsewhere.
type program struct {
	raw  []byte
	spec *cilium.Spec
}

func newProgram(t *testing.T, fs []facts.Fact) program {
	t.Helper()
	room := map[string]uint32{"sock": 1 << 17, "sock_common": 1 << 16} // what has others in it
	var elsewhere []facts.Fact
	for i, f := range fs {
		f.Bits = uint32(i) * 256
		if f.Member == facts.Size {
			f.Bits = max(room[f.Struct], 1<<15)
		}
		elsewhere = append(elsewhere, f)
	}
	raw, err := facts.Marshal(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cilium.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return program{raw, spec}
}

// resolve returns the ID of a path's struct, the access string, and offset and struct size in the program's view.
func (p program) resolve(t *testing.T, path []string) (id cilium.TypeID, access string, offset, size int32) {
	t.Helper()
	var root *cilium.Struct
	if err := p.spec.TypeByName(path[0], &root); err != nil {
		t.Fatalf("%s: %v", path[0], err)
	}
	id, err := p.spec.TypeID(root)
	if err != nil {
		t.Fatal(err)
	}
	access = "0"
	at := cilium.Type(root)
	for _, name := range path[1:] {
		found := false
		for i, m := range cilium.UnderlyingType(at).(*cilium.Struct).Members {
			if m.Name == name {
				access += fmt.Sprintf(":%d", i)
				offset += int32(m.Offset.Bytes())
				at, found = m.Type, true
				break
			}
		}
		if !found {
			t.Fatalf("no %v", path)
		}
	}
	return id, access, offset, int32(root.Size)
}

// relocate returns what the instructions hold after relocation against a kernel's types, by relocation.
func (p program) relocate(t *testing.T, kernel *cilium.Spec, relos []relocation) map[string]int64 {
	t.Helper()
	// Strings of .BTF.ext are in .BTF: ours are appended to it, where its string section ends.
	le := binary.LittleEndian
	raw := bytes.Clone(p.raw)
	str := func(s string) uint32 {
		n := le.Uint32(raw[20:])
		raw = append(append(raw, s...), 0)
		le.PutUint32(raw[20:], n+uint32(len(s))+1)
		return n
	}
	info := binary.LittleEndian.AppendUint32(nil, 16) // the size of a record
	info = le.AppendUint32(info, str("tc"))
	info = le.AppendUint32(info, uint32(len(relos)))
	for i, r := range relos {
		id, access, offset, size := p.resolve(t, r.path)
		switch r.kind {
		case byteOffset:
			relos[i].local = offset
		case fieldExists:
			relos[i].local = 1
		case typeSize:
			relos[i].local = size
		}
		for _, w := range []uint32{uint32(i * asm.InstructionSize), uint32(id), str(access), r.kind} {
			info = le.AppendUint32(info, w)
		}
	}
	ext := []byte{0x9f, 0xeb, 1, 0}
	// No function and no line: but the sizes of such records.
	for _, w := range []uint32{32, 0, 4, 4, 4, 8, uint32(len(info)), 8, 16} {
		ext = le.AppendUint32(ext, w)
	}
	file := object(t, part{".BTF", raw}, part{".BTF.ext", append(ext, info...)}, part{".symtab", make([]byte, elf.Sym64Size)})
	_, infos, err := cilium.LoadSpecAndExtInfosFromReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	var list []*cilium.CORERelocation
	for _, o := range infos.CORERelos["tc"] {
		list = append(list, o.Relo)
	}
	if len(list) != len(relos) {
		t.Fatalf("%d relocations of %d", len(list), len(relos))
	}
	fixups, err := cilium.CORERelocate(list, []*cilium.Spec{kernel}, le, func(cilium.Type) (cilium.TypeID, error) { return 0, nil })
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for i, r := range relos {
		ins := asm.Mov.Imm(asm.R1, r.local)
		if err := fixups[i].Apply(&ins); err != nil {
			t.Fatalf("%s: %v", r, err)
		}
		got[r.String()] = ins.Constant
	}
	return got
}

// relocations lists one for each fact but those of typedefs, which are reached through a member only, and some that
// go through several structs.
func relocations(fs []facts.Fact) (relos []relocation) {
	typedefs := map[string]bool{}
	for _, f := range fs {
		typedefs[f.Struct] = typedefs[f.Struct] || f.Kind == "typedef"
	}
	for _, f := range fs {
		switch {
		case typedefs[f.Struct]:
		case f.Member == facts.Size:
			relos = append(relos, relocation{kind: typeSize, path: []string{f.Struct}})
		default:
			relos = append(relos, relocation{kind: byteOffset, path: []string{f.Struct, f.Member}})
		}
	}
	return append(relos,
		relocation{kind: byteOffset, path: []string{"sock", "sk_uid", "val"}},
		relocation{kind: byteOffset, path: []string{"sock", "sk_cgrp_data", "val"}},
		relocation{kind: byteOffset, path: []string{"sock", "__sk_common", "skc_cookie", "counter"}},
		relocation{kind: byteOffset, path: []string{"sock", "__sk_common", "skc_net", "net"}},
		relocation{kind: fieldExists, path: []string{"sock", "sk_cgrp_data", "val"}},
		relocation{kind: fieldExists, path: []string{"sock", "sk_cgrp_data", "cgroup"}},
	)
}

// TestCORE relocates a program against the embedded types and against a real kernel's.
func TestCORE(t *testing.T) {
	all := kernels(t)
	for kmi, files := range branches {
		release := map[string]string{"android12-5.10": gki, "android13-5.10": "5.10.177-android13-4"}[kmi]
		if release == "" {
			continue
		}
		t.Run(kmi, func(t *testing.T) {
			fs := plain(all[files[0]])
			// A program that also knows later kernels.
			program := newProgram(t, append(fs, facts.Fact{Struct: "sock_cgroup_data", Member: "cgroup", Kind: "ptr"}))
			relos := relocations(fs)
			spec, _, err := For(nil, release, "arm64")
			if err != nil {
				t.Fatal(err)
			}
			got := program.relocate(t, spec, relos)

			want := map[string]int64{
				"0:sock.sk_uid.val":                     592,
				"0:sock.sk_cgrp_data.val":               672,
				"0:sock.__sk_common.skc_cookie.counter": 88,
				"0:sock.__sk_common.skc_net.net":        48,
				"2:sock.sk_cgrp_data.val":               1,
				"2:sock.sk_cgrp_data.cgroup":            0,
			}
			for _, f := range fs {
				r := relocation{kind: byteOffset, path: []string{f.Struct, f.Member}}
				if f.Member == facts.Size {
					r = relocation{kind: typeSize, path: []string{f.Struct}}
				}
				if _, ok := got[r.String()]; ok {
					want[r.String()] = int64(f.Bits / 8)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-kernel +relocated):\n%s", diff)
			}
			if dir := realDir(t); dir != "" {
				raw, err := Read(filepath.Join(dir, files[0]+".btf.xz"))
				if err != nil {
					t.Fatal(err)
				}
				kernel, err := cilium.LoadSpecFromReader(bytes.NewReader(raw))
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(program.relocate(t, kernel, relos), got); diff != "" {
					t.Errorf("(-against the kernel's own +against the embedded):\n%s", diff)
				}
			}
		})
	}
}
