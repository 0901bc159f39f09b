// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// place is a directory that only root can write in, and enter.
func place(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to whom the directory must belong")
	}
	return t.TempDir()
}

func TestLeave(t *testing.T) {
	const mounts = `31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /acct rw,relatime - cgroup none rw,cpuacct
33 31 0:30 /part /dev/part rw,relatime - cgroup none rw,memory
34 31 0:30 / /dev/mem\040cg rw,relatime shared:7 - cgroup none rw,memory,hugetlb
35 31 0:31 / /dev/cpuset rw,relatime - cgroup none rw,cpuset,noprefix
38 31 0:34 / /sys/fs/cgroup rw,relatime - cgroup2 none rw
`
	for _, c := range []struct{ rule, own, want string }{
		{"nothing", "", ""},
		{"adbd's, of Android 12 to 14", "0::/uid_0/pid_415\n", "/sys/fs/cgroup"},
		{"a shell's below it, of Android 15", "0::/system/uid_0/pid_415/x\n", "/sys/fs/cgroup"},
		{"version 1, with another controller", "4:memory,hugetlb:/apps/uid_2000/pid_7\n3:cpuacct:/uid_2000/pid_7\n", "/dev/mem cg /acct"},
		{"limits stay", "3:cpuset:/background\n2:memory:/docker/0123\n0::/user.slice/user-0.slice\n", ""},
		{"the root", "3:cpuset:/\n0::/\n", ""},
		{"what is not mounted", "5:blkio:/uid_0/pid_1\n", ""},
		{"other names", "0::/uid_x/pid_1\n1:cpuacct:/my_uid_0/pid_1\n", ""},
		{"strange lines", "0\n:::\n0::/uid_0/pid_1:x/uid_0/pid_2\n", "/sys/fs/cgroup"},
	} {
		if d := cmp.Diff(c.want, strings.Join(leave(c.own, mounts), " ")); d != "" {
			t.Errorf("%s: (-want +got)\n%s", c.rule, d)
		}
	}
}

func TestClosed(t *testing.T) {
	for _, c := range []struct {
		rule           string
		mode, uid, gid uint32
		last, phone    bool
		want           bool
	}{
		{"root's", 0o755, 0, 0, true, false, true},
		{"another's", 0o755, 1000, 0, false, false, false},
		{"shell's on a phone", 0o771, 2000, 2000, false, true, false},
		{"the system's on a phone", 0o771, 1000, 1000, false, true, true},
		{"writable by a group", 0o775, 0, 4, true, false, false},
		{"writable by root's group", 0o775, 0, 0, true, false, true},
		{"writable by all", 0o757, 0, 0, true, false, false},
		{"/tmp, above the last", 0o1777, 0, 0, false, false, true},
		{"/tmp itself", 0o1777, 0, 0, true, false, false},
	} {
		st := unix.Stat_t{Mode: unix.S_IFDIR | c.mode, Uid: c.uid, Gid: c.gid}
		if got := closed(&st, c.last, c.phone); got != c.want {
			t.Errorf("%s: %v", c.rule, got)
		}
	}
}

func TestResolve(t *testing.T) {
	dir := place(t)
	open := filepath.Join(dir, "open")
	must(t, os.MkdirAll(filepath.Join(open, "below"), 0o755))
	must(t, os.Chmod(open, 0o777))
	must(t, os.Symlink(open, filepath.Join(dir, "link")))
	must(t, os.Symlink(dir, filepath.Join(dir, "good")))
	if got, err := Resolve(filepath.Join(dir, "good", "pid")); err != nil || got != filepath.Join(dir, "pid") {
		t.Errorf("%q, %v", got, err)
	}
	for _, path := range []string{"open/pid", "open/below/pid", "link/pid", "good/link/below/pid"} {
		if got, err := Resolve(filepath.Join(dir, path)); !errors.Is(err, ErrOpen) {
			t.Errorf("%s: %q, %v", path, got, err)
		}
	}
	if got, err := Resolve(filepath.Join(dir, "none", "pid")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(place(t), "pid")
	must(t, os.WriteFile(path, []byte("123456789012345\n"), 0o600)) // stale
	p, err := Lock(path)
	must(t, err)
	if b, err := os.ReadFile(path); string(b) != fmt.Sprintln(os.Getpid()) || p.Stale != ", pid 123456789012345" {
		t.Errorf("%q, stale %q, %v", b, p.Stale, err)
	}
	_, err = Lock(path)
	if want := fmt.Sprintf("an agent runs already, pid %d: it holds %s", os.Getpid(), path); !errors.Is(err, ErrRunning) || err.Error() != want {
		t.Errorf("%v, and not %s", err, want)
	}
	must(t, p.Remove())
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("it is there still")
	}
	p, err = Lock(path)
	must(t, err)
	if p.Stale != "" {
		t.Errorf("a new one was somebody's%s", p.Stale)
	}
	must(t, os.Remove(path)) // somebody thought that it is stale
	must(t, p.Remove())
}

