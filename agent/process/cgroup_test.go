// SPDX-License-Identifier: Apache-2.0

package process

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/inotify"
)

func TestOfCgroup(t *testing.T) {
	root, f := t.TempDir(), fake(t.TempDir())
	write(t, filepath.Join(root, "uid_1000", "pid_9"), "a file")
	f.process(t, 70, 1, "le.app", "com.example.app\x00", "/uid_10123/pid_70")
	f.process(t, 71, 1, "ice", "com.example.service\x00", "/apps/uid_1010123/pid_71")
	f.process(t, 72, 1, "netd", "/system/bin/netd\x00--x\x00", "/system/uid_0/pid_72")
	f.process(t, 73, 1, "later", "later\x00", "/uid_0/pid_1")
	f.process(t, 74, 1, "later", "later\x00", "/xuid_10123/pid_74")
	f.process(t, 76, 1, "service", "service\x00", "/system.slice/some.service")
	id := func(path string) uint64 { return inode(t, filepath.Join(root, path)) }
	type rule struct {
		id   uint64
		want Process
	}
	rules := map[string]rule{
		"app":                         {id("uid_10123/pid_70"), Process{70, "le.app", "com.example.app"}},
		"app, from Android 15 on":     {id("apps/uid_1010123/pid_71"), Process{71, "ice", "com.example.service"}},
		"daemon, from Android 15 on":  {id("system/uid_0/pid_72"), Process{72, "netd", "/system/bin/netd"}},
		"pid is another process's":    {id("uid_10123/pid_73"), Process{PID: 73}},
		"group of a similar name":     {id("uid_10123/pid_74"), Process{PID: 74}},
		"process is gone":             {id("uid_10123/pid_75"), Process{PID: 75}},
		"uid has none itself":         {id("uid_10123"), Process{}},
		"service of systemd":          {id("system.slice/some.service"), Process{}},
		"elsewhere":                   {id("other/uid_10123/pid_70"), Process{}},
		"below a process":             {id("uid_10123/pid_70/pid_71"), Process{}},
		"pid is no number":            {id("uid_10123/pid_x"), Process{}},
		"pid is signed":               {id("uid_10123/pid_+70"), Process{}},
		"pid 0":                       {id("uid_10123/pid_0"), Process{}},
		"uid is no number":            {id("uid_x/pid_70"), Process{}},
		"unknown":                     {1 << 40, Process{}},
		"root":                        {1, Process{}},
		"none":                        {0, Process{}},
		"a kernel's before 5.5":       {0x5_00000000 | id("uid_10123/pid_70"), Process{70, "le.app", "com.example.app"}},
		"a kernel's before 5.5, none": {0x5_00000000 | id("other/uid_10123/pid_70"), Process{}},
	}
	table, clock := open(t, Options{Cgroups: root, Proc: string(f)})
	if !table.Android() {
		t.Error("not Android")
	}
	for range 2 {
		for name, r := range rules {
			ask(t, table, name, r.id, r.want)
			clock.pass(patience)
		}
	}
}

// On kernels before 5.5 an inode is used again, with another generation in the id.
func TestGenerations(t *testing.T) {
	root, f := t.TempDir(), fake(t.TempDir())
	ino := inode(t, filepath.Join(root, "uid_1/pid_70"))
	f.process(t, 70, 1, "old", "old\x00", "/uid_1/pid_70")
	f.process(t, 71, 1, "new", "new\x00", "/uid_1/pid_71")
	table, _ := open(t, Options{Cgroups: root, Proc: string(f)})
	old, later := 1<<32|ino, 2<<32|ino
	ask(t, table, "the only one", old, Process{70, "old", "old"})
	// The file system of the test gives no inode twice at will.
	table.mu.Lock()
	table.dirs.put(ino, &group{life: life{Process: Process{PID: 71}}, dir: filepath.Join(root, "uid_1/pid_71")})
	table.mu.Unlock()
	ask(t, table, "the later one", later, Process{71, "new", "new"})
	ask(t, table, "the earlier one", old, Process{70, "old", "old"})
}

