// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Own knows which addresses are this machine's, in the network namespace of the thread that opened it. It is not safe for
// concurrent use.
//
// It reads what has changed when it is asked: nothing runs, and nothing wakes up, in between.
type Own struct {
	fd     int
	buffer []byte
	set    map[netip.Addr]bool
	dirty  bool
}

// OpenOwn begins to listen to the changes of addresses, and reads those that there are.
func OpenOwn() (*Own, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	o := &Own{fd: fd, buffer: make([]byte, largest), dirty: true}
	err = unix.Bind(fd, &unix.SockaddrNetlink{
		Family: unix.AF_NETLINK,
		Groups: 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1),
	})
	if err == nil {
		err = o.refresh()
	}
	if err != nil {
		return nil, fmt.Errorf("watch addresses: %w", errors.Join(err, o.Close()))
	}
	return o, nil
}

// Has tells whether packets for an address are for this machine: one of its own, a broadcast address of one of its
// networks, or any multicast address. With an error it answers as of before.
func (o *Own) Has(a netip.Addr) (bool, error) {
	a = a.Unmap().WithZone("")
	if a.IsMulticast() || a.IsLoopback() || a == broadcast {
		return true, nil
	}
	err := o.refresh()
	return o.set[a], err
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// refresh reads what has come, and if that is anything all addresses again.
func (o *Own) refresh() error {
	for range 5 {
		if err := o.drain(); err != nil || !o.dirty {
			return err
		}
		set, err := o.list()
		switch {
		case errors.Is(err, ErrInterrupted):
			o.set = set // some may be missing; dirty stays
		case err != nil:
			return fmt.Errorf("list addresses: %w", err)
		default:
			o.set = set
		}
	}
	return nil
}

// drain reads changes, and notes whether there were any. Each of them is followed by a list, so that few are ever left.
func (o *Own) drain() error {
	for {
		_, _, err := unix.Recvfrom(o.fd, o.buffer, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
		case err == nil, errors.Is(err, unix.ENOBUFS):
			o.dirty = true
		default:
			return fmt.Errorf("read changes of addresses: %w", err)
		}
	}
}

// list asks for all addresses on the socket itself, which is in the right namespace whoever calls. The kernel has the answer
// ready when it takes the question; a change may come in between.
func (o *Own) list() (map[netip.Addr]bool, error) {
	if err := send(o.fd, unix.RTM_GETADDR, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfAddrmsg)); err != nil { // AF_UNSPEC
		return nil, err
	}
	o.dirty = false
	set := map[netip.Addr]bool{}
	interrupted := error(nil)
	for {
		size, from, err := unix.Recvfrom(o.fd, o.buffer, unix.MSG_TRUNC)
		kernel, ok := from.(*unix.SockaddrNetlink)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			o.dirty = true
			continue
		case err != nil:
			return nil, err
		case !ok || kernel.Pid != 0:
			continue
		case size > len(o.buffer):
			return nil, fmt.Errorf("%w: a datagram of %d bytes", unix.EBADMSG, size)
		}
		done, err := o.add(set, o.buffer[:size])
		if errors.Is(err, ErrInterrupted) {
			o.dirty, interrupted = true, err
		} else if err != nil {
			return nil, err
		}
		if done {
			return set, interrupted
		}
	}
}

// add takes the addresses of a datagram.
func (o *Own) add(set map[netip.Addr]bool, datagram []byte) (done bool, err error) {
	if len(datagram) >= unix.SizeofNlMsghdr && ne.Uint16(datagram[4:]) != unix.NLMSG_ERROR &&
		ne.Uint16(datagram[6:])&unix.NLM_F_MULTI == 0 {
		o.dirty = true // a change, not the answer
		return false, nil
	}
	bodies, done, err := answer(datagram, true)
	if err != nil && !errors.Is(err, ErrInterrupted) {
		return false, err
	}
	for _, body := range bodies {
		_, address, err := parseAddress(body)
		if err != nil {
			return false, err
		}
		if address.IsValid() {
			set[address.Addr()] = true
			if b := last(address); b.IsValid() {
				set[b] = true
			}
		}
	}
	return done, err
}

// last returns the broadcast address of an IPv4 network, which a network of one or two addresses has not.
func last(network netip.Prefix) netip.Addr {
	if !network.Addr().Is4() || network.Bits() > 30 {
		return netip.Addr{}
	}
	b := network.Addr().As4()
	for i := network.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// Close closes the socket.
func (o *Own) Close() error {
	if err := unix.Close(o.fd); err != nil {
		return fmt.Errorf("close the watch of addresses: %w", err)
	}
	return nil
}
