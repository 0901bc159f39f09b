// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"bufio"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// cgroupPath is the directory of the test's cgroup of version 2.
func cgroupPath(t *testing.T) string {
	t.Helper()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skip(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Skip(err)
	}
	at := ""
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); slices.Contains(f, "cgroup2") {
			at = f[4]
		}
	}
	for lines := bufio.NewScanner(strings.NewReader(string(own))); lines.Scan(); {
		if path, ok := strings.CutPrefix(lines.Text(), "0::"); ok && at != "" {
			return at + path
		}
	}
	t.Skip("no cgroup of version 2")
	return ""
}

func watchIn(t testing.TB, s nettest.Space, room int) *Watcher {
	t.Helper()
	var w *Watcher
	s.Must(t, func() (err error) {
		w, err = watch(room)
		return err
	})
	t.Cleanup(func() { _ = w.Close() })
	if err := w.file.SetReadDeadline(time.Now().Add(nettest.Patience)); err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWatch(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	w := watchIn(t, s, room)
	for _, c := range []struct{ rule, local, to string }{
		{"IPv4", "127.0.0.1:0", ""},
		{"IPv4, connected", "127.0.0.1:0", "127.0.0.1"},
		{"IPv6", "[::]:0", ""},
		{"both families, connected", "[::]:0", "::ffff:127.0.0.1"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			e := socketOf(t, s, clientUID, unix.SOCK_DGRAM, c.local)
			remote := uint16(0)
			if c.to != "" {
				remote = 9
				e.connect(t, c.to, remote)
			}
			port := e.port(t)
			e.close(t)
			closed, lost, err := w.Next()
			if err != nil || lost || len(closed) != 1 {
				t.Fatalf("Next: %v, %v, %v", closed, lost, err)
			}
			if got := closed[0]; got.Protocol != unix.IPPROTO_UDP || got.Local.Port() != port || got.Remote.Port() != remote ||
				c.to != "" && got.Remote.Addr().String() != "127.0.0.1" {
				t.Errorf("Next: %+v, want port %d", got, port)
			}
		})
	}
	t.Run("a TCP listener, and no connection", func(t *testing.T) {
		l := socketOf(t, s, clientUID, unix.SOCK_STREAM, "127.0.0.1:0")
		l.listen(t)
		port := l.port(t)
		c := socketOf(t, s, clientUID, unix.SOCK_STREAM, "127.0.0.1:0")
		c.connect(t, "127.0.0.1", port)
		l.accept(t).close(t)
		c.close(t)
		l.close(t)
		closed, lost, err := w.Next()
		if err != nil || lost || len(closed) != 1 || closed[0].Protocol != unix.IPPROTO_TCP || closed[0].Local.Port() != port {
			t.Errorf("Next: %+v, %v, %v, want the listener of port %d", closed, lost, err, port)
		}
	})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Next(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Next after Close: %v", err)
	}
}

func TestWatchLoses(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	w := watchIn(t, s, 1)
	// How many messages fit is the kernel's business. More than a work queue would hold back are closed.
	for range 500 {
		socketOf(t, s, clientUID, unix.SOCK_DGRAM, "127.0.0.1:0").close(t)
	}
	lost := false
	for seen := 0; !lost && seen < 500; {
		closed, l, err := w.Next()
		if err != nil {
			t.Fatalf("after %d: %v", seen, err)
		}
		seen, lost = seen+len(closed), l
	}
	if !lost {
		t.Error("nothing was lost in a buffer for some sockets")
	}
	// It goes on. What was lost with another one may be the next message as well.
	for lost {
		last := socketOf(t, s, clientUID, unix.SOCK_DGRAM, "127.0.0.1:0")
		port := last.port(t)
		last.close(t)
		for heard := false; !heard; {
			var closed []Socket
			var err error
			if closed, lost, err = w.Next(); err != nil {
				t.Fatal(err)
			}
			heard = lost || slices.ContainsFunc(closed, func(s Socket) bool { return s.Local.Port() == port })
		}
	}
}

// BenchmarkLate tells how long after close(2) the message is there.
func BenchmarkLate(b *testing.B) {
	nettest.Require(b)
	s := nettest.NewSpace(b)
	w := watchIn(b, s, room)
	var all []time.Duration
	for b.Loop() {
		b.StopTimer()
		e := socketOf(b, s, clientUID, unix.SOCK_DGRAM, "127.0.0.1:0")
		b.StartTimer()
		begin := time.Now()
		e.close(b)
		if _, _, err := w.Next(); err != nil {
			b.Fatal(err)
		}
		all = append(all, time.Since(begin))
	}
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "µs-p99")
	b.ReportMetric(float64(all[len(all)-1].Microseconds()), "µs-max")
}
