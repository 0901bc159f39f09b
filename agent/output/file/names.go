// SPDX-License-Identifier: Apache-2.0

package file

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// turn is which file of a capture it is.
type turn struct {
	number int       // from 0 on, of all or, with -G, of the slice
	slice  time.Time // when that began
	now    time.Time
}

// next returns the turn of the file to be opened. The opener changes when it is open.
func (o *opener) next() turn {
	now := o.clock()
	switch {
	case o.opened == 0, o.slices && o.over():
		return turn{0, now, now}
	default:
		return turn{o.number + 1, o.slice, now}
	}
}

// announced tells whether a file of that turn is one that the flags ask for, so that it replaces what has its name. The others
// come of "agent rotate" and SIGHUP.
func (o *opener) announced(t turn) bool {
	return t.number == 0 || o.size > 0 || o.packets > 0 || o.dumpcap
}

// path returns the name that -w gives to a file: tcpdump's or dumpcap's.
func (o *opener) path(t turn) string {
	path := o.write
	if o.dumpcap {
		stem, extension := splitName(path)
		return fmt.Sprintf("%s_%05d_%s%s", stem, t.number+1, t.now.Format("20060102150405"), extension)
	}
	if o.slices {
		path = strftime(path, t.slice)
	}
	number, width := t.number, 0
	if o.cyclic > 0 {
		number %= o.cyclic
		for n := o.cyclic - 1; n > 0; n /= 10 {
			width++
		}
	}
	if number == 0 && width == 0 {
		return path
	}
	// In front of .zst and .gz, by which programs know what to do with the file. tcpdump has neither.
	suffix, _ := suffixOf(path)
	return fmt.Sprintf("%s%0*d%s", strings.TrimSuffix(path, suffix), width, number, suffix)
}

// splitName returns a path without the extension of its name, and that: ".pcapng" or ".pcapng.gz".
func splitName(path string) (stem, extension string) {
	suffix, _ := suffixOf(path)
	stem = strings.TrimSuffix(path, suffix)
	if ext := filepath.Ext(stem); len(ext) < len(filepath.Base(stem)) {
		suffix = ext + suffix
		stem = strings.TrimSuffix(stem, ext)
	}
	return stem, suffix
}