// TestLockRemoved takes a lock on a file that is removed by then.
func TestLockRemoved(t *testing.T) {
	path := filepath.Join(place(t), "pid")
	first, err := Lock(path)
	must(t, err)
	late, err := os.Open(path) // as lock does, before its flock
	must(t, err)
	must(t, first.Remove())
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, unix.Flock(int(late.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	second, err := Lock(path)
	must(t, err) // the lock of the one that is gone is nobody's
	must(t, second.Remove())
	must(t, late.Close())
}

func TestLockRefuses(t *testing.T) {
	dir := place(t)
	kept := filepath.Join(dir, "kept")
	must(t, os.WriteFile(kept, []byte("kept"), 0o600))
	must(t, os.Symlink(kept, filepath.Join(dir, "symbolic")))
	must(t, os.Link(kept, filepath.Join(dir, "hard")))
	must(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	must(t, os.Mkdir(filepath.Join(dir, "directory"), 0o700))
	for _, name := range []string{"symbolic", "hard", "fifo", "directory"} {
		path := filepath.Join(dir, name)
		if _, err := Lock(path); err == nil {
			t.Errorf("%s is locked", name)
		}
		if _, err := OpenLog(path); err == nil {
			t.Errorf("%s is a log", name)
		}
	}
	if b, err := os.ReadFile(kept); string(b) != "kept" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestLogBounded writes many times what a log may have: its end is kept, and no line is cut in two.
func TestLogBounded(t *testing.T) {
	path := filepath.Join(place(t), "log")
	l, err := OpenLog(path)
	must(t, err)
	l.now = func() time.Time { return time.Date(2026, 11, 28, 1, 2, 3, 4e6, time.UTC) }
	line := strings.Repeat("x", 90)
	const lines = 5 * LogSize / 100
	for n := range lines {
		fmt.Fprintf(l, "%d %s\n", n, line)
	}
	fmt.Fprintf(l, "%s\n", strings.Repeat("long", LogSize))
	must(t, l.Close())
	var all strings.Builder
	for _, p := range []string{path + ".1", path} {
		b, err := os.ReadFile(p)
		must(t, err)
		if len(b) > LogSize || len(b) == 0 {
			t.Errorf("%s has %d bytes", p, len(b))
		}
		all.Write(b)
	}
	kept := strings.Split(strings.TrimSuffix(all.String(), "\n"), "\n")
	for n, got := range kept[:len(kept)-1] {
		if want := fmt.Sprintf("2026-11-28T01:02:03.004Z %d %s", lines-len(kept)+1+n, line); got != want {
			t.Fatalf("%q, and not %q", got, want)
		}
	}
	if last := kept[len(kept)-1]; len(last) > longestLine+30 || !strings.HasSuffix(last, "longlong") {
		t.Errorf("the long line has %d bytes", len(last))
	}
	// One that was closed takes what comes, and keeps nothing.
	fmt.Fprintln(l, "late")
	l, err = OpenLog(path)
	must(t, err)
	fmt.Fprintln(l, "again")
	must(t, l.Close())
	b, err := os.ReadFile(path)
	must(t, err)
	if !strings.HasSuffix(string(b), " again\n") || strings.Contains(string(b), "late") {
		t.Errorf("it ends with %q", b[max(0, len(b)-100):])
	}
}

// TestLogStays writes on in the directory in which it was opened, whatever its path leads to by then.
func TestLogStays(t *testing.T) {
	dir := place(t)
	here, elsewhere := filepath.Join(dir, "here"), filepath.Join(dir, "elsewhere")
	must(t, os.Mkdir(here, 0o700))
	must(t, os.Mkdir(elsewhere, 0o700))
	must(t, os.WriteFile(filepath.Join(elsewhere, "log"), []byte("kept"), 0o600))
	l, err := OpenLog(filepath.Join(here, "log"))
	must(t, err)
	l.most = 100
	must(t, os.Rename(here, filepath.Join(dir, "moved")))
	must(t, os.Symlink(elsewhere, here))
	for range 10 {
		fmt.Fprintln(l, strings.Repeat("x", 60))
	}
	must(t, l.Close())
	var names []string
	for _, d := range []string{"moved", "elsewhere"} {
		entries, err := os.ReadDir(filepath.Join(dir, d))
		must(t, err)
		for _, e := range entries {
			names = append(names, d+"/"+e.Name())
		}
	}
	if d := cmp.Diff([]string{"moved/log", "moved/log.1", "elsewhere/log"}, names); d != "" {
		t.Error(d)
	}
}

// TestLogAgain goes on when there is room for a new file, of which there was none when the last one was full.
func TestLogAgain(t *testing.T) {
	dir := place(t)
	must(t, unix.Mount("droidtap-test", dir, "tmpfs", 0, "nr_inodes=3")) // the directory's, and two files'
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	l, err := OpenLog(filepath.Join(dir, "log"))
	must(t, err)
	l.most = 100
	other := filepath.Join(dir, "other")
	must(t, os.WriteFile(other, nil, 0o600))
	fmt.Fprintln(l, strings.Repeat("x", 60))
	fmt.Fprintln(l, "lost")
	must(t, os.Remove(other))
	fmt.Fprintln(l, "written")
	must(t, l.Close())
	b, err := os.ReadFile(filepath.Join(dir, "log"))
	must(t, err)
	if text := string(b); strings.Contains(text, "lost") || !strings.HasSuffix(text, " written\n") {
		t.Errorf("the log: %q", text)
	}
}

// TestLogFull loses what there is no room for, and writes again when there is.
func TestLogFull(t *testing.T) {
	dir := place(t)
	must(t, unix.Mount("droidtap-test", dir, "tmpfs", 0, "size=16k"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	full := filepath.Join(dir, "full")
	l, err := OpenLog(filepath.Join(dir, "log"))
	must(t, err)
	_ = os.WriteFile(full, make([]byte, 1<<20), 0o600) // as much as there is room for
	fmt.Fprintln(l, "lost")
	must(t, os.Remove(full))
	fmt.Fprintln(l, "written")
	must(t, l.Close())
	b, err := os.ReadFile(filepath.Join(dir, "log"))
	must(t, err)
	if strings.Contains(string(b), "lost") || !strings.HasSuffix(string(b), " written\n") {
		t.Errorf("%q", b)
	}
}
