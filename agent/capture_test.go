// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/nettest"
)

// variants are the objects and hooks that this kernel has.
var variants = [][]string{
	{"--object", "ring", "--backend", "tcx"},
	{"--object", "ring", "--backend", "tc"},
	{"--object", "legacy", "--backend", "tcx"},
	{"--object", "legacy", "--backend", "tc"},
	{"--object", "ring", "--backend", "packet"},
	{"--object", "legacy", "--backend", "packet"},
}

// startTcpdump starts a tcpdump that writes each packet to file at once. Its ring has a slot of the largest size for
// each packet, and 30 of them by default.
func startTcpdump(t *testing.T, s nettest.Space, file string, args ...string) *nettest.Process {
	t.Helper()
	argv := append([]string{"tcpdump", "-Z", "root", "--immediate-mode", "-U", "-n", "-B", "16384", "-w", file}, args...)
	return nettest.Start(t, s.Command(argv...), "listening on")
}

func startAgent(t *testing.T, s nettest.Space, file string, args ...string) *nettest.Process {
	t.Helper()
	return nettest.Start(t, s.Command(append([]string{"agent", "-U", "-w", file}, args...)...), "capturing on")
}

// covered fails the test if the traffic was tamer than it should be.
func covered(t *testing.T, lines []string) {
	t.Helper()
	const near, far = "020000000001", "020000000002"
	all := strings.Join(lines, "\n")
	for what, pattern := range map[string]string{
		"tagged frame out":    far + near + "8100",
		"tagged frame in":     near + far + "8100",
		"QinQ frame out":      far + near + "88a8....8100",
		"QinQ frame in":       near + far + "88a8....8100",
		"GSO packet out":      `(?m)^[2-6]\d{4}/\d{5} ` + far + near + "0800",
		"GSO packet in":       `(?m)^[2-6]\d{4}/\d{5} ` + near + far + "86dd",
		"fragment":            far + near + "0800" + "45......" + "....2",
		"frame of one header": "(?m)^14/14 " + near + far,
	} {
		if !regexp.MustCompile(pattern).MatchString(all) {
			t.Errorf("no %s was sent", what)
		}
	}
}

// TestCapture compares captures with those of a tcpdump that has the same options.
func TestCapture(t *testing.T) {
	nettest.Require(t, "tcpdump", "agent")
	tests := []struct {
		name string
		args string
		end  int // the marker that comes last
	}{
		{"everything", "", endIn},
		{"tcp port", "tcp port 7000", endIn},
		{"udp", "udp", endIn},
		{"ip6", "ip6", endIn},
		{"arp", "arp", endIn},
		{"icmp", "icmp", endIn},
		{"greater", "greater 1000", endIn},
		{"payload", "udp[8:4] = 0x64726f69 or tcp[20:4] = 0x64726f69 or len == 1414", endIn},
		{"snaplen 96", "-s 96", endIn},
		{"snaplen 14 cuts behind a VLAN tag", "-s 14", endIn},
		{"snaplen 1", "-s 1 udp", endIn},
		{"inbound", "-Q in", endIn},
		{"outbound", "-Q out", endOut},
	}
	for _, variant := range variants {
		t.Run(variant[1]+" "+variant[3], func(t *testing.T) {
			near, far := nettest.Pair(t)
			serve(t, near, 0)
			serve(t, far, 0)
			dir := t.TempDir()
			var running []*nettest.Process
			for _, tt := range tests {
				args := append([]string{"-i", "veth0"}, strings.Fields(tt.args)...)
				file := filepath.Join(dir, tt.name)
				running = append(running, startTcpdump(t, near, file+".pcap", args...))
				args = append(append([]string(nil), variant...), args...)
				running = append(running, startAgent(t, near, file+".pcapng", args...))
			}
			mark(t, near, far, startOut, startIn)
			exchangeAll(t, near, far)
			mark(t, near, far, endOut, endIn)
			for _, tt := range tests {
				for _, ext := range []string{".pcap", ".pcapng"} {
					nettest.Await(t, filepath.Join(dir, tt.name+ext), func(p nettest.Packet) bool { return p.Length == tt.end })
				}
			}
			for _, p := range running {
				p.Stop(t, syscall.SIGINT)
			}
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					want := describe(between(t, filepath.Join(dir, tt.name+".pcap")))
					got := describe(between(t, filepath.Join(dir, tt.name+".pcapng")))
					if tt.args == "" {
						covered(t, want)
					}
					if len(want) < 4 {
						t.Fatalf("tcpdump has %d packets only", len(want))
					}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("%d packets, tcpdump has %d (-tcpdump +agent):\n%s", len(got), len(want), abbreviate(diff))
					}
				})
			}
		})
	}
}
