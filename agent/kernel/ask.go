// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"droidtap/agent/hook"
	"droidtap/agent/plan"
)

// Uname is what the kernel says of itself: "Linux", "5.10.177-android13-4-00003-ga7208022a7ea", "aarch64".
type Uname struct{ Sysname, Release, Machine string }

// ReadUname asks uname(2).
func ReadUname() (Uname, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Uname{}, fmt.Errorf("uname: %w", err)
	}
	return Uname{unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])}, nil
}

// Ask finds out what every capture has to know of the kernel. What only costs to ask, and shows itself when it is used,
// is left nil: clsact, packet sockets, types.
func Ask(release string) plan.Kernel {
	return plan.Kernel{
		Release: release,
		RingBuf: features.HaveMapType(ebpf.RingBuf),
		BootNs:  features.HaveProgramHelper(ebpf.SchedCLS, asm.FnKtimeGetBootNs),
		TCX:     hook.HaveTCX(),
		Cgroup:  features.HaveProgramHelper(ebpf.SchedCLS, asm.FnSkbCgroupId),
		Globals: haveGlobals(),
	}
}

// Trials are the answers to what only a try tells; nil is a yes. One that is no ebpf.ErrNotSupported says that it could
// not be tried.
type Trials struct{ TC, Socket error }

// AskAll finds out as well what shows itself when it is used, which takes a tenth of a second. Call rlimit.RemoveMemlock before.
func AskAll(release string) (plan.Kernel, Trials) {
	k := Ask(release)
	t := Trials{TC: HaveClsact(), Socket: HavePacketSocket()}
	if errors.Is(t.TC, ebpf.ErrNotSupported) {
		k.TC = t.TC
	}
	if errors.Is(t.Socket, ebpf.ErrNotSupported) {
		k.Socket = t.Socket
	}
	return k, t
}
