// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// TestGet holds each interface against vishvananda/netlink's reading of it.
func TestGet(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	ends(t, s, "wlan0")
	batch(t, s, "link set p-wlan0 mtu 9000 gso_max_size 3000", "link set wlan0 gso_max_size 131072")
	s.Must(t, func() error {
		all, err := Links()
		if err != nil {
			return err
		}
		for _, l := range all {
			got, err := Get(l.Index)
			if err != nil {
				return err
			}
			theirs, err := netlink.LinkByIndex(l.Index)
			if err != nil {
				return err
			}
			a := theirs.Attrs()
			want := Device{Link: l, Largest: max(uint32(a.MTU), a.GSOMaxSize, a.GROMaxSize, a.GSOIPv4MaxSize, a.GROIPv4MaxSize)}
			if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Link{}, "Received", "Sent")); diff != "" {
				t.Errorf("%s (-want +got):\n%s", l.Name, diff)
			}
			if l.Name == "wlan0" && got.Largest < 131072 {
				t.Errorf("wlan0 has packets of %d bytes at most, and 131072 were set", got.Largest)
			}
		}
		return nil
	})
}

func TestGetNone(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	s.Must(t, func() error {
		if d, err := Get(1 << 30); !errors.Is(err, unix.ENODEV) {
			t.Errorf("%+v, %v, want ENODEV", d, err)
		}
		return nil
	})
}

// TestGetXDP attaches a program as the kernel's, and as the driver's.
func TestGetXDP(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	ends(t, s, "wlan0")
	for name, flags := range map[string]link.XDPAttachFlags{"kernel": link.XDPGenericMode, "driver": link.XDPDriverMode} {
		t.Run(name, func(t *testing.T) {
			prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
				Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2 /* XDP_PASS */), asm.Return()},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer prog.Close()
			info, err := prog.Info()
			if err != nil {
				t.Fatal(err)
			}
			id, _ := info.ID()
			s.Must(t, func() error {
				all, err := Links()
				if err != nil {
					return err
				}
				index := all[slices.IndexFunc(all, func(l Link) bool { return l.Name == "wlan0" })].Index
				if d, err := Get(index); err != nil || d.XDP != nil {
					return fmt.Errorf("before: %+v, %w", d, err)
				}
				attached, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: index, Flags: flags})
				if err != nil {
					return err
				}
				defer attached.Close()
				if d, err := Get(index); err != nil || !slices.Equal(d.XDP, []uint32{uint32(id)}) {
					t.Errorf("%+v, %v, want the program %d", d, err, id)
				}
				return nil
			})
		})
	}
}

