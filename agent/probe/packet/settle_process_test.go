// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"droidtap/agent/apps"
	"droidtap/agent/owner"
	"droidtap/agent/pcapng"
	"droidtap/agent/process"
)

// TestSettleWaitsForProcess waits where only a process is wanted, and counts once.
func TestSettleWaitsForProcess(t *testing.T) {
	w := &oracle{rules: apps.Rules{Others: true}, answers: map[uint16]owner.Answer{near + 1: is(5), near + 2: is(5)}}
	d := owner.Patience
	s := settlerOf(t, w, &d, "--pid", "7")
	blocks := []pcapng.Block{in(1, pcapng.UIDUnknown), in(2, pcapng.UIDUnknown)}
	if done := s.Settle(blocks, false); done != 0 {
		t.Fatalf("%d are done with before the process is known", done)
	}
	d += namelessHolds
	w.inodes, w.holders = map[uint16]uint32{near + 1: 100}, map[uint32][]process.Process{100: {{PID: 7, Comm: "curl"}}}
	if done := s.Settle(blocks, false); done != 1 {
		t.Fatalf("%d are done with", done)
	}
	if got := blocks[0].(*pcapng.Packet).Comments; !slices.Equal(got, []string{"uid=5 pid=7 comm=curl"}) {
		t.Errorf("%q", got)
	}
	d = processPatience
	if done := s.Settle(blocks[1:], false); done != 1 || blocks[1] != nil {
		t.Fatalf("%d are done with, %v is left", done, blocks[1])
	}
	if got, want := s.counted(tun), "1 refused, 1 unattributed"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestSettleByCgroup asks for sockets only where a cgroup tells no process, and again for the name after some time.
func TestSettleByCgroup(t *testing.T) {
	w := &oracle{cgroups: map[uint64]process.Process{77: {PID: 42, Comm: "zygote64"}}}
	d := time.Second
	s := settlerOf(t, w, &d)
	packet := func(cgroup uint64) *pcapng.Packet {
		p := out(1, 10123)
		p.Cgroup = cgroup
		return p
	}
	check := func(want string, packets ...*pcapng.Packet) {
		t.Helper()
		if got := settled(t, s, packets...); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	check("uid=10123 pid=42 comm=zygote64", packet(77))
	w.cgroups[77] = process.Process{PID: 42, Comm: "com.example"}
	check("uid=10123 pid=42 comm=zygote64", packet(77))
	d += nameHolds
	check("uid=10123 pid=42 comm=com.example; uid=10123 pid=42 comm=com.example", packet(77), packet(77))
	if len(w.asked) > 0 {
		t.Errorf("asked: %q", w.asked)
	}
	w.inodes, w.holders = map[uint16]uint32{near + 1: 100}, map[uint32][]process.Process{100: {{PID: 7, Comm: "netd"}}}
	check("uid=10123 pid=7 comm=netd; uid=10123 pid=7 comm=netd", packet(1), packet(0))
	if d := cmp.Diff([]string{"socket of 257"}, w.asked); d != "" {
		t.Error(d)
	}
	w.names = map[uint32][]string{10123: {"com.example"}}
	check("uid=10123 pid=42 comm=com.example", packet(77))
	if err := s.follow(); err != nil { // an app was installed
		t.Fatal(err)
	}
	check("uid=10123 app=com.example pid=42 comm=com.example", packet(77))
}

// TestSettleByFlow remembers the process of a flow whose socket is gone, but not for another connection or user.
func TestSettleByFlow(t *testing.T) {
	const syn, ack = 2, 16
	w := &oracle{inodes: map[uint16]uint32{near: 100}, holders: map[uint32][]process.Process{100: {{PID: 7, Comm: "curl"}}}}
	var d time.Duration
	s := settlerOf(t, w, &d)
	packet := func(flags byte, uid uint32) *pcapng.Packet {
		p := out(0, uid)
		p.Data = tcp(near, far, flags)
		return p
	}
	for _, step := range []struct {
		rule   string
		packet *pcapng.Packet
		then   func()
		want   string
	}{
		{"it is asked for", packet(ack, 5), func() { w.inodes, w.holders = nil, nil }, "uid=5 pid=7 comm=curl"},
		{"it is remembered", packet(ack, 5), func() { d += nameHolds }, "uid=5 pid=7 comm=curl"},
		{"it is asked for again, and is gone", packet(ack, 5), nil, "uid=5 pid=7 comm=curl"},
		{"another connection", packet(syn, 5), func() { w.inodes = map[uint16]uint32{near: 200} }, "uid=5"},
		{"not each packet asks", packet(ack, 5), func() { d += namelessHolds }, "uid=5"},
		{"but each now and then", packet(ack, 5), func() { w.holders = map[uint32][]process.Process{200: {{PID: 8, Comm: "wget"}}} }, "uid=5"},
		{"a handful of packets later", packet(ack, 5), func() { d += namelessHolds }, "uid=5"},
		{"it is known", packet(ack, 5), func() { w.holders = nil }, "uid=5 pid=8 comm=wget"},
		{"another user", packet(ack, 6), nil, "uid=6"},
	} {
		if got := settled(t, s, step.packet); got != step.want {
			t.Errorf("%s: %s, want %s", step.rule, got, step.want)
		}
		if step.then != nil {
			step.then()
		}
	}
}

// TestSettlePortOfAnother has a port of UDP change hands between two processes of one user, at once.
func TestSettlePortOfAnother(t *testing.T) {
	w := &oracle{inodes: map[uint16]uint32{near: 100}, holders: map[uint32][]process.Process{100: {{PID: 7, Comm: "curl"}}, 200: {{PID: 8, Comm: "wget"}}}}
	var d time.Duration
	s := settlerOf(t, w, &d)
	check := func(want string) {
		t.Helper()
		if got := settled(t, s, out(0, 5)); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	check("uid=5 pid=7 comm=curl")
	check("uid=5 pid=7 comm=curl")
	if len(w.asked) != 1 {
		t.Errorf("asked %q", w.asked)
	}
	w.closes, w.inodes = 1, map[uint16]uint32{near: 200}
	check("uid=5 pid=8 comm=wget")
}
