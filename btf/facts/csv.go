// SPDX-License-Identifier: Apache-2.0

package facts

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
)

var columns = []string{"struct", "member", "kind", "offset_bits", "source"}

// Read reads a table of facts: CSV with the columns struct, member, kind, offset_bits and source.
func Read(r io.Reader) ([]Fact, error) {
	rows, err := csv.NewReader(r).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("read facts: %w", err)
	}
	if len(rows) == 0 || !slices.Equal(rows[0], columns) {
		return nil, errors.New("read facts: the first line does not name the columns")
	}
	var fs []Fact
	for i, row := range rows[1:] {
		bits, err := strconv.ParseUint(row[3], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("read fact %d: %w", i+1, err)
		}
		fs = append(fs, Fact{Struct: row[0], Member: row[1], Kind: row[2], Bits: uint32(bits), Source: row[4]})
	}
	return fs, nil
}

// Write writes what Read reads.
func Write(w io.Writer, fs []Fact) error {
	rows := [][]string{columns}
	for _, f := range fs {
		rows = append(rows, []string{f.Struct, f.Member, f.Kind, strconv.FormatUint(uint64(f.Bits), 10), f.Source})
	}
	if err := csv.NewWriter(w).WriteAll(rows); err != nil {
		return fmt.Errorf("write facts: %w", err)
	}
	return nil
}
