// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"droidtap/agent/apps"
	"droidtap/agent/kernel"
	"droidtap/agent/plan"
	"droidtap/agent/plugin"
	"droidtap/android"
	"droidtap/bpf"
	"droidtap/scripts/nettest"
)

// TestFollowApps has the programs' map hold what the book says, as that changes.
func TestFollowApps(t *testing.T) {
	nettest.Require(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 1, MaxEntries: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	remembered, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(binary.Size(verdicts{})), MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer remembered.Close()
	w := &oracle{}
	s := &owners{owning: &owning{}, book: w, uids: m, verdicts: remembered, filled: map[uint32]bool{}, log: slog.New(slog.DiscardHandler)}
	for _, step := range []struct {
		rule string
		of   map[uint32]bool
		err  string
	}{
		{"at the start", map[uint32]bool{0: true, apps.AppID | 10123: true}, ""},
		{"an app is reinstalled", map[uint32]bool{0: true, apps.AppID | 10124: true}, ""},
		{"it is not wanted any more", map[uint32]bool{0: true, apps.AppID | 10124: false}, ""},
		{"all are gone", map[uint32]bool{}, ""},
		{"there are too many", map[uint32]bool{1: true, 2: true, 3: true, 4: true}, "have the programs filter by user id"},
	} {
		w.rules = apps.Rules{Of: step.of}
		var before, after verdicts
		err := errors.Join(remembered.Lookup(uint32(0), &before), remembered.Put(uint32(0), &verdicts{before.Generation, [256]uint64{7: 1}}))
		if err != nil {
			t.Fatal(err)
		}
		err = s.follow()
		if e := remembered.Lookup(uint32(0), &after); e != nil || after != (verdicts{Generation: before.Generation + 2}) {
			t.Errorf("%s: the programs remember %+v, %v", step.rule, after, e)
		}
		switch {
		case step.err == "" && err != nil:
			t.Fatalf("%s: %v", step.rule, err)
		case step.err != "":
			if err == nil || !strings.Contains(err.Error(), step.err) {
				t.Errorf("%s: %v", step.rule, err)
			}
			continue
		}
		held := map[uint32]bool{}
		var uid uint32
		var pass uint8
		for all := m.Iterate(); all.Next(&uid, &pass); {
			held[uid] = pass == 1
		}
		if d := cmp.Diff(step.of, held); d != "" {
			t.Errorf("%s: %s", step.rule, d)
		}
		if !maps.Equal(s.view.Load().Of, step.of) {
			t.Errorf("%s: behind the programs it is %v", step.rule, s.view.Load().Of)
		}
	}
}

// TestListThatWasChosen says of a list that the user named that it is not there, where its absence would else be taken for a PC's.
func TestListThatWasChosen(t *testing.T) {
	nettest.Require(t)
	dir := t.TempDir()
	for _, c := range []struct {
		args   []string
		said   string
		failed bool
	}{
		{[]string{"--packages", filepath.Join(dir, "none")}, "no app is known by its name", false},
		{[]string{"--packages", filepath.Join(dir, "none"), "--app", "com.a"}, "no list of packages at", false},
		{[]string{"--packages", dir}, "", true},
		{nil, "", false},
	} {
		o, err := parsed(t, c.args...)
		if err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		s, err := openOwners(&o, new(ports), nil, newClock(plan.Boottime).kernel, slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelWarn})))
		if (err != nil) != c.failed {
			t.Fatalf("%q: %v", c.args, err)
		}
		if err == nil {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		if got := said.String(); !strings.Contains(got, c.said) || strings.Count(got, "\n") > 1 || c.said == "" && got != "" {
			t.Errorf("%q: it says %q", c.args, got)
		}
	}
}

// TestFirst takes the uid of an app of the first user for all of its.
func TestFirst(t *testing.T) {
	for _, tc := range []struct {
		of   map[uint32]bool
		want uint32
		ok   bool
	}{
		{map[uint32]bool{apps.AppID | 10123: true, 1010122: true}, 10123, true},
		{map[uint32]bool{apps.AppID | 10123: true, 10122: false, 10124: true}, 10123, true},
		{map[uint32]bool{0: true, 5: true}, 0, true},
		{map[uint32]bool{5: false}, 0, false},
		{nil, 0, false},
	} {
		if uid, ok := first(apps.Rules{Of: tc.of}); uid != tc.want || ok != tc.ok {
			t.Errorf("%v: %d, %t", tc.of, uid, ok)
		}
	}
}

