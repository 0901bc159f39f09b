// SPDX-License-Identifier: Apache-2.0

package lab

import "testing"

// testClean wants tc as it was before: after an end by SIGINT, after a run that
// was killed and the next one, and with a stranger's qdisc and filter there.
func testClean(t *testing.T, p *phone) {
	tc := func(t *testing.T) string {
		return p.root(t, "tc qdisc show dev wlan0; tc filter show dev wlan0 ingress; tc filter show dev wlan0 egress")
	}
	once := func(t *testing.T) {
		got, want := p.compare(t, []string{"shell", "su -c '" + agent + " -i wlan0 port 443'"}, "wlan0", "port 443", func() { p.browse(t, peer) })
		same(t, got, want)
	}
	check := func(t *testing.T) {
		before := tc(t)
		once(t)
		if after := tc(t); after != before {
			t.Errorf("after SIGINT tc shows\n%s\nbefore\n%s", after, before)
		}
		a := p.start(t, "shell", "su -c '"+agent+" -i wlan0 port 443'")
		a.until(t, readyLine)
		p.root(t, "pkill -KILL -x agent")
		if code := a.end(t); code == 0 {
			t.Error("exit code 0 after SIGKILL")
		}
		once(t)
		if after := tc(t); after != before {
			t.Errorf("after SIGKILL and another run tc shows\n%s\nbefore\n%s", after, before)
		}
	}
	t.Run("alone", check)
	t.Run("adb is interrupted", func(t *testing.T) {
		before := tc(t)
		a := p.start(t, "shell", "su -c '"+agent+" -i wlan0 port 443'")
		path := a.until(t, readyLine)[1]
		p.browse(t, peer)
		a.interrupt(t)
		eventually(t, "the agent ends", func() bool {
			_, code := p.run(t, "su -c 'pgrep -x agent'")
			return code == 1
		})
		if after := tc(t); after != before {
			t.Errorf("tc shows\n%s\nbefore\n%s", after, before)
		}
		if _, got := read(t, p.pull(t, path)); len(got) == 0 {
			t.Error("the file holds no packet")
		}
	})
	t.Run("beside netd", func(t *testing.T) {
		// netd counts on a clsact that it finds, so an empty one is left.
		p.root(t, "touch /system/bin/netd")
		t.Cleanup(func() { p.root(t, "rm /system/bin/netd; tc qdisc del dev wlan0 clsact 2>/dev/null; true") })
		once(t)
		const show = "tc filter show dev wlan0 ingress; tc filter show dev wlan0 egress"
		if left := p.root(t, show); left != "" {
			t.Errorf("filters are left:\n%s", left)
		}
	})
	t.Run("beside a stranger", func(t *testing.T) {
		p.root(t, "tc qdisc add dev wlan0 clsact")
		t.Cleanup(func() { p.root(t, "tc qdisc del dev wlan0 clsact") })
		for _, way := range []string{"ingress", "egress"} {
			p.root(t, "tc filter add dev wlan0 "+way+" pref 7 protocol all u32 match u32 0 0 action continue")
		}
		check(t)
	})
}
