// SPDX-License-Identifier: Apache-2.0

package pclntab

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The addresses of what is in a file of the tests, and where in it: the second of each pair.
const (
	codeAt, codeOff   = 0x401200, 0x200
	tableAt, tableOff = 0x502400, 0x400
	wordsAt, wordsOff = 0x603600, 0x600
	relaAt, relaOff   = 0x504800, 0x800
	dynamicOff        = 0xa00
	textAt            = codeAt + 0x40 // C comes first
	part              = 0x200         // bytes of each
)

// binaryOf is a Go binary to be made: without sections.
type binaryOf struct {
	magic   uint32
	machine elf.Machine
	pie     bool // addresses are in relocations only
	names   []string
	edit    func(table, words []byte) // spoils it
}

// funcStep is the size of a function.
const funcStep = 0x20

// file makes it, by src/cmd/link/internal/ld/pcln.go.
func (b binaryOf) file() []byte {
	f := make([]byte, dynamicOff+64)
	segment := func(i int, t elf.ProgType, flags elf.ProgFlag, off, addr, size uint64) {
		p := f[64+i*56:]
		le.PutUint32(p, uint32(t))
		le.PutUint32(p[4:], uint32(flags))
		le.PutUint64(p[8:], off)
		le.PutUint64(p[16:], addr)
		le.PutUint64(p[32:], size)
	}
	copy(f, elf.ELFMAG+"\x02\x01\x01")
	le.PutUint16(f[18:], uint16(b.machine))
	le.PutUint64(f[32:], 64)
	le.PutUint16(f[54:], 56)
	le.PutUint16(f[56:], 5)
	segment(0, elf.PT_LOAD, elf.PF_R|elf.PF_X, codeOff, codeAt, part)
	segment(1, elf.PT_LOAD, elf.PF_R, tableOff, tableAt, part)
	segment(2, elf.PT_LOAD, elf.PF_R|elf.PF_W, wordsOff, wordsAt, part)
	segment(3, elf.PT_LOAD, elf.PF_R, relaOff, relaAt, part)
	segment(4, elf.PT_DYNAMIC, elf.PF_R, dynamicOff, 0, 48)

	var rela []byte
	address := func(off int, at, value uint64) {
		if !b.pie {
			le.PutUint64(f[off:], value)
			return
		}
		kind := uint64(elf.R_X86_64_RELATIVE)
		if b.machine == elf.EM_AARCH64 {
			kind = uint64(elf.R_AARCH64_RELATIVE)
		}
		for _, w := range []uint64{at, kind, value} {
			rela = binary.LittleEndian.AppendUint64(rela, w)
		}
	}
	pcln := b.table(f[tableOff:wordsOff], func(off int, value uint64) {
		address(tableOff+off, tableAt+uint64(off), value)
	})
	n := uint64(len(b.names))
	for i, v := range map[int]uint64{modHeader: tableAt, modArray: tableAt + pcln, modMin: textAt, modMax: textAt + n*funcStep, modText: textAt} {
		address(wordsOff+0x100+8*i, uint64(wordsAt+0x100+8*i), v)
	}
	le.PutUint64(f[wordsOff+0x100+8*modEntries:], n+1)
	copy(f[relaOff:], rela)
	for i, w := range []uint64{uint64(elf.DT_RELA), relaAt, uint64(elf.DT_RELASZ), uint64(len(rela))} {
		le.PutUint64(f[dynamicOff+8*i:], w)
	}
	if b.edit != nil {
		b.edit(f[tableOff:wordsOff], f[wordsOff+0x100:relaOff])
	}
	return f
}

