// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openDummies(t *testing.T) *Events {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to watch all processes")
	}
	e, err := OpenAll(unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_DUMMY}, os.Getpagesize(), slog.New(slog.DiscardHandler))
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

func TestLeadIsToldOfNewEvents(t *testing.T) {
	e := openDummies(t)
	led := map[int]int{}
	var refuse error
	if err := e.Lead(func(cpu, fd int) error { led[cpu] = fd; return refuse }); err != nil {
		t.Fatal(err)
	}
	if len(led) != len(e.rings) || led[0] != e.rings[0].fd {
		t.Fatalf("of %d rings it was told %v", len(e.rings), led)
	}
	was := led[0]
	e.reequip(0)
	if led[0] == was {
		t.Error("it was not told of the new event")
	}
	refuse = unix.EMFILE
	rings := len(e.rings)
	if err := e.equip(0); !errors.Is(err, unix.EMFILE) || len(e.rings) != rings || e.rings[rings-1].retired {
		t.Errorf("the old event is given up, though nothing is led to the new one: %v", err)
	}
}

func TestWakeEndsAWait(t *testing.T) {
	e := openDummies(t)
	if err := e.Wake(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.Next(nil, time.Time{}); !errors.Is(err, ErrWoken) {
		t.Errorf("%v, want ErrWoken", err)
	}
	if _, _, err := e.Next(nil, time.Now()); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v: it is said once", err)
	}
}
