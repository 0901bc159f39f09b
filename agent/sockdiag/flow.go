// SPDX-License-Identifier: Apache-2.0

// Package sockdiag tells whose a TCP or UDP flow is where no socket comes with the packet: it asks the kernel by
// NETLINK_SOCK_DIAG (sock_diag(7)), as ss does.
package sockdiag

import (
	"encoding/binary"
	"net/netip"
)

// Flow is a TCP or UDP flow as this machine sees it.
type Flow struct {
	Protocol uint8 // unix.IPPROTO_TCP or unix.IPPROTO_UDP
	// Of one address family; IPv4-mapped addresses count as IPv4, and zones are not read.
	Local, Remote netip.AddrPort
	// Ifindex is the interface that the flow is seen on. A socket bound to an interface, as all that speak to a
	// link-local address are, is found on that one only; with 0 none of them is found.
	Ifindex uint32
}

var be = binary.BigEndian
