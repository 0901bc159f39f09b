// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Android's user for the system's own processes, to whom /data belongs there (system/core/rootdir/init.rc).
const aidSystem = 1000

// Directory is where the files of a running agent are where no option says so: on a phone below /data/adb, which only root may
// enter, and never where shell may write.
func Directory() string {
	if onPhone() {
		return "/data/adb/droidtap/run"
	}
	return "/run/droidtap"
}

func onPhone() bool {
	st, err := os.Stat("/system/bin")
	return err == nil && st.IsDir()
}

// MakeDirectory makes Directory, for root alone.
func MakeDirectory() error {
	// /data/adb is there where there is a su; a userdebug build has none.
	return os.MkdirAll(Directory(), 0o700)
}

// ErrOpen is wrapped by the error for a directory in which others than root could put something.
var ErrOpen = errors.New("others than root may write there")

// Resolve returns path with the links in its directory followed. The error wraps ErrOpen where others than root may
// change what is found under the path that it returns.
func Resolve(path string) (string, error) {
	dir, err := filepath.Abs(filepath.Dir(path))
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return "", err
	}
	phone := onPhone()
	for at := dir; ; at = filepath.Dir(at) {
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return "", &os.PathError{Op: "look at", Path: at, Err: err}
		}
		if !closed(&st, at == dir, phone) {
			return "", fmt.Errorf("%s: directory %s: %w", path, at, ErrOpen)
		}
		if at == "/" {
			return filepath.Join(dir, filepath.Base(path)), nil
		}
	}
}

// closed tells whether only root, and on a phone the system, may change a directory. One above the last may be as /tmp is:
// what is root's stays root's there.
func closed(st *unix.Stat_t, last, phone bool) bool {
	trusted := func(id uint32) bool { return id == 0 || phone && id == aidSystem }
	sticky := st.Mode&unix.S_ISVTX != 0 && !last
	return st.Mode&unix.S_IFMT == unix.S_IFDIR && trusted(st.Uid) &&
		(st.Mode&0o020 == 0 || trusted(st.Gid) || sticky) &&
		(st.Mode&0o002 == 0 || sticky)
}
