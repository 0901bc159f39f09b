// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

// directory is an open directory: what is opened in it stays in it, whatever its path leads to later.
type directory struct {
	fd   int
	path string
}

// openDirectory opens an existing directory. The error wraps ENOENT or ENOTDIR; with unix.O_NOFOLLOW in flags it is
// ENOTDIR for a symbolic link too.
func openDirectory(path string, flags int) (*directory, error) {
	fd, err := openat(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY|flags, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open directory", Path: path, Err: err}
	}
	return &directory{fd, path}, nil
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
	return &directory{fd, path}, nil
}

// close needs no error: nothing was written through the descriptor.
func (d *directory) close() { unix.Close(d.fd) }

// create makes a new file of mode 0600 and gives it to the owner of d. The error wraps EEXIST if anything has that
// name, be it a symbolic link that leads nowhere.
func (d *directory) create(base, path string) (*regular, error) {
	fd, err := openat(d.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "create", Path: path, Err: err}
	}
	d.give(fd, path)
	return &regular{os.NewFile(uintptr(fd), path)}, nil
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
// All else is a usage error.
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
	regularFile := st.Mode&unix.S_IFMT == unix.S_IFREG
	if err == nil && regularFile {
		err = unix.Ftruncate(fd, 0)
	}
	if err != nil {
		unix.Close(fd)
		if plugin.IsUsage(err) {
			return nil, err
		}
		return nil, &os.PathError{Op: "overwrite", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if regularFile {
		return &regular{f}, nil
	}
	return &stream{f: f}, nil
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

// openat is openat(2), close-on-exec, and again if a signal came between.
func openat(dir int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, mode)
		if err != unix.EINTR {
			return fd, err
		}
	}
}
