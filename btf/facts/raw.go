// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// The kinds of include/uapi/linux/btf.h that matter here.
const (
	kindInt      = 1
	kindPtr      = 2
	kindArray    = 3
	kindStruct   = 4
	kindUnion    = 5
	kindTypedef  = 8
	kindVolatile = 9
	kindConst    = 10
	kindRestrict = 11
	kindTypeTag  = 18
)

// extra is how many bytes follow the head of a type, by kind: fixed and for each of vlen (Documentation/bpf/btf.rst).
var extra = [...]struct{ fixed, each int }{
	1: {4, 0}, 3: {12, 0}, 4: {0, 12}, 5: {0, 12}, 6: {0, 8}, 13: {0, 8}, 14: {4, 0}, 15: {0, 12}, 17: {4, 0}, 19: {0, 12},
}

const (
	headerLen = 24
	typeLen   = 12
	memberLen = 12

	maxSteps  = 1 << 20 // members looked at; a kernel's take some thousands
	maxNested = 8       // anonymous structs in one another; sock_common has two
	maxChain  = 32      // qualifiers and typedefs in a row: MAX_RESOLVE_DEPTH of kernel/bpf/btf.c
	maxName   = 128     // KSYM_NAME_LEN of older kernels
)

// table finds types of raw BTF by their ID. It is used in place of cilium/ebpf's decoder for foreign bytes, because
// that follows all types from one by recursion: a chain of some 300,000 pointers ends the process.
type table struct {
	types, strings []byte
	starts         []uint32 // by type ID; that of 0, void, is not valid
	bodies         []uint32 // the IDs of structs and typedefs whose names may be needed
	steps          int      // members that may still be looked at; negative when there were too many
}

// typ is one type as it is stored.
type typ struct {
	name, info uint32
	ref        uint32 // size, or the ID of another type
	data       []byte // what follows the head
}

func (t typ) kind() uint32 { return t.info >> 24 & 0x1f }
func (t typ) flag() bool   { return t.info>>31 == 1 }

// member is one of a struct's, at an offset from the start of the outermost.
type member struct {
	id       uint32
	bits     uint64
	bitfield bool
}

// parse checks the frame of raw BTF and finds where each type begins.
func parse(raw []byte) (*table, error) {
	if len(raw) < headerLen {
		return nil, errors.New("not BTF: too short for a header")
	}
	le := binary.LittleEndian
	switch magic := le.Uint16(raw); {
	case magic == 0x9feb:
		return nil, errors.New("BTF of big-endian byte order")
	case magic != 0xeb9f:
		return nil, fmt.Errorf("not BTF: it begins with %#x", magic)
	case raw[2] != 1:
		return nil, fmt.Errorf("BTF version %d, not 1", raw[2])
	}
	head := uint64(le.Uint32(raw[4:]))
	part := func(at int) ([]byte, error) {
		from := head + uint64(le.Uint32(raw[at:]))
		to := from + uint64(le.Uint32(raw[at+4:]))
		if head < headerLen || to > uint64(len(raw)) {
			return nil, errors.New("BTF is cut short")
		}
		return raw[from:to], nil
	}
	types, err := part(8)
	if err != nil {
		return nil, err
	}
	strings, err := part(16)
	if err != nil {
		return nil, err
	}
	// Of a kernel's BTF a type takes some 28 bytes.
	starts := make([]uint32, 1, 1+len(types)/(2*typeLen))
	t := &table{types: types, strings: strings, starts: starts, steps: maxSteps}
	return t, t.index()
}

// index fills in starts and bodies.
func (t *table) index() error {
	le := binary.LittleEndian
	var needed uint64 // what begins has of them
	for _, n := range needs {
		needed |= begins([]byte(n.name))
	}
	for at := 0; at < len(t.types); {
		if at > math.MaxUint32 || len(t.types)-at < typeLen {
			return errors.New("BTF ends within a type")
		}
		id := len(t.starts)
		t.starts = append(t.starts, uint32(at))
		head := t.types[at : at+typeLen]
		info := le.Uint32(head[4:])
		n, err := length(info)
		if err != nil {
			return fmt.Errorf("type %d: %w", id, err)
		}
		if at += n; at > len(t.types) {
			return errors.New("BTF ends within a type")
		}
		if k := info >> 24 & 0x1f; k != kindStruct && k != kindTypedef {
			continue
		}
		if name := le.Uint32(head); uint64(name) < uint64(len(t.strings)) && begins(t.strings[name:])&needed != 0 {
			t.bodies = append(t.bodies, uint32(id))
		}
	}
	return nil
}

// begins returns a bit for the first two bytes of a name. Few names have one of those that are needed, and the others are not looked at
// further.
func begins(name []byte) uint64 {
	if len(name) < 2 {
		return 0
	}
	return 1 << ((uint(name[0])*31 + uint(name[1])) % 64)
}

