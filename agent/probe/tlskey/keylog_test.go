// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// opened opens a key log, and returns what it logs, too.
func opened(t *testing.T, path string) (*keyLog, *bytes.Buffer) {
	t.Helper()
	var said bytes.Buffer
	k, err := openKeyLog(path, slog.New(slog.NewTextHandler(&said, nil)))
	must(t, err)
	t.Cleanup(func() {
		if k.fd >= 0 {
			must(t, k.close())
		}
	})
	return k, &said
}

// holds checks what is in the file.
func holds(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	if string(got) != want {
		t.Errorf("%s has %q, want %q", filepath.Base(path), got, want)
	}
}

// line is a line that is as long as one of TLS 1.2, of connection i.
func line(i int) string {
	return string(appendLine(nil, "CLIENT_RANDOM", fmt.Appendf(nil, "%032d", i), fmt.Appendf(nil, "%048d", i)))
}

func TestAppendLine(t *testing.T) {
	random, secret := bytes.Repeat([]byte{0xab}, 32), bytes.Repeat([]byte{1}, 48)
	got := string(appendLine([]byte("x\n"), "CLIENT_TRAFFIC_SECRET_0", random, secret))
	if want := "x\nCLIENT_TRAFFIC_SECRET_0 " + strings.Repeat("ab", 32) + " " + strings.Repeat("01", 48) + "\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for _, label := range []string{"", "a", "A B", "A\nB", "A\x00", "É"} {
		if got := appendLine(nil, label, random, secret); got != nil {
			t.Errorf("%q: %q", label, got)
		}
	}
	if got := appendLine(nil, "A", random[1:], secret); got != nil {
		t.Errorf("short random: %q", got)
	}
	if got := appendLine(nil, "A", random, nil); got != nil {
		t.Errorf("no secret: %q", got)
	}
}

// TestKeyLogMade has a new file be for the owner of its directory alone.
func TestKeyLogMade(t *testing.T) {
	dir := t.TempDir()
	owner := os.Geteuid()
	if owner == 0 {
		owner = 2000
		must(t, os.Chown(dir, owner, owner))
	}
	old := unix.Umask(0)
	defer unix.Umask(old)
	path := filepath.Join(dir, "keys")
	k, said := opened(t, path)
	k.write([]byte(line(1) + line(2)))
	must(t, k.close())
	holds(t, path, line(1)+line(2))
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	if st.Mode&0o7777 != 0o600 || int(st.Uid) != owner {
		t.Errorf("mode %o, uid %d", st.Mode, st.Uid)
	}
	if said.Len() > 0 {
		t.Error(said)
	}
}

// TestKeyLogAppends has a file that is there be written behind its end, and stay whose it is.
func TestKeyLogAppends(t *testing.T) {
	for _, tc := range []struct {
		rule, before, want string
		mode               os.FileMode
		says               string
	}{
		{"an empty one", "", line(1), 0o600, ""},
		{"behind whole lines", line(0), line(0) + line(1), 0o600, ""},
		{"the middle of a line is ended", "# half", "# half\n" + line(1), 0o600, ""},
		{"lines of others are written again", line(1), line(1) + line(1), 0o600, ""},
		{"permissions stay, and are told", "", line(1), 0o640, "permissions=0640"},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys")
			must(t, os.WriteFile(path, []byte(tc.before), 0o600))
			must(t, os.Chmod(path, tc.mode))
			k, said := opened(t, path)
			k.write([]byte(line(1)))
			holds(t, path, tc.want)
			st, err := os.Stat(path)
			must(t, err)
			if st.Mode() != tc.mode {
				t.Errorf("mode %v", st.Mode())
			}
			if got := said.String(); (got != "") != (tc.says != "") || !strings.Contains(got, tc.says) {
				t.Errorf("says %q, want %q", got, tc.says)
			}
		})
	}
}

func TestKeyLogRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(file("file"), nil, 0o600))
	must(t, os.WriteFile(file("two"), nil, 0o600))
	must(t, os.Link(file("two"), file("names")))
	must(t, os.Symlink("file", file("link")))
	must(t, os.Symlink("nothing", file("dangling")))
	must(t, unix.Mkfifo(file("fifo"), 0o600))
	must(t, os.WriteFile(file("capture"), nil, 0o600))
	capture, err := os.Open(file("capture"))
	must(t, err)
	defer capture.Close()
	must(t, unix.Flock(int(capture.Fd()), unix.LOCK_EX))
	l, err := net.Listen("unix", file("socket"))
	must(t, err)
	defer l.Close()
	tests := []struct{ path, says string }{
		{"", "--keylog needs the name"},
		{"-", "--keylog - would be standard output"},
		{dir, "is a directory"},
		{dir + "/", "is a directory"},
		{file("link"), "is a symbolic link"},
		{file("dangling"), "is a symbolic link"},
		{"/dev/stdout", "is a symbolic link"},
		{"/dev/null", "is no regular file"},
		{file("fifo"), "is no regular file"},
		{file("socket"), "is no regular file"},
		{file("names"), "has 2 names"},
		{file("capture"), "is being written as a capture"},
		{file("no/keys"), "no does not exist"},
		{file("file/keys"), "file is not a directory"},
	}
	if os.Geteuid() == 0 {
		must(t, os.WriteFile(file("foreign"), nil, 0o600))
		must(t, os.Chown(file("foreign"), 2000, 2000))
		tests = append(tests, struct{ path, says string }{file("foreign"), "belongs to user 2000"})
	}
	for _, tc := range tests {
		k, err := openKeyLog(tc.path, slog.New(slog.DiscardHandler))
		if err == nil {
			must(t, k.close())
		}
		if !plugin.IsUsage(err) || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want usage error %q", tc.path, err, tc.says)
		}
	}
	if _, err := os.Lstat(file("nothing")); err == nil {
		t.Error("a link was followed")
	}
	holds(t, file("file"), "")
}

// TestKeyLogOnce has no line be written twice by one run, whichever lines come with it.
func TestKeyLogOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	k, _ := opened(t, path)
	k.write([]byte(line(1) + line(2)))
	k.write([]byte(line(1) + line(2) + line(3)))
	k.write([]byte(line(2)))
	k.write([]byte("\n" + strings.TrimSuffix(line(4), "\n")))
	holds(t, path, line(1)+line(2)+line(3)+line(4))
}

func TestRecentLines(t *testing.T) {
	var r recentLines
	for i := range 10 * mostRecent {
		if !r.add([]byte(line(i))) {
			t.Fatalf("line %d is not new", i)
		}
		if n := len(r.young) + len(r.old); n > 2*mostRecent {
			t.Fatalf("%d are remembered", n)
		}
	}
	for i := 9 * mostRecent; i < 10*mostRecent; i++ {
		if r.add([]byte(line(i))) {
			t.Fatalf("line %d is new again", i)
		}
	}
	r.forget([]byte(line(10*mostRecent - 1)))
	if !r.add([]byte(line(10*mostRecent - 1))) {
		t.Error("a line is not forgotten")
	}
}

// TestKeyLogShared has several agents write to one file: the lines that come together stay together.
func TestKeyLogShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	const agents, batches, lines = 4, 200, 5
	var all sync.WaitGroup
	for a := range agents {
		k, _ := opened(t, path)
		all.Go(func() {
			for b := range batches {
				var batch strings.Builder
				for l := range lines {
					batch.WriteString(line((a*batches+b)*lines + l))
				}
				k.write([]byte(batch.String()))
			}
		})
	}
	all.Wait()
	text, err := os.ReadFile(path)
	must(t, err)
	got := strings.SplitAfter(string(text), "\n")
	if len(got) != agents*batches*lines+1 {
		t.Fatalf("%d lines", len(got)-1)
	}
	for i := 0; i+lines < len(got); i += lines {
		var first int
		if _, err := fmt.Sscanf(decoded(t, got[i]), "%d", &first); err != nil {
			t.Fatal(err)
		}
		for l := range lines {
			if got[i+l] != line(first+l) {
				t.Fatalf("line %d is %q", i+l, got[i+l])
			}
		}
	}
}

// decoded returns the client random of a line, which is a number in these tests.
func decoded(t *testing.T, line string) string {
	t.Helper()
	fields := strings.Fields(line)
	if len(fields) != 3 {
		t.Fatalf("%q is no line", line)
	}
	var random []byte
	if _, err := fmt.Sscanf(fields[1], "%x", &random); err != nil {
		t.Fatal(err)
	}
	return string(random)
}

