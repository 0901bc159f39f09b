// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrRunning is wrapped by the error of Lock for a pid file that a living process holds.
var ErrRunning = errors.New("an agent runs already")

// PidFile names this process for as long as it holds the lock on it.
type PidFile struct {
	// Stale tells whose it was before, ", pid 7", if it was left by a process that has ended; "": it is new.
	Stale string

	f    *os.File
	path string
}

// Lock makes the pid file, or takes over one whose process has ended, however that was. Nobody but root may be able to write in its directory: see
// Resolve, of which the error may be. It wraps ErrRunning if another process holds it.
func Lock(path string) (*PidFile, error) {
	path, err := Resolve(path)
	if err != nil {
		return nil, err
	}
	for {
		p, err := lock(path)
		if err != nil || p != nil {
			return p, err
		}
	}
}

// lock returns nil, nil if the file was removed meanwhile by the process whose it was.
func lock(path string) (p *PidFile, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if p == nil {
			f.Close()
		}
	}()
	var st, there unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "look at", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink > 1 {
		return nil, fmt.Errorf("pid file %s is no file, or has other names, too", path)
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case err == unix.EWOULDBLOCK:
		return nil, fmt.Errorf("%w%s: it holds %s", ErrRunning, holder(f), path)
	case err != nil:
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	if unix.Lstat(path, &there) != nil || there.Ino != st.Ino || there.Dev != st.Dev {
		return nil, nil
	}
	stale := holder(f)
	if stale == "" && st.Size > 0 {
		stale = ", of no pid"
	}
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		return nil, err
	}
	return &PidFile{Stale: stale, f: f, path: path}, nil
}

// holder says whose a pid file is, as far as that can be read.
func holder(f *os.File) string {
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0)
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n]))); err == nil && pid > 0 {
		return fmt.Sprintf(", pid %d", pid)
	}
	return "" // it is about to write it
}

// Remove removes the file and gives up the lock, in this order: whoever waits for the lock sees that the file is gone.
func (p *PidFile) Remove() error {
	err := os.Remove(p.path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, p.f.Close())
}
