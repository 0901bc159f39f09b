// SPDX-License-Identifier: Apache-2.0

// Package abitest holds structs of Go against the structs of the bpf objects that they mirror.
package abitest

import (
	"encoding/binary"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

// member is one of a struct, at an offset in bytes, as large as size bytes.
type member struct {
	name         string
	offset, size int
}

// Mirrors fails unless v is a struct with the members of the C struct of that name in the BTF of spec, in the same order and at the
// same offsets, and neither has a hole. A name is without case and underscores: vlan_tci and VlanTCI are the same one.
func Mirrors(t *testing.T, spec *ebpf.CollectionSpec, name string, v any) {
	t.Helper()
	var c *btf.Struct
	if err := spec.Types.TypeByName(name, &c); err != nil {
		t.Fatalf("the object's BTF: %v", err)
	}
	want, wantSize := membersOfC(t, c)
	got, gotSize := membersOfGo(t, v)
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(member{})); diff != "" || gotSize != wantSize {
		t.Errorf("C has %d bytes and Go %d; C -, Go +\n%s", wantSize, gotSize, diff)
	}
	if end := want[len(want)-1]; end.offset+end.size != wantSize {
		t.Errorf("the struct has a hole at its end: %+v of %d bytes", end, wantSize)
	}
}

// membersOfGo returns a struct as encoding/binary writes it.
func membersOfGo(t *testing.T, v any) (members []member, size int) {
	t.Helper()
	typ := reflect.TypeOf(v)
	offset := 0
	for i := range typ.NumField() {
		f := typ.Field(i)
		n := binary.Size(reflect.Zero(f.Type).Interface())
		if int(f.Offset) != offset {
			t.Errorf("field %s of the Go struct lies at %d in memory, and at %d where encoding/binary writes it", f.Name, f.Offset, offset)
		}
		members = append(members, member{strings.ToLower(f.Name), offset, n})
		offset += n
	}
	return members, int(typ.Size())
}

func membersOfC(t *testing.T, s *btf.Struct) (members []member, size int) {
	t.Helper()
	for _, m := range s.Members {
		n, err := btf.Sizeof(m.Type)
		if err != nil || m.BitfieldSize != 0 {
			t.Fatalf("member %s of the C struct: %v", m.Name, err)
		}
		members = append(members, member{strings.ReplaceAll(m.Name, "_", ""), int(m.Offset.Bytes()), n})
	}
	return members, int(s.Size)
}
