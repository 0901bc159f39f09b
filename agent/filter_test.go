// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/nettest"
)

// filterCases are expressions that look where packets differ between a file and a live capture, and what of tcpdump's
// they are compared with. IFINDEX stands for the interface's number.
var filterCases = []struct{ args, like string }{
	{"vlan", ""},
	{"vlan 42", ""},
	{"not vlan", ""},
	{"not vlan 42", ""},
	{"vlan and udp port 9", ""},
	{"vlan and not udp", ""},
	{"vlan 100 and vlan 42", ""},
	{"udp port 9", ""},
	{"udp port 9 or (vlan and udp port 9)", ""},
	{"inbound", ""},
	{"outbound", ""},
	{"inbound and vlan", ""},
	{"outbound and vlan 42", ""},
	{"not inbound and tcp", ""},
	{"-Q in", "inbound"},
	{"-Q out", "outbound"},
	{"-Q in outbound", "inbound and outbound"},
	{"ifindex IFINDEX", ""},
	{"not ifindex IFINDEX or arp", ""},
	{"tcp[((tcp[12] & 0xf0) >> 2):4] = 0x64726f69", ""},
	{"tcp[((tcp[12] & 0xf0) >> 2) + 30000:4] = 0x64726f69", ""},
	{"ip6[50000] = 0x64 or ip[50000] = 0x64", ""},
	{"len > 1000", ""},
	{"greater 20000", ""},
	{"less 60", ""},
	{"ether[len - 1] = 0x70", ""},
	{"ip protochain 17", ""},
	{"ip6 protochain 6", ""},
	{"ip[6:2] & 0x3fff != 0", ""},
	{"not tcp and not udp", ""},
}

// feed has what far sends on feed0 leave near by veth0, with its tag beside the packet: as a VLAN interface sends it.
func feed(t *testing.T, near, far nettest.Space) {
	t.Helper()
	near.Run(t, "ip", "link", "add", "feed0", "type", "veth", "peer", "name", "feed0", "netns", far.Name)
	for _, s := range []nettest.Space{near, far} {
		s.Run(t, "ip", "link", "set", "feed0", "addrgenmode", "none")
		s.Run(t, "ip", "link", "set", "feed0", "up")
	}
	near.Must(t, func() error {
		from, err := net.InterfaceByName("feed0")
		if err != nil {
			return err
		}
		to, err := net.InterfaceByName("veth0")
		if err != nil {
			return err
		}
		prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, int32(to.Index)),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirect.Call(),
			asm.Return(),
		}})
		if err != nil {
			return err
		}
		defer prog.Close()
		l, err := link.AttachTCX(link.TCXOptions{Interface: from.Index, Program: prog, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			t.Cleanup(func() { must(t, l.Close()) })
		}
		return err
	})
}

// fed are the frames that far sends there.
func fed() [][]byte {
	return oddFrames(nettest.NearMAC, nettest.FarMAC, nettest.Near4, nettest.Far4, nettest.Near6, nettest.Far6)[:6]
}

// sendFile sends a file to a server without a copy, and reads it back.
func sendFile(t *testing.T, size int) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sent")
	if err := os.WriteFile(path, []byte(strings.Repeat("droidtap", size/8)), 0o600); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := net.Dial("tcp", net.JoinHostPort(nettest.Far4, fmt.Sprint(serverPort)))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(nettest.Patience)); err != nil {
		return err
	}
	if _, err := c.(*net.TCPConn).ReadFrom(f); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, size))
	return err
}

