// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// somewhere is an address of the internet for each family, of a.root-servers.net (iana.org/domains/root/servers). Nothing
// is sent to it.
var somewhere = []struct {
	family  uint8
	name    string
	address netip.Addr
}{
	{unix.AF_INET, "IPv4", netip.MustParseAddr("198.41.0.4")},
	{unix.AF_INET6, "IPv6", netip.MustParseAddr("2001:503:ba3e::2:30")},
}

// noRoute is what the kernel answers where it would refuse to send: no route at all, and the routes of the types
// unreachable, prohibit and blackhole, and throw where there is one table (net/ipv4/fib_semantics.c fib_props,
// net/ipv6/route.c ip6_rt_type_to_error). Without IPv6 it is EAFNOSUPPORT or EOPNOTSUPP.
var noRoute = []error{
	unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, unix.EAGAIN, unix.EAFNOSUPPORT, unix.EOPNOTSUPP,
}

// Internet returns over which interfaces of the calling thread's network namespace the kernel would send what a process
// of the user sends to the internet, without a mark: the ifindexes for IPv4, then those for IPv6, each ascending and
// without repetition; none without a default route.
//
// The kernel decides as for a packet. On Android each network has a table of its own, and rules select the default
// network (fwmark 0x0/0xffff iif lo lookup TABLE) and VPNs (uidrange; system/netd RouteController.cpp), so no list of
// routes would tell. A route that balances over several interfaces counts with all of them. Nothing is sent to the
// internet; like any lookup it may make the kernel ask for an IPv6 gateway whose hardware address it does not know
// (net/ipv6/route.c rt6_probe).
func Internet(uid uint32) ([]int, error) {
	var over []int
	for _, to := range somewhere {
		hops, err := lookUp(to.family, to.address, uid, 0)
		if err != nil {
			return nil, fmt.Errorf("look up the %s route of user %d: %w", to.name, uid, err)
		}
		if len(hops) > 0 {
			hops = balanced(hops[0], to.family, to.address, uid)
		}
		for _, index := range hops {
			if !slices.Contains(over, index) {
				over = append(over, index)
			}
		}
	}
	return over, nil
}

// balanced returns the interface of a lookup, and those that its route has beside it, of which only RTM_F_FIB_MATCH tells
// (Linux 4.13). That is another lookup: a route that does not lead over the interface is another one, too.
func balanced(first int, family uint8, address netip.Addr, uid uint32) []int {
	all, err := lookUp(family, address, uid, unix.RTM_F_FIB_MATCH)
	if err != nil || !slices.Contains(all, first) {
		return []int{first}
	}
	slices.Sort(all) // for IPv6 the one that was chosen comes first
	return all
}

// lookUp asks the kernel for a route, and returns the interfaces that it leads over, none where there is none.
func lookUp(family uint8, address netip.Addr, uid, flags uint32) ([]int, error) {
	request := make([]byte, unix.SizeofRtMsg)
	request[0], request[1] = family, uint8(address.BitLen())
	ne.PutUint32(request[8:], flags)
	request = AppendAttribute(request, unix.RTA_DST, address.AsSlice())
	request = AppendAttribute(request, unix.RTA_UID, ne.AppendUint32(nil, uid))
	raw, err := ask(unix.RTM_GETROUTE, 0, request)
	if slices.ContainsFunc(noRoute, func(no error) bool { return errors.Is(err, no) }) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var hops []int
	for _, b := range raw {
		of, err := parseRoute(b)
		if err != nil {
			return nil, err
		}
		hops = append(hops, of...)
	}
	return hops, nil
}

// parseRoute reads a struct rtmsg and its attributes, and returns the ifindexes that the route leads over: none for one
// that delivers here or refuses.
func parseRoute(b []byte) ([]int, error) {
	if len(b) < unix.SizeofRtMsg {
		return nil, fmt.Errorf("%w: rtmsg in %d bytes", unix.EBADMSG, len(b))
	}
	attrs, err := attributes(b[unix.SizeofRtMsg:])
	if err != nil || b[7] != unix.RTN_UNICAST {
		return nil, err
	}
	var over []int
	for _, a := range attrs {
		switch a.kind {
		case unix.RTA_OIF:
			if len(a.value) < 4 {
				return nil, fmt.Errorf("%w: RTA_OIF of %d bytes", unix.EBADMSG, len(a.value))
			}
			over = append(over, int(int32(ne.Uint32(a.value))))
		case unix.RTA_MULTIPATH:
			hops, err := parseHops(a.value)
			if err != nil {
				return nil, err
			}
			over = append(over, hops...)
		}
	}
	return slices.DeleteFunc(over, func(index int) bool { return index <= 0 }), nil
}

// parseHops reads the struct rtnexthop of RTA_MULTIPATH, each with attributes of its own, and returns the ifindexes of
// those that are in use.
func parseHops(b []byte) (over []int, err error) {
	for len(b) > 0 {
		if len(b) < unix.SizeofRtNexthop {
			return nil, fmt.Errorf("%w: rtnexthop in %d bytes", unix.EBADMSG, len(b))
		}
		size := int(ne.Uint16(b))
		if size < unix.SizeofRtNexthop || size > len(b) {
			return nil, fmt.Errorf("%w: rtnh_len %d in %d bytes", unix.EBADMSG, size, len(b))
		}
		if b[2]&unix.RTNH_F_DEAD == 0 { // the interface is up
			over = append(over, int(int32(ne.Uint32(b[4:]))))
		}
		b = b[aligned(size, len(b)):]
	}
	return over, nil
}
