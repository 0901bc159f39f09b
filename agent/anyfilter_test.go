// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// TestAnyEthernetOnly has an expression that is wrong where packets have no Ethernet header: those interfaces are left out,
// whether they are there at the start or come later, and it is said of each once.
func TestAnyEthernetOnly(t *testing.T) {
	nettest.Require(t, "agent")
	twoVariants(t, func(t *testing.T, variant []string) {
		near, far := nettest.Pair(t)
		openTun(t, near)
		file := filepath.Join(t.TempDir(), "ethernet.pcapng")
		p := startAgent(t, near, file, append(append([]string{"-v", "-i", "any"}, variant...), "ether host "+otherMAC)...)
		p.Await(t, "agent: tun0 is not captured: ")
		nettest.OpenTun(t, near, "tun1")
		p.Await(t, "agent: tun1 is not captured: ")
		for n := range 3 { // each has all interfaces looked at again
			join(t, near, far, fmt.Sprint("veth", n+1), n+1)
			p.Await(t, fmt.Sprintf("agent: veth%d is captured from now on", n+1))
			passes(t, far, fmt.Sprint("veth", n+1), file, 101+n)
		}
		f := stop(t, p, file)
		if d := cmp.Diff("lo 1, veth0 1, veth1 1, veth2 1, veth3 1", described(f)); d != "" {
			t.Errorf("interfaces (-want +got):\n%s", d)
		}
		for _, ifname := range []string{"tun0", "tun1"} {
			says := ifname + " is not captured: interface " + ifname + " has no Ethernet header, its packets begin with the IP header: "
			if strings.Count(p.Stderr(), says) != 1 || strings.Count(p.Stderr(), ifname) != 2 {
				t.Errorf("of %s it says:\n%s", ifname, p.Stderr())
			}
		}
	})
}

// TestNamedEthernetOnly has an expression that can match no packet of one of two interfaces that are named.
func TestNamedEthernetOnly(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	openTun(t, near)
	file := filepath.Join(t.TempDir(), "named.pcapng")
	p := startAgent(t, near, file, "-i", "veth0,tun0", "arp")
	far.Must(t, func() error { return nettest.Send("veth0", markers(101)[0]) })
	nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 101 })
	f := stop(t, p, file)
	if said := strings.Count(p.Stderr(), "agent: tun0 is not captured: interface tun0 has no Ethernet header"); said != 1 || described(f) != "veth0 1" {
		t.Errorf("the file has %s:\n%s", described(f), p.Stderr())
	}
}

// TestAnyOwner has an interface come to a capture of an app's packets.
func TestAnyOwner(t *testing.T) {
	nettest.Require(t, "agent")
	eachVariant(t, func(t *testing.T, variant []string) {
		near, far := nettest.Pair(t)
		file := filepath.Join(t.TempDir(), "owner.pcapng")
		p := startAgent(t, near, file, append(append([]string{"-v", "-i", "any", "--uid", "10123"}, variant...), "udp")...)
		join(t, near, far, "veth1", 1)
		tun := openTun(t, near)
		for _, name := range []string{"veth1", "tun0"} {
			p.Await(t, "agent: "+name+" is captured from now on")
			awaitCarrier(t, near, name)
		}
		for n, host := range []string{"10.96.1.2", nettest.Far4, tunThere4} {
			for _, uid := range []int{10124, 10123} {
				must(t, near.Do(uid, func() error { return holdUDP(t, host, 10*n+uid-10000) }))
			}
			nettest.Await(t, file, func(p nettest.Packet) bool {
				return p.Interface > 0 && (p.Length-123-10*n == 28 || p.Length-123-10*n == 42)
			})
		}
		// One of the app's flow comes in, and one of nobody's.
		_, err := tun.Write(nettest.IPv4(tunThere4, tunHere4, unix.IPPROTO_UDP, 0, nil, nettest.UDP(5, 6, make([]byte, 22))))
		must(t, err)
		p.Stop(t, syscall.SIGINT)
		f, err := nettest.Read(file)
		must(t, err)
		for name, want := range map[string][]int{"lo": nil, "veth0": {175}, "veth1": {165}, "tun0": {171}} {
			if got := lengths(f, name); !slices.Equal(got, want) {
				t.Errorf("%s has packets of %d bytes, not %d:\n%s", name, got, want, p.Stderr())
			}
		}
	})
}

