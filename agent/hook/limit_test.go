// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestBehind leaves preference 1 to a filter of another kind that comes later, as Android's limit of the download rate does.
func TestBehind(t *testing.T) {
	n := newNetwork(t, "veth0")
	c := count(t)
	behind, err := AttachBehind(n.ifc, Ingress, c.prog)
	must(t, err)
	if f := behind.(*Filter); f.Pref != 6 || f.Warning() == "" {
		t.Errorf("preference %d, warning %q, want 6 and a warning", f.Pref, f.Warning())
	}
	// Another protocol than ours: the kernel has one for each preference.
	n.foreign(t, n.ifc, Ingress, 1, unix.ETH_P_IP)
	must(t, behind.Check())
	n.send(t, Ingress, 2)
	if got := c.took(t); got != 2 {
		t.Errorf("counted %d packets, want 2", got)
	}
	if yes, err := AnyPoliced(); yes || err != nil {
		t.Errorf("AnyPoliced without a limit: %v, %v", yes, err)
	}
	must(t, behind.Close())
}

func TestPoliced(t *testing.T) {
	for _, c := range []struct {
		rule string
		f    filter
		want bool
	}{
		{"the limit", filter{pref: 1, kind: "matchall"}, true},
		{"a vendor's program", filter{pref: 1, kind: "bpf"}, false},
		{"matchall of somebody else's", filter{pref: 7, kind: "matchall"}, false},
	} {
		if got := policed([]filter{{pref: 4, kind: "bpf"}, c.f}); got != c.want {
			t.Errorf("%s: %v", c.rule, got)
		}
	}
}
