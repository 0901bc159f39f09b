// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long a socket waits.
const patience = 20 * time.Second

// way is how packets are sent: IPv4, IPv6, or IPv4 by a socket of IPv6, as Java's are.
type way string

const (
	v4     way = "4"
	v6     way = "6"
	mapped way = "m"
)

var ways = []way{v4, v6, mapped}

// near and far give the address of the end.
func (w way) near(n Net) netip.Addr { return w.pick(n.Near4, n.Near6) }
func (w way) far(n Net) netip.Addr  { return w.pick(n.Far4, n.Far6) }

func (w way) pick(four, six netip.Addr) netip.Addr {
	if w == v6 {
		return six
	}
	return four
}

func (w way) domain() int {
	if w == v4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (w way) sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if w == v4 {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	return &unix.SockaddrInet6{Addr: a.As16(), Port: port}
}

// again repeats what a signal to the thread interrupts: calls with a timeout are not restarted (signal(7)).
func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// open makes a socket that is bound to the port, of any address. Port 0 is the kernel's choice.
func (w way) open(kind, protocol, port int) (int, error) {
	fd, err := unix.Socket(w.domain(), kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if err := w.prepare(fd, kind, port); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func (w way) prepare(fd, kind, port int) error {
	tv := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return fmt.Errorf("set timeout: %w", err)
	}
	// The port of a connection in TIME_WAIT may be bound again.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("reuse the address: %w", err)
	}
	if kind == unix.SOCK_RAW {
		return nil // it has no port
	}
	any := netip.IPv4Unspecified()
	if w != v4 {
		any = netip.IPv6Unspecified()
		only := 0
		if w == v6 {
			only = 1
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			return fmt.Errorf("set IPV6_V6ONLY: %w", err)
		}
	}
	if err := unix.Bind(fd, w.sockaddr(any, port)); err != nil {
		return fmt.Errorf("bind to port %d: %w", port, err)
	}
	return nil
}

// dial connects a new socket.
func (w way) dial(kind, port int, to netip.Addr, toPort int) (int, error) {
	fd, err := w.open(kind, 0, port)
	if err != nil {
		return -1, err
	}
	return fd, w.connect(fd, to, toPort)
}

// connect closes the socket where it fails.
func (w way) connect(fd int, to netip.Addr, port int) error {
	if err := unix.Connect(fd, w.sockaddr(to, port)); err != nil {
		return errors.Join(fmt.Errorf("connect to %s port %d: %w", to, port, err), unix.Close(fd))
	}
	return nil
}

func (w way) listen(port int) (int, error) {
	fd, err := w.open(unix.SOCK_STREAM, 0, port)
	if err != nil {
		return -1, err
	}
	if err := unix.Listen(fd, 16); err != nil {
		return -1, errors.Join(fmt.Errorf("listen: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func accept(fd int) (conn int, from unix.Sockaddr, err error) {
	err = again(func() (err error) { conn, from, err = unix.Accept4(fd, unix.SOCK_CLOEXEC); return err })
	return conn, from, err
}

func write(fd int, b []byte) error {
	if _, err := unix.Write(fd, b); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

// read is one read; 0 bytes at the end.
func read(fd int, b []byte) (n int, err error) {
	err = again(func() (err error) { n, err = unix.Read(fd, b); return err })
	if err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	return n, nil
}

// exchange sends size bytes, text again and again, and reads as many, n times.
func exchange(fd int, text string, size, n int) error {
	sent, b := make([]byte, size), make([]byte, size)
	for at := 0; text != "" && at < size; at += len(text) {
		copy(sent[at:], text)
	}
	for range n {
		if err := write(fd, sent); err != nil {
			return err
		}
		if err := readAll(fd, b); err != nil {
			return err
		}
	}
	return nil
}

func readAll(fd int, b []byte) error {
	for got := 0; got < len(b); {
		n, err := read(fd, b[got:])
		if err != nil {
			return err
		}
		if n == 0 {
			return fmt.Errorf("end after %d of %d bytes", got, len(b))
		}
		got += n
	}
	return nil
}

// finish closes a connection in order, this end first.
func finish(fd int) error {
	err := unix.Shutdown(fd, unix.SHUT_WR)
	if err == nil {
		var n int
		if n, err = read(fd, make([]byte, 1)); n != 0 {
			err = errors.New("more bytes at the end")
		}
	}
	return errors.Join(err, unix.Close(fd))
}

// abort resets a connection.
func abort(fd int) error {
	return errors.Join(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), unix.Close(fd))
}

// echo answers with what comes, until the other end closes.
func echo(fd int) error {
	b := make([]byte, 64<<10)
	for {
		n, err := read(fd, b)
		if err != nil || n == 0 {
			return errors.Join(err, unix.Close(fd))
		}
		if err := write(fd, b[:n]); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
	}
}

// echoPackets answers up to n datagrams, from whomever.
func echoPackets(fd, n int) error {
	b := make([]byte, 64<<10)
	for range n {
		var size int
		var from unix.Sockaddr
		if err := again(func() (err error) { size, from, err = unix.Recvfrom(fd, b, 0); return err }); err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if err := unix.Sendto(fd, b[:size], 0, from); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
	return nil
}

// lose has a socket lose each sixteenth segment that comes: the filter of a socket (net/core/filter.c) can draw random numbers on
// every kernel, where netem is a module.
func lose(fd int) error {
	const random = 0xfffff000 + 56 // SKF_AD_OFF + SKF_AD_RANDOM
	insns := []unix.SockFilter{
		{Code: 0x20, K: random},          // ld random
		{Code: 0x54, K: 15},              // and 15
		{Code: 0x15, Jt: 1, Jf: 0, K: 0}, // jeq 0
		{Code: 0x06, K: 0xffffffff},      // keep
		{Code: 0x06, K: 0},               // drop
	}
	prog := unix.SockFprog{Len: uint16(len(insns)), Filter: &insns[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}

// options has a socket send destination options: one of padding.
func options(fd int) error {
	return setOptions(fd, unix.IPV6_DSTOPTS)
}

func setOptions(fd, which int) error {
	// Next header, length in 8 bytes without the first; PadN of 6 bytes (RFC 8200, section 4.2).
	if err := unix.SetsockoptString(fd, unix.IPPROTO_IPV6, which, "\x00\x00\x01\x04\x00\x00\x00\x00"); err != nil {
		return fmt.Errorf("set options %d: %w", which, err)
	}
	return nil
}

// ping sends an echo request by an ICMP socket, or by a raw one, whose id is the port, and waits for the reply.
func (w way) ping(to netip.Addr, id int, raw bool, size int) error {
	protocol, request, reply := unix.IPPROTO_ICMP, byte(8), byte(0)
	if w == v6 {
		protocol, request, reply = unix.IPPROTO_ICMPV6, 128, 129
	}
	kind, port := unix.SOCK_DGRAM, id
	if raw {
		kind, port = unix.SOCK_RAW, 0
	}
	fd, err := w.open(kind, protocol, port)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b := make([]byte, 8+size)
	b[0] = request
	be.PutUint16(b[4:], uint16(id))
	if w == v4 {
		be.PutUint16(b[2:], sum(b))
	}
	if err := unix.Sendto(fd, b, 0, w.sockaddr(to, 0)); err != nil {
		return fmt.Errorf("send echo request: %w", err)
	}
	for in := make([]byte, 64<<10); ; {
		n, err := read(fd, in)
		if err != nil {
			return err
		}
		got := in[:n]
		if raw && w == v4 {
			got = got[int(got[0]&15)*4:]
		}
		// A raw socket gets what is for others, too.
		if len(got) >= 8 && got[0] == reply && be.Uint16(got[4:]) == uint16(id) {
			return nil
		}
	}
}

// sum is the internet checksum.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(be.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
