// SPDX-License-Identifier: Apache-2.0

// Package uprobe has a bpf program run where any process comes to an instruction of a file. It is the uprobe of perf alone
// (kernel/events/core.c, perf_uprobe, 4.17): nothing is named, so nothing is left behind by a process that is killed.
package uprobe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ErrNone is wrapped by the error of a kernel that is built without uprobes.
var ErrNone = errors.New("this kernel has no uprobes (CONFIG_UPROBE_EVENTS)")

// pmu is the file in which the kernel tells the type of perf events that are uprobes.
const pmu = "/sys/bus/event_source/devices/uprobe/type"

// Uprobe is a program that is attached.
type Uprobe struct{ fd int }

// Attach has prog run at the instruction at an offset of f, in bytes, in all processes that map it to execute, now or later.
// Neither the file's name nor the mount namespace matters, and f may be closed afterwards. The error wraps ErrNone,
// os.ErrPermission or the system's.
//
// A process that maps the file in such a way that the kernel cannot probe it there, to write for one, is passed over without
// a word (kernel/events/uprobes.c, valid_vma).
func Attach(f *os.File, offset uint64, prog *ebpf.Program) (*Uprobe, error) {
	kind, err := kindOf(os.ReadFile(pmu))
	if err != nil {
		return nil, err
	}
	path, err := unix.BytePtrFromString(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		return nil, err
	}
	var pin runtime.Pinner // the kernel follows a pointer that is none to Go
	defer pin.Unpin()
	pin.Pin(path)
	attr := unix.PerfEventAttr{
		Type: kind,
		Size: uint32(unsafe.Sizeof(unix.PerfEventAttr{})),
		Ext1: uint64(uintptr(unsafe.Pointer(path))), // uprobe_path
		Ext2: offset,                                // probe_offset
	}
	// Without a process it is for all of them, and the processor does not matter: programs run before it is looked at
	// (kernel/trace/trace_uprobe.c, __uprobe_perf_func).
	fd, err := unix.PerfEventOpen(&attr, -1, 0, -1, unix.PERF_FLAG_FD_CLOEXEC)
	runtime.KeepAlive(f)
	if err != nil {
		return nil, fmt.Errorf("probe the instruction at %#x: %w", offset, Explain(err))
	}
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_SET_BPF, prog.FD()); err != nil {
		return nil, errors.Join(fmt.Errorf("set the program of a uprobe: %w", Explain(err)), unix.Close(fd))
	}
	if err := unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("enable a uprobe: %w", err), unix.Close(fd))
	}
	return &Uprobe{fd}, nil
}

// Close takes the uprobe out of all processes.
func (u *Uprobe) Close() error { return unix.Close(u.fd) }

// kindOf reads the content of pmu, or why there is none.
func kindOf(content []byte, err error) (uint32, error) {
	if errors.Is(err, fs.ErrNotExist) {
		return 0, ErrNone
	}
	if err != nil {
		return 0, fmt.Errorf("ask for uprobes: %w", err)
	}
	kind, err := strconv.ParseUint(strings.TrimSpace(string(content)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("ask for uprobes: %w", err)
	}
	return uint32(kind), nil
}

// enotsupp is the kernel's ENOTSUPP, which user space has no name for.
const enotsupp = unix.Errno(524)

// Explain says what an error of perf_event_open(2), or of a line for tracefs, means for a uprobe. It wraps the error.
func Explain(err error) error {
	why := ""
	switch {
	case errors.Is(err, os.ErrPermission):
		why = "run as root, and see the kernel's lockdown and SELinux's perf_event"
	case errors.Is(err, unix.ENOENT):
		why = "is /proc mounted?"
	case errors.Is(err, unix.EINVAL):
		why = "it is behind the end of the file, is no regular file, or is an instruction that cannot be probed"
	case errors.Is(err, unix.EIO):
		why = "the file system cannot be probed"
	case errors.Is(err, unix.ENOEXEC), errors.Is(err, enotsupp), errors.Is(err, unix.EOPNOTSUPP):
		why = "it is an instruction that the kernel cannot probe, or is none"
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		why = "too many files are open"
	default:
		return err
	}
	return fmt.Errorf("%w (%s)", err, why)
}
