// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"testing"

	"github.com/cilium/ebpf/link"
)

// TestHold has a place held before there is a program for it, and after there is none any more.
func TestHold(t *testing.T) {
	n := newNetwork(t, "veth0")
	if err := HaveTCX(); err != nil {
		t.Skip(err)
	}
	for _, dir := range directions {
		a, err := Hold(n.ifc, dir)
		must(t, err)
		n.send(t, dir, 2) // fails where one does not pass
		c := count(t)
		must(t, a.Update(c.prog))
		n.send(t, dir, 3)
		if got := c.took(t); got != 3 {
			t.Errorf("%s: counted %d packets of 3", dir, got)
		}
		must(t, a.(*Link).Idle())
		n.send(t, dir, 2)
		if got := c.took(t); got != 0 {
			t.Errorf("%s: counted %d packets after Idle", dir, got)
		}
		must(t, a.Close())
		left, err := link.QueryPrograms(link.QueryOptions{Target: n.ifc.Index, Attach: dir.attachType()})
		must(t, err)
		if len(left.Programs) > 0 {
			t.Errorf("%s: %d programs are left", dir, len(left.Programs))
		}
	}
}