// TestFilters compares captures with those of a tcpdump that has the same expression, on the same interface.
func TestFilters(t *testing.T) {
	nettest.Require(t, "tcpdump", "agent")
	for _, run := range []struct {
		variant []string
		form    string
	}{{variants[0], "auto"}, {variants[3], "load-bytes"}, {variants[1], "agent"}, {variants[2], "hybrid"}, {variants[4], "auto"}, {variants[5], "agent"}} {
		t.Run(fmt.Sprintf("%s %s %s", run.variant[1], run.variant[3], run.form), func(t *testing.T) {
			near, far := nettest.Pair(t)
			serve(t, near, 0)
			serve(t, far, 0)
			feed(t, near, far)
			ifindex := strings.TrimSpace(near.Run(t, "cat", "/sys/class/net/veth0/ifindex"))
			dir := t.TempDir()
			var running []*nettest.Process
			// The markers match in any case.
			with := func(args string) []string {
				args = strings.ReplaceAll(args, "IFINDEX", ifindex)
				options := []string{"-i", "veth0"}
				if strings.HasPrefix(args, "-Q ") {
					fields := strings.SplitN(args, " ", 3)
					return append(append(options, fields[:2]...), fields[2:]...)
				}
				return append(options, fmt.Sprintf("(len >= %d and len <= %d) or (%s)", startOut, endIn, args))
			}
			for i, c := range filterCases {
				if c.like == "" {
					c.like = c.args
				}
				file := filepath.Join(dir, fmt.Sprint(i))
				running = append(running, startTcpdump(t, near, file+".pcap", with(c.like)...))
				args := append(append([]string{"-B", "16384", "--filter-form", run.form}, run.variant...), with(c.args)...)
				running = append(running, startAgent(t, near, file+".pcapng", args...))
			}
			mark(t, near, far, startOut, startIn)
			exchangeAll(t, near, far)
			near.Must(t, func() error { return errors.Join(sendFile(t, 32000), sendFile(t, 64000)) })
			far.Must(t, func() error { return nettest.Send("feed0", fed()...) })
			mark(t, near, far, endOut, endIn)
			for i, c := range filterCases {
				last := endIn
				if strings.HasPrefix(c.args, "-Q out") {
					last = endOut
				}
				file := filepath.Join(dir, fmt.Sprint(i))
				nettest.Await(t, file+".pcap", func(p nettest.Packet) bool { return p.Length == last })
				if !strings.HasPrefix(c.args, "-Q in outbound") {
					nettest.Await(t, file+".pcapng", func(p nettest.Packet) bool { return p.Length == last })
				}
			}
			for _, p := range running {
				p.Stop(t, syscall.SIGINT)
			}
			for i, c := range filterCases {
				t.Run(c.args, func(t *testing.T) {
					file := filepath.Join(dir, fmt.Sprint(i))
					want, got := describe(between(t, file+".pcap")), describe(between(t, file+".pcapng"))
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("%d packets, tcpdump has %d (-tcpdump +agent):\n%s", len(got), len(want), abbreviate(diff))
					}
					if len(want) < 2 && c.args != "-Q in outbound" {
						t.Errorf("tcpdump has %d packets only", len(want))
					}
				})
			}
		})
	}
}

