// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"droidtap/agent/filter"
	"droidtap/agent/pcapng"
)

// TestStub injects filters into both stubs of every program. A stub whose
// arguments clang has moved to other registers fails here: it would take an offset
// for the end of the packet.
func TestStub(t *testing.T) {
	forPacketObjects(t, func(t *testing.T, name string) {
		for _, c := range []struct {
			rule   string
			l2, l3 string
			taken  func(n int) bool
		}{
			{"no filter takes all", "", "", func(int) bool { return true }},
			{"takes none", "less 0", "less 0", func(int) bool { return false }},
			{"by the length that is handed over", "greater 100", "greater 100", func(n int) bool { return n >= 100 }},
			{"by another length", "len < 513", "len < 513", func(n int) bool { return n < 513 }},
			{"by a byte at an offset from the start", "ether[100] >= 0", "ip[100] >= 0", func(n int) bool { return n > 100 }},
			{"by the last byte", lastByte("ether"), lastByte("ip"), func(n int) bool { return n > 511 }},
			{"each stub has its own filter", "greater 100", "less 99", nil},
		} {
			for _, form := range []filter.Form{filter.Hybrid, filter.LoadBytes} {
				t.Run(fmt.Sprintf("%v: %s", form, c.rule), func(t *testing.T) {
					o := start(t, name, config{settings: settings{Snaplen: 64, Directions: both}, edit: func(spec *ebpf.CollectionSpec) {
						inject(t, spec, c.l2, pcapng.Ethernet, form)
						inject(t, spec, c.l3, pcapng.Raw, form)
					}})
					for _, n := range []int{60, 99, 100, 101, 511, 512, 513, 3000} {
						for _, program := range append([]string{programs[0].name, programs[1].name, programs[2].name, programs[3].name}, sockets...) {
							want := c.taken == nil && (program[:2] == "l2") == (n >= 100) || c.taken != nil && c.taken(n)
							t.Run(fmt.Sprintf("%s of %d bytes", program, n), func(t *testing.T) {
								if got := o.takes(t, program, ipVersion4(frame(n), program)); got != want {
									t.Errorf("taken is %v", got)
								}
							})
						}
					}
				})
			}
		}
	})
}

// takes tells whether a program that records 64 bytes takes a packet.
func (c *capture) takes(t *testing.T, program string, packet []byte) bool {
	t.Helper()
	if !slices.Contains(sockets, program) {
		c.run(t, program, loopback, packet)
		return len(c.records(t)) == 1
	}
	n := c.keeps(t, program, packet)
	if n != 0 && n != 64 {
		t.Errorf("%d bytes are kept", n)
	}
	return n != 0
}

// lastByte matches what frames of 512 bytes and more have there.
func lastByte(header string) string {
	return fmt.Sprintf("%s[511] = %d", header, frame(512)[511])
}

// ipVersion4 makes a packet without an Ethernet header one that a filter takes for IPv4.
func ipVersion4(packet []byte, program string) []byte {
	if program[:2] == "l3" {
		packet[0] = 0x45
	}
	return packet
}

func inject(t testing.TB, spec *ebpf.CollectionSpec, expr string, l pcapng.LinkType, form filter.Form) {
	t.Helper()
	f, err := filter.Compile(t.Context(), expr, l, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		if strings.HasPrefix(name, "l2") != (l == pcapng.Ethernet) {
			continue
		}
		form := form
		if slices.Contains(sockets, name) {
			form = filter.LoadBytes // there is no direct access
		}
		if err := f.Inject(p, filter.How{Form: form, Egress: strings.HasSuffix(name, "egress")}); err != nil {
			t.Fatal(err)
		}
	}
}
