// SPDX-License-Identifier: Apache-2.0

package btf

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	cilium "github.com/cilium/ebpf/btf"
	"github.com/therootcompany/xz"
	"golang.org/x/sys/unix"
)

// limit bounds BTF as it is stored and as it is unpacked, and the dictionary of xz. A kernel's is 5 to 10 MB.
const limit = 64 << 20

// maxNames bounds the section names of an ELF file; a vmlinux has about 1 kB of them.
const maxNames = 1 << 20

// Open returns the types in a file of raw BTF, complete or reduced, in one packed by xz or gzip, or in an ELF vmlinux
// with a .BTF section. What it is is told by its content. Nothing but a regular file is opened, and no symbolic link
// is followed in the last part of the path. A file of more than 64 MiB, unpacked, is refused; of an ELF file the
// section counts.
func Open(path string) (*cilium.Spec, error) {
	raw, err := Read(path)
	if err != nil {
		return nil, err
	}
	spec, err := reduce(raw)
	if err != nil {
		return nil, fmt.Errorf("read BTF in %s: %w", path, err)
	}
	return spec, nil
}

// Read returns the raw BTF in a file, unpacked but not looked into. It opens what Open opens.
func Read(path string) ([]byte, error) {
	// O_NONBLOCK: a FIFO put in the file's place must not hold the agent up.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read BTF: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read BTF: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read BTF in %s: not a regular file", path)
	}
	raw, err := unpack(f, st.Size())
	if err != nil {
		return nil, fmt.Errorf("read BTF in %s: %w", path, err)
	}
	return raw, nil
}

// unpack returns the raw BTF in a file of that many bytes.
func unpack(r io.ReaderAt, size int64) ([]byte, error) {
	if begins(r, elf.ELFMAG) {
		return section(r)
	}
	packed := bufio.NewReader(io.NewSectionReader(r, 0, limit+1))
	var raw []byte
	var err error
	switch {
	case begins(r, "\xfd7zXZ\x00"):
		var x *xz.Reader
		if x, err = xz.NewReader(packed, limit); err == nil {
			raw, err = bounded(x, 0)
		}
	case begins(r, "\x1f\x8b"):
		var z *gzip.Reader
		if z, err = gzip.NewReader(packed); err == nil {
			raw, err = bounded(z, 0)
		}
	default:
		return bounded(packed, size)
	}
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	if unpacked := bytes.NewReader(raw); begins(unpacked, elf.ELFMAG) {
		return section(unpacked)
	}
	return raw, nil
}

// begins says whether a file has this at its start.
func begins(r io.ReaderAt, magic string) bool {
	b := make([]byte, len(magic))
	n, _ := r.ReadAt(b, 0)
	return string(b[:n]) == magic
}

// bounded reads all of r, or fails where that is more than limit. size is how much that may be, in bytes: with it the bytes
// are not copied over and over while they grow, which takes three times their room.
func bounded(r io.Reader, size int64) ([]byte, error) {
	var b bytes.Buffer
	b.Grow(int(max(0, min(size, limit))) + bytes.MinRead)
	if _, err := b.ReadFrom(io.LimitReader(r, limit+1)); err != nil {
		return nil, err
	}
	if b.Len() > limit {
		return nil, fmt.Errorf("more than %d MiB", limit>>20)
	}
	return b.Bytes(), nil
}

// section returns the .BTF section of a 64-bit little-endian ELF file. debug/elf would do but for hostile files: it
// reads as many section heads and names as they claim.
func section(r io.ReaderAt) ([]byte, error) {
	var head elf.Header64
	if err := decode(r, 0, elf64Len, &head); err != nil {
		return nil, err
	}
	if head.Ident[elf.EI_CLASS] != byte(elf.ELFCLASS64) || head.Ident[elf.EI_DATA] != byte(elf.ELFDATA2LSB) {
		return nil, errors.New("an ELF file, not 64-bit little-endian")
	}
	if head.Shentsize != section64Len || head.Shstrndx >= head.Shnum {
		return nil, errors.New("an ELF file without sections")
	}
	sections := make([]elf.Section64, head.Shnum)
	if err := decode(r, head.Shoff, section64Len*uint64(head.Shnum), sections); err != nil {
		return nil, err
	}
	names, err := contents(r, sections[head.Shstrndx], maxNames)
	if err != nil {
		return nil, err
	}
	for _, s := range sections {
		if uint64(s.Name) < uint64(len(names)) && bytes.HasPrefix(names[s.Name:], []byte(".BTF\x00")) {
			return contents(r, s, limit)
		}
	}
	return nil, errors.New("an ELF file without a .BTF section")
}

// The sizes of elf.Header64 and elf.Section64 in a file.
const (
	elf64Len     = 64
	section64Len = 64
)

// contents returns the bytes of a section.
func contents(r io.ReaderAt, s elf.Section64, most uint64) ([]byte, error) {
	if elf.SectionFlag(s.Flags)&elf.SHF_COMPRESSED != 0 || elf.SectionType(s.Type) == elf.SHT_NOBITS {
		return nil, errors.New("an ELF section that is compressed or empty")
	}
	if s.Size > most {
		return nil, fmt.Errorf("an ELF section of %d bytes, more than %d", s.Size, most)
	}
	b := make([]byte, s.Size)
	return b, decode(r, s.Off, s.Size, b)
}

// decode reads n bytes at an offset of an ELF file into v.
func decode(r io.ReaderAt, off, n uint64, v any) error {
	if off > math.MaxInt64-n {
		return errors.New("an ELF file with an offset beyond its end")
	}
	if err := binary.Read(io.NewSectionReader(r, int64(off), int64(n)), binary.LittleEndian, v); err != nil {
		return fmt.Errorf("read ELF: %w", err)
	}
	return nil
}
