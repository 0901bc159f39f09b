// SPDX-License-Identifier: Apache-2.0

package android

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses returns, by ifindex, the addresses of the interfaces of the calling thread's network namespace.
func Addresses() (map[int][]netip.Prefix, error) {
	all, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
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
		routes, err := whole(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family.number, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list %s routes: %w", family.name, err)
		}
		for _, r := range routes {
			for _, index := range leads(r) {
				if !slices.Contains(over[index], family.name) {
					over[index] = append(over[index], family.name)
				}
			}
		}
	}
	return over, nil
}

// leads returns the interfaces that a default route leads over; none for other routes, and for those that only refuse.
func leads(r netlink.Route) (indexes []int) {
	if r.Type != unix.RTN_UNICAST {
		return nil
	}
	if r.Dst != nil {
		if bits, _ := r.Dst.Mask.Size(); bits != 0 || !r.Dst.IP.IsUnspecified() {
			return nil
		}
	}
	if r.LinkIndex != 0 {
		indexes = append(indexes, r.LinkIndex)
	}
	for _, hop := range r.MultiPath {
		indexes = append(indexes, hop.LinkIndex)
	}
	return indexes
}

// whole asks again where the kernel's list changed while it was read. Where it never holds still, a part is better than
// nothing.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, nil
}

// ErrOtherNamespace is for interfaces that are not those of the process.
var ErrOtherNamespace = errors.New("the interfaces in /sys are those of another network namespace: use ip netns exec, which mounts the right /sys")

// CheckNamespace returns ErrOtherNamespace unless the kernel knows one of these interfaces under the same index and name:
// /sys shows the network namespace in which it was mounted, which after nsenter is another one.
func CheckNamespace(of []Interface) error {
	known := slices.ContainsFunc(of, func(ifc Interface) bool {
		l, err := netlink.LinkByIndex(ifc.Index)
		return err == nil && l.Attrs().Name == ifc.Name
	})
	if !known {
		return ErrOtherNamespace
	}
	return nil
}
