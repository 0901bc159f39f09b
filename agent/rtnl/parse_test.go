// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/android"
)

// packed returns a message with its padding.
func packed(kind uint16, body ...[]byte) []byte {
	all := slices.Concat(body...)
	b := ne.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(all)))
	b = ne.AppendUint16(b, kind)
	b = append(b, make([]byte, 10)...)
	return padded(append(b, all...))
}

// attr returns an attribute with its padding.
func attr(kind uint16, value []byte) []byte {
	b := ne.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	return padded(append(ne.AppendUint16(b, kind), value...))
}

func padded(b []byte) []byte { return append(b, make([]byte, -len(b)&(align-1))...) }

// words are numbers of 32 bits.
func words(of ...uint32) (b []byte) {
	for _, w := range of {
		b = ne.AppendUint32(b, w)
	}
	return b
}

func name(of string) []byte { return attr(unix.IFLA_IFNAME, append([]byte(of), 0)) }

// ifinfo is a struct ifinfomsg of the type ARPHRD_ETHER.
func ifinfo(family byte, index, flags, change uint32) []byte {
	b := ne.AppendUint16([]byte{family, 0}, unix.ARPHRD_ETHER)
	return append(b, words(index, flags, change)...)
}

// tcm is a struct tcmsg.
func tcm(index uint32) []byte { return words(0, index, 0xffff0000, 0xfffffff1, 0) }

// rtm is a struct rtmsg.
func rtm(kind byte) []byte { return []byte{unix.AF_INET, 32, 0, 0, 0, 0, 0, kind, 0, 0, 0, 0} }

// hop is a struct rtnexthop with attributes.
func hop(index uint32, attrs []byte) []byte {
	b := ne.AppendUint16(nil, uint16(unix.SizeofRtNexthop+len(attrs)))
	return append(append(append(b, 0, 0), words(index)...), attrs...)
}

// dead is what becomes of a hop whose interface goes down.
func dead(hop []byte) []byte {
	hop[2] |= unix.RTNH_F_DEAD
	return hop
}

var datagrams = map[string]struct {
	datagram []byte
	want     Change
	bad      bool
}{
	"a new interface":       {datagram: packed(unix.RTM_NEWLINK, ifinfo(0, 3, 0, 0xffffffff), name("wlan0")), want: Change{Links: true}},
	"a deleted interface":   {datagram: packed(unix.RTM_DELLINK, ifinfo(0, 3, 0, 0xffffffff), name("wlan0")), want: Change{Links: true}},
	"a change without bits": {datagram: packed(unix.RTM_NEWLINK, ifinfo(0, 3, 1, 0), name("wlan0"), attr(unix.IFLA_MTU, words(1500))), want: Change{Links: true}},
	"only a name":           {datagram: packed(unix.RTM_NEWLINK, ifinfo(0, 3, 1, 0), name("wlan0")), want: Change{Links: true}},
	"a Wi-Fi event":         {datagram: packed(unix.RTM_NEWLINK, ifinfo(0, 3, 1, 0), name("wlan0"), attr(unix.IFLA_WIRELESS, words(1, 2)))},
	"a Wi-Fi event with changed flags": {
		datagram: packed(unix.RTM_NEWLINK, ifinfo(0, 3, 1, 1), name("wlan0"), attr(unix.IFLA_WIRELESS, words(1, 2))), want: Change{Links: true}},
	"a Wi-Fi event with more": {
		datagram: packed(unix.RTM_NEWLINK, ifinfo(0, 3, 1, 0), name("wlan0"), attr(unix.IFLA_WIRELESS, words(1)), attr(unix.IFLA_MTU, words(1))), want: Change{Links: true}},
	"a port of a bridge leaves": {datagram: packed(unix.RTM_DELLINK, ifinfo(unix.AF_BRIDGE, 3, 1, 0), name("wlan0"))},
	"a port of a bridge joins":  {datagram: packed(unix.RTM_NEWLINK, ifinfo(unix.AF_BRIDGE, 3, 1, 0), name("wlan0"))},
	"clsact deleted":            {datagram: packed(unix.RTM_DELQDISC, tcm(3), attr(unix.TCA_KIND, []byte("clsact\x00"))), want: Change{TC: map[int]bool{3: true}}},
	"a chain deleted":           {datagram: packed(unix.RTM_DELCHAIN, tcm(3)), want: Change{TC: map[int]bool{3: true}}},
	"a filter of a shared block": {
		datagram: packed(unix.RTM_NEWTFILTER, tcm(0xffffffff))},
	"a filter of no interface": {datagram: packed(unix.RTM_NEWTFILTER, tcm(0))},
	"a tc action":              {datagram: packed(unix.RTM_NEWACTION, words(0))},
	"a route":                  {datagram: packed(unix.RTM_DELROUTE, rtm(unix.RTN_UNICAST)), want: Change{Routes: true}},
	"a rule":                   {datagram: packed(unix.RTM_NEWRULE, rtm(0)), want: Change{Routes: true}},
	"an address":               {datagram: packed(unix.RTM_DELADDR, words(0, 3)), want: Change{Routes: true}},
	"a neighbour":              {datagram: packed(unix.RTM_NEWNEIGH, words(0, 3))},
	"the end of a dump":        {datagram: packed(unix.NLMSG_DONE, words(0))},
	"several messages": {
		datagram: slices.Concat(packed(unix.RTM_DELQDISC, tcm(3)), packed(unix.RTM_DELTFILTER, tcm(4)), packed(unix.RTM_DELLINK, ifinfo(0, 3, 0, 0))),
		want:     Change{Links: true, TC: map[int]bool{3: true, 4: true}}},
	"nothing": {},
	"a message and half a header": {
		datagram: append(packed(unix.RTM_DELROUTE), 16, 0, 0), want: Change{Routes: true}, bad: true},
	"a message without its padding": {
		datagram: append(words(17, unix.RTM_NEWROUTE, 0, 0), 1), want: Change{Routes: true}},
	"a length beyond the end":           {datagram: words(20, unix.RTM_NEWROUTE, 0, 0), bad: true},
	"a length below the header's":       {datagram: words(15, unix.RTM_NEWROUTE, 0, 0), bad: true},
	"the largest length":                {datagram: words(0xffffffff, unix.RTM_NEWROUTE, 0, 0), bad: true},
	"a short ifinfomsg":                 {datagram: packed(unix.RTM_NEWLINK, words(0, 3, 0)), bad: true},
	"a short tcmsg":                     {datagram: packed(unix.RTM_NEWQDISC, words(0, 3, 0, 0)), bad: true},
	"an attribute beyond the end":       {datagram: packed(unix.RTM_NEWLINK, ifinfo(0, 3, 1, 0), []byte{5, 0, 3, 0}), bad: true},
	"an attribute shorter than rtattr":  {datagram: packed(unix.RTM_NEWLINK, ifinfo(0, 3, 1, 0), []byte{3, 0, 3, 0}), bad: true},
	"half an attribute's header at end": {datagram: packed(unix.RTM_NEWLINK, ifinfo(0, 3, 1, 0), name("w"), attr(unix.IFLA_WIRELESS, nil), []byte{4, 0})[:16+16+8+4+2], bad: true},
}

