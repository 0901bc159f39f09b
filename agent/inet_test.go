// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// Hosts of the internet of these tests: nobody has the addresses.
const there4, there6 = "198.51.100.1", "2001:db8:99::1"

// androidNetwork gives near wlan0 and rmnet_data0 with default routes in the tables 1001 and 1002, and the rules that netd makes behind
// all of its own (system/netd RouteController.cpp): none of the two is the default network.
func androidNetwork(t *testing.T) (near, far nettest.Space) {
	t.Helper()
	near, far = nettest.NewSpace(t), nettest.NewSpace(t)
	for _, s := range []nettest.Space{near, far} {
		s.Run(t, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.router_solicitations=0")
	}
	for n, name := range []string{"wlan0", "rmnet_data0"} {
		join(t, near, far, name, n)
		ip(t, near,
			fmt.Sprintf("neigh add 10.96.%d.2 lladdr %s dev %s", n, otherMAC, name),
			fmt.Sprintf("route add default via 10.96.%d.2 dev %s table %d", n, name, 1001+n),
			fmt.Sprintf("-6 addr add fd00:96:%d::1/64 dev %s nodad", n, name),
			fmt.Sprintf("-6 neigh add fd00:96:%d::2 lladdr %s dev %s", n, otherMAC, name),
		)
	}
	ip(t, near, "rule add pref 32000 unreachable", "-6 rule add pref 32000 unreachable")
	return near, far
}

// defaultNetwork is the rule that makes the network of a table the default one.
func defaultNetwork(table int) string {
	return fmt.Sprintf("rule add pref 31000 fwmark 0x0/0xffff iif lo lookup %d", table)
}

// TestInternet follows the default network from Wi-Fi to cellular and back while packets go there, and through a time without any.
func TestInternet(t *testing.T) {
	nettest.Require(t, "agent")
	eachVariant(t, func(t *testing.T, variant []string) {
		near, far := androidNetwork(t)
		ip(t, near, defaultNetwork(1001))
		file := filepath.Join(t.TempDir(), "inet.pcapng")
		p := startAgent(t, near, file, append(append([]string{"-v", "-i", "@inet", "--comments", "none"}, variant...), "udp")...)
		p.Await(t, "agent: @inet is wlan0\n")
		stopSending, sent := make(chan struct{}), make(chan error)
		go func() { sent <- near.Do(0, func() error { return keepSending(stopSending) }) }()
		nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 14+20+8+100 })
		// As netd does it: the new rule comes before the old one goes.
		ip(t, near, defaultNetwork(1002), "rule del pref 31000 lookup 1001")
		p.Await(t, "agent: @inet moved: it is rmnet_data0 now\n")
		p.Await(t, "agent: rmnet_data0 is captured from now on (hook "+variant[3]+")\n")
		into(t, far, "wlan0", 501) // not captured any more
		nettest.Await(t, file, func(p nettest.Packet) bool { return p.Interface == 1 && p.Comment != "" })
		close(stopSending)
		must(t, <-sent)
		passes(t, far, "rmnet_data0", file, 502)

		// There is no default network: the last one is captured until there is.
		ip(t, near, "rule del pref 31000 lookup 1002")
		passes(t, far, "rmnet_data0", file, 503)
		ip(t, near, defaultNetwork(1001))
		p.Await(t, "agent: @inet moved: it is wlan0 now\n")
		p.Await(t, "agent: wlan0 is captured from now on")
		passes(t, far, "wlan0", file, 504)

		f := stop(t, p, file)
		if d := cmp.Diff("wlan0 1, rmnet_data0 1", described(f)); d != "" {
			t.Errorf("interfaces (-want +got):\n%s", d)
		}
		wlan, rmnet := lengths(f, "wlan0"), lengths(f, "rmnet_data0")
		if slices.Contains(wlan, 501) || !slices.Contains(rmnet, 503) {
			t.Errorf("a packet that came after the move is in the file, or one that came before it is not: %v, %v", wlan, rmnet)
		}
		for n, i := range f.Interfaces {
			if d := cmp.Diff([]string{"@inet moved here"}, i.Comments); d != "" {
				t.Errorf("comments of %s (-want +got):\n%s", i.Name, d)
			}
			shown := f.Packets[slices.IndexFunc(f.Packets, func(p nettest.Packet) bool { return p.Interface == n && p.Comment != "" })]
			if shown.Comment != "@inet moved here" || i.Name == "wlan0" && shown.Length != 504 {
				t.Errorf("a packet of %d bytes on %s has the comment %q", shown.Length, i.Name, shown.Comment)
			}
		}
		nothingLeft(t, near)
	})
}

