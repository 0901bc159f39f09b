// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/btf"
)

// longest bounds char[N].
const longest = 4096

var errBeyond = errors.New("beyond the end of its struct")

// builder makes types of facts. Each scalar is made once, so that it is in the BTF once.
type builder struct {
	structs  map[string]*btf.Struct // by "struct NAME" or "typedef NAME"
	typedefs map[string]*btf.Typedef
	order    []btf.Type
	scalars  map[string]btf.Type
}

// Marshal returns the BTF of facts, in little-endian byte order and the same bytes for the same facts. A struct has
// the size that a fact gives, else it ends with the last member that is known.
func Marshal(fs []Fact) ([]byte, error) {
	b := &builder{
		structs:  map[string]*btf.Struct{},
		typedefs: map[string]*btf.Typedef{},
		scalars:  map[string]btf.Type{},
	}
	kinds := map[string]string{}
	for _, f := range fs {
		if f.Member == Size {
			kinds[f.Struct] = f.Kind
		}
	}
	for _, f := range fs {
		if kinds[f.Struct] == "" {
			kinds[f.Struct] = "struct"
		}
		if err := b.declare(kinds[f.Struct], f); err != nil {
			return nil, err
		}
	}
	for _, f := range fs {
		if f.Member == Size {
			continue
		}
		if err := b.add(b.structs[kinds[f.Struct]+" "+f.Struct], f); err != nil {
			return nil, err
		}
	}
	if err := b.close(fs, kinds); err != nil {
		return nil, err
	}
	types, err := btf.NewBuilder(b.order, nil)
	if err != nil {
		return nil, fmt.Errorf("build types: %w", err)
	}
	raw, err := types.Marshal(nil, &btf.MarshalOptions{Order: binary.LittleEndian})
	if err != nil {
		return nil, fmt.Errorf("marshal types: %w", err)
	}
	return raw, nil
}

// declare makes the struct of a fact where it is not there yet, and gives it its size.
func (b *builder) declare(kind string, f Fact) error {
	key := kind + " " + f.Struct
	s := b.structs[key]
	switch {
	case s != nil:
	case kind == "struct":
		s = &btf.Struct{Name: f.Struct}
		b.order = append(b.order, s)
	case kind == "typedef":
		s = &btf.Struct{}
		b.typedefs[key] = &btf.Typedef{Name: f.Struct, Type: s}
		b.order = append(b.order, b.typedefs[key])
	default:
		return fmt.Errorf("%s: a %q cannot have members", f.Struct, kind)
	}
	b.structs[key] = s
	if f.Member == Size {
		s.Size = f.Bits / 8
	}
	return nil
}

// add appends a member to its struct.
func (b *builder) add(s *btf.Struct, f Fact) error {
	for _, m := range s.Members {
		if m.Name == f.Member {
			return fmt.Errorf("%s.%s: two facts", f.Struct, f.Member)
		}
	}
	t, err := b.typ(f.Kind)
	if err != nil {
		return fmt.Errorf("%s.%s: %w", f.Struct, f.Member, err)
	}
	s.Members = append(s.Members, btf.Member{Name: f.Member, Type: t, Offset: btf.Bits(f.Bits)})
	return nil
}

// typ makes the type of a Kind.
func (b *builder) typ(kind string) (btf.Type, error) {
	if t := b.scalars[kind]; t != nil {
		return t, nil
	}
	if td := b.typedefs[kind]; td != nil {
		return td, nil
	}
	if s := b.structs[kind]; s != nil {
		return s, nil
	}
	t, err := b.scalar(kind)
	if err != nil {
		return nil, err
	}
	b.scalars[kind] = t
	return t, nil
}

// scalar makes the type of a Kind that is no struct.
func (b *builder) scalar(kind string) (btf.Type, error) {
	integer := func(name string, size uint32, enc btf.IntEncoding) btf.Type {
		return &btf.Int{Name: name, Size: size, Encoding: enc}
	}
	switch kind {
	case "ptr":
		return &btf.Pointer{Target: (*btf.Void)(nil)}, nil
	case "char":
		return integer("char", 1, btf.Unsigned), nil
	case "u8":
		return integer("unsigned char", 1, btf.Unsigned), nil
	case "s8":
		return integer("signed char", 1, btf.Signed), nil
	case "u16":
		return integer("unsigned short", 2, btf.Unsigned), nil
	case "s16":
		return integer("short", 2, btf.Signed), nil
	case "u32":
		return integer("unsigned int", 4, btf.Unsigned), nil
	case "s32":
		return integer("int", 4, btf.Signed), nil
	case "u64":
		return integer("unsigned long", 8, btf.Unsigned), nil
	case "s64":
		return integer("long", 8, btf.Signed), nil
	}
	if n, ok := elements(kind); ok {
		index, err := b.typ("u32")
		if err != nil {
			return nil, err
		}
		of, err := b.typ("char")
		if err != nil {
			return nil, err
		}
		return &btf.Array{Index: index, Type: of, Nelems: n}, nil
	}
	return nil, fmt.Errorf("%q is not a kind, or a struct without facts", kind)
}

// close checks that the members are within their structs and ends the structs of unknown size.
func (b *builder) close(fs []Fact, kinds map[string]string) error {
	sized := map[string]bool{}
	for _, f := range fs {
		sized[f.Struct] = sized[f.Struct] || f.Member == Size
	}
	for _, f := range fs {
		if f.Member == Size {
			continue
		}
		t, err := b.typ(f.Kind)
		if err != nil {
			return err
		}
		size, err := btf.Sizeof(t)
		if err != nil {
			return fmt.Errorf("size of %s: %w", f.Kind, err)
		}
		s := b.structs[kinds[f.Struct]+" "+f.Struct]
		end := f.Bits/8 + uint32(size)
		switch {
		case f.Bits%8 != 0:
			return fmt.Errorf("%s: not at a whole byte", f)
		case !sized[f.Struct]:
			s.Size = max(s.Size, end)
		case uint64(f.Bits/8)+uint64(size) > uint64(s.Size):
			return fmt.Errorf("%s: %w", f, errBeyond)
		}
	}
	return nil
}

// composite says whether a Kind is a struct with facts of its own.
func composite(kind string) bool {
	return strings.HasPrefix(kind, "struct ") || strings.HasPrefix(kind, "typedef ")
}

// elements returns N of char[N].
func elements(kind string) (uint32, bool) {
	digits, ok := strings.CutPrefix(kind, "char[")
	if !ok {
		return 0, false
	}
	digits, ok = strings.CutSuffix(digits, "]")
	n, err := strconv.ParseUint(digits, 10, 32)
	return uint32(n), ok && err == nil && n > 0 && n <= longest
}
