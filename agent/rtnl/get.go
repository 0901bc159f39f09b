// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Device is an interface with what only Get tells of it.
type Device struct {
	Link
	// Largest is how many bytes a packet may have behind the link-layer header: the MTU, or what segmentation and
	// aggregation make, whichever is more (IFLA_GSO_MAX_SIZE and the others of its kind, up to 6.3).
	Largest uint32
	// XDP are the ids of its XDP programs. There is one for each of the driver, the kernel and the hardware at most.
	XDP []uint32
}

// Get returns the interface of an index in the calling thread's network namespace. The error wraps unix.ENODEV where
// there is none.
func Get(index int) (Device, error) {
	request := make([]byte, unix.SizeofIfInfomsg) // AF_UNSPEC
	ne.PutUint32(request[4:], uint32(index))
	raw, err := ask(unix.RTM_GETLINK, 0, request)
	if err == nil && len(raw) != 1 {
		err = fmt.Errorf("%w: %d answers", unix.EBADMSG, len(raw))
	}
	var d Device
	if err == nil {
		d, err = parseDevice(raw[0])
	}
	if err != nil {
		return Device{}, fmt.Errorf("get interface %d: %w", index, err)
	}
	return d, nil
}

// parseDevice reads a struct ifinfomsg and its attributes.
func parseDevice(b []byte) (d Device, err error) {
	if d.Link, err = parseLink(b); err != nil {
		return Device{}, err
	}
	attrs, err := attributes(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return Device{}, err
	}
	for _, a := range attrs {
		switch a.kind {
		case unix.IFLA_MTU, unix.IFLA_GSO_MAX_SIZE, unix.IFLA_GRO_MAX_SIZE, unix.IFLA_GSO_IPV4_MAX_SIZE, unix.IFLA_GRO_IPV4_MAX_SIZE:
			size, err := a.number()
			if err != nil {
				return Device{}, err
			}
			d.Largest = max(d.Largest, size)
		case unix.IFLA_XDP:
			if d.XDP, err = parseXDP(a.value); err != nil {
				return Device{}, err
			}
		}
	}
	return d, nil
}

// parseXDP reads the attributes in IFLA_XDP. A program that is alone has two: that of its kind, from 4.19 on, and
// IFLA_XDP_PROG_ID (net/core/rtnetlink.c rtnl_xdp_fill).
func parseXDP(b []byte) (ids []uint32, err error) {
	attrs, err := attributes(b)
	if err != nil {
		return nil, err
	}
	for _, a := range attrs {
		switch a.kind {
		case unix.IFLA_XDP_PROG_ID, unix.IFLA_XDP_DRV_PROG_ID, unix.IFLA_XDP_SKB_PROG_ID, unix.IFLA_XDP_HW_PROG_ID:
			id, err := a.number()
			if err != nil {
				return nil, err
			}
			if id != 0 && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}

// number returns the value of an attribute that is an u32.
func (a attribute) number() (uint32, error) {
	if len(a.value) < 4 {
		return 0, fmt.Errorf("%w: attribute %d of %d bytes", unix.EBADMSG, a.kind, len(a.value))
	}
	return ne.Uint32(a.value), nil
}
