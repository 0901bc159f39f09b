// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// The two ends of the tun device: the kernel's and the test's.
const (
	tunHere4, tunThere4 = "10.98.0.1", "10.98.0.2"
	tunHere6, tunThere6 = "fd00:98::1", "fd00:98::2"
)

// openTun makes tun0 with its addresses.
func openTun(t *testing.T, s nettest.Space) *os.File {
	t.Helper()
	tun := nettest.OpenTun(t, s, "tun0")
	s.Run(t, "ip", "addr", "add", tunHere4+"/24", "dev", "tun0")
	s.Run(t, "ip", "addr", "add", tunHere6+"/64", "dev", "tun0", "nodad")
	return tun
}

// sendUDP sends one datagram from a socket of the namespace.
func sendUDP(host string, size int) error {
	c, err := net.Dial("udp", net.JoinHostPort(host, "9"))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(make([]byte, size))
	return err
}

// holdUDP sends so and keeps the socket until the test ends: a packet socket asks for the owner while there is one.
func holdUDP(t *testing.T, host string, size int) error {
	t.Helper()
	c, err := net.Dial("udp", net.JoinHostPort(host, "9"))
	if err != nil {
		return err
	}
	t.Cleanup(func() { must(t, c.Close()) })
	_, err = c.Write(make([]byte, size))
	return err
}

// markTun sends a packet of each length out of the tun device and into it.
func markTun(t *testing.T, s nettest.Space, tun *os.File, out, in int) {
	t.Helper()
	s.Must(t, func() error {
		if err := sendUDP(tunThere4, out-28); err != nil {
			return err
		}
		// To nobody here, so there is no answer.
		_, err := tun.Write(nettest.IPv4(tunThere4, "10.97.0.2", unix.IPPROTO_UDP, 0, nil, nettest.UDP(5, 9, make([]byte, in-28))))
		return err
	})
}

