// SPDX-License-Identifier: Apache-2.0

// Package inotify reads what inotify(7) tells of files and directories.
package inotify

import (
	"bytes"
	"encoding/binary"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// Open makes an inotify instance that does not block: the runtime's poller waits in a Read, and Close ends that. fd is file's, for
// unix.InotifyAddWatch: file.Fd would make it block.
func Open() (file *os.File, fd int, err error) {
	if fd, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		return nil, -1, os.NewSyscallError("inotify_init1", err)
	}
	return os.NewFile(uintptr(fd), "inotify"), fd, nil
}

// Event is one thing that happened.
type Event struct {
	Watch int32  // as unix.InotifyAddWatch returned it; -1 for unix.IN_Q_OVERFLOW
	Mask  uint32 // unix.IN_*
	Name  string // in the watched directory; "" where it happened to that itself
}

// Events returns those in bytes that a Read returned. One that is cut off ends them.
func Events(b []byte) iter.Seq[Event] {
	const header = unix.SizeofInotifyEvent
	ne := binary.NativeEndian
	return func(yield func(Event) bool) {
		for len(b) >= header {
			size := ne.Uint32(b[12:])
			if uint64(size) > uint64(len(b)-header) {
				return
			}
			name, _, _ := bytes.Cut(b[header:header+size], []byte{0})
			if !yield(Event{int32(ne.Uint32(b)), ne.Uint32(b[4:]), string(name)}) {
				return
			}
			b = b[header+size:]
		}
	}
}
