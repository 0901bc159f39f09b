// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// connect makes a connection of a user's, to which incoming belongs. In repair mode (TCP_REPAIR, 3.5) it needs no other end, and
// sends nothing when it is closed.
func connect(t testing.TB, uid int) (fd int, end func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	end = func() {
		if !closed {
			closed = true
			if err := unix.Close(fd); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(end)
	if err := errors.Join(
		unix.Fchown(fd, uid, -1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1),
		unix.Bind(fd, address(t, unix.AF_INET, "10.0.0.1", here)),
		unix.Connect(fd, address(t, unix.AF_INET, "192.0.2.1", there)),
	); err != nil {
		t.Fatalf("make a connection: %v", err)
	}
	return fd, end
}

// TestOwnerFound has a connection whose owner was found a moment ago, and then another one with the same addresses.
func TestOwnerFound(t *testing.T) {
	needRoot(t)
	const other = 10124
	s := newSpace(t, 65536)
	s.configure(t)
	lookup := tiers[2]
	in := incoming("10.0.0.1", tcp, ack)
	out := func(flags byte) []byte { return ethernet(packet4(true, tcp, 0, tcpHead(true, flags)), typeIP4) }
	for _, c := range []struct {
		rule    string
		program string
		packet  []byte
	}{
		{"ours began it", "l2_egress", out(syn)},
		{"ours answered", "l2_egress", out(syn | ack)},
		{"theirs began it", "l2_ingress", incoming("10.0.0.1", tcp, syn)},
	} {
		for _, filter := range []string{"", "less 0"} {
			t.Run(c.rule+" "+filter, func(t *testing.T) {
				s.enter(t)
				o := start(t, lookup.object, config{settings: lookup.offsets(t, settings{Snaplen: 64, Directions: both, Owner: tell}), interfaces: []uint32{0, s.other}})
				_, end := connect(t, app)
				for range 3 {
					if got := o.ownerOf(t, "l2_ingress", s.other, in); got.UID != app || got.Cgroup == 0 {
						t.Fatalf("uid is %#x, of cgroup %d", got.UID, got.Cgroup)
					}
				}
				end()
				connect(t, other)
				o.run(t, c.program, s.other, c.packet)
				o.records(t)
				if got := o.ownerOf(t, "l2_ingress", s.other, in); got.UID != other {
					t.Errorf("uid is %#x", got.UID)
				}
			})
		}
	}
}

// TestOwnerFoundOfListener has a connection that may not be accepted yet: it is its listener's until then.
func TestOwnerFoundOfListener(t *testing.T) {
	needRoot(t)
	const other = 10124
	s := newSpace(t, 65536)
	s.configure(t)
	lookup := tiers[2]
	o := start(t, lookup.object, config{settings: lookup.offsets(t, settings{Snaplen: 64, Directions: both, Owner: tell}), interfaces: []uint32{0, s.other}})
	in := incoming("10.0.0.1", tcp, ack)
	fd, _ := connect(t, app)
	socket{unix.AF_INET, unix.SOCK_STREAM, "0.0.0.0", "", "", 0}.open(t, app)
	for _, uid := range []int{app, other, app} {
		if err := unix.Fchown(fd, uid, -1); err != nil { // as accept does
			t.Fatal(err)
		}
		if got := o.ownerOf(t, "l2_ingress", s.other, in); got.UID != uint32(uid) {
			t.Errorf("uid is %#x, want %#x", got.UID, uid)
		}
	}
}

// TestOwnerFoundOfUDP has a port that is handed over while packets come in.
func TestOwnerFoundOfUDP(t *testing.T) {
	needRoot(t)
	s := newSpace(t, 65536)
	s.configure(t)
	lookup := tiers[2]
	o := start(t, lookup.object, config{settings: lookup.offsets(t, settings{Snaplen: 64, Directions: both, Owner: tell}), interfaces: []uint32{0, s.other}})
	fd := socket{unix.AF_INET, unix.SOCK_DGRAM, "0.0.0.0", "", "", 0}.open(t, app)
	var cgroup uint64
	for n, uid := range []int{app, app, 10124, 10124} {
		if err := unix.Fchown(fd, uid, -1); err != nil {
			t.Fatal(err)
		}
		got := o.ownerOf(t, "l2_ingress", s.other, incoming("10.0.0.1", udp, 0))
		if n == 0 {
			cgroup = got.Cgroup
		}
		if got.UID != uint32(uid) || got.Cgroup == 0 || got.Cgroup != cgroup {
			t.Errorf("packet %d: uid is %#x of cgroup %d, want %#x of %d", n, got.UID, got.Cgroup, uid, cgroup)
		}
	}
}
