// SPDX-License-Identifier: Apache-2.0

package boottime

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is for anything that is to happen.
const patience = 30 * time.Second

func TestNow(t *testing.T) {
	awake, now, later := Awake(), Now(), Now()
	if now < awake {
		t.Errorf("%v since the boot, %v of it awake", now, awake)
	}
	if later < now || later > now+patience {
		t.Errorf("%v, then %v", now, later)
	}
}

func TestTimer(t *testing.T) {
	for _, tc := range []struct {
		rule string
		span time.Duration
	}{
		{"a span of time", 20 * time.Millisecond},
		{"the shortest", 1},
		{"none is over at once", 0},
		{"less than none is over at once", -time.Hour},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			start := Now()
			timer, err := NewTimer(tc.span)
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-timer.C:
			case <-time.After(patience):
				t.Fatal("is not over")
			}
			if took := Now() - start; took < tc.span {
				t.Errorf("was over after %v", took)
			}
			if err := timer.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestStop ends timers long before their time, and leaves nothing behind.
func TestStop(t *testing.T) {
	before := descriptors(t)
	for range 100 {
		timer, err := NewTimer(time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if err := timer.Stop(); err != nil { // waits for the goroutine
			t.Fatal(err)
		}
		select {
		case <-timer.C:
			t.Fatal("a stopped timer is over")
		default:
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d file descriptors, %d before", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// TestNoDescriptor gives the kernel's error where no timer can be had.
func TestNoDescriptor(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	_, timerErr := NewTimer(time.Hour)
	_, setErr := OnSet(func() {})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{timerErr, setErr} {
		if !errors.Is(err, unix.EMFILE) {
			t.Errorf("%v, want EMFILE", err)
		}
	}
}

// TestOnSetEnds closes a watcher that nothing wakes: no test sets this machine's clock, scripts/lab sets a phone's.
func TestOnSetEnds(t *testing.T) {
	before := descriptors(t)
	called := make(chan struct{}, 1)
	w, err := OnSet(func() { called <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-called:
		t.Error("the clock was set")
	default:
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d file descriptors, %d before", after, before)
	}
}
