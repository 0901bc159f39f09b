// SPDX-License-Identifier: Apache-2.0

package netd

import (
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/nettest"
)

func dumpOf(t *testing.T, s nettest.Space, cgroups ...string) (text string) {
	t.Helper()
	s.Must(t, func() (err error) {
		text, err = Dump(cgroups...)
		return err
	})
	return text
}

func TestDump(t *testing.T) {
	nettest.Require(t)
	s, _ := nettest.Pair(t)
	dir := newCgroup(t)
	n := start(t, s, Options{Cgroup: dir})
	must(t, n.Join("veth0"))
	must(t, n.Vendor("veth0"))
	must(t, n.Tether("veth0", "veth0"))
	tags := regexp.MustCompile(`tag [0-9a-f]{16}`)
	text := tags.ReplaceAllString(strings.ReplaceAll(dumpOf(t, s, dir), dir, "DIR"), "tag TAG")
	want := `cgroup DIR CGroupInetIngress flags 0x0 0 inet_ingress tag TAG
cgroup DIR CGroupGetsockopt flags 0x0 0 getsockopt tag TAG
cgroup DIR CGroupInet4Bind flags 0x0 0 inet4_bind tag TAG
filter veth0 egress bpf pref 1 protocol all handle 0x1 netd_vendor direct-action vendor tag TAG
filter veth0 ingress bpf pref 1 protocol all handle 0x1 netd_vendor direct-action vendor tag TAG
filter veth0 ingress bpf pref 2 protocol ipv6 handle 0x1 netd_tether6 direct-action tether6 tag TAG
filter veth0 ingress bpf pref 2 protocol ipv6 handle 0x2 netd_tether6 direct-action tether6 tag TAG
link lo type device up,loopback mtu 65536 promiscuity 0 allmulti 0
link veth0 type veth up mtu 1500 promiscuity 0 allmulti 0
qdisc lo noqueue handle 0: parent ffff:ffff
qdisc veth0 clsact handle ffff: parent ffff:fff1
qdisc veth0 noqueue handle 0: parent ffff:ffff
`
	for line := range strings.Lines(want) {
		if !strings.Contains(text, line) {
			t.Errorf("no line %q in\n%s", line, text)
		}
	}
}

// TestDumpShowsChanges makes a change, undoes it, and wants the first text again.
func TestDumpShowsChanges(t *testing.T) {
	nettest.Require(t, "tc")
	s, _ := nettest.Pair(t)
	for _, c := range []struct{ change, undo, shows string }{
		{"tc qdisc add dev veth0 clsact", "tc qdisc del dev veth0 clsact", "+qdisc veth0 clsact"},
		{"tc qdisc add dev veth0 ingress", "tc qdisc del dev veth0 ingress", "+qdisc veth0 ingress"},
		{"ip link set veth0 promisc on", "ip link set veth0 promisc off", "+link veth0 type veth up,promisc"},
		{"ip link set veth0 down", "ip link set veth0 up", "+link veth0 type veth down"},
		{"ip link add br0 type bridge", "ip link del br0", "+link br0 type bridge"},
	} {
		t.Run(c.change, func(t *testing.T) {
			before := dumpOf(t, s)
			s.Run(t, strings.Fields(c.change)...)
			during := dumpOf(t, s)
			if line := strings.TrimPrefix(c.shows, "+"); strings.Contains(before, line) || !strings.Contains(during, line) {
				t.Errorf("no new line %q:\n%s", line, during)
			}
			s.Run(t, strings.Fields(c.undo)...)
			if diff := cmp.Diff(before, dumpOf(t, s)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestObjects counts those of one program; what else this machine loads is left out.
func TestObjects(t *testing.T) {
	nettest.Require(t)
	ours := func() string {
		all, err := Objects()
		must(t, err)
		var lines []string
		for line := range strings.Lines(all) {
			if strings.Contains(line, `"clat_egress4"`) {
				lines = append(lines, line)
			}
		}
		return strings.Join(lines, "")
	}
	before := ours()
	p, err := load("clat_egress4", nil, nil)
	must(t, err)
	if got := ours(); got == before || !strings.HasPrefix(got, `bpf program SchedCLS "clat_egress4": `) {
		t.Errorf("with the program: %q, before: %q", got, before)
	}
	all, err := Objects()
	must(t, err)
	if !strings.Contains(all, `bpf map Array "counts": `) {
		t.Errorf("no map of counts in\n%s", all)
	}
	must(t, p.close())
	if got := ours(); got != before {
		t.Errorf("after: %q, before: %q", got, before)
	}
}