// keepSending sends packets of 100 bytes to the internet, until stop is closed.
func keepSending(stop <-chan struct{}) error {
	c, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		return err
	}
	defer c.Close()
	to := &net.UDPAddr{IP: net.ParseIP(there4), Port: 9}
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := c.WriteTo(make([]byte, 100), to); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
}

// TestInternetAppears begins without a default network.
func TestInternetAppears(t *testing.T) {
	nettest.Require(t, "agent")
	twoVariants(t, func(t *testing.T, variant []string) {
		near, far := androidNetwork(t)
		file := filepath.Join(t.TempDir(), "inet.pcapng")
		p := startAgent(t, near, file, append(append([]string{"-v", "-i", "@inet"}, variant...), "udp")...)
		p.Await(t, "agent: no interface is captured yet: there is none that -i means; the capture waits for one\n")
		p.Await(t, "agent: @inet is no interface\n")
		ip(t, near, defaultNetwork(1002))
		p.Await(t, "agent: rmnet_data0 is captured from now on")
		passes(t, far, "rmnet_data0", file, 101)
		passes(t, far, "rmnet_data0", file, 102)
		// The interface goes with its routes, and comes back without.
		ip(t, near, "link del rmnet_data0")
		p.Await(t, "agent: interface rmnet_data0 went away: it is captured again when it comes back\n")
		join(t, near, far, "rmnet_data0", 1)
		ip(t, near, "route add default via 10.96.1.2 dev rmnet_data0 onlink table 1002")
		p.Await(t, "agent: @inet moved: it is rmnet_data0 now\n")
		p.Await(t, "agent: rmnet_data0 was gone for ")
		passes(t, far, "rmnet_data0", file, 103)
		f := stop(t, p, file)
		if d := cmp.Diff([]int{101, 102, 103}, lengths(f, "rmnet_data0")); d != "" || described(f) != "rmnet_data0 1" {
			t.Errorf("%s (-want +got):\n%s", described(f), d)
		}
		if f.Packets[0].Comment != "@inet moved here" || f.Packets[1].Comment != "" || !strings.HasPrefix(f.Packets[2].Comment, "gap: rmnet_data0 was gone for ") {
			t.Errorf("comments: %q, %q, %q", f.Packets[0].Comment, f.Packets[1].Comment, f.Packets[2].Comment)
		}
	})
}

// TestInternetClat has an IPv6-only network, and clat come up on it: IPv4 then leads over another interface. With tc that has a packet
// socket, since the clsact there is to be netd's.
func TestInternetClat(t *testing.T) {
	nettest.Require(t, "agent", "agent-old")
	for _, c := range []struct {
		argv       []string
		wlan, clat string
	}{
		{[]string{"agent", "--backend", "tcx"}, "tcx", "tcx"},
		{[]string{"agent", "--backend", "packet"}, "packet", "packet"},
		{[]string{"agent-old"}, "tc", "packet"},
	} {
		t.Run(strings.Join(c.argv, " "), func(t *testing.T) {
			near, _ := androidNetwork(t)
			ip(t, near, "route flush table 1001", "-6 route add default via fd00:96:0::2 dev wlan0 onlink table 1001", "-6 "+defaultNetwork(1001), defaultNetwork(1001))
			file := filepath.Join(t.TempDir(), "clat.pcapng")
			p := nettest.Start(t, near.Command(append(c.argv, "-vv", "-U", "-w", file, "-i", "@inet", "udp")...), "capturing on inet")
			p.Await(t, "agent: @inet is wlan0\n")
			near.Must(t, func() error { return sendUDP(there6, 100) })
			nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 14+40+8+100 })
			nettest.OpenTun(t, near, "v4-wlan0")
			ip(t, near, "addr add 192.0.0.4/32 dev v4-wlan0", "route add default dev v4-wlan0 table 1001")
			p.Await(t, "agent: @inet moved: it is v4-wlan0 and wlan0 now\n")
			p.Await(t, "agent: v4-wlan0 is captured from now on (hook "+c.clat+")\n")
			awaitCarrier(t, near, "v4-wlan0")
			near.Must(t, func() error { return errors.Join(sendUDP(there4, 200), sendUDP(there6, 300)) })
			nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 20+8+200 })
			nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 14+40+8+300 })
			f := stop(t, p, file)
			if d := cmp.Diff("wlan0 1, v4-wlan0 101", described(f)); d != "" {
				t.Errorf("interfaces (-want +got):\n%s", d)
			}
			if !slices.Equal(lengths(f, "wlan0"), []int{162, 362}) || !slices.Equal(lengths(f, "v4-wlan0"), []int{228}) {
				t.Errorf("packets of %v and %v bytes", lengths(f, "wlan0"), lengths(f, "v4-wlan0"))
			}
			if said := "agent: attached (interface wlan0, hook " + c.wlan + ")\n"; strings.Count(p.Stderr(), said) != 1 {
				t.Errorf("it is not said once %q:\n%s", said, p.Stderr())
			}
			nothingLeft(t, near)
		})
	}
}

