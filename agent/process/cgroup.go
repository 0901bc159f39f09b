// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// group is the cgroup of a process: the directory uid_U/pid_P, which Android's libprocessgroup makes for each process that
// init and zygote start. What such a process starts stays in it, and counts as it.
type group struct {
	life
	dir string // its path
}

// end returns how the path of the group ends, whatever it is mounted at.
func (g *group) end() string {
	dir, pid := filepath.Split(g.dir)
	return "/" + filepath.Base(dir) + "/" + pid
}

// patience is how long after a look at everything the next one is made, at the soonest.
const patience = 100 * time.Millisecond

// OfCgroup returns the process of a cgroup by its id, and false where that tells none: the root, and whatever is no
// directory pid_P in one uid_U. A cgroup that happens to have one process, such as that of a service of systemd, tells
// none either: who is in it now need not be who made the socket. The id is that of the time when the socket was made.
//
// It costs a look into a map, and some system calls at most once a second for each process; an id that was never seen
// costs a walk over the tree, at most every 100 ms.
func (t *Table) OfCgroup(id uint64) (Process, bool) {
	if id <= 1 || t.root == "" { // 1 is the root's
		return Process{}, false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	g, known := t.find(id)
	if !known {
		t.hear()
		g, known = t.find(id)
	}
	if !known && t.now().Sub(t.walked) >= patience {
		whole := t.walk()
		// The socket was there before the walk, and so was its cgroup: if it is not found now it never will be.
		if g, known = t.find(id); !known && whole {
			t.ids.put(id, nil)
		}
	}
	if g == nil {
		return Process{}, false
	}
	t.name(g)
	return g.Process, true
}

// find returns what is known of an id; a nil group is that of no process.
//
// The id is the directory's inode from 5.5 on (commit "kernfs: use 64bit inos if ino_t is 64bit"). Before, it is
// generation<<32 | inode (include/linux/kernfs.h union kernfs_node_id), and the generation cannot be seen: it is found by the inode, and kept under its whole id
// since another directory may get the inode later.
func (t *Table) find(id uint64) (g *group, known bool) {
	if g, known = t.dirs.get(id); known {
		return g, true
	}
	if g, known = t.ids.get(id); known || id>>32 == 0 {
		return g, known
	}
	if g, known = t.dirs.get(id & 0xffffffff); known {
		t.ids.put(id, g)
	}
	return g, known
}

// name reads the names of a group's process, if it is time to. A process that has the pid and is elsewhere is a later one.
func (t *Table) name(g *group) {
	if g.due(t.now()) && (g.start != 0 || t.proc.within(g.PID, g.end())) {
		t.proc.look(&g.life)
	}
}

// parents are the directories in which there may be uid_U: that of the tree, and from Android 15 on two below it
// (system/core/libprocessgroup ConvertUidToPath).
var parents = [...]string{".", "apps", "system"}

// walk finds all directories of processes, and watches where others may come. It returns whether nothing was in its way.
// The caller holds the lock.
func (t *Table) walk() bool {
	whole := true
	for _, parent := range parents {
		whole = t.enter(filepath.Join(t.root, parent), false) && whole
	}
	t.walked = t.now()
	return whole
}

// number returns that of a name such as uid_10123.
func number(name, prefix string) (int, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	n, err := strconv.ParseUint(digits, 10, 31)
	return int(n), ok && err == nil
}

// enter looks into a directory that may have some uid_U. One that is not there is as good as an empty one.
func (t *Table) enter(parent string, fresh bool) bool {
	t.watch.add(parent)
	names, whole := entries(parent)
	for _, name := range names {
		if _, ok := number(name, "uid_"); ok {
			whole = t.enterUID(filepath.Join(parent, name), fresh) && whole
		}
	}
	return whole
}

// enterUID looks into a directory uid_U. It is watched first: what is made between is seen twice, and not never.
func (t *Table) enterUID(dir string, fresh bool) bool {
	t.watch.add(dir)
	names, whole := entries(dir)
	for _, name := range names {
		t.meet(filepath.Join(dir, name), fresh)
	}
	return whole
}

// entries returns the names in a directory, and whether those are all.
func entries(dir string) ([]string, bool) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, errors.Is(err, fs.ErrNotExist)
	}
	names, err := f.Readdirnames(-1)
	_ = f.Close() // was only read
	// ENODEV, ENOENT: it was removed meanwhile.
	return names, err == nil || errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENODEV)
}

// meet takes note of a directory in one uid_U, if it is one of a process. It is fresh if it was just made.
func (t *Table) meet(dir string, fresh bool) {
	pid, ok := number(filepath.Base(dir), "pid_")
	if !ok || pid == 0 {
		return
	}
	var st syscall.Stat_t
	if syscall.Lstat(dir, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return
	}
	t.android.Store(true)
	if e := t.dirs.slots[st.Ino]; e != nil && e.Value.(*slot[uint64, *group]).value.dir == dir {
		return
	}
	g := &group{life: life{Process: Process{PID: pid}}, dir: dir}
	t.dirs.put(st.Ino, g)
	switch {
	case fresh: // its process is moved into it a moment later, and gets its own name later still: who asks looks again
		t.proc.look(&g.life)
	case !t.walked.IsZero(): // at the start nobody may ever ask for most of them
		t.name(g)
	}
}
