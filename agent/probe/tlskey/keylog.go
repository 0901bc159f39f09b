// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

// mostWaiting is how many bytes of lines are kept while they cannot be written.
const mostWaiting = 256 << 10

// keyLog is a key log as NSS has it (RFC 9850), which is written behind what is there. One goroutine uses it.
//
// Several agents may write one file: the lines that come together are one write(2), which O_APPEND keeps whole. What cannot be
// written is tried again when the next lines come: a full disk does not end a capture that is written elsewhere.
type keyLog struct {
	path string
	base string
	dir  int // whoever owns the directory may put another in its place, but not in this one's
	fd   int
	log  *slog.Logger

	known   recentLines // that are written, or wait
	waiting []byte      // whole lines
	ragged  bool        // the file ends in the middle of a line
	said    bool        // that it cannot be written
	lost    uint64      // lines that are not in the file, and will not be
}

// appendLine appends a line of a key log to b. A label that is none, as one that was read from an app's memory may be, adds nothing.
func appendLine(b []byte, label string, random, secret []byte) []byte {
	if !isLabel(label) || len(random) != 32 || len(secret) == 0 {
		return b
	}
	b = append(append(b, label...), ' ')
	b = append(hex.AppendEncode(b, random), ' ')
	return append(hex.AppendEncode(b, secret), '\n')
}

// isLabel tells whether a label can stand in a line.
func isLabel(label string) bool {
	isNone := func(r rune) bool { return (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' }
	return label != "" && !strings.ContainsFunc(label, isNone)
}

// openKeyLog opens a key log, or makes it: for the owner of its directory alone, as captures are. An error that is no usage
// error is the system's.
func openKeyLog(path string, log *slog.Logger) (*keyLog, error) {
	k := &keyLog{path: path, base: filepath.Base(path), log: log, dir: -1, fd: -1}
	switch {
	case path == "":
		return nil, plugin.Usagef("--keylog needs the name of a file")
	case path == "-":
		return nil, plugin.Usagef("--keylog - would be standard output: name a file")
	case path[len(path)-1] == '/':
		return nil, k.refuse("is a directory: name a file in it")
	}
	parent := filepath.Dir(path)
	var err error
	switch k.dir, err = openat(unix.AT_FDCWD, parent, unix.O_PATH|unix.O_DIRECTORY); err {
	case nil:
	case unix.ENOENT:
		return nil, plugin.Usagef("--keylog %s: directory %s does not exist", path, parent)
	case unix.ENOTDIR:
		return nil, plugin.Usagef("--keylog %s: %s is not a directory", path, parent)
	default:
		return nil, &os.PathError{Op: "open the directory of the key log", Path: path, Err: err}
	}
	if err = k.open(); err != nil {
		unix.Close(k.dir)
		return nil, err
	}
	return k, nil
}

// refuse makes a usage error of what is wrong with the file.
func (k *keyLog) refuse(format string, args ...any) error {
	return plugin.Usagef("--keylog %s "+format, append([]any{k.path}, args...)...)
}

// open opens the file, or makes it.
func (k *keyLog) open() error {
	// Read, too, for its end. O_NONBLOCK, or something else than a file could hang us.
	const flags = unix.O_RDWR | unix.O_APPEND | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	made := false
	fd, err := openat(k.dir, k.base, flags)
	for range 8 { // somebody else may make it or remove it meanwhile
		if err != unix.ENOENT {
			break
		}
		fd, err = openat(k.dir, k.base, flags|unix.O_CREAT|unix.O_EXCL)
		if made = err == nil; err == unix.EEXIST {
			fd, err = openat(k.dir, k.base, flags)
		}
	}
	switch err {
	case nil:
	case unix.ELOOP:
		return k.refuse("is a symbolic link, which is not followed: name the file itself")
	case unix.EISDIR:
		return k.refuse("is a directory: name a file in it")
	case unix.ENXIO:
		return k.refuse("is no regular file")
	default:
		return &os.PathError{Op: "open the key log", Path: k.path, Err: err}
	}
	ragged, err := k.inspect(fd, made)
	if err != nil {
		unix.Close(fd)
		return err
	}
	if k.fd >= 0 {
		unix.Close(k.fd)
	}
	k.fd, k.ragged = fd, ragged
	return nil
}

// inspect refuses what is not to be written to, and tells whether the file ends in the middle of a line.
func (k *keyLog) inspect(fd int, made bool) (ragged bool, err error) {
	var st, dir unix.Stat_t
	if err = errors.Join(unix.Fstat(k.dir, &dir), unix.Fstat(fd, &st)); err != nil {
		return false, &os.PathError{Op: "look at the key log", Path: k.path, Err: err}
	}
	euid := uint32(os.Geteuid())
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return false, k.refuse("is no regular file")
	case st.Nlink > 1:
		return false, k.refuse("has %d names (hard links): remove it or choose another file", st.Nlink)
	case st.Uid != 0 && st.Uid != euid && st.Uid != dir.Uid:
		// In a directory like /tmp it may be there to get at the secrets of others.
		return false, k.refuse("belongs to user %d, and its directory does not: remove it or choose another file", st.Uid)
	}
	if unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK { // captures are locked by who writes them, and key logs shared
		return false, k.refuse("is being written as a capture: choose another file")
	}
	if made && euid == 0 && (dir.Uid != st.Uid || dir.Gid != st.Gid) { // or adb pull, which is shell's, could not read it
		if err := unix.Fchown(fd, int(dir.Uid), int(dir.Gid)); err != nil {
			k.log.Warn("the key log is not given to the owner of its directory", "path", k.path, "uid", dir.Uid, "because", err)
		}
	}
	if others := st.Mode & 0o077; others != 0 { // also of a new one, on file systems without permissions
		k.log.Warn("others than its owner may use the key log", "path", k.path, "permissions", fmt.Sprintf("%04o", st.Mode&0o7777))
	}
	if st.Size == 0 {
		return false, nil
	}
	var last [1]byte
	if _, err := unix.Pread(fd, last[:], st.Size-1); err != nil {
		return false, &os.PathError{Op: "read the end of the key log", Path: k.path, Err: err}
	}
	return last[0] != '\n', nil
}

// write writes the lines that this run has not written yet, and those that still wait.
func (k *keyLog) write(lines []byte) {
	for line := range bytes.Lines(lines) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		if len(line) > 0 && k.known.add(line) {
			k.waiting = append(append(k.waiting, line...), '\n')
		}
	}
	if len(k.waiting) == 0 {
		return
	}
	err := k.put()
	if err != nil && !k.said {
		k.said = true
		k.log.Warn("the key log cannot be written, which is tried again at each secret", "path", k.path, "because", err)
	}
	k.shed(mostWaiting)
}