// TestTooMuchForTheKernel has expressions that some kernel refuses: the program becomes smaller, and at last there is none
// and the agent filters. Never is there no filter.
func TestTooMuchForTheKernel(t *testing.T) {
	nettest.Require(t, "agent")
	hosts := func(n int) string {
		var list []string
		for i := range n {
			list = append(list, fmt.Sprintf("host 2001:db8::%x", i+1))
		}
		return strings.Join(list, " or ")
	}
	for _, c := range []struct {
		rule  string
		expr  string
		form  string
		warns bool
	}{
		{"one that fits", "udp port 9 or " + hosts(20), "hybrid", false},
		{"one with too many branches in the hybrid form", "udp port 9 or " + hosts(500), "load-bytes", false},
		{"one with too many branches", "udp port 9 or " + hosts(1300), "agent", true},
	} {
		t.Run(c.rule, func(t *testing.T) {
			near, far := nettest.Pair(t)
			dir := t.TempDir()
			file, text := filepath.Join(dir, "out.pcapng"), filepath.Join(dir, "expr")
			must(t, os.WriteFile(text, []byte(c.expr), 0o600))
			cmd := near.Command("agent", "-i", "veth0", "-d", "-F", text)
			var said strings.Builder
			cmd.Stderr = &said
			if _, err := cmd.Output(); err != nil || !strings.HasPrefix(said.String(), "form "+c.form) {
				t.Errorf("-d: %v, %s", err, said.String())
			}
			p := startAgent(t, near, file, "-v", "-i", "veth0", "-s", "60", "-F", text)
			if !strings.Contains(p.Stderr(), "form "+c.form) || strings.Contains(p.Stderr(), "the agent filters behind it") != c.warns {
				t.Errorf("it is said:\n%s", p.Stderr())
			}
			datagrams(t, far, 5)
			far.Must(t, func() error { return nettest.Send("veth0", markers(endIn)...) }) // one each of IPv4 and IPv6 matches
			nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == endIn && p.Data[12] == 0x86 })
			p.Stop(t, syscall.SIGINT)
			f, err := nettest.Read(file)
			must(t, err)
			if len(f.Packets) != 7 || len(f.Packets[0].Data) != 60 {
				t.Errorf("%d packets, the first of %d bytes, are in the file", len(f.Packets), len(f.Packets[0].Data))
			}
			counted := counters(t, p.Stderr())
			if counted["received by filter"] != 7 || (counted["left out in the agent"] > 0) != c.warns {
				t.Errorf("it is said at the end:\n%s", p.Stderr())
			}
			if s := f.Interfaces[0].Statistics; s[6] != 7 {
				t.Errorf("interface statistics %v", s)
			}
		})
	}
}

// TestBroadcast has interfaces with different netmasks: each has the broadcast address of its own.
func TestBroadcast(t *testing.T) {
	nettest.Require(t, "agent")
	for _, variant := range [][]string{variants[0], variants[3], variants[4]} {
		t.Run(variant[1]+" "+variant[3], func(t *testing.T) {
			near, far := nettest.Pair(t)
			near.Run(t, "ip", "link", "add", "veth9", "type", "veth", "peer", "name", "veth9", "netns", far.Name)
			for _, s := range []nettest.Space{near, far} {
				s.Run(t, "ip", "link", "set", "veth9", "addrgenmode", "none")
				s.Run(t, "ip", "link", "set", "veth9", "up")
			}
			near.Run(t, "ip", "addr", "add", "10.96.0.1/16", "dev", "veth9")
			file := filepath.Join(t.TempDir(), "broadcast.pcapng")
			p := startAgent(t, near, file, append(append([]string{"-i", "veth0,veth9"}, variant...), "ip broadcast and udp")...)
			to := func(dst string, length int) []byte {
				return nettest.Ethernet(otherMAC, nettest.FarMAC, nettest.TypeIPv4, nettest.IPv4("10.97.0.1", dst, 17, 0, nil, nettest.UDP(5, 9, make([]byte, length-42))))
			}
			far.Must(t, func() error {
				return errors.Join(
					nettest.Send("veth0", to("10.99.0.255", 101), to("10.99.255.255", 102), to("10.99.0.7", 103), to("255.255.255.255", 104)),
					nettest.Send("veth9", to("10.96.0.255", 111), to("10.96.255.255", 112), to("10.99.0.255", 113), to("255.255.255.255", 114)))
			})
			nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 114 })
			p.Stop(t, syscall.SIGINT)
			f, err := nettest.Read(file)
			must(t, err)
			var got []string
			for _, p := range f.Packets {
				got = append(got, fmt.Sprintf("%s %d", f.Interfaces[p.Interface].Name, p.Length))
			}
			slices.Sort(got) // two packet sockets do not agree on an order
			// Any host part of ones or zeros is a broadcast: 10.99.255.255 ends in 255, too.
			want := []string{"veth0 101", "veth0 102", "veth0 104", "veth9 112", "veth9 114"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
