// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// socket is one of an app, or several.
type socket struct {
	family, kind int // of socket(2)
	bind         string
	connect      string
	device       string
	port         int // 0: here
}

const here, there = 40000, 443 // ports

// open opens the socket in the namespace of the thread.
func (s socket) open(t testing.TB, uid int) int {
	t.Helper()
	fd, err := unix.Socket(s.family, s.kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Close(fd); err != nil {
			t.Error(err)
		}
	})
	errs := []error{unix.Fchown(fd, uid, -1), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)}
	if s.device != "" {
		errs = append(errs, unix.BindToDevice(fd, s.device))
	}
	port := s.port
	if port == 0 {
		port = here
	}
	errs = append(errs, unix.Bind(fd, address(t, s.family, s.bind, port)))
	if s.connect != "" {
		errs = append(errs, unix.Connect(fd, address(t, s.family, s.connect, there)))
	} else if s.kind == unix.SOCK_STREAM {
		errs = append(errs, unix.Listen(fd, 1))
	}
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("open %+v: %v", s, err)
	}
	return fd
}

// address is of a socket; a link-local one is of the interface other.
func address(t testing.TB, family int, addr string, port int) unix.Sockaddr {
	t.Helper()
	a := netip.MustParseAddr(addr)
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Addr: a.As4(), Port: port}
	}
	to := &unix.SockaddrInet6{Addr: a.As16(), Port: port}
	if a.IsLinkLocalUnicast() {
		ifc, err := net.InterfaceByName("other")
		if err != nil {
			t.Fatal(err)
		}
		to.ZoneId = uint32(ifc.Index)
	}
	return to
}

const linkLocal = "fe80::1"

// configure gives the interface other its addresses, and a default route that leads out of it.
func (s space) configure(t testing.TB) {
	t.Helper()
	link, err := netlink.LinkByName("other")
	if err != nil {
		t.Fatal(err)
	}
	peer, err := netlink.LinkByName("peer")
	if err != nil {
		t.Fatal(err)
	}
	add := func(cidr string) error {
		addr, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		return netlink.AddrAdd(link, addr)
	}
	route := func(gateway string) error {
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)})
	}
	if err := errors.Join(netlink.LinkSetUp(link), netlink.LinkSetUp(peer), add("10.0.0.1/24"), add("2001:db8::1/64"), add(linkLocal+"/64"),
		route("10.0.0.254"), route("2001:db8::ff")); err != nil {
		t.Fatal(err)
	}
}

