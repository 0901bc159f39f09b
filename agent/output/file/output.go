// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

// regular is a file that began empty and is ours alone: pcapng.Writer may cut it back when the disk is full.
type regular struct {
	f      *os.File
	dir    *directory // where it is
	base   string     // its name there
	id     id
	size   int64 // bytes in it
	room   *room
	marked bool              // it carries the mark
	then   func(path string) // what is done with it when it is closed; nil: nothing
	ended  atomic.Bool       // nothing is written to it any more

	mu     sync.Mutex // of Sync and Close
	closed bool
	named  bool // its name survives a power cut
}

func (r *regular) Name() string { return r.f.Name() }

// Write removes older files where there is no room, if it may.
func (r *regular) Write(b []byte) (int, error) {
	if err := r.room.admit(r.dir, r.id, r.size, int64(len(b))); err != nil {
		return 0, err
	}
	done := 0
	for {
		n, err := r.f.Write(b[done:])
		r.size += int64(n)
		done += n
		if !full(err) || !r.room.dropAny(r.dir, r.id) {
			return done, err
		}
	}
}

// full tells whether the disk is, or the part of it that a user may have.
func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// Truncate cuts the file back. What is written then goes behind its new end.
func (r *regular) Truncate(size int64) error {
	if err := r.f.Truncate(size); err != nil {
		return err
	}
	r.size = size
	_, err := r.f.Seek(size, io.SeekStart)
	return err
}

// errRemoved is the error of a file that has no name any more.
var errRemoved = errors.New("the file was removed, and what is written to it until the next one (agent rotate) goes with it")

// Sync returns when what was written survives a power cut. The error may wrap errRemoved.
func (r *regular) Sync() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return os.ErrClosed
	}
	if err := unix.Fdatasync(int(r.f.Fd())); err != nil {
		return &os.PathError{Op: "sync", Path: r.f.Name(), Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(r.f.Fd()), &st); err == nil && st.Nlink == 0 && !r.ended.Load() {
		return &os.PathError{Op: "sync", Path: r.f.Name(), Err: errRemoved}
	}
	if r.named {
		return nil
	}
	err := r.dir.sync()
	r.named = err == nil
	return err
}

// Close returns once the file is on the disk, and its name.
func (r *regular) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return os.ErrClosed
	}
	r.closed = true
	err := r.f.Sync()
	if err == nil && r.marked { // a file that is marked so is not looked at again: never before it is on the disk, and maybe later
		err = setMark(int(r.f.Fd()), markDone)
	}
	if !r.named {
		err = errors.Join(err, r.dir.sync())
	}
	err = errors.Join(err, r.f.Close())
	r.dir.close()
	if r.then != nil {
		r.then(r.f.Name())
	}
	return err
}

// stream is a pipe, a device, or standard output. It cannot be cut back: what got out is out, and standard output may
// be a file that others have written to before.
type stream struct {
	f    *os.File
	sync bool // it is a regular file
}

func (s *stream) Name() string                { return s.f.Name() }
func (s *stream) Write(b []byte) (int, error) { return s.f.Write(b) }

func (s *stream) Close() error {
	if s.sync {
		return errors.Join(s.f.Sync(), s.f.Close())
	}
	return s.f.Close()
}

// standardOutput returns a duplicate of stdout, which stays open. Writing to descriptor 1 itself would kill the
// process with SIGPIPE when the reader of a pipe goes away (package os/signal); the duplicate says EPIPE.
func standardOutput(stdout *os.File) (plugin.File, error) {
	if cooked(int(stdout.Fd())) {
		return nil, plugin.Usagef("standard output is a terminal, and a capture is not text: redirect it, or use -w FILE")
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(stdout.Fd()), &st); err != nil {
		return nil, fmt.Errorf("write to standard output: %w", err)
	}
	fd, err := unix.FcntlInt(stdout.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate standard output: %w", err)
	}
	return &stream{os.NewFile(uintptr(fd), "standard output"), st.Mode&unix.S_IFMT == unix.S_IFREG}, nil
}

// cooked tells whether fd is a terminal that changes what is written to it. That of adb exec-out does not: adbd gives
// it as a raw pipe for bytes (AOSP shell_service.cpp, StartSubprocess).
func cooked(fd int) bool {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil && t.Oflag&unix.OPOST != 0
}
