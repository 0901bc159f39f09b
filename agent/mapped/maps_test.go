// SPDX-License-Identifier: Apache-2.0

package mapped

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/process"
)

func TestParseLine(t *testing.T) {
	base := Mapping{Start: 0x7f0000001000, End: 0x7f0000003000, Offset: 0x1000, Major: 8, Minor: 0x1f, Inode: 1234}
	named := func(name string, deleted bool) *Mapping {
		m := base
		m.Name, m.Deleted = name, deleted
		return &m
	}
	const head = "7f0000001000-7f0000003000 r-xp 00001000 08:1f 1234 "
	for _, c := range []struct {
		rule, text string
		want       *Mapping // nil: none
		worth      bool
	}{
		{"a library", head + "                    /lib/libssl.so", named("/lib/libssl.so", false), true},
		{"an APK", head + "/data/app/~~a==/b-c==/base.apk", named("/data/app/~~a==/b-c==/base.apk", false), true},
		{"blanks in the name", head + "  /a b  c", named("/a b  c", false), true},
		{"a newline in the name", head + `/a\012b\134`, named("/a\nb\\134", false), true},
		{"a deleted file", head + "/lib/x (deleted)", named("/lib/x", true), true},
		{"a library in memory", head + "/memfd:lib (deleted)", named("/memfd:lib", true), true},
		{"what ART compiles", head + "/memfd:jit-cache (deleted)", named("/memfd:jit-cache", true), false},
		{"what Dalvik compiled", head + "/dev/ashmem/dalvik-jit-code-cache (deleted)", named("/dev/ashmem/dalvik-jit-code-cache", true), false},
		{"no name", strings.TrimSuffix(head, " "), named("", false), true},
		{"data of a library", "7f0000001000-7f0000003000 r--p 00001000 08:1f 1234 /lib/libssl.so", named("", false), false},
		{"the vdso", "7f0000001000-7f0000003000 r-xp 00000000 00:00 0 [vdso]",
			&Mapping{Start: base.Start, End: base.End, Name: "[vdso]"}, false},
		{"vsyscall", "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]",
			&Mapping{Start: 0xffffffffff600000, End: 0xffffffffff601000, Name: "[vsyscall]"}, false},
		{"nothing", "", nil, false},
		{"no inode", "7f0000001000-7f0000003000 r-xp 00001000 08:1f", nil, false},
		{"an empty range", "7f0000001000-7f0000001000 r-xp 00001000 08:1f 1 /x", nil, false},
		{"a range that ends before it begins", "2000-1000 r-xp 00001000 08:1f 1 /x", nil, false},
		{"more than 64 bits", "17f000000000000000-7f0000001000 r-xp 0 08:1f 1 /x", nil, false},
		{"an offset that overflows", "1000-3000 r-xp fffffffffffff000 08:1f 1 /x", nil, false},
		{"a sign", "+1000-3000 r-xp 0 08:1f 1 /x", nil, false},
		{"a device of more than 32 bits", "1000-3000 r-xp 0 108000000:1f 1 /x", nil, false},
		{"fewer permissions", "1000-3000 r-x 0 08:1f 1 /x", nil, false},
	} {
		l, ok := parseLine([]byte(c.text))
		if ok != (c.want != nil) || ok && cmp.Diff(*c.want, l.Mapping) != "" || l.worth() != c.worth {
			t.Errorf("%s: %+v, %v, worth %v", c.rule, l, ok, l.worth())
		}
	}
}

// TestEach reads all lines, whatever their length.
func TestEach(t *testing.T) {
	const one, two = "1000-2000 r-xp 00000000 08:01 1 /", "2000-3000 r-xp 00000000 08:01 2 /b"
	for rule, text := range map[string]string{
		"lines":                           one + "\n" + two + "\n",
		"no end":                          one + "\n" + two,
		"one that is none":                one + "\nx\n\n" + two + "\n",
		"a name longer than longest":      one + strings.Repeat("a", longest) + "\n" + two + "\n",
		"a line in such a name":           one + strings.Repeat("a", longest-len(one)) + "9000-a000 r-xp 00000000 08:01 9 /c\n" + two + "\n",
		"a line in a name of that length": one + strings.Repeat("a", 2*longest-len(one)) + "9000-a000 r-xp 00000000 08:01 9 /c\n" + two + "\n",
	} {
		var got []uint64
		if err := each(bufio.NewReaderSize(strings.NewReader(text), longest), func(l line) bool { got = append(got, l.Inode); return true }); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]uint64{1, 2}, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", rule, diff)
		}
	}
}

