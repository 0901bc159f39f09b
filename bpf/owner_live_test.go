// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// TestOwnerLive has real sockets of several users, and what the kernel sends itself.
func TestOwnerLive(t *testing.T) {
	needRoot(t)
	for _, tier := range tiers {
		for _, family := range []string{"IPv4", "IPv6"} {
			t.Run(tier.name+" "+family, func(t *testing.T) {
				w := newWorld(t)
				o := start(t, tier.object, config{settings: tier.offsets(t, settings{Snaplen: 128, Directions: both, Owner: tell}), interfaces: []uint32{0, w.other}})
				w.watch(t, o)
				l := live{w, o, tier, family}
				t.Run("a client, and its TIME_WAIT", l.client)
				t.Run("a server", l.server)
				t.Run("a reset after an abort", l.abort)
				t.Run("closed ports", l.closed)
				t.Run("pings", l.pings)
				t.Run("fragments", l.fragments)
				t.Run("a translated address", l.translated)
				t.Run("a packet in a packet", l.carried)
			})
		}
	}
}

type live struct {
	world
	*capture
	tier   tier
	family string
}

func (l live) at(addr map[string]string, port int) *net.TCPAddr {
	return &net.TCPAddr{IP: net.ParseIP(addr[l.family]), Port: port}
}

// check holds the records against the owners by label; what has no label is the kernel's, and nobody's.
func (l live) check(t *testing.T, all []record, want map[string]uids) {
	t.Helper()
	for _, r := range all {
		uid := uint32(none)
		if u, ok := want[r.label()]; ok {
			uid = u.of(l.tier)
		}
		if r.UID != uid {
			t.Errorf("%s is of uid %#x, want %#x", r.label(), r.UID, uid)
		}
		if own := r.UID < none; own != (r.Cgroup != 0) {
			t.Errorf("%s of uid %#x has cgroup %d", r.label(), r.UID, r.Cgroup)
		}
	}
}

// connection is one from an app to the far machine, or from there to an app, over which a byte went each way.
func (l live) connection(t *testing.T, clientNS netns.NsHandle, client int, serverNS netns.NsHandle, server int, addr *net.TCPAddr, abort bool) (port int) {
	t.Helper()
	ready := make(chan struct{})
	served := l.begin(serverNS, server, func() error {
		listener, err := net.ListenTCP("tcp", addr)
		close(ready)
		if err != nil {
			return err
		}
		defer listener.Close()
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := io.CopyN(conn, conn, 1); err != nil {
			return err
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			return err
		}
		return nil
	})
	<-ready
	l.as(t, clientNS, client, func() error {
		conn, err := net.DialTCP("tcp", nil, addr)
		if err != nil {
			return err
		}
		port = conn.LocalAddr().(*net.TCPAddr).Port
		if _, err := conn.Write([]byte("x")); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			return err
		}
		if abort {
			return errors.Join(conn.SetLinger(0), conn.Close())
		}
		return conn.Close()
	})
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	return port
}

func (l live) client(t *testing.T) {
	l.enter(t)
	const uid = 10201
	port := l.connection(t, l.ns, uid, l.far, 0, l.at(farAddr, 7000), false)
	// Data, its acknowledgement, FIN and its acknowledgement: the last packet is the phone's.
	last := l.until(t, "out TCP", 4)
	l.check(t, last, map[string]uids{"out SYN": all(uid), "in SYN": all(uid), "out TCP": all(uid), "in TCP": all(uid)})
	cgroups := map[uint64]bool{}
	for _, r := range last {
		if r.UID == uid {
			cgroups[r.Cgroup] = true
		}
	}
	if len(cgroups) != 1 {
		t.Errorf("the cgroups of one socket are %v", cgroups)
	}
	l.as(t, l.far, 0, func() error { return segment(t, l.family, 7000, uint16(port), ack) })
	// The far machine has forgotten the connection, and refuses the answer.
	l.check(t, l.until(t, "in RST", 1), map[string]uids{"in TCP": all(uid), "out TCP": all(uid), "in RST": all(uid)})
}

func (l live) server(t *testing.T) {
	l.enter(t)
	const uid = 10202
	l.connection(t, l.far, 0, l.ns, uid, l.at(phoneAddr, 7100), false)
	l.check(t, l.until(t, "out TCP", 3), map[string]uids{"in SYN": {await, await, uid}, "out SYN": all(uid), "in TCP": all(uid), "out TCP": all(uid)})
}

func (l live) abort(t *testing.T) {
	l.enter(t)
	const uid = 10203
	port := l.connection(t, l.ns, uid, l.far, 0, l.at(farAddr, 7200), true)
	want := map[string]uids{"out SYN": all(uid), "in SYN": all(uid), "out TCP": all(uid), "in TCP": all(uid), "out RST": all(uid)}
	l.check(t, l.until(t, "out RST", 1), want)
	l.as(t, l.far, 0, func() error { return segment(t, l.family, 7200, uint16(port), ack) })
	l.check(t, l.until(t, "out RST", 1), want)
}

