// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

// directory is an open directory: what is opened in it stays in it, whatever its path leads to later.
type directory struct {
	fd     int
	path   string
	prefix string // of the paths of files in it
}

func newDirectory(fd int, path string) *directory {
	return &directory{fd, path, strings.TrimSuffix(filepath.Join(path, "x"), "x")}
}

// openDirectory opens an existing directory. The error wraps ENOENT or ENOTDIR; with unix.O_NOFOLLOW in flags it is
// ENOTDIR for a symbolic link too.
func openDirectory(path string, flags int) (*directory, error) {
	fd, err := openat(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY|flags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open directory", Path: path, Err: err}
	}
	return newDirectory(fd, path), nil
}

// openOrMake is openDirectory, but makes the last element of path if it is missing, and gives it to the owner of the
// directory it lies in.
func openOrMake(path string, flags int) (*directory, error) {
	dir, err := openDirectory(path, flags)
	if !errors.Is(err, unix.ENOENT) {
		return dir, err
	}
	parent, err := openDirectory(filepath.Dir(path), 0)
	if err != nil {
		return nil, err
	}
	defer parent.close()
	base := filepath.Base(path)
	made := unix.Mkdirat(parent.fd, base, 0o755)
	if made != nil && made != unix.EEXIST {
		return nil, &os.PathError{Op: "make directory", Path: path, Err: made}
	}
	// Not O_PATH, since the owner of such a descriptor cannot be changed.
	fd, err := openat(parent.fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open directory", Path: path, Err: err}
	}
	if made == nil {
		parent.give(fd, path)
	}
	return newDirectory(fd, path), nil
}

// close needs no error: nothing was written through the descriptor.
func (d *directory) close() { unix.Close(d.fd) }

// making is how files are made.
type making struct {
	mode  uint32 // permissions; 0: those of the owner alone
	owner *int   // uid and gid; nil: those of the directory
}

// create makes a new file. The error wraps EEXIST if anything has that name, be it a symbolic link that leads nowhere. The file
// takes d over.
func (d *directory) create(base, path string, m making) (*regular, error) {
	fd, err := openat(d.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: path, Err: err}
	}
	if m.owner == nil {
		d.give(fd, path)
	} else if err := unix.Fchown(fd, *m.owner, *m.owner); err != nil {
		slog.Warn("not given to the owner that -Z names", "path", path, "uid", *m.owner, "because", err)
	}
	if m.mode != 0 { // chmod(2), for a umask would take from what open is told
		if err := unix.Fchmod(fd, m.mode); err != nil {
			slog.Warn("permissions are not those of --file-mode", "path", path, "because", err)
		}
	}
	return d.take(fd, base, path)
}

// createFree makes a new file with the first number from a given one on that is free behind stem, and returns that; 0 stands for
// none.
func (d *directory) createFree(stem, extension, before string, number int, m making) (*regular, int, error) {
	for last := number + 999; number <= last; number++ {
		base := stem + extension
		if number > 0 {
			base = stem + before + strconv.Itoa(number) + extension
		}
		if r, err := d.create(base, d.prefix+base, m); !errors.Is(err, unix.EEXIST) {
			return r, number, err
		}
	}
	return nil, 0, fmt.Errorf("create %s%s: the next 1,000 numbers are taken", d.prefix+stem, extension)
}

// unused returns a usage error if another process writes the file base.
func (d *directory) unused(base, path string) error {
	fd, err := openat(d.fd, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil // it is not there any more, or no regular file
	}
	defer unix.Close(fd)
	if err := lock(fd); err == unix.EWOULDBLOCK {
		return written(path)
	}
	return nil
}

// take makes an open file that is empty one of ours. The error is a usage error if another process writes it.
func (d *directory) take(fd int, base, path string) (*regular, error) {
	locked := lock(fd) // some file systems have no locks
	if locked == unix.EWOULDBLOCK {
		unix.Close(fd)
		return nil, written(path)
	}
	r := &regular{f: os.NewFile(uintptr(fd), path), dir: d, base: base}
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil {
		err = unix.Ftruncate(fd, 0) // not before it is locked
	}
	if err != nil {
		return nil, &os.PathError{Op: "overwrite", Path: path, Err: errors.Join(err, r.f.Close())}
	}
	r.id = entryOf(base, &st).id
	// What a start finds open and not locked is taken for left.
	r.marked = locked == nil && setMark(fd, markOpen) == nil
	return r, nil
}

