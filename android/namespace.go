// SPDX-License-Identifier: Apache-2.0

package android

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrOtherNamespace is for interfaces that are not those of the process.
var ErrOtherNamespace = errors.New("the interfaces in /sys are those of another network namespace: use ip netns exec, which mounts the right /sys")

// CheckNamespace returns ErrOtherNamespace unless the kernel knows one of these interfaces under the same index and name:
// /sys shows the network namespace in which it was mounted, which after nsenter is another one.
func CheckNamespace(of []Interface) error {
	// SELinux grants this ioctl of an inet socket to more domains than that of another (system/sepolicy public/ioctl_macros).
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket to ask for interfaces: %w", err)
	}
	defer unix.Close(fd)
	for _, ifc := range of {
		request, err := unix.NewIfreq("")
		if err != nil {
			return fmt.Errorf("ask for interface %d: %w", ifc.Index, err)
		}
		request.SetUint32(uint32(ifc.Index))
		if unix.IoctlIfreq(fd, unix.SIOCGIFNAME, request) == nil && request.Name() == ifc.Name {
			return nil
		}
	}
	return ErrOtherNamespace
}
