// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// content are the files of the working directory.
func contents(t *testing.T) map[string]string {
	t.Helper()
	list, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range list {
		text, err := os.ReadFile(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(text)
	}
	return all
}

// step is what a writer does: it asks about a file of so many bytes a while after the one before, and begins another one if it is told to.
type step struct {
	after time.Duration
	bytes int64
}

// TestNames plays captures: each step is a packet. The n-th file holds the letter n.
func TestNames(t *testing.T) {
	const minute = time.Minute
	by := func(d time.Duration, bytes int64, n int) []step { return slices.Repeat([]step{{d, bytes}}, n) }
	tests := []struct {
		name, argv string
		files      map[string]string
		steps      []step
		want       map[string]string
		ends       bool
	}{
		{name: "-C numbers files", argv: "-w x -C 1", steps: by(0, 1e6, 3), want: map[string]string{"x": "A", "x1": "B", "x2": "C", "x3": "D"}},
		{name: "a file is kept until it has -C", argv: "-w x -C 1", steps: by(minute, 1e6-1, 3), want: map[string]string{"x": "A"}},
		{
			name: "-C and -W use names again", argv: "-w x -C 1 -W 3", steps: by(0, 1e6, 4),
			want: map[string]string{"x0": "D", "x1": "E", "x2": "C"},
		},
		{name: "as many digits as -W needs", argv: "-w x -C 1 -W 11", steps: by(0, 1e6, 1), want: map[string]string{"x00": "A", "x01": "B"}},
		{name: "ten names have one digit", argv: "-w x -C 1 -W 10", steps: by(0, 1e6, 1), want: map[string]string{"x0": "A", "x1": "B"}},
		{name: "one name", argv: "-w x -C 1 -W 1", steps: by(0, 1e6, 2), want: map[string]string{"x": "C"}},
		{
			name: "in front of what tells of compression", argv: "-w x.pcapng.gz -C 1 --compress none", steps: by(0, 1e6, 1),
			want: map[string]string{"x.pcapng.gz": "A", "x.pcapng1.gz": "B"},
		},
		{
			name: "-C replaces what is there", argv: "-w x -C 1", files: map[string]string{"x": "old", "x1": "old", "x2": "old"}, steps: by(0, 1e6, 1),
			want: map[string]string{"x": "A", "x1": "B", "x2": "old"},
		},
		{
			name: "-G", argv: "-w x-%H%M -G 60", steps: by(30*time.Second, 0, 4),
			want: map[string]string{"x-1403": "A", "x-1404": "B", "x-1405": "C"},
		},
		{
			name: "-G replaces a file of the same name", argv: "-w x-%H -G 60", steps: by(minute, 0, 2),
			want: map[string]string{"x-14": "C"},
		},
		{
			name: "-G leaves out times without packets", argv: "-w x-%H%M -G 60", steps: []step{{10 * minute, 0}},
			want: map[string]string{"x-1403": "A", "x-1413": "B"},
		},
		{
			name: "-G -W ends", argv: "-w x-%H%M -G 60 -W 2", steps: by(minute, 0, 2), ends: true,
			want: map[string]string{"x-1403": "A", "x-1404": "B"},
		},
		{
			name: "-C -G numbers files of a slice", argv: "-w x-%M -C 1 -G 60",
			steps: []step{{0, 1e6}, {20 * time.Second, 1e6}, {40 * time.Second, 1}, {0, 1e6}},
			want:  map[string]string{"x-03": "A", "x-031": "B", "x-032": "C", "x-04": "D", "x-041": "E"},
		},
		{
			name: "-C -G -W uses the names of a slice again", argv: "-w x-%M -C 1 -G 60 -W 2",
			steps: []step{{0, 1e6}, {0, 1e6}, {minute, 0}},
			want:  map[string]string{"x-030": "C", "x-031": "B", "x-040": "D"},
		},
		{
			name: "dumpcap's names", argv: "-w x.pcapng -b filesize:1", steps: by(time.Second, 1000, 2),
			want: map[string]string{"x_00001_20261122140312.pcapng": "A", "x_00002_20261122140313.pcapng": "B", "x_00003_20261122140314.pcapng": "C"},
		},
		{
			name: "dumpcap's names without an extension, in a ring", argv: "-w .x -b filesize:1 -b files:2", steps: by(time.Second, 1000, 3),
			want: map[string]string{".x_00003_20261122140314": "C", ".x_00004_20261122140315": "D"},
		},
		{
			name: "dumpcap's names with two extensions", argv: "-w x.y.pcapng.gz -b duration:1 --compress none", steps: by(time.Second, 0, 1),
			want: map[string]string{"x.y_00001_20261122140312.pcapng.gz": "A", "x.y_00002_20261122140313.pcapng.gz": "B"},
		},
		{
			name: "-b duration begins anew with each file", argv: "-w x -b duration:60,filesize:1", steps: []step{{40 * time.Second, 1000}, {40 * time.Second, 0}},
			want: map[string]string{"x_00001_20261122140312": "A", "x_00002_20261122140352": "B"},
		},
		{
			name: "-b interval ends where the clock has a multiple", argv: "-w x -b interval:60",
			steps: []step{{47 * time.Second, 0}, {time.Second, 0}, {59 * time.Second, 0}, {time.Second, 0}},
			want:  map[string]string{"x_00001_20261122140312": "A", "x_00002_20261122140400": "B", "x_00003_20261122140500": "C"},
		},
		{
			name: "-a files ends", argv: "-w x -C 1 -a files:2", steps: by(0, 1e6, 2), ends: true,
			want: map[string]string{"x": "A", "x1": "B"},
		},
		{name: "-a filesize ends", argv: "-w x -a filesize:1", steps: by(0, 1000, 1), ends: true, want: map[string]string{"x": "A"}},
		{
			name: "generated names in a ring", argv: "-C 1 -W 2", steps: by(time.Second, 1e6, 2), files: map[string]string{"any-20261122-140312.pcapng": "old"},
			want: map[string]string{"any-20261122-140312.pcapng": "old", "any-20261122-140313.pcapng": "B", "any-20261122-140314.pcapng": "C"},
		},
		{
			name: "generated names of the same second", argv: "-C 1", steps: by(0, 1e6, 2),
			want: map[string]string{"any-20261122-140312.pcapng": "A", "any-20261122-140312-1.pcapng": "B", "any-20261122-140312-2.pcapng": "C"},
		},
		{
			name: "a number that is free again is not used again", argv: "-C 1 -W 2", steps: by(0, 1e6, 3),
			want: map[string]string{"any-20261122-140312-2.pcapng": "C", "any-20261122-140312-3.pcapng": "D"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(tree(t, tt.files))
			o, c := turned(t, tt.argv)
			letter := "A"
			write := func() {
				if _, err := fill(t, o, "any", letter); err != nil {
					t.Fatal(err)
				}
				// Of the time under test: a name that comes again may be one from a time that is to come.
				for name, text := range contents(t) {
					if text == letter {
						if err := os.Chtimes(name, c.wall, c.wall); err != nil {
							t.Fatal(err)
						}
					}
				}
				letter = string(letter[0] + 1)
				o.Lasts()
			}
			for name := range tt.files {
				if err := os.Chtimes(name, c.wall, c.wall); err != nil {
					t.Fatal(err)
				}
			}
			write()
			ended := false
			for _, s := range tt.steps {
				c.advance(s.after)
				switch o.Full(plugin.Filling{Bytes: s.bytes, Packets: 1}) {
				case plugin.Next:
					write()
				case plugin.End:
					ended = true
				}
			}
			if diff := cmp.Diff(tt.want, contents(t)); diff != "" || ended != tt.ends {
				t.Errorf("ended %v; files (-want +got):\n%s", ended, diff)
			}
		})
	}
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
	if o.Full(plugin.Filling{Packets: 1}) != plugin.Next {
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
			before := names(t)
			o, _ := turned(t, "-w x -C 1")
			_, err := fill(t, o, "any", "A")
			if err == nil {
				_, err = fill(t, o, "any", "A")
				before = append(before, "x")
			}
			checkUsage(t, err, name)
			if diff := cmp.Diff(slices.Sorted(slices.Values(before)), names(t)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

func names(t *testing.T) []string {
	t.Helper()
	list, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range list {
		all = append(all, e.Name())
	}
	return all
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

// The command gets the name as it is, whatever is in it.
func TestCommand(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"x", "a b", "$(touch stolen)", "`touch stolen`", "it's", "-rf", "new\nline", `back\slash`, ";touch stolen"} {
		o, _ := turned(t, "-C 1")
		o.write = name
		ended := make(chan error, 1)
		o.then = &commands{text: "cat >out", ended: func(path string, err error) { ended <- err }}
		if _, err := fill(t, o, "any", name); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		o.then.text = `printf '%s' >out`
		o.then.run(name)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		want := name
		if strings.HasPrefix(name, "-") {
			want = "./" + name
		}
		if got, err := os.ReadFile("out"); err != nil || string(got) != want {
			t.Errorf("%q: the command got %q, %v", name, got, err)
		}
	}
	if slices.Contains(names(t), "stolen") {
		t.Error("a name was run")
	}
	ended := make(chan error, 1)
	c := &commands{text: "exit 3; :", ended: func(_ string, err error) { ended <- err }}
	c.run("x")
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("a command that fails: %v", err)
	}
	if n := c.running.Load(); n != 0 {
		t.Errorf("%d commands run", n)
	}
}

// Commands that never end do not fill up the phone.
func TestCommandsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := os.OpenFile(path, os.O_RDWR, 0) // opening it waits for nobody then
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ended := make(chan error, mostCommands)
	c := &commands{text: "dd bs=1 count=1 of=/dev/null status=none <", ended: func(_ string, err error) { ended <- err }}
	for range mostCommands + 5 {
		c.run(path)
	}
	if n := c.running.Load(); n != mostCommands {
		t.Errorf("%d commands run", n)
	}
	if _, err := w.Write(make([]byte, mostCommands)); err != nil { // a byte ends one
		t.Fatal(err)
	}
	for range mostCommands {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestSplitName(t *testing.T) {
	got := map[string]string{}
	for _, name := range []string{"x", "x.pcapng", "x.pcapng.gz", ".x", ".x.y", "d.e/x", "x.zst", ".gz", "x."} {
		stem, ext := splitName(name)
		got[name] = stem + "|" + ext
	}
	want := map[string]string{
		"x": "x|", "x.pcapng": "x|.pcapng", "x.pcapng.gz": "x|.pcapng.gz", ".x": ".x|", ".x.y": ".x|.y", "d.e/x": "d.e/x|", "x.zst": "x|.zst",
		".gz": "|.gz", "x.": "x|.",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("of %v (-want +got):\n%s", slices.Collect(maps.Keys(want)), diff)
	}
}