// table fills t, gives address those of its fields that are addresses, and returns where the functions begin.
func (b binaryOf) table(t []byte, address func(off int, value uint64)) (pcln uint64) {
	field, header := 4, 32
	if b.magic == magic116 {
		field, header = 8, 24
	}
	n := len(b.names)
	le.PutUint32(t, b.magic)
	t[6], t[7] = 1, 8
	le.PutUint64(t[8:], uint64(n))
	names := strings.Join(b.names, "\x00") + "\x00"
	const namesOff = 72
	pclnOff := (namesOff + len(names) + 15) &^ 7
	for i, v := range []int{namesOff, namesOff + len(names), namesOff + len(names), namesOff + len(names), pclnOff} {
		le.PutUint64(t[header+8*i:], uint64(v))
	}
	copy(t[namesOff:], names)
	structs := (2*n + 1) * field
	for i := range n + 1 {
		entry, at, off := i*funcStep, pclnOff+2*field*i, structs+i*16
		if field == 8 {
			address(at, uint64(textAt+entry))
		} else {
			le.PutUint32(t[at:], uint32(entry))
		}
		if i < n {
			le.PutUint32(t[at+field:], uint32(off)) // the upper half of 8 bytes is zero
			le.PutUint32(t[pclnOff+off+field:], uint32(strings.Index(names, b.names[i]+"\x00")))
		}
	}
	return uint64(pclnOff)
}

var someNames = []string{"internal/cpu.Initialize", "main.f", "x/tls.(*Config).writeKeyLog", "main.g", "y.(*Config).writeKeyLog"}

const suffix = ".(*Config).writeKeyLog"

func TestLookup(t *testing.T) {
	want := []Function{
		{Name: someNames[2], Entry: textAt + 2*funcStep, Offset: codeOff + 0x40 + 2*funcStep},
		{Name: someNames[4], Entry: textAt + 4*funcStep, Offset: codeOff + 0x40 + 4*funcStep},
	}
	for _, tt := range []struct {
		name  string
		b     binaryOf
		since int
	}{
		{"Go 1.16", binaryOf{magic: magic116}, 16},
		{"Go 1.18", binaryOf{magic: magic118}, 18},
		{"Go 1.20", binaryOf{magic: magic120}, 20},
	} {
		for _, pie := range []bool{false, true} {
			for _, machine := range []elf.Machine{elf.EM_X86_64, elf.EM_AARCH64} {
				b := tt.b
				b.pie, b.machine, b.names = pie, machine, someNames
				f := b.file()
				table, err := Open(bytes.NewReader(f), int64(len(f)))
				if err != nil {
					t.Fatalf("%s, PIE %v, %v: %v", tt.name, pie, machine, err)
				}
				if table.Since != tt.since || table.Machine != machine {
					t.Errorf("%s, PIE %v, %v: since %d, of %v", tt.name, pie, machine, table.Since, table.Machine)
				}
				got, err := table.Lookup(suffix)
				if err != nil {
					t.Errorf("%s, PIE %v, %v: %v", tt.name, pie, machine, err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s, PIE %v, %v: %s", tt.name, pie, machine, diff)
				}
				if none, err := table.Lookup("main.h"); err != nil || len(none) != 0 {
					t.Errorf("%s: main.h: %v, %v", tt.name, none, err)
				}
			}
		}
	}
}

func TestLookupOfLongNames(t *testing.T) {
	names := append([]string{strings.Repeat("x", 2*maxName) + suffix}, someNames...)
	m := &image{r: strings.NewReader(strings.Join(names, "\x00") + "\x00"), size: 1 << 20}
	m.loads = []elf.Prog64{{Vaddr: 0, Filesz: m.size}}
	table := &Table{m: m, Since: 20, namesEnd: m.size}
	got, err := table.matching([]string{suffix})
	if err != nil {
		t.Fatal(err)
	}
	off := uint32(2*maxName + len(suffix) + 1 + len(someNames[0]) + 1 + len(someNames[1]) + 1)
	want := map[uint32]string{off: someNames[2], off + uint32(len(someNames[2])+1+len(someNames[3])+1): someNames[4]}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("a name longer than any that is asked for is passed over: ", diff)
	}
}

