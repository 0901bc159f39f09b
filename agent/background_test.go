// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// background is a daemon with its files in a directory of its own.
type background struct {
	nettest.Space
	dir string
	pid int
}

// file returns a path of the daemon's.
func (b *background) file(name string) string { return filepath.Join(b.dir, name) }

// argv is the command line that starts it: program's, with args, into the file "f".
func (b *background) argv(program string, args ...string) []string {
	return append([]string{program, "--daemon", "--pid-file", b.file("pid"), "--socket", b.file("sock"), "--log", b.file("log"),
		"--ready-file", b.file("ready"), "-w", b.file("f"), "-i", "veth0"}, args...)
}

// ends runs a command to its end.
func (b *background) ends(argv ...string) (stdout, stderr string, code int) {
	cmd := b.Command(argv...)
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	_ = cmd.Run() // the code says it
	return out.String(), said.String(), cmd.ProcessState.ExitCode()
}

// launch starts a daemon, which is killed at the end of the test if it has not ended by then.
func launch(t *testing.T, near nettest.Space, program string, args ...string) *background {
	t.Helper()
	b := &background{Space: near, dir: t.TempDir()}
	b.start(t, program, args...)
	return b
}

func (b *background) start(t *testing.T, program string, args ...string) {
	t.Helper()
	_, stderr, code := b.ends(b.argv(program, args...)...)
	lines := strings.SplitAfter(stderr, "\n")
	if b.pid > 0 && strings.Contains(lines[0], "ended without removing its pid file") { // it was killed
		lines = lines[1:]
	}
	if code != 0 || strings.Join(lines, "") != "capturing on veth0 to "+b.file("f")+"\n" {
		t.Fatalf("code %d:\n%s", code, stderr)
	}
	b.began(t)
}

// began finds the daemon that was started by its pid file, and has it killed at the end of the test if it has not ended by then.
func (b *background) began(t *testing.T) {
	t.Helper()
	text, err := os.ReadFile(b.file("pid"))
	must(t, err)
	b.pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	must(t, err)
	pid := b.pid
	t.Cleanup(func() {
		if alive(pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
}

// alive tells whether a process is there and has not ended: nobody waits for a daemon but init.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

// ask has the daemon asked, and fails the test unless it does what is asked for.
func (b *background) ask(t *testing.T, words ...string) string {
	t.Helper()
	out, stderr, code := b.ends(append([]string{"agent", words[0], "--socket", b.file("sock")}, words[1:]...)...)
	if code != 0 || stderr != "" {
		t.Fatalf("%s: code %d\n%s%s", words, code, stderr, b.log(t))
	}
	return out
}

// json is ask for a result, of which nothing is left from before.
func (b *background) json(t *testing.T, result any, what string) {
	t.Helper()
	reflect.ValueOf(result).Elem().SetZero()
	must(t, json.Unmarshal([]byte(b.ask(t, what, "--json")), result))
}

// awaitCaptured waits until so many packets are in the files, and flushes what is on its way.
func (b *background) awaitCaptured(t *testing.T, n int) {
	t.Helper()
	var s stats
	for end := time.Now().Add(nettest.Patience); time.Now().Before(end); {
		b.ask(t, "flush")
		if b.json(t, &s, "stats"); s.Captured >= uint64(n) {
			return
		}
	}
	t.Fatalf("%d packets captured, and not %d:\n%s", s.Captured, n, b.log(t))
}

func (b *background) log(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(b.file("log"))
	must(t, err)
	return string(text)
}

// awaitLog waits until text stands in the log.
func awaitLog(t *testing.T, b *background, text string) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, b.file("log"), unix.IN_MODIFY)
	must(t, err)
	for !strings.Contains(b.log(t), text) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(nettest.Patience.Milliseconds()))
		if n == 0 || err != nil && err != unix.EINTR {
			t.Fatalf("the log does not say %q (%v):\n%s", text, err, b.log(t))
		}
		_, err = unix.Read(fd, make([]byte, 4096))
		must(t, err)
	}
}

// gone fails the test if anything of the daemon is there but its log and what it captured.
func (b *background) gone(t *testing.T) {
	t.Helper()
	if alive(b.pid) {
		t.Errorf("pid %d runs:\n%s", b.pid, b.log(t))
	}
	for _, name := range []string{"pid", "sock", "ready"} {
		if _, err := os.Lstat(b.file(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there (%v)", name, err)
		}
	}
	nothingLeft(t, b.Space)
}
