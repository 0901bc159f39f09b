// SPDX-License-Identifier: Apache-2.0

package tlslib

import (
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
)

// onPhone keeps what reads code of x86_64 out of the phone's binary, whose size is limited.
const onPhone = runtime.GOARCH == "arm64"

// maxCopies is how many copies of a library a file may hold.
const maxCopies = 4

// Find finds the functions in a library or program that are handed the secrets: more than one if the file holds several copies. r
// begins with the ELF header and has size bytes; for a library in an APK it is a part of that. At most a few MiB of it are in
// memory at a time.
//
// It looks for code that takes the address of a label of NSS's key log as the second argument of a call: in BoringSSL, OpenSSL
// (1.1.1 and later) and GnuTLS (3.6.13 and later) all of these go to one function (label, secret and its size being arguments 2 to
// 4). In a Go program it asks the runtime's table of functions. The error says why there is none; it wraps ErrNone where nothing was to be expected.
func Find(r io.ReaderAt, size int64) ([]Function, error) {
	m, err := newImage(r, size)
	if err != nil {
		return nil, err
	}
	// Any file that has nothing to do with TLS ends here.
	if ok, err := m.contains(labels[0]); err != nil {
		return nil, err
	} else if !ok {
		return nil, fmt.Errorf("no %q: %w", labels[0], ErrNone)
	}
	found, err := findGo(r, size)
	if err != nil && !errors.Is(err, ErrNone) {
		return nil, err
	}
	if !m.known() {
		return found, fmt.Errorf("its code (%v, %v) is not of an architecture that can be read", m.machine, elf.Class(m.header[4]))
	}
	more, err := findC(m)
	if len(found) > 0 { // what of C is linked into a Go program is rarely TLS
		return append(found, more...), nil
	}
	return more, err
}

// findC finds the functions of libraries in C and C++.
func findC(m *image) ([]Function, error) {
	at, err := findLabels(m)
	if err != nil {
		return nil, err
	}
	if len(at) == 0 {
		return nil, nothing(m)
	}
	var cpu processor = arm64{}
	if !onPhone && m.machine == elf.EM_X86_64 {
		cpu = amd64{}
	}
	all, err := tally(m, cpu, at)
	if err != nil {
		return nil, err
	}
	return decide(m, cpu, all)
}

// What only files of a library have in them, for those that do not export its functions too.
const (
	markNSS    = "SSL_ImportFD"
	markGnuTLS = "_gnutls_nss_keylog_write"
)

// nothing says why no function was found.
func nothing(m *image) error {
	// This program's own binaries have all the strings by which others are known.
	if ok, err := m.contains("droidtap/agent/tlslib."); err != nil || ok {
		return cmp.Or(err, fmt.Errorf("it looks for TLS libraries itself: %w", ErrNone))
	}
	for _, known := range []struct{ mark, reason string }{
		{markNSS, "NSS: its secrets are inside of key objects, and no function is handed them"},
		{"rustls", "rustls: its key log is called through a table of methods, and only if the program asks for it"},
	} {
		if ok, err := m.contains(known.mark); err != nil {
			return err
		} else if ok {
			return fmt.Errorf("%s", known.reason)
		}
	}
	return fmt.Errorf("it has labels of secrets, but no function is called with them")
}

// candidate is a function that may be the one.
type candidate struct {
	addr uint64
	votes
	kind
}

// rank puts those that are called with the most labels first. If any is called, others to which code only jumps are no functions
// but ends of functions.
func rank(all map[uint64]votes) (found []candidate) {
	called := false
	for _, v := range all {
		called = called || v.calls != 0
	}
	for a, v := range all {
		if v.calls == 0 && called {
			continue
		}
		// A sort of the slices package is 8 KiB of code for a handful of these.
		c, i := candidate{addr: a, votes: v}, 0
		for i < len(found) && (found[i].count() > v.count() || found[i].count() == v.count() && found[i].addr < a) {
			i++
		}
		found = slices.Insert(found, i, c)
	}
	return found
}

// kind is a library, and what is expected of one.
type kind struct {
	library  string
	need     int // labels
	accessor string
}

var (
	boringSSL = kind{"BoringSSL", 4, "SSL_get_client_random"}
	openSSL   = kind{"OpenSSL", 2, "SSL_get_client_random"} // the other labels go through a variable
	gnuTLS    = kind{"GnuTLS", 3, "gnutls_session_get_random"}
)

// decide chooses among the functions that are called with labels, and says of which library they are.
func decide(m *image, cpu processor, all map[uint64]votes) ([]Function, error) {
	ranked := rank(all)
	if len(ranked) == 0 || ranked[0].count() < 2 {
		return nil, nothing(m)
	}
	if nss, err := m.contains(markNSS); err != nil || nss {
		return nil, cmp.Or(err, nothing(m))
	}
	// Only OpenSSL and GnuTLS derive an exporter secret of early data.
	early := openSSL
	gnutls, err := m.contains(markGnuTLS)
	if err != nil {
		return nil, err
	}
	if gnutls || m.symbol(gnuTLS.accessor) != 0 {
		early = gnuTLS
	}
	var chosen []candidate
	for _, c := range ranked {
		if c.kind = boringSSL; (c.calls|c.jumps)&earlyExporter != 0 {
			c.kind = early
		}
		// Another copy is called with as many labels; anything else with few.
		if _, ok := m.offset(c.addr, true); ok && c.count() >= c.need && 2*c.count() > ranked[0].count() {
			chosen = append(chosen, c)
		}
	}
	switch {
	case len(chosen) == 0:
		return nil, fmt.Errorf("the function is not clear: the most likely one is called with %d labels", ranked[0].count())
	case len(chosen) > maxCopies:
		return nil, fmt.Errorf("%d functions are called with the labels of secrets", len(chosen))
	}
	var found []Function
	for _, c := range chosen {
		f, err := c.function(m, cpu, len(chosen) == 1)
		if err != nil {
			return nil, err
		}
		found = append(found, f)
	}
	return found, nil
}

// function is what is to be known of it. alone says that an accessor that the file exports belongs to it.
func (c candidate) function(m *image, cpu processor, alone bool) (Function, error) {
	off, _ := m.offset(c.addr, true)
	f := Function{Library: c.library, Machine: m.machine, Offset: off, Why: fmt.Sprintf("called with %d labels", c.count())}
	f.registers()
	way, ok := functionWay(m, cpu, c.addr)
	why := "its code reads the random"
	if a := m.symbol(c.accessor); a != 0 && (alone || !ok) {
		if w, good := accessorWay(m, cpu, a); good {
			way, ok, why = w, true, "the code of "+c.accessor
		}
	}
	switch {
	case ok:
		f.Why += ", " + why
		for _, n := range way.off[:way.depth+1] {
			f.Path = append(f.Path, uint32(n))
		}
	case c.kind == boringSSL:
		// So it is in Android's 13 and 14 and in Chromium of 2026, on both architectures.
		f.Path, f.Guess = []uint32{0x30, 0x30}, true
	default:
		return f, fmt.Errorf("%s: the way to the client random was not found", c.library)
	}
	return f, nil
}

// registers sets where the arguments are.
func (f *Function) registers() {
	f.Random, f.Label, f.Secret, f.Size = 0, 1, 2, 3
	if f.Machine == elf.EM_X86_64 {
		f.Random, f.Label, f.Secret, f.Size = 14, 13, 12, 11 // rdi, rsi, rdx, rcx
	}
	f.LabelSize = NoRegister
}
