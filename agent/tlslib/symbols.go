// SPDX-License-Identifier: Apache-2.0

package tlslib

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// symbol is the address of a function that the file defines: an exported one, or one of a file that is not stripped; 0 if there is
// none of that name.
func (m *image) symbol(name string) uint64 {
	if a := m.exported(name); a != 0 {
		return a
	}
	return m.local(name)
}

// exported looks a name up as the dynamic linker does (System V ABI, "Hash Table"; DT_GNU_HASH as in glibc's dl-lookup.c).
func (m *image) exported(name string) uint64 {
	var tags struct{ hash, gnu, names, symbols uint64 }
	entry := make([]byte, 16)
	for off := uint64(0); off+16 <= min(m.dynamic.size, maxDynamic*16) && m.read(entry, m.dynamic.off+off); off += 16 {
		v := binary.LittleEndian.Uint64(entry[8:])
		switch elf.DynTag(binary.LittleEndian.Uint64(entry)) {
		case elf.DT_HASH:
			tags.hash = v
		case elf.DT_GNU_HASH:
			tags.gnu = v
		case elf.DT_STRTAB:
			tags.names = v
		case elf.DT_SYMTAB:
			tags.symbols = v
		}
	}
	match := func(i uint32) uint64 {
		at := tags.symbols + uint64(i)*24
		n, ok := m.word(at)
		if b := m.at(tags.names+uint64(n), uint64(len(name)+1)); !ok || len(b) != len(name)+1 || string(b) != name+"\x00" {
			return 0
		}
		// st_shndx is 0 for one that the file takes from another.
		if w, ok := m.word(at + 4); !ok || w>>16 == 0 {
			return 0
		}
		v, _ := m.quad(at + 8)
		return v
	}
	if tags.gnu != 0 {
		return m.gnuHash(tags.gnu, name, match)
	}
	if tags.hash != 0 {
		return m.sysvHash(tags.hash, name, match)
	}
	return 0
}

func (m *image) gnuHash(table uint64, name string, match func(uint32) uint64) uint64 {
	h := uint32(5381)
	for _, c := range []byte(name) {
		h = h*33 + uint32(c)
	}
	buckets, _ := m.word(table)
	first, _ := m.word(table + 4)
	bloom, ok := m.word(table + 8)
	if !ok || buckets == 0 {
		return 0
	}
	base := table + 16 + uint64(bloom)*8
	i, _ := m.word(base + uint64(h%buckets)*4)
	if i < first {
		return 0
	}
	for n := 0; n < maxChain; n, i = n+1, i+1 {
		c, ok := m.word(base + uint64(buckets)*4 + uint64(i-first)*4)
		if !ok {
			return 0
		}
		if c|1 == h|1 {
			if a := match(i); a != 0 {
				return a
			}
		}
		if c&1 != 0 {
			return 0
		}
	}
	return 0
}

func (m *image) sysvHash(table uint64, name string, match func(uint32) uint64) uint64 {
	var h uint32
	for _, c := range []byte(name) {
		h = h<<4 + uint32(c)
		h ^= h >> 24 & 0xf0
		h &= 0x0fffffff
	}
	buckets, ok := m.word(table)
	if !ok || buckets == 0 {
		return 0
	}
	i, _ := m.word(table + 8 + uint64(h%buckets)*4)
	for n := 0; n < maxChain && i != 0; n++ {
		if a := match(i); a != 0 {
			return a
		}
		i, _ = m.word(table + 8 + uint64(buckets)*4 + uint64(i)*4)
	}
	return 0
}

// local looks a name up in the symbol table that strip removes.
func (m *image) local(name string) uint64 {
	le := binary.LittleEndian
	shoff, count := le.Uint64(m.header[40:]), uint64(le.Uint16(m.header[60:]))
	if le.Uint16(m.header[58:]) != 64 {
		return 0
	}
	section := func(i uint64) (h [64]byte, l load, ok bool) {
		if i >= count || shoff > m.size || !m.read(h[:], shoff+i*64) {
			return h, l, false
		}
		l = load{off: le.Uint64(h[24:]), size: le.Uint64(h[32:])}
		return h, l, l.off <= m.size && l.size <= m.size-l.off
	}
	for i := range count {
		h, symbols, ok := section(i)
		if !ok || elf.SectionType(le.Uint32(h[4:])) != elf.SHT_SYMTAB {
			continue
		}
		_, names, ok := section(uint64(le.Uint32(h[40:])))
		if !ok {
			return 0
		}
		return m.localIn(symbols, names, name)
	}
	return 0
}

func (m *image) localIn(symbols, names load, name string) (addr uint64) {
	text, at := []byte("\x00"+name+"\x00"), uint64(0)
	err := m.pieces(names, uint64(len(text)-1), func(off uint64, b []byte) bool {
		if j := bytes.Index(b, text); j >= 0 {
			at = off + uint64(j) + 1
		}
		return at == 0
	})
	if err != nil || at == 0 {
		return 0
	}
	symbols.size -= symbols.size % 24
	symbols.addr = 0
	// The last symbol of a piece may be cut: with this overlap the next begins with a whole one.
	_ = m.pieces(symbols, piece%24, func(_ uint64, b []byte) bool {
		for ; len(b) >= 24; b = b[24:] {
			if uint64(binary.LittleEndian.Uint32(b)) == at && binary.LittleEndian.Uint16(b[6:]) != 0 {
				addr = binary.LittleEndian.Uint64(b[8:])
			}
		}
		return addr == 0
	})
	return addr
}
