// SPDX-License-Identifier: Apache-2.0

package file

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

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
	if slices.Contains(listed(t, "."), "stolen") {
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
