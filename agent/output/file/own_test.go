// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

// marked makes a file of so many bytes that carries a mark; old ones have a low age.
func marked(t *testing.T, path, mark string, bytes, age int) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.Write(make([]byte, bytes))
	if mark != "" {
		err = errors.Join(err, setMark(int(f.Fd()), mark))
	}
	when := time.Unix(1e9+int64(age), 0)
	if err := errors.Join(err, os.Chtimes(path, when, when)); err != nil {
		t.Fatal(err)
	}
}

// A file is removed only if the name is still that of the file that was looked at, with no other name, and nobody writes it.
func TestRemoveLooksAgain(t *testing.T) {
	for name, exchange := range map[string]func(path string) error{
		"a link":       func(path string) error { return errors.Join(os.Remove(path), os.Symlink("precious", path)) },
		"another file": func(path string) error { return errors.Join(os.Rename(path, path+"2"), os.Rename("precious", path)) },
		"another own file": func(path string) error {
			return errors.Join(os.Rename(path, path+"2"), os.WriteFile(path, nil, 0o600), unix.Setxattr(path, markName, []byte(markDone), 0))
		},
		"another name": func(path string) error { return os.Link(path, path+"2") },
		"no mark":      func(path string) error { return unix.Removexattr(path, markName) },
		"a FIFO":       func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
		"nothing":      os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			disk := smallDisk(t, "1m")
			t.Chdir(disk)
			marked(t, "x", markDone, 10, 1)
			marked(t, "precious", "", 10, 1)
			d, err := openDirectory(".", 0)
			if err != nil {
				t.Fatal(err)
			}
			defer d.close()
			own, _, err := d.own(nil)
			if err != nil || len(own) != 1 || own[0].name != "x" {
				t.Fatalf("own files %+v, %v", own, err)
			}
			if err := exchange("x"); err != nil {
				t.Fatal(err)
			}
			before := listed(t, ".")
			if err := d.remove(own[0], false); err == nil {
				t.Error("it was removed")
			}
			if err := d.unlink(own[0], false); err == nil && name != "another name" && name != "no mark" {
				t.Error("its name was removed")
			} else if err != nil {
				if diff := cmp.Diff(before, listed(t, ".")); diff != "" {
					t.Errorf("files (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// The mark tells whether a file was closed.
func TestMark(t *testing.T) {
	disk := smallDisk(t, "1m")
	path := filepath.Join(disk, "x")
	f := next(t, &opener{write: path})
	mark := func() string {
		r, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		return markOf(int(r.Fd()))
	}
	if got := mark(); got != markOpen {
		t.Errorf("mark %q while it is written", got)
	}
	if err := f.(plugin.Syncer).Sync(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if got := mark(); got != markDone {
		t.Errorf("mark %q after it was closed", got)
	}
	if err := f.(plugin.Syncer).Sync(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("sync after close: %v", err)
	}
	// A file of the user's that a capture overwrites becomes its own.
	if _, err := fill(t, &opener{write: path}, "any", "x"); err != nil || mark() != markDone {
		t.Errorf("mark %q after it was written again, %v", mark(), err)
	}
}

// What is remembered of a directory never stands for what has changed in it.
func TestOwnFilesAreLookedAtAgain(t *testing.T) {
	disk := smallDisk(t, "1m")
	in := func(name string) string { return filepath.Join(disk, name) }
	d, err := openDirectory(disk, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	var seen map[string]entry
	check := func(want ...string) {
		t.Helper()
		var own []entry
		var err error
		own, seen, err = d.own(seen)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range own {
			got = append(got, fmt.Sprint(e.name, " ", e.size))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if n := len(listed(t, disk)); len(seen) != n {
			t.Errorf("%d files are remembered, of %d", len(seen), n)
		}
	}
	marked(t, in("a"), markDone, 1, 1)
	marked(t, in("b"), markOpen, 2, 2)
	marked(t, in("c"), "", 3, 3)
	marked(t, in("d"), markDone, 4, 4)
	check("a 1", "b 2", "d 4")
	if err := errors.Join(os.WriteFile(in("b"), make([]byte, 20), 0o600), os.Chtimes(in("b"), time.Time{}, time.Unix(0, 1))); err != nil {
		t.Fatal(err)
	}
	check("b 20", "a 1", "d 4") // in another order, too
	if err := unix.Setxattr(in("c"), markName, []byte(markDone), 0); err != nil {
		t.Fatal(err)
	}
	check("b 20", "a 1", "c 3", "d 4")
	if err := errors.Join(os.WriteFile(in("new"), nil, 0o600), os.Rename(in("new"), in("a")), os.Link(in("d"), in("e")), os.Remove(in("b"))); err != nil {
		t.Fatal(err)
	}
	check("c 3")
}
