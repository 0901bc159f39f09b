// SPDX-License-Identifier: Apache-2.0

package netd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

const (
	server4 = "198.51.100.7"
	server6 = "64:ff9b::c633:6407" // the same behind NAT64
)

func TestNeutral(t *testing.T) {
	for _, c := range []struct{ local, nat64, local4 string }{
		{"fd00:464::/64", "64:ff9b::/96", "192.0.0.4"},
		{"2001:db8:ffff:ffff::/64", "2001:db8:1:2::/96", "10.1.2.3"},
		{"fe80::/64", "64:ff9b::/96", "255.255.255.255"},
	} {
		local, nat64, local4 := netip.MustParsePrefix(c.local), netip.MustParsePrefix(c.nat64), netip.MustParseAddr(c.local4)
		got := Neutral(local, nat64, local4)
		if !local.Contains(got) {
			t.Errorf("%s is not in %s", got, local)
		}
		remote := netip.MustParseAddr(server4)
		prefix := nat64.Addr().As16()
		six := sum(slices.Concat(got.AsSlice(), prefix[:12], remote.AsSlice()))
		if four := sum(slices.Concat(local4.AsSlice(), remote.AsSlice())); six%0xffff != four%0xffff {
			t.Errorf("%s: the sums are %#x and %#x", got, six, four)
		}
	}
}

// clatPhone makes v4-NAME, into which the phone's IPv4 leads, and the server in the network.
func clatPhone(t *testing.T, phone, network nettest.Space, underlying string) (server netip.AddrPort) {
	t.Helper()
	nettest.QuietTun(t, phone, "v4-"+underlying)
	phone.Run(t, "ip", "addr", "add", "192.0.0.4/32", "dev", "v4-"+underlying)
	phone.Run(t, "ip", "route", "add", "default", "dev", "v4-"+underlying)
	network.Run(t, "ip", "addr", "add", server6+"/128", "dev", "lo", "nodad")
	return nettest.Answer(t, network, server6)
}

func TestClat(t *testing.T) {
	nettest.Require(t)
	phone, network := nettest.NewSpace(t), nettest.NewSpace(t)
	pipe(t, "rmnet0", phone, network)
	six := clatPhone(t, phone, network, "rmnet0")
	server := netip.AddrPortFrom(netip.MustParseAddr(server4), six.Port())
	network.Run(t, "ip", "-6", "route", "add", DefaultTranslation.Local6.String()+"/128", "dev", "rmnet0")

	n := start(t, phone, Options{})
	must(t, n.Join("rmnet0"))
	must(t, n.Join("v4-rmnet0"))
	must(t, n.Clat("v4-rmnet0", "rmnet0", DefaultTranslation))
	later(t, n, "v4-rmnet0", egress)
	later(t, n, "v4-rmnet0", ingress)
	later(t, n, "rmnet0", egress)
	later(t, n, "rmnet0", ingress)
	must(t, n.Check())
	for _, protocol := range []string{"udp", "tcp"} {
		must(t, n.CheckTraffic(func() error { return exchange(phone, protocol, server) },
			"v4-rmnet0 egress clat_egress4", "v4-rmnet0 ingress vendor", "rmnet0 egress vendor", "rmnet0 ingress clat_ingress6"))
		if out, in := taken(t, n, "v4-rmnet0 egress clat_egress4"), taken(t, n, "rmnet0 ingress clat_ingress6"); out == 0 || in == 0 {
			t.Errorf("%d packets of %s are translated out and %d in", out, protocol, in)
		}
	}
	// Behind the translation nobody sees them.
	for _, name := range []string{"v4-rmnet0 egress vendor", "rmnet0 ingress vendor"} {
		if seen, err := n.Seen(); err != nil || seen[name].Packets != 0 {
			t.Errorf("%s: %+v (%v)", name, seen[name], err)
		}
	}
	if sent := phone.Run(t, "cat", "/sys/class/net/v4-rmnet0/statistics/tx_packets"); sent != "0\n" {
		t.Errorf("clatd was sent packets: %s", sent)
	}
	t.Run("passes on what it does not translate", func(t *testing.T) { testClatPasses(t, n, phone) })

	must(t, n.StopClat("v4-rmnet0"))
	must(t, n.Check())
	if q := qdiscAt(t, n, "v4-rmnet0"); q != "" {
		t.Errorf("a %s is left", q)
	}
	if q := qdiscAt(t, n, "rmnet0"); q != "clsact" {
		t.Errorf("rmnet0 has qdisc %q", q)
	}
}

