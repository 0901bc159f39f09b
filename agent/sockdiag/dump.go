// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Connections calls each for every TCP and UDP socket that has a remote end and whose owner is known, of both address
// families. What changes meanwhile may be missing. The error is of the first list that could not be read; a protocol
// that the kernel cannot be asked about is no error.
func (c *Conn) Connections(each func(Socket)) error {
	const all, none = 1<<13 - 1, 1<<stateTimeWait | 1<<stateListen | 1<<stateNew | 1<<stateSynRecv
	var first error
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		if c.missing[protocol] != nil {
			continue
		}
		states := uint32(all &^ none)
		if protocol == unix.IPPROTO_UDP {
			states = 1 << Established
		}
		for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			end := netip.AddrPortFrom(any, 0)
			err := c.dump(Flow{Protocol: protocol, Local: end, Remote: end}, states, each)
			if first == nil && err != nil {
				first = fmt.Errorf("list sockets: %w", err)
			}
		}
	}
	return first
}

// dump asks for the sockets of the protocol and the address family of a flow.
func (c *Conn) dump(f Flow, states uint32, each func(Socket)) error {
	c.seq++
	c.question = request(f, c.seq, unix.NLM_F_DUMP, states)
	if _, err := uninterrupted(unix.Write, c.fd, c.question[:]); err != nil {
		return err
	}
	for {
		n, err := uninterrupted(unix.Read, c.fd, c.answer[:])
		if err != nil {
			return err
		}
		for b := c.answer[:n]; len(b) > 0; {
			kind, seq, body, rest, err := split(b)
			if err != nil {
				return err
			}
			if b = rest; seq != c.seq {
				continue
			}
			s, err := parseBody(kind, body)
			// IPv6's end says ENOENT where the kernel has none.
			if kind != unix.SOCK_DIAG_BY_FAMILY || err != nil {
				if errors.Is(err, unix.ENOENT) {
					return nil
				}
				return err
			}
			if _, known := s.owner(); known && s.Remote.Port() != 0 {
				s.Protocol = f.Protocol
				each(s)
			}
		}
	}
}
