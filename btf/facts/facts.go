// SPDX-License-Identifier: Apache-2.0

// Package facts knows which members of kernel structs the probes read, finds them in any BTF, and makes from them the
// smallest BTF that a CO-RE program can be relocated with.
package facts

import (
	"errors"
	"fmt"
	"math"
)

// Size is the member of the fact that tells a struct's size.
const Size = "(sizeof)"

// Fact is where one member of a kernel struct is.
type Fact struct {
	Struct string // struct, or typedef of a struct without a name
	Member string // as if anonymous structs and unions around it were not there, or Size

	// Kind is the member's type: u8 to u64, s8 to s64, ptr, char[N], or "struct NAME" and "typedef NAME" for a struct
	// that has facts of its own. Beside Size it is "struct" or "typedef".
	Kind string

	Bits   uint32 // offset from the struct's start; beside Size that of its end
	Source string // which kernels it was read from; "" where that is plain
}

// String gives the fact without its source.
func (f Fact) String() string {
	return fmt.Sprintf("%s.%s %s at bit %d", f.Struct, f.Member, f.Kind, f.Bits)
}

// ErrNone is returned for BTF that is sound but tells nothing of what is needed, such as a module's.
var ErrNone = errors.New("no struct in it that is needed")

// need is a struct and what is read of it.
type need struct {
	name    string
	sized   bool // its size is the same wherever the members' offsets are
	members []string
}

// needs lists what the probes read, in the order of the tables. The size of task_struct is left out because it
// differs even between releases of one KMI (android12-5.10 of 2021-09 has 4608 bytes, of 2021-10 has 4672).
var needs = []need{
	{"sock", true, []string{
		"__sk_common", "sk_mark", "sk_type", "sk_protocol", "sk_uid", "sk_socket", "sk_cgrp_data",
	}},
	{"sock_common", true, []string{
		"skc_daddr", "skc_rcv_saddr", "skc_dport", "skc_num", "skc_family", "skc_state", "skc_net", "skc_v6_daddr",
		"skc_v6_rcv_saddr", "skc_cookie",
	}},
	// A word with flags in its low bits until 5.15, then a plain pointer: 8520e224f547 in Linux.
	{"sock_cgroup_data", true, []string{"val", "cgroup"}},
	{"cgroup", true, []string{"kn"}},
	{"kernfs_node", true, []string{"id"}},
	{"socket", true, []string{"file", "sk"}},
	{"task_struct", false, []string{"pid", "tgid", "comm"}},
	{"kuid_t", true, []string{"val"}},
	{"possible_net_t", true, []string{"net"}},
	{"in6_addr", true, nil},
	{"atomic64_t", true, []string{"counter"}},
}

// From returns the facts that are in raw, a BTF of little-endian byte order, without a source, and for each that is
// needed and not in it the reason. The error wraps ErrNone where there is not one. raw may be hostile: the work is
// bounded, and nothing in it is followed deeper than a struct of the kernel goes.
func From(raw []byte) (found []Fact, missing []error, err error) {
	t, err := parse(raw)
	if err != nil {
		return nil, nil, err
	}
	ids := t.named()
	for _, n := range needs {
		fs, ms := t.facts(n, ids[n.name])
		found, missing = append(found, fs...), append(missing, ms...)
	}
	if t.steps < 0 {
		return nil, nil, errors.New("its structs are nested without end")
	}
	found, dangling := closed(found)
	if len(found) == 0 {
		return nil, nil, ErrNone
	}
	return found, append(missing, dangling...), nil
}

// facts tells the facts of one struct, all types of its name considered: a kernel's BTF may hold one struct several
// times, where two units of it saw other things differ (pahole's deduplication).
func (t *table) facts(n need, ids []uint32) (found []Fact, missing []error) {
	var reasons []error
	for _, id := range ids {
		fs, ms := t.of(n, id)
		if len(fs) == 0 {
			continue
		}
		if found == nil {
			found, reasons = fs, ms
			continue
		}
		var odd []error
		if found, odd = Common(found, fs); len(odd) > 0 {
			reasons = append(reasons, odd...)
		}
	}
	if len(found) == 0 {
		return nil, []error{fmt.Errorf("%s: not in this kernel", n.name)}
	}
	return found, reasons
}

// of tells the facts of the struct, or typedef of a struct, with the given ID.
func (t *table) of(n need, id uint32) (found []Fact, missing []error) {
	kind := "struct"
	body, ok := t.at(id)
	if ok && body.kind() == kindTypedef {
		kind = "typedef"
		body, ok = t.at(body.ref)
		ok = ok && body.name == 0
	}
	if !ok || body.kind() != kindStruct {
		return nil, nil
	}
	there := map[string]member{}
	t.walk(body, 0, 0, func(name string, m member) { there[name] = m })
	for _, name := range n.members {
		m, ok := there[name]
		if !ok {
			missing = append(missing, fmt.Errorf("%s.%s: not in this kernel", n.name, name))
			continue
		}
		k, err := t.describe(m)
		if err != nil {
			missing = append(missing, fmt.Errorf("%s.%s: %w", n.name, name, err))
			continue
		}
		found = append(found, Fact{Struct: n.name, Member: name, Kind: k, Bits: uint32(m.bits)})
	}
	if len(found) == 0 && len(n.members) > 0 {
		return nil, nil // another struct of this name
	}
	if n.sized && body.ref <= math.MaxUint32/8 {
		found = append([]Fact{{Struct: n.name, Member: Size, Kind: kind, Bits: body.ref * 8}}, found...)
	}
	return found, missing
}

// closed leaves out the facts whose kind is a struct of which nothing is known, and the sizes of structs of which
// nothing else is known but should be.
func closed(fs []Fact) (kept []Fact, missing []error) {
	sized, known := map[string]bool{}, map[string]bool{}
	for _, n := range needs {
		known[n.name] = len(n.members) == 0
	}
	for _, f := range fs {
		if f.Member == Size {
			sized[f.Kind+" "+f.Struct] = true
		} else {
			known[f.Struct] = true
		}
	}
	for _, f := range fs {
		switch {
		case !known[f.Struct]:
			missing = append(missing, fmt.Errorf("%s: not in this kernel", f.Struct))
		case composite(f.Kind) && !sized[f.Kind]:
			missing = append(missing, fmt.Errorf("%s.%s: nothing is known of %s", f.Struct, f.Member, f.Kind))
		default:
			kept = append(kept, f)
		}
	}
	if len(kept) == len(fs) {
		return kept, missing
	}
	// What was left out may have been all that was known of another.
	kept, more := closed(kept)
	return kept, append(missing, more...)
}

// Common returns the facts of a that b has too, and for each that b has otherwise or lacks what differs.
func Common(a, b []Fact) (same []Fact, odd []error) {
	other := map[[2]string]Fact{}
	for _, f := range b {
		other[[2]string{f.Struct, f.Member}] = f
	}
	for _, f := range a {
		g, ok := other[[2]string{f.Struct, f.Member}]
		switch {
		case !ok:
			odd = append(odd, fmt.Errorf("%s.%s: not everywhere", f.Struct, f.Member))
		case g.Kind != f.Kind || g.Bits != f.Bits:
			odd = append(odd, fmt.Errorf("%s, elsewhere %s at bit %d", f, g.Kind, g.Bits))
		default:
			same = append(same, f)
		}
	}
	return same, odd
}
