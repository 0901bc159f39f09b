// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// repaired is what became of a file.
type repaired struct {
	cut     int64 // bytes at its end that were torn
	packets uint64
}

func (r repaired) String() string {
	if r.cut == 0 {
		return fmt.Sprintf("whole, with %d packets", r.packets)
	}
	return fmt.Sprintf("%d bytes cut, %d packets kept", r.cut, r.packets)
}

// errNothing is the error of a file of which nothing is whole.
var errNothing = errors.New("nothing in it is whole, so it is left as it is")

// repair cuts a file that is open for writing, and locked, back to what is whole. The error may be errNothing, or wraps
// pcapng.ErrFormat.
func repair(f *os.File) (r repaired, err error) {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return r, err
	}
	whole, packets, err := wholeFile(f, st.Size())
	switch {
	case err != nil:
		return r, err
	case whole == 0:
		return r, errNothing
	}
	r = repaired{st.Size() - whole, packets}
	if r.cut == 0 {
		// After kill -9 it may be whole in memory only, and it is not looked at again.
		return r, f.Sync()
	}
	if err := errors.Join(f.Truncate(whole), f.Sync()); err != nil {
		return r, err
	}
	// It is as old as its last packet: the oldest file is the first to be removed.
	when := unix.NsecToTimeval(st.ModTime().UnixNano())
	if err := unix.Futimes(int(f.Fd()), []unix.Timeval{when, when}); err != nil {
		slog.Info("a repaired file counts as new", "path", f.Name(), "because", err)
	}
	return r, nil
}

// wholeFile returns how many bytes of a file are whole blocks, or frames of such, and how many packets those have.
func wholeFile(f io.ReaderAt, size int64) (int64, uint64, error) {
	head := make([]byte, min(4, size))
	if _, err := f.ReadAt(head, 0); err != nil {
		return 0, 0, err
	}
	all, err := newFrames(head, f, size)
	if err != nil {
		return 0, 0, err
	}
	if all == nil {
		return pcapng.Whole(io.NewSectionReader(f, 0, size))
	}
	c, err := read(all, math.MaxInt64)
	switch {
	case len(c.ends) == 0: // whatever was read of the first one
		return 0, 0, nil
	case err != nil:
		return 0, 0, err
	}
	// The agent's frames end where blocks end. Those of others may not, and then it takes another look each time.
	const most = 20
	for i, looks := len(c.ends)-1, 0; i >= 0 && looks < most; i-- {
		end := c.ends[i]
		if end.content > c.whole {
			continue
		}
		if end.content < c.whole {
			looks++
			if all, err = newFrames(head, f, size); err != nil {
				return 0, 0, err
			}
			again, err := read(all, end.content)
			if err != nil {
				return 0, 0, err
			}
			c.whole, c.packets = again.whole, again.packets
		}
		if end.content == c.whole {
			return end.file, c.packets, nil
		}
		i++ // it may still end where less is whole
	}
	return 0, 0, nil
}

// repairLeft repairs the own files that an earlier capture left without closing them.
func repairLeft(d *directory) {
	own, _, err := d.own(nil)
	if err != nil {
		slog.Warn("what an earlier capture may have left torn is not repaired", "directory", d.path, "because", err)
		return
	}
	for _, e := range own {
		if e.mark != markOpen {
			continue
		}
		path := filepath.Join(d.path, e.name)
		fd, _, err := d.openOwn(e.name, unix.O_RDWR)
		if err == nil {
			f := os.NewFile(uintptr(fd), path)
			err = repairOwn(f)
			f.Close()
		}
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			slog.Warn("an earlier capture was not closed, and is not repaired", "path", path, "because", err)
		}
	}
}

// repairOwn repairs one of them unless somebody writes it; then the error is EWOULDBLOCK.
func repairOwn(f *os.File) error {
	fd := int(f.Fd())
	if err := lock(fd); err != nil {
		return err
	}
	if markOf(fd) != markOpen { // it was closed meanwhile
		return nil
	}
	r, err := repair(f)
	if err == nil || errors.Is(err, errNothing) || errors.Is(err, pcapng.ErrFormat) { // another look would find the same
		err = errors.Join(err, setMark(fd, markDone))
	}
	if err == nil {
		slog.Warn("an earlier capture was not closed, and is repaired", "path", f.Name(), "bytes cut", r.cut, "packets kept", r.packets)
	}
	return err
}

func repairCommand() *cli.Command {
	return &cli.Command{
		Name: "repair",
		Usage: "cut off what is torn at the end of capture files, as kill -9 or an empty battery leaves it: pcapng and pcap, also " +
			"compressed by zstd and gzip",
		ArgsUsage: "FILE...",
		Action: func(c *cli.Context) error {
			paths := c.Args().Slice()
			if len(paths) == 0 {
				return plugin.Usagef("repair needs the names of files")
			}
			var errs []error
			for _, path := range paths {
				r, err := repairNamed(path)
				if err == nil {
					_, err = fmt.Fprintf(c.App.Writer, "%s: %v\n", path, r)
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}
}

// repairNamed repairs a file of the user's. It is no other file than the one of that name.
func repairNamed(path string) (repaired, error) {
	fd, err := openat(unix.AT_FDCWD, path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	switch {
	case err == unix.ELOOP:
		return repaired{}, plugin.Usagef("%s is a symbolic link: name the file itself", path)
	case err == unix.EISDIR:
		return repaired{}, plugin.Usagef("%s is a directory: name files", path)
	case err != nil:
		return repaired{}, &os.PathError{Op: "repair", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	r, err := repairOpen(f)
	if err != nil && !plugin.IsUsage(err) {
		err = fmt.Errorf("repair %s: %w", path, err)
	}
	return r, err
}

// repairOpen repairs a file of the user's that is open for writing.
func repairOpen(f *os.File) (r repaired, err error) {
	fd := int(f.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return r, err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return r, plugin.Usagef("%s is no regular file", f.Name())
	case st.Nlink > 1:
		return r, plugin.Usagef("%s has %d names (hard links), and all would change", f.Name(), st.Nlink)
	case lock(fd) == unix.EWOULDBLOCK:
		return r, written(f.Name())
	}
	if r, err = repair(f); err == nil && markOf(fd) == markOpen {
		err = setMark(fd, markDone) // the next start is not to do so again
	}
	return r, err
}
