// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// past is a deadline that lets Next only look.
var past = time.Unix(1, 0)

// watching returns a Watcher in the namespace. room is its buffer in bytes, 0 the usual one.
func watching(t testing.TB, s nettest.Space, routes bool, size int) (w *Watcher) {
	t.Helper()
	s.Must(t, func() (err error) {
		if size == 0 {
			w, err = Watch(routes)
		} else {
			w, err = watch([]int{unix.RTNLGRP_LINK, unix.RTNLGRP_TC}, size)
		}
		return err
	})
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// next returns what has changed. The kernel queues its messages before the system call that changed something returns,
// but for what work it left to a thread of its own.
func next(t testing.TB, w *Watcher, deadline time.Time) Change {
	t.Helper()
	c, err := w.Next(deadline)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	return c
}

// await gathers changes until they are enough.
func await(t testing.TB, w *Watcher, enough func(Change) bool) {
	t.Helper()
	all := Change{TC: map[int]bool{}}
	for !enough(all) {
		c, err := w.Next(time.Now().Add(nettest.Patience))
		if err != nil {
			t.Fatalf("changed: %+v, then %v", all, err)
		}
		all.Links, all.Routes, all.Lost = all.Links || c.Links, all.Routes || c.Routes, all.Lost || c.Lost
		for index := range c.TC {
			all.TC[index] = true
		}
	}
	if all.Lost {
		t.Errorf("changed: %+v", all)
	}
}

func index(t testing.TB, s nettest.Space, name string) (index int) {
	t.Helper()
	for _, l := range list(t, s) {
		if l.Name == name {
			return l.Index
		}
	}
	t.Fatalf("no interface %s", name)
	return 0
}

// tc runs a command of tc(8), where _ stands for a space in an argument.
func tc(t testing.TB, s nettest.Space, command string) {
	t.Helper()
	argv := []string{"tc", "-n", s.Name}
	for _, arg := range strings.Fields(command) {
		argv = append(argv, strings.ReplaceAll(arg, "_", " "))
	}
	nettest.Run(t, argv...)
}

func TestWatchLinks(t *testing.T) {
	nettest.Require(t)
	s, elsewhere := nettest.NewSpace(t), nettest.NewSpace(t)
	w := watching(t, s, false, 0)
	for _, do := range []string{
		"link add wlan0 type veth peer name p-wlan0",
		"link set wlan0 up",
		"link set wlan0 down",
		"link set wlan0 name wlan1",
		"link set wlan1 mtu 1400",
		"link set wlan1 netns " + elsewhere.Name,
		"link del p-wlan0",
	} {
		batch(t, s, do)
		await(t, w, func(c Change) bool { return c.Links })
	}
	batch(t, elsewhere, "link add wlan0 index 77 type veth peer name p-wlan0")
	for c := next(t, w, past); !c.none(); c = next(t, w, past) {
		if c.Lost || c.Routes || len(c.TC) > 0 {
			t.Errorf("changed: %+v", c)
		}
	}
	batch(t, elsewhere, "link set wlan0 name wlan2")
	if c := next(t, w, past); !c.none() {
		t.Errorf("by a change in another namespace: %+v", c)
	}
	batch(t, elsewhere, "link set wlan2 netns "+s.Name)
	await(t, w, func(c Change) bool { return c.Links })
}

func TestWatchTC(t *testing.T) {
	nettest.Require(t, "tc")
	s := nettest.NewSpace(t)
	batch(t, s, "link add wlan0 type veth peer name p-wlan0", "link add rmnet0 type veth peer name p-rmnet0")
	wlan, rmnet := index(t, s, "wlan0"), index(t, s, "rmnet0")
	w := watching(t, s, false, 0)
	for _, step := range []struct {
		index int
		do    string
	}{
		{wlan, "qdisc add dev wlan0 clsact"},
		{wlan, "filter add dev wlan0 ingress pref 1 protocol all bpf bytecode 1,6_0_0_0"},
		{rmnet, "qdisc add dev rmnet0 clsact"},
		{wlan, "filter del dev wlan0 ingress pref 1"},
		{wlan, "filter add dev wlan0 egress pref 4 protocol ip bpf bytecode 1,6_0_0_0"},
		{wlan, "filter del dev wlan0 egress"},
		{wlan, "qdisc del dev wlan0 clsact"},
		{rmnet, "qdisc del dev rmnet0 clsact"},
	} {
		tc(t, s, step.do)
		if diff := cmp.Diff(Change{TC: map[int]bool{step.index: true}}, next(t, w, past)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.do, diff)
		}
	}
	tc(t, s, "qdisc add dev wlan0 clsact")
	tc(t, s, "qdisc add dev rmnet0 clsact")
	batch(t, s, "link set wlan0 mtu 1400")
	if diff := cmp.Diff(Change{Links: true, TC: map[int]bool{wlan: true, rmnet: true}}, next(t, w, past)); diff != "" {
		t.Errorf("several changes at once (-want +got):\n%s", diff)
	}
}

