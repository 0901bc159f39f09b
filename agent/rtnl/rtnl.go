// SPDX-License-Identifier: Apache-2.0

// Package rtnl tells of the interfaces of this network namespace, and when they, their filters or the routes change
// (rtnetlink(7)).
package rtnl

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

var ne = binary.NativeEndian

// align is NLMSG_ALIGNTO and RTA_ALIGNTO.
const align = 4

// message is one of the kernel's messages.
type message struct {
	kind uint16 // RTM_*
	body []byte
}

// split cuts the first message off a datagram, and unix.EBADMSG says that it does not fit into it.
func split(b []byte) (m message, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return message{}, nil, fmt.Errorf("%w: nlmsghdr in %d bytes", unix.EBADMSG, len(b))
	}
	size := uint64(ne.Uint32(b))
	if size < unix.SizeofNlMsghdr || size > uint64(len(b)) {
		return message{}, nil, fmt.Errorf("%w: nlmsg_len %d in %d bytes", unix.EBADMSG, size, len(b))
	}
	return message{kind: ne.Uint16(b[4:]), body: b[unix.SizeofNlMsghdr:size]}, b[aligned(int(size), len(b)):], nil
}

// attribute is a struct rtattr and what follows it.
type attribute struct {
	kind  uint16 // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	value []byte
}

// attributes returns the attributes in b. nl.ParseRouteAttr is not for bytes that may be cut off: it panics where the
// padding behind the last one is missing.
func attributes(b []byte) (all []attribute, err error) {
	for len(b) > 0 {
		if len(b) < unix.SizeofRtAttr {
			return nil, fmt.Errorf("%w: rtattr in %d bytes", unix.EBADMSG, len(b))
		}
		size := int(ne.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return nil, fmt.Errorf("%w: rta_len %d in %d bytes", unix.EBADMSG, size, len(b))
		}
		kind := ne.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		all = append(all, attribute{kind, b[unix.SizeofRtAttr:size]})
		b = b[aligned(size, len(b)):]
	}
	return all, nil
}

// aligned rounds a length up, and not beyond the end: the last message or attribute may lack its padding.
func aligned(size, end int) int { return min((size+align-1)&^(align-1), end) }
