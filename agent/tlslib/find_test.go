// SPDX-License-Identifier: Apache-2.0

package tlslib

import (
	"bytes"
	"debug/elf"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var machines = []elf.Machine{elf.EM_AARCH64, elf.EM_X86_64}

// boring are the labels of BoringSSL.
var boring = labels[:7]

// passAll calls a function with labels in all the ways that compilers have.
func (p *program) passAll(names []string, target uint64) {
	for i, name := range names {
		switch i {
		case 1:
			p.passKept(name, target)
		case len(names) - 1:
			p.passLast(name, target)
		default:
			p.pass(name, target)
		}
	}
}

// arguments are the first four of a machine, in the order random, label, secret, size.
func arguments(m elf.Machine) [4]Register {
	if m == elf.EM_X86_64 {
		return [4]Register{14, 13, 12, 11}
	}
	return [4]Register{0, 1, 2, 3}
}

// want is what is to be found in a synthetic file.
type want struct {
	library string
	at      []uint64
	path    []uint32
	guess   bool
}

var findCases = []struct {
	name  string
	build func(p *program)
	want  want
}{
	{"the accessor calls memcpy", func(p *program) { p.passAll(boring, logAt); p.accessor() },
		want{"BoringSSL", []uint64{logAt}, []uint32{0x58, 0x70}, false}},
	{"the accessor copies by itself", func(p *program) { p.passAll(boring, logAt); p.inline() },
		want{"BoringSSL", []uint64{logAt}, []uint32{0x160}, false}},
	{"no accessor: the function hands the random on", func(p *program) { p.passAll(boring, logAt); p.writer(logAt) },
		want{"BoringSSL", []uint64{logAt}, []uint32{0xa8, 0xb8}, false}},
	{"no accessor: the function reads the random", func(p *program) { p.passAll(boring, logAt); p.hexer(logAt) },
		want{"BoringSSL", []uint64{logAt}, []uint32{0x40, 0x38}, false}},
	{"nothing tells the way", func(p *program) { p.passAll(boring, logAt) },
		want{"BoringSSL", []uint64{logAt}, []uint32{0x30, 0x30}, true}},
	{"four labels are enough, a rival with two is none", func(p *program) {
		p.passAll(boring[:4], logAt)
		p.passAll(boring[4:6], memcpyAt)
	}, want{"BoringSSL", []uint64{logAt}, []uint32{0x30, 0x30}, true}},
	{"two copies", func(p *program) {
		p.passAll(boring, logAt)
		p.passAll(boring, secondAt)
		p.hexer(logAt)
		p.hexer(secondAt)
	}, want{"BoringSSL", []uint64{logAt, secondAt}, []uint32{0x40, 0x38}, false}},
	{"OpenSSL: three labels, one of them the end of another", func(p *program) {
		p.labels["EXPORTER_SECRET"] = p.label("EARLY_EXPORTER_SECRET") + uint64(len("EARLY_"))
		for _, name := range []string{"EXPORTER_SECRET", "EARLY_EXPORTER_SECRET", "CLIENT_RANDOM"} {
			p.pass(name, logAt)
		}
		p.writer(logAt)
	}, want{"OpenSSL", []uint64{logAt}, []uint32{0xa8, 0xb8}, false}},
	{"OpenSSL: a function with fewer than half of the labels is no copy", func(p *program) {
		p.passAll(labels[:], logAt)
		p.pass("EARLY_EXPORTER_SECRET", memcpyAt)
		p.pass("EXPORTER_SECRET", memcpyAt)
		p.writer(logAt)
	}, want{"OpenSSL", []uint64{logAt}, []uint32{0xa8, 0xb8}, false}},
	{"all calls are last ones", func(p *program) {
		for _, name := range boring {
			p.passLast(name, logAt)
		}
	}, want{"BoringSSL", []uint64{logAt}, []uint32{0x30, 0x30}, true}},
	{"calls that share their end", func(p *program) {
		for _, name := range boring[1:] {
			p.passLast(name, textAddr)
		}
		p.pass(boring[0], logAt)
		p.pc = textAddr
		p.call(logAt)
	}, want{"BoringSSL", []uint64{logAt}, []uint32{0x30, 0x30}, true}},
	{"a label across two pieces", func(p *program) {
		p.string(strings.Repeat("x", piece-3))
		p.passAll(boring, logAt)
	}, want{"BoringSSL", []uint64{logAt}, []uint32{0x30, 0x30}, true}},
}

func TestFind(t *testing.T) {
	for _, c := range findCases {
		for _, machine := range machines {
			t.Run(c.name+"/"+machine.String(), func(t *testing.T) {
				p := newProgram(machine)
				c.build(p)
				r := p.reader()
				got, err := Find(r, r.Size())
				if err != nil {
					t.Fatal(err)
				}
				a := arguments(machine)
				var want []Function
				for _, at := range c.want.at {
					want = append(want, Function{Library: c.want.library, Machine: machine, Offset: at - textAddr + textOff,
						Random: a[0], Label: a[1], LabelSize: NoRegister, Secret: a[2], Size: a[3],
						Path: c.want.path, Guess: c.want.guess})
				}
				for i := range got {
					got[i].Why = ""
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("-want +got:\n%s", d)
				}
			})
		}
	}
}

func TestFindFixed(t *testing.T) {
	p := newProgram(elf.EM_X86_64)
	p.fixed = true
	p.passAll(boring[:2], logAt) // one by lea
	for _, name := range boring[2:] {
		p.pass(name, logAt)
	}
	r := p.reader()
	got, err := Find(r, r.Size())
	if err != nil || len(got) != 1 || got[0].Offset != logAt-textAddr+textOff {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestFindNone(t *testing.T) {
	for _, c := range []struct {
		name  string
		build func(p *program)
		edit  func(b []byte) []byte
		none  bool
		want  string
	}{
		{"no ELF file", nil, func(b []byte) []byte { return []byte("#!/bin/sh\n") }, true, "no ELF file"},
		{"no labels", func(p *program) { p.string("CLIENT_RANDO\x00") }, nil, true, "CLIENT_RANDOM"},
		{"labels that are no strings of C", func(p *program) {
			p.string("CLIENT_RANDOMrustls")
		}, nil, false, "rustls"},
		{"NSS", func(p *program) { p.passAll(boring, logAt); p.string("SSL_ImportFD\x00") }, nil, false, "NSS"},
		{"labels of which nobody takes the address", func(p *program) { p.label("CLIENT_RANDOM") }, nil, false, "no function"},
		{"too few labels", func(p *program) { p.passAll(boring[:3], logAt) }, nil, false, "3 labels"},
		{"OpenSSL without a way to the random", func(p *program) {
			p.passAll([]string{"CLIENT_RANDOM", "EXPORTER_SECRET", "EARLY_EXPORTER_SECRET"}, logAt)
		}, nil, false, "client random was not found"},
		{"32 bits", func(p *program) { p.passAll(boring, logAt) }, func(b []byte) []byte {
			b[4] = byte(elf.ELFCLASS32)
			return b
		}, false, "ELFCLASS32"},
		{"the program headers are cut off", func(p *program) { p.passAll(boring, logAt) },
			func(b []byte) []byte { return b[:100] }, true, "beyond the end"},
		{"one part many times", func(p *program) { p.passAll(boring, logAt) }, func(b []byte) []byte {
			b[64+32+2] = 1 // beyond the end: all of the file
			copy(b[64+56:], b[64:64+56])
			copy(b[64+2*56:], b[64:64+56])
			return b
		}, true, "many times"},
	} {
		for _, machine := range machines {
			t.Run(c.name+"/"+machine.String(), func(t *testing.T) {
				p := newProgram(machine)
				if c.build != nil {
					c.build(p)
				}
				b := p.file()
				if c.edit != nil {
					b = c.edit(b)
				}
				got, err := Find(bytes.NewReader(b), int64(len(b)))
				if err == nil || errors.Is(err, ErrNone) != c.none || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %+v, %v", got, err)
				}
			})
		}
	}
}

// FuzzFind: no file makes it panic, or name a function that is not in the file.
func FuzzFind(f *testing.F) {
	for _, machine := range machines {
		p := newProgram(machine)
		p.passAll(boring, logAt)
		p.accessor()
		f.Add(p.file())
		p = newProgram(machine)
		p.passAll(labels[:], logAt)
		p.hexer(logAt)
		f.Add(p.file())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		found, err := Find(bytes.NewReader(b), int64(len(b)))
		if (err == nil) != (len(found) > 0) {
			t.Fatalf("%d functions, %v", len(found), err)
		}
		for _, fn := range found {
			if fn.Offset >= uint64(len(b)) || len(fn.Path) < 1 || len(fn.Path) > 4 || fn.Why == "" {
				t.Errorf("%+v in %d bytes", fn, len(b))
			}
		}
	})
}
