// SPDX-License-Identifier: Apache-2.0

package mapped

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/agent/perf"
)

// find is what was found, and what the file holds.
type find struct {
	Mapping
	content []byte
}

// finds takes what is found of files whose name has a part, the test's directory.
func finds(t *testing.T, part string) (chan find, func(Mapping, *os.File)) {
	found := make(chan find, 100)
	return found, func(m Mapping, f *os.File) {
		defer f.Close()
		if !strings.Contains(m.Name, part) {
			return
		}
		content, err := io.ReadAll(f)
		if err != nil {
			t.Error(err)
		}
		found <- find{m, content}
	}
}

func next(t *testing.T, found chan find) find {
	t.Helper()
	select {
	case f := <-found:
		return f
	case <-time.After(patience):
		t.Fatal("nothing is found")
	}
	return find{}
}

// started is a watch of the kernel's that has looked at all processes.
func started(t *testing.T, c Config) *Watcher {
	t.Helper()
	root(t)
	e, err := openEvents(c)
	if err != nil {
		t.Fatal(err)
	}
	w := newWatcher(c)
	w.events = e
	w.done.Go(w.run)
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-w.Ready():
	case <-time.After(patience):
		t.Fatal("the first scan does not end")
	}
	return w
}

// BenchmarkRunning is a look at all that runs.
func BenchmarkRunning(b *testing.B) {
	for b.Loop() {
		if err := Running(config(func(_ Mapping, f *os.File) { _ = f.Close() })); err != nil {
			b.Fatal(err)
		}
	}
}

func config(found func(Mapping, *os.File)) Config {
	return Config{Found: found, Log: slog.New(slog.DiscardHandler)}
}

// library writes a file with a real ELF's beginning at an offset, and returns what it holds.
func library(t *testing.T, name string, offset int) []byte {
	t.Helper()
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	content := make([]byte, offset+3*os.Getpagesize())
	if _, err := io.ReadFull(exe, content[offset:]); err != nil {
		t.Fatal(err)
	}
	copy(content[len(content)-100:], name) // no two are alike
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return content
}

// TestFind finds what a process maps, before the watch begins and while it runs, and none of what is no library.
func TestFind(t *testing.T) {
	page := os.Getpagesize()
	for _, c := range []struct {
		rule    string
		flags   uintptr
		base    int
		deleted bool
		prepare func(*testing.T, *mapper, string)
	}{
		{rule: "a library"},
		{rule: "a library in an APK", base: 5 * page},
		{rule: "a deleted file", deleted: true},
		{rule: "another mount namespace", flags: unix.CLONE_NEWNS, prepare: func(t *testing.T, m *mapper, name string) {
			spare := filepath.Join(t.TempDir(), "spare")
			m.do(t, "copy %s %s", name, spare)
			m.do(t, "mount %s", filepath.Dir(name))
			m.do(t, "copy %s %s", spare, name)
			if err := os.Remove(name); err != nil { // the one that has the name here
				t.Fatal(err)
			}
		}},
	} {
		for _, when := range []string{"before", "later"} {
			t.Run(c.rule+", mapped "+when, func(t *testing.T) {
				dir := t.TempDir()
				name := filepath.Join(dir, "x.so")
				content := library(t, name, c.base)
				m := newMapper(t, c.flags)
				if c.prepare != nil {
					c.prepare(t, m, name)
				}
				found, f := finds(t, "/TestFind")
				text := filepath.Join(t.TempDir(), "text")
				if err := os.WriteFile(text, make([]byte, 3*page), 0o600); err != nil {
					t.Fatal(err)
				}
				if when == "later" {
					started(t, config(f))
				}
				m.do(t, "map %s 0", text)
				if c.deleted {
					m.do(t, "delete %s %d", name, c.base)
				} else {
					m.do(t, "map %s %d", name, c.base)
				}
				if when == "before" {
					started(t, config(f))
				}
				got := next(t, found)
				want := Mapping{PID: m.cmd.Process.Pid, Base: uint64(c.base), Offset: uint64(c.base + page), Name: name, Deleted: c.deleted}
				m2 := got.Mapping
				m2.Start, m2.End, m2.Major, m2.Minor, m2.Inode, m2.Generation = 0, 0, 0, 0, 0, 0
				if diff := cmp.Diff(want, m2); diff != "" || got.End-got.Start != uint64(page) || !bytes.Equal(got.content, content) {
					t.Errorf("%+v, the content is right: %v (-want +got):\n%s", got.Mapping, bytes.Equal(got.content, content), diff)
				}
			})
		}
	}
}

// TestFoundOnce tells of a library of two processes once, and of each that an APK has.
func TestFoundOnce(t *testing.T) {
	dir, page := t.TempDir(), os.Getpagesize()
	name := func(name string) string { return filepath.Join(dir, name) }
	apk, other, last, end := name("apk"), name("other"), name("last"), name("end")
	content := library(t, apk, 3*page)
	library(t, other, 0)
	library(t, last, 0)
	library(t, end, 0)
	if err := os.WriteFile(apk, append(content, content...), 0o600); err != nil {
		t.Fatal(err)
	}
	found, f := finds(t, dir)
	started(t, config(f))
	one, two := newMapper(t, 0), newMapper(t, 0)
	one.do(t, "map %s %d", apk, 3*page)
	got := []string{fmt.Sprint(next(t, found).Base)}
	two.do(t, "map %s %d", apk, 3*page)
	two.do(t, "map %s %d", apk, 9*page)
	two.do(t, "map %s 0", other)
	for range 2 { // in any order: when it hears of the first it sees the second
		f := next(t, found)
		got = append(got, fmt.Sprint(filepath.Base(f.Name), f.Base, f.PID == two.cmd.Process.Pid))
	}
	for _, name := range []string{last, end} { // when it has seen all that the process has with the last one it goes on to the end
		two.do(t, "map %s 0", name)
		got = append(got, filepath.Base(next(t, found).Name))
	}
	slices.Sort(got[1:3])
	want := []string{fmt.Sprint(3 * page), fmt.Sprint("apk", 9*page, true), fmt.Sprint("other", 0, true), "last", "end"}
	if diff := cmp.Diff(want, got); diff != "" || len(found) > 0 {
		t.Errorf("%d more (-want +got):\n%s", len(found), diff)
	}
}

