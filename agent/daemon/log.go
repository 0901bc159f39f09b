// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// LogSize is how many bytes a log has at most before it becomes FILE.1, and that is as much as is kept.
	LogSize = 256 << 10
	// longestLine is how much of a line is written, in bytes.
	longestLine = 8 << 10
)

// Log is a file of lines with their times, and one with those before. What cannot be written is lost: a full disk must not
// stop a capture that is written elsewhere. Its methods may be called from any goroutine.
type Log struct {
	base string
	most int64
	now  func() time.Time

	mu     sync.Mutex
	dir    *os.File // nil: it is closed. Whoever owns the directory may put another in its place, but not in this one's.
	f      *os.File // nil: it cannot be opened
	size   int64
	stderr bool // f is standard error, too
}

// OpenLog opens the log at path for writing behind what is there. A link is not followed. A new file belongs to the owner
// of its directory, so that adb pull works where it does for captures.
func OpenLog(path string) (*Log, error) {
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	l := &Log{base: filepath.Base(path), most: LogSize, now: time.Now, dir: dir}
	if err := l.open(); err != nil {
		dir.Close()
		return nil, fmt.Errorf("log %s: %w", path, err)
	}
	return l, nil
}

func (l *Log) open() error {
	dir := int(l.dir.Fd())
	fd, err := unix.Openat(dir, l.base, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), l.base)
	var st, owner unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		err = unix.Fstat(dir, &owner)
	}
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1) {
		err = errors.New("it is no file, or has other names, too")
	}
	if err != nil {
		f.Close()
		return err
	}
	if st.Size == 0 {
		_ = f.Chown(int(owner.Uid), int(owner.Gid)) // or it stays root's
	}
	l.f, l.size = f, st.Size
	return nil
}

// Write writes lines. It never fails.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	stamp := l.now().Format("2006-01-02T15:04:05.000Z07:00 ")
	for line := range bytes.Lines(p) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		l.write(append(append([]byte(stamp), line[:min(len(line), longestLine)]...), '\n'))
	}
	return len(p), nil
}

func (l *Log) write(line []byte) {
	if l.size+int64(len(line)) > l.most {
		l.turn()
	} else if l.f == nil {
		l.again() // there may be room by now
	}
	if l.f == nil {
		return
	}
	n, _ := l.f.Write(line)
	l.size += int64(n)
}

// turn makes the log the one before, and begins another.
func (l *Log) turn() {
	if l.dir == nil {
		return
	}
	if l.f != nil {
		_ = l.f.Close() // of an error nobody can be told
	}
	l.f, l.size = nil, 0
	dir := int(l.dir.Fd())
	if unix.Renameat(dir, l.base, dir, l.base+".1") != nil {
		_ = unix.Unlinkat(dir, l.base, 0) // so that it does not grow
	}
	l.again()
}

// again opens the log where it is not open, if that can be done.
func (l *Log) again() {
	if l.dir != nil && l.open() == nil && l.stderr {
		_ = l.toStderr()
	}
}

// takeStderr has standard error lead to the log, whichever file that is.
func (l *Log) takeStderr() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stderr = true
	return l.toStderr()
}

func (l *Log) toStderr() error {
	if l.f == nil {
		return nil
	}
	if err := unix.Dup3(int(l.f.Fd()), int(os.Stderr.Fd()), 0); err != nil {
		return fmt.Errorf("make the log standard error: %w", err)
	}
	return nil
}

// Close closes the log. What is written later is lost.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dir == nil {
		return os.ErrClosed
	}
	err := l.dir.Close()
	if l.f != nil {
		err = errors.Join(l.f.Close(), err)
	}
	l.dir, l.f = nil, nil
	return err
}
