// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
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
	}{{variants[0], "auto"}, {variants[3], "load-bytes"}, {variants[1], "agent"}, {variants[2], "hybrid"}} {
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
				args := append(append([]string{"--filter-form", run.form}, run.variant...), with(c.args)...)
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
