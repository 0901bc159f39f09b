// SPDX-License-Identifier: Apache-2.0

package rtnl

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/android"
	"droidtap/scripts/nettest"
)

// list returns the interfaces of a namespace.
func list(t testing.TB, s nettest.Space) (all []Link) {
	t.Helper()
	s.Must(t, func() (err error) {
		all, err = Links()
		return err
	})
	return all
}

func TestLinks(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	w := watching(t, s, false, 0)
	// Indexes that a hash of them puts in another order: 300 & 255 is 44.
	batch(t, s, "link add wlan0 index 300 type veth peer name p-wlan0 index 50", "link set wlan0 up",
		"link add rmnet0 index 301 type veth peer name p-rmnet0 index 302")
	nettest.OpenTun(t, s, "v4-wlan0")
	const ethernet, none, loopback = unix.ARPHRD_ETHER, 0xfffe, unix.ARPHRD_LOOPBACK
	want := []Link{
		{Interface: android.Interface{Index: 1, Name: "lo", Type: loopback, Up: true, Running: true, Loopback: true}},
		{Interface: android.Interface{Index: 2, Name: "v4-wlan0", Type: none, Up: true, Running: true}},
		{Interface: android.Interface{Index: 50, Name: "p-wlan0", Type: ethernet}},
		{Interface: android.Interface{Index: 300, Name: "wlan0", Type: ethernet, Up: true}}, // no carrier
		{Interface: android.Interface{Index: 301, Name: "rmnet0", Type: ethernet}},
		{Interface: android.Interface{Index: 302, Name: "p-rmnet0", Type: ethernet}},
	}
	// The kernel finds out in a worker that the cable leads nowhere (net/core/link_watch.c), and tells.
	for deadline := time.Now().Add(nettest.Patience); ; next(t, w, deadline) {
		got := list(t, s)
		for i := range got {
			got[i].Received, got[i].Sent = 0, 0
		}
		diff := cmp.Diff(want, got)
		if diff == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	}
}

func TestLinksCount(t *testing.T) {
	nettest.Require(t)
	const packets = 10
	s := nettest.NewSpace(t)
	before := list(t, s)[0]
	s.Must(t, func() error {
		to, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return err
		}
		defer to.Close()
		for range packets {
			if _, err := to.WriteTo([]byte("x"), to.LocalAddr()); err != nil {
				return err
			}
			if _, err := to.Read(make([]byte, 1)); err != nil {
				return err
			}
		}
		return nil
	})
	after := list(t, s)[0]
	if after.Received-before.Received != packets || after.Sent-before.Sent != packets {
		t.Errorf("after %d packets over lo: %+v, before: %+v", packets, after, before)
	}
}

// TestLinksWhileTheyChange: a dump that is interrupted gives no error and no interface twice, and what does not change
// is in it.
func TestLinksWhileTheyChange(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	for i := range 10 { // more than one message holds
		batch(t, s, fmt.Sprintf("link add steady%d type veth peer name p-steady%d", i, i))
	}
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- s.Do(0, func() error { return flap("wlan0", stop) })
	}()
	for range 200 {
		seen := map[string]int{}
		last := 0
		for _, l := range list(t, s) {
			if seen[l.Name]++; seen[l.Name] > 1 || l.Index <= last {
				t.Errorf("interface %d %s for the %d. time after %d", l.Index, l.Name, seen[l.Name], last)
			}
			last = l.Index
		}
		delete(seen, "wlan0")
		delete(seen, "p-wlan0")
		if len(seen) != 21 {
			t.Fatalf("%d interfaces: %v", len(seen), seen)
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func BenchmarkLinks(b *testing.B) {
	nettest.Require(b)
	s := nettest.NewSpace(b)
	for i := range 7 {
		ends(b, s, fmt.Sprintf("rmnet_data%d", i))
	}
	s.Must(b, func() error {
		b.ReportAllocs()
		for b.Loop() {
			if all, err := Links(); err != nil || len(all) != 15 {
				return fmt.Errorf("%d interfaces, %w", len(all), err)
			}
		}
		return nil
	})
}

func BenchmarkInternet(b *testing.B) {
	nettest.Require(b)
	s := nettest.NewSpace(b)
	ends(b, s, "wlan0")
	batch(b, s, "route add default dev wlan0", "-6 route add default dev wlan0")
	s.Must(b, func() error {
		b.ReportAllocs()
		for b.Loop() {
			if over, err := Internet(app); err != nil || len(over) != 1 {
				return fmt.Errorf("over %v, %w", over, err)
			}
		}
		return nil
	})
}
