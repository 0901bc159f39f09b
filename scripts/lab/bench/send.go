// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"net"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

const (
	flows = 256
	batch = 16 // frames that are sent by one call
)

// frames returns one of each flow: datagrams from the far end to nobody.
func frames(size int) [][]byte {
	const nobody = "02:ff:00:00:00:ff"
	const headers = 14 + 20 + 8
	payload := make([]byte, size-headers)
	var all [][]byte
	for n := range flows {
		datagram := nettest.UDP(uint16(20000+n), other, payload)
		packet := nettest.IPv4(nettest.Far4, nettest.Near4, unix.IPPROTO_UDP, 0, nil, datagram)
		all = append(all, nettest.Ethernet(nobody, nettest.FarMAC, nettest.TypeIPv4, packet))
	}
	return all
}

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	unix.Msghdr
	sent uint32
	_    [4]byte
}

// send sends a load out of the device of the namespace that the thread is in, past its queue.
func send(t traffic) error {
	ifc, err := net.InterfaceByName(device)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return fmt.Errorf("pass the queue by: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifc.Index}); err != nil {
		return fmt.Errorf("bind to %s: %w", device, err)
	}
	all := frames(t.size)
	vectors, messages := make([]unix.Iovec, flows), make([]mmsghdr, flows)
	for n, frame := range all {
		vectors[n].Base = &frame[0]
		vectors[n].SetLen(len(frame))
		messages[n].Iov = &vectors[n]
		messages[n].SetIovlen(1)
	}
	for sent, start := 0, time.Now(); sent < t.packets; {
		if t.second > 0 {
			due := start.Add(time.Duration(sent) * time.Second / time.Duration(t.second))
			pause := unix.NsecToTimespec(max(0, int64(time.Until(due))))
			_ = unix.Nanosleep(&pause, nil) // the runtime's signals may cut it short
		}
		at := sent % flows
		n := min(batch, t.packets-sent, flows-at)
		r, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&messages[at])), uintptr(n), 0, 0, 0)
		if errno != 0 {
			return fmt.Errorf("send on %s: %w", device, errno)
		}
		sent += int(r)
	}
	return nil
}
