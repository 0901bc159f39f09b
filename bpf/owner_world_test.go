// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
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
	o.attach(t, w.other, "l2_ingress", ingress)
	o.attach(t, w.other, "l2_egress", egress)
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

// until returns the records up to the n-th of a label, and those that are there then: each processor has its own ring,
// and an earlier record may be read later.
func (c *capture) until(t *testing.T, label string, n int) []record {
	t.Helper()
	var all []record
	c.ring.SetDeadline(time.Now().Add(10 * time.Second)) // only a bug lets it pass
	for n > 0 {
		raw, err := c.ring.next()
		if err != nil {
			for _, r := range all {
				t.Logf("%s of %#x", r.label(), r.UID)
			}
			t.Fatalf("wait for %d of %s: %v", n, label, err)
		}
		r := parse(t, raw)
		all = append(all, r)
		if r.label() == label {
			n--
		}
	}
	return append(all, c.records(t)...)
}

// segment is a TCP segment without payload that belongs to no connection, from the far machine.
func segment(t *testing.T, family string, from, to uint16, flags byte) error {
	src, dst := netip.MustParseAddr(farAddr[family]), netip.MustParseAddr(phoneAddr[family])
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	b[7], b[11], b[12], b[13] = 1, 1, 0x50, flags
	pseudo := []byte{0, tcp, 0, byte(len(b))} // IPv4's; the sum of IPv6's is the same
	binary.BigEndian.PutUint16(b[16:], nettest.Checksum(slices.Concat(src.AsSlice(), dst.AsSlice(), pseudo, b)))
	return sendRaw(t, phoneAddr[family], root, tcp, b)
}

// sendRaw sends to an address from a raw socket that belongs to a user.
func sendRaw(t *testing.T, to string, uid, protocol int, b []byte) error {
	t.Helper()
	domain := unix.AF_INET
	if netip.MustParseAddr(to).Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fchown(fd, uid, -1), unix.Sendto(fd, b, 0, address(t, domain, to, 0)), unix.Close(fd))
}
