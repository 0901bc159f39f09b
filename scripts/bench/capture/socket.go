// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

const peerPort = 7

// swapped is a port in network order, as it stands in memory.
func swapped(port uint16) uint16 { return bits.ReverseBytes16(port) }

// packetSocket makes one that sends out of an interface, past the queueing discipline.
func packetSocket(s nettest.Space, name string) (fd int, err error) {
	err = s.Do(0, func() (err error) {
		if fd, err = nettest.PacketSocket(name); err != nil {
			return err
		}
		return nettest.PassQueue(fd)
	})
	return fd, err
}

// udpSocket makes one of that user on that port, which keeps hardly any of what comes; connected: to nobody.
func udpSocket(s nettest.Space, uid, port int, connected bool) (fd int, err error) {
	err = s.Do(uid, func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return fmt.Errorf("UDP socket: %w", err)
		}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0), // the least that there is
			unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: netip.MustParseAddr(nearAddress).As4()}))
		if err == nil && connected {
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: peerPort, Addr: netip.MustParseAddr(nobodyAddress).As4()})
		}
		return err
	})
	return fd, err
}

// stream sends one over a connection whose far end throws away what comes.
func (t traffic) stream(n *network) error {
	listener, err := tcpSocket(n.far)
	if err != nil {
		return err
	}
	defer unix.Close(listener)
	at := &unix.SockaddrInet4{Port: peerPort, Addr: netip.MustParseAddr(farAddress).As4()}
	if err := errors.Join(unix.Bind(listener, at), unix.Listen(listener, 1)); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fd, err := tcpSocket(n.near)
	if err != nil {
		return err
	}
	taken := make(chan error, 1)
	go func() { taken <- n.far.Do(0, func() error { return takeAll(listener) }) }()
	if err := unix.Connect(fd, at); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	b := make([]byte, 256<<10)
	pace := pacer{rate: t.Rate}
	for left := t.Count; left > 0; {
		pace.await(t.Count - left)
		n, err := unix.Write(fd, b[:min(left, len(b))])
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("stream: %w", err)
		}
		left -= max(n, 0)
	}
	return errors.Join(unix.Close(fd), <-taken)
}

func tcpSocket(s nettest.Space) (fd int, err error) {
	err = s.Do(0, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// takeAll reads one connection to its end, and closes it.
func takeAll(listener int) error {
	fd, _, err := unix.Accept(listener)
	if err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	defer unix.Close(fd)
	b := make([]byte, 1<<20)
	for {
		// MSG_TRUNC: tcp(7), the bytes are not copied.
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_TRUNC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n == 0 || err != nil {
			return err
		}
	}
}
