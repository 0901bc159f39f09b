// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"regexp"
	"testing"
)

// eventLine is what agent -v says when a processor that was switched off has its part of the legacy object again.
func eventLine(processor int) *regexp.Regexp {
	return regexp.MustCompile(fmt.Sprintf(`^agent: opened a new perf event \(processor %d\)$`, processor))
}

// testProcessors switches processors off and on in the middle of captures. Each object is to have all packets that tcpdump
// has, whichever processor handles them.
func testProcessors(t *testing.T, p *phone) {
	const far = "10.79.1.2"
	p.root(t, "ip link add cpu0 type veth peer name cpu0 netns peer && ip addr add 10.79.1.1/24 dev cpu0 && "+
		"ip link set cpu0 up && ip netns exec peer ip addr add "+far+"/24 dev cpu0 && ip netns exec peer ip link set cpu0 up")
	turn := func(t *testing.T, processor, on int) {
		t.Helper()
		p.root(t, fmt.Sprintf("echo %d >/sys/devices/system/cpu/cpu%d/online", on, processor))
	}
	send := func(t *testing.T, processor int) {
		t.Helper()
		p.shell(t, fmt.Sprintf("taskset %d /lab/phone udp -n 3 %s:53", 1<<processor, far))
	}
	t.Cleanup(func() {
		turn(t, 0, 1)
		turn(t, 1, 1)
		p.root(t, "ip link del cpu0")
	})
	for _, way := range []struct {
		name, flags string
		told        bool
	}{
		{"ring object", "--object ring", false},
		{"legacy object", "--object legacy", true},
	} {
		back := func(t *testing.T, b *pair, processor int) {
			t.Helper()
			turn(t, processor, 1)
			if way.told {
				b.agent.until(t, eventLine(processor))
			}
		}
		t.Run(way.name, func(t *testing.T) {
			const times = 4
			b := p.besideTcpdump(t, "cpu0", "-v "+way.flags)
			send(t, 1)
			for range times {
				turn(t, 1, 0)
				send(t, 0)
				back(t, b, 1)
				send(t, 1)
			}
			got, want := b.end(t, 2*3*(1+2*times))
			sameTimes(t, got, want)
		})
		for off := range 2 {
			t.Run(fmt.Sprintf("%s, %d off at the start", way.name, off), func(t *testing.T) {
				turn(t, off, 0)
				b := p.besideTcpdump(t, "cpu0", "-v "+way.flags)
				send(t, 1-off)
				back(t, b, off)
				send(t, off)
				got, want := b.end(t, 2*3*2)
				sameTimes(t, got, want)
			})
		}
	}
}
