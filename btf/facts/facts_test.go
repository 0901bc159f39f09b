// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

// encode makes raw BTF of types, as another maker than Marshal.
func encode(t testing.TB, types ...btf.Type) []byte {
	t.Helper()
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := b.Marshal(nil, &btf.MarshalOptions{Order: binary.LittleEndian})
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestFrom(t *testing.T) {
	u8 := &btf.Int{Name: "unsigned char", Size: 1}
	u32 := &btf.Int{Name: "unsigned int", Size: 4}
	s32 := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	ptr := &btf.Pointer{Target: &btf.Fwd{Name: "file"}}
	kuid := &btf.Typedef{Name: "kuid_t", Type: &btf.Struct{Size: 4, Members: []btf.Member{{Name: "val", Type: u32}}}}
	socket := func(size uint32, ms ...btf.Member) *btf.Struct {
		return &btf.Struct{Name: "socket", Size: size, Members: ms}
	}
	for _, c := range []struct {
		rule    string
		types   []btf.Type
		want    []string
		missing []string // of the struct that the case is about
	}{
		{
			"anonymous structs and unions are gone through",
			[]btf.Type{socket(32, btf.Member{Offset: 64, Type: &btf.Union{Size: 24, Members: []btf.Member{
				{Type: &btf.Const{Type: &btf.Struct{Size: 24, Members: []btf.Member{{Name: "sk", Type: ptr, Offset: 64}}}}},
				{Name: "file", Type: ptr},
			}}})},
			[]string{"socket.(sizeof) struct at bit 256", "socket.file ptr at bit 64", "socket.sk ptr at bit 128"},
			nil,
		},
		{
			"qualifiers and typedefs do not matter",
			[]btf.Type{&btf.Struct{Name: "task_struct", Size: 99, Members: []btf.Member{
				{Name: "pid", Type: &btf.Typedef{Name: "pid_t", Type: &btf.Typedef{Name: "__kernel_pid_t", Type: s32}}},
				{Name: "tgid", Type: &btf.Volatile{Type: &btf.Const{Type: s32}}, Offset: 32},
				{Name: "comm", Type: &btf.Array{Index: u32, Type: &btf.Int{Name: "char", Size: 1}, Nelems: 16}, Offset: 64},
			}}},
			[]string{"task_struct.pid s32 at bit 0", "task_struct.tgid s32 at bit 32", "task_struct.comm char[16] at bit 64"},
			nil,
		},
		{
			"a typedef of a struct without name is called by the typedef",
			[]btf.Type{&btf.Struct{Name: "sock", Size: 8, Members: []btf.Member{{Name: "sk_uid", Type: kuid, Offset: 32}}}},
			[]string{
				"sock.(sizeof) struct at bit 64", "sock.sk_uid typedef kuid_t at bit 32",
				"kuid_t.(sizeof) typedef at bit 32", "kuid_t.val u32 at bit 0",
			},
			[]string{"sock.__sk_common: not in this kernel"},
		},
		{
			"a struct of which nothing is known is left out",
			[]btf.Type{&btf.Struct{Name: "sock", Size: 8, Members: []btf.Member{
				{Name: "sk_mark", Type: u32},
				{Name: "sk_uid", Type: &btf.Struct{Name: "other", Size: 4}, Offset: 32},
			}}},
			[]string{"sock.(sizeof) struct at bit 64", "sock.sk_mark u32 at bit 0"},
			[]string{"sock.sk_uid: nothing is known of struct other"},
		},
		{
			"a bit field is left out: sk_type before 5.6",
			[]btf.Type{&btf.Struct{Name: "sock", Size: 8, Members: []btf.Member{
				{Name: "sk_mark", Type: u32},
				{Name: "sk_type", Type: u32, Offset: 48, BitfieldSize: 16},
			}}},
			[]string{"sock.(sizeof) struct at bit 64", "sock.sk_mark u32 at bit 0"},
			[]string{"sock.sk_type: a bit field"},
		},
		{
			"a kind without fact is left out: kernfs_node.id before 5.5",
			[]btf.Type{
				&btf.Struct{Name: "kernfs_node", Size: 8, Members: []btf.Member{{Name: "id", Type: &btf.Union{Name: "kernfs_node_id", Size: 8}}}},
				socket(8, btf.Member{Name: "sk", Type: ptr}),
			},
			[]string{"socket.(sizeof) struct at bit 64", "socket.sk ptr at bit 0"},
			[]string{"kernfs_node: not in this kernel", "socket.file: not in this kernel"},
		},
		{
			"another struct of the same name does not count",
			[]btf.Type{socket(4, btf.Member{Name: "fd", Type: u32}), socket(8, btf.Member{Name: "sk", Type: ptr})},
			[]string{"socket.(sizeof) struct at bit 64", "socket.sk ptr at bit 0"},
			nil,
		},
		{
			"of two structs what they agree on counts",
			[]btf.Type{
				socket(16, btf.Member{Name: "sk", Type: ptr}, btf.Member{Name: "file", Type: ptr, Offset: 64}),
				socket(24, btf.Member{Name: "sk", Type: ptr}, btf.Member{Name: "file", Type: ptr, Offset: 128}),
			},
			[]string{"socket.sk ptr at bit 0"},
			[]string{
				"socket.(sizeof) struct at bit 128, elsewhere struct at bit 192",
				"socket.file ptr at bit 64, elsewhere ptr at bit 128",
			},
		},
		{
			"an array of something else than char is left out",
			[]btf.Type{socket(32,
				btf.Member{Name: "file", Type: &btf.Array{Index: u32, Type: u32, Nelems: 4}},
				btf.Member{Name: "sk", Type: &btf.Array{Index: u32, Type: u8, Nelems: 5000}},
			), kuid},
			[]string{"kuid_t.(sizeof) typedef at bit 32", "kuid_t.val u32 at bit 0"},
			[]string{"socket: not in this kernel"},
		},
	} {
		t.Run(c.rule, func(t *testing.T) {
			fs, missing, err := From(encode(t, c.types...))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range fs {
				got = append(got, f.String())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
			told := errors.Join(missing...).Error() + "\n"
			for _, m := range c.missing {
				if !strings.Contains(told, m+"\n") {
					t.Errorf("%q is not told in:\n%s", m, told)
				}
			}
		})
	}
}

// TestFromRefuses passes BTF of which there is nothing to get, and such as would keep or kill a careless reader.
func TestFromRefuses(t *testing.T) {
	sound := encode(t, &btf.Struct{Name: "in6_addr", Size: 16})
	patched := func(at int, b ...byte) []byte {
		p := bytes.Clone(sound)
		copy(p[at:], b)
		return p
	}
	for _, c := range []struct {
		rule, want string
		raw        []byte
	}{
		{"nothing", "too short", nil},
		{"another magic", "not BTF", patched(0, 'P', 'K')},
		{"big-endian", "big-endian", patched(0, 0xeb, 0x9f)},
		{"another version", "version 2", patched(2, 2)},
		{"a header shorter than a header", "cut short", patched(4, 8)},
		{"types beyond the end", "cut short", patched(12, 0xff, 0xff, 0xff, 0xff)},
		{"an offset beyond 32 bits", "cut short", patched(8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)},
		{"strings cut off", "cut short", sound[:len(sound)-1]},
		{"an unknown kind", "kind 31", patched(headerLen+7, 31)},
		{"kind 0", "kind 0", patched(headerLen+7, 0)},
		{"more members than bytes", "ends within a type", patched(headerLen+4, 0xff, 0xff)},
		{"nothing that is needed", ErrNone.Error(), encode(t, &btf.Struct{Name: "nf_conn", Size: 16})},
		{"a struct that is in itself", "without end", endless(16)},
	} {
		t.Run(c.rule, func(t *testing.T) {
			fs, _, err := From(c.raw)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("From = %v, %v, want an error with %q", fs, err, c.want)
			}
		})
	}
}

// raw makes BTF of types that are encoded already. Its strings are "" at 0 and "socket", "sk" at 1 and 8.
func raw(types []byte) []byte {
	le, strs := binary.LittleEndian, "\x00socket\x00sk\x00"
	b := []byte{0x9f, 0xeb, 1, 0}
	for _, n := range []int{headerLen, 0, len(types), len(types), len(strs)} {
		b = le.AppendUint32(b, uint32(n))
	}
	return append(append(b, types...), strs...)
}

// words encodes a type.
func words(ws ...uint32) (b []byte) {
	for _, w := range ws {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

// endless makes a struct socket with n anonymous members of its own type.
func endless(n uint32) []byte {
	b := words(1, kindStruct<<24|n, 8)
	for range n {
		b = append(b, words(0, 2, 0)...)
	}
	b = append(b, words(0, kindStruct<<24|n, 8)...)
	for range n {
		b = append(b, words(0, 2, 0)...)
	}
	return raw(b)
}

// TestChain reads past a million pointers in a row, which cilium/ebpf's decoder would follow one call deeper each.
func TestChain(t *testing.T) {
	const n = 1 << 20
	types := words(1, kindStruct<<24|1, 8, 8, 2, 0)
	for id := uint32(2); id < n; id++ {
		types = append(types, words(0, kindPtr<<24, id+1)...)
	}
	fs, _, err := From(raw(types))
	if err != nil || len(fs) != 2 || fs[1].Kind != "ptr" {
		t.Errorf("From = %v, %v", fs, err)
	}
	// Typedefs in a row are followed, and in a circle not for ever.
	circle := append(words(1, kindStruct<<24|1, 8, 8, 2, 0), words(8, kindTypedef<<24, 2)...)
	if fs, missing, err := From(raw(circle)); !errors.Is(err, ErrNone) {
		t.Errorf("From = %v, %v, %v", fs, missing, err)
	}
}

func FuzzFrom(f *testing.F) {
	f.Add(endless(2))
	f.Add(encode(f, &btf.Struct{Name: "sock", Size: 8, Members: []btf.Member{{Name: "sk_mark", Type: &btf.Int{Name: "u", Size: 4}}}}))
	if b, err := Marshal(sample()); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		fs, _, err := From(raw)
		if err != nil {
			return
		}
		b, err := Marshal(fs)
		if errors.Is(err, errBeyond) {
			return
		}
		if err != nil {
			t.Fatalf("marshal what was read: %v", err)
		}
		again, _, err := From(b)
		if err != nil {
			t.Fatalf("read what was marshalled: %v", err)
		}
		// A struct whose size is not known gets one; the members are the same.
		again = slices.DeleteFunc(again, func(f Fact) bool { return f.Member == Size })
		fs = slices.DeleteFunc(fs, func(f Fact) bool { return f.Member == Size })
		if diff := cmp.Diff(fs, again); diff != "" {
			t.Errorf("facts change (-before +after):\n%s", diff)
		}
	})
}
