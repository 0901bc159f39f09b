// SPDX-License-Identifier: Apache-2.0

package bpf_test

import (
	"errors"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"

	"droidtap/bpf"
)

// TestEveryProgramRuns is where the kernel is not told of functions, too.
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

// TestVerifierLooksAtFunctionsOnce: what the kernel's verifier goes through is most of what a start takes, on phones above all. With the
// functions looked at for each call it is more than twice as much.
func TestVerifierLooksAtFunctionsOnce(t *testing.T) {
	needRoot(t)
	const most = 8000 // of 1,000,000, for a program that tells owners by sockets; Linux 6.18 needs 4,764
	spec := open(t, "packet.ring.o")
	if err := bpf.TellFunctions(spec); err != nil {
		t.Fatal(err)
	}
	lookup := tiers[slices.IndexFunc(tiers, func(t tier) bool { return t.lookup })]
	set := lookup.offsets(t, settings{Snaplen: 96, Directions: both, Wakeup: 1 << 20, Owner: tell})
	if err := spec.Variables["settings"].Set(set); err != nil {
		t.Fatal(err)
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}})
	if err != nil {
		t.Fatal(err)
	}
	defer coll.Close()
	for _, p := range programs {
		// kernel/bpf/verifier.c, print_verification_stats
		m := processed.FindStringSubmatch(coll.Programs[p.name].VerifierLog)
		if m == nil {
			t.Fatalf("%s: no statistics: %s", p.name, coll.Programs[p.name].VerifierLog)
		}
		if n, _ := strconv.Atoi(m[1]); n > most {
			t.Errorf("%s: the verifier goes through %d instructions, at most %d are wanted", p.name, n, most)
		}
	}
}

var processed = regexp.MustCompile(`(?m)^processed (\d+) insns`)

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
