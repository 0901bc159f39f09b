// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/android"
	"droidtap/scripts/nettest"
)

func TestOwnerTCP(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	c := openIn(t, s)
	for _, ends := range []struct{ rule, at, from, to string }{
		{"IPv4", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"},
		{"IPv6", "[::1]:0", "[::1]:0", "::1"},
		{"a server of both families", "[::]:0", "127.0.0.1:0", "127.0.0.1"},
		{"a client of both families", "127.0.0.1:0", "[::]:0", "::ffff:127.0.0.1"},
	} {
		t.Run(ends.rule, func(t *testing.T) {
			server, client, f := connected(t, s, ends.at, ends.from, ends.to, serverUID, clientUID)
			checkOwner(t, c, f, clientUID)
			checkOwner(t, c, f.reverse(), serverUID)
			if err := errors.Join(unix.Fchown(client.fd, givenUID, givenUID), unix.Fchown(server.fd, 0, 0)); err != nil {
				t.Fatal(err)
			}
			checkOwner(t, c, f, givenUID)
			checkOwner(t, c, f.reverse(), 0)
		})
		t.Run(ends.rule+", before the first SYN and before accept", func(t *testing.T) {
			listener := socketOf(t, s, serverUID, unix.SOCK_STREAM, ends.at).listen(t)
			client := socketOf(t, s, clientUID, unix.SOCK_STREAM, ends.from)
			to := netip.AddrPortFrom(netip.MustParseAddr(ends.to), listener.port(t))
			first := Flow{Protocol: unix.IPPROTO_TCP, Local: to, Remote: netip.AddrPortFrom(to.Addr(), 1)}
			checkOwner(t, c, first, serverUID)
			client.connect(t, ends.to, listener.port(t))
			f := flowOf(t, unix.IPPROTO_TCP, client).reverse()
			checkOwner(t, c, f, serverUID)
			client.close(t)
			checkOwner(t, c, f, serverUID)
			listener.close(t)
			checkOwner(t, c, first, nobody)
		})
	}
}

func TestOwnerUDP(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	c := openIn(t, s)
	for _, ends := range []struct{ rule, at, from, to string }{
		{"IPv4", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"},
		{"IPv4, any address", "0.0.0.0:0", "0.0.0.0:0", "127.0.0.1"},
		{"IPv6", "[::1]:0", "[::1]:0", "::1"},
		{"a server of both families", "[::]:0", "127.0.0.1:0", "127.0.0.1"},
		{"a client of both families", "127.0.0.1:0", "[::]:0", "::ffff:127.0.0.1"},
	} {
		t.Run(ends.rule, func(t *testing.T) {
			server := socketOf(t, s, serverUID, unix.SOCK_DGRAM, ends.at)
			client := socketOf(t, s, clientUID, unix.SOCK_DGRAM, ends.from)
			to := netip.MustParseAddr(ends.to)
			f := Flow{
				Protocol: unix.IPPROTO_UDP,
				Local:    netip.AddrPortFrom(to, client.port(t)),
				Remote:   netip.AddrPortFrom(to, server.port(t)),
			}
			for _, connect := range []func(){func() {}, func() { client.connect(t, ends.to, server.port(t)) }} {
				connect()
				checkOwner(t, c, f, clientUID)
				checkOwner(t, c, f.reverse(), serverUID)
			}
			if err := unix.Fchown(client.fd, givenUID, givenUID); err != nil {
				t.Fatal(err)
			}
			checkOwner(t, c, f, givenUID)
			other := socketOf(t, s, 0, unix.SOCK_DGRAM, netip.AddrPortFrom(to, 0).String())
			f.Local = netip.AddrPortFrom(to, other.port(t))
			checkOwner(t, c, f, 0)
			other.close(t)
			checkOwner(t, c, f, nobody)
		})
	}
}

// knowsClosed tells whether the kernel says whose a socket was that its process has closed.
func knowsClosed(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	r := android.ParseRelease(unix.ByteSliceToString(u.Release[:]))
	return r.Major > 6 || r.Major == 6 && r.Minor >= 17
}

func TestClosed(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	c := openIn(t, s)
	const finWait1, finWait2, timeWait = 4, 5, 6
	for _, uid := range []int{clientUID, 0} {
		t.Run(fmt.Sprint("uid ", uid), func(t *testing.T) {
			server, client, f := connected(t, s, "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1", serverUID, uid)
			client.fill(t)
			client.close(t)
			awaitState(t, c, f, finWait1)
			want := nobody
			if uid != 0 && knowsClosed(t) {
				want = uid
			}
			checkOwner(t, c, f, want)
			server.drain(t)
			awaitState(t, c, f, finWait2)
			checkOwner(t, c, f, nobody)
			server.close(t)
			awaitState(t, c, f, timeWait)
			checkOwner(t, c, f, nobody)
			checkOwner(t, c, f.reverse(), nobody)

			// The same addresses and ports, another's connection: one that begins in TIME_WAIT.
			socketOf(t, s, serverUID, unix.SOCK_STREAM, f.Remote.String()).listen(t)
			socketOf(t, s, givenUID, unix.SOCK_STREAM, f.Local.String()).connect(t, "127.0.0.1", f.Remote.Port())
			checkOwner(t, c, f, givenUID)
		})
	}
}

func TestHandshake(t *testing.T) {
	nettest.Require(t)
	near, far := nettest.Pair(t)
	c := openIn(t, near)
	for _, uid := range []int{serverUID, 0} {
		t.Run(fmt.Sprint("uid ", uid), func(t *testing.T) {
			listener := socketOf(t, near, uid, unix.SOCK_STREAM, "[::]:0").listen(t)
			// Nobody has the address that it comes from, so the handshake does not go on.
			const silent = "10.99.0.77"
			segment := nettest.Reset(443, listener.port(t), nil)
			segment[13] = 2 // SYN
			checksumTCP(segment, silent, nettest.Near4)
			frame := nettest.Ethernet(nettest.NearMAC, nettest.FarMAC, nettest.TypeIPv4,
				nettest.IPv4(silent, nettest.Near4, unix.IPPROTO_TCP, 0, nil, segment))
			far.Must(t, func() error { return nettest.Send("veth0", frame) })
			f := flow(unix.IPPROTO_TCP, fmt.Sprintf("%s:%d", nettest.Near4, listener.port(t)), silent+":443")
			if s := awaitState(t, c, f, stateSynRecv); s.UID != 0 || s.Inode != 0 {
				t.Errorf("in a handshake the kernel says %+v", s)
			}
			checkOwner(t, c, f, uid)
		})
	}
}

// checksumTCP puts the checksum into a segment of even length.
func checksumTCP(segment []byte, src, dst string) {
	sum := uint32(unix.IPPROTO_TCP + len(segment))
	b := append(netip.MustParseAddr(src).AsSlice(), netip.MustParseAddr(dst).AsSlice()...)
	for b = append(b, segment...); len(b) > 0; b = b[2:] {
		sum += uint32(be.Uint16(b))
	}
	sum = sum>>16 + sum&0xffff
	be.PutUint16(segment[16:], ^uint16(sum>>16+sum))
}

func TestTwoSpaces(t *testing.T) {
	nettest.Require(t)
	one, other, empty := nettest.NewSpace(t), nettest.NewSpace(t), nettest.NewSpace(t)
	const at = "127.0.0.1:4242"
	socketOf(t, one, serverUID, unix.SOCK_DGRAM, at)
	socketOf(t, other, clientUID, unix.SOCK_DGRAM, at)
	f := flow(unix.IPPROTO_UDP, at, "127.0.0.1:9")
	for s, want := range map[nettest.Space]int{one: serverUID, other: clientUID, empty: nobody} {
		checkOwner(t, openIn(t, s), f, want)
	}
}

func TestBoundToAnInterface(t *testing.T) {
	nettest.Require(t)
	near, _ := nettest.Pair(t)
	near.Run(t, "ip", "addr", "add", "fe80::1/64", "dev", "veth0", "nodad")
	c := openIn(t, near)
	var ifindex uint32
	near.Must(t, func() error {
		ifc, err := net.InterfaceByName("veth0")
		if err == nil {
			ifindex = uint32(ifc.Index)
		}
		return err
	})
	for _, local := range []string{nettest.Near4, nettest.Near6, "fe80::1"} {
		addr := netip.AddrPortFrom(netip.MustParseAddr(local), 0)
		for protocol, kind := range map[uint8]int{unix.IPPROTO_TCP: unix.SOCK_STREAM, unix.IPPROTO_UDP: unix.SOCK_DGRAM} {
			bound := socketOf(t, near, serverUID, kind, addr.String(), bindToDevice)
			ends := []*end{bound}
			if !addr.Addr().IsLinkLocalUnicast() {
				ends = append(ends, socketOf(t, near, clientUID, kind, addr.String()))
			}
			for _, e := range ends {
				if protocol == unix.IPPROTO_TCP {
					e.listen(t)
				}
				f := Flow{Protocol: protocol, Local: e.local(t), Remote: netip.AddrPortFrom(addr.Addr(), 9), Ifindex: ifindex}
				checkOwner(t, c, f, e.uid)
				for _, f.Ifindex = range []uint32{0, ifindex + 1} {
					if e == bound {
						checkOwner(t, c, f, nobody)
					} else {
						checkOwner(t, c, f, e.uid)
					}
				}
			}
		}
	}
}

func BenchmarkOwner(b *testing.B) {
	nettest.Require(b)
	s := nettest.NewSpace(b)
	c := openIn(b, s)
	_, _, tcp := connected(b, s, "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1", serverUID, clientUID)
	server := socketOf(b, s, serverUID, unix.SOCK_DGRAM, "[::]:0")
	udp := Flow{
		Protocol: unix.IPPROTO_UDP,
		Local:    netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), server.port(b)),
		Remote:   netip.MustParseAddrPort("127.0.0.1:9"),
	}
	none := tcp
	none.Local = netip.AddrPortFrom(none.Local.Addr(), 1)
	for _, q := range []struct {
		of   string
		flow Flow
	}{{"TCP", tcp}, {"UDP", udp}, {"nobody", none}} {
		b.Run(q.of, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := c.Owner(q.flow); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
