// SPDX-License-Identifier: Apache-2.0

// Package pclntab finds functions of Go programs and libraries by their names, in the table that the runtime itself needs for stack
// traces: neither strip nor the linker's -s removes it. Files may be large and need not be well-formed: what is read at once and
// what is kept are bounded, and so is the number of passes over the file.
//
// The formats are those of src/cmd/link/internal/ld/pcln.go and src/runtime/symtab.go of Go 1.16 to 1.26.
package pclntab

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
)

// ErrNone is wrapped by the error for a file that is no Go binary of a 64-bit little-endian x86 or ARM machine.
var ErrNone = errors.New("it is no Go binary")

// The first four bytes of the table (src/internal/abi/symtab.go).
const (
	magic12  = 0xfffffffb
	magic116 = 0xfffffffa
	magic118 = 0xfffffff0
	magic120 = 0xfffffff1
)

const (
	maxFunctions = 4 << 20
	maxFound     = 16
	// maxName is how much of a name is looked at: that of a function of a generic type may be some kilobytes long.
	maxName = 4 << 10
)

// Table is the table of one binary.
type Table struct {
	Machine elf.Machine
	// Since is the minor version of Go from which on there are tables of this layout: 2, 16, 18 or 20.
	Since int

	m        *image
	addr     uint64 // of the table
	size     uint64 // bytes from there to the end of its segment
	funcs    uint64 // their number
	names    uint64 // where the names are, from addr
	namesEnd uint64
	pcln     uint64 // where the functions are, from addr
}

// Function is one that was found.
type Function struct {
	Name   string
	Entry  uint64 // the address of its first instruction, as the file has it
	Offset uint64 // of this, in bytes from the start of the file
}

// Open finds the table of the file r of size bytes. Its error wraps ErrNone if there is none.
func Open(r io.ReaderAt, size int64) (*Table, error) {
	m, err := newImage(r, size)
	if err != nil {
		return nil, err
	}
	for _, name := range sections[:2] {
		if addr, ok := m.named[name]; ok {
			if t := newTable(m, addr); t != nil {
				return t, nil
			}
		}
	}
	if !m.bare && len(m.named) == 0 {
		return nil, ErrNone
	}
	// From Go 1.26 on the table is aligned to a pointer only.
	found, err := m.find(elf.PF_R, maxFound, func(w uint64) bool {
		switch uint32(w) {
		case magic12, magic116, magic118, magic120:
			return w>>32&0xffff == 0 && (w>>48 == 0x0801 || w>>48 == 0x0804)
		}
		return false
	})
	if err != nil {
		return nil, err
	}
	for _, addr := range found {
		if t := newTable(m, addr); t != nil {
			return t, nil
		}
	}
	return nil, ErrNone
}

// newTable returns the table at addr, or nil if it cannot be one.
func newTable(m *image, addr uint64) *Table {
	t := &Table{m: m, Machine: m.machine, addr: addr}
	var b [72]byte
	p, size, err := m.at(addr, uint64(len(b)))
	if err != nil || m.read(b[:], addr-p.Vaddr+p.Off) != nil || b[4] != 0 || b[5] != 0 || b[7] != 8 {
		return nil
	}
	t.size, t.funcs = size, le.Uint64(b[8:])
	offsets := b[24:]
	switch le.Uint32(b[:]) {
	case magic12:
		t.Since = 2
		return t
	case magic116:
		t.Since = 16
	case magic118:
		t.Since, offsets = 18, b[32:]
	case magic120:
		t.Since, offsets = 20, b[32:]
	default:
		return nil
	}
	t.names, t.namesEnd, t.pcln = le.Uint64(offsets), le.Uint64(offsets[8:]), le.Uint64(offsets[32:])
	if t.funcs == 0 || t.funcs > maxFunctions || t.names > t.namesEnd || t.namesEnd > t.pcln || t.pcln > t.size ||
		t.size-t.pcln < (2*t.funcs+1)*t.field() {
		return nil
	}
	return t
}

// field returns the bytes of a field of the array of functions: an address until Go 1.17, then an offset.
func (t *Table) field() uint64 {
	if t.Since < 18 {
		return 8
	}
	return 4
}

// section returns a reader of n bytes at an offset into the table. What is not in the file ends it.
func (t *Table) section(off, n uint64) io.Reader {
	p, _, err := t.m.at(t.addr, 1)
	if err != nil {
		return bytes.NewReader(nil)
	}
	return io.NewSectionReader(t.m.r, int64(t.addr-p.Vaddr+p.Off+off), int64(n))
}