func TestWatchRoutes(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	// Without a link-local address, for which duplicate address detection would end, and be told of, at any time.
	batch(t, s, "link add wlan0 type veth peer name p-wlan0", "link set p-wlan0 addrgenmode none up", "link set wlan0 addrgenmode none up")
	w, deaf := watching(t, s, true, 0), watching(t, s, false, 0)
	for _, do := range []string{
		"addr add 192.0.2.1/24 dev wlan0",
		"route add default via 192.0.2.2 dev wlan0 table 1003",
		"rule add pref 31000 fwmark 0x0/0xffff iif lo lookup 1003",
		"rule add pref 13000 iif lo uidrange 10100-10123 lookup 1003",
		"rule del pref 31000",
		"route del default table 1003",
		"-6 addr add 2001:db8::1/64 dev wlan0 nodad noprefixroute",
		"-6 route add default via fe80::1 dev wlan0 table 1003",
		"-6 rule add pref 31000 fwmark 0x0/0xffff iif lo lookup 1003",
		"-6 rule del pref 31000",
		"-6 route del default table 1003",
		"-6 addr change 2001:db8::1/64 dev wlan0 nodad noprefixroute preferred_lft 0", // RTM_NEWADDR alone
		"addr change 192.0.2.1/24 dev wlan0 preferred_lft 0",
		"addr flush dev wlan0",
	} {
		for !next(t, w, past).none() {
		}
		t.Log(do)
		batch(t, s, do)
		await(t, w, func(c Change) bool { return c.Routes })
	}
	for c := next(t, deaf, past); !c.none(); c = next(t, deaf, past) {
		if c.Routes || c.Lost || len(c.TC) > 0 {
			t.Errorf("who did not ask for routes hears of %+v", c)
		}
	}
}

func TestWatchLost(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	w := watching(t, s, false, 16<<10) // for some messages, not for all
	batch(t, s, "link add wlan0 type veth peer name p-wlan0")
	for mtu := range 50 {
		batch(t, s, fmt.Sprintf("link set wlan0 mtu %d", 1400+mtu))
	}
	if c := next(t, w, past); !c.Lost || !c.Links {
		t.Errorf("changed: %+v", c)
	}
	// All that was kept has been read, so the kernel sends again.
	if c := next(t, w, past); !c.none() {
		t.Errorf("afterwards: %+v", c)
	}
	batch(t, s, "link set wlan0 mtu 1300")
	if c := next(t, w, past); !c.Links || c.Lost {
		t.Errorf("the next change: %+v", c)
	}
}

func TestWatchDeadline(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	w := watching(t, s, true, 0)
	start := time.Now()
	const wait = 50 * time.Millisecond
	if c, err := w.Next(start.Add(wait)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) < wait {
		t.Errorf("Next returned %+v, %v after %v", c, err, time.Since(start))
	}
	batch(t, s, "link add wlan0 type veth peer name p-wlan0")
	if c, err := w.Next(past); err != nil || !c.Links {
		t.Errorf("with a deadline in the past Next returned %+v, %v", c, err)
	}
}

