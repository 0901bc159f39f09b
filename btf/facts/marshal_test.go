// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

// sample has every kind of fact.
func sample() []Fact {
	return []Fact{
		{Struct: "sock", Member: Size, Kind: "struct", Bits: 640},
		{Struct: "sock", Member: "__sk_common", Kind: "struct sock_common"},
		{Struct: "sock", Member: "sk_mark", Kind: "u32", Bits: 96},
		{Struct: "sock", Member: "sk_type", Kind: "u16", Bits: 128},
		{Struct: "sock", Member: "sk_protocol", Kind: "s16", Bits: 144},
		{Struct: "sock", Member: "sk_uid", Kind: "typedef kuid_t", Bits: 576},
		{Struct: "sock", Member: "sk_socket", Kind: "ptr", Bits: 320},
		{Struct: "sock_common", Member: Size, Kind: "struct", Bits: 64},
		{Struct: "sock_common", Member: "skc_daddr", Kind: "s8"},
		{Struct: "sock_common", Member: "skc_state", Kind: "u8", Bits: 24},
		{Struct: "kernfs_node", Member: Size, Kind: "struct", Bits: 64},
		{Struct: "kernfs_node", Member: "id", Kind: "u64"},
		{Struct: "task_struct", Member: "pid", Kind: "s32", Bits: 11840},
		{Struct: "task_struct", Member: "comm", Kind: "char[16]", Bits: 15488},
		{Struct: "kuid_t", Member: Size, Kind: "typedef", Bits: 32},
		{Struct: "kuid_t", Member: "val", Kind: "u32"},
		{Struct: "in6_addr", Member: Size, Kind: "struct", Bits: 128},
		{Struct: "atomic64_t", Member: Size, Kind: "typedef", Bits: 64},
		{Struct: "atomic64_t", Member: "counter", Kind: "s64"},
	}
}

func TestMarshal(t *testing.T) {
	raw, err := Marshal(sample())
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		if again, err := Marshal(sample()); err != nil || !bytes.Equal(raw, again) {
			t.Fatalf("other bytes for the same facts, %v", err)
		}
	}
	fs, _, err := From(raw)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), fs); diff != "" {
		t.Errorf("facts change (-before +after):\n%s", diff)
	}
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	var task *btf.Struct
	if err := spec.TypeByName("task_struct", &task); err != nil || task.Size != 15488/8+16 {
		t.Errorf("task_struct is %v, %v: without a size it must end with its last member", task, err)
	}
}

func TestMarshalRefuses(t *testing.T) {
	size := func(bits uint32) Fact { return Fact{Struct: "sock", Member: Size, Kind: "struct", Bits: bits} }
	for _, c := range []struct {
		rule, want string
		facts      []Fact
	}{
		{"a kind that is none", `"u24" is not a kind`, []Fact{{Struct: "sock", Member: "sk_mark", Kind: "u24"}}},
		{"a struct without facts", `"struct sock_common" is not a kind`, []Fact{{Struct: "sock", Member: "__sk_common", Kind: "struct sock_common"}}},
		{"a typedef of another kind", `a "union" cannot`, []Fact{{Struct: "sock", Member: Size, Kind: "union"}}},
		{"a member twice", "two facts", []Fact{{Struct: "sock", Member: "sk_mark", Kind: "u32"}, {Struct: "sock", Member: "sk_mark", Kind: "u32", Bits: 32}}},
		{"a member beyond the end", "beyond the end", []Fact{size(64), {Struct: "sock", Member: "sk_mark", Kind: "u32", Bits: 40}}},
		{"a member within a byte", "not at a whole byte", []Fact{size(64), {Struct: "sock", Member: "sk_mark", Kind: "u32", Bits: 4}}},
		{"an array of no length", `"char[0]" is not a kind`, []Fact{{Struct: "task_struct", Member: "comm", Kind: "char[0]"}}},
		{"an array without end", `"char[9999]" is not a kind`, []Fact{{Struct: "task_struct", Member: "comm", Kind: "char[9999]"}}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if _, err := Marshal(c.facts); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Marshal: %v, want %q", err, c.want)
			}
		})
	}
}

func TestTable(t *testing.T) {
	want := sample()
	for i := range want {
		want[i].Source = `a "kernel", or two`
	}
	var b bytes.Buffer
	if err := Write(&b, want); err != nil {
		t.Fatal(err)
	}
	got, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("facts change (-written +read):\n%s", diff)
	}
	const head = "struct,member,kind,offset_bits,source\n"
	for _, c := range []struct{ rule, table, want string }{
		{"empty", "", "name the columns"},
		{"other columns", "struct,member,offset,kind,source\n", "name the columns"},
		{"a column missing", head + "sock,sk_mark,u32,1\n", "wrong number of fields"},
		{"no number", head + "sock,sk_mark,u32,x,\n", "fact 1: "},
		{"a negative number", head + "sock,sk_mark,u32,0,\nsock,sk_uid,u32,-8,\n", "fact 2: "},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if _, err := Read(strings.NewReader(c.table)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Read: %v, want %q", err, c.want)
			}
		})
	}
}
