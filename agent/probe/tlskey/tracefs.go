// SPDX-License-Identifier: Apache-2.0

package tlskey

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"droidtap/agent/process"
	"droidtap/agent/uprobe"
)

// tracefs is the kernel's file system of events, where uprobes can be given names and arguments
// (Documentation/trace/uprobetracer.rst).
type tracefs struct {
	dir   string
	mount *os.File // of our own, which nobody else sees; nil: it was mounted
}

// openTracefs finds where it is mounted, and mounts it for us alone if it is not, which kernels before 5.2 cannot. The error wraps
// uprobe.ErrNone, os.ErrPermission or the system's.
func openTracefs() (*tracefs, error) {
	for _, dir := range []string{"/sys/kernel/tracing", "/sys/kernel/debug/tracing"} {
		if _, err := os.Stat(filepath.Join(dir, "events")); err == nil {
			return checked(&tracefs{dir: dir})
		}
	}
	mount, err := mountTracefs()
	if err != nil {
		return nil, fmt.Errorf("tracefs is not mounted, and %w: mount -t tracefs tracefs /sys/kernel/tracing", err)
	}
	return checked(&tracefs{dir: fmt.Sprintf("/proc/self/fd/%d", mount.Fd()), mount: mount})
}

// checked fails where the kernel has tracefs, and no uprobes in it.
func checked(t *tracefs) (*tracefs, error) {
	if _, err := os.Stat(t.file("uprobe_events")); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = uprobe.ErrNone
		}
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func mountTracefs() (*os.File, error) {
	fsfd, err := unix.Fsopen("tracefs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(fd), "tracefs"), nil
}

// Close gives up a mount of our own.
func (t *tracefs) Close() error {
	if t.mount == nil {
		return nil
	}
	return t.mount.Close()
}

func (t *tracefs) file(name ...string) string {
	return filepath.Join(append([]string{t.dir}, name...)...)
}

// command gives a line to uprobe_events. It must not be opened to be truncated: that removes the uprobes of everybody.
func (t *tracefs) command(line string) error {
	f, err := os.OpenFile(t.file("uprobe_events"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// groupPrefix is how the names of the groups of our events begin.
const groupPrefix = "droidtap_"

// group is in the name of a group of events what tells whose it is. The kernel keeps it, so it holds for processes that were killed.
type group struct {
	ns    uint64 // inode of the pid namespace: in another one pid means another process
	pid   int
	start uint64 // in clock ticks after boot; tells a re-used pid from the process that made the event
}

func ownGroup() (group, error) {
	start, err := process.Start(os.Getpid())
	if err != nil {
		return group{}, fmt.Errorf("ask when we began: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return group{}, fmt.Errorf("ask for the pid namespace: %w", err)
	}
	return group{st.Ino, os.Getpid(), start}, nil
}

func (g group) String() string { return fmt.Sprintf("%s%d_%d_%d", groupPrefix, g.ns, g.pid, g.start) }

// parseGroup reads the name of a group; false says that it is not ours.
func parseGroup(name string) (group, bool) {
	rest, ok := strings.CutPrefix(name, groupPrefix)
	part := strings.Split(rest, "_")
	if !ok || len(part) != 3 {
		return group{}, false
	}
	ns, err := strconv.ParseUint(part[0], 10, 64)
	pid, err1 := strconv.ParseUint(part[1], 10, 31)
	start, err2 := strconv.ParseUint(part[2], 10, 64)
	g := group{ns, int(pid), start}
	// What does not print as it was read, such as 007, was not written by us.
	return g, errors.Join(err, err1, err2) == nil && g.String() == name
}

// sweep removes the events of agents that are gone: a killed one cannot. They cost nothing but a line each, since the perf events
// that had them run are gone, too. It returns how many there were.
func (t *tracefs) sweep(own group) (n int, err error) {
	list, err := os.ReadFile(t.file("uprobe_events"))
	if err != nil {
		return 0, err
	}
	var errs []error
	for line := range strings.Lines(string(list)) {
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "p:"), " ")
		of, _, _ := strings.Cut(name, "/")
		g, ours := parseGroup(of)
		if !ours || g.ns != own.ns || g == own {
			continue
		}
		if start, err := process.Start(g.pid); err == nil && start == g.start || err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := t.command("-:" + name); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", name, err))
			continue
		}
		n++
	}
	return n, errors.Join(errs...)
}
