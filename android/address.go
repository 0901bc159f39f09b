// SPDX-License-Identifier: Apache-2.0

package android

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses returns, by ifindex, the addresses of the interfaces of the calling thread's network namespace.
func Addresses() (map[int][]netip.Prefix, error) {
	all, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	of := map[int][]netip.Prefix{}
	for _, a := range all {
		ip, ok := netip.AddrFromSlice(a.IP)
		if !ok {
			continue
		}
		bits, _ := a.Mask.Size()
		of[a.LinkIndex] = append(of[a.LinkIndex], netip.PrefixFrom(ip.Unmap(), bits))
	}
	return of, nil
}

// DefaultRoutes returns, by ifindex, for which of "IPv4" and "IPv6" a default route leads over the interface. netd has a
// table for each network and none in the main one (system/netd RouteController.cpp), so all tables count.
func DefaultRoutes() (map[int][]string, error) {
	over := map[int][]string{}
	for _, family := range []struct {
		number int
		name   string
	}{{netlink.FAMILY_V4, "IPv4"}, {netlink.FAMILY_V6, "IPv6"}} {
		routes, err := netlink.RouteListFiltered(family.number, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list %s routes: %w", family.name, err)
		}
		for _, r := range routes {
			if !leadsAnywhere(r) || slices.Contains(over[r.LinkIndex], family.name) {
				continue
			}
			over[r.LinkIndex] = append(over[r.LinkIndex], family.name)
		}
	}
	return over, nil
}

// leadsAnywhere tells a default route from others, and from those that only refuse.
func leadsAnywhere(r netlink.Route) bool {
	if r.LinkIndex == 0 || r.Type != unix.RTN_UNICAST {
		return false
	}
	if r.Dst == nil {
		return true
	}
	bits, _ := r.Dst.Mask.Size()
	return bits == 0 && r.Dst.IP.IsUnspecified()
}
