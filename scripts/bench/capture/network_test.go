// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// Tests that need root are for make test-host, which has cgo; make test-pure has none.

package main

import (
	"io"
	"os"
	"testing"

	"droidtap/scripts/nettest"
)

// TestMain lets the test be what the bench is: its own sub-commands.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "enter" || os.Args[1] == "send") {
		if err := command(os.Args[1:]); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

// TestExpected: tcpdump has as many packets of each load as the bench expects, so that what it finds missing is a loss.
func TestExpected(t *testing.T) {
	nettest.Require(t, "tcpdump", "sysctl")
	b := newTestBench(t)
	for _, l := range loads() {
		if l.Rotated {
			continue // its traffic is another's, for longer
		}
		t.Run(l.Name, func(t *testing.T) {
			switch l.Of.Kind {
			case sockets:
				l.Of.Count = cycle
			case stream:
				l.Of.Count = 4 << 20
			default:
				l.Of.Count = 5001
			}
			c, err := b.capture(t.Context(), l, l.Tools[0])
			if err != nil {
				t.Fatal(err)
			}
			if c.lost() != 0 || c.Said.Captured != c.InFile {
				t.Errorf("%d of %d packets in the file, %d expected, %+v", c.InFile, c.Offered, c.Expected, c.Said)
			}
			if l.Of.Kind != stream && c.Offered != uint64(l.Of.Count) {
				t.Errorf("%d packets offered, %d wanted", c.Offered, l.Of.Count)
			}
			if c.Sender <= 0 || c.Kernel == c.Sender || c.Peak == 0 || c.Expected > 0 && c.Reader <= 0 {
				t.Errorf("measured nothing: %+v", c)
			}
		})
	}
}

// TestFlows: what is sent to many addresses passes the interface, all of it.
func TestFlows(t *testing.T) {
	nettest.Require(t, "sysctl")
	b := newTestBench(t)
	n, err := b.network(1, watched)
	if err != nil {
		t.Fatal(err)
	}
	of := traffic{Name: "flows", Kind: flows, Count: 70 * 1024, Flows: 70 * 1024, Links: 1, Near: true}
	if _, err := b.send(t.Context(), n, nil, of); err != nil {
		t.Error(err)
	}
}

func newTestBench(t *testing.T) *bench {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{self: self, dir: t.TempDir(), proc: os.DirFS("/proc"), nets: map[wanted]*network{}, log: io.Discard}
	if b.softirq, err = pidOf(b.proc, "ksoftirqd/0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	})
	return b
}