// TestReplaceComes replaces the filter, over and over, while interfaces come and go, from a capture that waits for its first one on.
// All that came in the end have the last filter.
func TestReplaceComes(t *testing.T) {
	nettest.Require(t, "agent-replace")
	twoVariants(t, func(t *testing.T, variant []string) {
		near, far := nettest.Pair(t)
		file := filepath.Join(t.TempDir(), "replaced.pcapng")
		cmd := near.Command(append(append([]string{"agent-replace", "-v", "-U", "-w", file, "-i", "come*"}, variant...), "udp port 5000")...)
		stdin, err := cmd.StdinPipe()
		must(t, err)
		p := nettest.Start(t, cmd, "capturing on ")
		replaced := 0
		replace := func(expr string) {
			replaced++
			_, err := io.WriteString(stdin, expr+"\n")
			must(t, err)
		}
		replace("udp port 5001")
		p.Await(t, "1 replaced\n")
		for n := range 8 {
			replace(fmt.Sprintf("udp port %d or port 9", 5002+n))
			join(t, near, far, fmt.Sprint("come", n), n)
			if n%2 == 1 {
				ip(t, near, fmt.Sprint("link del come", n))
			}
			replace(fmt.Sprintf("udp port %d", 6000+n))
		}
		tun := nettest.OpenTun(t, near, "come8")
		replace("udp dst port 9 and len != 502")
		p.Await(t, fmt.Sprintf("%d replaced\n", replaced))
		for n := 0; n <= 8; n += 2 {
			p.Await(t, fmt.Sprintf("agent: come%d is captured from now on", n))
		}
		for n := 0; n < 8; n += 2 {
			name := fmt.Sprint("come", n)
			into(t, far, name, 502)
			far.Must(t, func() error { return nettest.Send(name, markers(503)[2]) })
			into(t, far, name, 504)
		}
		for _, length := range []int{502, 504} {
			_, err := tun.Write(nettest.IPv4(tunThere4, tunHere4, unix.IPPROTO_UDP, 0, nil, nettest.UDP(5, 9, make([]byte, length-28))))
			must(t, err)
		}
		last := map[int]bool{} // by interface
		nettest.Await(t, file, func(p nettest.Packet) bool {
			if p.Length == 504 {
				last[p.Interface] = true
			}
			return len(last) == 5
		})
		must(t, stdin.Close())
		if code := p.Wait(t); code != 0 {
			t.Fatalf("code %d:\n%s", code, p.Stderr())
		}
		f, err := nettest.Read(file)
		must(t, err)
		for n := 0; n <= 8; n += 2 {
			if got := lengths(f, fmt.Sprint("come", n)); !slices.Equal(got, []int{504}) {
				t.Errorf("come%d has packets of %d bytes, not 504", n, got)
			}
		}
		if strings.Count(p.Stderr(), "not replaced") > 0 || len(f.Packets) != 5 {
			t.Errorf("%d packets are in the file:\n%s", len(f.Packets), p.Stderr())
		}
		nothingLeft(t, near)
	})
}

// TestBroadcastFollows gives an interface its address, and another one, while it is captured: ip broadcast means the network that it
// is in then.
func TestBroadcastFollows(t *testing.T) {
	nettest.Require(t, "agent")
	eachVariant(t, func(t *testing.T, variant []string) {
		near, far := nettest.Pair(t)
		ip(t, near, "addr flush dev veth0")
		file := filepath.Join(t.TempDir(), "broadcast.pcapng")
		p := startAgent(t, near, file, append(append([]string{"-v", "-i", "veth0"}, variant...), "ip broadcast or len == 514")...)
		to := func(address string, length int) []byte {
			return nettest.Ethernet(otherMAC, nettest.FarMAC, nettest.TypeIPv4,
				nettest.IPv4("10.97.0.1", address, unix.IPPROTO_UDP, 0, nil, nettest.UDP(5, 9, make([]byte, length-42))))
		}
		n := 0
		var want []int
		for _, step := range []struct {
			do, says string
			matches  map[string]bool
		}{
			{"", "", map[string]bool{"255.255.255.255": true, "10.99.0.255": false, "10.99.255.255": false}},
			{"addr add 10.99.0.1/24 dev veth0", "agent: veth0 has another netmask: its filter is for ffffff00 from now on\n",
				map[string]bool{"10.99.0.255": true, "10.99.255.255": true, "10.99.0.7": false, "10.99.255.0": true}},
			{"addr flush dev veth0", "agent: veth0 has another netmask: its filter is for 00000000 from now on\n",
				map[string]bool{"10.99.0.255": false, "10.99.255.255": false}},
			{"addr add 10.99.0.1/16 dev veth0", "agent: veth0 has another netmask: its filter is for ffff0000 from now on\n",
				map[string]bool{"10.99.0.255": false, "10.99.255.255": true, "10.99.255.0": false}},
		} {
			if step.do != "" {
				ip(t, near, step.do)
				p.Await(t, step.says)
			}
			for _, address := range slices.Sorted(maps.Keys(step.matches)) {
				n++
				if step.matches[address] {
					want = append(want, 100+n)
				}
				far.Must(t, func() error { return nettest.Send("veth0", to(address, 100+n)) })
			}
		}
		far.Must(t, func() error { return nettest.Send("veth0", to("10.99.0.7", 514)) })
		nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 514 })
		f := stop(t, p, file)
		if d := cmp.Diff(append(want, 514), lengths(f, "veth0")); d != "" {
			t.Errorf("lengths of packets (-want +got):\n%s", d)
		}
		nothingLeft(t, near)
	})
}
