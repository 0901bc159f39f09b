// SPDX-License-Identifier: Apache-2.0

package tlslib

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
)

// Limits of what is read of a file, which may be made to mislead: real ones stay far below.
const (
	maxHeaders = 128     // program headers
	maxDynamic = 512     // entries of the dynamic section
	maxChain   = 4096    // symbols of one hash bucket
	piece      = 1 << 20 // bytes of a file in memory at a time
)

// load is a part of the file that is mapped: all of it lies in the file.
type load struct {
	addr, off, size uint64
	exec            bool
}

// image is a 64-bit ELF file, of which parts are read as they are needed. debug/elf would read all section headers and all
// symbols at once.
type image struct {
	r       io.ReaderAt
	size    uint64
	machine elf.Machine
	fixed   bool // not position-independent: code may hold addresses as numbers
	loads   []load
	dynamic load
	header  [64]byte

	window     [4096]byte // of at
	windowAddr uint64
	windowLen  uint64
}

// newImage reads the headers. The error wraps ErrNone if r is no program or library.
func newImage(r io.ReaderAt, size int64) (*image, error) {
	m := &image{r: r, size: uint64(max(size, 0))}
	if n, _ := r.ReadAt(m.header[:], 0); n < len(m.header) || string(m.header[:4]) != elf.ELFMAG {
		return nil, fmt.Errorf("no ELF file: %w", ErrNone)
	}
	le := binary.LittleEndian
	m.machine = elf.Machine(le.Uint16(m.header[18:]))
	m.fixed = elf.Type(le.Uint16(m.header[16:])) == elf.ET_EXEC
	if elf.Class(m.header[4]) != elf.ELFCLASS64 || elf.Data(m.header[5]) != elf.ELFDATA2LSB {
		return m, nil
	}
	phoff, phnum := le.Uint64(m.header[32:]), int(le.Uint16(m.header[56:]))
	if le.Uint16(m.header[54:]) != 56 || phnum > maxHeaders {
		return nil, fmt.Errorf("no program headers of a program or library: %w", ErrNone)
	}
	table := make([]byte, 56*phnum)
	if phoff >= m.size || !m.read(table, phoff) {
		return nil, fmt.Errorf("the program headers are beyond the end: %w", ErrNone)
	}
	var sum uint64
	for ; len(table) > 0; table = table[56:] {
		l := load{off: le.Uint64(table[8:]), addr: le.Uint64(table[16:]), size: le.Uint64(table[32:])}
		if l.off >= m.size || l.addr+l.size < l.addr {
			continue
		}
		l.size = min(l.size, m.size-l.off)
		l.exec = elf.ProgFlag(le.Uint32(table[4:]))&elf.PF_X != 0
		switch elf.ProgType(le.Uint32(table)) {
		case elf.PT_LOAD:
			m.loads = append(m.loads, l)
			sum += l.size
		case elf.PT_DYNAMIC:
			m.dynamic = l
		}
	}
	// Each part is mapped once. A file that says otherwise would be read over and over.
	if sum > 2*m.size {
		return nil, fmt.Errorf("parts of the file are mapped many times: %w", ErrNone)
	}
	if sum > mostMapped {
		return nil, fmt.Errorf("%d MiB of it are mapped: %w", sum>>20, ErrNone)
	}
	return m, nil
}

// mostMapped bounds what is read of a file, in bytes: one with holes may have any size. The largest browsers have 350 MB.
const mostMapped = 1 << 30

// known tells whether its code can be read here.
func (m *image) known() bool {
	return elf.Class(m.header[4]) == elf.ELFCLASS64 && elf.Data(m.header[5]) == elf.ELFDATA2LSB &&
		(m.machine == elf.EM_AARCH64 || m.machine == elf.EM_X86_64 && !onPhone)
}

func (m *image) read(p []byte, off uint64) bool {
	if off > m.size || uint64(len(p)) > m.size-off {
		return false
	}
	n, _ := m.r.ReadAt(p, int64(off))
	return n == len(p)
}

// offset is where in the file an address is.
func (m *image) offset(addr uint64, exec bool) (uint64, bool) {
	for _, l := range m.loads {
		if addr-l.addr < l.size && (l.exec || !exec) {
			return addr - l.addr + l.off, true
		}
	}
	return 0, false
}

// at is up to n bytes at an address, fewer at the end of what is mapped, valid until the next call. n is at most 64.
func (m *image) at(addr uint64, n uint64) []byte {
	if addr-m.windowAddr >= m.windowLen || m.windowLen-(addr-m.windowAddr) < n {
		m.windowLen = 0
		for _, l := range m.loads {
			if addr-l.addr < l.size {
				w := m.window[:min(l.size-(addr-l.addr), uint64(len(m.window)))]
				if m.read(w, addr-l.addr+l.off) {
					m.windowAddr, m.windowLen = addr, uint64(len(w))
				}
				break
			}
		}
	}
	if m.windowLen == 0 {
		return nil
	}
	w := m.window[addr-m.windowAddr : m.windowLen]
	return w[:min(uint64(len(w)), n)]
}

func (m *image) word(addr uint64) (uint32, bool) {
	if b := m.at(addr, 4); len(b) == 4 {
		return binary.LittleEndian.Uint32(b), true
	}
	return 0, false
}

func (m *image) quad(addr uint64) (uint64, bool) {
	if b := m.at(addr, 8); len(b) == 8 {
		return binary.LittleEndian.Uint64(b), true
	}
	return 0, false
}

// pieces hands the bytes of a part of the file to visit, a piece at a time, each beginning with the last overlap bytes of the one
// before it. visit ends it by false.
func (m *image) pieces(l load, overlap uint64, visit func(addr uint64, b []byte) bool) error {
	buf := make([]byte, min(l.size, piece))
	for done := uint64(0); done < l.size; {
		b := buf[:min(l.size-done, piece)]
		if !m.read(b, l.off+done) {
			return fmt.Errorf("read %d bytes at %d of the library: %w", len(b), l.off+done, io.ErrUnexpectedEOF)
		}
		if !visit(l.addr+done, b) {
			return nil
		}
		if done += uint64(len(b)); done < l.size {
			done -= min(overlap, done)
		}
	}
	return nil
}

// contains tells whether the text is in what is mapped.
func (m *image) contains(text string) (found bool, err error) {
	loads := m.loads
	if !m.known() {
		loads = []load{{size: m.size}}
	}
	for _, l := range loads {
		err = m.pieces(l, uint64(len(text)-1), func(_ uint64, b []byte) bool {
			found = bytes.Contains(b, []byte(text))
			return !found
		})
		if found || err != nil {
			return found, err
		}
	}
	return false, nil
}
