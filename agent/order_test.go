// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// TestOrder floods from two processors, each of which has a ring of its own in the legacy object: the packets are in the file in the order of
// their time. One whose program was held up behind the clock may be late.
func TestOrder(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	const each = 30_000
	for rule, options := range map[string][]string{"batches": nil, "each packet at once": {"-U"}} {
		t.Run(rule, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "out.pcapng")
			argv := append([]string{"agent", "-i", "veth0", "-B", "65536", "--object", "legacy", "-w", file}, options...)
			agent := nettest.Start(t, near.Command(append(argv, "udp")...), "capturing on veth0")
			var senders sync.WaitGroup
			for number := range byte(2) {
				senders.Go(func() {
					if err := far.Do(0, func() error { return floodFrom(number, each) }); err != nil {
						t.Error(err)
					}
				})
			}
			senders.Wait()
			agent.Stop(t, syscall.SIGINT)
			f, err := nettest.Read(file)
			must(t, err)
			of := map[byte]int{}
			late, latest := 0, time.Duration(0)
			last := int64(0)
			for _, p := range f.Packets {
				of[p.Data[len(p.Data)-1]]++
				if p.Time < last {
					late++
					latest = max(latest, time.Duration(last-p.Time))
				}
				last = max(last, p.Time)
			}
			if of[0] != each || of[1] != each || late > each/1000 || latest > 100*time.Millisecond {
				t.Errorf("%d and %d packets, want %d of each; %d behind later ones, by up to %v\n%s", of[0], of[1], each, late, latest, agent.Stderr())
			}
		})
	}
}

// floodFrom sends frames that end with a number from the processor of that number, or of another where that is not there.
func floodFrom(number byte, frames int) error {
	var on unix.CPUSet
	on.Set(int(number) % runtime.NumCPU())
	if err := unix.SchedSetaffinity(0, &on); err != nil {
		return err
	}
	frame := nettest.Ethernet(nettest.NearMAC, nettest.FarMAC, nettest.TypeIPv4,
		nettest.IPv4(nettest.Far4, nettest.Near4, unix.IPPROTO_UDP, 0, nil, nettest.UDP(5, 9, append(make([]byte, 40), number))))
	return nettest.Send("veth0", slices.Repeat([][]byte{frame}, frames)...)
}
