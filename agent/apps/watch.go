// SPDX-License-Identifier: Apache-2.0

package apps

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"droidtap/agent/inotify"
)

// follow watches the list's folder, for another file takes the list's place with each change. A folder that is not there is no
// error, and not watched.
func (b *Book) follow() error {
	watch, fd, err := inotify.Open()
	if err != nil {
		return fmt.Errorf("watch %s: %w", b.path, err)
	}
	folder := filepath.Dir(b.path)
	if _, err = unix.InotifyAddWatch(fd, folder, unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_ONLYDIR); err != nil {
		_ = watch.Close() // nothing was written
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		return fmt.Errorf("watch %s: %w", folder, os.NewSyscallError("inotify_add_watch", err))
	}
	b.watch = watch
	return nil
}

// hear reads the list again after each event of it, until Close.
func (b *Book) hear() {
	defer close(b.ended)
	events := make([]byte, 16<<10)
	for {
		n, err := b.watch.Read(events)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				b.log.Warn("apps that are installed or removed from now on are not noticed", "because", fmt.Errorf("read inotify: %w", err))
			}
			return
		}
		if !concerns(events[:n], filepath.Base(b.path)) {
			continue
		}
		if err := b.read(); err != nil {
			b.log.Debug("the list of packages stays as it was", "because", err)
		}
	}
}

// concerns tells whether a file of that name is among what inotify tells of, or may be.
func concerns(events []byte, name string) bool {
	for e := range inotify.Events(events) {
		if e.Mask&unix.IN_Q_OVERFLOW != 0 || e.Name == name {
			return true
		}
	}
	return false
}
