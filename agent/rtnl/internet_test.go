// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/nettest"
)

// ends makes interfaces that are up, each a veth whose other end, "p-" and its name, is up, too.
func ends(t testing.TB, s nettest.Space, names ...string) {
	t.Helper()
	for _, name := range names {
		batch(t, s, "link add "+name+" type veth peer name p-"+name, "link set p-"+name+" up", "link set "+name+" up")
	}
}

// batch runs commands of ip(8).
func batch(t testing.TB, s nettest.Space, commands ...string) {
	t.Helper()
	for _, line := range commands {
		nettest.Run(t, append([]string{"ip", "-n", s.Name}, strings.Fields(line)...)...)
	}
}

// over returns the names of the interfaces that Internet returns.
func over(t testing.TB, s nettest.Space, uid uint32) string {
	t.Helper()
	var names []string
	s.Must(t, func() error {
		indexes, err := Internet(uid)
		if err != nil {
			return err
		}
		all, err := Links()
		if err != nil {
			return err
		}
		for _, index := range indexes {
			at := slices.IndexFunc(all, func(l Link) bool { return l.Index == index })
			if at < 0 {
				return fmt.Errorf("no interface has the index %d", index)
			}
			names = append(names, all[at].Name)
		}
		return nil
	})
	return strings.Join(names, " ")
}

// netd are the rules that Android's netd makes (system/netd RouteController.cpp; Android 14), with the main table where
// it stands behind unreachable: no application gets to it.
func netd(t *testing.T, s nettest.Space) {
	t.Helper()
	for _, family := range []string{"-4", "-6"} {
		batch(t, s,
			family+" rule add pref 10000 fwmark 0xc0000/0xd0000 lookup 99",
			family+" rule add pref 16000 fwmark 0x10064/0x1ffff iif lo lookup 1003",
			family+" rule add pref 16000 fwmark 0x10065/0x1ffff iif lo lookup 1004",
			family+" rule add pref 32000 unreachable",
		)
	}
}

// network makes a network the default one, as netd does: rules at 31000 with its tables.
func network(tables ...string) (commands []string) {
	for _, table := range tables {
		for _, family := range []string{"-4", "-6"} {
			commands = append(commands, family+" rule add pref 31000 fwmark 0x0/0xffff iif lo lookup "+table)
		}
	}
	return commands
}

const app, other = 10123, 10124

func TestInternet(t *testing.T) {
	nettest.Require(t)
	type step struct {
		do        []string
		app, rest string // interfaces for that user and for another one
	}
	both := func(over string, do ...string) step { return step{do, over, over} }
	for _, test := range []struct {
		name    string
		android bool
		steps   []step
	}{
		{"no route", false, []step{both("")}},
		{"addresses without a default route", false, []step{both("", "addr add 192.0.2.1/24 dev wlan0", "addr add 2001:db8::1/64 dev wlan0 nodad")}},
		{"IPv4 only", false, []step{
			both("wlan0", "addr add 192.0.2.1/24 dev wlan0", "route add default via 192.0.2.2 dev wlan0")}},
		{"IPv6 only", false, []step{both("wlan0", "-6 route add default via fe80::1 dev wlan0")}},
		{"both over one interface", false, []step{
			both("wlan0", "route add default dev wlan0", "-6 route add default dev wlan0")}},
		{"IPv4 first", false, []step{both("rmnet_data0 wlan0", "-6 route add default dev wlan0", "route add default dev rmnet_data0")}},
		{"routes that refuse", false, []step{
			both("", "route add unreachable default", "-6 route add unreachable default"),
			both("", "route replace prohibit default", "-6 route del unreachable default", "-6 route add prohibit default"),
			both("", "route replace blackhole default", "-6 route del prohibit default", "-6 route add blackhole default"),
			both("", "route replace throw default", "-6 route del blackhole default", "-6 route add throw default"),
		}},
		{"delivered here", false, []step{both("", "route add local default dev lo", "-6 route add local default dev lo")}},
		{"the interface goes down", false, []step{
			both("wlan0", "route add default dev wlan0", "-6 route add default dev wlan0"), both("", "link set wlan0 down")}},
		{"several paths for IPv4", false, []step{
			both("wlan0 rmnet_data0", "route add default nexthop dev wlan0 nexthop dev rmnet_data0"),
			both("rmnet_data0", "link set wlan0 down")}},
		{"several paths for IPv6", false, []step{
			both("wlan0 rmnet_data0", "-6 route add default nexthop via fe80::1 dev wlan0 nexthop via fe80::1 dev rmnet_data0")}},
		{"several paths behind a rule of Android", true, []step{
			both("wlan0 rmnet_data0", append(network("1003"), "route add default table 1003 nexthop dev wlan0 nexthop dev rmnet_data0")...),
			both("rmnet_data0 wlan0", "route replace default table 1003 dev rmnet_data0",
				"-6 route add default table 1003 nexthop via fe80::1 dev wlan0 nexthop via fe80::1 dev rmnet_data0")}},
		{"Android without a network", true, []step{
			both("", "route add default dev wlan0", "-6 route add default dev wlan0", "route add default dev wlan0 table 1003")}},
		{"Android changes from Wi-Fi to cellular", true, []step{
			both("wlan0", append(network("1003"),
				"route add default dev wlan0 table 1003", "-6 route add default via fe80::1 dev wlan0 table 1003",
				"route add default dev rmnet_data0 table 1004", "-6 route add default dev rmnet_data0 table 1004")...),
			both("rmnet_data0", append(network("1004"), "-4 rule del pref 31000 lookup 1003", "-6 rule del pref 31000 lookup 1003")...),
			both("", "-4 rule del pref 31000", "-6 rule del pref 31000"),
		}},
		{"IPv6 only with clat", true, []step{
			both("rmnet_data0", append(network("1004"), "-6 route add default dev rmnet_data0 table 1004")...),
			both("v4-wlan0 rmnet_data0", append(network("1005"), "addr add 192.0.0.4/32 dev v4-wlan0",
				"route add default dev v4-wlan0 table 1005")...),
		}},
		{"a VPN for one user", true, []step{
			both("wlan0", append(network("1003"), "route add default dev wlan0 table 1003", "-6 route add default dev wlan0 table 1003")...),
			{[]string{
				"route add default dev v4-wlan0 table 1005", "-6 route add unreachable default table 1005",
				"-4 rule add pref 13000 fwmark 0x0/0x20000 iif lo uidrange 10100-10123 lookup 1005",
				"-6 rule add pref 13000 fwmark 0x0/0x20000 iif lo uidrange 10100-10123 lookup 1005",
			}, "v4-wlan0", "wlan0"},
			both("wlan0", "-4 rule del pref 13000", "-6 rule del pref 13000"),
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := nettest.NewSpace(t)
			ends(t, s, "wlan0", "rmnet_data0")
			nettest.OpenTun(t, s, "v4-wlan0")
			if test.android {
				netd(t, s)
			}
			for i, step := range test.steps {
				batch(t, s, step.do...)
				for uid, want := range map[uint32]string{app: step.app, other: step.rest} {
					if diff := cmp.Diff(want, over(t, s, uid)); diff != "" {
						t.Errorf("step %d, user %d (-want +got):\n%s", i, uid, diff)
					}
				}
			}
		})
	}
}