// mmap2 is the body of a PERF_RECORD_MMAP2.
func mmap2(m Mapping, name string) []byte {
	e := binary.NativeEndian
	b := e.AppendUint32(nil, uint32(m.PID))
	b = e.AppendUint32(b, uint32(m.PID))
	for _, n := range []uint64{m.Start, m.End - m.Start, m.Offset} {
		b = e.AppendUint64(b, n)
	}
	b = e.AppendUint32(b, m.Major)
	b = e.AppendUint32(b, m.Minor)
	b = e.AppendUint64(b, m.Inode)
	b = e.AppendUint64(b, m.Generation)
	b = e.AppendUint64(b, 5|2<<32) // PROT_READ|PROT_EXEC, MAP_PRIVATE
	b = append(b, name...)
	return append(b, make([]byte, 8-len(name)%8)...)
}

func TestParseMmap2(t *testing.T) {
	good := Mapping{PID: 7, Start: 0x1000, End: 0x3000, Offset: 0x4000, Major: 254, Minor: 3, Inode: 9, Generation: 77, Name: "/lib/x"}
	deleted := good
	deleted.Deleted = true
	change := func(f func(*Mapping)) []byte {
		m := good
		f(&m)
		return mmap2(m, "/lib/x")
	}
	for _, c := range []struct {
		rule string
		body []byte
		want *Mapping
	}{
		{"a library", mmap2(good, "/lib/x"), &good},
		{"a deleted file", mmap2(good, "/lib/x (deleted)"), &deleted},
		{"nothing", nil, nil},
		{"cut off", mmap2(good, "/lib/x")[:63], nil},
		{"no name", mmap2(good, "/lib/x")[:64], nil},
		{"a name without an end", mmap2(good, "/lib/x")[:70], nil},
		{"a process of another namespace", change(func(m *Mapping) { m.PID = 0 }), nil},
		{"one that has ended", change(func(m *Mapping) { m.PID = -1 }), nil},
		{"no bytes", change(func(m *Mapping) { m.End = m.Start }), nil},
		{"addresses that overflow", change(func(m *Mapping) { m.Start, m.End = math.MaxUint64-10, 10 }), nil},
		{"an offset that overflows", change(func(m *Mapping) { m.Offset = math.MaxUint64 - 10 }), nil},
	} {
		m, ok := parseMmap2(c.body)
		if ok != (c.want != nil) || ok && cmp.Diff(*c.want, m) != "" {
			t.Errorf("%s: %+v, %v", c.rule, m, ok)
		}
	}
}

func TestParseProc(t *testing.T) {
	stat := "7 (a) b (c) S " + strings.Repeat("1 ", 18) + "4242 12345678 9\n"
	if s, ok := parseStat([]byte(stat)); !ok || s != (state{4242, 12345678}) {
		t.Errorf("%+v, %v", s, ok)
	}
	for _, text := range []string{"", "7 (a) S 1", "7 (a) S " + strings.Repeat("1 ", 18) + "x 5"} {
		if s, ok := parseStat([]byte(text)); ok {
			t.Errorf("%q: %+v", text, s)
		}
	}
	if uid, ok := process.ParseUID([]byte("Name:\tUid:\t5\nUmask:\t0\nUid:\t10123\t0\t0\t0\nGid:\t1\n")); !ok || uid != 10123 {
		t.Errorf("uid %d, %v", uid, ok)
	}
	for _, text := range []string{"", "Name:\tx\nUid:\t1", "Name:\tx\nUid:\t-1\t0", "Name:\tx\nUid:\t4294967296\t0"} {
		if uid, ok := process.ParseUID([]byte(text)); ok {
			t.Errorf("%q: %d", text, uid)
		}
	}
	for _, c := range []struct {
		pid, tid int32
		want     bool
	}{{5, 5, true}, {5, 6, false}, {0, 0, false}, {-1, -1, false}} {
		b := binary.NativeEndian.AppendUint32(nil, uint32(c.pid))
		if pid, ok := parseComm(binary.NativeEndian.AppendUint32(b, uint32(c.tid))); ok != c.want || ok && pid != int(c.pid) {
			t.Errorf("name of %d in %d: %v", c.tid, c.pid, ok)
		}
	}
	if _, ok := parseComm(nil); ok {
		t.Error("a name of nobody")
	}
}