// exchangeTun makes traffic through the tun device, both ways.
func exchangeTun(t *testing.T, s nettest.Space, tun *os.File) {
	t.Helper()
	udp := nettest.UDP(1234, 9, []byte("droidtap"))
	v4 := nettest.IPv4(tunThere4, tunHere4, unix.IPPROTO_UDP, 0, nil, udp) // answered: port unreachable
	s.Must(t, func() error {
		for _, host := range []string{tunThere4, tunThere6} {
			for _, size := range []int{0, 100, 1200, 4000} {
				if err := sendUDP(host, size); err != nil {
					return err
				}
			}
		}
		for _, p := range [][]byte{
			v4, v4[:20], v4[:19], v4[:1],
			nettest.IPv4(tunThere4, tunHere4, unix.IPPROTO_ICMP, 0, nil, nettest.Echo([]byte("droidtap"))),
			nettest.IPv4(tunThere4, tunHere4, unix.IPPROTO_UDP, 0, []byte{148, 4, 0, 0}, udp),
			nettest.IPv4(tunThere4, tunHere4, unix.IPPROTO_UDP, 0x2000, nil, udp),
			nettest.IPv6(tunThere6, tunHere6, unix.IPPROTO_UDP, udp),
			nettest.IPv6(tunThere6, tunHere6, unix.IPPROTO_UDP, udp)[:39],
			nettest.IPv6(tunThere6, tunHere6, unix.IPPROTO_UDP, append(udp, make([]byte, 1300)...)),
		} {
			if _, err := tun.Write(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// longest is how many bytes of a packet an object can record: see MAX_CAPLEN in bpf/src/agent.h.
func longest(variant []string) int {
	if slices.Contains(variant, "legacy") && !slices.Contains(variant, "packet") {
		return 65536 - 64
	}
	return 262144
}

// TestInterfaces captures on a tun device, whose packets have no Ethernet header, on two interfaces, and on all.
func TestInterfaces(t *testing.T) {
	nettest.Require(t, "tcpdump", "agent")
	captures := []struct {
		name string
		args string
		// What tcpdumps say for each interface, and of which link type its packets are.
		like map[string]string
		// libpcap cuts shorter where packets have no Ethernet header, since its ring's slots are sized for packets that
		// have one (pcap-linux.c create_ring), so that test cuts tcpdump's packets itself.
		snaplen int
	}{
		{"tun", "-i tun0", map[string]string{"tun0": "-i tun0"}, 1 << 20},
		{"tun filtered", "-i tun0 udp and not ip6", map[string]string{"tun0": "-i tun0 udp and not ip6"}, 1 << 20},
		{"tun inbound", "-i tun0 -Q in", map[string]string{"tun0": "-i tun0 -Q in"}, 1 << 20},
		{"tun by the word", "-i tun0 inbound", map[string]string{"tun0": "-i tun0 inbound"}, 1 << 20},
		{"tun outbound by the word", "-i tun0 outbound or (len>=1411 and len<=1414)", map[string]string{"tun0": "-i tun0 outbound or (len>=1411 and len<=1414)"}, 1 << 20},
		{"tun in the agent", "--filter-form agent -i tun0 inbound or udp[8:4]=0x64726f69", map[string]string{"tun0": "-i tun0 inbound or udp[8:4]=0x64726f69"}, 1 << 20},
		{"two by direction", "-i veth0,tun0 inbound", map[string]string{"veth0": "-i veth0 inbound", "tun0": "-i tun0 inbound"}, 1 << 20},
		{"tun cut", "-i tun0 -s 21", map[string]string{"tun0": "-i tun0"}, 21},
		{"two", "-i veth0,tun0", map[string]string{"veth0": "-i veth0", "tun0": "-i tun0"}, 1 << 20},
		{"two by two options", "-i veth0 -i tun0 udp", map[string]string{"veth0": "-i veth0 udp", "tun0": "-i tun0 udp"}, 1 << 20},
		{"any", "-i any", map[string]string{"lo": "-i lo", "veth0": "-i veth0", "tun0": "-i tun0"}, 1 << 20},
	}
	linkTypes := map[string]int{"lo": 1, "veth0": 1, "tun0": 101}
	for _, variant := range variants {
		t.Run(variant[1]+" "+variant[3], func(t *testing.T) {
			near, far := nettest.Pair(t)
			tun := openTun(t, near)
			serve(t, near, 0)
			serve(t, far, 0)
			dir := t.TempDir()
			var running []*nettest.Process
			file := func(args string) string { return filepath.Join(dir, strings.ReplaceAll(args, " ", "_")+".pcap") }
			started := map[string]bool{}
			for _, c := range captures {
				for _, args := range c.like {
					if !started[args] {
						started[args] = true
						running = append(running, startTcpdump(t, near, file(args), strings.Fields(args)...))
					}
				}
				args := append(append([]string{"-B", "16384"}, variant...), strings.Fields(c.args)...)
				running = append(running, startAgent(t, near, filepath.Join(dir, c.name), args...))
			}

			markLo := func(length int) {
				near.Must(t, func() error { return nettest.Send("lo", markers(length)...) })
			}
			mark(t, near, far, startOut, startIn)
			markTun(t, near, tun, startOut, startIn)
			markLo(startIn)
			near.Must(t, func() error { return talkAll("127.0.0.1", "::1") })
			exchangeAll(t, near, far)
			exchangeTun(t, near, tun)
			mark(t, near, far, endOut, endIn)
			markLo(endIn)
			markTun(t, near, tun, endOut, endIn)
			for args := range started {
				nettest.Await(t, file(args), func(p nettest.Packet) bool { return p.Length == endIn })
			}
			for _, c := range captures {
				nettest.Await(t, filepath.Join(dir, c.name), func(p nettest.Packet) bool {
					return p.Length == endIn && p.Data[0] == 0x45 // the one on the tun device, which came last
				})
			}
			for _, p := range running {
				p.Stop(t, syscall.SIGINT)
			}

			for _, c := range captures {
				t.Run(c.name, func(t *testing.T) {
					f, err := nettest.Read(filepath.Join(dir, c.name))
					must(t, err)
					if len(f.Interfaces) != len(c.like) {
						t.Errorf("%d interfaces: %+v", len(f.Interfaces), f.Interfaces)
					}
					for id, ifc := range f.Interfaces {
						like, ok := c.like[ifc.Name]
						if !ok || ifc.LinkType != linkTypes[ifc.Name] {
							t.Errorf("interface %q has link type %d", ifc.Name, ifc.LinkType)
							continue
						}
						var packets []nettest.Packet
						for _, p := range f.Packets {
							if p.Interface == id {
								packets = append(packets, p)
							}
						}
						ref, err := nettest.Read(file(like))
						must(t, err)
						for i := range ref.Packets {
							p := &ref.Packets[i]
							p.Data = p.Data[:min(len(p.Data), c.snaplen, longest(variant))]
						}
						want, got := describe(cut(ref.Packets)), describe(cut(packets))
						if len(want) < 5 {
							t.Errorf("%s: tcpdump has %d packets only", ifc.Name, len(want))
						}
						if diff := cmp.Diff(want, got); diff != "" {
							t.Errorf("%s: %d packets, tcpdump has %d (-tcpdump +agent):\n%s", ifc.Name, len(got), len(want), abbreviate(diff))
						}
					}
				})
			}
		})
	}
}
