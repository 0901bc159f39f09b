// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"regexp"
	"strings"
	"testing"
)

// withoutClsact takes clsact and the BPF classifier from the phone's kernel, as on one that was built without them, and
// gives them back after the test. TCX stays where the kernel has it. No interface may have a clsact qdisc now.
//
// They cannot come back by themselves: the guest has no program at kernel.modprobe (/sbin/modprobe), by which the kernel
// would load them on demand (Linux kernel/module/kmod.c).
func (p *phone) withoutClsact(t *testing.T) {
	t.Helper()
	const modules = "sch_ingress cls_bpf act_bpf"
	// Before the first is removed, since the second may refuse.
	t.Cleanup(func() { p.root(t, "modprobe -a "+modules) })
	p.root(t, "rmmod "+modules)
	const add = "tc qdisc add dev wlan0 clsact"
	out, code := p.run(t, "su -c '"+add+"'")
	if code == 0 {
		p.root(t, "tc qdisc del dev wlan0 clsact")
	}
	if code == 0 || !strings.Contains(out, "qdisc kind is unknown") {
		t.Fatalf("%s: exit code %d, want an unknown kind of qdisc:\n%s", add, code, out)
	}
}

// testWithoutClsact wants the phone as it was, after a test that had no clsact.
func testWithoutClsact(t *testing.T, p *phone) {
	before := p.root(t, "lsmod | sort")
	t.Run("while it is away", func(t *testing.T) { p.withoutClsact(t) })
	if after := p.root(t, "lsmod | sort"); after != before {
		t.Errorf("lsmod shows\n%s\nbefore\n%s", after, before)
	}
	p.root(t, "tc qdisc add dev wlan0 clsact")
	p.root(t, "tc filter show dev wlan0 ingress; tc qdisc del dev wlan0 clsact")
}

// lockDown raises the kernel's lockdown to "integrity" or "confidentiality", for as long as the phone runs: the kernel
// lets nobody lower it (kernel_lockdown(7)).
func (p *phone) lockDown(t *testing.T, level string) {
	t.Helper()
	const file = "/sys/kernel/security/lockdown"
	p.root(t, "echo "+level+" > "+file)
	if now := p.root(t, "cat "+file); !strings.Contains(now, "["+level+"]") {
		t.Fatalf("%s: %s, want %s", file, now, level)
	}
}

// testLockedDown captures under the lockdown that some phones have always (LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY).
func testLockedDown(t *testing.T, p *phone) {
	if now := p.root(t, "cat /sys/kernel/security/lockdown"); !regexp.MustCompile(`^\[none\] integrity confidentiality\b`).MatchString(now) {
		t.Fatalf("the phone begins with lockdown %s", now)
	}
	p.lockDown(t, "confidentiality")
	out := p.root(t, agent+" doctor")
	for _, want := range []string{"\n  lockdown: confidentiality\n", "\n  checked: no: ", "no program may read kernel memory", "\nready"} {
		if !strings.Contains(out, want) {
			t.Errorf("doctor does not say %q:\n%s", want, out)
		}
	}
	for _, object := range []string{"auto", "legacy"} {
		t.Run(object, func(t *testing.T) {
			line := "su -c '" + agent + " -i wlan0 --object " + object + " port 443'"
			got, want := p.compare(t, []string{"shell", line}, "wlan0", "port 443", func() { p.browse(t, peer) })
			same(t, got, want)
		})
	}
}
