// SPDX-License-Identifier: Apache-2.0

// Package boottime is time that counts on while the phone sleeps. The timers of package time run on CLOCK_MONOTONIC,
// which stands still then.
package boottime

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Now returns the time since the boot, sleep included (CLOCK_BOOTTIME).
func Now() time.Duration { return read(unix.CLOCK_BOOTTIME) }

// Awake returns the time since the boot without the time asleep (CLOCK_MONOTONIC), the clock of bpf_ktime_get_ns.
func Awake() time.Duration { return read(unix.CLOCK_MONOTONIC) }

func read(clock int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		panic("boottime: clock_gettime: " + err.Error()) // both clocks are older than bpf
	}
	return time.Duration(ts.Nano())
}

// Timer is a span of time that is over once. It wakes no phone: a span that ends in a sleep is over when the phone is
// awake again.
type Timer struct {
	// C is closed when the time is over, and never after Stop.
	C <-chan struct{}
	timerfd
}

// NewTimer starts a timer. A span that is not positive is over at once. The error is the kernel's, of which the caller
// had better end: file descriptors are used up, or a sandbox allows no timerfd.
func NewTimer(d time.Duration) (*Timer, error) {
	over := make(chan struct{})
	t := &Timer{C: over}
	// A time of 0 would stop the timer (timerfd_settime(2)).
	err := t.start(unix.CLOCK_BOOTTIME, 0, unix.NsecToTimespec(max(1, int64(d))), func(error) bool {
		close(over)
		return false
	})
	if err != nil {
		return nil, fmt.Errorf("start a timer on the boot clock: %w", err)
	}
	return t, nil
}

// Stop frees the timer, whether or not its time is over. It may be called once.
func (t *Timer) Stop() error { return t.Close() }

// OnSet calls f, on a goroutine of its own, each time that the wall clock's distance from CLOCK_MONOTONIC has changed:
// the clock was set (date, NTP's and the telephone network's steps, leap seconds), or the phone has slept. Slewing the
// clock changes no distance: both clocks are slewed alike. Nothing runs in between.
//
// Close ends it; f is not called any more when it has returned.
func OnSet(f func()) (io.Closer, error) {
	w := &timerfd{}
	// The timer itself ends in the year 2262. timerfd_create(2), TFD_TIMER_CANCEL_ON_SET, Linux 3.0: a read fails by
	// ECANCELED once for whatever happened since the last one, and the timer runs on.
	const flags = unix.TFD_TIMER_ABSTIME | unix.TFD_TIMER_CANCEL_ON_SET
	err := w.start(unix.CLOCK_REALTIME, flags, unix.NsecToTimespec(math.MaxInt64), func(err error) bool {
		if !errors.Is(err, unix.ECANCELED) {
			return false
		}
		f()
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("watch the wall clock: %w", err)
	}
	return w, nil
}

// timerfd is a timer of the kernel and the goroutine that reads it. The file is in the runtime's poller: it costs no
// thread and no wake-up.
type timerfd struct {
	file   *os.File
	reader sync.WaitGroup
}

// start sets the timer to a time and calls read with the result of each read until that returns false.
func (t *timerfd) start(clock, flags int, at unix.Timespec, read func(error) bool) error {
	fd, err := unix.TimerfdCreate(clock, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("timerfd_create", err)
	}
	if err := unix.TimerfdSettime(fd, flags, &unix.ItimerSpec{Value: at}, nil); err != nil {
		return errors.Join(os.NewSyscallError("timerfd_settime", err), unix.Close(fd))
	}
	t.file = os.NewFile(uintptr(fd), "timerfd")
	t.reader.Go(func() {
		expirations := make([]byte, 8)
		for {
			_, err := t.file.Read(expirations)
			if errors.Is(err, os.ErrClosed) || !read(err) {
				return
			}
		}
	})
	return nil
}

// Close frees the timer when its goroutine has ended.
func (t *timerfd) Close() error {
	err := t.file.Close()
	t.reader.Wait()
	return err
}
