// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Sizes in bytes, of include/uapi/linux/netlink.h and inet_diag.h.
const (
	sizeHeader  = 16 // struct nlmsghdr
	sizeID      = 48 // struct inet_diag_sockid
	sizeRequest = 8 + sizeID
	sizeSocket  = 4 + sizeID + 20 // struct inet_diag_msg
)

var ne = binary.NativeEndian

// Socket is what the kernel says of one.
type Socket struct {
	Protocol      uint8 // told by a dump and a Watcher only
	State         uint8 // of TCP; an open UDP socket has Established where it is connected
	Local, Remote netip.AddrPort
	Ifindex       uint32 // of the interface that it is bound to
	UID           uint32
	Inode         uint32 // as in /proc/PID/fd; 0: no process has a file descriptor of it
	Cgroup        uint64 // id of the cgroup of version 2 where it was made; 0 before 5.8
	// Bytes of a TCP connection, told by Sockets only: those that the other end has confirmed, and those that came in order.
	Sent, Received uint64
}

// States of a TCP socket (include/net/tcp_states.h).
const (
	Established    = 1
	stateSynRecv   = 3
	stateTimeWait  = 6
	stateCloseWait = 8
	stateListen    = 10
	stateNew       = 12 // a handshake, as a mask of states knows it
)

// Attributes of a socket (include/uapi/linux/inet_diag.h). The kernel adds them unasked, but for the first one.
const (
	attrInfo     = 2 // a struct tcp_info
	attrProtocol = 10
	attrCgroup   = 21 // CONFIG_SOCK_CGROUP_DATA, 5.8
)

// unaccepted tells whether this is a connection which waits in the queue of a listener: in these states, closed by its
// process it would not stay. Kernels from 6.17 on know whose it is once the handshake is done.
func (s Socket) unaccepted() bool {
	switch s.State {
	case Established, stateSynRecv, stateCloseWait:
		return s.Inode == 0 && s.UID == 0
	}
	return false
}

// overflowUID stands for a uid which the reader's user namespace does not have.
const overflowUID = 65534

// owner tells whose the socket is. Of one that its process has closed, in TIME_WAIT for instance, the kernel says uid 0
// and no inode, which is not root (sock_i_uid). From 6.17 on it still knows the uid until TIME_WAIT (sk_uid).
func (s Socket) owner() (uid uint32, known bool) {
	if s.UID == overflowUID || s.UID == 0 && s.Inode == 0 {
		return 0, false
	}
	return s.UID, true
}

// request is a struct inet_diag_req_v2 behind its header. flags go beside NLM_F_REQUEST, states is a mask.
func request(f Flow, seq uint32, flags uint16, states uint32) [sizeHeader + sizeRequest]byte {
	var b [sizeHeader + sizeRequest]byte
	ne.PutUint32(b[:], uint32(len(b)))
	ne.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	ne.PutUint32(b[8:], seq)
	body := b[sizeHeader:]
	body[0] = unix.AF_INET6
	body[1] = f.Protocol
	ne.PutUint32(body[4:], states)
	src, dst := f.Local, f.Remote
	if f.Protocol == unix.IPPROTO_UDP {
		// net/ipv4/udp_diag.c udp_dump_one takes the local end for the remote one, on all kernels and for good.
		src, dst = dst, src
	}
	id := body[8:]
	be.PutUint16(id, src.Port())
	be.PutUint16(id[2:], dst.Port())
	if src.Addr().Is4() {
		body[0] = unix.AF_INET
	}
	copy(id[4:], src.Addr().AsSlice())
	copy(id[20:], dst.Addr().AsSlice())
	ne.PutUint32(id[36:], f.Ifindex)
	// INET_DIAG_NOCOOKIE: whichever socket it is.
	ne.PutUint64(id[40:], math.MaxUint64)
	return b
}

// errOther says that there is no answer to this request among the messages.
var errOther = errors.New("no answer to this request")

