// SPDX-License-Identifier: Apache-2.0

package pclntab

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// What a file may ask for: more than any linker writes, and little enough to be read by root from a file that anybody made.
const (
	maxSegments = 256
	maxSections = 4096
	maxDynamic  = 1024
	maxRelocs   = 64 << 20 // bytes
	piece       = 48 << 10 // bytes that are read at once: whole words, relocations and section headers
)

var le = binary.LittleEndian

// image is an ELF file as the kernel sees it: by its segments. Sections only say where to look first.
type image struct {
	r       io.ReaderAt
	size    uint64
	machine elf.Machine
	loads   []elf.Prog64
	rela    elf.Prog64 // the table of relocations with addends: its address and size
	named   map[string]uint64
	bare    bool // it has no sections
}

// sections are those of a Go binary, as cmd/link names them (src/cmd/link/internal/ld/data.go). In a binary that a C linker has put
// together the table of a PIE is in .data.rel.ro, and only the build id and the build information keep their names.
var sections = []string{".gopclntab", ".data.rel.ro.gopclntab", ".go.buildinfo", ".note.go.buildid"}

func newImage(r io.ReaderAt, size int64) (*image, error) {
	var h [64]byte
	if size < int64(len(h)) {
		return nil, fmt.Errorf("%w: it is too short for ELF", ErrNone)
	}
	m := &image{r: r, size: uint64(size)}
	if err := m.read(h[:], 0); err != nil {
		return nil, err
	}
	m.machine = elf.Machine(le.Uint16(h[18:]))
	switch {
	case string(h[:4]) != elf.ELFMAG:
		return nil, fmt.Errorf("%w: it is no ELF", ErrNone)
	case h[4] != byte(elf.ELFCLASS64) || h[5] != byte(elf.ELFDATA2LSB):
		return nil, fmt.Errorf("%w: it is not of a 64-bit little-endian machine", ErrNone)
	case m.machine != elf.EM_X86_64 && m.machine != elf.EM_AARCH64:
		return nil, fmt.Errorf("%w: it is of %v", ErrNone, m.machine)
	case le.Uint16(h[56:]) == 0:
		return nil, fmt.Errorf("%w: nothing of it is to be loaded", ErrNone)
	case le.Uint16(h[54:]) != 56:
		return nil, errors.New("its program headers are not those of ELF64")
	}
	if err := m.segments(le.Uint64(h[32:]), int(le.Uint16(h[56:]))); err != nil {
		return nil, err
	}
	return m, m.names(le.Uint64(h[40:]), int(le.Uint16(h[58:])), int(le.Uint16(h[60:])), int(le.Uint16(h[62:])))
}

// read fills b with what is at off.
func (m *image) read(b []byte, off uint64) error {
	if off > m.size || uint64(len(b)) > m.size-off {
		return io.ErrUnexpectedEOF
	}
	n, err := m.r.ReadAt(b, int64(off))
	if n == len(b) {
		return nil
	}
	return fmt.Errorf("read %d bytes at %#x: %w", len(b), off, err)
}

// segments reads n program headers at off.
func (m *image) segments(off uint64, n int) error {
	if n > maxSegments {
		return fmt.Errorf("it has %d program headers", n)
	}
	b := make([]byte, n*56)
	if err := m.read(b, off); err != nil {
		return fmt.Errorf("program headers: %w", err)
	}
	var dynamic elf.Prog64
	var sum uint64
	for ; len(b) > 0; b = b[56:] {
		p := elf.Prog64{Type: le.Uint32(b), Flags: le.Uint32(b[4:]), Off: le.Uint64(b[8:]), Vaddr: le.Uint64(b[16:]), Filesz: le.Uint64(b[32:])}
		switch elf.ProgType(p.Type) {
		case elf.PT_DYNAMIC:
			dynamic = p
		case elf.PT_LOAD:
			// The file may end within the segment, and an address wrap around: what is left is in both.
			p.Filesz = min(p.Filesz, m.size-min(p.Off, m.size), -p.Vaddr-1)
			m.loads = append(m.loads, p)
			if sum += p.Filesz; sum > 2*m.size || sum > mostMapped {
				return errors.New("its segments overlap, or are too large")
			}
		}
	}
	return m.dynamic(dynamic)
}

// mostMapped bounds what is read of a file, in bytes: one with holes may have any size.
const mostMapped = 1 << 30

// dynamic notes where the relocations are.
func (m *image) dynamic(p elf.Prog64) error {
	b := make([]byte, min(p.Filesz/16, maxDynamic)*16)
	if err := m.read(b, p.Off); len(b) > 0 && err != nil {
		return fmt.Errorf("dynamic section: %w", err)
	}
	for ; len(b) > 0; b = b[16:] {
		switch elf.DynTag(le.Uint64(b)) {
		case elf.DT_NULL:
			return nil
		case elf.DT_RELA:
			m.rela.Vaddr = le.Uint64(b[8:])
		case elf.DT_RELASZ:
			m.rela.Filesz = le.Uint64(b[8:]) / 24 * 24
		}
	}
	return nil
}

