// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"strings"
	"testing"

	"droidtap/scripts/netd"
)

// netd does a command of the phone's netd and returns what it prints.
func (p *phone) netd(t *testing.T, command string) string {
	t.Helper()
	return p.shell(t, "/lab/phone netd "+command)
}

// startNetd starts netd in the phone's network namespace until the test ends, at the root of its cgroups. Meanwhile it is where
// Android has it, by which the agent knows that it is there.
func (p *phone) startNetd(t *testing.T) {
	t.Helper()
	p.root(t, "ln -s /lab/phone /system/bin/netd && /system/bin/netd start")
	t.Cleanup(func() { p.root(t, "/system/bin/netd quit; rm /system/bin/netd") })
}

// clat gives the phone IPv4 by NAT64 over rmnet_data0, with the peer as the server 198.51.100.7, until the test ends.
func (p *phone) clat(t *testing.T) {
	t.Helper()
	local6 := netd.DefaultTranslation.Local6.String()
	p.root(t, "ip tuntap add dev v4-rmnet_data0 mode tun && ip addr add 192.0.0.4/32 dev v4-rmnet_data0 &&"+
		" ip link set v4-rmnet_data0 up && ip route add 198.51.100.0/24 dev v4-rmnet_data0 &&"+
		" ip -n peer addr add 64:ff9b::c633:6407/128 dev lo && ip -n peer route add "+local6+" dev rmnet_data0 src 64:ff9b::c633:6407")
	t.Cleanup(func() {
		p.root(t, "ip link del v4-rmnet_data0; ip -n peer route del "+local6+" dev rmnet_data0; ip -n peer addr del 64:ff9b::c633:6407/128 dev lo")
	})
	p.netd(t, "clat v4-rmnet_data0 rmnet_data0")
	t.Cleanup(func() { p.netd(t, "unclat v4-rmnet_data0") })
}

// testNetd does on the phone's kernel what ../netd's own tests do on that of the host, and what the host's has not.
func testNetd(t *testing.T, p *phone) {
	dump := func() string { return p.root(t, "/lab/phone netd dump /sys/fs/cgroup") }
	p.startNetd(t)
	before := dump()
	for _, command := range []string{"join wlan0", "join rmnet_data0", "vendor wlan0", "dscp wlan0", "dscp rmnet_data0", "police rmnet_data0", "tether rmnet_data0 wlan0"} {
		p.netd(t, command)
	}
	if out, code := p.run(t, "/lab/phone netd police wlan0"); code != 1 || !strings.Contains(out, "preference 1 is taken by bpf") {
		t.Errorf("police beside the vendor: exit code %d: %s", code, out)
	}
	t.Run("clat", func(t *testing.T) {
		p.clat(t)
		p.netd(t, "mark")
		p.shell(t, "/lab/phone udp -n 3 198.51.100.7:7 && /lab/phone fetch http://198.51.100.7/")
		p.netd(t, "grown clat_egress4 clat_ingress6 account 'rmnet_data0 ingress tether6'")
		for line := range strings.Lines(p.netd(t, "seen")) {
			if strings.Contains(line, "clat_") && strings.HasSuffix(line, " 0\n") {
				t.Errorf("nothing is translated: %s", line)
			}
		}
		p.netd(t, "check")
	})
	p.netd(t, "mark")
	p.browse(t, peer)
	p.browse(t, cell)
	p.netd(t, "grown 'wlan0 egress' 'rmnet_data0 egress' vendor account tether4 inet_egress inet_ingress sock_create")
	p.netd(t, "check")
	p.netd(t, "objects")
	p.netd(t, "leave wlan0")
	p.netd(t, "leave rmnet_data0")
	p.netd(t, "check")
	if after := dump(); after != before {
		t.Errorf("the dump is\n%s\nbefore it was\n%s", after, before)
	}
	p.netd(t, "join wlan0")
	p.netd(t, "restart")
	p.netd(t, "check")
	if after := dump(); after != before {
		t.Errorf("after a restart the dump is\n%s\nbefore it was\n%s", after, before)
	}
}
