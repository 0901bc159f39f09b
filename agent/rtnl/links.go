// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"droidtap/android"
)

// Link is an interface and what it has counted. Wireless and Carrier are not told.
type Link struct {
	android.Interface
	Received, Sent uint64 // packets, as the driver counts them
}

// Links returns the interfaces of the calling thread's network namespace by ascending index. Where they change each time
// that they are read, some may be missing.
func Links() ([]Link, error) {
	raw, err := List(unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg)) // AF_UNSPEC
	if err != nil && !errors.Is(err, ErrInterrupted) {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	all := make([]Link, 0, len(raw))
	for _, b := range raw {
		l, err := parseLink(b)
		if err != nil {
			return nil, fmt.Errorf("list interfaces: %w", err)
		}
		all = append(all, l)
	}
	// Older kernels list them by a hash of the index (net/core/rtnetlink.c rtnl_dump_ifinfo).
	slices.SortFunc(all, func(a, b Link) int { return cmp.Compare(a.Index, b.Index) })
	return all, nil
}

// parseLink reads a struct ifinfomsg and its attributes.
func parseLink(b []byte) (Link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return Link{}, fmt.Errorf("%w: ifinfomsg in %d bytes", unix.EBADMSG, len(b))
	}
	attrs, err := attributes(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return Link{}, err
	}
	flags := ne.Uint32(b[8:])
	l := Link{Interface: android.Interface{
		Type:     ne.Uint16(b[2:]),
		Index:    int(int32(ne.Uint32(b[4:]))),
		Up:       flags&unix.IFF_UP != 0,
		Running:  flags&unix.IFF_RUNNING != 0,
		Loopback: flags&unix.IFF_LOOPBACK != 0,
	}}
	for _, a := range attrs {
		switch a.kind {
		case unix.IFLA_IFNAME:
			l.Name = unix.ByteSliceToString(a.value)
		case unix.IFLA_STATS64: // struct rtnl_link_stats64, which begins with rx_packets and tx_packets
			if len(a.value) < 16 {
				return Link{}, fmt.Errorf("%w: IFLA_STATS64 of %d bytes", unix.EBADMSG, len(a.value))
			}
			l.Received, l.Sent = ne.Uint64(a.value), ne.Uint64(a.value[8:])
		}
	}
	if l.Index <= 0 || l.Name == "" {
		return Link{}, fmt.Errorf("%w: interface %d without index or name (%q)", unix.EBADMSG, l.Index, l.Name)
	}
	return l, nil
}
