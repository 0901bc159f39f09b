// SPDX-License-Identifier: Apache-2.0

package mapped

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// errChanged says that the process has something else there by now.
var errChanged = errors.New("it is not mapped there any more")

// Open opens the very file that is mapped, whatever has become of its name, to read it. proc is where procfs is mounted. The error
// wraps fs.ErrNotExist where the process, or what it had mapped, is gone.
//
// It opens no device and no pipe: the file is looked at before it is opened.
func Open(proc string, m *Mapping) (*os.File, error) {
	dir := filepath.Join(proc, strconv.Itoa(m.PID))
	f, err := open(filepath.Join(dir, "map_files", fmt.Sprintf("%x-%x", m.Start, m.End)), unix.O_PATH, func(st *unix.Stat_t) error {
		// An inode tells it without a look at the device, of which stat(2) has another idea on btrfs; overlayfs may have other inodes, too.
		if st.Ino == m.Inode || still(dir, m) {
			return nil
		}
		return errors.Join(errChanged, fs.ErrNotExist)
	})
	if err == nil {
		return f, nil
	}
	// map_files is for CAP_SYS_ADMIN, or CAP_CHECKPOINT_RESTORE from 5.9 on, of the first user namespace.
	name := m.Name
	if m.Deleted {
		name += gone // what has that name in earnest
	}
	if !filepath.IsAbs(name) {
		return nil, err
	}
	f, err2 := open(filepath.Join(dir, "root", name), unix.O_PATH|unix.O_NOFOLLOW, func(st *unix.Stat_t) error {
		if st.Ino == m.Inode && unix.Major(st.Dev) == m.Major && unix.Minor(st.Dev) == m.Minor {
			return nil
		}
		return fmt.Errorf("%w: its name is another file's by now", fs.ErrNotExist)
	})
	if err2 == nil {
		return f, nil
	}
	return nil, errors.Join(err, err2)
}

// open opens a regular file that check likes.
func open(path string, flags int, check func(*unix.Stat_t) error) (*os.File, error) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	if err := check(&st); err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	// O_NONBLOCK does not wait for the holder of a lease.
	own := "/proc/self/fd/" + strconv.Itoa(fd)
	readable, err := unix.Open(own, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(readable), path), nil
}

// still tells whether the process still has the file mapped there.
func still(dir string, m *Mapping) (same bool) {
	f, err := os.Open(filepath.Join(dir, "maps"))
	if err != nil {
		return false
	}
	defer f.Close() // was only read
	_ = each(bufio.NewReaderSize(f, longest), func(l line) bool {
		same = l.Start == m.Start && l.End == m.End && l.node() == m.node()
		return l.Start < m.Start
	})
	return same
}

// magic is how an ELF file begins.
var magic = []byte("\x7fELF")

// isELF tells whether an ELF file begins at an offset of a file.
func isELF(f *os.File, at uint64) bool {
	var b [4]byte
	_, err := f.ReadAt(b[:], int64(at)) // of an offset past the largest file it is EINVAL, or Go's for a negative one
	return err == nil && bytes.Equal(b[:], magic)
}