// TestSetOwners gives the programs of each object what they need for owners, and no more.
func TestSetOwners(t *testing.T) {
	types := kernel.Types{Offsets: kernel.Offsets{SockUID: 1, SockCgroup: 2, CgroupNode: 3, NodeID: 4, TaskTgid: 5}}
	unused := settings{Others: 1, Unattributed: 1}
	for _, tc := range []struct {
		rule  string
		args  []string
		whose apps.Selection
		want  settings
		uids  uint32
	}{
		{"nobody asks", []string{"--comments", "none"}, apps.Selection{}, unused, 1},
		{"comments", nil, apps.Selection{}, settings{Owner: ownerTell, Others: 1, Unattributed: 1, Cgroups: 1, SockUID: 1, SockCgroup: 2, CgroupNode: 3, NodeID: 4}, 1},
		{"some are wanted, and nobody asks for processes", []string{"--comments", "none", "--unattributed", "drop"}, apps.Selection{Apps: []string{"a"}},
			settings{Owner: ownerFilter, SockUID: 1, SockCgroup: 2, CgroupNode: 3, NodeID: 4}, mostUIDs},
		{"some are wanted", []string{"--unattributed", "drop"}, apps.Selection{Apps: []string{"a"}},
			settings{Owner: ownerFilter, Cgroups: 1, SockUID: 1, SockCgroup: 2, CgroupNode: 3, NodeID: 4}, mostUIDs},
		{"some are not", []string{"--unattributed", "keep"}, apps.Selection{NotUIDs: []uint32{5}},
			settings{Owner: ownerFilter, Others: 1, Unattributed: 1, Cgroups: 1, SockUID: 1, SockCgroup: 2, CgroupNode: 3, NodeID: 4}, mostUIDs},
	} {
		for _, variant := range []plan.Variant{plan.Ring, plan.Legacy} {
			t.Run(tc.rule+" "+string(variant), func(t *testing.T) {
				o, err := parsed(t, tc.args...)
				if err != nil {
					t.Fatal(err)
				}
				o.whose = tc.whose
				spec, err := bpf.Open("packet", string(variant))
				if err != nil {
					t.Fatal(err)
				}
				large := spec.Maps["shared_flows"].MaxEntries
				s := &source{options: options{owning: o}}
				var got settings
				s.setOwners(&got, spec, plugin.Target{Types: types})
				if d := cmp.Diff(tc.want, got); d != "" {
					t.Error(d)
				}
				if n := spec.Maps["uids"].MaxEntries; n != tc.uids {
					t.Errorf("room for %d uids", n)
				}
				if n := spec.Maps["shared_flows"].MaxEntries; (n == large) != o.told() || n != large && n != 1 {
					t.Errorf("room for %d flows", n)
				}
				if s.lookup.Load() != (o.told() && variant == plan.Ring) {
					t.Errorf("lookup: %t", s.lookup.Load())
				}
			})
		}
	}
}

// TestUnattributed counts what the programs could not tell and we neither, and says so in the last statistics only.
func TestUnattributed(t *testing.T) {
	nettest.Require(t)
	for keep, want := range map[bool]string{true: "unattributed=9 kept", false: "unattributed=9 left out"} {
		m := makeCounters(t, 4)
		s := &source{counters: m, options: options{owning: owning{comments: commentAll, keep: keep}}}
		wlan, _ := s.ports.add(android.Interface{Index: 5, Name: "wlan0", Type: 1})
		s.ports.add(android.Interface{Index: 6, Name: "wlan1", Type: 1})
		for index, n := range map[uint32]uint64{5: 7, 6: 0} {
			m.put(t, index, counts{Received: 20, Unattributed: n})
		}
		wlan.unattributed.Add(2)
		wlan.refused.Add(3)
		c, err := s.Counts(nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.Unattributed != 9 || c.Refused != 3 || c.Received != 40 || c.Interfaces[0].Accepted != 17 {
			t.Errorf("%+v", c)
		}
		if c.Interfaces[0].Comment != want || c.Interfaces[1].Comment != "" {
			t.Errorf("%q and %q, want %q", c.Interfaces[0].Comment, c.Interfaces[1].Comment, want)
		}
	}
}

// TestFillMapsTogether prepares programs for a new expression while the keeper does so for an interface that came: for the race
// detector.
func TestFillMapsTogether(t *testing.T) {
	s := &source{options: options{owning: owning{comments: commentAll}}}
	var specs []*ebpf.CollectionSpec
	for range 2 {
		spec, err := bpf.Open("packet", string(plan.Ring))
		if err != nil {
			t.Fatal(err)
		}
		specs = append(specs, spec)
	}
	var run sync.WaitGroup
	for _, spec := range specs {
		run.Go(func() {
			if err := s.fillMaps(spec, plugin.Target{}, 1); err != nil {
				t.Error(err)
			}
		})
	}
	run.Wait()
}
