// SPDX-License-Identifier: Apache-2.0

package packet

import (
	"slices"
	"testing"
	"time"

	"droidtap/android"
	"droidtap/scripts/nettest"
)

// TestStale forgets what left long ago, and the oldest of many, but nothing that is still counted.
func TestStale(t *testing.T) {
	const now = time.Hour
	for _, c := range []struct {
		rule string
		left func(n int) departure // of 300 indexes, n ago in seconds
		want int
	}{
		{"the last ones are remembered", func(n int) departure { return departure{at: now - time.Duration(n)*time.Second, folded: true} }, 300 - mostLeft},
		{"for ten minutes", func(n int) departure { return departure{at: now - time.Duration(n)*30*time.Second, folded: true} }, 300 - 20},
		{"until they are counted", func(n int) departure { return departure{at: now - time.Duration(n)*time.Second} }, 0},
	} {
		t.Run(c.rule, func(t *testing.T) {
			p := ports{left: map[uint32]departure{}}
			for n := range 300 {
				p.left[uint32(n+1)] = c.left(n)
			}
			stale := p.stale(now)
			if len(stale) != c.want {
				t.Fatalf("%d are forgotten, want %d", len(stale), c.want)
			}
			if len(stale) > 0 && int(slices.Min(stale)) != 300-c.want+1 {
				t.Errorf("a later one than others is forgotten: %d", slices.Min(stale))
			}
		})
	}
}

// TestCountIndex makes room for interfaces that come faster than those that left are folded, and keeps what was counted.
func TestCountIndex(t *testing.T) {
	nettest.Require(t)
	c := makeCounters(t, 5) // one of them for index 0
	s := &source{counters: c}
	const interfaces = 20
	var of *port
	for index := 1; index <= interfaces; index++ {
		if err := s.countIndex(index); err != nil {
			t.Fatalf("interface %d: %v", index, err)
		}
		of, _ = s.ports.add(android.Interface{Index: index, Name: "tun0", Type: 1})
		c.put(t, uint32(index), counts{In: 1})
		s.ports.leave(index, 0, true)
	}
	if sum, err := s.total(of); err != nil || sum.In != interfaces {
		t.Errorf("%d packets are counted, want %d (%v)", sum.In, interfaces, err)
	}
	for index := 100; ; index++ {
		err := s.countIndex(index)
		s.ports.add(android.Interface{Index: index, Name: "tun0", Type: 1})
		s.ports.leave(index, 0, false)
		if err == nil && index < 104 {
			continue
		}
		if err == nil {
			t.Error("one that is there may be counted still, and is folded")
		}
		return
	}
}

// TestPortIsToldAnew tells when the file is to be told of an interface.
func TestPortIsToldAnew(t *testing.T) {
	s := &source{}
	for _, c := range []struct {
		rule  string
		ifc   android.Interface
		fresh bool
	}{
		{"it is new", android.Interface{Index: 5, Name: "tun0", Type: 65534}, true},
		{"it is what it was", android.Interface{Index: 5, Name: "tun0", Type: 65534}, false},
		{"it has another index", android.Interface{Index: 6, Name: "tun0", Type: 65534}, true},
		{"it is of another kind without Ethernet header", android.Interface{Index: 6, Name: "tun0", Type: 519}, true},
		{"another one is new", android.Interface{Index: 7, Name: "tun1", Type: 519}, true},
	} {
		p, fresh := s.ports.add(c.ifc)
		block := s.describe(p)
		if fresh != c.fresh || block.Kernel != uint32(c.ifc.Index) || block.Hardware != c.ifc.Type || block.Name != c.ifc.Name {
			t.Errorf("%s: fresh %v, %+v", c.rule, fresh, block)
		}
	}
}
