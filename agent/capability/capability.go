// SPDX-License-Identifier: Apache-2.0

// Package capability takes from a process of root the capabilities that a capture does not need.
package capability

import (
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Set is a set of capabilities: a bit for each CAP_* number, as in /proc/PID/status.
type Set uint64

// has tells whether a capability is in the set.
func (s Set) has(capability int) bool { return s>>capability&1 == 1 }

// Needed returns what a capture uses, from its start to its end.
func Needed() Set {
	var s Set
	for _, c := range []int{
		unix.CAP_NET_ADMIN,    // TCX, clsact, the buffers of netlink sockets
		unix.CAP_NET_RAW,      // packet sockets
		unix.CAP_BPF,          // maps and programs, from 5.8 on
		unix.CAP_PERFMON,      // programs that read kernel memory, perf's rings, from 5.8 on
		unix.CAP_SYS_ADMIN,    // both before 5.8; trusted.* attributes
		unix.CAP_SYS_RESOURCE, // RLIMIT_MEMLOCK, before 5.11
		unix.CAP_IPC_LOCK,     // perf's rings that are larger than it, since
		unix.CAP_SYS_PTRACE,   // /proc/PID/fd of others, to find who has a socket open
		unix.CAP_DAC_OVERRIDE, // directories of others: shell's, for instance
		unix.CAP_CHOWN,        // captures are given to the owner of their directory
		unix.CAP_FOWNER,       // and then changed
	} {
		s |= 1 << c
	}
	return s
}

// Shed starts the process anew with no more capabilities than Needed, if it is root's and has more. It does not return then: what
// the process has done so far is gone, but its id, its arguments and what it inherited stay. It returns nil where there is
// nothing to take away, or what is there was given one by one.
//
// Only a process that begins has one thread, and each thread has capabilities of its own. syscall.AllThreadsSyscall changes them
// all, but not in a binary with cgo. The bounding set outlasts exec, and is all that root gets there: capabilities(7).
func Shed() error {
	rename()
	excess, err := surplus()
	if err != nil || excess == 0 {
		return err
	}
	failed := make(chan error)
	go func() {
		// Where exec fails the thread must not run anything else: it ends with the goroutine.
		runtime.LockOSThread()
		err := Reduce()
		if err == nil {
			err = fmt.Errorf("start anew: %w", syscall.Exec(self, os.Args, os.Environ()))
		}
		failed <- err
	}()
	return <-failed
}

// self is this program, whatever has become of its path.
const self = "/proc/self/exe"

// rename gives the process the name back that it loses when Shed, or daemon.Start, starts it by self.
func rename() {
	const comm = "/proc/self/comm"
	if name, err := os.ReadFile(comm); err == nil && strings.TrimSpace(string(name)) == filepath.Base(self) {
		// Only who looks for the name misses it.
		_ = os.WriteFile(comm, []byte(filepath.Base(os.Args[0])), 0)
	}
}

// noRoot is SECBIT_NOROOT of include/uapi/linux/securebits.h.
const noRoot = 1

// surplus returns what the process would have less of after Shed, if Shed can take it away.
func surplus() (Set, error) {
	effective, _, err := held()
	if err != nil {
		return 0, err
	}
	securebits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	if err != nil {
		return 0, fmt.Errorf("read securebits: %w", err)
	}
	// Who is not root, or a root who is nobody special, gets nothing by exec.
	if os.Getuid() != 0 || os.Geteuid() != 0 || securebits&noRoot != 0 || !effective.has(unix.CAP_SETPCAP) {
		return 0, nil
	}
	return bounding() &^ Needed(), nil
}

// Reduce leaves the calling thread and what it starts from then on no more than Needed, in all sets. The thread is to be locked to its
// goroutine, and to end with it.
func Reduce() error {
	_, permitted, err := held()
	if err != nil {
		return err
	}
	keep := permitted & Needed()
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear the ambient capabilities: %w", err)
	}
	for left := bounding() &^ keep; left != 0; left &= left - 1 {
		c := bits.TrailingZeros64(uint64(left))
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
	}
	low, high := uint32(keep), uint32(keep>>32)
	data := [2]unix.CapUserData{{Effective: low, Permitted: low}, {Effective: high, Permitted: high}}
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// held returns two sets of the calling thread.
func held() (effective, permitted Set, err error) {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return 0, 0, fmt.Errorf("read capabilities: %w", err)
	}
	return Set(data[1].Effective)<<32 | Set(data[0].Effective), Set(data[1].Permitted)<<32 | Set(data[0].Permitted), nil
}

// bounding returns the bounding set of the calling thread. The first number that the kernel does not know ends it.
func bounding() (s Set) {
	for c := range 64 {
		in, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(c), 0, 0, 0)
		if err != nil {
			break
		}
		s |= Set(in) << c
	}
	return s
}
