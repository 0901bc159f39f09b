// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Holding is a socket, and what went through it.
type Holding struct {
	Protocol       uint8 // unix.IPPROTO_TCP or IPPROTO_UDP
	UID            uint32
	Open           bool   // a process has it open, else it is one that was closed or is not accepted yet
	Sent, Received uint64 // bytes of a TCP connection: those that the other end has confirmed, and those that came in order
}

// Holdings calls take for each TCP and UDP socket, IPv4 and IPv6, of the calling thread's network namespace, but for those of
// which the kernel does not say whose they are. The error wraps ErrNoDiag where the kernel cannot be asked about one of the
// protocols; the sockets of the other were given to take all the same.
func Holdings(take func(Holding)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		err = fmt.Errorf("%w: %w", ErrNoDiag, err)
	}
	if err != nil {
		return fmt.Errorf("open a sock_diag socket: %w", err)
	}
	c := &Conn{fd: fd}
	err = c.holdings(take)
	return errors.Join(err, c.Close())
}

func (c *Conn) holdings(take func(Holding)) error {
	if err := c.limit(); err != nil {
		return err
	}
	if err := unix.Connect(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("connect to the kernel: %w", err)
	}
	var missing error
	for protocol, name := range map[uint8]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP"} {
		for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			switch err := c.list(protocol, any, take); {
			case errors.Is(err, unix.ENOENT) && any.Is6(): // a kernel without IPv6, or the same as of IPv4
			case errors.Is(err, unix.ENOENT):
				missing = errors.Join(missing, fmt.Errorf("%s: %w", name, ErrNoDiag))
			case err != nil:
				return fmt.Errorf("list sockets of %s: %w", name, err)
			}
		}
	}
	return missing
}

// list asks for all sockets of a protocol and a family.
func (c *Conn) list(protocol uint8, any netip.Addr, take func(Holding)) error {
	nobody := netip.AddrPortFrom(any, 0)
	c.seq++
	question := request(Flow{Protocol: protocol, Local: nobody, Remote: nobody}, c.seq, unix.NLM_F_DUMP, math.MaxUint32)
	question[sizeHeader+2] = 1 << (diagInfo - 1) // idiag_ext
	if _, err := uninterrupted(unix.Write, c.fd, question[:]); err != nil {
		return os.NewSyscallError("write", err)
	}
	// A dump's datagrams have up to 32 KiB (net/netlink/af_netlink.c netlink_dump).
	answer := make([]byte, 64<<10)
	for {
		n, err := uninterrupted(unix.Read, c.fd, answer)
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		if done, err := parseHoldings(answer[:n], c.seq, protocol, take); done || err != nil {
			return err
		}
	}
}

// parseHoldings reads one datagram of the dump of that number, and tells whether it is the last.
func parseHoldings(b []byte, seq uint32, protocol uint8, take func(Holding)) (done bool, err error) {
	for len(b) >= sizeHeader {
		size := ne.Uint32(b)
		if size < sizeHeader || uint64(size) > uint64(len(b)) {
			return false, fmt.Errorf("a netlink message of %d bytes in %d", size, len(b))
		}
		body, kind := b[sizeHeader:size], ne.Uint16(b[4:])
		if ne.Uint32(b[8:]) == seq {
			if _, err := parseBody(kind, body); err != nil || kind != unix.SOCK_DIAG_BY_FAMILY {
				return true, err
			}
			h := Holding{Protocol: protocol, UID: ne.Uint32(body[sizeSocket-8:]), Open: ne.Uint32(body[sizeSocket-4:]) != 0}
			if protocol == unix.IPPROTO_TCP {
				h.Sent, h.Received = traffic(body[sizeSocket:])
			}
			if h.UID != overflowUID && (h.UID != 0 || h.Open) {
				take(h)
			}
		}
		b = b[min(uint64(len(b)), (uint64(size)+3)&^3):]
	}
	return false, nil
}

// diagInfo is INET_DIAG_INFO of include/uapi/linux/inet_diag.h, an attribute that holds a struct tcp_info.
const diagInfo = 2

// traffic finds tcpi_bytes_acked and tcpi_bytes_received (4.1) among the attributes of a socket. A listener's are 0.
func traffic(attributes []byte) (sent, received uint64) {
	const header, acked, end = 4, 120, 136
	for b := attributes; len(b) >= header; {
		size, kind := int(ne.Uint16(b)), ne.Uint16(b[2:])
		if size < header || size > len(b) {
			return 0, 0
		}
		if value := b[header:size]; kind == diagInfo && len(value) >= end {
			return ne.Uint64(value[acked:]), ne.Uint64(value[acked+8:])
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return 0, 0
}
