// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Addresses returns, by ifindex, the addresses of the interfaces of the calling thread's network namespace, each with
// the length of its network's prefix. One that has a peer is a network by itself. Where they change each time that they are
// read, some may be missing.
func Addresses() (map[int][]netip.Prefix, error) {
	raw, err := List(unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg)) // AF_UNSPEC
	if err != nil && !errors.Is(err, ErrInterrupted) {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	of := map[int][]netip.Prefix{}
	for _, b := range raw {
		index, address, err := parseAddress(b)
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		if address.IsValid() {
			of[index] = append(of[index], address)
		}
	}
	return of, nil
}

// parseAddress reads a struct ifaddrmsg and its attributes. What is neither IPv4 nor IPv6 gives no valid address.
//
// IFA_ADDRESS is the peer's where there is one, and the interface's own otherwise. That is what the length of the prefix
// is of. IFA_LOCAL is the own one, which IPv6 leaves out as long as there is no peer (net/ipv6/addrconf.c
// inet6_fill_ifaddr).
func parseAddress(b []byte) (index int, address netip.Prefix, err error) {
	if len(b) < unix.SizeofIfAddrmsg {
		return 0, address, fmt.Errorf("%w: ifaddrmsg in %d bytes", unix.EBADMSG, len(b))
	}
	if b[0] != unix.AF_INET && b[0] != unix.AF_INET6 {
		return 0, address, nil
	}
	attrs, err := attributes(b[unix.SizeofIfAddrmsg:])
	if err != nil {
		return 0, address, err
	}
	of := map[uint16]netip.Addr{}
	for _, a := range attrs {
		if a.kind == unix.IFA_ADDRESS || a.kind == unix.IFA_LOCAL {
			var ok bool
			if of[a.kind], ok = netip.AddrFromSlice(a.value); !ok {
				return 0, address, fmt.Errorf("%w: address of %d bytes", unix.EBADMSG, len(a.value))
			}
		}
	}
	shown, bits := of[unix.IFA_ADDRESS], int(b[1])
	if own := of[unix.IFA_LOCAL]; own.IsValid() && own != shown {
		shown, bits = own, own.BitLen()
	}
	if !shown.IsValid() { // 0.0.0.0 is not told
		return 0, address, nil
	}
	if address = netip.PrefixFrom(shown, bits); !address.IsValid() {
		return 0, address, fmt.Errorf("%w: %s with a prefix of %d bits", unix.EBADMSG, shown, bits)
	}
	return int(ne.Uint32(b[4:])), address, nil
}

// DefaultRoutes returns, by ifindex, for which of "IPv4" and "IPv6" a default route leads over the interface. netd has a
// table for each network and none in the main one (system/netd RouteController.cpp), so all tables count. Which of them
// a packet takes, Internet tells.
func DefaultRoutes() (map[int][]string, error) {
	over := map[int][]string{}
	for _, to := range somewhere {
		request := make([]byte, unix.SizeofRtMsg)
		request[0] = to.family
		raw, err := List(unix.RTM_GETROUTE, request)
		if err != nil && !errors.Is(err, ErrInterrupted) {
			return nil, fmt.Errorf("list %s routes: %w", to.name, err)
		}
		for _, b := range raw {
			hops, err := parseDefault(b)
			if err != nil {
				return nil, fmt.Errorf("list %s routes: %w", to.name, err)
			}
			for _, index := range hops {
				if !slices.Contains(over[index], to.name) {
					over[index] = append(over[index], to.name)
				}
			}
		}
	}
	return over, nil
}

// parseDefault is parseRoute for a route to everywhere, and returns none for others. What the kernel lists of its caches,
// too (RTM_F_CLONED), leads to a single address.
func parseDefault(b []byte) ([]int, error) {
	if len(b) >= unix.SizeofRtMsg && b[1] != 0 {
		return nil, nil
	}
	return parseRoute(b)
}
