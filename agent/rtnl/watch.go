// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// room is the receive buffer in bytes. The kernel doubles it, and charges a message at least 576 (SKB_TRUESIZE).
	room = 1 << 20
	// most is how many datagrams one Next reads, so that it returns where they never end: more than the buffer holds.
	most = 4096
	// largest is the longest datagram in bytes, where the kernel's messages of a change have some 2000.
	largest = 32 << 10
)

// Watcher hears of changes. Next belongs to one goroutine, Close may be called from any.
type Watcher struct {
	file   *os.File // the socket: waits in the runtime's poller are no system calls of ours, and wake no other thread
	conn   syscall.RawConn
	buffer []byte

	reading sync.Mutex // held by Next; Close waits for it before it closes the socket
	closed  atomic.Bool
}

// Watch begins to listen to the changes of interfaces, qdiscs and filters in the calling thread's network namespace, and
// if asked to those of routes, rules and addresses. What changes after it returns, Next tells of.
func Watch(routes bool) (*Watcher, error) {
	groups := []int{unix.RTNLGRP_LINK, unix.RTNLGRP_TC}
	if routes {
		groups = append(groups, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE,
			unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	}
	return watch(groups, room)
}

func watch(groups []int, room int) (*Watcher, error) {
	w := &Watcher{buffer: make([]byte, largest)}
	if err := w.open(groups, room); err != nil {
		if w.file != nil {
			err = errors.Join(err, w.file.Close())
		}
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	return w, nil
}

func (w *Watcher) open(groups []int, room int) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("rtnetlink socket: %w", err)
	}
	w.file = os.NewFile(uintptr(fd), "rtnetlink")
	if w.conn, err = w.file.SyscallConn(); err != nil {
		return err
	}
	// Without CAP_NET_ADMIN net.core.rmem_max limits the buffer.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room); err != nil {
			return fmt.Errorf("receive buffer of %d bytes: %w", room, err)
		}
	}
	address := unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, group := range groups {
		address.Groups |= 1 << (group - 1)
	}
	if err := unix.Bind(fd, &address); err != nil {
		return fmt.Errorf("bind to groups %#x: %w", address.Groups, err)
	}
	return nil
}

// Next waits for a change until the deadline, without one (the zero time) for ever, and returns it merged with all that
// have happened since. The error is os.ErrDeadlineExceeded when the deadline is over, and os.ErrClosed after Close.
func (w *Watcher) Next(deadline time.Time) (Change, error) {
	w.reading.Lock()
	defer w.reading.Unlock()
	if err := w.file.SetReadDeadline(deadline); err != nil {
		return Change{}, os.ErrClosed
	}
	var c Change
	var failed error
	look := func(fd uintptr) bool {
		c, failed = w.read(int(fd))
		return failed != nil || !c.none()
	}
	// Also where the deadline is over: then Read would not.
	if err := w.conn.Control(func(fd uintptr) { look(fd) }); err != nil {
		return Change{}, os.ErrClosed
	}
	if failed == nil && c.none() {
		switch err := w.conn.Read(look); {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return Change{}, os.ErrDeadlineExceeded
		case err != nil:
			return Change{}, os.ErrClosed
		}
	}
	if failed != nil {
		return Change{}, fmt.Errorf("read rtnetlink: %w", failed)
	}
	return c, nil
}

// read takes the messages that are there.
func (w *Watcher) read(fd int) (c Change, err error) {
	for n := 0; n < most; n++ {
		// MSG_TRUNC: the length is that of the datagram, where the buffer is too short for it.
		size, from, err := unix.Recvfrom(fd, w.buffer, unix.MSG_TRUNC)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return c, nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			// The kernel says so once, and throws away what comes until the last message that it kept is read
			// (net/netlink/af_netlink.c netlink_overrun, netlink_rcv_wake): read all of those before Lost is told.
			c.Lost = true
			n = 0
			continue
		case err != nil:
			return c, err
		}
		// Another process with CAP_NET_ADMIN may send to these groups, and any to this socket.
		if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != 0 {
			continue
		}
		if size > len(w.buffer) || c.add(w.buffer[:size]) != nil {
			c.Lost = true
		}
	}
	return c, nil
}

// Close ends the wait of Next, if somebody is in it. It may be called again.
func (w *Watcher) Close() error {
	if w.closed.Swap(true) {
		return nil
	}
	err := w.file.Close()
	w.reading.Lock() // until Next has left
	defer w.reading.Unlock()
	if err != nil {
		return fmt.Errorf("close the watch of interfaces: %w", err)
	}
	return nil
}
