// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"errors"
	"fmt"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Connections calls each for every TCP and UDP socket that has a remote end and whose owner is known, of both address
// families. What changes meanwhile may be missing. The error is of the first list that could not be read; a protocol
// that the kernel cannot be asked about is no error.
func (c *Conn) Connections(each func(Socket)) error {
	const all, none = 1<<13 - 1, 1<<stateTimeWait | 1<<stateListen | 1<<stateNew | 1<<stateSynRecv
	connected := func(s Socket) {
		if s.Remote.Port() != 0 {
			each(s)
		}
	}
	err := c.dump(dump{unix.IPPROTO_TCP, all &^ none, 0}, connected)
	if e := c.dump(dump{unix.IPPROTO_UDP, 1 << Established, 0}, connected); err == nil {
		err = e
	}
	return err
}

// Sockets calls each for every TCP and UDP socket, of both address families, of the calling thread's network namespace, with the bytes
// that went through it, but for those of which the kernel does not say whose they are. The error wraps ErrNoDiag where the kernel
// cannot be asked about one of the protocols; the sockets of the other were given to each all the same.
func Sockets(each func(Socket)) error {
	c, err := Open()
	if err != nil {
		return err
	}
	err = c.Missing()
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		err = errors.Join(err, c.dump(dump{protocol, math.MaxUint32, 1 << (attrInfo - 1)}, each))
	}
	return errors.Join(err, c.Close())
}

// dump is a list that is asked for.
type dump struct {
	protocol   uint8
	states     uint32 // a mask
	extensions uint8  // idiag_ext: attributes that come only if they are asked for, a mask of their numbers less one
}

// dump calls each for the sockets of both families whose owner is known. There are none of a protocol that the kernel cannot be
// asked about.
func (c *Conn) dump(d dump, each func(Socket)) error {
	if c.missing[d.protocol] != nil {
		return nil
	}
	var first error
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		// IPv6's end says ENOENT where the kernel has none.
		if err := c.list(d, any, each); err != nil && !errors.Is(err, unix.ENOENT) && first == nil {
			first = fmt.Errorf("list sockets: %w", err)
		}
	}
	return first
}

// list asks for the sockets of the family of an address.
func (c *Conn) list(d dump, any netip.Addr, each func(Socket)) error {
	end := netip.AddrPortFrom(any, 0)
	c.seq++
	c.question = request(Flow{Protocol: d.protocol, Local: end, Remote: end}, c.seq, unix.NLM_F_DUMP, d.states)
	c.question[sizeHeader+2] = d.extensions
	if _, err := uninterrupted(unix.Write, c.fd, c.question[:]); err != nil {
		return err
	}
	for {
		n, err := uninterrupted(unix.Read, c.fd, c.answer[:])
		if err != nil {
			return err
		}
		if done, err := parseDump(c.answer[:n], c.seq, d.protocol, each); done || err != nil {
			return err
		}
	}
}

// parseDump reads one datagram of the dump of that number, and tells whether it is the last.
func parseDump(b []byte, seq uint32, protocol uint8, each func(Socket)) (done bool, err error) {
	for len(b) > 0 {
		kind, of, body, rest, err := split(b)
		if err != nil {
			return false, err
		}
		if b = rest; of != seq {
			continue
		}
		s, err := parseBody(kind, body)
		if kind != unix.SOCK_DIAG_BY_FAMILY || err != nil {
			return true, err
		}
		s.Protocol = protocol
		if protocol != unix.IPPROTO_TCP {
			s.Sent, s.Received = 0, 0
		}
		if _, known := s.owner(); known {
			each(s)
		}
	}
	return false, nil
}
