// SPDX-License-Identifier: Apache-2.0

package android

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

const (
	oldLine = "com.example.old 10101 0 /data/user/0/com.example.old default:targetSdkVersion=28 3003,1015\n"
	newLine = "com.example.new 10102 1 /data/user/0/com.example.new default:targetSdkVersion=33 none 0 42 1 @system\n"
)

func TestParsePackages(t *testing.T) {
	const rest = " 0 /data/x default none"
	packages := func(names ...string) (list []Package) {
		for i, name := range names {
			list = append(list, Package{name, uint32(10101 + i)})
		}
		return list
	}
	for _, c := range []struct {
		rule, text string
		want       []Package
		skipped    int
		first      string
	}{
		{"six columns, and ten", oldLine + newLine, packages("com.example.old", "com.example.new"), 0, ""},
		{"eight columns, and twelve", "a.b 10101" + rest + " 1 2\nc.d 10102" + rest + " 1 2 3 @null x y\n", packages("a.b", "c.d"), 0, ""},
		{"no end of the last line", strings.TrimSuffix(oldLine, "\n"), packages("com.example.old"), 0, ""},
		{"several of one uid", "a.b 1000" + rest + "\nandroid 1000" + rest + "\n", []Package{{"a.b", 1000}, {"android", 1000}}, 0, ""},
		{"nothing", "", nil, 0, ""},
		{"empty lines are none", "\n\r\n" + oldLine + " \n", packages("com.example.old"), 0, ""},
		{"a line cut short", oldLine + "com.example.new 1010", packages("com.example.old"), 1, "line 2: 2 columns, and a package has 6 at least"},
		{"not a name", "com/ex 10101" + rest + "\n\x00\xff 1" + rest + "\n" + oldLine, packages("com.example.old"), 2, `line 1: "com/ex" is no package's name`},
		{"a name of 255 bytes", strings.Repeat("a", 255) + " 10101" + rest, packages(strings.Repeat("a", 255)), 0, ""},
		{"a name of 256 bytes", strings.Repeat("a", 256) + " 10101" + rest, nil, 1, "line 1: " + fmt.Sprintf("%q", strings.Repeat("a", 80)) + " is no package's name"},
		{"not a uid", "a.b x" + rest + "\na.b -1" + rest, nil, 2, `line 1: "x" is no app's uid`},
		{"the uid of another user", "a.b 100000" + rest, nil, 1, `line 1: "100000" is no app's uid`},
		{"a uid beyond 32 bits", "a.b 4294967296" + rest, nil, 1, `line 1: "4294967296" is no app's uid`},
		{"the largest uid", "a.b 99999" + rest, []Package{{"a.b", 99999}}, 0, ""},
		{"a package that is there twice keeps its first uid", oldLine + "com.example.old 10109" + rest, packages("com.example.old"), 1, "line 2: com.example.old is there twice"},
		{"a line too long", "a.b 10100" + rest + strings.Repeat(",3003", 2000) + "\n" + oldLine, packages("com.example.old"), 1, "line 1: more than 8192 bytes"},
		{"not a list at all", strings.Repeat("\x00", 100000), nil, 1, "line 1: more than 8192 bytes"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			p, err := ParsePackages(strings.NewReader(c.text))
			if err != nil {
				t.Fatal(err)
			}
			first := ""
			if p.First != nil {
				first = p.First.Error()
			}
			if diff := cmp.Diff(c.want, p.List); diff != "" || p.Skipped != c.skipped || first != c.first {
				t.Errorf("%d skipped, first %q, want %d and %q; -want +got:\n%s", p.Skipped, first, c.skipped, c.first, diff)
			}
		})
	}
}

func TestParsePackagesErrors(t *testing.T) {
	endless := io.MultiReader(strings.NewReader(oldLine), zeros{})
	if _, err := ParsePackages(endless); !errors.Is(err, ErrPackagesTooLong) {
		t.Errorf("of a list without an end: %v", err)
	}
	if p, err := ParsePackages(io.MultiReader(strings.NewReader(oldLine), iotest.ErrReader(io.ErrUnexpectedEOF))); !errors.Is(err, io.ErrUnexpectedEOF) || p.List != nil {
		t.Errorf("of a read that fails: %v, %v", p, err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

func FuzzParsePackages(f *testing.F) {
	f.Add(oldLine + newLine)
	f.Add("a.b 4294967295 1 2 3 4\n\n\xff")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePackages(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(text, "\n") + 1; len(p.List)+p.Skipped > lines || (p.Skipped == 0) != (p.First == nil) {
			t.Errorf("%d packages and %d skipped of %d lines, first %v", len(p.List), p.Skipped, lines, p.First)
		}
		if p.First != nil && strings.ContainsAny(p.First.Error(), "\n\r\x1b\x00") {
			t.Errorf("%q is not fit for a terminal", p.First)
		}
		for _, one := range p.List {
			if !IsPackageName(one.Name) || one.UID >= perUser {
				t.Errorf("%+v", one)
			}
		}
	})
}

func TestUID(t *testing.T) {
	for _, c := range []struct {
		uid                    uint32
		user, appID            uint32
		app, isolated, sandbox bool
		name                   string
	}{
		{0, 0, 0, false, false, false, "root"},
		{1000, 0, 1000, false, false, false, "system"},
		{1001051, 10, 1051, false, false, false, "dns"},
		{2950, 0, 2950, false, false, false, ""},
		{9999, 0, 9999, false, false, false, "nobody"},
		{10000, 0, 10000, true, false, false, ""},
		{1019999, 10, 19999, true, false, false, ""},
		{20000, 0, 20000, false, false, true, ""},
		{1029999, 10, 29999, false, false, true, ""},
		{30000, 0, 30000, false, false, false, ""},
		{89999, 0, 89999, false, false, false, ""},
		{90000, 0, 90000, false, true, false, ""},
		{1099999, 10, 99999, false, true, false, ""},
	} {
		_, sandbox := SandboxOf(c.uid)
		if User(c.uid) != c.user || AppID(c.uid) != c.appID || IsApp(c.uid) != c.app || IsIsolated(c.uid) != c.isolated ||
			sandbox != c.sandbox || Name(c.uid) != c.name || UID(c.user, c.appID) != c.uid {
			t.Errorf("%d: user %d, app id %d, app %v, isolated %v, sandbox %v, %q", c.uid, User(c.uid), AppID(c.uid), IsApp(c.uid), IsIsolated(c.uid), sandbox, Name(c.uid))
		}
	}
	if of, ok := SandboxOf(1020123); of != 10123 || !ok {
		t.Errorf("1020123 is the sandbox of %d, %v", of, ok)
	}
	if s, ok := Sandbox(10123); s != 20123 || !ok {
		t.Errorf("the sandbox of 10123 is %d, %v", s, ok)
	}
	for _, none := range []uint32{0, 1000, 20123, 90000} {
		if s, ok := Sandbox(none); ok {
			t.Errorf("%d has the sandbox %d", none, s)
		}
	}
}