// length returns how many bytes a type takes.
func length(info uint32) (int, error) {
	kind, vlen := info>>24&0x1f, int(info&0xffff)
	if kind == 0 || kind > 19 {
		return 0, fmt.Errorf("kind %d is not known", kind)
	}
	return typeLen + extra[kind].fixed + extra[kind].each*vlen, nil
}

// at returns the type with an ID; void, and what is not there, are not ok.
func (t *table) at(id uint32) (typ, bool) {
	if id == 0 || uint64(id) >= uint64(len(t.starts)) {
		return typ{}, false
	}
	end := len(t.types)
	if int(id) < len(t.starts)-1 {
		end = int(t.starts[id+1])
	}
	b, le := t.types[t.starts[id]:end], binary.LittleEndian
	return typ{le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:]), b[typeLen:]}, true
}

// text returns the string at an offset, nil where there is none.
func (t *table) text(at uint32) []byte {
	if uint64(at) >= uint64(len(t.strings)) {
		return nil
	}
	s := t.strings[at:min(len(t.strings), int(at)+maxName)]
	return s[:max(0, bytes.IndexByte(s, 0))]
}

// named returns the IDs of the structs and typedefs that are needed.
func (t *table) named() map[string][]uint32 {
	ids := map[string][]uint32{}
	for _, n := range needs {
		ids[n.name] = nil
	}
	for _, id := range t.bodies {
		ty, _ := t.at(id)
		name := t.text(ty.name)
		if _, ok := ids[string(name)]; ok {
			ids[string(name)] = append(ids[string(name)], id)
		}
	}
	return ids
}

// walk calls visit with every named member of a struct or union, and with those of the anonymous ones in it.
func (t *table) walk(body typ, base uint64, depth int, visit func(string, member)) {
	le := binary.LittleEndian
	for b := body.data; len(b) >= memberLen; b = b[memberLen:] {
		if t.steps--; t.steps < 0 {
			return
		}
		m := member{id: le.Uint32(b[4:]), bits: uint64(le.Uint32(b[8:]))}
		if body.flag() {
			m.bitfield = m.bits>>24 != 0
			m.bits &= 0xffffff
		}
		m.bits += base
		if name := t.text(le.Uint32(b)); len(name) > 0 {
			visit(string(name), m)
			continue
		}
		inner, ok := t.bare(m.id)
		if k := inner.kind(); ok && (k == kindStruct || k == kindUnion) && depth < maxNested {
			t.walk(inner, m.bits, depth+1, visit)
		}
	}
}

// bare returns a type without its qualifiers.
func (t *table) bare(id uint32) (typ, bool) {
	for range maxChain {
		ty, ok := t.at(id)
		if !ok {
			return typ{}, false
		}
		switch ty.kind() {
		case kindVolatile, kindConst, kindRestrict, kindTypeTag:
			id = ty.ref
		default:
			return ty, true
		}
	}
	return typ{}, false
}

// describe returns the Kind of a member, or why it cannot be one.
func (t *table) describe(m member) (string, error) {
	if m.bitfield || m.bits%8 != 0 || m.bits > math.MaxUint32 {
		return "", errors.New("a bit field")
	}
	name := ""
	for range maxChain {
		ty, ok := t.bare(m.id)
		if !ok {
			break
		}
		switch ty.kind() {
		case kindTypedef:
			name, m.id = string(t.text(ty.name)), ty.ref
			continue
		case kindInt:
			return t.integer(ty)
		case kindPtr:
			return "ptr", nil
		case kindArray:
			return t.chars(ty)
		case kindStruct:
			if own := t.text(ty.name); len(own) > 0 {
				return "struct " + string(own), nil
			}
			return "typedef " + name, nil
		}
		return "", fmt.Errorf("of BTF kind %d, for which there is no fact", ty.kind())
	}
	return "", errors.New("of no type")
}

// integer returns the Kind of a whole integer.
func (t *table) integer(ty typ) (string, error) {
	info := binary.LittleEndian.Uint32(ty.data)
	bits, offset := info&0xff, info>>16&0xff
	if bits != ty.ref*8 || offset != 0 || bits != 8 && bits != 16 && bits != 32 && bits != 64 {
		return "", fmt.Errorf("an integer of %d bits in %d bytes", bits, ty.ref)
	}
	if signed := info>>24&1 == 1; signed {
		return fmt.Sprintf("s%d", bits), nil
	}
	return fmt.Sprintf("u%d", bits), nil
}

// chars returns the Kind of an array of char.
func (t *table) chars(ty typ) (string, error) {
	le := binary.LittleEndian
	of, ok := t.bare(le.Uint32(ty.data))
	if !ok || of.kind() != kindInt || of.ref != 1 {
		return "", errors.New("an array, not of char")
	}
	kind := fmt.Sprintf("char[%d]", le.Uint32(ty.data[8:]))
	if _, ok := elements(kind); !ok {
		return "", fmt.Errorf("%s, which is no sound length", kind)
	}
	return kind, nil
}
