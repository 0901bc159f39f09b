// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"droidtap/agent/hook"
	"droidtap/agent/plan"
)

// uname is what the kernel says of itself.
type uname struct{ sysname, release, machine string }

func readUname() (uname, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return uname{}, fmt.Errorf("uname: %w", err)
	}
	return uname{unix.ByteSliceToString(u.Sysname[:]), unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])}, nil
}

// ask finds out what the running kernel can do, by trying it.
func ask(release string) plan.Kernel {
	return plan.Kernel{
		Release: release,
		RingBuf: features.HaveMapType(ebpf.RingBuf),
		BootNs:  features.HaveProgramHelper(ebpf.SchedCLS, asm.FnKtimeGetBootNs),
		TCX:     hook.HaveTCX(),
	}
}