func TestWatchClose(t *testing.T) {
	nettest.Require(t)
	for _, deadline := range []time.Time{{}, time.Now().Add(time.Hour)} {
		w := watching(t, nettest.NewSpace(t), true, 0)
		ended := make(chan error)
		go func() {
			_, err := w.Next(deadline)
			ended <- err
		}()
		for w.reading.TryLock() { // until Next has it
			w.reading.Unlock()
		}
		closed := make(chan error)
		go func() { closed <- errors.Join(w.Close(), w.Close()) }()
		for what, c := range map[string]chan error{"Next": ended, "Close": closed} {
			want := map[string]error{"Next": os.ErrClosed}[what]
			select {
			case err := <-c:
				if !errors.Is(err, want) {
					t.Errorf("%s returned %v, want %v", what, err, want)
				}
			case <-time.After(nettest.Patience):
				t.Fatalf("%s waits on", what)
			}
		}
		if _, err := w.Next(past); !errors.Is(err, os.ErrClosed) {
			t.Errorf("after Close Next returned %v", err)
		}
	}
}

// TestWatchForeign: other processes cannot make us believe in changes.
func TestWatchForeign(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	w, witness := watching(t, s, true, 0), watching(t, s, true, 0)
	var address unix.Sockaddr
	var err error
	if outer := w.conn.Control(func(fd uintptr) { address, err = unix.Getsockname(int(fd)) }); outer != nil || err != nil {
		t.Fatal(outer, err)
	}
	forged := packed(unix.RTM_DELLINK, ifinfo(0, 3, 0, 0xffffffff), name("wlan0"))
	s.Must(t, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		group := unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_LINK - 1)}
		// The kernel gets what is sent to a group, too, and handles nothing without NLM_F_REQUEST (netlink_rcv_skb).
		if err := unix.Sendto(fd, forged, 0, &group); err != nil {
			return fmt.Errorf("send to the group: %w", err)
		}
		if err := unix.Sendto(fd, forged, 0, address); err != nil {
			return fmt.Errorf("send to the socket: %w", err)
		}
		return nil
	})
	if outer := witness.conn.Control(func(fd uintptr) { _, _, err = unix.Recvfrom(int(fd), make([]byte, 1000), 0) }); outer != nil || err != nil {
		t.Fatalf("the group did not get the forged message: %v %v", outer, err)
	}
	if c := next(t, w, past); !c.none() {
		t.Errorf("changed: %+v", c)
	}
}

// flap makes and deletes an interface until stop is closed.
func flap(name string, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "p-" + name}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("add %s: %w", name, err)
		}
		if err := netlink.LinkDel(veth); err != nil {
			return fmt.Errorf("delete %s: %w", name, err)
		}
	}
}

// TestWatchFlaps: an interface goes up and down 1,000 times; each is heard of, nothing is lost by a reader that reads,
// and nothing is left open.
func TestWatchFlaps(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	batch(t, s, "link add wlan0 type veth peer name p-wlan0")
	before := descriptors(t)
	w := watching(t, s, true, 0)
	s.Must(t, func() error {
		l, err := netlink.LinkByName("wlan0")
		if err != nil {
			return err
		}
		for i := range 2000 {
			change := netlink.LinkSetUp
			if i%2 == 1 {
				change = netlink.LinkSetDown
			}
			if err := change(l); err != nil {
				return err
			}
			if c := next(t, w, past); !c.Links || c.Lost {
				return fmt.Errorf("change %d: %+v", i, c)
			}
		}
		return nil
	})
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d file descriptors are open, before %d", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// BenchmarkNext measures from the return of the system call that changes an interface to the return of a Next that
// waits for it on another thread.
func BenchmarkNext(b *testing.B) {
	nettest.Require(b)
	s := nettest.NewSpace(b)
	batch(b, s, "link add wlan0 type veth peer name p-wlan0")
	w := watching(b, s, false, 0)
	heard := make(chan time.Time)
	go func() {
		defer close(heard)
		for {
			if _, err := w.Next(time.Time{}); err != nil {
				return
			}
			heard <- time.Now()
		}
	}()
	var total, worst time.Duration
	s.Must(b, func() error {
		l, err := netlink.LinkByName("wlan0")
		if err != nil {
			return err
		}
		mtu := 1400
		for b.Loop() {
			start := time.Now()
			if err := netlink.LinkSetMTU(l, mtu); err != nil {
				return err
			}
			d := (<-heard).Sub(start)
			total, worst = total+d, max(worst, d)
			mtu = 2801 - mtu
		}
		return nil
	})
	b.ReportMetric(float64(total.Microseconds())/float64(b.N), "µs/change")
	b.ReportMetric(float64(worst.Microseconds()), "µs-worst")
	if err := w.Close(); err != nil {
		b.Error(err)
	}
	<-heard
}
