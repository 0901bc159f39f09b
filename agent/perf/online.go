// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// uevent is how that of a processor that was switched on begins; its number follows (drivers/base/core.c
// device_online, kobject_uevent.c).
const uevent = "online@/devices/system/cpu/cpu"

// OpenUevents opens a socket of the kernel's uevents, which gets those of devices that come online and no others: a
// phone has one of its battery every few seconds.
//
// Reads of it do not block. It is of the caller's network namespace, and the caller's to close.
func OpenUevents() (_ int, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return -1, fmt.Errorf("open a socket of uevents: %w", os.NewSyscallError("socket", err))
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("listen to uevents: %w", err), unix.Close(fd))
		}
	}()
	const beginning = 'o'<<24 | 'n'<<16 | 'l'<<8 | 'i'
	code := [...]unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: beginning, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	filter := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &filter); err != nil {
		return -1, os.NewSyscallError("setsockopt", err)
	}
	const kernel = 1 // the group; udev's daemon sends to another
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernel}); err != nil {
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

// CameOnline returns the processor of which an uevent says that it is online.
func CameOnline(message []byte) (cpu int, ok bool) {
	line, _, _ := strings.Cut(string(message), "\x00")
	number, ok := strings.CutPrefix(line, uevent)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(number, 10, 16)
	return int(n), err == nil
}

// Listed tells whether a processor is in a list such as "0-3,6" (Documentation/admin-guide/cputopology.rst).
func Listed(list string, cpu int) bool {
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		first, last, ok := strings.Cut(part, "-")
		if !ok {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err == nil && err2 == nil && int(from) <= cpu && cpu <= int(to) {
			return true
		}
	}
	return false
}

// Online reads the list of the processors that are online.
func Online() ([]byte, error) { return os.ReadFile("/sys/devices/system/cpu/online") }

// last returns the highest number of a list of Listed's, or 0.
func last(list string) int {
	list = strings.TrimSpace(list)
	n, err := strconv.ParseUint(list[strings.LastIndexAny(list, ",-")+1:], 10, 16)
	if err != nil {
		return 0
	}
	return int(n)
}