func (l live) closed(t *testing.T) {
	l.enter(t)
	l.as(t, l.far, 0, func() error {
		conn, err := net.DialTCP("tcp", nil, l.at(phoneAddr, 7300))
		if err == nil {
			return errors.Join(errors.New("there is a server"), conn.Close())
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			return err
		}
		udp, err := net.DialUDP("udp", nil, udpAddr(l.at(phoneAddr, 7300)))
		if err != nil {
			return err
		}
		_, err = udp.Write([]byte("x"))
		return errors.Join(err, udp.Close())
	})
	rst := uids{await, none, none} // with 4.19's means it may be root's
	unreachable := "out ICMP 3"
	if l.family == "IPv6" {
		rst, unreachable = all(none), "out ICMP 1" // there it is sent without a socket
	}
	l.check(t, l.until(t, unreachable, 1), map[string]uids{"in SYN": nobodys, "in UDP": nobodys, "out RST": rst})
}

func udpAddr(a *net.TCPAddr) *net.UDPAddr { return &net.UDPAddr{IP: a.IP, Port: a.Port} }

func (l live) pings(t *testing.T) {
	l.enter(t)
	const uid = 10204
	request, reply, domain, protocol := checksummed(echo(8)), 0, unix.AF_INET, icmp
	if l.family == "IPv6" { // there the kernel fills in the checksum
		request, reply, domain, protocol = echo(128), 129, unix.AF_INET6, icmpv6
	}
	ping := func(kind int) func() error {
		return func() error {
			fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
			if err != nil {
				return err
			}
			return errors.Join(unix.Sendto(fd, request, 0, address(t, domain, farAddr[l.family], 0)), unix.Close(fd))
		}
	}
	out, in := fmt.Sprintf("out ICMP %d", request[0]), fmt.Sprintf("in ICMP %d", reply)
	l.as(t, l.ns, uid, ping(unix.SOCK_DGRAM))
	l.check(t, l.until(t, in, 1), map[string]uids{out: all(uid), in: all(uid)})
	l.as(t, l.ns, 0, ping(unix.SOCK_RAW))
	l.check(t, l.until(t, in, 1), map[string]uids{out: all(root), in: all(root)})
	l.as(t, l.far, 0, func() error { return sendRaw(t, phoneAddr[l.family], root, protocol, request) })
	l.check(t, l.until(t, fmt.Sprintf("out ICMP %d", reply), 1), nil)
}

// checksummed fills in the checksum of an ICMP message.
func checksummed(b []byte) []byte {
	binary.BigEndian.PutUint16(b[2:], nettest.Checksum(b))
	return b
}

// fragments has an app that asks with three of them and is answered with three.
func (l live) fragments(t *testing.T) {
	l.enter(t)
	const uid, size = 10205, 4000
	ready := make(chan struct{})
	at := udpAddr(l.at(farAddr, 7400))
	served := l.begin(l.far, 0, func() error {
		conn, err := net.ListenUDP("udp", at)
		close(ready)
		if err != nil {
			return err
		}
		defer conn.Close()
		b := make([]byte, size)
		_, from, err := conn.ReadFromUDP(b)
		if err != nil {
			return err
		}
		_, err = conn.WriteToUDP(b, from)
		return err
	})
	<-ready
	l.as(t, l.ns, uid, func() error {
		conn, err := net.DialUDP("udp", nil, at)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write(make([]byte, size)); err != nil {
			return err
		}
		_, err = io.ReadFull(conn, make([]byte, size))
		return err
	})
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	out, in := "out UDP", "in UDP"
	if l.family == "IPv6" { // the protocol of their first header
		out, in = "out 44", "in 44"
	}
	l.check(t, l.until(t, in, 3), map[string]uids{out: all(uid), in: all(uid)})
}

// translated has TCP in the midst of a connection whose socket has another address, as behind clat.
func (l live) translated(t *testing.T) {
	l.enter(t)
	const uid, near, far = 10208, 5100, 7500
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, near)
	binary.BigEndian.PutUint16(b[2:], far)
	b[12], b[13] = 0x50, ack
	l.sendFor(t, uid, tcp, b)
	l.check(t, l.until(t, "out TCP", 1), map[string]uids{"out TCP": all(uid)})
	l.as(t, l.far, 0, func() error { return segment(t, l.family, far, near, ack) })
	l.check(t, l.until(t, "out RST", 1), map[string]uids{"in TCP": all(uid), "out RST": all(uid)})
}

// carried has UDP with the socket of a packet that it carries, as a tunnel's has: what comes back may carry another app's. Without
// skb->sk, 5.1, that cannot be told; where sockets are looked up a tunnel's is found, which is not here.
func (l live) carried(t *testing.T) {
	l.enter(t)
	const uid, near, far = 10209, 5101, 7501
	datagram := func(from, to uint16) []byte {
		b := make([]byte, 8)
		binary.BigEndian.PutUint16(b, from)
		binary.BigEndian.PutUint16(b[2:], to)
		b[5], b[7] = 8, 1 // a wrong checksum: nobody answers
		return b
	}
	l.sendFor(t, uid, udp, datagram(near, far))
	l.check(t, l.until(t, "out UDP", 1), map[string]uids{"out UDP": all(uid)})
	l.as(t, l.far, 0, func() error { return sendRaw(t, phoneAddr[l.family], root, udp, datagram(far, near)) })
	l.check(t, l.until(t, "in UDP", 1), map[string]uids{"in UDP": {uid, await, uid}})
}

// sendFor sends to the far machine from a raw socket that was given to a user.
func (l live) sendFor(t *testing.T, uid, protocol int, b []byte) {
	t.Helper()
	if err := sendRaw(t, farAddr[l.family], uid, protocol, b); err != nil {
		t.Fatal(err)
	}
}
