// SPDX-License-Identifier: Apache-2.0

package tlslib

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"math/bits"
)

// labels are those of NSS's key log format (draft-ietf-tls-keylogfile) with a secret that every library derives; a set of them is a
// mask of their indexes. Longer ones stand before what they end with.
var labels = [...]string{
	"CLIENT_RANDOM", "CLIENT_EARLY_TRAFFIC_SECRET", "CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_HANDSHAKE_TRAFFIC_SECRET",
	"CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0", "EXPORTER_SECRET", "EARLY_EXPORTER_SECRET",
}

const (
	earlyExporter = 1 << 7
	maxLabels     = 256  // places of labels in a file
	maxReferences = 1024 // to labels in code: real files have some 20
	overlap       = 64   // bytes, more than the longest label
)

// findLabels finds the places of labels that end with a zero (those of Go and Rust do not): a linker may have merged a label into
// the end of a longer one.
func findLabels(m *image) (map[uint64]uint8, error) {
	at := map[uint64]uint8{}
	for _, l := range m.loads {
		err := m.pieces(l, overlap, func(addr uint64, b []byte) bool {
			for i, label := range labels {
				for p := 0; len(at) < maxLabels; p++ {
					j := bytes.Index(b[p:], []byte(label))
					if j < 0 {
						break
					}
					p += j
					if e := p + len(label); e < len(b) && b[e] == 0 {
						at[addr+uint64(p)] = 1 << i
					}
				}
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return at, nil
}

// votes are the labels with which a function is called: by calls, and by jumps (which may be last calls, or no calls at all).
type votes struct{ calls, jumps uint8 }

func (v votes) count() int { return bits.OnesCount8(v.calls | v.jumps) }

// tally finds the code that takes the address of a label, follows each to the next call that has it as the second argument, and
// counts for each function the labels with which it is called.
func tally(m *image, cpu processor, at map[uint64]uint8) (map[uint64]votes, error) {
	all := map[uint64]votes{}
	found := func(pc uint64, reg int, label uint64) {
		s := cpu.start()
		s.regs[reg] = constant(label)
		second := cpu.arguments()[1]
		w := walk{m: m, cpu: cpu, steps: 64}
		w.called = func(s *state, target uint64, tail bool) bool {
			if v := all[target]; s.regs[second].is(label) && target != 0 {
				if tail {
					v.jumps |= at[label]
				} else {
					v.calls |= at[label]
				}
				all[target] = v
				return tail
			}
			return true
		}
		w.run(pc, s)
	}
	scan := scanARM64
	if !onPhone && m.machine == elf.EM_X86_64 {
		scan = scanAMD64
	}
	var last uint64 // pieces overlap: no code twice
	count := 0
	for _, l := range m.loads {
		if !l.exec {
			continue
		}
		last = 0
		err := m.pieces(l, overlap, func(addr uint64, b []byte) bool {
			scan(m, addr, b, at, func(pc uint64, reg int, label uint64) {
				if pc > last && count < maxReferences {
					last = pc
					count++
					found(pc, reg, label)
				}
			})
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// scanAMD64 finds lea of a label by rip and, if the file has a fixed address, mov of it as a number. found gets the address of the
// instruction after it and the register.
func scanAMD64(m *image, addr uint64, b []byte, at map[uint64]uint8, found func(pc uint64, reg int, label uint64)) {
	low, high := bounds(at)
	for i := 1; i+6 <= len(b); i++ {
		if b[i] != 0x8d {
			if !m.fixed || b[i]&^7 != 0xb8 {
				continue
			}
			if v := uint64(binary.LittleEndian.Uint32(b[i+1:])); v-low <= high && at[v] != 0 {
				found(addr+uint64(i)+5, int(b[i]&7), v)
			}
			continue
		}
		if b[i-1]&0xfb != 0x48 || b[i+1]&0xc7 != 5 { // REX.W, REX.WR; modrm: [rip + disp32]
			continue
		}
		pc := addr + uint64(i) + 6
		v := pc + uint64(int64(int32(binary.LittleEndian.Uint32(b[i+2:]))))
		if v-low <= high && at[v] != 0 {
			found(pc, int(b[i+1]>>3&7|b[i-1]&4<<1), v)
		}
	}
}

// bounds is the lowest address of a label, and how far above it the others are.
func bounds(at map[uint64]uint8) (low, above uint64) {
	low = ^uint64(0)
	high := uint64(0)
	for a := range at {
		low, high = min(low, a), max(high, a)
	}
	return low, high - low
}

// scanARM64 finds adr of a label, and adrp with the add that makes it one.
func scanARM64(m *image, addr uint64, b []byte, at map[uint64]uint8, found func(pc uint64, reg int, label uint64)) {
	low, above := bounds(at)
	low &^= 0xfff // so that pages of adrp are not below it
	above += 0xfff
	var page [32]uint64 // what adrp put there; 0: nothing
	for i := int(-addr & 3); i+4 <= len(b); i += 4 {
		w, pc := binary.LittleEndian.Uint32(b[i:]), addr+uint64(i)
		rd := w & 31
		switch {
		case w&0x9f000000 == 0x90000000: // adrp
			v := pc&^0xfff + uint64(sext(w>>5&0x7ffff<<2|w>>29&3, 21))<<12
			if page[rd] = 0; v-low <= above {
				page[rd] = v
			}
		case w&0x9f000000 == 0x10000000: // adr
			if v := pc + uint64(sext(w>>5&0x7ffff<<2|w>>29&3, 21)); v-low <= above && at[v] != 0 {
				found(pc+4, int(rd), v)
			}
			page[rd] = 0
		case w&0xffc00000 == 0x91000000: // add xd, xn, #imm
			p := page[w>>5&31]
			if page[rd] = 0; p != 0 {
				if v := p + uint64(w>>10&0xfff); at[v] != 0 {
					found(pc+4, int(rd), v)
				}
				if w>>5&31 != rd {
					page[w>>5&31] = p
				}
			}
		case w>>26&7 == 5: // branches
			if w>>25 == 0x6b && w>>21&0xf == 2 { // ret: another function
				page = [32]uint64{}
			}
		case w>>25&5 == 4 && w>>22&1 == 0: // stores
		default:
			page[rd] = 0
		}
	}
}
