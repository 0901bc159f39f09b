// SPDX-License-Identifier: Apache-2.0

package android

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Bounds of a list of packages, in bytes. A phone with 600 packages has 100 KB.
const (
	maxPackages    = 8 << 20
	maxPackageLine = 8 << 10 // an app with every permission has some hundred group ids
	maxPackageName = 255     // it is the name of a folder
)

// ErrPackagesTooLong is the error of a list of packages of more than 8 MiB.
var ErrPackagesTooLong = errors.New("a list of packages has at most 8 MiB")

// Package is an installed app. Several may share one uid (android:sharedUserId).
type Package struct {
	Name string // "com.example": letters, digits, '.', '_' and '-', 1 to 255
	UID  uint32 // for the phone's first user, so that it is the app id: below 100000
}

// Packages is what a list of packages holds.
type Packages struct {
	List    []Package // in the order of the list, each name once
	Skipped int       // lines that are none of a package's
	First   error     // of the first of them
}

// ParsePackages reads /data/system/packages.list, which Android's package manager writes (Settings.java
// writePackageListLPr) and liblog's packagelistparser reads: a line for each package, with columns by position,
//
//	name uid debuggable(0|1) folder seinfo gids|none [profileable-from-shell versionCode profileable installer]
//
// of which old releases write the first six, and newer ones may add more. A line without these six is skipped, also the
// last one of a list that is just being written. The error is that of r, or ErrPackagesTooLong.
func ParsePackages(r io.Reader) (Packages, error) {
	var p Packages
	seen := map[string]bool{}
	limited := &io.LimitedReader{R: r, N: maxPackages + 1}
	lines := bufio.NewReaderSize(limited, maxPackageLine)
	for n := 1; ; n++ {
		line, err := lines.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = lines.ReadSlice('\n')
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return Packages{}, err
		}
		if limited.N == 0 {
			return Packages{}, ErrPackagesTooLong
		}
		p.add(n, line, long, seen)
		if err != nil {
			return p, nil
		}
	}
}

// add takes line n.
func (p *Packages) add(n int, line []byte, long bool, seen map[string]bool) {
	if len(bytes.TrimSpace(line)) == 0 {
		return
	}
	one, err := parsePackage(line)
	switch {
	case long:
		err = fmt.Errorf("more than %d bytes", maxPackageLine)
	case err == nil && seen[one.Name]:
		err = fmt.Errorf("%s is there twice", one.Name)
	}
	if err == nil {
		seen[one.Name] = true
		p.List = append(p.List, one)
		return
	}
	if p.Skipped++; p.First == nil {
		p.First = fmt.Errorf("line %d: %w", n, err)
	}
}

func parsePackage(line []byte) (Package, error) {
	const least = 6
	columns := bytes.Fields(line)
	if len(columns) < least {
		return Package{}, fmt.Errorf("%d columns, and a package has %d at least", len(columns), least)
	}
	name, number := columns[0], columns[1]
	if !IsPackageName(string(name)) {
		return Package{}, fmt.Errorf("%q is no package's name", name[:min(len(name), 80)])
	}
	uid, err := strconv.ParseUint(string(number), 10, 32)
	if err != nil || uid >= perUser {
		return Package{}, fmt.Errorf("%q is no app's uid", number[:min(len(number), 80)])
	}
	return Package{string(name), uint32(uid)}, nil
}

// IsPackageName tells whether a package may have that name. Android asks for more: a dot, but for its own package
// "android", and a letter behind each (FrameworkParsingPackageUtils.validateName).
func IsPackageName(name string) bool {
	if name == "" || len(name) > maxPackageName {
		return false
	}
	for _, c := range []byte(name) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}
