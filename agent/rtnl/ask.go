// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrInterrupted is for a list that changed while it was read (NLM_F_DUMP_INTR), of which some may be missing.
var ErrInterrupted = errors.New("the list changed while it was read")

// ask sends a request and returns the bodies of the answers: for a list of all of them, otherwise of one. The error may be a
// unix.Errno of the kernel's; with ErrInterrupted there are answers.
//
// The kernel answers while it is asked (net/netlink/af_netlink.c netlink_unicast_kernel), so nothing here waits. That is why
// this is not netlink/nl: its sockets are in the runtime's poller, which wakes other threads each time, on a phone that sleeps.
func ask(kind, flags uint16, request []byte) (answers [][]byte, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("rtnetlink socket: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := send(fd, kind, flags, request); err != nil {
		return nil, fmt.Errorf("ask rtnetlink: %w", err)
	}
	buffer := make([]byte, largest)
	interrupted := error(nil)
	for {
		size, from, err := unix.Recvfrom(fd, buffer, unix.MSG_TRUNC)
		switch k, ok := from.(*unix.SockaddrNetlink); {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("read rtnetlink: %w", err)
		case !ok || k.Pid != 0:
			continue
		case size > len(buffer):
			return nil, fmt.Errorf("read rtnetlink: %w: a datagram of %d bytes", unix.EBADMSG, size)
		}
		more, done, err := answer(buffer[:size], flags&unix.NLM_F_DUMP != 0)
		switch {
		case errors.Is(err, ErrInterrupted):
			interrupted = err
		case err != nil:
			return nil, err
		}
		if answers = append(answers, more...); done {
			return answers, interrupted
		}
	}
}

// send sends a request to the kernel, without a number: there is one at a time on a socket.
func send(fd int, kind, flags uint16, request []byte) error {
	head := ne.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(request)))
	head = ne.AppendUint16(head, kind)
	head = ne.AppendUint16(head, flags|unix.NLM_F_REQUEST)
	head = ne.AppendUint64(head, 0) // sequence number and port
	return unix.Sendto(fd, append(head, request...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

// answer takes a datagram apart, and tells whether it is the last one. What it returns is its own.
func answer(datagram []byte, list bool) (bodies [][]byte, done bool, err error) {
	interrupted := error(nil)
	for len(datagram) > 0 {
		flags := uint16(0)
		if len(datagram) >= unix.SizeofNlMsghdr {
			flags = ne.Uint16(datagram[6:])
		}
		var m message
		if m, datagram, err = split(datagram); err != nil {
			return nil, false, err
		}
		if flags&unix.NLM_F_DUMP_INTR != 0 {
			interrupted = ErrInterrupted
		}
		switch m.kind {
		case unix.NLMSG_DONE:
			// A list that the kernel gave up ends with why (net/netlink/af_netlink.c netlink_dump_done).
			if len(m.body) >= 4 && int32(ne.Uint32(m.body)) < 0 {
				return nil, false, unix.Errno(-int32(ne.Uint32(m.body)))
			}
			return bodies, true, interrupted
		case unix.NLMSG_ERROR:
			if len(m.body) < 4 {
				return nil, false, fmt.Errorf("%w: nlmsgerr in %d bytes", unix.EBADMSG, len(m.body))
			}
			if errno := -int32(ne.Uint32(m.body)); errno != 0 {
				return nil, false, unix.Errno(errno)
			}
			return bodies, true, nil
		}
		bodies = append(bodies, append([]byte(nil), m.body...))
		done = !list
	}
	return bodies, done, interrupted
}

// AppendAttribute appends a struct rtattr and its value.
func AppendAttribute(b []byte, kind uint16, value []byte) []byte {
	b = ne.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = ne.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, -len(b)&(align-1))...)
}
