// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"errors"
	"io/fs"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"droidtap/bpf"
)

func TestEveryProgramRuns(t *testing.T) {
	needRoot(t)
	for _, name := range bpf.Names() {
		t.Run(name, func(t *testing.T) {
			coll, err := ebpf.NewCollection(open(t, name))
			if err != nil {
				t.Fatalf("load: %+v", err)
			}
			defer coll.Close()
			c := &capture{Collection: coll}
			for program, p := range coll.Programs {
				if p.Type() == ebpf.Kprobe {
					continue // there is no test run for it; agent/probe/tlskey calls what it probes
				}
				if !slices.Contains(sockets, program) {
					c.run(t, program, loopback, frame(60))
				} else if n := c.keeps(t, program, frame(60)); n != 0 {
					t.Errorf("%s keeps %d bytes for an interface that nobody asked for", program, n)
				}
			}
		})
	}
}

func TestPacketObjectsHaveTheirPrograms(t *testing.T) {
	for _, name := range packetObjects() {
		t.Run(name, func(t *testing.T) {
			spec := open(t, name)
			for _, p := range programs {
				if spec.Programs[p.name] == nil {
					t.Errorf("no program %s", p.name)
				}
			}
			for _, name := range sockets {
				if p := spec.Programs[name]; p == nil || p.Type != ebpf.SocketFilter {
					t.Errorf("no socket filter %s", name)
				}
			}
			if len(spec.Programs) != len(programs)+len(sockets) {
				t.Errorf("%d programs", len(spec.Programs))
			}
		})
	}
}

func TestNamesAreSortedAndOpen(t *testing.T) {
	names := bpf.Names()
	if len(names) < 2 || !slices.IsSorted(names) {
		t.Errorf("names are %q", names)
	}
	for _, name := range names {
		open(t, name)
	}
}

func TestOpenTellsThatThereIsNoObject(t *testing.T) {
	for _, c := range []struct{ probe, variant string }{{"packet", "nosuch"}, {"nosuch", "ring"}} {
		if _, err := bpf.Open(c.probe, c.variant); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s %s: %v", c.probe, c.variant, err)
		}
	}
}

func TestEachCallerHasASpecOfItsOwn(t *testing.T) {
	first, second := open(t, bpf.Names()[0]), open(t, bpf.Names()[0])
	first.Maps["interfaces"].MaxEntries++
	if first.Maps["interfaces"].MaxEntries == second.Maps["interfaces"].MaxEntries {
		t.Error("a change of one is seen in the other")
	}
}
