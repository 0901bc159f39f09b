// SPDX-License-Identifier: Apache-2.0

package nettest

import (
	"fmt"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PacketSocket opens one that sends out of an interface of the namespace that the thread is in, for the caller to close.
func PacketSocket(ifname string) (fd int, err error) {
	ifc, err := net.InterfaceByName(ifname)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", ifname, err)
	}
	if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifc.Index}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind to %s: %w", ifname, err)
	}
	return fd, nil
}

// PassQueue has a packet socket send past the queueing discipline, at a fraction of the cost.
func PassQueue(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return fmt.Errorf("pass the queue by: %w", err)
	}
	return nil
}

// Burst is messages that one system call sends, as often as wanted. Whoever makes it keeps the payloads.
type Burst struct {
	messages []message
	vectors  []unix.Iovec
}

// message is the kernel's struct mmsghdr.
type message struct {
	header unix.Msghdr
	sent   uint32
	_      [4]byte
}

// NewBurst makes one of payloads, none of which is empty.
func NewBurst(payloads [][]byte) Burst {
	b := Burst{make([]message, len(payloads)), make([]unix.Iovec, len(payloads))}
	for i, p := range payloads {
		b.vectors[i].Base = &p[0]
		b.vectors[i].SetLen(len(p))
		b.messages[i].header.Iov = &b.vectors[i]
		b.messages[i].header.SetIovlen(1)
	}
	return b
}

// To has the i-th message go to an address, which the caller keeps, and may change.
func (b Burst) To(i int, address *unix.RawSockaddrInet4) {
	b.messages[i].header.Name = (*byte)(unsafe.Pointer(address))
	b.messages[i].header.Namelen = unix.SizeofSockaddrInet4
}

// Send sends n messages from the one of that number on by a socket. It does not give up while the queue is full.
func (b Burst) Send(fd, from, n int) error {
	for end := from + n; from < end; {
		done, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.messages[from])), uintptr(end-from), 0, 0, 0)
		switch errno {
		case 0:
			from += int(done)
		case unix.EINTR, unix.EAGAIN, unix.ENOBUFS: // the queue is full
		default:
			return fmt.Errorf("send: %w", errno)
		}
	}
	return nil
}