// testClatPasses sends ICMP, a datagram without a checksum, a fragment and one with IP options: they are clatd's.
func testClatPasses(t *testing.T, n *Netd, phone nettest.Space) {
	datagram := nettest.UDP(1000, 9, []byte("x"))
	laterSaw(t, n, "v4-rmnet0", egress)
	for name, packet := range map[string][]byte{
		"ICMP":        nettest.IPv4("192.0.0.4", server4, unix.IPPROTO_ICMP, 0, nil, nettest.Echo(nil)),
		"no checksum": nettest.IPv4("192.0.0.4", server4, unix.IPPROTO_UDP, 0, nil, datagram),
		"a fragment":  nettest.IPv4("192.0.0.4", server4, unix.IPPROTO_TCP, 0x2000, nil, nettest.Reset(1, 2, nil)),
		"options":     nettest.IPv4("192.0.0.4", server4, unix.IPPROTO_TCP, 0, []byte{1, 1, 1, 1}, nettest.Reset(1, 2, nil)),
		"not ours":    nettest.IPv4("192.0.0.5", server4, unix.IPPROTO_TCP, 0, nil, nettest.Reset(1, 2, nil)),
	} {
		was := taken(t, n, "v4-rmnet0 egress clat_egress4")
		phone.Must(t, func() error { return sendIP("v4-rmnet0", packet) })
		if got := taken(t, n, "v4-rmnet0 egress clat_egress4") - was; got != 0 {
			t.Errorf("%s is translated", name)
		}
		if got := laterSaw(t, n, "v4-rmnet0", egress); got != 1 {
			t.Errorf("%s: a later filter saw %d packets, want 1", name, got)
		}
	}
}

// sendIP sends an IPv4 packet out of an interface without a link-layer header.
func sendIP(ifname string, packet []byte) error {
	ifc, err := net.InterfaceByName(ifname)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, packet, 0, &unix.SockaddrLinklayer{Ifindex: ifc.Index, Protocol: nl.Swap16(unix.ETH_P_IP)})
}

// TestClatOverEthernet has what comes in translated; what goes out is left to clatd.
func TestClatOverEthernet(t *testing.T) {
	nettest.Require(t)
	phone, network := nettest.Pair(t)
	six := clatPhone(t, phone, network, "veth0")
	network.Run(t, "ip", "-6", "route", "add", DefaultTranslation.Local6.String()+"/128", "via", nettest.Near6)
	network.Run(t, "ip", "-6", "neigh", "add", nettest.Near6, "lladdr", nettest.NearMAC, "dev", "veth0")
	n := start(t, phone, Options{})
	must(t, n.Join("veth0"))
	must(t, n.Clat("v4-veth0", "veth0", DefaultTranslation))
	later(t, n, "v4-veth0", egress)

	var c net.PacketConn
	phone.Must(t, func() (err error) {
		c, err = net.ListenPacket("udp4", "192.0.0.4:0")
		return err
	})
	defer c.Close()
	port := c.LocalAddr().(*net.UDPAddr).Port
	network.Must(t, func() error {
		from := &net.UDPAddr{IP: net.ParseIP(server6)}
		s, err := net.DialUDP("udp6", from, &net.UDPAddr{IP: DefaultTranslation.Local6.AsSlice(), Port: port})
		if err != nil {
			return err
		}
		defer s.Close()
		_, err = s.Write([]byte("in"))
		return err
	})
	must(t, c.SetReadDeadline(time.Now().Add(nettest.Patience)))
	b := make([]byte, 64)
	size, from, err := c.ReadFrom(b)
	must(t, err)
	if string(b[:size]) != "in" || !strings.HasPrefix(from.String(), server4+":") {
		t.Errorf("%q came from %s", b[:size], from)
	}
	must(t, n.CheckTraffic(func() error {
		_, err := c.WriteTo([]byte("out"), &net.UDPAddr{IP: net.ParseIP(server4), Port: int(six.Port())})
		return err
	}, "v4-veth0 egress clat_egress4", "v4-veth0 egress vendor"))
	if got := taken(t, n, "v4-veth0 egress clat_egress4"); got != 0 {
		t.Errorf("%d packets are redirected to Ethernet", got)
	}
}

// TestClatGivesUp finds a clsact on v4-NAME: then there is no offload, and the stranger's qdisc stays.
func TestClatGivesUp(t *testing.T) {
	nettest.Require(t, "tc")
	s, _ := nettest.Pair(t)
	nettest.QuietTun(t, s, "v4-veth0")
	n := start(t, s, Options{})
	err := n.Clat("v4-veth0", "veth0", DefaultTranslation)
	if !errors.Is(err, unix.ENOENT) || qdiscAt(t, n, "v4-veth0") != "" {
		t.Errorf("veth0 has not joined: the error is %v, want ENOENT; qdisc %q", err, qdiscAt(t, n, "v4-veth0"))
	}
	must(t, n.Join("veth0"))
	s.Run(t, "tc", "qdisc", "add", "dev", "v4-veth0", "clsact")
	err = n.Clat("v4-veth0", "veth0", DefaultTranslation)
	if !errors.Is(err, unix.EEXIST) {
		t.Errorf("the error is %v, want EEXIST", err)
	}
	wantError(t, err, "clat v4-veth0: no offload: add clsact to v4-veth0")
	if q := qdiscAt(t, n, "v4-veth0"); q != "clsact" {
		t.Errorf("the stranger's clsact is %q", q)
	}
	if fs, err := n.conn.filters(n.qdiscs[0].ifindex, ingress); err != nil || len(fs) > 0 {
		t.Errorf("filters %v are left (%v)", fs, err)
	}
	must(t, n.Check())
}
