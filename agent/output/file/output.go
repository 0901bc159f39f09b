// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

// regular is a file that began empty and is ours alone: pcapng.Writer may cut it back when the disk is full.
type regular struct{ f *os.File }

func (r *regular) Name() string                { return r.f.Name() }
func (r *regular) Write(b []byte) (int, error) { return r.f.Write(b) }
func (r *regular) Truncate(size int64) error   { return r.f.Truncate(size) }

// Close returns once the file is on the disk.
func (r *regular) Close() error { return errors.Join(r.f.Sync(), r.f.Close()) }

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
