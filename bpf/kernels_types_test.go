// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// kind is a kind of BTF type, or a use of its btf_type's bits that came later. loader is what
// cilium/ebpf v0.22.0 does where the kernel has no such kind: btf/marshal.go, unless said.
type kind struct {
	name   string
	number uint8 // BTF_KIND_* of include/uapi/linux/btf.h
	is     func(t rawType) bool
	feature
	loader string
}

// Where a kernel lacks what carries BTF the loader goes on without, whatever the kinds.
var (
	programBTF = feature{5_00, "haveProgramExtInfos, prog.go: a program is loaded without func_info and line_info"}
	mapBTF     = feature{5_02, "MarshalMapKV, haveMapBTF, map.go: a map is made without key and value type"}
)

// oldest are the kinds of the first kernel with BTF, 1 to 11: 69b693f0aefa, bcc.
const oldest = 11

const noBTF = "goes on without BTF: programBTF, mapBTF"

var kinds = []kind{
	{"a bit-field or a forward union", 0, func(t rawType) bool {
		return t.flag && (t.number == 4 || t.number == 5 || t.number == 7) // STRUCT, UNION, FWD
	}, feature{5_00, "9d5f9f701b18"}, noBTF},
	{"FUNC", 12, nil, feature{5_00, "2667a2626f4d"}, noBTF},
	{"FUNC_PROTO", 13, nil, feature{5_00, "2667a2626f4d"}, noBTF},
	{"VAR", 14, nil, feature{5_02, "1dc92851849c"}, noBTF},
	{"DATASEC", 15, nil, feature{5_02, "1dc92851849c"}, noBTF},
	{"a global or extern FUNC", 0, func(t rawType) bool {
		return t.number == 12 && t.vlen != 0
	}, feature{5_06, "51c39bb1d5d1"}, "StripFuncLinkage makes it static"},
	{"FLOAT", 16, nil, feature{5_13, "b1828f0b0482"}, ""},
	{"DECL_TAG", 17, nil, feature{5_16, "b5ea834dde6b"}, "ReplaceDeclTags makes it an INT"},
	{"TYPE_TAG", 18, nil, feature{5_17, "8c42d2fa4eea"}, "ReplaceTypeTags makes it a CONST"},
	{"ENUM64", 19, nil, feature{6_00, "6089fb325cf7"}, "ReplaceEnum64 makes it a UNION"},
	{"a signed ENUM", 0, func(t rawType) bool {
		return t.number == 6 && t.flag
	}, feature{6_00, "6089fb325cf7"}, "ReplaceEnum64 makes it unsigned"},
}

// rawType is the info word of a struct btf_type.
type rawType struct {
	number uint8
	flag   bool
	vlen   int
}

// newerTypes tells what of the BTF that the loader hands over a kernel does not know.
func newerTypes(t *testing.T, spec *ebpf.CollectionSpec, line kernel) []string {
	t.Helper()
	types := handedOver(spec, line)
	if len(types) == 0 {
		return nil
	}
	return newerKinds(t, marshal(t, types, &btf.MarshalOptions{
		Order:            binary.LittleEndian,
		StripFuncLinkage: line < 5_06,
		ReplaceDeclTags:  line < 5_16,
		ReplaceTypeTags:  line < 5_17,
		ReplaceEnum64:    line < 6_00,
	}), line)
}

// handedOver are the roots of what the loader gives to a kernel. The rest of an object's .BTF
// stays in user space: the VAR of each map among it, and the DATASEC of the license.
func handedOver(spec *ebpf.CollectionSpec, line kernel) []btf.Type {
	var types []btf.Type
	for _, p := range spec.Programs {
		for _, in := range p.Instructions {
			if f := btf.FuncMetadata(&in); f != nil && line >= programBTF.since {
				types = append(types, f)
			}
		}
	}
	for _, m := range spec.Maps {
		for _, typ := range []btf.Type{m.Key, m.Value} {
			if typ != nil && line >= mapBTF.since {
				types = append(types, typ)
			}
		}
	}
	return types
}

func marshal(t *testing.T, types []btf.Type, opts *btf.MarshalOptions) []byte {
	t.Helper()
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, opts)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// newerKinds reads BTF as a kernel does, and tells what in it the kernel does not know.
func newerKinds(t *testing.T, raw []byte, line kernel) []string {
	t.Helper()
	var why []string
	for _, typ := range rawTypes(t, raw) {
		known := typ.number <= oldest
		for _, k := range kinds {
			if typ.number == k.number || k.is != nil && k.is(typ) {
				known = true
				why = append(why, reasons(k.missing(k.name, line))...)
			}
		}
		if !known {
			why = append(why, fmt.Sprintf("BTF kind %d is in no table", typ.number))
		}
	}
	return why
}

