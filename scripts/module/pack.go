// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/zip"
	"bytes"
	"cmp"
	"compress/flate"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// file is one of the zip.
type file struct {
	name       string
	text       []byte
	executable bool
}

// oldest is the first day that a zip can name, 1980-01-01: month 1, day 1 (APPNOTE.TXT 4.4.6).
const oldest = 1<<5 | 1

// pack writes files as a zip, sorted by name, all of the same time. Sizes stand ahead
// of each file, and not behind it where zip.Writer puts them: not every unzip that
// a root manager ever had reads them there.
func pack(w io.Writer, files []file) error {
	z := zip.NewWriter(w)
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.name, b.name) })
	for i, f := range files {
		if i > 0 && f.name == files[i-1].name {
			return fmt.Errorf("two files %s", f.name)
		}
		packed, err := deflate(f.text)
		if err != nil {
			return err
		}
		h := &zip.FileHeader{
			Name: f.name, Method: zip.Deflate, ModifiedDate: oldest,
			CRC32: crc32.ChecksumIEEE(f.text), UncompressedSize64: uint64(len(f.text)), CompressedSize64: uint64(len(packed)),
		}
		h.SetMode(0o644)
		if f.executable {
			h.SetMode(0o755)
		}
		to, err := z.CreateRaw(h)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if _, err := to.Write(packed); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return z.Close()
}

func deflate(text []byte) ([]byte, error) {
	var packed bytes.Buffer
	d, err := flate.NewWriter(&packed, flate.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := d.Write(text); err != nil {
		return nil, err
	}
	err = d.Close()
	return packed.Bytes(), err
}
