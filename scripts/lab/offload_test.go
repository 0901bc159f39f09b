// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"droidtap/scripts/nettest"
)

// testOffload fetches half a megabyte each way and wants the streams that tcpdump has. tc and TCX have what leaves in longer
// packets than tcpdump, where the device cannot segment; a packet socket has the same ones.
func testOffload(t *testing.T, p *phone) {
	const size = 1 << 19
	const expr = "tcp port 80 or tcp port 8080 or udp port 443"
	for _, c := range []struct{ name, iface, here, peer, own string }{
		{"Ethernet", "wlan0", "192.168.49.1", peer, ""},
		{"Ethernet by a packet socket", "wlan0", "192.168.49.1", peer, "--backend packet"},
		{"raw IP", "rmnet_data0", "10.78.0.1", cell, ""},
		{"raw IP by a packet socket", "rmnet_data0", "10.78.0.1", cell, "--backend packet"},
	} {
		t.Run(c.name, func(t *testing.T) {
			line := strings.Join([]string{agent, "-i", c.iface, "-B 16384", c.own, expr}, " ")
			got, want := p.compare(t, []string{"shell", "su -c '" + line + "'"}, c.iface, "-B 65536 "+expr, func() {
				p.shell(t, fmt.Sprintf("/lab/phone fetch -size %d http://%s/", size, c.peer))
				p.root(t, fmt.Sprintf("/lab/phone serve -tls= -tcp= -udp= -http=8080 & /lab/phone wait %[1]s:8080 && "+
					"ip netns exec peer /lab/phone fetch -size %[2]d http://%[1]s:8080/; r=$?; kill $!; exit $r", c.here, size))
				p.quiet(t)
				p.shell(t, "/lab/phone udp "+c.peer+":443")
			})
			ip := 0
			if c.iface == "wlan0" {
				ip = 14
			}
			streams := map[string]string{}
			for name, all := range map[string][]packet{"agent": got, "tcpdump": want} {
				for flow, stream := range flows(t, all, ip) {
					streams[name+": "+flow] = stream
				}
			}
			long := 0
			for name, stream := range streams {
				flow := strings.TrimPrefix(name, "tcpdump: ")
				if flow == name {
					continue
				}
				if other := streams["agent: "+flow]; other != stream {
					t.Errorf("%s: %d bytes, tcpdump has %d", flow, len(other), len(stream))
				}
				if len(stream) > size {
					long++
				}
			}
			if long != 2 || len(streams) != 8 {
				t.Errorf("%d streams of two captures, %d of more than %d bytes in tcpdump's", len(streams), long, size)
			}
			in := func(all []packet) []packet {
				return slices.DeleteFunc(slices.Clone(all), func(pk packet) bool {
					h, ok := nettest.ParseIP(pk.data, ip)
					return !ok || h.Source(pk.data).String() == c.here
				})
			}
			t.Logf("%d packets, tcpdump has %d; %d and %d come in", len(got), len(want), len(in(got)), len(in(want)))
			if c.own != "" {
				same(t, got, want)
				return
			}
			same(t, in(got), in(want))
			if len(got) > len(want) {
				t.Errorf("%d packets, tcpdump has %d", len(got), len(want))
			}
		})
	}
}

// flows returns what each TCP connection carries in each direction.
func flows(t *testing.T, packets []packet, ip int) map[string]string {
	t.Helper()
	var all []string
	for _, pk := range packets {
		if int(pk.wire) != len(pk.data) {
			t.Fatalf("%d bytes of a packet of %d", len(pk.data), pk.wire)
		}
		all = append(all, pk.data)
	}
	streams, err := nettest.Streams(all, ip)
	if err != nil {
		t.Error(err)
	}
	return streams
}
