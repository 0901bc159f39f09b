// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
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
	fd     int
	wake   int // an eventfd, which ends the wait of Next
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
	w := &Watcher{fd: -1, wake: -1, buffer: make([]byte, largest)}
	if err := w.open(groups, room); err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", errors.Join(err, w.release()))
	}
	return w, nil
}

func (w *Watcher) open(groups []int, room int) error {
	var err error
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	w.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("rtnetlink socket: %w", err)
	}
	// Without CAP_NET_ADMIN net.core.rmem_max limits the buffer.
	if unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room) != nil {
		if err := unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, room); err != nil {
			return fmt.Errorf("receive buffer of %d bytes: %w", room, err)
		}
	}
	address := unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	for _, group := range groups {
		address.Groups |= 1 << (group - 1)
	}
	if err := unix.Bind(w.fd, &address); err != nil {
		return fmt.Errorf("bind to groups %#x: %w", address.Groups, err)
	}
	return nil
}

// Next waits for a change until the deadline, without one (the zero time) for ever, and returns it merged with all that
// have happened since. The error is os.ErrDeadlineExceeded when the deadline is over, and os.ErrClosed after Close.
func (w *Watcher) Next(deadline time.Time) (Change, error) {
	w.reading.Lock()
	defer w.reading.Unlock()
	for !w.closed.Load() {
		if err := w.wait(deadline); err != nil {
			return Change{}, err
		}
		if w.closed.Load() {
			break
		}
		c, err := w.read()
		if err != nil {
			return Change{}, fmt.Errorf("read rtnetlink: %w", err)
		}
		if !c.none() {
			return c, nil
		}
	}
	return Change{}, os.ErrClosed
}

// wait waits for a message, the deadline, or Close.
func (w *Watcher) wait(deadline time.Time) error {
	var timeout *unix.Timespec
	if !deadline.IsZero() {
		left := unix.NsecToTimespec(max(0, int64(time.Until(deadline))))
		timeout = &left
	}
	fds := []unix.PollFd{{Fd: int32(w.fd), Events: unix.POLLIN}, {Fd: int32(w.wake), Events: unix.POLLIN}}
	n, err := unix.Ppoll(fds, timeout, nil)
	switch {
	case errors.Is(err, unix.EINTR):
		return nil
	case err != nil:
		return fmt.Errorf("wait for rtnetlink: %w", err)
	case n == 0:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// read takes the messages that are there.
func (w *Watcher) read() (c Change, err error) {
	for n := 0; n < most; n++ {
		// MSG_TRUNC: the length is that of the datagram, where the buffer is too short for it.
		size, from, err := unix.Recvfrom(w.fd, w.buffer, unix.MSG_TRUNC)
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
	_, woken := unix.Write(w.wake, ne.AppendUint64(nil, 1))
	w.reading.Lock()
	defer w.reading.Unlock()
	if err := errors.Join(woken, w.release()); err != nil {
		return fmt.Errorf("close the watch of interfaces: %w", err)
	}
	return nil
}

// release closes what open has opened, in reverse order.
func (w *Watcher) release() error {
	var errs []error
	for _, fd := range []int{w.fd, w.wake} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}
