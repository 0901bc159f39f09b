// SPDX-License-Identifier: Apache-2.0

package hook

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/agent/plan"
)

func TestUnprivileged(t *testing.T) {
	// A process of its own: cilium/ebpf remembers for good what it was refused.
	if os.Getenv("HOOK_UNPRIVILEGED") == "" {
		if os.Geteuid() != 0 {
			t.Skip("needs root for namespaces and bpf")
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestUnprivileged$", "-test.v")
		cmd.Env = append(os.Environ(), "HOOK_UNPRIVILEGED=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	n := newNetwork(t, "veth0")
	c := count(t)
	closer := attach(t, plan.TC, n.ifc, Ingress, c)
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	must(t, unix.Capget(&hdr, &caps[0]))
	none := [2]unix.CapUserData{{Permitted: caps[0].Permitted}, {Permitted: caps[1].Permitted}}
	must(t, unix.Capset(&hdr, &none[0]))
	var errs []error
	for _, kind := range []plan.Hook{plan.TC, plan.TCX} {
		_, err := Attach(kind, n.ifc, Egress, c.prog)
		errs = append(errs, err)
	}
	errs = append(errs, HaveTCX(), closer.Close())
	must(t, unix.Capset(&hdr, &caps[0]))
	for i, what := range []string{"clsact", "tcx", "HaveTCX", "Close"} {
		t.Logf("%s: %v", what, errs[i])
		// With kernel.unprivileged_bpf_disabled=0 whoever holds a loaded program may attach it by TCX.
		if what == "tcx" && errs[i] == nil {
			continue
		}
		if !errors.Is(errs[i], os.ErrPermission) {
			t.Errorf("%s without capabilities: %v, want os.ErrPermission", what, errs[i])
		}
	}
}
