// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/google/go-cmp/cmp"
)

var (
	u32 = &btf.Int{Name: "unsigned int", Size: 4}
	u64 = &btf.Int{Name: "unsigned long long", Size: 8}
)

func pointer(to btf.Type) btf.Type { return &btf.Pointer{Target: to} }

// member is one at an offset in bytes.
func at(offset uint32, name string, typ btf.Type) btf.Member {
	return btf.Member{Name: name, Type: typ, Offset: btf.Bits(offset * 8)}
}

func structure(name string, members ...btf.Member) *btf.Struct {
	return &btf.Struct{Name: name, Size: 4096, Members: members}
}

// layout is a kernel that has everything, each place another number.
func layout() map[string]*btf.Struct {
	node := structure("kernfs_node", at(104, "id", u64))
	group := structure("cgroup", at(280, "kn", pointer(node)))
	common := structure("sock_common", at(88, "skc_cookie", &btf.Typedef{Name: "atomic64_t", Type: &btf.Struct{Size: 8}}))
	data := structure("sock_cgroup_data", at(0, "cgroup", pointer(group)))
	return map[string]*btf.Struct{
		"sock": structure("sock", at(0, "__sk_common", common), at(592, "sk_uid", u32), at(672, "sk_cgrp_data", data)),
		"task_struct": structure("task_struct", at(1484, "tgid", u32),
			at(1936, "comm", &btf.Array{Index: u32, Type: &btf.Int{Name: "char", Size: 1}, Nelems: 16})),
		"cgroup":      group,
		"kernfs_node": node,
	}
}

func spec(t *testing.T, types map[string]*btf.Struct) *btf.Spec {
	t.Helper()
	all := []btf.Type{u32}
	for _, s := range types {
		all = append(all, s)
	}
	b, err := btf.NewBuilder(all, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.Spec()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLocate(t *testing.T) {
	whole := Offsets{SockUID: 592, SockCookie: 88, SockCgroup: 672, CgroupNode: 280, NodeID: 104, TaskTgid: 1484, TaskComm: 1936}
	recursive := &btf.Struct{Size: 64}
	recursive.Members = []btf.Member{at(0, "", recursive), at(0, "", recursive)}
	for _, test := range []struct {
		rule   string
		change func(map[string]*btf.Struct)
		lost   func(*Offsets)
		names  []string // in the error
	}{
		{rule: "all members are found by their names", change: func(map[string]*btf.Struct) {}},
		{rule: "val in a union without a name is the cgroup before 5.15", change: func(k map[string]*btf.Struct) {
			flags := &btf.Struct{Size: 8, Members: []btf.Member{{Name: "is_data", Type: u32, BitfieldSize: 1}}}
			k["sock"].Members[2].Type = structure("sock_cgroup_data",
				at(0, "", &btf.Union{Size: 8, Members: []btf.Member{at(0, "", flags), at(0, "val", u64)}}))
		}},
		{rule: "the places of structs without a name add up", change: func(k map[string]*btf.Struct) {
			inner := &btf.Struct{Size: 64, Members: []btf.Member{at(12, "tgid", u32)}}
			k["task_struct"].Members[0] = at(1400, "", &btf.Struct{Size: 128, Members: []btf.Member{at(72, "", inner)}})
		}},
		{rule: "qualifiers change nothing", change: func(k map[string]*btf.Struct) {
			k["sock"].Members[1].Type = &btf.Const{Type: &btf.Volatile{Type: &btf.Typedef{Name: "kuid_t", Type: u32}}}
			k["sock"].Members[2].Type = &btf.Const{Type: k["sock"].Members[2].Type}
		}},
		{rule: "a struct that is not there loses its members only", change: func(k map[string]*btf.Struct) {
			delete(k, "task_struct")
		}, lost: func(o *Offsets) { o.TaskTgid, o.TaskComm = 0, 0 }, names: []string{"task_struct.tgid", "task_struct.comm"}},
		{rule: "a member that is not there is named", change: func(k map[string]*btf.Struct) {
			k["sock"].Members[1].Name = "sk_owner"
		}, lost: func(o *Offsets) { o.SockUID = 0 }, names: []string{"sock.sk_uid"}},
		{rule: "another size is another member", change: func(k map[string]*btf.Struct) {
			k["sock"].Members[1].Type = u64
		}, lost: func(o *Offsets) { o.SockUID = 0 }, names: []string{"sock.sk_uid", "8 bytes, not 4"}},
		{rule: "a bit field has no place", change: func(k map[string]*btf.Struct) {
			k["sock"].Members[1].BitfieldSize = 3
		}, lost: func(o *Offsets) { o.SockUID = 0 }, names: []string{"sock.sk_uid", "bit field"}},
		{rule: "no member is the first", change: func(k map[string]*btf.Struct) {
			k["sock"].Members[1].Offset = 0
		}, lost: func(o *Offsets) { o.SockUID = 0 }, names: []string{"sock.sk_uid"}},
		{rule: "a struct that is part of itself ends the search", change: func(k map[string]*btf.Struct) {
			k["task_struct"].Members[0] = at(8, "", recursive)
		}, lost: func(o *Offsets) { o.TaskTgid = 0 }, names: []string{"task_struct.tgid"}},
	} {
		t.Run(test.rule, func(t *testing.T) {
			k, want := layout(), whole
			test.change(k)
			if test.lost != nil {
				test.lost(&want)
			}
			got, err := Locate(spec(t, k))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("offsets (-want +got):\n%s", diff)
			}
			if (err != nil) != (test.names != nil) || err != nil && !errors.Is(err, btf.ErrNotFound) {
				t.Fatalf("error %v, want one of %q", err, test.names)
			}
			for _, name := range test.names {
				if !strings.Contains(err.Error(), name) {
					t.Errorf("error %q does not name %s", err, name)
				}
			}
		})
	}
}

// The numbers are those of shared/facts/android.md and arm64.md, read there by another tool.
func TestLocateInFacts(t *testing.T) {
	s, err := btf.LoadSpec("../../btf/min/android12-5.10-arm64.btf")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Locate(s)
	if err != nil {
		t.Error(err)
	}
	want := Offsets{SockUID: 592, SockCookie: 88, SockCgroup: 672, CgroupNode: 280, NodeID: 104, TaskTgid: 1484, TaskComm: 1936}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("offsets (-want +got):\n%s", diff)
	}
}
