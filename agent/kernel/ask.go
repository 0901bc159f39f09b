// SPDX-License-Identifier: Apache-2.0

package kernel

import (
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
	}
}

// AskAll finds out as well what shows itself when it is used.
func AskAll(release string) plan.Kernel {
	k := Ask(release)
	k.TC = HaveClsact()
	k.Socket = HavePacketSocket()
	return k
}
