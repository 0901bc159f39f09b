// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// world is a phone and a machine on the other end of its interface.
type world struct {
	space
	far netns.NsHandle
}

var (
	phoneAddr = map[string]string{"IPv4": "10.0.0.1", "IPv6": "2001:db8::1"}
	farAddr   = map[string]string{"IPv4": "10.0.0.2", "IPv6": "2001:db8::2"}
)

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{space: newSpace(t, 65536)}
	w.configure(t)
	peer, err := netlink.LinkByName("peer")
	if err != nil {
		t.Fatal(err)
	}
	if w.far, err = netns.New(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.far.Close(); err != nil {
			t.Error(err)
		}
	})
	w.enter(t)
	if err := netlink.LinkSetNsFd(peer, int(w.far)); err != nil {
		t.Fatal(err)
	}
	// Pings are for everybody, as on Android.
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err != nil {
		t.Fatal(err)
	}
	w.as(t, w.far, 0, func() error {
		link, err := netlink.LinkByName("peer")
		if err != nil {
			return err
		}
		errs := []error{netlink.LinkSetUp(link)}
		for _, cidr := range []string{"10.0.0.2/24", "2001:db8::2/64"} {
			addr, err := netlink.ParseAddr(cidr)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD
			errs = append(errs, netlink.AddrAdd(link, addr))
		}
		return errors.Join(errs...)
	})
	return w
}

// begin runs f as a user on a thread of its own in a namespace. The thread ends with it.
func (w world) begin(ns netns.NsHandle, uid int, f func() error) <-chan error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		if uid != 0 {
			// Of this thread only, unlike unix.Setresuid.
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				done <- errno
				return
			}
		}
		done <- f()
	}()
	return done
}

func (w world) as(t *testing.T, ns netns.NsHandle, uid int, f func() error) {
	t.Helper()
	if err := <-w.begin(ns, uid, f); err != nil {
		t.Fatal(err)
	}
}

// watch attaches the programs to the phone's interface.
func (w world) watch(t *testing.T, o *capture) {
	t.Helper()
	for program, at := range map[string]ebpf.AttachType{"l2_ingress": ebpf.AttachTCXIngress, "l2_egress": ebpf.AttachTCXEgress} {
		l, err := link.AttachTCX(link.TCXOptions{Interface: int(w.other), Program: o.Programs[program], Attach: at})
		if errors.Is(err, ebpf.ErrNotSupported) {
			t.Skipf("needs TCX, 6.6: %v", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// label says what a packet is: "out SYN", "in TCP", "in ICMP 8".
func (r record) label() string {
	way := map[uint8]string{ingress: "in ", egress: "out "}[r.Direction]
	b := r.bytes[:r.Caplen]
	if len(b) < 14 {
		return way + "short"
	}
	var protocol byte
	var l4 []byte
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		protocol, l4 = b[23], b[14+int(b[14]&15)*4:]
	case 0x86dd:
		protocol, l4 = b[20], b[54:]
		if protocol == 0 { // MLD
			protocol, l4 = l4[0], l4[8:]
		}
	default:
		return way + "other"
	}
	switch {
	case protocol == tcp && l4[13]&syn != 0:
		return way + "SYN"
	case protocol == tcp && l4[13]&rst != 0:
		return way + "RST"
	case protocol == tcp:
		return way + "TCP"
	case protocol == udp:
		return way + "UDP"
	case protocol == icmp || protocol == icmpv6:
		return fmt.Sprintf("%sICMP %d", way, l4[0])
	}
	return fmt.Sprintf("%s%d", way, protocol)
}

// until returns the records up to the n-th of a label.
func (c *capture) until(t *testing.T, label string, n int) (all []record) {
	t.Helper()
	c.ring.SetDeadline(time.Now().Add(10 * time.Second)) // only a bug lets it pass
	for n > 0 {
		raw, err := c.ring.next()
		if err != nil {
			for _, r := range all {
				t.Logf("%s of %#x", r.label(), r.UID)
			}
			t.Fatalf("wait for %d of %s: %v", n, label, err)
		}
		r := record{size: len(raw)}
		head, err := binary.Decode(raw, binary.LittleEndian, &r.event)
		if err != nil {
			t.Fatal(err)
		}
		r.bytes = append([]byte(nil), raw[head:]...)
		all = append(all, r)
		if r.label() == label {
			n--
		}
	}
	return all
}

// segment is a TCP segment without payload that belongs to no connection, from the far machine.
func segment(t *testing.T, family string, from, to uint16, flags byte) error {
	src, dst := netip.MustParseAddr(farAddr[family]), netip.MustParseAddr(phoneAddr[family])
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	b[7], b[11], b[12], b[13] = 1, 1, 0x50, flags
	sum := uint32(tcp + len(b))
	for _, part := range [][]byte{src.AsSlice(), dst.AsSlice(), b} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(part[i])<<8 | uint32(part[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
	return sendRaw(t, family, tcp, b)
}

// sendRaw sends to the phone from a raw socket.
func sendRaw(t *testing.T, family string, protocol int, b []byte) error {
	t.Helper()
	domain := unix.AF_INET
	if family == "IPv6" {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	return errors.Join(unix.Sendto(fd, b, 0, address(t, domain, phoneAddr[family], 0)), unix.Close(fd))
}

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
	last := l.flushUntilQuiet(t, "out TCP", 4)
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

// flushUntilQuiet returns the records up to the n-th of a label and those behind it.
func (l live) flushUntilQuiet(t *testing.T, label string, n int) []record {
	t.Helper()
	return append(l.until(t, label, n), l.records(t)...)
}

func (l live) server(t *testing.T) {
	l.enter(t)
	const uid = 10202
	l.connection(t, l.far, 0, l.ns, uid, l.at(phoneAddr, 7100), false)
	l.check(t, l.flushUntilQuiet(t, "out TCP", 3), map[string]uids{"in SYN": {await, await, uid}, "out SYN": all(uid), "in TCP": all(uid), "out TCP": all(uid)})
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
	l.as(t, l.far, 0, func() error { return sendRaw(t, l.family, protocol, request) })
	l.check(t, l.until(t, fmt.Sprintf("out ICMP %d", reply), 1), nil)
}

// checksummed fills in the checksum of an ICMP message.
func checksummed(b []byte) []byte {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
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