// Without a watch what is unknown is found by a walk, but not by one for each question.
func TestWalks(t *testing.T) {
	root, f := t.TempDir(), fake(t.TempDir())
	table, clock := open(t, Options{Cgroups: root, Proc: string(f)})
	unwatch(table)
	if table.Android() {
		t.Error("Android without a directory of a process")
	}
	f.process(t, 70, 1, "app", "app\x00", "/uid_1/pid_70")
	id := inode(t, filepath.Join(root, "uid_1/pid_70"))
	ask(t, table, "too soon", id, Process{})
	clock.pass(patience)
	ask(t, table, "after a while", id, Process{70, "app", "app"})
	if !table.Android() {
		t.Error("not Android with a directory of a process")
	}

	// What a walk has not found is never looked for again: one is left for what is new.
	clock.pass(patience)
	ask(t, table, "none", 1<<40, Process{})
	clock.pass(patience)
	ask(t, table, "none still", 1<<40, Process{})
	id = inode(t, filepath.Join(root, "uid_1/pid_71"))
	ask(t, table, "after the same question", id, Process{PID: 71})
	id = inode(t, filepath.Join(root, "uid_1/pid_72"))
	ask(t, table, "too soon again", id, Process{})
}

// The names of a young process are read again soon, of an old one each second, and of one that is gone never.
func TestNamesAreReadAgain(t *testing.T) {
	root, f := t.TempDir(), fake(t.TempDir())
	id := inode(t, filepath.Join(root, "uid_1/pid_70"))
	call := func(start uint64, comm string) { f.process(t, 70, start, comm, comm+"\x00", "/uid_1/pid_70") }
	table, clock := open(t, Options{Cgroups: root, Proc: string(f)})
	call(1, "zygote64")
	ask(t, table, "first", id, Process{70, "zygote64", "zygote64"})
	call(1, "app")
	ask(t, table, "at once", id, Process{70, "zygote64", "zygote64"})
	clock.pass(soonest)
	ask(t, table, "after 10 ms", id, Process{70, "app", "app"})
	for range 10 {
		clock.pass(seldom)
		ask(t, table, "later", id, Process{70, "app", "app"})
	}
	call(1, "renamed")
	clock.pass(seldom - 1)
	ask(t, table, "within a second", id, Process{70, "app", "app"})
	clock.pass(1)
	ask(t, table, "after a second", id, Process{70, "renamed", "renamed"})
	f.process(t, 70, 1, "ending", "", "/uid_1/pid_70")
	clock.pass(seldom)
	ask(t, table, "without a command line", id, Process{70, "ending", "renamed"})
	call(2, "other")
	clock.pass(seldom)
	ask(t, table, "its pid is used again", id, Process{70, "ending", "renamed"})
	f.remove(t, 70)
	clock.pass(seldom)
	ask(t, table, "gone", id, Process{70, "ending", "renamed"})
}

// cgroups makes a directory of cgroup version 2 for the test.
func cgroups(t *testing.T) string {
	t.Helper()
	root := procfs("/proc").cgroups()
	if root == "" {
		root = t.TempDir()
		if err := unix.Mount("none", root, "cgroup2", 0, ""); err != nil {
			t.Fatalf("mount cgroup2: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	dir := filepath.Join(root, fmt.Sprintf("droidtap-%s-%d", t.Name(), os.Getpid()))
	makeGroup(t, dir)
	return dir
}

// id makes a cgroup, and returns its id as the kernel has it: that is its file handle (kernfs_encode_fh).
func id(t *testing.T, dir string) uint64 {
	t.Helper()
	makeGroup(t, dir)
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(handle.Bytes())
}

func makeGroup(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) }) // some tests remove it
}

func (p *person) move(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, p.pid), 0); err != nil {
		t.Fatal(err)
	}
}