// TestKeyLogRemoved has a file that is removed be made again.
func TestKeyLogRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys")
	k, _ := opened(t, path)
	k.write([]byte(line(1)))
	must(t, os.Remove(path))
	k.write([]byte(line(2)))
	holds(t, path, line(2))
	must(t, os.Remove(path))
	must(t, os.Symlink("elsewhere", path))
	k.write([]byte(line(3)))
	if _, err := os.Stat(path); err == nil {
		t.Error("a link was followed")
	}
	must(t, os.Remove(path))
	k.write([]byte(line(4)))
	holds(t, path, line(3)+line(4))
}

// fullDisk mounts a file system of two pages, of which one is taken; release frees that.
func fullDisk(t *testing.T) (disk string, release func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	// The thread is never unlocked, so that it ends with the test, and its mounts with it.
	runtime.LockOSThread()
	must(t, unix.Unshare(unix.CLONE_NEWNS))
	must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	disk = t.TempDir()
	must(t, unix.Mount("test", disk, "tmpfs", 0, fmt.Sprintf("size=%d", 2*os.Getpagesize())))
	t.Cleanup(func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	filler := filepath.Join(disk, "filler")
	must(t, os.WriteFile(filler, make([]byte, os.Getpagesize()), 0o600))
	return disk, func() { must(t, os.Remove(filler)) }
}

// TestKeyLogFull fills the disk at several places of a line: no part of a secret stays, and none is lost once there is room.
func TestKeyLogFull(t *testing.T) {
	for _, part := range []int{0, 1, 2, 15, 100, len(line(0)) - 1, len(line(0)), len(line(0)) + 20} {
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			disk, release := fullDisk(t)
			path := filepath.Join(disk, "keys")
			before := strings.Repeat("#", os.Getpagesize()-part-1) + "\n"
			must(t, os.WriteFile(path, []byte(before), 0o600))
			k, said := opened(t, path)
			for i := range 5 {
				k.write([]byte(line(2*i) + line(2*i+1)))
			}
			got, err := os.ReadFile(path)
			must(t, err)
			if len(got) != os.Getpagesize() || got[len(got)-1] != '\n' {
				t.Errorf("%d bytes that end with %q", len(got), got[len(got)-min(len(got), 20):])
			}
			if n := strings.Count(said.String(), "cannot be written"); n != 1 || k.lost != 0 {
				t.Errorf("said %d times, %d lost: %s", n, k.lost, said)
			}
			release()
			k.write([]byte(line(10)))
			got, err = os.ReadFile(path)
			must(t, err)
			var want strings.Builder
			for i := range 11 {
				want.WriteString(line(i))
			}
			if lines := regexp.MustCompile(`(?m)^#*\n`).ReplaceAllString(string(got), ""); lines != want.String() {
				t.Errorf("has\n%swant\n%s", lines, want.String())
			}
		})
	}
}

// TestKeyLogLost has more lines wait than are kept: the oldest ones are lost, and counted.
func TestKeyLogLost(t *testing.T) {
	disk, release := fullDisk(t)
	path := filepath.Join(disk, "keys")
	must(t, os.WriteFile(path, bytes.Repeat([]byte("\n"), os.Getpagesize()), 0o600))
	k, _ := opened(t, path)
	kept := mostWaiting / len(line(0))
	for i := range kept + 7 {
		k.write([]byte(line(i)))
	}
	if k.lost != 7 || len(k.waiting) != kept*len(line(0)) {
		t.Errorf("%d lost, %d bytes wait", k.lost, len(k.waiting))
	}
	release()
	must(t, k.close())
	got, err := os.ReadFile(path)
	must(t, err)
	lines := strings.Fields(strings.ReplaceAll(string(got), " ", "_"))
	wrote := 0
	for _, l := range lines {
		if !strings.HasPrefix(l, "#") {
			wrote++
		}
	}
	if wrote == 0 || int(k.lost) != kept+7-wrote {
		t.Errorf("%d lost, %d written, of %d", k.lost, wrote, kept+7)
	}
}