// give makes the owner of d that of the open file fd. On a phone /data/local/tmp belongs to shell, and what we leave
// there must be readable by adb pull. A capture is worth more than its owner, so a failure is only told.
func (d *directory) give(fd int, path string) {
	var dir, file unix.Stat_t
	if os.Geteuid() != 0 || unix.Fstat(d.fd, &dir) != nil || unix.Fstat(fd, &file) != nil {
		return
	}
	if dir.Uid == file.Uid && dir.Gid == file.Gid {
		return
	}
	if err := unix.Fchown(fd, int(dir.Uid), int(dir.Gid)); err != nil {
		slog.Warn("not given to the owner of its directory", "path", path, "uid", dir.Uid, "err", err)
	}
}

// overwrite opens what exists under the name base: a regular file, which it empties, a FIFO or a character device.
// All else is a usage error. A file takes d over.
func (d *directory) overwrite(base, path string) (plugin.File, error) {
	// O_NONBLOCK, or a FIFO that nobody reads would hang us out of reach of Ctrl-C.
	fd, err := openat(d.fd, base, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, d.explain(base, path, err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		err = accept(fd, path, &st)
	}
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFIFO {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		unix.Close(fd)
		if plugin.IsUsage(err) {
			return nil, err
		}
		return nil, &os.PathError{Op: "overwrite", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return d.take(fd, base, path)
	}
	d.close()
	return &stream{f: os.NewFile(uintptr(fd), path)}, nil
}

// accept refuses what must not be written to.
func accept(fd int, path string, st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if st.Nlink > 1 {
			return plugin.Usagef("%s has %d names (hard links), and all would change: remove it or choose another file with -w",
				path, st.Nlink)
		}
		return nil
	case unix.S_IFIFO:
		return nil
	case unix.S_IFCHR:
		if cooked(fd) {
			return plugin.Usagef("%s is a terminal, and a capture is not text: choose a file with -w", path)
		}
		return nil
	}
	return plugin.Usagef("%s is neither a file nor a FIFO: choose another with -w", path)
}

// explain tells why base could not be opened for writing.
func (d *directory) explain(base, path string, err error) error {
	var st unix.Stat_t
	if unix.Fstatat(d.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			return plugin.Usagef("%s is a symbolic link, which -w does not follow: name the file itself "+
				"(for standard output, use -w -)", path)
		case unix.S_IFDIR:
			return isDirectory(path)
		case unix.S_IFSOCK:
			return plugin.Usagef("%s is a socket: choose a file with -w", path)
		case unix.S_IFIFO:
			if err == unix.ENXIO {
				return plugin.Usagef("nothing reads the FIFO %s: start its reader first", path)
			}
		}
	}
	return &os.PathError{Op: "overwrite", Path: path, Err: err}
}

func isDirectory(path string) error {
	return plugin.Usagef("%s is a directory: name a file in it with -w, or use --output-dir", path)
}

// reopen opens d for what an O_PATH descriptor cannot do.
func (d *directory) reopen() (fd int, err error) {
	if fd, err = openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return -1, &os.PathError{Op: "open directory", Path: d.path, Err: err}
	}
	return fd, nil
}

// sync returns when the names in d survive a power cut.
func (d *directory) sync() error {
	fd, err := d.reopen()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fsync(fd); err != nil && err != unix.EINVAL { // a file system that does not do so
		return &os.PathError{Op: "sync directory", Path: d.path, Err: err}
	}
	return nil
}

// free returns how many bytes the file system of d has for everybody. What it keeps for root is not among them.
func (d *directory) free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(d.fd, &st); err != nil {
		return 0, &os.PathError{Op: "ask for the free space of", Path: d.path, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// openat is openat(2), close-on-exec, and again if a signal came between.
func openat(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
