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

// socket is what the kernel says of one, of struct inet_diag_msg.
type socket struct {
	state uint8
	uid   uint32
	inode uint32 // 0: no process has a file descriptor of it
}

// States of a TCP socket (include/net/tcp_states.h).
const (
	stateEstablished = 1
	stateSynRecv     = 3
	stateCloseWait   = 8
)

// unaccepted tells whether this is a connection which waits in the queue of a listener: in these states, closed by its
// process it would not stay. Kernels from 6.17 on know whose it is once the handshake is done.
func (s socket) unaccepted() bool {
	switch s.state {
	case stateEstablished, stateSynRecv, stateCloseWait:
		return s.inode == 0 && s.uid == 0
	}
	return false
}

// overflowUID stands for a uid which the reader's user namespace does not have.
const overflowUID = 65534

// owner tells whose the socket is. Of one that its process has closed, in TIME_WAIT for instance, the kernel says uid 0
// and no inode, which is not root (sock_i_uid). From 6.17 on it still knows the uid until TIME_WAIT (sk_uid).
func (s socket) owner() (uid uint32, known bool) {
	if s.uid == overflowUID || s.uid == 0 && s.inode == 0 {
		return 0, false
	}
	return s.uid, true
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

// parse reads the answer to the request of that number: a socket; none, which ends a dump; or an error of the kernel's,
// as a unix.Errno.
func parse(b []byte, seq uint32) (socket, error) {
	for len(b) >= sizeHeader {
		size := ne.Uint32(b)
		if size < sizeHeader || uint64(size) > uint64(len(b)) {
			return socket{}, fmt.Errorf("a netlink message of %d bytes in %d", size, len(b))
		}
		body := b[sizeHeader:size]
		if ne.Uint32(b[8:]) == seq {
			return parseBody(ne.Uint16(b[4:]), body)
		}
		b = b[min(uint64(len(b)), (uint64(size)+3)&^3):]
	}
	return socket{}, errOther
}

func parseBody(kind uint16, body []byte) (socket, error) {
	switch {
	// Both begin with an error number; of a dump it comes with the end (net/netlink/af_netlink.c netlink_dump).
	case (kind == unix.NLMSG_ERROR || kind == unix.NLMSG_DONE) && len(body) >= 4:
		if n := int32(ne.Uint32(body)); n < 0 {
			return socket{}, unix.Errno(-n)
		}
		return socket{}, nil
	case kind == unix.SOCK_DIAG_BY_FAMILY && len(body) >= sizeSocket:
		return socket{
			state: body[1],
			uid:   ne.Uint32(body[sizeSocket-8:]),
			inode: ne.Uint32(body[sizeSocket-4:]),
		}, nil
	}
	return socket{}, fmt.Errorf("a netlink message of type %d with %d bytes", kind, len(body))
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
