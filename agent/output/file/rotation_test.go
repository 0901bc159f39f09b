// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

// clocks are those of an opener under test.
type clocks struct {
	wall time.Time
	boot time.Duration
}

func (c *clocks) advance(d time.Duration) { c.wall, c.boot = c.wall.Add(d), c.boot+d }

// turned makes an opener of a command line, in the working directory, that begins at 14:03:12.
func turned(t *testing.T, argv string) (*opener, *clocks) {
	t.Helper()
	o, err := parse(t, argv)
	if err != nil {
		t.Fatal(err)
	}
	c := &clocks{at(), time.Hour}
	o.now, o.boot = func() time.Time { return c.wall }, func() time.Duration { return c.boot }
	o.tmp = "no such directory"
	t.Cleanup(func() {
		if o.repairs != nil {
			<-o.repairs
		}
	})
	return o, c
}

// The time of a file is counted from when Lasts is asked, on the boot clock, and that of a slice from its first file.
func TestLasts(t *testing.T) {
	t.Chdir(t.TempDir())
	o, c := turned(t, "-w x-%H%M -C 1 -G 60")
	next := func() {
		t.Helper()
		if _, err := fill(t, o, "any", "x"); err != nil {
			t.Fatal(err)
		}
	}
	next()
	c.advance(time.Hour) // before the first packet
	check := func(want time.Duration) {
		t.Helper()
		if got := o.Lasts(); got != want {
			t.Errorf("it lasts %v, want %v", got, want)
		}
	}
	check(time.Minute)
	c.wall = c.wall.Add(-time.Hour) // only the boot clock counts
	c.advance(20 * time.Second)
	next()
	check(40 * time.Second)
	c.advance(40 * time.Second)
	if o.Full(plugin.Filling{Packets: 1, Over: o.over()}) != plugin.Next {
		t.Error("it goes on")
	}
	next()
	check(time.Minute)
	if o, _ := turned(t, "-w x -C 1"); o.Lasts() != 0 {
		t.Error("without -G a file ends")
	}
}

// A reader of a file that is replaced reads on in the old one.
func TestReplacedFileStaysReadable(t *testing.T) {
	t.Chdir(t.TempDir())
	o, _ := turned(t, "-w x -C 1 -W 1")
	if _, err := fill(t, o, "any", "first"); err != nil {
		t.Fatal(err)
	}
	r, err := os.Open("x")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := fill(t, o, "any", "second"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "first" {
		t.Errorf("read %q, %v", got, err)
	}
}

// Where the clock was set back, a name that comes again belongs to a file that is not to go.
func TestClockSetBack(t *testing.T) {
	t.Chdir(t.TempDir())
	o, c := turned(t, "-w x-%H%M.pcapng -G 60")
	for _, text := range []string{"A", "B"} {
		if _, err := fill(t, o, "any", text); err != nil {
			t.Fatal(err)
		}
		o.Lasts()
		if err := os.Chtimes("x-1403.pcapng", c.wall, c.wall); err != nil {
			t.Fatal(err)
		}
		c.advance(time.Minute)
		c.wall = c.wall.Add(-61 * time.Second)
	}
	if diff := cmp.Diff(map[string]string{"x-1403.pcapng": "A", "x-1403-1.pcapng": "B"}, contents(t)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// Without rotation, another file than the first is one that the user has not named: it takes a name that is free.
func TestFilesOnDemand(t *testing.T) {
	for argv, want := range map[string]map[string]string{
		"-w x":          {"x": "A", "x1": "old", "x2": "B", "x3": "C"},
		"-w x-%H -G 60": {"x-14": "A", "x-141": "B", "x-142": "C", "x": "old", "x1": "old"},
	} {
		t.Chdir(tree(t, map[string]string{"x": "old", "x1": "old"}))
		o, _ := turned(t, argv)
		for _, text := range []string{"A", "B", "C"} {
			if _, err := fill(t, o, "any", text); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(want, contents(t)); diff != "" {
			t.Errorf("%s: files (-want +got):\n%s", argv, diff)
		}
	}
}

// What is no regular file cannot be replaced by one, and stays.
func TestRotationRefuses(t *testing.T) {
	for name, place := range map[string]func(string) error{
		"is no regular file":             func(path string) error { return unix.Mkfifo(path, 0o600) },
		"x1 is no regular file":          func(path string) error { return os.Mkdir(path+"1", 0o700) },
		"x is no regular file, and":      func(path string) error { return os.Symlink("y", path) },
		"being written by another proce": func(path string) error { return hold(t, path) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			if err := place("x"); err != nil {
				t.Fatal(err)
			}
			before := listed(t, ".")
			o, _ := turned(t, "-w x -C 1")
			_, err := fill(t, o, "any", "A")
			if err == nil {
				_, err = fill(t, o, "any", "A")
				before = append(before, "x")
			}
			checkUsage(t, err, name)
			if diff := cmp.Diff(slices.Sorted(slices.Values(before)), listed(t, ".")); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

// hold makes a file that somebody writes until the test ends.
func hold(t *testing.T, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	t.Cleanup(func() { f.Close() })
	return errors.Join(lock(int(f.Fd())), setMark(int(f.Fd()), markOpen))
}

// A file that another capture writes is not emptied.
func TestHeldFileIsRefused(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := errors.Join(os.WriteFile("x", []byte("precious"), 0o600), hold(t, "x")); err != nil {
		t.Fatal(err)
	}
	_, err := fill(t, &opener{write: "x"}, "any", "new")
	checkUsage(t, err, "x is being written by another process")
	if diff := cmp.Diff(map[string]string{"x": "precious"}, contents(t)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestModeAndOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving files away needs root")
	}
	t.Chdir(t.TempDir())
	defer unix.Umask(unix.Umask(0o077))
	o, _ := turned(t, "-w x -C 1 --file-mode 0644 -Z shell")
	for range 2 {
		if _, err := fill(t, o, "any", "A"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"x", "x1"} {
		if diff := cmp.Diff(owner{shell, shell, 0o644}, ownerOf(t, name)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
