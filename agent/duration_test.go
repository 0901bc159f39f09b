// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"droidtap/agent/boottime"
	"droidtap/scripts/nettest"
)

// TestDuration ends a capture when its time is over, not before, with all packets in the file.
func TestDuration(t *testing.T) {
	nettest.Require(t, "agent")
	const span = 2 * time.Second
	for _, variant := range [][]string{variants[0], variants[3], variants[4]} {
		t.Run(variant[1]+" "+variant[3], func(t *testing.T) {
			near, far := nettest.Pair(t)
			file := filepath.Join(t.TempDir(), "f.pcapng")
			before := boottime.Now()
			// Not -U: what is written once a second is in the file, too.
			p := nettest.Start(t, near.Command(append([]string{"agent", "-i", "veth0", "-w", file, "--duration", "2"}, variant...)...), "capturing on")
			ready := boottime.Now()
			mark(t, near, far, endOut, endIn)
			if code := p.Wait(t); code != 0 {
				t.Errorf("code %d:\n%s", code, p.Stderr())
			}
			if took := boottime.Now() - before; took < span {
				t.Errorf("ended %v after the start", took)
			}
			if took := boottime.Now() - ready; took > span+nettest.Patience/2 {
				t.Errorf("ended %v after it was ready", took)
			}
			f, err := nettest.Read(file)
			must(t, err)
			if !slices.ContainsFunc(f.Packets, func(pk nettest.Packet) bool { return pk.Length == endIn }) {
				t.Error("the last packet is not in the file")
			}
			nothingLeft(t, near)
		})
	}
}
