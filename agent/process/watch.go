// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"droidtap/agent/inotify"
)

// watch is an inotify(7) of directories; a nil one watches nothing. cgroup's file system tells of directories that are made
// and removed in it, but not those themselves that they are gone (fs/kernfs leaves their link count alone): their
// parents tell it.
type watch struct {
	file *os.File
	fd   int // file's
	dirs map[int32]string
	wds  map[string]int32
	room []byte
}

func openWatch() (*watch, error) {
	file, fd, err := inotify.Open()
	if err != nil {
		return nil, fmt.Errorf("watch cgroups: %w", err)
	}
	return &watch{
		file: file, fd: fd,
		dirs: make(map[int32]string), wds: make(map[string]int32), room: make([]byte, 16384),
	}, nil
}

// add watches a directory. One that cannot be watched, since there are too many or it is gone, is found by a walk.
func (w *watch) add(dir string) {
	if w == nil {
		return
	}
	wd, err := unix.InotifyAddWatch(w.fd, dir, unix.IN_CREATE|unix.IN_DELETE|unix.IN_ONLYDIR)
	if err != nil {
		return
	}
	if old, ok := w.wds[dir]; ok && old != int32(wd) { // it was removed and made again
		w.forget(old)
	}
	w.dirs[int32(wd)], w.wds[dir] = dir, int32(wd)
}

// forget ends the watch of a directory that is gone.
func (w *watch) forget(wd int32) {
	_, _ = unix.InotifyRmWatch(w.fd, uint32(wd)) // EINVAL: the kernel has done so
	if dir := w.dirs[wd]; w.wds[dir] == wd {
		delete(w.wds, dir)
	}
	delete(w.dirs, wd)
}

// follow takes note of new directories until the watch is closed.
func (t *Table) follow() {
	conn, err := t.watch.file.SyscallConn()
	if err != nil {
		return // it is closed
	}
	_ = conn.Read(func(uintptr) bool { // its error is that it was closed
		t.mu.Lock()
		defer t.mu.Unlock()
		t.hear()
		return false // wait for more
	})
}

// hear takes what the watch has to tell, without waiting. The caller holds the lock.
func (t *Table) hear() {
	if t.watch == nil {
		return
	}
	for {
		n, err := unix.Read(t.watch.fd, t.watch.room)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return
		}
		for e := range inotify.Events(t.watch.room[:n]) {
			t.told(e)
		}
	}
}

// told takes one event in a watched directory.
func (t *Table) told(e inotify.Event) {
	dir, ok := t.watch.dirs[e.Watch]
	switch {
	case e.Mask&unix.IN_Q_OVERFLOW != 0: // some were lost
		t.walk()
		return
	case !ok:
		return
	case e.Mask&unix.IN_IGNORED != 0:
		t.watch.forget(e.Watch)
		return
	case e.Mask&unix.IN_ISDIR == 0:
		return
	}
	path := filepath.Join(dir, e.Name)
	if e.Mask&unix.IN_DELETE != 0 {
		if gone, ok := t.watch.wds[path]; ok {
			t.watch.forget(gone)
		}
		return
	}
	if _, inUID := number(filepath.Base(dir), "uid_"); inUID && dir != t.root {
		t.meet(path, true)
	} else if _, ok := number(e.Name, "uid_"); ok {
		t.enterUID(path, true)
	} else if dir == t.root && slices.Contains(parents[1:], e.Name) {
		t.enter(path, true)
	}
}