// The kernel tells of each directory that is made: none needs a walk, and a process that is gone when its packets are
// looked at was looked at when it came.
func TestWatchOfCgroups(t *testing.T) {
	root := cgroups(t)
	table, clock := open(t, Options{Cgroups: root})
	uid := filepath.Join(root, "uid_10123")
	makeGroup(t, uid)
	p := birth(t, "zygote64")
	t.Cleanup(p.die) // before its cgroup is removed
	dir := filepath.Join(uid, fmt.Sprint("pid_", p.pid))
	number := id(t, dir)
	p.move(t, dir)
	p.rename(t, "com.example.app")
	ask(t, table, "new", number, Process{p.pid, "com.example.app", "zygote64"})
	p.rename(t, "renamed")
	pass(table, clock)
	ask(t, table, "renamed", number, Process{p.pid, "renamed", "zygote64"})
	p.die()
	pass(table, clock)
	ask(t, table, "gone", number, Process{p.pid, "renamed", "zygote64"})

	// The directory of the uid goes and comes back, as another one.
	for _, gone := range []string{dir, uid} {
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
	}
	makeGroup(t, uid)
	short := birth(t, "short")
	short.rename(t, "short-lived")
	dir = filepath.Join(uid, fmt.Sprint("pid_", short.pid))
	before := number
	number = id(t, dir)
	await(t, table, number)
	short.die()
	ask(t, table, "gone before anybody asked", number, Process{short.pid, "short-lived", "short"})
	ask(t, table, "the one before", before, Process{p.pid, "renamed", "zygote64"})
	// Another one goes for good.
	other := filepath.Join(root, "uid_10124")
	makeGroup(t, other)
	table.mu.Lock()
	table.hear()
	if table.watch.wds[other] == 0 {
		t.Error("the directory of another uid is not watched")
	}
	table.mu.Unlock()
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	table.mu.Lock()
	defer table.mu.Unlock()
	table.hear()
	if n := len(table.watch.dirs); n != 2 {
		t.Errorf("%d directories are watched, want the root and one uid's", n)
	}
}

// pass lets a second pass, and makes no walk due.
func pass(table *Table, clock *clock) {
	table.mu.Lock()
	defer table.mu.Unlock()
	clock.pass(seldom)
	table.walked = clock.now()
}

// await returns when a cgroup is known though nobody has asked for it.
func await(t *testing.T, table *Table, id uint64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		table.mu.Lock()
		known := table.dirs.slots[id] != nil
		table.mu.Unlock()
		if known {
			return
		}
		if time.Now().After(end) {
			t.Fatal("no word of a new cgroup within 10 s")
		}
	}
}

// From Android 15 on uids are a level deeper, and that level may come later.
func TestWatchOfDeeperCgroups(t *testing.T) {
	root := cgroups(t)
	table, _ := open(t, Options{Cgroups: root})
	makeGroup(t, filepath.Join(root, "apps"))
	makeGroup(t, filepath.Join(root, "apps", "uid_10123"))
	p := birth(t, "app")
	p.rename(t, "app")
	ask(t, table, "below apps", id(t, filepath.Join(root, "apps", "uid_10123", fmt.Sprint("pid_", p.pid))), Process{p.pid, "app", "app"})
}

// Where the watch lost something everything is looked at.
func TestWatchOverflow(t *testing.T) {
	root, f := t.TempDir(), fake(t.TempDir())
	table, _ := open(t, Options{Cgroups: root, Proc: string(f)})
	unwatch(table)
	table.mu.Lock()
	number := inode(t, filepath.Join(root, "uid_1/pid_70"))
	table.told(inotify.Event{Watch: -1, Mask: unix.IN_Q_OVERFLOW})
	table.mu.Unlock()
	ask(t, table, "lost", number, Process{PID: 70})
}

// unwatch makes the watch deaf.
func unwatch(table *Table) {
	table.mu.Lock()
	defer table.mu.Unlock()
	table.watch.fd = -1
}
