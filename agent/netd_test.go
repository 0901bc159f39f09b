// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/netd"
	"droidtap/scripts/nettest"
)

// ways are the agents that capture beside netd, by the hook they use where they can.
var ways = []struct {
	name  string
	agent []string
}{
	{"tcx", []string{"agent"}},
	{"tc", []string{"agent-old"}},
	{"only tc", []string{"agent", "--backend", "tc"}},
	{"packet", []string{"agent", "--backend", "packet"}},
}

// life is a capture beside netd, and what has been sent so far.
type life struct {
	*phone
	*nettest.Process
	way, file string
	ifnames   []string // that are captured
	sent      int
	clat      bool // the offload of the clat is on
	want      map[string]map[string]int
}

// step fails the test if netd was harmed by what was done, or a packet that is sent from now on is not in the file.
func (l *life) step(t *testing.T, what string) {
	t.Helper()
	if strings.HasSuffix(l.way, "tc") {
		for _, ifname := range l.ifnames {
			if ifname != clat || l.clat { // without the offload there is no clsact, and a packet socket has it
				l.awaitFirst(t, ifname)
			}
		}
	}
	if err := l.Check(); err != nil {
		t.Errorf("%s: netd misses something:\n%v", what, err)
	}
	seen, err := l.Seen()
	must(t, err)
	names := []string{"cgroup inet_egress", "cgroup inet_ingress", "cgroup sock_create"}
	for name := range seen {
		if !strings.HasPrefix(name, "cgroup ") {
			names = append(names, name)
		}
	}
	l.sent++
	text := fmt.Sprintf("packet %d behind %s", l.sent, what)
	err = l.CheckTraffic(func() error { return l.send(text) }, names...)
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	l.await(t, text)
}

// send has every interface see packets of both families.
func (l *life) send(text string) error {
	if err := l.askAll(text, "wlan0", "rmnet_data0", "ncm0"); err != nil || !l.clat {
		return err
	}
	return nettest.Ask(l.Space, "udp", l.beyond(), text+" clat.")
}

// await waits until the file has what was sent, and remembers what it is to have.
func (l *life) await(t *testing.T, text string) {
	t.Helper()
	want := map[string]map[string]int{}
	for _, ifname := range l.ifnames {
		both := map[string]int{ifname + " in": 1, ifname + " out": 1}
		if ifname != clat {
			want[text+" ipv4."], want[text+" ipv6."] = merge(want[text+" ipv4."], both), merge(want[text+" ipv6."], both)
		}
		switch {
		case !l.clat, ifname != clat && ifname != "rmnet_data0":
		case ifname == clat && l.way == "packet":
			// netd redirects what leaves here before the kernel shows it to packet sockets.
			want[text+" clat."] = merge(want[text+" clat."], map[string]int{ifname + " in": 1})
		default:
			want[text+" clat."] = merge(want[text+" clat."], both)
		}
	}
	for text, where := range want {
		awaitSightings(t, l.file, text, where)
		l.want[text] = where
	}
}

// end ends the capture and compares what is in the file with what was sent: each packet is there, once on each interface.
func (l *life) end(t *testing.T) {
	t.Helper()
	l.Stop(t, syscall.SIGINT)
	must(t, l.Check())
	f, err := nettest.Read(l.file)
	must(t, err)
	got := map[string]map[string]int{}
	for text := range l.want {
		got[text] = sightings(f, text)
	}
	if d := cmp.Diff(l.want, got); d != "" {
		t.Errorf("of %d steps (-want +got):\n%s\n%s", l.sent, abbreviate(d), l.Stderr())
	}
}

// TestBesideNetd has netd do all that it does, before a capture and during it: none of its objects suffers, all see their packets,
// and the capture has each packet that is sent after a step.
func TestBesideNetd(t *testing.T) {
	nettest.Require(t, "agent", "agent-old", "tc", "chroot")
	for _, c := range []struct {
		way     int
		ifnames string
		early   bool // netd has settled before the capture starts
	}{{0, "any", true}, {0, "wlan0", false}, {1, "any", true}, {1, "wlan0", false}, {2, "wlan0", true}, {3, "any", false}} {
		way := ways[c.way]
		name := fmt.Sprintf("%s %s, netd %s", way.name, c.ifnames, map[bool]string{true: "first", false: "last"}[c.early])
		t.Run(name, func(t *testing.T) { live(t, way.name, way.agent, c.ifnames, c.early) })
	}
}

func live(t *testing.T, way string, agent []string, ifnames string, early bool) {
	l := &life{phone: newPhone(t), way: way, file: filepath.Join(t.TempDir(), "life.pcapng"), want: map[string]map[string]int{}}
	l.ifnames = []string{"wlan0"}
	if ifnames == "any" {
		l.ifnames = []string{"wlan0", "rmnet_data0", "ncm0", clat}
	}
	if early {
		l.settle(t, func(string) {})
	}
	l.Process = l.phone.start(t, true, l.file, agent, "-i", ifnames)
	l.step(t, "the start")
	if !early {
		l.settle(t, func(what string) { l.step(t, what) })
	}
	for n := range 20 {
		must(t, l.Leave("wlan0"))
		must(t, l.chatter())
		if n%2 > 0 {
			l.Run(t, "ip", "link", "set", "wlan0", "down")
			l.Run(t, "ip", "link", "set", "wlan0", "up")
			l.Run(t, "ip", "-6", "addr", "replace", nettest.Near6+"/64", "dev", "wlan0", "nodad")
		}
		must(t, l.Join("wlan0"))
		must(t, l.chatter())
		if n%5 == 0 {
			must(t, l.DSCP("wlan0"))
			l.step(t, fmt.Sprint("reconnect ", n))
		}
	}
	l.step(t, "all reconnects")
	must(t, l.Restart())
	l.clat = false
	l.step(t, "a restart")
	l.settle(t, func(string) {})
	l.step(t, "all of it again")
	l.end(t)
}

// chatter sends both ways on wlan0 what may be lost: while a clsact is made or deleted, by whomever, the kernel drops what leaves
// (net/sched/sch_api.c qdisc_graft: dev_deactivate).
func (l *life) chatter() error {
	return errors.Join(l.Do(0, func() error { return sendUDP(nettest.Far4, 100) }), l.network.Do(0, func() error { return sendUDP(nettest.Near4, 100) }))
}

// settle is what netd does when the phone is on.
func (l *life) settle(t *testing.T, then func(what string)) {
	t.Helper()
	for _, s := range []struct {
		what string
		do   func() error
	}{
		{"wlan0 joining", func() error { return l.Join("wlan0") }},
		{"rmnet_data0 joining", func() error { return l.Join("rmnet_data0") }},
		{"ncm0 joining", func() error { return l.Join("ncm0") }},
		{"DSCP", func() error { return l.DSCP("wlan0") }},
		{"the vendor's filter", func() error { return l.Vendor("wlan0") }},
		{"clat", func() error { l.clat = true; return l.Clat(clat, "rmnet_data0", netd.DefaultTranslation) }},
		{"tethering", func() error { return l.Tether("rmnet_data0", "ncm0") }},
	} {
		if err := s.do(); err != nil {
			t.Errorf("%s: %v", s.what, err)
		}
		then(s.what)
	}
}
