// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Change is what the kernel has told of since the last one.
type Change struct {
	// Links: an interface was made, changed, or deleted. The kernel does not tell of the IPv4 routes that go with one that
	// goes down: whoever wants to know of routes asks again then, too.
	Links  bool
	TC     map[int]bool // the ifindexes whose qdiscs or filters changed; nil for none
	Routes bool         // routes, rules or addresses changed
	// Lost: the kernel had no room for messages (ENOBUFS), or one was not understood. Anything may have changed.
	Lost bool
}

// none tells that nothing has changed.
func (c Change) none() bool { return !c.Links && len(c.TC) == 0 && !c.Routes && !c.Lost }

// add merges a datagram into it. With an error some of it may have been.
func (c *Change) add(datagram []byte) error {
	for len(datagram) > 0 {
		m, rest, err := split(datagram)
		if err == nil {
			err = c.addMessage(m)
		}
		if err != nil {
			return err
		}
		datagram = rest
	}
	return nil
}

func (c *Change) addMessage(m message) error {
	switch m.kind {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		changed, err := linkChanged(m)
		c.Links = c.Links || changed
		return err
	case unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER, unix.RTM_NEWCHAIN, unix.RTM_DELCHAIN:
		if len(m.body) < sizeofTcmsg {
			return fmt.Errorf("%w: tcmsg in %d bytes", unix.EBADMSG, len(m.body))
		}
		// Filters of a block that interfaces share have TCM_IFINDEX_MAGIC_BLOCK, -1.
		if index := int(int32(ne.Uint32(m.body[4:]))); index > 0 {
			if c.TC == nil {
				c.TC = map[int]bool{}
			}
			c.TC[index] = true
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWRULE, unix.RTM_DELRULE, unix.RTM_NEWADDR, unix.RTM_DELADDR:
		c.Routes = true
	}
	return nil
}

// sizeofTcmsg is the size of a struct tcmsg.
const sizeofTcmsg = 20

// linkChanged tells whether a message of an interface says that it changed. What is said by others than the core is no
// such thing: a bridge of its ports (AF_BRIDGE: RTM_DELLINK is only the end of the membership, net/bridge/br_netlink.c),
// and a Wi-Fi driver's event, which may come each second, with ifi_change 0 and no attributes but the name and
// IFLA_WIRELESS (net/wireless/wext-core.c rtnetlink_ifinfo_prep, wireless_send_event).
func linkChanged(m message) (bool, error) {
	if len(m.body) < unix.SizeofIfInfomsg {
		return false, fmt.Errorf("%w: ifinfomsg in %d bytes", unix.EBADMSG, len(m.body))
	}
	if m.body[0] != unix.AF_UNSPEC {
		return false, nil
	}
	if m.kind == unix.RTM_DELLINK || ne.Uint32(m.body[12:]) != 0 {
		return true, nil
	}
	attrs, err := attributes(m.body[unix.SizeofIfInfomsg:])
	if err != nil {
		return false, err
	}
	wireless := false
	for _, a := range attrs {
		switch a.kind {
		case unix.IFLA_IFNAME:
		case unix.IFLA_WIRELESS:
			wireless = true
		default:
			return true, nil
		}
	}
	return !wireless, nil
}