// TestAllow leaves out processes that do not count, until they do: what zygote's child has mapped before it is an app's.
func TestAllow(t *testing.T) {
	dir := t.TempDir()
	other, own := filepath.Join(dir, "other"), filepath.Join(dir, "own")
	library(t, own, 0)
	library(t, other, 0)
	found, f := finds(t, dir)
	c := config(f)
	c.Allow = func(_ int, of uint32) bool { return of == uid }
	started(t, c)
	app, root := newMapper(t, 0), newMapper(t, 0)
	root.do(t, "map %s 0", other)
	app.do(t, "map %s 0", own)
	app.do(t, "setuid")
	app.do(t, "name app")
	if got := next(t, found); got.Name != own || got.PID != app.cmd.Process.Pid {
		t.Errorf("%+v", got.Mapping)
	}
	if len(found) > 0 {
		t.Errorf("%+v", (<-found).Mapping)
	}
}

// script is a kernel that tells what the test has it tell.
type script struct {
	*silence
	tell chan perf.Record
	fail error
}

func (s *script) Next(buf []byte, deadline time.Time) (perf.Record, []byte, error) {
	if !deadline.IsZero() {
		return s.silence.Next(buf, deadline)
	}
	select {
	case rec, ok := <-s.tell:
		if !ok {
			return rec, nil, s.fail
		}
		return rec, make([]byte, 16), nil
	case <-s.end:
		return perf.Record{}, nil, os.ErrClosed
	}
}

// TestMissed looks at the processes again when the kernel has lost mappings, and each second when it tells of none any more.
func TestMissed(t *testing.T) {
	for _, c := range []struct {
		rule string
		tell func(*script)
	}{
		{"lost records", func(s *script) { s.tell <- perf.Record{Type: unix.PERF_RECORD_LOST} }},
		{"new events", func(s *script) { s.fail = perf.ErrFresh; close(s.tell) }},
		{"no events any more", func(s *script) { s.fail = errors.New("broken"); close(s.tell) }},
	} {
		t.Run(c.rule, func(t *testing.T) {
			dir := t.TempDir()
			name := filepath.Join(dir, "so")
			library(t, name, 0)
			found, f := finds(t, dir)
			w := newWatcher(config(f))
			s := &script{silence: &silence{end: make(chan struct{})}, tell: make(chan perf.Record)}
			w.events = s
			m := newMapper(t, 0)
			w.done.Go(w.run)
			t.Cleanup(func() {
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			})
			<-w.Ready()
			m.do(t, "map %s 0", name)
			c.tell(s)
			if got := next(t, found); got.Name != name {
				t.Errorf("%+v", got.Mapping)
			}
		})
	}
}

// TestRunning finds what runs, and nothing of what is somebody else's.
func TestRunning(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "so")
	library(t, name, 0)
	m := newMapper(t, 0)
	m.do(t, "map %s 0", name)
	found, f := finds(t, dir)
	c := config(f)
	c.Allow = func(_ int, of uint32) bool { return of == uid }
	if err := Running(c); err != nil || len(found) != 0 {
		t.Errorf("%d found, %v", len(found), err)
	}
	c.Allow = nil
	if err := Running(c); err != nil || len(found) != 1 {
		t.Errorf("%d found, want 1: %v", len(found), err)
	}
	c.Proc = filepath.Join(dir, "none")
	if err := Running(c); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no procfs: %v", err)
	}
}

// TestOpenByName opens what can be had by its name only, and no other file.
func TestOpenByName(t *testing.T) {
	proc := t.TempDir()
	lib := filepath.Join(proc, "7", "root", "lib")
	if err := os.MkdirAll(lib, 0o700); err != nil {
		t.Fatal(err)
	}
	so := filepath.Join(lib, "so")
	library(t, so, 0)
	if err := os.Symlink("so", filepath.Join(lib, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(lib, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	of := func(name string) Mapping {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(lib, name), &st); err != nil {
			t.Fatal(err)
		}
		return Mapping{PID: 7, Start: 1, End: 2, Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev), Inode: st.Ino, Name: "/lib/" + name}
	}
	for _, c := range []struct {
		rule   string
		m      Mapping
		change func(*Mapping)
		ok     bool
	}{
		{"the file", of("so"), func(*Mapping) {}, true},
		{"another inode", of("so"), func(m *Mapping) { m.Inode++ }, false},
		{"another device", of("so"), func(m *Mapping) { m.Minor++ }, false},
		{"a link", of("link"), func(*Mapping) {}, false},
		{"a pipe", of("pipe"), func(*Mapping) {}, false},
		{"a deleted file", of("so"), func(m *Mapping) { m.Deleted = true }, false},
		{"no path", of("so"), func(m *Mapping) { m.Name = "lib/so" }, false},
		{"another process", of("so"), func(m *Mapping) { m.PID = 8 }, false},
	} {
		c.change(&c.m)
		f, err := Open(proc, &c.m)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.rule, err)
		}
		if err == nil && !isELF(f, 0) {
			t.Errorf("%s: the file cannot be read", c.rule)
		}
		_ = f.Close()
	}
}
