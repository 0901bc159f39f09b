// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoDiag is wrapped by the error where the kernel was built without CONFIG_INET_DIAG, or without CONFIG_INET_TCP_DIAG
// or CONFIG_INET_UDP_DIAG for that protocol. Asking again does not help.
var ErrNoDiag = errors.New("the kernel does not tell whose sockets are (it lacks CONFIG_INET_DIAG or one of its parts)")

const (
	// patience is how long an answer may take. The kernel has it ready when it takes the question, so this is never
	// waited for where all is well.
	patience = 100 * time.Millisecond
	// stale bounds the answers to earlier questions, which were not waited for, that are passed over.
	stale = 16
)

// Conn is a socket to the kernel. It is not safe for concurrent use.
type Conn struct {
	fd       int
	seq      uint32
	question [sizeHeader + sizeRequest]byte
	answer   [8192]byte
	missing  map[uint8]error // by protocol; nil where the kernel can be asked
}

// Open opens a socket by which the sockets of the calling thread's network namespace are asked for, wherever the Conn is
// used. It needs no capability. The error wraps ErrNoDiag where the kernel can be asked about neither TCP nor UDP; where
// it is one of them, see Missing.
func Open() (*Conn, error) {
	c, err := open()
	if err != nil {
		return nil, fmt.Errorf("open a sock_diag socket: %w", err)
	}
	return c, nil
}

func open() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, fmt.Errorf("%w: %w", ErrNoDiag, err)
	}
	if err != nil {
		return nil, err
	}
	c := &Conn{fd: fd, missing: map[uint8]error{}}
	if err := c.set(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *Conn) set() error {
	if err := c.limit(); err != nil {
		return err
	}
	// Connected to the kernel, the socket takes no message of another process (netlink_getsockbyportid).
	if err := unix.Connect(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("connect to the kernel: %w", err)
	}
	for protocol, name := range map[uint8]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP"} {
		err := c.probe(protocol)
		if err != nil && !errors.Is(err, ErrNoDiag) {
			return fmt.Errorf("ask about %s: %w", name, err)
		}
		if err != nil {
			c.missing[protocol] = fmt.Errorf("%s: %w", name, err)
		}
	}
	if len(c.missing) == 2 {
		return c.Missing()
	}
	return nil
}

// limit sets how long an answer is waited for.
func (c *Conn) limit() error {
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return fmt.Errorf("set the timeout: %w", err)
	}
	return nil
}

// Close closes the socket. It may be called again.
func (c *Conn) Close() error {
	fd := c.fd
	if c.fd = -1; fd < 0 {
		return nil
	}
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close a sock_diag socket: %w", err)
	}
	return nil
}

// Missing says which of TCP and UDP the kernel cannot be asked about: an error that wraps ErrNoDiag, or nil.
func (c *Conn) Missing() error {
	return errors.Join(c.missing[unix.IPPROTO_TCP], c.missing[unix.IPPROTO_UDP])
}

// Find returns the socket that has the flow, as the kernel finds it for a packet from Remote: an open connection, a
// listener, a UDP socket connected or not. For a connection that is not accepted yet it is its listener. The uid is the
// kernel's, and that of a socket which was given away by fchown(2) is the new owner's.
//
// known says that there is one and whose it is. It is not where its process has closed it (0 would be said of it, but it is
// not root's), and where the uid is not one of this user namespace. Of several sockets that take the same multicast
// datagrams, one is told. The error wraps ErrNoDiag for a protocol that the kernel cannot be asked about, which costs no
// system call, and is unix.EAGAIN where no answer came in time.
func (c *Conn) Find(f Flow) (s Socket, known bool, err error) {
	if err := c.missing[f.Protocol]; err != nil {
		return Socket{}, false, err
	}
	f, ok := f.unmapped()
	if !ok {
		return Socket{}, false, nil
	}
	s, err = c.find(f)
	if err == nil && f.Protocol == unix.IPPROTO_TCP && s.unaccepted() {
		s, err = c.find(f.listener())
	}
	if errors.Is(err, unix.ENOENT) {
		return Socket{}, false, nil
	}
	if err != nil {
		return Socket{}, false, fmt.Errorf("ask whose %s to %s is: %w", f.Local, f.Remote, err)
	}
	if _, known = s.owner(); !known {
		return Socket{}, false, nil
	}
	return s, true, nil
}

// probe tells whether the kernel can be asked about a protocol. A question about one flow is answered alike, ENOENT,
// where it cannot and where there is no such socket; a dump is not. This one wants sockets in none of the states.
func (c *Conn) probe(protocol uint8) error {
	err := c.list(dump{protocol: protocol}, netip.IPv4Unspecified(), func(Socket) {})
	if errors.Is(err, unix.ENOENT) {
		return ErrNoDiag
	}
	return err
}

// find returns the socket of a flow, unix.ENOENT if there is none.
func (c *Conn) find(f Flow) (Socket, error) {
	c.seq++
	c.question = request(f, c.seq, 0, math.MaxUint32)
	if _, err := uninterrupted(unix.Write, c.fd, c.question[:]); err != nil {
		return Socket{}, err
	}
	for range stale {
		n, err := uninterrupted(unix.Read, c.fd, c.answer[:])
		if err != nil {
			return Socket{}, err
		}
		if s, err := parse(c.answer[:n], c.seq); !errors.Is(err, errOther) {
			return s, err
		}
	}
	return Socket{}, errOther
}

// uninterrupted calls again what a signal ended; the Go runtime sends itself some.
func uninterrupted(call func(int, []byte) (int, error), fd int, b []byte) (n int, err error) {
	for range stale {
		if n, err = call(fd, b); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return n, err
}
