// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

// room is what the files of a capture may take. A nil one has no limit. The writer's goroutine owns it.
type room struct {
	quota   int64 // bytes of all own files in the directory; 0: no limit
	minFree int64 // bytes that stay free on the file system; 0: no limit
	ring    int   // files of this capture; 0: no limit

	seen   map[string]entry // what is in the directory; see directory.own
	files  []entry          // of this capture: the oldest first, and the last one is open. Some may be gone
	others int64            // bytes of own files besides the one that is open, when they were counted last
	since  int64            // bytes written since the free space was looked at
	tight  bool             // there was too little
}

// lookEvery is how many bytes are written between two looks at the free space.
const lookEvery = 1 << 20

// removesAny tells whether own files of any run go where there is no room.
func (r *room) removesAny() bool { return r != nil && (r.quota > 0 || r.minFree > 0) }

// begin makes room for a file that is to be opened in d.
func (r *room) begin(d *directory) error {
	if r == nil {
		return nil
	}
	for r.ring > 0 && len(r.files) >= r.ring {
		r.dropOldest(d, r.minFree == 0)
	}
	r.tight = true // look now
	return r.admit(d, id{}, 0, 0)
}

// began is told of the file that was opened.
func (r *room) began(e entry) {
	if r != nil {
		r.files = append(r.files, e)
	}
}

// admit makes room for n bytes more in the open file, which has size bytes. The error wraps plugin.ErrNoRoom.
func (r *room) admit(d *directory, open id, size, n int64) error {
	if r == nil {
		return nil
	}
	if err := r.keepQuota(d, open, size+n); err != nil {
		return err
	}
	return r.keepFree(d, open, n)
}

// own returns the own files in d, the oldest first. Those of this capture are known by their inodes, also without marks.
func (r *room) own(d *directory) ([]entry, error) {
	own, seen, err := d.own(r.seen)
	if err != nil {
		return nil, err
	}
	r.seen = seen
	r.files = slices.DeleteFunc(r.files, func(e entry) bool { return r.seen[e.name].id != e.id })
	for _, e := range r.files {
		if now := r.seen[e.name]; now.mark == "" {
			own = append(own, now)
		}
	}
	sortByAge(own)
	return own, nil
}

// sizeBeside returns how many bytes files have besides the one that is open.
func sizeBeside(files []entry, open id) (size int64) {
	for _, e := range files {
		if e.id != open {
			size += e.size
		}
	}
	return size
}

// keepQuota removes own files until a file of size bytes fits.
func (r *room) keepQuota(d *directory, open id, size int64) error {
	if r.quota == 0 {
		return nil
	}
	isOpen := open != id{}
	fits := func() bool {
		all := r.others + size
		return all < r.quota || isOpen && all == r.quota // a file that has no byte yet needs some
	}
	if isOpen && fits() {
		return nil
	}
	own, err := r.own(d)
	if err != nil {
		return err
	}
	r.others = sizeBeside(own, open)
	for _, e := range own {
		if fits() {
			break
		}
		if e.id != open && r.removed(d, e, true) {
			r.others -= e.size
		}
	}
	if fits() {
		return nil
	}
	return fmt.Errorf("%w: the captures in %s would have more than the %d bytes of --disk-quota", plugin.ErrNoRoom, d.path, r.quota)
}

// keepFree removes own files until n bytes leave enough free.
func (r *room) keepFree(d *directory, open id, n int64) error {
	if r.minFree == 0 {
		return nil
	}
	if r.since += n; r.since < lookEvery && !r.tight {
		return nil
	}
	r.since, r.tight = 0, false
	lacks := func() (int64, error) {
		free, err := d.free()
		return r.minFree + n - free, err
	}
	missing, err := lacks()
	if err != nil || missing <= 0 {
		return err
	}
	own, err := r.own(d)
	if err != nil {
		return err
	}
	scarce := fmt.Errorf("%w: the file system of %s would have less free than the %d bytes of --min-free", plugin.ErrNoRoom, d.path, r.minFree)
	if sizeBeside(own, open) < missing { // others have filled it: the captures would go in vain
		r.tight = true
		return scarce
	}
	// What somebody still reads is not free when it is removed: not all are to go for that.
	for _, e := range own {
		if e.id == open || !r.removed(d, e, false) {
			continue
		}
		if missing -= e.size; missing <= 0 {
			break
		}
	}
	if missing, err = lacks(); err != nil || missing <= 0 {
		return err
	}
	r.tight = true
	return scarce
}

// dropAny removes one older file where the disk is full, and returns false if there is none.
func (r *room) dropAny(d *directory, open id) bool {
	if r != nil && r.ring > 0 && len(r.files) > 1 {
		r.dropOldest(d, false)
		return true
	}
	if !r.removesAny() {
		return false
	}
	own, err := r.own(d)
	return err == nil && slices.ContainsFunc(own, func(e entry) bool { return e.id != open && r.removed(d, e, false) })
}

// dropOldest removes the oldest file of this capture, even where the file system has no marks: it is known by its inode.
func (r *room) dropOldest(d *directory, later bool) {
	e := r.files[0]
	r.files = r.files[1:]
	if err := d.unlink(e, later); err == nil {
		slog.Info("the oldest file was removed", "path", filepath.Join(d.path, e.name))
	} else if !errors.Is(err, unix.ENOENT) {
		slog.Warn("the oldest file was not removed", "path", filepath.Join(d.path, e.name), "because", err)
	}
}

// removed removes an own file for the room that it takes. One of this capture may still be locked, since it is being closed.
func (r *room) removed(d *directory, e entry, later bool) bool {
	remove := d.remove
	if slices.ContainsFunc(r.files, func(of entry) bool { return of.id == e.id }) {
		remove = d.unlink
	}
	err := remove(e, later && r.minFree == 0)
	switch {
	case err == nil:
		slog.Info("an older capture was removed for its room", "path", filepath.Join(d.path, e.name), "bytes", e.size)
	case errors.Is(err, unix.EWOULDBLOCK): // somebody writes it
	default:
		slog.Warn("an older capture was not removed", "path", filepath.Join(d.path, e.name), "because", err)
	}
	return err == nil
}
