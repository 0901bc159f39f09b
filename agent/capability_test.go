// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"droidtap/agent/capability"
	"droidtap/scripts/nettest"
)

// TestShedCapture has captures attach to an interface that came back, by threads none of which has more than is needed.
func TestShedCapture(t *testing.T) {
	nettest.Require(t, "agent")
	eachVariant(t, func(t *testing.T, variant []string) {
		near, far := nettest.Pair(t)
		file := filepath.Join(t.TempDir(), "shed.pcapng")
		p := startAgent(t, near, file, append(append([]string{"-i", "veth0"}, variant...), "udp")...)
		near.Run(t, "ip", "link", "del", "veth0")
		p.Await(t, "agent: interface veth0 went away: it is captured again when it comes back\n")
		rejoin(t, near, far)
		p.Await(t, "and is captured again, by "+variant[3])
		reached(t, far, file, 100)
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.Pid()))
		must(t, err)
		if len(threads) < 2 {
			t.Errorf("%d threads prove nothing", len(threads))
		}
		for _, status := range threads {
			text, err := os.ReadFile(status)
			if os.IsNotExist(err) {
				continue // it has ended
			}
			must(t, err)
			sets := 0
			for line := range strings.Lines(string(text)) {
				name, value, _ := strings.Cut(line, ":")
				if !strings.HasPrefix(name, "Cap") {
					continue
				}
				set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
				must(t, err)
				if excess := capability.Set(set) &^ capability.Needed(); excess != 0 {
					t.Errorf("%s: %s has %#x too much", status, name, uint64(excess))
				}
				sets++
			}
			if sets != 5 {
				t.Errorf("%s tells of %d sets:\n%s", status, sets, text)
			}
		}
		p.Stop(t, syscall.SIGINT)
		nothingLeft(t, near)
	})
}
