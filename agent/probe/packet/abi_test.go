// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"

	"droidtap/bpf"
)

// member is one of a struct, at an offset in bytes, as large as size bytes.
type member struct {
	name         string
	offset, size int
}

// membersOfGo returns a struct as encoding/binary writes it. A name is without case and
// underscores: vlan_tci and VlanTCI are the same one.
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

// TestABI holds Go structs against the BTF of every object.
func TestABI(t *testing.T) {
	for _, name := range bpf.Names() {
		part := strings.Split(name, ".")
		if part[0] != "packet" {
			continue
		}
		spec, err := bpf.Open(part[0], part[1])
		if err != nil {
			t.Fatal(err)
		}
		for _, mirror := range []struct {
			name string
			v    any
		}{
			{"event", event{}},
			{"settings", settings{}},
			{"counts", counts{}},
			{"verdicts", verdicts{}},
		} {
			t.Run(name+" struct "+mirror.name, func(t *testing.T) {
				var c *btf.Struct
				if err := spec.Types.TypeByName(mirror.name, &c); err != nil {
					t.Fatalf("the object's BTF: %v", err)
				}
				want, wantSize := membersOfC(t, c)
				got, gotSize := membersOfGo(t, mirror.v)
				if diff := cmp.Diff(want, got, cmp.AllowUnexported(member{})); diff != "" || gotSize != wantSize {
					t.Errorf("C has %d bytes and Go %d; C -, Go +\n%s", wantSize, gotSize, diff)
				}
				if end := want[len(want)-1]; end.offset+end.size != wantSize {
					t.Errorf("the struct has a hole at its end: %+v of %d bytes", end, wantSize)
				}
			})
		}
	}
}

func TestEventSize(t *testing.T) {
	if n := binary.Size(event{}); n != eventSize {
		t.Errorf("eventSize is %d, and the struct has %d bytes", eventSize, n)
	}
}
