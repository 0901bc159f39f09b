// SPDX-License-Identifier: Apache-2.0

package capture

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// uevent is how that of a processor that was switched on begins; its number follows (drivers/base/core.c
// device_online, kobject_uevent.c).
const uevent = "online@/devices/system/cpu/cpu"

// openUevents opens a socket of the kernel's uevents, which gets those of devices that come online and no others: a
// phone has one of its battery every few seconds.
func openUevents() (_ int, err error) {
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

// cameOnline returns the processor of which an uevent says that it is online.
func cameOnline(message []byte) (cpu int, ok bool) {
	line, _, _ := strings.Cut(string(message), "\x00")
	number, ok := strings.CutPrefix(line, uevent)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(number, 10, 16)
	return int(n), err == nil
}

// listed tells whether a processor is in a list such as "0-3,6" (Documentation/admin-guide/cputopology.rst).
func listed(list string, cpu int) bool {
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

// compare finds processors that came online without an uevent: some phones' drivers call cpu_up and not device_online
// (drivers/soc/samsung/exynos-cpu_hotplug.c). One that is off for less than seldom may not be found.
func (p *perfEvents) compare() {
	now := time.Now()
	if now.Sub(p.compared) < seldom {
		return
	}
	p.compared = now
	list, err := p.online()
	if err != nil {
		p.log.Debug("list the processors that are online", "error", err)
		return
	}
	for cpu := range p.off {
		switch on := listed(string(list), cpu); {
		case !on:
			p.off[cpu] = true
		case p.off[cpu]:
			p.reequip(cpu)
		}
	}
}

// hear takes the uevents that are there.
func (p *perfEvents) hear() {
	for {
		n, err := unix.Read(p.uevents, p.message)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.ENOBUFS):
			p.slept.Store(true) // some were lost: of any processor
		case err != nil:
			p.log.Warn("packets may be dropped", "because", fmt.Errorf("read uevents: %w", err))
			_ = unix.Close(p.uevents) // it would end each wait
			p.uevents = -1
			return
		default:
			if cpu, ok := cameOnline(p.message[:n]); ok && cpu < int(p.array.MaxEntries()) {
				p.reequip(cpu)
			}
		}
	}
}
