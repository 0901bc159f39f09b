// SPDX-License-Identifier: Apache-2.0

package apps

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// line is that of a package in a list.
func line(name string, uid int) string {
	return fmt.Sprintf("%s %d 0 /data/user/0/%s default:targetSdkVersion=33 3003 0 42 1 @system\n", name, uid, name)
}

// phone is a list of packages.
var phone = line("com.android.chrome", 10123) + line("com.google.android.gms", 10050) + line("com.google.android.gsf", 10050) +
	line("com.example.one", 10200) + line("com.example.two", 10201) +
	line("android", 1000) + line("com.android.settings", 1000) + line("com.a", 1000) + line("com.b", 1000) + line("com.c", 1000) + line("com.d", 1000)

// lines is what a Book has logged.
type lines struct{ strings.Builder }

func (l *lines) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func open(t *testing.T, path string) (*Book, *lines) {
	t.Helper()
	var said lines
	b, err := Open(path, said.log())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, &said
}

// book has a list of that text.
func book(t *testing.T, text string) *Book {
	t.Helper()
	path := filepath.Join(t.TempDir(), "packages.list")
	write(t, path, text)
	b, _ := open(t, path)
	b.proc = t.TempDir()
	return b
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace puts a list in place as Android does.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".tmp", text)
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

// await waits for a change.
func await(t *testing.T, b *Book) {
	t.Helper()
	select {
	case <-b.Changes():
	case <-time.After(10 * time.Second):
		t.Fatal("no change within 10 s")
	}
}

func unchanged(t *testing.T, b *Book) {
	t.Helper()
	select {
	case <-b.Changes():
		t.Error("a change that is none")
	default:
	}
}

func checkNames(t *testing.T, b *Book, uid uint32, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, b.Names(uid)); diff != "" {
		t.Errorf("names of %d, -want +got:\n%s", uid, diff)
	}
}

func TestNames(t *testing.T) {
	b := book(t, phone)
	for uid, want := range map[uint32][]string{
		10123:      {"com.android.chrome"},
		1010123:    {"com.android.chrome"},
		20123:      {"com.android.chrome"},
		1020123:    {"com.android.chrome"},
		10050:      {"com.google.android.gms", "com.google.android.gsf"},
		20050:      {"com.google.android.gms", "com.google.android.gsf"},
		1000:       {"android", "com.a", "com.android.settings", "com.b", "+2"},
		0:          {"root"},
		1051:       {"dns"},
		9999:       {"nobody"},
		10124:      nil,
		20124:      nil,
		2950:       nil,
		99123:      nil,
		4294967295: nil,
	} {
		checkNames(t, b, uid, want...)
	}
	if n := testing.AllocsPerRun(100, func() { b.Names(10123); b.Names(1051); b.Names(99123) }); n != 0 {
		t.Errorf("names take %v allocations", n)
	}
}

func TestWithoutList(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "packages.list"), filepath.Join(t.TempDir(), "none", "packages.list")} {
		b, said := open(t, path)
		checkNames(t, b, 0)
		checkNames(t, b, 1000)
		if said.Len() > 0 {
			t.Errorf("without %s it says %s", path, said)
		}
	}
}

func TestNoFile(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "packages.list")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, filepath.Dir(fifo)} {
		if _, err := Open(path, slog.Default()); err == nil {
			t.Errorf("%s is opened", path)
		}
	}
}

func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "packages.list")
	b, said := open(t, path)
	step := func(change func(), want ...string) {
		t.Helper()
		change()
		await(t, b)
		checkNames(t, b, 10123, want...)
	}
	step(func() { replace(t, path, line("a.b", 10123)) }, "a.b")
	step(func() { replace(t, path, line("a.b", 10123)+line("c.d", 10123)) }, "a.b", "c.d")
	step(func() { replace(t, path, line("a.b", 10124)+line("c.d", 10123)) }, "c.d")
	checkNames(t, b, 10124, "a.b")
	step(func() { write(t, path, line("e.f", 10123)) }, "e.f")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	checkNames(t, b, 10123, "e.f")
	// What is no list keeps the old one, and what is the same is no change: the next one is that of the last step.
	write(t, path, "")
	replace(t, path, "nonsense\n")
	replace(t, path, line("e.f", 10123))
	step(func() { replace(t, path, "nonsense\n"+line("g.h", 10123)) }, "g.h")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(said.String(), "1 lines of "); got != 1 {
		t.Errorf("%d warnings of a line that was skipped:\n%s", got, said)
	}
	replace(t, path, line("i.j", 10123))
	checkNames(t, b, 10123, "g.h")
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestFollowAsked(t *testing.T) {
	b := book(t, phone)
	unchanged(t, b)
	s := Selection{Apps: []string{"com.new"}}
	if r, _ := b.Rules(s); len(r.Of) > 0 || r.Others {
		t.Errorf("before it is installed: %v", r)
	}
	replace(t, b.path, phone+line("com.new", 10300))
	await(t, b)
	if r, said := b.Rules(s); !r.Admits(1010300) || r.Admits(10301) || len(said) > 0 {
		t.Errorf("after it was installed: %v, %q", r, said)
	}
	replace(t, b.path, phone+line("com.new", 10301))
	await(t, b)
	if r, _ := b.Rules(s); r.Admits(10300) || !r.Admits(10301) {
		t.Errorf("after it was installed anew: %v", r)
	}
}

func FuzzConcerns(f *testing.F) {
	event := func(mask uint32, name string) []byte {
		b := make([]byte, unix.SizeofInotifyEvent+len(name))
		binary.NativeEndian.PutUint32(b[4:], mask)
		binary.NativeEndian.PutUint32(b[12:], uint32(len(name)))
		copy(b[unix.SizeofInotifyEvent:], name)
		return b
	}
	one, lost := event(unix.IN_MOVED_TO, "list\x00\x00\x00\x00"), event(unix.IN_Q_OVERFLOW, "")
	if !concerns(append(event(unix.IN_MOVED_TO, "other\x00\x00\x00"), one...), "list") || !concerns(lost, "list") || concerns(one, "lis") || concerns(one[:20], "list") {
		f.Error("events are told apart wrongly")
	}
	f.Add(one)
	f.Add(lost)
	f.Fuzz(func(t *testing.T, b []byte) { concerns(b, "list") })
}
