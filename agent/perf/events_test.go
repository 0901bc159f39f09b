// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

const patience = 20 * time.Second

var over = time.Unix(1, 0) // a deadline for a look

// named opens events of names that processes and threads get, and has the rest of the test run on a processor.
func named(t *testing.T, cpu int) *Events {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to watch all processes")
	}
	runtime.LockOSThread() // and not unlocked: the thread ends with the test's goroutine
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		t.Skipf("processor %d cannot be had: %v", cpu, err)
	}
	e, err := OpenAll(attr(), os.Getpagesize(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func attr() unix.PerfEventAttr {
	return unix.PerfEventAttr{
		Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY,
		Bits: unix.PerfBitComm | unix.PerfBitWatermark, Wakeup: 1,
	}
}

// emit gives the thread a name, of which a record tells.
func emit(t *testing.T, name string) {
	t.Helper()
	b := append([]byte(name), 0)
	if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0); err != nil {
		t.Fatal(err)
	}
}

// awaits waits for the record of a name, and tells whether it is told of new events ahead of it.
func (e *Events) awaits(t *testing.T, name string) (fresh bool) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		rec, body, err := e.Next(nil, end)
		switch {
		case errors.Is(err, ErrFresh):
			fresh = true
		case err != nil:
			t.Fatalf("%s: %v", name, err)
		case rec.Type == unix.PERF_RECORD_COMM && bytes.HasPrefix(body[8:], append([]byte(name), 0)):
			return fresh
		}
	}
}

// empty reads what there is, and tells whether that is a name.
func (e *Events) empty(t *testing.T, name string) (has bool) {
	t.Helper()
	for {
		_, body, err := e.Next(nil, over)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return has
		}
		if err != nil {
			t.Fatal(err)
		}
		has = has || bytes.Contains(body, []byte(name))
	}
}

// TestEventsOfReturningProcessor opens the event of a processor anew that has lost it, and no other.
func TestEventsOfReturningProcessor(t *testing.T) {
	const cpu = 0
	for _, c := range []struct {
		rule  string
		again func(*testing.T, *Events)
	}{
		{"a sleep", func(_ *testing.T, e *Events) { e.resumed() }},
		{"an uevent", func(t *testing.T, e *Events) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Close(pair[1]) })
			_ = unix.Close(e.uevents)
			e.uevents = pair[0]
			e.watch()
			for _, n := range []int{30000, cpu} {
				if _, err := unix.Write(pair[1], fmt.Appendf(nil, "%s%d\x00ACTION=online\x00", uevent, n)); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"no uevent", func(t *testing.T, e *Events) {
			for _, list := range []string{"1-3\n", "0-3\n"} {
				e.compared = time.Time{}
				e.online = func() ([]byte, error) { return []byte(list), nil }
				if _, err := e.wait(over); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			e := named(t, cpu)
			e.compared = time.Now().Add(time.Hour)
			opened := len(e.rings)
			emit(t, "one")
			if e.awaits(t, "one") {
				t.Error("the first events are fresh ones")
			}
			e.resumed()
			if e.empty(t, "one") || len(e.rings) != opened || !e.rings[0].alive() {
				t.Errorf("%d rings, %d at the start: the events are alive", len(e.rings), opened)
			}
			emit(t, "two")
			// What the kernel does when the processor goes offline: the event is on none.
			if err := unix.IoctlSetInt(e.rings[0].fd, unix.PERF_EVENT_IOC_DISABLE, 0); err != nil {
				t.Fatal(err)
			}
			if e.rings[0].alive() {
				t.Error("an event that is off is alive")
			}
			emit(t, "lost")
			c.again(t, e)
			fresh := e.awaits(t, "two")
			for end := time.Now().Add(patience); !fresh; {
				_, _, err := e.Next(nil, end)
				if fresh = errors.Is(err, ErrFresh); err != nil && !fresh {
					t.Fatal(err)
				}
			}
			emit(t, "three")
			if e.awaits(t, "three") {
				t.Error("fresh twice")
			}
			if e.empty(t, "lost") || len(e.rings) != opened {
				t.Errorf("%d rings, %d at the start", len(e.rings), opened)
			}
		})
	}
}

// TestEventsEnd ends a wait without a deadline, and leaves nothing behind.
func TestEventsEnd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to watch all processes")
	}
	before := nettest.HeldByPerf(t)
	for range 10 {
		e, err := OpenAll(attr(), os.Getpagesize(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			for {
				if _, _, err := e.Next(nil, time.Time{}); err != nil {
					ended <- err
					return
				}
			}
		}()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		select {
		case err := <-ended:
			if !errors.Is(err, os.ErrClosed) {
				t.Errorf("%v, want %v", err, os.ErrClosed)
			}
		case <-time.After(patience):
			t.Fatal("the wait does not end")
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := OpenAll(attr(), 1<<50, slog.New(slog.DiscardHandler)); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("rings larger than memory: %v, want ENOMEM", err)
	}
	if after := nettest.HeldByPerf(t); after != before {
		t.Errorf("%s, %s before", after, before)
	}
}

func TestLast(t *testing.T) {
	for list, want := range map[string]int{"0-7\n": 7, "0\n": 0, "0,2-3,12\n": 12, "": 0, "x": 0} {
		if got := last(list); got != want {
			t.Errorf("%q: %d, want %d", list, got, want)
		}
	}
}