// Lookup returns the functions whose full names end with one of the suffixes, 16 at most, in the order of their addresses. There may
// be none, also because all calls of one are inlined. Tables of Go 1.15 and older have no functions: see Mentions.
func (t *Table) Lookup(suffixes ...string) ([]Function, error) {
	if t.Since < 16 {
		return nil, nil
	}
	names, err := t.matching(suffixes)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	indices, err := t.indices(names)
	if err != nil {
		return nil, err
	}
	var found []Function
	var text uint64
	if len(indices) > 0 && t.Since >= 18 {
		if text, err = t.text(); err != nil {
			return nil, err
		}
	}
	for _, i := range indices {
		f := Function{Name: names[i.name], Entry: text + i.entry}
		if t.Since < 18 {
			w, err := t.m.words(t.addr+t.pcln+2*8*i.index, 1)
			if err != nil {
				return nil, err
			}
			f.Entry = w[0]
		}
		p, _, err := t.m.at(f.Entry, 1)
		if err != nil || elf.ProgFlag(p.Flags)&elf.PF_X == 0 {
			return nil, fmt.Errorf("%s is at %#x, where there is no code", f.Name, f.Entry)
		}
		f.Offset = f.Entry - p.Vaddr + p.Off
		found = append(found, f)
	}
	return found, nil
}

// Mentions says whether a name with one of the suffixes is in the table, be it of a function or of one that was inlined.
func (t *Table) Mentions(suffixes ...string) (bool, error) {
	names, err := t.matching(suffixes)
	return len(names) > 0, err
}

// Code fills b with the code of a function.
func (t *Table) Code(f Function, b []byte) error { return t.m.bytes(b, f.Entry) }

// matching returns the names with one of the suffixes, by where they begin in the table of names.
func (t *Table) matching(suffixes []string) (map[uint32]string, error) {
	start, end := t.names, t.namesEnd
	if t.Since < 16 {
		start, end = 0, t.size
	}
	r := bufio.NewReaderSize(t.section(start, end-start), maxName)
	found := map[uint32]string{}
	off, fresh := uint64(0), true
	for {
		b, err := r.ReadSlice(0)
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, fmt.Errorf("names of functions: %w", err)
		}
		if err == nil && fresh && hasSuffix(b[:len(b)-1], suffixes) && len(found) < maxFound && off < 1<<31 {
			found[uint32(off)] = string(b[:len(b)-1])
		}
		// What does not fit is too long to be asked for: its rest is no name.
		fresh = err == nil
		off += uint64(len(b))
	}
}

func hasSuffix(name []byte, suffixes []string) bool {
	for _, s := range suffixes {
		if len(name) >= len(s) && string(name[len(name)-len(s):]) == s {
			return true
		}
	}
	return false
}

// place is where a function is in the array of them.
type place struct {
	index uint64
	entry uint64 // as the array has it
	name  uint32
}

// indices returns where the functions with the names are.
func (t *Table) indices(names map[uint32]string) ([]place, error) {
	n := t.field()
	array := bufio.NewReaderSize(t.section(t.pcln, 2*n*t.funcs), piece)
	structs := window{t: t}
	var found []place
	var last uint64
	for i := range t.funcs {
		var b [16]byte
		if _, err := io.ReadFull(array, b[:2*n]); err != nil {
			return nil, fmt.Errorf("array of functions: %w", err)
		}
		entry, off := uint64(le.Uint32(b[:])), uint64(le.Uint32(b[4:]))
		if n == 8 {
			entry, off = le.Uint64(b[:]), le.Uint64(b[8:])
		}
		// Linkers write both in one order. It bounds what is read, too.
		if off < last || off > t.size-t.pcln {
			return nil, errors.New("array of functions: it is not in order")
		}
		last = off
		// The name follows the entry in struct _func.
		name, err := structs.uint32(t.pcln + off + n)
		if err != nil {
			return nil, fmt.Errorf("function %d: %w", i, err)
		}
		if _, ok := names[name]; ok && len(found) < maxFound {
			found = append(found, place{i, entry, name})
		}
	}
	return found, nil
}

// window reads words of a table at offsets that grow.
type window struct {
	t     *Table
	start uint64
	b     []byte
	buf   [piece]byte
}

func (w *window) uint32(off uint64) (uint32, error) {
	if off < w.start || off-w.start+4 > uint64(len(w.b)) {
		if off > w.t.size || w.t.size-off < 4 {
			return 0, io.ErrUnexpectedEOF
		}
		w.start, w.b = off, w.buf[:min(w.t.size-off, piece)]
		if err := w.t.m.bytes(w.b, w.t.addr+off); err != nil {
			return 0, err
		}
	}
	return le.Uint32(w.b[off-w.start:]), nil
}
