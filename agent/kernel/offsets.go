// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// Offsets are the places of members of kernel structs that programs read, in bytes from the start of the struct. 0 is a
// place that is not known: none of these members is the first of its struct.
type Offsets struct {
	SockUID    uint32 // sock.sk_uid
	SockCookie uint32 // sock.__sk_common.skc_cookie

	// From a socket to the id of its cgroup of version 2, which is the inode of that cgroup's directory.
	SockCgroup uint32 // the pointer in sock.sk_cgrp_data: before 5.15 it is no pointer if bit 0 or 1 is set
	CgroupNode uint32 // cgroup.kn
	NodeID     uint32 // kernfs_node.id

	TaskTgid uint32 // task_struct.tgid
	TaskComm uint32 // task_struct.comm
}

// members are what Locate looks for: a struct, the names on the way from it, of which "a|b" takes what there is, and the
// size in bytes of the last of them.
var members = []struct {
	path  string
	size  int
	place func(*Offsets) *uint32
}{
	{"sock.sk_uid", 4, func(o *Offsets) *uint32 { return &o.SockUID }},
	{"sock.__sk_common.skc_cookie", 8, func(o *Offsets) *uint32 { return &o.SockCookie }},
	// val until 5.14, cgroup since 5.15 and 5.10.226 (8520e224f547, include/linux/cgroup-defs.h struct sock_cgroup_data).
	{"sock.sk_cgrp_data.cgroup|val", 8, func(o *Offsets) *uint32 { return &o.SockCgroup }},
	{"cgroup.kn", 8, func(o *Offsets) *uint32 { return &o.CgroupNode }},
	{"kernfs_node.id", 8, func(o *Offsets) *uint32 { return &o.NodeID }},
	{"task_struct.tgid", 4, func(o *Offsets) *uint32 { return &o.TaskTgid }},
	{"task_struct.comm", 16, func(o *Offsets) *uint32 { return &o.TaskComm }},
}

// Locate looks the members up by their names. What spec lacks stays 0, and the error, which wraps btf.ErrNotFound, names
// it.
func Locate(spec *btf.Spec) (Offsets, error) {
	var o Offsets
	var errs []error
	for _, m := range members {
		offset, err := locate(spec, m.path, m.size)
		if err != nil {
			errs = append(errs, fmt.Errorf("locate %s: %w", m.path, err))
			continue
		}
		*m.place(&o) = offset
	}
	return o, errors.Join(errs...)
}

// locate returns the offset of one member in bytes.
func locate(spec *btf.Spec, path string, size int) (uint32, error) {
	name, rest, _ := strings.Cut(path, ".")
	var in *btf.Struct
	if err := spec.TypeByName(name, &in); err != nil {
		return 0, err
	}
	var typ btf.Type = in
	var bits btf.Bits
	for step := range strings.SplitSeq(rest, ".") {
		m, ok := btf.Member{}, false
		for either := range strings.SplitSeq(step, "|") {
			if m, ok = find(typ, either, 0); ok {
				break
			}
		}
		if !ok {
			return 0, fmt.Errorf("no member %s: %w", step, btf.ErrNotFound)
		}
		typ, bits = m.Type, bits+m.Offset
		if m.BitfieldSize != 0 {
			return 0, fmt.Errorf("%s is a bit field: %w", step, btf.ErrNotFound)
		}
	}
	if n, err := btf.Sizeof(typ); err != nil || n != size {
		return 0, fmt.Errorf("%d bytes, not %d: %w", n, size, errors.Join(btf.ErrNotFound, err))
	}
	if bits == 0 || bits%8 != 0 {
		return 0, fmt.Errorf("at bit %d, where no kernel has it: %w", bits, btf.ErrNotFound)
	}
	return bits.Bytes(), nil
}

// nesting is how deep structs and unions without a name are searched. A file may hold one that is a member of itself.
const nesting = 8

// find looks for a member of a struct or union, also in its parts without a name, and returns it with the offset from the
// start of typ.
func find(typ btf.Type, name string, depth int) (btf.Member, bool) {
	var all []btf.Member
	switch t := btf.UnderlyingType(typ).(type) {
	case *btf.Struct:
		all = t.Members
	case *btf.Union:
		all = t.Members
	}
	for _, m := range all {
		if m.Name == name {
			return m, true
		}
	}
	if depth == nesting {
		return btf.Member{}, false
	}
	for _, part := range all {
		if part.Name != "" {
			continue
		}
		if m, ok := find(part.Type, name, depth+1); ok {
			m.Offset += part.Offset
			return m, true
		}
	}
	return btf.Member{}, false
}
