// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/nettest"
)

// TestClassicPcap captures the same traffic as pcapng and as pcap, on Ethernet alone and on all interfaces, some without Ethernet header.
func TestClassicPcap(t *testing.T) {
	nettest.Require(t, "agent", "tcpdump")
	near, far := nettest.Pair(t)
	tun := openTun(t, near)
	dir := t.TempDir()
	var running []*nettest.Process
	for _, on := range []string{"veth0", "tun0", "any"} {
		for _, format := range []string{"pcapng", "pcap"} {
			running = append(running, startAgent(t, near, filepath.Join(dir, on+"."+format), "-i", on, "--format", format))
		}
	}
	markTun(t, near, tun, 301, 302)
	exchangeTun(t, near, tun)
	markTun(t, near, tun, endOut, endIn)
	mark(t, near, far, endOut, endIn)
	await := func(on, format string, length int) {
		nettest.Await(t, filepath.Join(dir, on+"."+format), func(p nettest.Packet) bool { return p.Length == length })
	}
	await("veth0", "pcap", endIn)
	await("tun0", "pcap", endIn)
	await("any", "pcap", endIn+6)  // of tun0: the header of 20 bytes is new there
	await("any", "pcap", endIn+20) // of veth0: it takes the place of 14
	for _, on := range []string{"veth0", "tun0", "any"} {
		await(on, "pcapng", endIn)
	}
	for _, p := range running {
		p.Stop(t, syscall.SIGINT)
	}
	indexes := map[string]int{}
	near.Must(t, func() error {
		all, err := net.Interfaces()
		for _, i := range all {
			indexes[i.Name] = i.Index
		}
		return err
	})
	for _, tt := range []struct {
		on       string
		linkType int
		cooked   bool
	}{{"veth0", 1, false}, {"tun0", 101, false}, {"any", 276, true}} {
		t.Run(tt.on, func(t *testing.T) {
			want, err := nettest.Read(filepath.Join(dir, tt.on+".pcapng"))
			must(t, err)
			file := filepath.Join(dir, tt.on+".pcap")
			got, err := nettest.Read(file)
			must(t, err)
			if got.Interfaces[0].LinkType != tt.linkType {
				t.Errorf("link type %d", got.Interfaces[0].LinkType)
			}
			if len(want.Packets) < 4 {
				t.Errorf("%d packets", len(want.Packets))
			}
			var plain, cooked []string
			for _, p := range want.Packets {
				plain = append(plain, cook(tt.cooked, p, want.Interfaces[p.Interface], indexes))
			}
			for _, p := range got.Packets {
				cooked = append(cooked, fmt.Sprintf("%d %x", p.Length, p.Data))
			}
			slices.Sort(plain) // of two processors
			slices.Sort(cooked)
			if diff := cmp.Diff(plain, cooked); diff != "" {
				t.Errorf("packets (-want +got):\n%.4000s", diff)
			}
			read := nettest.Run(t, "tcpdump", "-Z", "root", "-n", "-r", file)
			if n := strings.Count(read, "\n"); n < len(got.Packets) {
				t.Errorf("tcpdump reads %d of %d packets", n, len(got.Packets))
			}
		})
	}
}

// cook describes a packet as it is to be in a pcap file of several link types, or as it is.
func cook(really bool, p nettest.Packet, of nettest.Interface, indexes map[string]int) string {
	if !really {
		return fmt.Sprintf("%d %x", p.Length, p.Data)
	}
	kind, hardware, sender := byte(0), uint16(0xfffe), ""
	data, protocol := p.Data, uint16(0x0800)
	if len(data) > 0 && data[0]>>4 == 6 {
		protocol = 0x86dd
	}
	if of.LinkType == 1 {
		hardware, sender = 1, p.Data[6:12]
		if of.Name == "lo" {
			hardware = 772
		}
		switch {
		case data[:6] == "\xff\xff\xff\xff\xff\xff":
			kind = 1
		case data[0]&1 != 0:
			kind = 2
		}
		protocol = binary.BigEndian.Uint16([]byte(data[12:]))
		data = data[14:]
		p.Length -= 14
	}
	if p.Direction == 2 {
		kind = 4
	}
	head := binary.BigEndian.AppendUint16(nil, protocol)
	head = append(head, 0, 0)
	head = binary.BigEndian.AppendUint32(head, uint32(indexes[of.Name]))
	head = binary.BigEndian.AppendUint16(head, hardware)
	head = append(head, kind, byte(len(sender)))
	head = append(append(head, sender...), make([]byte, 8-len(sender))...)
	return fmt.Sprintf("%d %x", p.Length+20, append(head, data...))
}