// shed drops the oldest lines that wait, until no more than most bytes do.
func (k *keyLog) shed(most int) {
	dropped := 0
	for line := range bytes.Lines(k.waiting) {
		if len(k.waiting)-dropped <= most {
			break
		}
		dropped += len(line)
		k.lost++
		k.known.forget(bytes.TrimSuffix(line, []byte("\n")))
	}
	k.waiting = slices.Delete(k.waiting, 0, dropped)
}

// put writes the lines that wait, as many as can be.
func (k *keyLog) put() error {
	var st unix.Stat_t
	if err := unix.Fstat(k.fd, &st); err == nil && st.Nlink == 0 { // removed: what is written to it would be gone
		if err := k.open(); err != nil {
			return err
		}
	}
	b := k.waiting
	if k.ragged {
		b = append([]byte("\n"), b...)
	}
	n, err := unix.Write(k.fd, b)
	for err == unix.EINTR {
		n, err = unix.Write(k.fd, b)
	}
	switch {
	case n == len(b):
		k.ragged, k.waiting = false, k.waiting[:0]
		return nil
	case err == nil:
		err = io.ErrShortWrite // the next one says why
	}
	if n <= 0 {
		return err
	}
	written := b[:n]
	if k.ragged {
		k.ragged, written = false, written[1:]
	}
	whole := bytes.LastIndexByte(written, '\n') + 1
	if part := len(written) - whole; part > 0 {
		k.ragged = k.hide(part) != nil
	}
	k.waiting = slices.Delete(k.waiting, 0, whole)
	return err
}

// hide makes a comment of the n bytes of a line that were written last: half a secret could be taken for a whole one. They are not
// cut off, for another agent may have written behind them by now.
func (k *keyLog) hide(n int) error {
	end, err := unix.Seek(k.fd, 0, io.SeekCurrent) // that of what was written here, also with O_APPEND
	if err != nil {
		return err
	}
	flags, err := unix.FcntlInt(uintptr(k.fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	// With O_APPEND pwrite(2) appends, whatever it is told.
	if _, err := unix.FcntlInt(uintptr(k.fd), unix.F_SETFL, flags&^unix.O_APPEND); err != nil {
		return err
	}
	comment := append(bytes.Repeat([]byte("#"), n-1), '\n')
	done, err := unix.Pwrite(k.fd, comment, end-int64(n))
	if err == nil && done < n {
		err = io.ErrShortWrite
	}
	_, again := unix.FcntlInt(uintptr(k.fd), unix.F_SETFL, flags)
	return errors.Join(err, again)
}

// close tries once more to write what waits, and returns once the file is on the disk. Then lost is what is missing.
func (k *keyLog) close() error {
	if len(k.waiting) > 0 {
		k.write(nil)
		k.shed(0)
	}
	err := unix.Fsync(k.fd)
	if err == unix.EINVAL { // a file system that does not do so
		err = nil
	}
	err = errors.Join(err, unix.Close(k.fd), unix.Close(k.dir))
	k.fd, k.dir = -1, -1
	if err != nil {
		return &os.PathError{Op: "close the key log", Path: k.path, Err: err}
	}
	return nil
}

// openat is openat(2), close-on-exec, with the permissions of a new file, and again if a signal came between.
func openat(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0o600)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
