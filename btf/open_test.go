// SPDX-License-Identifier: Apache-2.0

package btf

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/btf/facts"
)

// part is a section of an ELF file.
type part struct {
	name    string
	content []byte
}

// object makes a 64-bit little-endian ELF file with sections, their heads at the end.
func object(t testing.TB, parts ...part) []byte {
	t.Helper()
	names := []byte{0}
	heads := []elf.Section64{{}}
	file := make([]byte, elf64Len)
	add := func(p part) {
		heads = append(heads, elf.Section64{
			Name: uint32(len(names)), Type: uint32(elf.SHT_PROGBITS), Off: uint64(len(file)), Size: uint64(len(p.content)),
		})
		names = append(append(names, p.name...), 0)
		file = append(file, p.content...)
	}
	for _, p := range parts {
		add(p)
		if p.name == ".symtab" {
			heads[len(heads)-1].Type, heads[len(heads)-1].Link = uint32(elf.SHT_SYMTAB), uint32(len(parts)+1)
		}
	}
	add(part{".shstrtab", append(bytes.Clone(names), ".shstrtab\x00"...)})
	heads[len(heads)-1].Type = uint32(elf.SHT_STRTAB)
	head := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_BPF), Version: 1, Shoff: uint64(len(file)), Ehsize: elf64Len,
		Shentsize: section64Len, Shnum: uint16(len(heads)), Shstrndx: uint16(len(heads) - 1),
	}
	copy(head.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	if _, err := binary.Encode(file, binary.LittleEndian, head); err != nil {
		t.Fatal(err)
	}
	file, err := binary.Append(file, binary.LittleEndian, heads)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// edited returns an ELF file with another head.
func edited(t testing.TB, file []byte, edit func(*elf.Header64)) []byte {
	t.Helper()
	var head elf.Header64
	if _, err := binary.Decode(file, binary.LittleEndian, &head); err != nil {
		t.Fatal(err)
	}
	edit(&head)
	file = bytes.Clone(file)
	if _, err := binary.Encode(file, binary.LittleEndian, head); err != nil {
		t.Fatal(err)
	}
	return file
}

// packed returns testdata/mark-8.btf.xz, which is marked(t, 8).
func packed(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/mark-8.btf.xz")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOpen(t *testing.T) {
	raw := marked(t, 8)
	vmlinux := object(t, part{".text", []byte("code")}, part{".BTF.ext", []byte("x")}, part{".BTF", raw})
	for _, c := range []struct {
		rule, want string // want: of the error
		content    []byte
	}{
		{"raw", "", raw},
		{"gzip", "", zipped(t, raw)},
		{"xz", "", packed(t)},
		{"vmlinux", "", vmlinux},
		{"vmlinux in gzip", "", zipped(t, vmlinux)},
		{"empty", "too short", nil},
		{"half of gzip", "unpack: unexpected EOF", zipped(t, raw)[:40]},
		{"half of xz", "unpack: ", packed(t)[:60]},
		{"xz with another bit", "unpack: ", flipped(packed(t), 60)},
		{"gzip of more than 64 MiB", "more than 64 MiB", zipped(t, make([]byte, limit+1))},
		{"gzip twice", "not BTF", zipped(t, zipped(t, raw))},
		{"vmlinux without BTF", "without a .BTF section", object(t, part{".text", raw})},
		{"vmlinux of 32 bits", "not 64-bit", edited(t, vmlinux, func(h *elf.Header64) { h.Ident[elf.EI_CLASS] = 1 })},
		{"vmlinux of big-endian order", "not 64-bit little-endian", edited(t, vmlinux, func(h *elf.Header64) { h.Ident[elf.EI_DATA] = 2 })},
		{"vmlinux without sections", "without sections", edited(t, vmlinux, func(h *elf.Header64) { h.Shnum = 0 })},
		{"vmlinux with more sections than bytes", "unexpected EOF", edited(t, vmlinux, func(h *elf.Header64) { h.Shnum = 0xffff })},
		{"vmlinux with sections beyond 63 bits", "beyond its end", edited(t, vmlinux, func(h *elf.Header64) { h.Shoff = 1<<64 - 1 })},
		{"vmlinux with names beyond bounds", "more than", bytes.Replace(vmlinux, lengths(t, vmlinux), []byte("\xff\xff\xff\xff\xff\xff\xff\x7f"), 1)},
		{"vmlinux cut off", "EOF", vmlinux[:40]},
	} {
		t.Run(c.rule, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.btf")
			put(t, filepath.Dir(path), "x.btf", c.content)
			spec, err := Open(path)
			if c.want == "" {
				if err != nil || mark(t, spec) != 8 {
					t.Errorf("Open: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("Open: %v, want %q and the path", err, c.want)
			}
		})
	}
}

// flipped returns a copy with one bit changed.
func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// lengths returns the field of an ELF file that says how long its section names are.
func lengths(t testing.TB, file []byte) []byte {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	s := f.Section(".shstrtab")
	b, err := binary.Append(nil, binary.LittleEndian, s.Size)
	if err != nil || bytes.Count(file, b) != 1 {
		t.Fatalf("the length %d is in the file %d times, %v", s.Size, bytes.Count(file, b), err)
	}
	return b
}

// TestOpenRefuses opens what is no regular file: none of it may keep the agent waiting.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	put(t, dir, "file", marked(t, 8))
	if err := unix.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file", at("link")); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(at("sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer sparse.Close()
	if err := sparse.Truncate(limit + 1); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, want string }{
		{"fifo", "not a regular file"},
		{".", "not a regular file"},
		{"link", "symbolic links"},
		{"none", "no such file"},
		{"sparse", "more than 64 MiB"},
		{"/dev/null", "not a regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := c.name
			if !filepath.IsAbs(path) {
				path = at(path)
			}
			if _, err := Open(path); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Open: %v, want %q", err, c.want)
			}
		})
	}
}

// FuzzOpen passes files of any content. It finds panics, and work or memory without bounds.
func FuzzOpen(f *testing.F) {
	raw := marked(f, 8)
	f.Add(raw)
	f.Add(zipped(f, raw))
	f.Add(packed(f))
	f.Add(object(f, part{".BTF", raw}))
	f.Fuzz(func(t *testing.T, content []byte) {
		raw, err := unpack(bytes.NewReader(content), int64(len(content)))
		if err != nil {
			return
		}
		if spec, err := reduce(raw); err == nil && spec == nil {
			t.Error("neither types nor an error")
		} else if _, _, fromErr := facts.From(raw); fromErr != nil && err == nil {
			t.Errorf("types of what has no facts: %v", fromErr)
		}
	})
}
