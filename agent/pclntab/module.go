// SPDX-License-Identifier: Apache-2.0

package pclntab

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// The words of the runtime's moduledata that are needed, by their indices. They are where they are since Go 1.16
// (src/runtime/symtab.go).
const (
	modHeader  = 0  // the address of the table
	modArray   = 16 // that of the array of functions
	modEntries = 17 // the length of the array: with the end of the last one, too
	modMin     = 20 // the address of the first function
	modMax     = 21 // and where the last one ends
	modText    = 22 // what entries in the array are offsets from
	modWords   = 23
)

// maxModules is how many words may be the address of the table: each is looked at, with a pass over the relocations.
const maxModules = 8

// text returns the address from which on the entries of the functions are counted. The header of the table no longer has it in Go
// 1.26, and it is not where the section of the code begins if there is C in the binary. The runtime's moduledata has it in all
// versions, and can be recognized for sure: it refers to the table and repeats what is in it.
func (t *Table) text() (uint64, error) {
	var first, last [4]byte
	if err := t.m.bytes(first[:], t.addr+t.pcln); err != nil {
		return 0, err
	}
	if err := t.m.bytes(last[:], t.addr+t.pcln+8*t.funcs); err != nil {
		return 0, err
	}
	var found []uint64
	err := t.m.relocations(func(at, addend uint64) {
		if addend == t.addr && len(found) < maxModules {
			found = append(found, at)
		}
	})
	if err != nil {
		return 0, err
	}
	inPlace, err := t.m.find(elf.PF_R|elf.PF_W, maxModules, func(w uint64) bool { return w == t.addr })
	if err != nil {
		return 0, err
	}
	for _, addr := range append(found, inPlace...) {
		w, err := t.m.words(addr, modWords)
		if err != nil {
			continue
		}
		text := w[modText]
		if w[modHeader] == t.addr && w[modArray] == t.addr+t.pcln && w[modEntries] == t.funcs+1 &&
			w[modMin] == text+uint64(le.Uint32(first[:])) && w[modMax] == text+uint64(le.Uint32(last[:])) {
			return text, nil
		}
	}
	return 0, errors.New("the runtime's moduledata is not found: where its code begins is not known")
}

// Version returns what the binary was built with, such as "go1.26.8", or "" if it does not say (src/debug/buildinfo/buildinfo.go).
func (t *Table) Version() string {
	addr, ok := t.m.named[".go.buildinfo"]
	if !ok {
		return ""
	}
	b := make([]byte, 128)
	if _, left, err := t.m.at(addr, 33); err != nil || t.m.bytes(b[:min(left, 128)], addr) != nil || string(b[:14]) != "\xff Go buildinf:" {
		return ""
	}
	if b[15]&2 != 0 {
		n, size := binary.Uvarint(b[32:])
		if size <= 0 || n > uint64(len(b)-32-size) {
			return ""
		}
		return printable(b[32+size:][:n])
	}
	// Until Go 1.17 it is the address of a string's header.
	w, err := t.m.words(addr+16, 1)
	if err != nil {
		return ""
	}
	if w, err = t.m.words(w[0], 2); err != nil {
		return ""
	}
	v := make([]byte, min(w[1], 64))
	if t.m.bytes(v, w[0]) != nil {
		return ""
	}
	return printable(v)
}

func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, string(b))
}

// String says what is known of the binary: "built by go1.26.8".
func (t *Table) String() string {
	if v := t.Version(); v != "" {
		return "built by " + v
	}
	switch t.Since {
	case 2:
		return "built by Go 1.15 or older"
	case 16:
		return "built by Go 1.16 or 1.17"
	case 18:
		return "built by Go 1.18 or 1.19"
	}
	return fmt.Sprintf("built by Go 1.%d or later", t.Since)
}
