// SPDX-License-Identifier: Apache-2.0

package apps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

var ne = binary.NativeEndian

// follow watches the list's folder, for another file takes the list's place with each change. A folder that is not there is no
// error, and not watched.
func (b *Book) follow() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch %s: %w", b.path, os.NewSyscallError("inotify_init1", err))
	}
	folder := filepath.Dir(b.path)
	if _, err = unix.InotifyAddWatch(fd, folder, unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_ONLYDIR); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		return fmt.Errorf("watch %s: %w", folder, os.NewSyscallError("inotify_add_watch", err))
	}
	// Not blocking, so that the runtime's poller waits, and Close ends the wait.
	b.watch = os.NewFile(uintptr(fd), "inotify")
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

// concerns tells whether a file of that name is among what inotify(7) tells of, or may be.
func concerns(events []byte, name string) bool {
	const header = unix.SizeofInotifyEvent
	for len(events) >= header {
		mask := ne.Uint32(events[4:])
		size := ne.Uint32(events[12:])
		if mask&unix.IN_Q_OVERFLOW != 0 {
			return true
		}
		if uint64(size) > uint64(len(events)-header) {
			return false
		}
		if cString(events[header:header+size]) == name {
			return true
		}
		events = events[header+size:]
	}
	return false
}
