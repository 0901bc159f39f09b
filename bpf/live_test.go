// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
)

// space is a network namespace: a loopback interface that is up, and another
// interface that is not.
type space struct {
	ns    netns.NsHandle
	other uint32 // ifindex
}

// newSpace makes a namespace whose loopback interface takes packets of mtu bytes
// and leaves the test's goroutine in it.
func newSpace(t testing.TB, mtu int) space {
	t.Helper()
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := ns.Close(); err != nil {
			t.Error(err)
		}
	})
	lo, err := netlink.LinkByIndex(loopback)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(
		netlink.LinkSetMTU(lo, mtu),
		netlink.LinkSetUp(lo),
		netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "other"}, PeerName: "peer"}),
	); err != nil {
		t.Fatal(err)
	}
	other, err := net.InterfaceByName("other")
	if err != nil {
		t.Fatal(err)
	}
	return space{ns, uint32(other.Index)}
}

// enter moves the goroutine of a subtest into the namespace. The thread is never
// unlocked, so it ends with the goroutine.
func (s space) enter(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	if err := netns.Set(s.ns); err != nil {
		t.Fatalf("enter the network namespace: %v", err)
	}
}

// attach hooks a program to an interface.
func (c *capture) attach(t *testing.T, ifindex uint32, program string, direction uint8) {
	t.Helper()
	at := ebpf.AttachTCXIngress
	if direction == egress {
		at = ebpf.AttachTCXEgress
	}
	l, err := link.AttachTCX(link.TCXOptions{Interface: int(ifindex), Program: c.Programs[program], Attach: at})
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

// lo is the loopback interface, seen by packet sockets: out sends, and in gets
// what has passed the hooks of the way in.
type lo struct{ out, in int }

const experiment = 0x88b5 // the type of frame()'s frames

func openLo(t *testing.T) lo {
	t.Helper()
	open := func() int {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Close(fd); err != nil {
				t.Error(err)
			}
		})
		return fd
	}
	l := lo{open(), open()}
	timeout := unix.Timeval{Sec: 10} // only a bug lets it pass
	if err := errors.Join(
		unix.SetsockoptInt(l.out, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20),
		unix.SetsockoptInt(l.in, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20),
		unix.SetsockoptTimeval(l.in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.Bind(l.in, &unix.SockaddrLinklayer{Ifindex: loopback, Protocol: htons(experiment)}),
	); err != nil {
		t.Fatal(err)
	}
	return l
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// pass sends a packet and returns when it has come in. What is longer than a page
// is not linear: its bytes are in pages of their own.
func (l lo) pass(t *testing.T, packet []byte) {
	t.Helper()
	to := unix.SockaddrLinklayer{Ifindex: loopback, Protocol: htons(binary.BigEndian.Uint16(packet[12:]))}
	if err := unix.Sendto(l.out, packet, 0, &to); err != nil {
		t.Fatalf("send %d bytes: %v", len(packet), err)
	}
	if _, _, err := unix.Recvfrom(l.in, make([]byte, 1), unix.MSG_TRUNC); err != nil {
		t.Fatalf("a packet of %d bytes does not come in: %v", len(packet), err)
	}
}

// TestRecordOfLongPacket has what BPF_PROG_TEST_RUN cannot have: packets of up to
// the largest snaplen and more, with nearly all of their bytes outside the linear head.
func TestRecordOfLongPacket(t *testing.T) {
	const mtu = maxSnaplen + 4096
	sizes := []int{
		maxRun + 1, 8191, 8192, 8193, 16384, 32767, 32768, 32769, 65471, 65472, 65473, 65535, 65536, 65537,
		131072, maxSnaplen - 1, maxSnaplen, maxSnaplen + 1, mtu,
	}
	forPacketObjects(t, func(t *testing.T, name string) {
		s := newSpace(t, mtu)
		l := openLo(t)
		for _, p := range programs {
			for _, snaplen := range []int{96, 65535, maxSnaplen} {
				t.Run(fmt.Sprintf("%s by snaplen %d", p.name, snaplen), func(t *testing.T) {
					s.enter(t)
					c := start(t, name, config{settings: settings{Snaplen: uint32(snaplen), Directions: both}})
					c.attach(t, loopback, p.name, p.direction)
					for _, size := range sizes {
						packet := frame(size)
						l.pass(t, packet)
						all := c.records(t)
						if len(all) != 1 {
							t.Fatalf("%d records of one packet of %d bytes", len(all), size)
						}
						all[0].check(t, c.Maps["events"], packet, snaplen, event{Ifindex: loopback, Direction: p.direction, UID: uidUnknown})
					}
					n := uint64(len(sizes))
					want := counts{In: n, Received: n}
					if p.direction == egress {
						want = counts{Out: n, Received: n}
					}
					if got := c.counts(t, loopback); got != want {
						t.Errorf("counts are %+v after %d packets", got, n)
					}
				})
			}
		}
	})
}

// TestRecordLongerThanTheRing has a ring of a page: the packet is counted, and
// those that fit are recorded.
func TestRecordLongerThanTheRing(t *testing.T) {
	forPacketObjects(t, func(t *testing.T, name string) {
		s := newSpace(t, 65536)
		l := openLo(t)
		s.enter(t)
		c := start(t, name, config{settings: settings{Snaplen: maxSnaplen, Directions: both}, buffer: os.Getpagesize()})
		c.attach(t, loopback, "l2_egress", egress)
		l.pass(t, frame(20000))
		l.pass(t, frame(100))
		if got := c.counts(t, loopback); got != (counts{Out: 2, Received: 2, Dropped: 1}) {
			t.Errorf("counts are %+v", got)
		}
		if all := c.records(t); len(all) != 1 || all[0].Len != 100 {
			t.Errorf("records are %+v", all)
		}
	})
}

// TestFilterOfLongPacket has filters that read bytes outside the linear head.
func TestFilterOfLongPacket(t *testing.T) {
	const size = 20000
	last := frame(size)[size-1]
	forPacketObjects(t, func(t *testing.T, name string) {
		s := newSpace(t, 65536)
		l := openLo(t)
		for _, p := range programs[:2] {
			for _, c := range []struct {
				expr  string
				taken bool
			}{
				{fmt.Sprintf("ether[%d] = %d", size-1, last), true},
				{fmt.Sprintf("ether[%d] != %d", size-1, last), false},
				{fmt.Sprintf("ether[len - 1] = %d", last), true},
				{fmt.Sprintf("ether[%d] >= 0", size), false},
				{fmt.Sprintf("len = %d", size), true},
				{fmt.Sprintf("greater %d", size+1), false},
			} {
				t.Run(p.name+" "+c.expr, func(t *testing.T) {
					s.enter(t)
					o := start(t, name, config{
						settings: settings{Snaplen: 64, Directions: both},
						edit:     func(spec *ebpf.CollectionSpec) { inject(t, spec, c.expr, pcapng.Ethernet, filter.Hybrid) },
					})
					o.attach(t, loopback, p.name, p.direction)
					l.pass(t, frame(size))
					if got := len(o.records(t)) == 1; got != c.taken {
						t.Errorf("taken is %v", got)
					}
				})
			}
		}
	})
}

// TestVLANTag sends tagged frames. The kernel takes the outer tag off a packet that
// comes in before the hook sees it, as network cards do.
func TestVLANTag(t *testing.T) {
	inner := frame(100)
	tagged := func(tags ...byte) []byte { return slices.Concat(inner[:12], tags, inner[12:]) }
	forPacketObjects(t, func(t *testing.T, name string) {
		s := newSpace(t, 65536)
		l := openLo(t)
		for _, c := range []struct {
			rule    string
			program string
			sent    []byte
			record  []byte
			want    event
		}{
			{"out: the tag is in the bytes", "l2_egress", tagged(0x81, 0, 0, 100), tagged(0x81, 0, 0, 100), event{Direction: egress, UID: uidUnknown}},
			{"in: the tag is in the event", "l2_ingress", tagged(0x81, 0, 0, 100), inner,
				event{Direction: ingress, UID: uidUnknown, VlanTCI: 100, VlanProto: [2]byte{0x81, 0}}},
			{"in: with priority and DEI", "l2_ingress", tagged(0x81, 0, 0xf0, 101), inner,
				event{Direction: ingress, UID: uidUnknown, VlanTCI: 0xf065, VlanProto: [2]byte{0x81, 0}}},
			{"in: the tag of a provider", "l2_ingress", tagged(0x88, 0xa8, 0, 10), inner,
				event{Direction: ingress, UID: uidUnknown, VlanTCI: 10, VlanProto: [2]byte{0x88, 0xa8}}},
			{"in: of number 0", "l2_ingress", tagged(0x81, 0, 0x20, 0), inner,
				event{Direction: ingress, UID: uidUnknown, VlanTCI: 0x2000, VlanProto: [2]byte{0x81, 0}}},
			{"in: no tag", "l2_ingress", inner, inner, event{Direction: ingress, UID: uidUnknown}},
		} {
			t.Run(c.rule, func(t *testing.T) {
				s.enter(t)
				o := start(t, name, config{settings: settings{Snaplen: maxSnaplen, Directions: both}})
				o.attach(t, loopback, c.program, c.want.Direction)
				l.pass(t, c.sent)
				all := o.records(t)
				if len(all) != 1 {
					t.Fatalf("%d records of one packet", len(all))
				}
				c.want.Ifindex = loopback
				all[0].check(t, o.Maps["events"], c.record, maxSnaplen, c.want)
			})
		}
	})
}