func TestSpoilt(t *testing.T) {
	for _, tt := range []struct {
		name string
		edit func(table, words []byte)
		open string // the error of Open
		look string // and of Lookup
	}{
		{"no magic", func(table, _ []byte) { table[0] = 0 }, ErrNone.Error(), ""},
		{"32-bit pointers", func(table, _ []byte) { table[7] = 4 }, ErrNone.Error(), ""},
		{"more functions than there is table", func(table, _ []byte) { le.PutUint64(table[8:], 4000) }, ErrNone.Error(), ""},
		{"as many as there are numbers", func(table, _ []byte) { le.PutUint64(table[8:], 1<<63) }, ErrNone.Error(), ""},
		{"functions before their names", func(table, _ []byte) { le.PutUint64(table[64:], 8) }, ErrNone.Error(), ""},
		{"functions outside the segment", func(table, _ []byte) { le.PutUint64(table[64:], 1<<40) }, ErrNone.Error(), ""},
		{"another moduledata", func(_, words []byte) { le.PutUint64(words[8*modText:], textAt+16) }, "", "moduledata"},
		{"none", func(_, words []byte) { clear(words[:8*modWords]) }, "", "moduledata"},
		{"functions out of order", func(table, _ []byte) {
			pcln := le.Uint64(table[64:])
			le.PutUint32(table[pcln+4:], 1000)
		}, "", "not in order"},
		{"a function outside the segment", func(table, _ []byte) {
			pcln := le.Uint64(table[64:])
			for i := range uint64(len(someNames)) {
				le.PutUint32(table[pcln+8*i+4:], uint32(part-pcln-6))
			}
		}, "", "unexpected EOF"},
		{"code outside the code", func(table, words []byte) {
			for _, i := range []int{modMin, modMax, modText} {
				le.PutUint64(words[8*i:], le.Uint64(words[8*i:])+0x1000)
			}
		}, "", "no code"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := binaryOf{magic: magic120, machine: elf.EM_X86_64, names: someNames, edit: tt.edit}.file()
			table, err := Open(bytes.NewReader(f), int64(len(f)))
			if err == nil {
				_, err = table.Lookup(suffix)
				tt.open = tt.look
			}
			if err == nil || tt.open == "" || !strings.Contains(err.Error(), tt.open) {
				t.Errorf("error %v, want one with %q", err, tt.open)
			}
		})
	}
}

func TestNone(t *testing.T) {
	elf32 := binaryOf{magic: magic120, machine: elf.EM_X86_64, names: someNames}.file()
	elf32[4] = byte(elf.ELFCLASS32)
	for name, f := range map[string][]byte{
		"empty":      nil,
		"text":       bytes.Repeat([]byte("text "), 100),
		"32-bit":     elf32,
		"of another": binaryOf{magic: magic120, machine: elf.EM_RISCV, names: someNames}.file(),
	} {
		if _, err := Open(bytes.NewReader(f), int64(len(f))); !errors.Is(err, ErrNone) {
			t.Errorf("%s: error %v, want ErrNone", name, err)
		}
	}
}

// A file that was cut off, at any length, is an error or what is left of it.
func TestCut(t *testing.T) {
	f := binaryOf{magic: magic118, machine: elf.EM_AARCH64, pie: true, names: someNames}.file()
	found := 0
	for n := 0; n <= len(f); n += 4 {
		table, err := Open(bytes.NewReader(f[:n]), int64(n))
		if err != nil {
			continue
		}
		if fns, err := table.Lookup(suffix); err == nil && len(fns) == 2 {
			found++
		}
	}
	if found == 0 || found > 20 {
		t.Errorf("found in %d files", found)
	}
}

func FuzzLookup(f *testing.F) {
	for _, magic := range []uint32{magic12, magic116, magic118, magic120} {
		for _, pie := range []bool{false, true} {
			f.Add(binaryOf{magic: magic, machine: elf.EM_X86_64, pie: pie, names: someNames}.file())
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		_ = table.String()
		if _, err := table.Mentions(suffix); err != nil {
			t.Fatalf("the names are within the file: %v", err)
		}
		fns, err := table.Lookup(suffix)
		if err != nil {
			return
		}
		for _, fn := range fns {
			if !strings.HasSuffix(fn.Name, suffix) || fn.Offset >= uint64(len(b)) {
				t.Fatalf("%+v of a file of %d bytes", fn, len(b))
			}
		}
	})
}