func TestChange(t *testing.T) {
	for name, test := range datagrams {
		t.Run(name, func(t *testing.T) {
			var got Change
			err := got.add(test.datagram)
			if test.bad != errors.Is(err, unix.EBADMSG) || !test.bad && err != nil {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

var stats = slices.Concat(ne.AppendUint64(nil, 1<<40), ne.AppendUint64(nil, 7), make([]byte, 176))

var links = map[string]struct {
	b    []byte
	want Link
	bad  bool
}{
	"loopback": {
		b:    slices.Concat(ifinfo(0, 1, unix.IFF_UP|unix.IFF_RUNNING|unix.IFF_LOOPBACK, 0), name("lo"), attr(unix.IFLA_STATS64, stats)),
		want: Link{android.Interface{Index: 1, Name: "lo", Type: 1, Up: true, Running: true, Loopback: true}, 1 << 40, 7}},
	"down": {
		b:    slices.Concat(ifinfo(0, 3, unix.IFF_BROADCAST, 0), name("wlan0")),
		want: Link{Interface: android.Interface{Index: 3, Name: "wlan0", Type: 1}}},
	"marked as nested": {
		b:    slices.Concat(ifinfo(0, 3, 0, 0), attr(unix.NLA_F_NESTED|unix.IFLA_IFNAME, []byte("a\x00"))),
		want: Link{Interface: android.Interface{Index: 3, Name: "a", Type: 1}}},
	"a name without its end": {
		b:    slices.Concat(ifinfo(0, 3, 0, 0), []byte{5, 0, unix.IFLA_IFNAME, 0, 'a'}),
		want: Link{Interface: android.Interface{Index: 3, Name: "a", Type: 1}}},
	"without a name":      {b: ifinfo(0, 3, 0, 0), bad: true},
	"without an index":    {b: slices.Concat(ifinfo(0, 0, 0, 0), name("a")), bad: true},
	"a negative index":    {b: slices.Concat(ifinfo(0, 0x80000000, 0, 0), name("a")), bad: true},
	"short statistics":    {b: slices.Concat(ifinfo(0, 3, 0, 0), name("a"), attr(unix.IFLA_STATS64, stats[:15])), bad: true},
	"a short ifinfomsg":   {b: ifinfo(0, 3, 0, 0)[:15], bad: true},
	"bytes at the end":    {b: slices.Concat(ifinfo(0, 3, 0, 0), name("a"), []byte{0}), bad: true},
	"an attribute of 0":   {b: slices.Concat(ifinfo(0, 3, 0, 0), words(0), name("a")), bad: true},
	"an attribute beyond": {b: slices.Concat(ifinfo(0, 3, 0, 0), []byte{6, 0, unix.IFLA_IFNAME, 0, 'a'}), bad: true},
}

func TestParseLink(t *testing.T) {
	for name, test := range links {
		t.Run(name, func(t *testing.T) {
			got, err := parseLink(test.b)
			if test.bad != errors.Is(err, unix.EBADMSG) || !test.bad && err != nil {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

var routes = map[string]struct {
	b    []byte
	want []int
	bad  bool
}{
	"one interface": {b: slices.Concat(rtm(unix.RTN_UNICAST), attr(unix.RTA_DST, words(1)), attr(unix.RTA_OIF, words(3))), want: []int{3}},
	"several": {
		b: slices.Concat(rtm(unix.RTN_UNICAST),
			attr(unix.RTA_MULTIPATH, slices.Concat(hop(3, attr(unix.RTA_GATEWAY, words(1))), hop(4, nil)))),
		want: []int{3, 4}},
	"a dead hop": {
		b:    slices.Concat(rtm(unix.RTN_UNICAST), attr(unix.RTA_MULTIPATH, slices.Concat(dead(hop(3, nil)), hop(4, nil)))),
		want: []int{4}},
	"no interface":           {b: rtm(unix.RTN_UNICAST)},
	"interface 0":            {b: slices.Concat(rtm(unix.RTN_UNICAST), attr(unix.RTA_OIF, words(0))), want: []int{}},
	"delivered here":         {b: slices.Concat(rtm(unix.RTN_LOCAL), attr(unix.RTA_OIF, words(1)))},
	"unreachable":            {b: slices.Concat(rtm(unix.RTN_UNREACHABLE), attr(unix.RTA_OIF, words(1)))},
	"a short rtmsg":          {b: rtm(unix.RTN_UNICAST)[:11], bad: true},
	"a short interface":      {b: slices.Concat(rtm(unix.RTN_UNICAST), attr(unix.RTA_OIF, []byte{3, 0})), bad: true},
	"half a hop":             {b: slices.Concat(rtm(unix.RTN_UNICAST), attr(unix.RTA_MULTIPATH, hop(3, nil)[:7])), bad: true},
	"a hop beyond the end":   {b: slices.Concat(rtm(unix.RTN_UNICAST), attr(unix.RTA_MULTIPATH, []byte{9, 0, 0, 0, 3, 0, 0, 0})), bad: true},
	"a hop of 0 bytes":       {b: slices.Concat(rtm(unix.RTN_UNICAST), attr(unix.RTA_MULTIPATH, words(0, 3))), bad: true},
	"an attribute cut short": {b: slices.Concat(rtm(unix.RTN_UNICAST), []byte{8, 0, unix.RTA_OIF, 0, 3}), bad: true},
}

func TestParseRoute(t *testing.T) {
	for name, test := range routes {
		t.Run(name, func(t *testing.T) {
			got, err := parseRoute(test.b)
			if test.bad != errors.Is(err, unix.EBADMSG) || !test.bad && err != nil {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzMessages: no bytes make the parsers read beyond their end or run for ever, and what they tell is what was there.
func FuzzMessages(f *testing.F) {
	for _, test := range datagrams {
		f.Add(test.datagram)
	}
	for _, test := range links {
		f.Add(packed(unix.RTM_NEWLINK, test.b))
		f.Add(test.b)
	}
	for _, test := range routes {
		f.Add(packed(unix.RTM_NEWROUTE, test.b))
		f.Add(test.b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		var once, twice Change
		err := once.add(b)
		for index := range once.TC {
			if index <= 0 {
				t.Errorf("tc changed at interface %d", index)
			}
		}
		if whole := len(b)%align == 0; whole && err == nil {
			if err := twice.add(slices.Concat(b, b)); err != nil || !cmp.Equal(once, twice) {
				t.Errorf("%+v, twice %+v, %v", once, twice, err)
			}
		}
		if l, err := parseLink(b); err == nil && (l.Index <= 0 || l.Name == "") {
			t.Errorf("interface %+v", l)
		}
		hops, err := parseRoute(b)
		if err == nil && slices.ContainsFunc(hops, func(index int) bool { return index <= 0 }) {
			t.Errorf("hops %v", hops)
		}
		if !bytes.Equal(before, b) {
			t.Error("the bytes changed")
		}
	})
}