// TestSeen knows files again, and tells them from those that had their inodes before.
func TestSeen(t *testing.T) {
	k := mark{node: node{1, 2, 3}, offset: 4096}
	of := func(generation uint64, name string) *Mapping { return &Mapping{Generation: generation, Name: name} }
	for _, c := range []struct {
		rule     string
		put, ask *Mapping
		want     bool
	}{
		{"in maps twice", of(0, "/a"), of(0, "/a"), true},
		{"in maps of two mount namespaces", of(0, "/a"), of(0, "/b"), true},
		{"in maps, then told", of(0, "/a"), of(5, "/a"), true},
		{"in maps, then another of the inode", of(0, "/a"), of(5, "/b"), false},
		{"told twice", of(5, "/a"), of(5, "/b"), true},
		{"told, then another of the inode", of(5, "/a"), of(6, "/a"), false},
		{"told, then in maps", of(5, "/a"), of(0, "/a"), true},
	} {
		s := newSeen(10)
		s.put(k, c.put)
		if s.known(k, c.ask) != c.want {
			t.Errorf("%s: known is %v", c.rule, !c.want)
		}
	}
	s := newSeen(10)
	s.put(k, of(0, "/a"))
	if !s.known(k, of(5, "/a")) || s.known(k, of(6, "/a")) {
		t.Error("a generation is not learned")
	}
	for n := range uint64(1000) {
		s.put(mark{offset: n}, of(0, "/x"))
		if !s.known(k, of(5, "/a")) {
			t.Fatalf("forgotten after %d others, and was asked for", n)
		}
		if len(s.young)+len(s.old) > 20 {
			t.Fatalf("%d and %d marks", len(s.young), len(s.old))
		}
	}
	if s.known(mark{offset: 1}, of(0, "/x")) {
		t.Error("nothing was forgotten")
	}
}

func FuzzParseMaps(f *testing.F) {
	f.Add([]byte("7f0000001000-7f0000003000 r-xp 00001000 08:1f 1234 /lib/libssl.so\n1000-2000 r--p 0 08:01 1 /a\\012 (deleted)\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		count := 0
		if err := each(bufio.NewReaderSize(bytes.NewReader(b), longest), func(l line) bool {
			count++
			if l.Start >= l.End || l.Offset+(l.End-l.Start) < l.Offset || len(l.Name) > longest {
				t.Errorf("%+v", l)
			}
			return true
		}); err != nil || count > 1+bytes.Count(b, []byte{'\n'}) {
			t.Errorf("%d lines, %v", count, err)
		}
		parseStat(b)
		process.ParseUID(b)
	})
}

func FuzzRecord(f *testing.F) {
	f.Add(mmap2(Mapping{PID: 7, Start: 4096, End: 8192, Inode: 9}, "/lib/x (deleted)"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, ok := parseMmap2(b); ok && (m.PID <= 0 || m.Start >= m.End || m.Offset+(m.End-m.Start) < m.Offset || strings.Contains(m.Name, "\x00")) {
			t.Errorf("%+v", m)
		}
		if pid, ok := parseComm(b); ok && pid <= 0 {
			t.Errorf("name of %d", pid)
		}
	})
}