// names notes the addresses of the sections of n at off, entry bytes each, that are Go's.
func (m *image) names(off uint64, entry, n, names int) error {
	m.named = map[string]uint64{}
	if m.bare = off == 0 || n == 0; m.bare {
		return nil
	}
	if entry != 64 || n > maxSections || names >= n {
		return fmt.Errorf("it has %d section headers of %d bytes", n, entry)
	}
	b := make([]byte, n*entry)
	if err := m.read(b, off); err != nil {
		// What has cut the sections off may have left their count.
		m.bare = true
		return nil
	}
	strings, size := le.Uint64(b[names*64+24:]), le.Uint64(b[names*64+32:])
	for ; len(b) > 0; b = b[64:] {
		at := uint64(le.Uint32(b))
		if at >= size {
			continue
		}
		name := make([]byte, min(size-at, 32))
		if m.read(name, strings+at) != nil {
			continue
		}
		name, _, _ = bytes.Cut(name, []byte{0})
		if slices.Contains(sections, string(name)) {
			m.named[string(name)] = le.Uint64(b[16:])
		}
	}
	return nil
}

// at returns the segment that has addr, and how many bytes there are of the file from there to its end, of which n must be.
func (m *image) at(addr, n uint64) (elf.Prog64, uint64, error) {
	for _, p := range m.loads {
		if addr >= p.Vaddr && addr-p.Vaddr < p.Filesz && p.Filesz-(addr-p.Vaddr) >= n {
			return p, p.Filesz - (addr - p.Vaddr), nil
		}
	}
	return elf.Prog64{}, 0, fmt.Errorf("%d bytes at the address %#x are not in the file", n, addr)
}

// bytes fills b with what is at addr before any relocation.
func (m *image) bytes(b []byte, addr uint64) error {
	p, _, err := m.at(addr, uint64(len(b)))
	if err != nil {
		return err
	}
	return m.read(b, addr-p.Vaddr+p.Off)
}

// words returns n words at addr as they are once the file is loaded at the addresses that it names.
func (m *image) words(addr uint64, n int) ([]uint64, error) {
	b := make([]byte, n*8)
	if err := m.bytes(b, addr); err != nil {
		return nil, err
	}
	w := make([]uint64, n)
	for i := range w {
		w[i] = le.Uint64(b[i*8:])
	}
	err := m.relocations(func(at, addend uint64) {
		if i := (at - addr) / 8; at >= addr && i < uint64(n) && (at-addr)%8 == 0 {
			w[i] = addend
		}
	})
	return w, err
}

// relocations calls f for each word that is the load address plus an addend: linkers may leave the word itself zero.
func (m *image) relocations(f func(at, addend uint64)) error {
	relative := uint32(elf.R_X86_64_RELATIVE)
	if m.machine == elf.EM_AARCH64 {
		relative = uint32(elf.R_AARCH64_RELATIVE)
	}
	if m.rela.Filesz > maxRelocs {
		return fmt.Errorf("it has %d bytes of relocations", m.rela.Filesz)
	}
	return m.pieces(m.rela.Vaddr, m.rela.Filesz, func(_ uint64, b []byte) error {
		for ; len(b) >= 24; b = b[24:] {
			if le.Uint32(b[8:]) == relative {
				f(le.Uint64(b), le.Uint64(b[16:]))
			}
		}
		return nil
	})
}

// pieces calls f with each piece of the n bytes at addr; b is f's until it returns.
func (m *image) pieces(addr, n uint64, f func(addr uint64, b []byte) error) error {
	if n == 0 {
		return nil
	}
	p, _, err := m.at(addr, n)
	if err != nil {
		return err
	}
	buf := make([]byte, min(n, piece))
	for done := uint64(0); done < n; done += piece {
		b := buf[:min(n-done, piece)]
		if err := m.read(b, addr-p.Vaddr+p.Off+done); err != nil {
			return err
		}
		if err := f(addr+done, b); err != nil {
			return err
		}
	}
	return nil
}

// find returns the addresses, in segments that have all of the flags, of the 8-byte words that match, at most max of them.
func (m *image) find(flags elf.ProgFlag, max int, match func(word uint64) bool) ([]uint64, error) {
	var found []uint64
	for _, p := range m.loads {
		if elf.ProgFlag(p.Flags)&flags != flags {
			continue
		}
		skip := -p.Vaddr & 7
		if skip >= p.Filesz {
			continue
		}
		err := m.pieces(p.Vaddr+skip, p.Filesz-skip, func(addr uint64, b []byte) error {
			for i := 0; i+8 <= len(b); i += 8 {
				if match(le.Uint64(b[i:])) && len(found) < max {
					found = append(found, addr+uint64(i))
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}