// TestAddresses holds the addresses against vishvananda/netlink's reading of them.
func TestAddresses(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	ends(t, s, "wlan0")
	batch(t, s, "link set lo up", "addr add 192.168.7.9/24 dev wlan0", "addr add 10.1.2.3/32 dev wlan0",
		"addr add 10.9.0.1 peer 10.9.0.2/24 dev wlan0", "addr add 2001:db8::7/64 dev wlan0 nodad",
		"addr add 2001:db8:1::7 peer 2001:db8:1::8 dev wlan0 nodad", "addr add 0.0.0.0/0 dev wlan0")
	s.Must(t, func() error {
		got, err := Addresses()
		if err != nil {
			return err
		}
		theirs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		want := map[int][]netip.Prefix{}
		for _, a := range theirs {
			if a.IPNet != nil {
				want[a.LinkIndex] = append(want[a.LinkIndex], netip.MustParsePrefix(a.IPNet.String()))
			}
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		var all []string
		for _, of := range got {
			for _, a := range of {
				all = append(all, a.String())
			}
		}
		for _, one := range []string{"127.0.0.1/8", "::1/128", "192.168.7.9/24", "10.1.2.3/32", "10.9.0.1/32", "2001:db8::7/64", "2001:db8:1::7/128"} {
			if !slices.Contains(all, one) {
				t.Errorf("%s is not among %q", one, all)
			}
		}
		return nil
	})
}

func TestDefaultRoutes(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	ends(t, s, "wlan0", "rmnet0", "tun0", "eth0")
	batch(t, s, "addr add 192.168.7.9/24 dev wlan0", "addr add 10.1.2.3/24 dev rmnet0",
		"route add default via 192.168.7.1 dev wlan0 table 1030", "route add default via 192.168.7.1 dev wlan0 table 1031",
		"-6 route add default dev wlan0 table 1030", "-6 route add default dev rmnet0 metric 7",
		"route add 0.0.0.0/1 dev eth0", "-6 route add 2000::/3 dev eth0", "route add unreachable default metric 9999",
		"route add default metric 77 nexthop via 192.168.7.1 dev wlan0 nexthop via 10.1.2.1 dev rmnet0")
	s.Must(t, func() error {
		over, err := DefaultRoutes()
		if err != nil {
			return err
		}
		all, err := Links()
		if err != nil {
			return err
		}
		got := map[string][]string{}
		for _, l := range all {
			if over[l.Index] != nil {
				got[l.Name] = over[l.Index]
			}
		}
		want := map[string][]string{"wlan0": {"IPv4", "IPv6"}, "rmnet0": {"IPv4", "IPv6"}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		return nil
	})
}

func ifaddr(family, bits byte) []byte { return slices.Concat([]byte{family, bits, 0, 0}, words(3)) }

var addresses = map[string]struct {
	b    []byte
	want string
	bad  bool
}{
	"IPv4": {
		b:    slices.Concat(ifaddr(unix.AF_INET, 24), attr(unix.IFA_ADDRESS, []byte{10, 0, 0, 1}), attr(unix.IFA_LOCAL, []byte{10, 0, 0, 1})),
		want: "10.0.0.1/24"},
	"with a peer": {
		b:    slices.Concat(ifaddr(unix.AF_INET, 24), attr(unix.IFA_LOCAL, []byte{10, 0, 0, 1}), attr(unix.IFA_ADDRESS, []byte{10, 0, 0, 2})),
		want: "10.0.0.1/32"},
	"IPv6":                   {b: slices.Concat(ifaddr(unix.AF_INET6, 64), attr(unix.IFA_ADDRESS, netip.MustParseAddr("fe80::1").AsSlice())), want: "fe80::1/64"},
	"0.0.0.0":                {b: ifaddr(unix.AF_INET, 0), want: "invalid Prefix"},
	"of another family":      {b: slices.Concat(ifaddr(unix.AF_PHONET, 0), attr(unix.IFA_LOCAL, []byte{8})), want: "invalid Prefix"},
	"a short ifaddrmsg":      {b: ifaddr(unix.AF_INET, 24)[:7], bad: true},
	"a prefix too long":      {b: slices.Concat(ifaddr(unix.AF_INET, 33), attr(unix.IFA_ADDRESS, []byte{10, 0, 0, 1})), bad: true},
	"an address of 5 bytes":  {b: slices.Concat(ifaddr(unix.AF_INET, 24), attr(unix.IFA_ADDRESS, []byte{10, 0, 0, 1, 0})), bad: true},
	"an attribute cut short": {b: slices.Concat(ifaddr(unix.AF_INET, 24), []byte{8, 0, unix.IFA_LOCAL, 0, 10}), bad: true},
}

func TestParseAddress(t *testing.T) {
	for name, test := range addresses {
		t.Run(name, func(t *testing.T) {
			index, got, err := parseAddress(test.b)
			if test.bad {
				if !errors.Is(err, unix.EBADMSG) {
					t.Errorf("%s, %v, want EBADMSG", got, err)
				}
				return
			}
			if err != nil || got.String() != test.want || got.IsValid() && index != 3 {
				t.Errorf("%s of interface %d, %v, want %s of 3", got, index, err, test.want)
			}
		})
	}
}

var devices = map[string]struct {
	b    []byte
	want Device
	bad  bool
}{
	"the largest counts": {
		b:    slices.Concat(attr(unix.IFLA_MTU, words(1500)), attr(unix.IFLA_GSO_MAX_SIZE, words(65536)), attr(unix.IFLA_GRO_IPV4_MAX_SIZE, words(9))),
		want: Device{Largest: 65536}},
	"XDP alone": {
		b:    attr(unix.NLA_F_NESTED|unix.IFLA_XDP, slices.Concat(attr(unix.IFLA_XDP_ATTACHED, []byte{1}), attr(unix.IFLA_XDP_PROG_ID, words(5)), attr(unix.IFLA_XDP_DRV_PROG_ID, words(5)))),
		want: Device{XDP: []uint32{5}}},
	"XDP of driver and kernel": {
		b:    attr(unix.IFLA_XDP, slices.Concat(attr(unix.IFLA_XDP_ATTACHED, []byte{4}), attr(unix.IFLA_XDP_SKB_PROG_ID, words(6)), attr(unix.IFLA_XDP_DRV_PROG_ID, words(5)))),
		want: Device{XDP: []uint32{6, 5}}},
	"no XDP":           {b: attr(unix.IFLA_XDP, attr(unix.IFLA_XDP_ATTACHED, []byte{0}))},
	"a short MTU":      {b: attr(unix.IFLA_MTU, []byte{1, 2, 3}), bad: true},
	"a short XDP id":   {b: attr(unix.IFLA_XDP, attr(unix.IFLA_XDP_PROG_ID, []byte{5})), bad: true},
	"half an XDP attr": {b: attr(unix.IFLA_XDP, []byte{4, 0}), bad: true},
}

func TestParseDevice(t *testing.T) {
	for of, test := range devices {
		t.Run(of, func(t *testing.T) {
			got, err := parseDevice(slices.Concat(ifinfo(0, 3, 0, 0), name("a"), test.b))
			if test.bad != errors.Is(err, unix.EBADMSG) || !test.bad && err != nil {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(test.want, got, cmpopts.IgnoreFields(Device{}, "Link")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzAnswers: no bytes make these parsers read beyond their end.
func FuzzAnswers(f *testing.F) {
	for _, test := range addresses {
		f.Add(test.b)
	}
	for _, test := range devices {
		f.Add(slices.Concat(ifinfo(0, 3, 0, 0), name("a"), test.b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := parseDevice(b); err == nil && (d.Index <= 0 || slices.Contains(d.XDP, 0)) {
			t.Errorf("interface %+v", d)
		}
		if _, a, err := parseAddress(b); err != nil && a.IsValid() {
			t.Errorf("address %s and %v", a, err)
		}
		if hops, err := parseDefault(b); err == nil && len(hops) > 0 && b[1] != 0 {
			t.Errorf("default route over %v to %d bits", hops, b[1])
		}
	})
}

// TestAnswer: a list is whole, or it is not told.
func TestAnswer(t *testing.T) {
	entry := packed(unix.RTM_NEWQDISC, tcm(3))
	refused := -int32(unix.EMSGSIZE)
	for _, test := range []struct {
		rule     string
		datagram []byte
		list     bool
		bodies   int
		done     bool
		want     error
	}{
		{"a list goes on", entry, true, 1, false, nil},
		{"what is not a list does not", entry, false, 1, true, nil},
		{"the end of a list", slices.Concat(entry, packed(unix.NLMSG_DONE, words(0))), true, 1, true, nil},
		{"an end that says nothing", packed(unix.NLMSG_DONE), true, 0, true, nil},
		{"a list that is given up", slices.Concat(entry, packed(unix.NLMSG_DONE, words(uint32(refused)))), true, 0, false, unix.EMSGSIZE},
		{"a refusal", packed(unix.NLMSG_ERROR, words(uint32(refused))), true, 0, false, unix.EMSGSIZE},
		{"a consent", packed(unix.NLMSG_ERROR, words(0)), false, 0, true, nil},
		{"half a refusal", packed(unix.NLMSG_ERROR), false, 0, false, unix.EBADMSG},
	} {
		bodies, done, err := answer(test.datagram, test.list)
		if len(bodies) != test.bodies || done != test.done || !errors.Is(err, test.want) {
			t.Errorf("%s: %d answers, done %v, %v, want %d, %v, %v", test.rule, len(bodies), done, err, test.bodies, test.done, test.want)
		}
	}
}
