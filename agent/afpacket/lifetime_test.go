// SPDX-License-Identifier: Apache-2.0

package afpacket

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

func TestDownAndUp(t *testing.T) {
	near, far := pair(t)
	near.Run(t, "ip", "link", "set", "veth0", "down")
	s := open(t, near, "veth0", Options{}, ours(t, all))
	none(t, s, "it was down when it was opened")
	for n := range 2 {
		near.Run(t, "ip", "link", "set", "veth0", "up")
		send(t, near, "veth0", frame(n, 60))
		send(t, far, "veth0", frame(n, 60))
		for _, out := range []bool{true, false} {
			if p := next(t, s); number(p) != n || p.Outgoing != out {
				t.Errorf("frame %d, sent is %v; want %d, %v", number(p), p.Outgoing, n, out)
			}
		}
		near.Run(t, "ip", "link", "set", "veth0", "down")
		none(t, s, "it is down")
	}
	must(t, s.Stop())
	if ps := flushed(t, s); len(ps) != 0 {
		t.Errorf("%d packets after Stop", len(ps))
	}
}

func TestDeleted(t *testing.T) {
	near, _ := pair(t)
	s := open(t, near, "veth0", Options{}, ours(t, all))
	send(t, near, "veth0", frame(1, 60))
	near.Run(t, "ip", "link", "del", "veth0")
	if p := next(t, s); number(p) != 1 {
		t.Errorf("frame %d", number(p))
	}
	none(t, s, "it is deleted")
	must(t, s.Update(ours(t, 50)))
	must(t, s.Stop())
	if ps := flushed(t, s); len(ps) != 0 || dropped(t, s) != 0 {
		t.Errorf("%d packets, %d dropped", len(ps), dropped(t, s))
	}
}

func TestDeadline(t *testing.T) {
	near, _ := pair(t)
	s := open(t, near, "veth0", Options{}, ours(t, all))
	for _, wait := range []time.Duration{-time.Second, 0, time.Microsecond, 20 * time.Millisecond} {
		begin := time.Now()
		if _, err := s.Next(begin.Add(wait)); !isDeadline(err) {
			t.Fatalf("%v, want os.ErrDeadlineExceeded", err)
		}
		if took := time.Since(begin); took < wait {
			t.Errorf("%v after %v", wait, took)
		}
	}
	send(t, near, "veth0", frame(1, 60), frame(2, 60))
	next(t, s)
	if _, err := s.Next(time.Now().Add(-time.Second)); err != nil {
		t.Errorf("the deadline is over, and a packet is there: %v", err)
	}
}

// waits starts a goroutine in Next, and returns when its thread sleeps there. The channel has what Next returned.
func waits(t *testing.T, s *Socket) <-chan error {
	t.Helper()
	thread, ended := make(chan int), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		_, err := s.Next(time.Now().Add(nettest.Patience))
		ended <- err
	}()
	file := fmt.Sprintf("/proc/self/task/%d/syscall", <-thread)
	for begin := time.Now(); ; {
		call, err := os.ReadFile(file)
		must(t, err)
		if strings.HasPrefix(string(call), strconv.Itoa(unix.SYS_PPOLL)+" ") {
			return ended
		}
		if time.Since(begin) > nettest.Patience {
			t.Fatalf("Next does not wait: %s", call)
		}
		runtime.Gosched()
	}
}

func TestFlushWakes(t *testing.T) {
	near, _ := pair(t)
	s := open(t, near, "veth0", Options{}, ours(t, all))
	waiting := waits(t, s)
	must(t, s.Flush())
	if err := <-waiting; !errors.Is(err, ErrFlushed) {
		t.Errorf("%v, want ErrFlushed", err)
	}
	none(t, s, "ErrFlushed comes once")
}

func TestClose(t *testing.T) {
	near, _ := pair(t)
	s := open(t, near, "veth0", Options{}, ours(t, all))
	waiting := waits(t, s)
	must(t, s.Close())
	must(t, s.Close())
	_, again := s.Next(time.Time{})
	_, drops := s.Dropped()
	for what, err := range map[string]error{
		"a waiting Next": <-waiting,
		"Next":           again,
		"Dropped":        drops,
		"Update":         s.Update(ours(t, all)),
		"Stop":           s.Stop(),
		"Flush":          s.Flush(),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v, want os.ErrClosed", what, err)
		}
	}
}

// TestExec has a program that is started see nothing of the socket.
func TestExec(t *testing.T) {
	near, _ := pair(t)
	open(t, near, "veth0", Options{}, ours(t, all))
	const list = "for f in /proc/self/fd/*; do readlink $f; done | grep -e socket -e eventfd -e bpf || true"
	if out := nettest.Run(t, "sh", "-c", list); out != "" {
		t.Errorf("descriptors in a process that was started:\n%s", out)
	}
}
