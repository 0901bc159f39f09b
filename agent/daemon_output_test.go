// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/agent/control"
	"droidtap/scripts/nettest"
)

// TestDaemonDiskFull pauses where the disk is full, says so, and goes on when there is room.
func TestDaemonDiskFull(t *testing.T) {
	nettest.Require(t, "agent", "capinfos", "mount")
	near, far := nettest.Pair(t)
	b := &background{Space: near, dir: t.TempDir()}
	disk := t.TempDir()
	nettest.Run(t, "mount", "-t", "tmpfs", "-o", "size=64k", "droidtap-test", disk)
	t.Cleanup(func() { nettest.Run(t, "umount", disk) })
	file := filepath.Join(disk, "f")
	_, stderr, code := b.ends(b.argv("agent", "-U", "-w", file)...)
	if code != 0 {
		t.Fatalf("code %d: %s", code, stderr)
	}
	b.began(t)
	var s status
	b.json(t, &s, "status")
	for end := time.Now().Add(nettest.Patience); s.Paused == "" && time.Now().Before(end); b.json(t, &s, "status") {
		far.Must(t, func() error { return nettest.Send("veth0", markers(1400)...) })
	}
	if !strings.Contains(s.Paused, "no space left on device") || s.Ignored == 0 || s.State != "capturing" || len(s.Warnings) == 0 {
		t.Fatalf("%+v", s)
	}
	full := s.Captured
	if text := b.ask(t, "status"); !strings.Contains(text, "\npaused: ") || !strings.Contains(text, "\nwarning ") {
		t.Errorf("status:\n%s", text)
	}
	nettest.Run(t, "mount", "-o", "remount,size=64m", disk)
	for end := time.Now().Add(nettest.Patience); (s.Paused != "" || s.Captured == full) && time.Now().Before(end); b.json(t, &s, "status") {
		far.Must(t, func() error { return nettest.Send("veth0", markers(1400)...) })
	}
	if s.Paused != "" || s.Captured == full {
		t.Errorf("%+v\n%s", s, b.log(t))
	}
	b.ask(t, "stop")
	b.gone(t)
	wireshark(t, "capinfos", file)
}

// TestDaemonStuck stops a daemon whose output blocks: the first time asks, the second does not wait for it.
func TestDaemonStuck(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	b := &background{Space: near, dir: t.TempDir()}
	fifo := b.file("fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	r, err := os.OpenFile(fifo, os.O_RDWR, 0)
	must(t, err)
	defer r.Close()
	_, stderr, code := b.ends(b.argv("agent", "-U", "-w", fifo)...)
	if code != 0 {
		t.Fatalf("code %d: %s", code, stderr)
	}
	b.began(t)
	var s status
	b.json(t, &s, "status")
	captured := uint64(0)
	for end := time.Now().Add(nettest.Patience); s.Paused == "" && time.Now().Before(end); b.json(t, &s, "status") {
		captured = s.Captured
		for range 20 {
			far.Must(t, func() error { return nettest.Send("veth0", markers(1400)...) })
		}
	}
	if s.Paused != errStuck.Error() || s.Captured != captured || s.File != fifo {
		t.Errorf("%+v", s)
	}
	first := nettest.Start(t, near.Command("agent", "stop", "--socket", b.file("sock")), "")
	awaitDetached(t, near)
	b.ask(t, "stop")
	if code := first.Wait(t); code != 0 {
		t.Errorf("the first one: code %d, %s", code, first.Stderr())
	}
	b.gone(t)
	if log := b.log(t); !strings.Contains(log, "stopped at once") {
		t.Errorf("the log:\n%s", log)
	}
}

// TestDaemonStoppedEarly stops a daemon as soon as it listens, which is before it captures.
func TestDaemonStoppedEarly(t *testing.T) {
	nettest.Require(t, "agent")
	near, _ := nettest.Pair(t)
	b := &background{Space: near, dir: t.TempDir()}
	starter := nettest.Start(t, near.Command(b.argv("agent", "udp port 9")...), "")
	var c *control.Client
	var err error
	for end := time.Now().Add(nettest.Patience); c == nil && time.Now().Before(end); {
		c, err = control.Dial(b.file("sock"))
	}
	must(t, err)
	defer c.Close()
	b.pid = c.Pid
	a, err := c.Ask(control.Request{Do: control.Status})
	must(t, err)
	if !strings.Contains(string(a.Result), `"state":"starting"`) {
		t.Errorf("status: %s", a.Result)
	}
	if a, err := c.Stop(nettest.Patience); err != nil || a.Error != "" {
		t.Errorf("%+v, %v", a, err)
	}
	if code := starter.Wait(t); code != 0 {
		t.Errorf("code %d: %s", code, starter.Stderr())
	}
	b.gone(t)
}