// rawTypes parses the type section of BTF: Documentation/bpf/btf.rst of the kernel.
func rawTypes(t *testing.T, raw []byte) []rawType {
	t.Helper()
	// What follows the 12 bytes of a btf_type: a constant, and bytes for each of vlen.
	follows := map[uint8][2]int{1: {4, 0}, 3: {12, 0}, 4: {0, 12}, 5: {0, 12}, 6: {0, 8},
		13: {0, 8}, 14: {4, 0}, 15: {0, 12}, 17: {4, 0}, 19: {0, 12}}
	le := binary.LittleEndian
	header := le.Uint32(raw[4:])
	section := raw[header+le.Uint32(raw[8:]):][:le.Uint32(raw[12:])]
	var all []rawType
	for len(section) > 0 {
		info := le.Uint32(section[4:])
		typ := rawType{uint8(info >> 24 & 0x1f), info>>31 == 1, int(info & 0xffff)}
		all = append(all, typ)
		more := follows[typ.number]
		section = section[12+more[0]+more[1]*typ.vlen:]
	}
	return all
}

// kindExamples are types by the kind that they show, none with anything newer in it.
func kindExamples() map[string]btf.Type {
	number := &btf.Int{Name: "u32", Size: 4}
	proto := &btf.FuncProto{Return: (*btf.Void)(nil)}
	variable := &btf.Var{Name: "v", Type: number}
	return map[string]btf.Type{
		"a bit-field or a forward union": &btf.Struct{Name: "s", Size: 4, Members: []btf.Member{
			{Name: "m", Type: number, BitfieldSize: 3}}},
		"FUNC":                    &btf.Func{Name: "f", Type: proto},
		"FUNC_PROTO":              proto,
		"VAR":                     variable,
		"DATASEC":                 &btf.Datasec{Name: "d", Size: 4, Vars: []btf.VarSecinfo{{Type: variable, Size: 4}}},
		"a global or extern FUNC": &btf.Func{Name: "g", Type: proto, Linkage: btf.GlobalFunc},
		"FLOAT":                   &btf.Float{Name: "float", Size: 4},
		"DECL_TAG":                &btf.Typedef{Name: "t", Type: number, Tags: []string{"tag"}},
		"TYPE_TAG":                &btf.TypeTag{Type: number, Value: "tag"},
		"ENUM64":                  &btf.Enum{Name: "e", Size: 8, Values: []btf.EnumValue{{Name: "A", Value: 1 << 40}}},
		"a signed ENUM":           &btf.Enum{Name: "n", Size: 4, Signed: true, Values: []btf.EnumValue{{Name: "B", Value: 1}}},
	}
}

// TestNewerKinds holds each kind against the kernel before it, as it is in the object and as the
// loader hands it over there: refused is only what the loader does not get around.
func TestNewerKinds(t *testing.T) {
	examples := kindExamples()
	if len(examples) != len(kinds) {
		t.Errorf("%d examples of %d kinds", len(examples), len(kinds))
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			typ := examples[k.name]
			raw := marshal(t, []btf.Type{typ}, &btf.MarshalOptions{Order: binary.LittleEndian})
			flips(t, k.feature, k.name, func(line kernel) []string { return newerKinds(t, raw, line) })

			// Functions go to the kernel with a program, all else here with a map.
			spec := &ebpf.CollectionSpec{Maps: map[string]*ebpf.MapSpec{"m": {Value: typ}}}
			if f, ok := typ.(*btf.Func); ok {
				in := btf.WithFuncMetadata(asm.Return(), f)
				spec = &ebpf.CollectionSpec{Programs: map[string]*ebpf.ProgramSpec{"p": {Instructions: asm.Instructions{in}}}}
			}
			for line := range kernelsUpTo(k.since) {
				why := newerTypes(t, spec, line)
				if refused := len(why) > 0; refused != (k.loader == "" && line >= mapBTF.since) {
					t.Errorf("on %v: %q", line, why)
				}
			}
		})
	}
	t.Run("one that no table knows", func(t *testing.T) {
		raw := marshal(t, []btf.Type{&btf.Float{Name: "float", Size: 4}}, &btf.MarshalOptions{Order: binary.LittleEndian})
		raw[24+4+3] = 31 // the kind, behind the header and the name
		if why := strings.Join(newerKinds(t, raw, 9_99), "; "); !strings.Contains(why, "kind 31 is in no table") {
			t.Errorf("says %q", why)
		}
	})
}
