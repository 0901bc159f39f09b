// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"droidtap/scripts/nettest"
)

// TestPacketAfterIdle has packets that come alone, far fewer than wake a reader by their number, and no -U.
func TestPacketAfterIdle(t *testing.T) {
	nettest.Require(t, "agent")
	near, _ := nettest.Pair(t)
	dir := t.TempDir()
	file := func(variant []string) string { return filepath.Join(dir, strings.Join(variant, "")+".pcapng") }
	var running []*nettest.Process
	for _, v := range variants {
		argv := append([]string{"agent", "-w", file(v), "-i", "veth0"}, v...)
		running = append(running, nettest.Start(t, near.Command(append(argv, "ether", "proto", "0x88b5")...), "capturing on"))
	}
	// By the time that the last file has one packet, the first readers have been idle for long.
	for n := range 3 {
		size := 100 + n
		near.Must(t, func() error {
			return nettest.Send("veth0", nettest.Ethernet(nettest.FarMAC, nettest.NearMAC, nettest.TypeLocal, make([]byte, size-14)))
		})
		for _, v := range variants {
			nettest.Await(t, file(v), func(p nettest.Packet) bool { return int(p.Length) == size })
		}
	}
	for _, p := range running {
		p.Stop(t, syscall.SIGINT)
	}
}