// forward switches forwarding on or off in the namespace of the thread.
func forward(t *testing.T, on bool) {
	t.Helper()
	value := []byte{'0'}
	if on {
		value[0] = '1'
	}
	for _, name := range []string{"ipv4/conf/all", "ipv6/conf/all"} {
		if err := os.WriteFile("/proc/sys/net/"+name+"/forwarding", value, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// incoming is a packet that comes in, to another address. The payload is the one of its protocol.
func incoming(dst string, protocol byte, flags byte) []byte {
	payload := udpHead(false)
	if protocol == tcp {
		payload = tcpHead(false, flags)
	}
	a := netip.MustParseAddr(dst)
	if a.Is4() {
		p := packet4(false, protocol, 0, payload)
		copy(p[16:], a.AsSlice())
		return ethernet(p, typeIP4)
	}
	p := packet6(false, protocol, payload)
	if a.IsLinkLocalUnicast() {
		copy(p[8:], netip.MustParseAddr("fe80::2").AsSlice())
	}
	copy(p[24:], a.AsSlice())
	return ethernet(p, typeIP6)
}

// TestOwnerByLookup has packets that come in for a socket of the app's, which has sent nothing. A forwarded packet is
// nobody's, whatever socket would fit.
func TestOwnerByLookup(t *testing.T) {
	needRoot(t)
	any4 := socket{unix.AF_INET, unix.SOCK_DGRAM, "0.0.0.0", "", "", 0}
	any6 := socket{unix.AF_INET6, unix.SOCK_DGRAM, "::", "", "", 0}
	listen4 := socket{unix.AF_INET, unix.SOCK_STREAM, "0.0.0.0", "", "", 0}
	listen6 := socket{unix.AF_INET6, unix.SOCK_STREAM, "::", "", "", 0}
	tagged := func(p []byte) []byte { return ethernet(p[14:], tagVLAN, p[12:14]) }
	s := newSpace(t, 65536)
	s.configure(t)
	lookup := tiers[2]
	o := start(t, lookup.object, config{settings: lookup.offsets(t, settings{Snaplen: 64, Directions: both, Owner: tell}), interfaces: []uint32{0, s.other}})
	for _, c := range []struct {
		rule    string
		socket  socket
		program string
		packet  []byte
		want    uint32
	}{
		{"UDP, nothing was sent", any4, "l2_ingress", incoming("10.0.0.1", udp, 0), app},
		{"of its address", socket{unix.AF_INET, unix.SOCK_DGRAM, "10.0.0.1", "", "", 0}, "l2_ingress", incoming("10.0.0.1", udp, 0), app},
		{"connected", socket{unix.AF_INET, unix.SOCK_DGRAM, "10.0.0.1", "192.0.2.1", "", 0}, "l2_ingress", incoming("10.0.0.1", udp, 0), app},
		{"connected to another", socket{unix.AF_INET, unix.SOCK_DGRAM, "10.0.0.1", "192.0.2.2", "", 0}, "l2_ingress", incoming("10.0.0.1", udp, 0), none},
		{"of the device", socket{unix.AF_INET, unix.SOCK_DGRAM, "0.0.0.0", "", "other", 0}, "l2_ingress", incoming("10.0.0.1", udp, 0), app},
		{"of another device", socket{unix.AF_INET, unix.SOCK_DGRAM, "0.0.0.0", "", "peer", 0}, "l2_ingress", incoming("10.0.0.1", udp, 0), none},
		{"a listener", listen4, "l2_ingress", incoming("10.0.0.1", tcp, syn), app},
		{"another protocol", listen4, "l2_ingress", incoming("10.0.0.1", udp, 0), none},
		{"IPv6", any6, "l2_ingress", incoming("2001:db8::1", udp, 0), app},
		{"an IPv6 listener", listen6, "l2_ingress", incoming("2001:db8::1", tcp, syn), app},
		{"IPv4 to a socket of both", any6, "l2_ingress", incoming("10.0.0.1", udp, 0), app},
		{"IPv4 to a listener of both", listen6, "l2_ingress", incoming("10.0.0.1", tcp, syn), app},
		{"a v4-mapped connection", socket{unix.AF_INET6, unix.SOCK_DGRAM, "::ffff:10.0.0.1", "::ffff:192.0.2.1", "", 0}, "l2_ingress", incoming("10.0.0.1", udp, 0), app},
		{"link-local", socket{unix.AF_INET6, unix.SOCK_DGRAM, linkLocal, "", "", 0}, "l2_ingress", incoming(linkLocal, udp, 0), app},
		{"link-local to a socket of any address", any6, "l2_ingress", incoming(linkLocal, udp, 0), app},
		{"IPv6 of the device", socket{unix.AF_INET6, unix.SOCK_DGRAM, "::", "", "other", 0}, "l2_ingress", incoming(linkLocal, udp, 0), app},
		{"broadcast", any4, "l2_ingress", incoming("255.255.255.255", udp, 0), app},
		{"broadcast on the subnet", any4, "l2_ingress", incoming("10.0.0.255", udp, 0), app},
		{"multicast", any4, "l2_ingress", incoming("224.0.0.251", udp, 0), app},
		{"IPv6 multicast", any6, "l2_ingress", incoming("ff02::fb", udp, 0), app},
		{"behind a VLAN tag", any4, "l2_ingress", tagged(incoming("10.0.0.1", udp, 0)), app},
		{"without an Ethernet header", any4, "l3_ingress", incoming("10.0.0.1", udp, 0)[14:], app},
		// BPF_PROG_TEST_RUN takes the start of the IP header for another card's address.
		{"IPv6 without an Ethernet header", socket{unix.AF_INET6, unix.SOCK_STREAM, "2001:db8::1", "", "", 0}, "l3_ingress", incoming("2001:db8::1", tcp, syn)[14:], app},
		{"forwarded, and the socket is of an address", socket{unix.AF_INET, unix.SOCK_DGRAM, "10.0.0.1", "", "", 0}, "l2_ingress", incoming("198.51.100.1", udp, 0), none},
	} {
		for _, forwarding := range []bool{false, true} {
			name := c.rule
			if forwarding {
				name += ", forwarding"
			}
			t.Run(name, func(t *testing.T) {
				s.enter(t)
				forward(t, forwarding)
				c.socket.open(t, app)
				if got := o.ownerOf(t, c.program, s.other, c.packet); got.UID != c.want {
					t.Errorf("uid is %#x, want %#x", got.UID, c.want)
				}
			})
		}
	}
	for _, c := range []struct {
		rule   string
		socket socket
		packet []byte
	}{
		{"UDP", any4, incoming("198.51.100.1", udp, 0)},
		{"UDP to a neighbour", any4, incoming("10.0.0.7", udp, 0)},
		{"TCP", listen4, incoming("198.51.100.1", tcp, syn)},
		{"IPv6 UDP", any6, incoming("2001:db8:1::1", udp, 0)},
		{"IPv6 TCP", listen6, incoming("2001:db8:1::1", tcp, syn)},
		{"IPv4, and the socket is of both", listen6, incoming("198.51.100.1", tcp, syn)},
	} {
		t.Run("forwarded: "+c.rule, func(t *testing.T) {
			s.enter(t)
			forward(t, true)
			c.socket.open(t, app)
			if got := o.ownerOf(t, "l2_ingress", s.other, c.packet); got.UID != none {
				t.Errorf("uid is %#x", got.UID)
			}
		})
	}
}

// TestOwnerOfAnotherMachine has a packet for another card, which comes by on an interface that was made promiscuous.
func TestOwnerOfAnotherMachine(t *testing.T) {
	needRoot(t)
	s := newSpace(t, 65536)
	s.configure(t)
	lookup := tiers[2]
	o := start(t, lookup.object, config{settings: lookup.offsets(t, settings{Snaplen: 64, Directions: both, Owner: tell}), interfaces: []uint32{0, s.other}})
	socket{unix.AF_INET, unix.SOCK_DGRAM, "0.0.0.0", "", "", 0}.open(t, app)
	packet := incoming("198.51.100.1", udp, 0)
	packet[0] = 2
	for _, on := range []bool{false, true} {
		forward(t, on)
		if got := o.ownerOf(t, "l2_ingress", s.other, packet); got.UID != none {
			t.Errorf("forwarding %v: uid is %#x", on, got.UID)
		}
	}
}

// TestOwnerByLookupOverFlow has a port that another uid has now: the flow is of the one before.
func TestOwnerByLookupOverFlow(t *testing.T) {
	needRoot(t)
	s := newSpace(t, 65536)
	s.configure(t)
	lookup := tiers[2]
	o := start(t, lookup.object, config{settings: lookup.offsets(t, settings{Snaplen: 64, Directions: both, Owner: tell}), interfaces: []uint32{0, s.other}})
	o.remember(t, past{flows: theirs})
	fd := socket{unix.AF_INET, unix.SOCK_DGRAM, "10.0.0.1", "", "", 0}.open(t, 10124)
	if got := o.ownerOf(t, "l2_ingress", s.other, incoming("10.0.0.1", udp, 0)); got.UID != 10124 {
		t.Errorf("uid is %#x", got.UID)
	}
	if err := unix.Fchown(fd, 10125, -1); err != nil {
		t.Fatal(err)
	}
	if got := o.ownerOf(t, "l2_ingress", s.other, incoming("10.0.0.1", udp, 0)); got.UID != 10125 {
		t.Errorf("uid is %#x of a socket that was handed to another", got.UID)
	}
	if got := o.ownerOf(t, "l2_ingress", s.other, in4(icmp, icmpError(3, packet4(true, udp, 0, udpHead(true))))); got.UID != 10125 {
		t.Errorf("uid is %#x of an error about its packet", got.UID)
	}
}

// TestOwnerByLookupOnLoopback has two owners of one packet: the sender was learnt when it left, and the receiver has a socket.
func TestOwnerByLookupOnLoopback(t *testing.T) {
	needRoot(t)
	const sender = 10124
	s := newSpace(t, 65536)
	lookup := tiers[2]
	for _, c := range []struct {
		rule  string
		owner uint32
		uids  []uint32
		want  uint32
	}{
		{"the sender is wanted", byOwner, []uint32{sender}, sender},
		{"the receiver is wanted", byOwner, []uint32{app}, app},
		{"tell: the receiver", tell, nil, app},
	} {
		t.Run(c.rule, func(t *testing.T) {
			s.enter(t)
			o := start(t, lookup.object, config{settings: lookup.offsets(t, settings{Snaplen: 64, Directions: both, Owner: c.owner}), uids: c.uids})
			socket{unix.AF_INET, unix.SOCK_DGRAM, "0.0.0.0", "", "", 0}.open(t, app)
			packet := incoming("127.0.0.1", udp, 0)
			copy(packet[26:], []byte{127, 0, 0, 1})
			left := swap(theirFlow(udp))
			left.Local, left.Remote = v4(127, 0, 0, 1), v4(127, 0, 0, 1)
			o.remember(t, past{flows: map[flow]uint32{left: sender}})
			if got := o.ownerOf(t, "l2_ingress", loopback, packet); got.UID != c.want {
				t.Errorf("uid is %#x, want %#x", got.UID, c.want)
			}
		})
	}
}

// ownerOf returns the record of one packet.
func (c *capture) ownerOf(t *testing.T, program string, ifindex uint32, packet []byte) event {
	t.Helper()
	c.run(t, program, ifindex, packet)
	all := c.records(t)
	if len(all) != 1 {
		t.Fatalf("%d records of one packet", len(all))
	}
	return all[0].event
}