// split cuts the first message off a datagram.
func split(b []byte) (kind uint16, seq uint32, body, rest []byte, err error) {
	if len(b) < sizeHeader {
		return 0, 0, nil, nil, fmt.Errorf("%d bytes of a netlink message", len(b))
	}
	size := ne.Uint32(b)
	if size < sizeHeader || uint64(size) > uint64(len(b)) {
		return 0, 0, nil, nil, fmt.Errorf("a netlink message of %d bytes in %d", size, len(b))
	}
	rest = b[min(uint64(len(b)), (uint64(size)+3)&^3):]
	return ne.Uint16(b[4:]), ne.Uint32(b[8:]), b[sizeHeader:size], rest, nil
}

// parse reads the answer to the request of that number: a socket, or an error of the kernel's, as a unix.Errno.
func parse(b []byte, seq uint32) (Socket, error) {
	for len(b) >= sizeHeader {
		kind, of, body, rest, err := split(b)
		if err != nil {
			return Socket{}, err
		}
		if of == seq {
			return parseBody(kind, body)
		}
		b = rest
	}
	return Socket{}, errOther
}

func parseBody(kind uint16, body []byte) (Socket, error) {
	switch {
	// Both begin with an error number; of a dump it comes with the end (net/netlink/af_netlink.c netlink_dump).
	case (kind == unix.NLMSG_ERROR || kind == unix.NLMSG_DONE) && len(body) >= 4:
		if n := int32(ne.Uint32(body)); n < 0 {
			return Socket{}, unix.Errno(-n)
		}
		return Socket{}, nil
	case kind == unix.SOCK_DIAG_BY_FAMILY && len(body) >= sizeSocket:
		return parseSocket(body), nil
	}
	return Socket{}, fmt.Errorf("a netlink message of type %d with %d bytes", kind, len(body))
}

// Offsets of tcpi_bytes_acked and tcpi_bytes_received (4.1) in a struct tcp_info. A listener's are 0.
const (
	offAcked    = 120
	offReceived = 128
	endReceived = 136
)

// parseSocket reads a struct inet_diag_msg and its attributes.
func parseSocket(body []byte) Socket {
	id := body[4:]
	s := Socket{
		State:   body[1],
		Local:   endOf(body[0], id[4:20], be.Uint16(id)),
		Remote:  endOf(body[0], id[20:36], be.Uint16(id[2:])),
		Ifindex: ne.Uint32(id[36:]),
		UID:     ne.Uint32(body[sizeSocket-8:]),
		Inode:   ne.Uint32(body[sizeSocket-4:]),
	}
	const sizeAttr = 4 // struct nlattr
	for b := body[sizeSocket:]; len(b) >= sizeAttr; {
		size := int(ne.Uint16(b))
		if size < sizeAttr || size > len(b) {
			break
		}
		switch value := b[sizeAttr:size]; {
		case ne.Uint16(b[2:]) == attrInfo && len(value) >= endReceived:
			s.Sent, s.Received = ne.Uint64(value[offAcked:]), ne.Uint64(value[offReceived:])
		case ne.Uint16(b[2:]) == attrProtocol && len(value) >= 1:
			s.Protocol = value[0]
		case ne.Uint16(b[2:]) == attrCgroup && len(value) >= 8:
			s.Cgroup = ne.Uint64(value)
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return s
}

// endOf returns one end of a socket; an IPv4-mapped address as IPv4.
func endOf(family uint8, addr []byte, port uint16) netip.AddrPort {
	if family == unix.AF_INET {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(addr)), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(addr)).Unmap(), port)
}

// unmapped returns the flow with IPv4-mapped addresses as IPv4. False says that its ends are of two families.
func (f Flow) unmapped() (Flow, bool) {
	f.Local = netip.AddrPortFrom(f.Local.Addr().Unmap(), f.Local.Port())
	f.Remote = netip.AddrPortFrom(f.Remote.Addr().Unmap(), f.Remote.Port())
	return f, f.Local.Addr().BitLen() == f.Remote.Addr().BitLen()
}

// listener returns the flow by which the listener of a connection is found: no remote end has port 0.
func (f Flow) listener() Flow {
	nobody := netip.IPv6Unspecified()
	if f.Local.Addr().Is4() {
		nobody = netip.IPv4Unspecified()
	}
	f.Remote = netip.AddrPortFrom(nobody, 0)
	return f
}
