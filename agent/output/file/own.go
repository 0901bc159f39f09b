// SPDX-License-Identifier: Apache-2.0

package file

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

// markName is the extended attribute by which the agent knows its own files: only root may set one of that kind
// (xattr(7), trusted). Its value tells whether the file was closed.
const (
	markName = "trusted.droidtap"
	markOpen = "open"
	markDone = "done"
)

func setMark(fd int, value string) error { return unix.Fsetxattr(fd, markName, []byte(value), 0) }

// markOf returns "" for a file that is not ours.
func markOf(fd int) string {
	var value [8]byte
	n, err := unix.Fgetxattr(fd, markName, value[:])
	if err != nil {
		return ""
	}
	return string(value[:n])
}

// lock holds a file as long as it is open. The error is EWOULDBLOCK if it is held by somebody.
func lock(fd int) error {
	for {
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != unix.EINTR {
			return err
		}
	}
}

// written is the error of a file that somebody holds.
func written(path string) error { return plugin.Usagef("%s is being written by another process", path) }

// id is which file it is, whatever its name.
type id struct{ dev, ino uint64 }

// entry is a file in a directory.
type entry struct {
	name string
	id
	size    int64 // bytes
	changed int64 // ns, wall clock
	touched int64 // the same of what is not its content
	mark    string
}

func entryOf(name string, st *unix.Stat_t) entry {
	return entry{name: name, id: id{uint64(st.Dev), st.Ino}, size: st.Size, changed: unix.TimespecToNsec(st.Mtim), touched: unix.TimespecToNsec(st.Ctim)}
}

// own returns the files of d that carry the mark, the oldest first, and what it has seen of all files, by their names. Those that
// were seen before are not opened again: in a directory of thousands that takes a second on a phone.
func (d *directory) own(before map[string]entry) (all []entry, seen map[string]entry, err error) {
	fd, err := d.reopen()
	if err != nil {
		return nil, nil, err
	}
	list := os.NewFile(uintptr(fd), d.path)
	defer list.Close()
	names, err := list.Readdirnames(-1)
	if err != nil {
		return nil, nil, err
	}
	seen = map[string]entry{}
	for _, name := range names {
		e, ok := d.look(name, before)
		seen[name] = e
		if ok && e.mark != "" {
			all = append(all, e)
		}
	}
	sortByAge(all)
	return all, seen, nil
}

// sortByAge puts the oldest file first.
func sortByAge(all []entry) {
	slices.SortFunc(all, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.changed, b.changed), cmp.Compare(a.name, b.name))
	})
}

// look returns what is known of a regular file with one name. It has no mark if it is not ours.
func (d *directory) look(name string, before map[string]entry) (e entry, ok bool) {
	var st unix.Stat_t
	if unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		return entry{}, false
	}
	e = entryOf(name, &st)
	if old, known := before[name]; known && old.id == e.id && (old.mark != "" || old.touched == e.touched) {
		e.mark = old.mark // a file that was not ours has another time of change if it is by now
		return e, true
	}
	if d.carriesMark(name) {
		fd, opened, err := d.openOwn(name, unix.O_RDONLY)
		if err != nil {
			return entry{}, false
		}
		unix.Close(fd)
		e = opened
	}
	return e, true
}

// carriesMark looks without opening the file: that may wake a device or a FUSE daemon.
func (d *directory) carriesMark(name string) bool {
	n, err := unix.Lgetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", d.fd, name), markName, nil)
	return err == nil && n > 0
}

var errNotOwn = errors.New("no file of the agent's own")

// openOwn opens a file that is certainly one of ours: nobody else can give a file the mark, but a link leads to it, or
// another name does.
func (d *directory) openOwn(name string, flags int) (int, entry, error) {
	fd, err := openat(d.fd, name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return -1, entry{}, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		unix.Close(fd)
		return -1, entry{}, errNotOwn
	}
	e := entryOf(name, &st)
	if e.mark = markOf(fd); e.mark == "" {
		unix.Close(fd)
		return -1, entry{}, errNotOwn
	}
	return fd, e, nil
}

// remove removes the name of an own file that nobody writes. It does nothing where the name is another file's by now. With
// later, the room of the file is free a little later: the system may take its time with a large one.
func (d *directory) remove(e entry, later bool) error {
	fd, now, err := d.openOwn(e.name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer free(fd, later)
	if now.id != e.id {
		return errNotOwn
	}
	if err := lock(fd); err != nil {
		return err
	}
	return d.unlink(e, false)
}

// free closes a file, upon which its room is free if it has no name any more.
func free(fd int, later bool) {
	if later {
		go unix.Close(fd)
		return
	}
	unix.Close(fd)
}

// unlink removes the name of a file unless it is another file's by now; later is as in remove. Whoever may write in the directory
// can still exchange it in the moment between; but all that goes then is a name that they could have removed themselves.
func (d *directory) unlink(e entry, later bool) error {
	if later {
		fd, err := openat(d.fd, e.name, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer free(fd, true)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if entryOf(e.name, &st).id != e.id {
		return errNotOwn
	}
	return unix.Unlinkat(d.fd, e.name, 0)
}
