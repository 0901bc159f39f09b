// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/nettest"
)

// leaves tells whether the near end of veth0 sent the packet.
func leaves(p nettest.Packet) bool { return p.Data[6:12] == "\x02\x00\x00\x00\x00\x01" }

// end is what a flow is known by at the near end.
type end struct {
	network string // as net.Dial takes it
	v6      bool
	port    int
}

// endOf returns the near end of a TCP or UDP packet on veth0.
func endOf(p nettest.Packet) end {
	e := end{network: "udp", v6: p.Data[12:14] == "\x86\xdd"}
	protocol, port := 14+9, 14+20
	if e.v6 {
		protocol, port = 14+6, 14+40
	}
	if p.Data[protocol] == 6 {
		e.network = "tcp"
	}
	if !leaves(p) {
		port += 2
	}
	e.port = int(binary.BigEndian.Uint16([]byte(p.Data[port:])))
	return e
}

// compare returns which of the packets that got must have are not in it, and which are that it may not have, whatever
// their order.
func compare(must, may, got []nettest.Packet) (missing, extra []nettest.Packet) {
	count := func(of []nettest.Packet) map[string]int {
		n := map[string]int{}
		for _, line := range describe(of) {
			n[line]++
		}
		return n
	}
	has, allowed := count(got), count(may)
	for i, line := range describe(must) {
		if has[line]--; has[line] < 0 {
			missing = append(missing, must[i])
		}
	}
	for i, line := range describe(got) {
		if allowed[line]--; allowed[line] < 0 {
			extra = append(extra, got[i])
		}
	}
	return missing, extra
}

// TestOwner compares what --uid shows with tcpdump's packets of the ports that the user had.
func TestOwner(t *testing.T) {
	nettest.Require(t, "tcpdump", "agent")
	const alice, bob, root = 10123, 10124, 0
	tests := []struct {
		name string
		args []string
		uids []int
		in   bool // packets that come in are recorded
		out  bool
	}{
		{"one", []string{"--uid", "10123"}, []int{alice}, true, true},
		{"root", []string{"--uid", "0"}, []int{root}, true, true},
		{"two", []string{"--uid", "10123,10124"}, []int{alice, bob}, true, true},
		{"one inbound", []string{"--uid", "10123", "-Q", "in"}, []int{alice}, true, false},
		{"one outbound", []string{"--uid", "10124", "-Q", "out"}, []int{bob}, false, true},
	}
	for _, variant := range variants {
		t.Run(variant[1]+" "+variant[3], func(t *testing.T) {
			near, far := nettest.Pair(t)
			serveBy(t, far, 0, func(connection func()) { go connection() })
			dir := t.TempDir()
			reference := filepath.Join(dir, "reference.pcap")
			tcpdump := startTcpdump(t, near, reference, "-i", "veth0", "tcp", "or", "udp")
			agents := make([]*nettest.Process, len(tests))
			for i, tt := range tests {
				args := append(append([]string{"-i", "veth0"}, variant...), tt.args...)
				agents[i] = startAgent(t, near, filepath.Join(dir, tt.name), append(args, "tcp", "or", "udp")...)
			}

			// A packet socket finds owners only while there are sockets.
			speak := talk
			if variant[3] == "packet" {
				speak = func(network, host string, size, chunk int) (int, error) {
					c, port, err := hold(network, host, size, chunk)
					if c != nil {
						t.Cleanup(func() { must(t, c.Close()) })
					}
					return port, err
				}
			}
			owner := map[end]int{}
			for range 2 {
				for _, uid := range []int{alice, bob, root} {
					must(t, near.Do(uid, func() error {
						for _, network := range []string{"tcp", "udp"} {
							for _, host := range []string{nettest.Far4, nettest.Far6} {
								port, err := speak(network, host, 1000, 500)
								if err != nil {
									return err
								}
								e := end{network, host == nettest.Far6, port}
								if other, taken := owner[e]; taken && other != uid {
									return fmt.Errorf("%+v was user %d's and is user %d's", e, other, uid)
								}
								owner[e] = uid
							}
						}
						return nil
					}))
				}
			}
			far.Must(t, func() error { return sendUDP(nettest.Near4, 100) }) // to nobody
			for _, uid := range []int{alice, bob, root} {
				must(t, near.Do(uid, func() error { return holdUDP(t, nettest.Far4, endOut-42) }))
			}
			nettest.Await(t, reference, func(p nettest.Packet) bool { return p.Length == endOut && leaves(p) })
			for i, tt := range tests {
				if tt.out {
					nettest.Await(t, filepath.Join(dir, tt.name), func(p nettest.Packet) bool { return p.Length == endOut })
				}
				agents[i].Stop(t, syscall.SIGINT)
			}
			tcpdump.Stop(t, syscall.SIGINT)

			ref, err := nettest.Read(reference)
			must(t, err)
			for i, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					var want []nettest.Packet
					certain := 0 // of want: an acknowledgement that came after the markers may be missing
					for _, p := range ref.Packets {
						uid, known := owner[endOf(p)]
						out := leaves(p)
						if p.Length == endOut {
							certain = len(want)
						}
						if known && slices.Contains(tt.uids, uid) && (out && tt.out || !out && tt.in) {
							want = append(want, p)
						}
					}
					f, err := nettest.Read(filepath.Join(dir, tt.name))
					must(t, err)
					var got []nettest.Packet
					for _, p := range f.Packets {
						if p.Length != endOut { // by a socket whose port we do not know
							got = append(got, p)
						}
					}
					if certain < 10 {
						t.Fatalf("tcpdump has %d packets only", certain)
					}
					if variant[3] != "packet" {
						certain = len(want)
					}
					missing, extra := compare(want[:certain], want, got)
					if diff := cmp.Diff(describe(missing), describe(extra)); diff != "" {
						t.Errorf("%d packets, tcpdump has %d (-tcpdump +agent):\n%s", len(got), len(want), abbreviate(diff))
					}
					m := regexp.MustCompile(`(\d+) unattributed`).FindStringSubmatch(agents[i].Stderr())
					if m == nil {
						t.Fatalf("no count of unattributed packets:\n%s", agents[i].Stderr())
					}
					if n, _ := strconv.Atoi(m[1]); tt.in && n != 1 {
						t.Errorf("%d packets unattributed, and one came to a port of nobody:\n%s", n, agents[i].Stderr())
					}
				})
			}
		})
	}
}