// TestInternetVPN has a VPN for some apps: what leads to the internet is another interface for those.
func TestInternetVPN(t *testing.T) {
	nettest.Require(t, "agent")
	const inside, outside = 10105, 10205
	twoVariants(t, func(t *testing.T, variant []string) {
		near, _ := androidNetwork(t)
		ip(t, near, defaultNetwork(1001))
		dir := t.TempDir()
		file := func(uid int) string { return filepath.Join(dir, fmt.Sprint(uid)) }
		running := map[int]*nettest.Process{}
		for _, uid := range []int{inside, outside} {
			running[uid] = startAgent(t, near, file(uid), append([]string{"-v", "-i", "@inet", "--uid", fmt.Sprint(uid)}, variant...)...)
			running[uid].Await(t, "agent: @inet is wlan0\n")
		}
		send := func(size int) {
			for _, uid := range []int{inside, outside} {
				must(t, near.Do(uid, func() error { return holdUDP(t, there4, size) }))
				nettest.Await(t, file(uid), func(p nettest.Packet) bool { return p.Length == 20+8+size || p.Length == 14+20+8+size })
			}
		}
		send(100)
		nettest.OpenTun(t, near, "tun0")
		ip(t, near, "addr add 10.95.0.1/32 dev tun0", "route add default dev tun0 table 1005",
			"rule add pref 13000 fwmark 0x0/0x20000 iif lo uidrange 10100-10123 lookup 1005")
		running[inside].Await(t, "agent: @inet moved: it is tun0 now\n")
		running[inside].Await(t, "agent: tun0 is captured from now on")
		awaitCarrier(t, near, "tun0")
		send(200)
		ip(t, near, "rule del pref 13000")
		running[inside].Await(t, "agent: @inet moved: it is wlan0 now\n")
		running[inside].Await(t, "agent: wlan0 is captured from now on")
		send(300)
		for uid, want := range map[int]string{inside: "[142 342] [228]", outside: "[142 242 342] []"} {
			f := stop(t, running[uid], file(uid))
			if got := fmt.Sprint(lengths(f, "wlan0"), lengths(f, "tun0")); got != want {
				t.Errorf("user %d: packets on wlan0 and tun0 of %s bytes, not %s:\n%s", uid, got, want, running[uid].Stderr())
			}
		}
		if strings.Contains(running[outside].Stderr(), "moved") {
			t.Errorf("nothing has moved for user %d:\n%s", outside, running[outside].Stderr())
		}
		nothingLeft(t, near)
	})
}

// TestInternetNamed has an interface that is captured anyhow become the way to the internet: the file tells.
func TestInternetNamed(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := androidNetwork(t)
	file := filepath.Join(t.TempDir(), "named.pcapng")
	p := startAgent(t, near, file, "-i", "wlan0,@inet", "udp")
	passes(t, far, "wlan0", file, 101)
	ip(t, near, defaultNetwork(1001))
	p.Await(t, "agent: @inet moved: it is wlan0 now\n")
	passes(t, far, "wlan0", file, 102)
	f := stop(t, p, file)
	if len(f.Packets) != 2 || f.Packets[0].Comment != "" || f.Packets[1].Comment != "@inet moved here" {
		t.Errorf("packets: %+v", f.Packets)
	}
}
