// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// TestPacketAfterIdle has packets that come alone, far fewer than wake a reader by their number, and no -U.
func TestPacketAfterIdle(t *testing.T) {
	nettest.Require(t, "agent")
	near, _ := nettest.Pair(t)
	dir := t.TempDir()
	file := func(variant []string) string { return filepath.Join(dir, strings.Join(variant, "")+".pcapng") }
	var running []*nettest.Process
	for _, v := range variants {
		argv := append([]string{"agent", "-w", file(v), "-i", "veth0"}, v...)
		running = append(running, nettest.Start(t, near.Command(append(argv, "ether", "proto", "0x88b5")...), "capturing on"))
	}
	// By the time that the last file has one packet, the first readers have been idle for long.
	for n := range 3 {
		size := 100 + n
		near.Must(t, func() error {
			return nettest.Send("veth0", nettest.Ethernet(nettest.FarMAC, nettest.NearMAC, nettest.TypeLocal, make([]byte, size-14)))
		})
		for _, v := range variants {
			nettest.Await(t, file(v), func(p nettest.Packet) bool { return int(p.Length) == size })
		}
	}
	for _, p := range running {
		p.Stop(t, syscall.SIGINT)
	}
}

// written is what a capture has written: bytes for a disk, as proc_pid_io(5) counts them (none for a tmpfs), and the state of its file.
func written(t *testing.T, p *nettest.Process, file string) (disk uint64, state string) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.Pid()))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			disk, err = strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			must(t, err)
		}
	}
	st, err := os.Stat(file)
	must(t, err)
	return disk, fmt.Sprintf("%d bytes of %v", st.Size(), st.ModTime())
}

// TestIdleWritesNothing has captures that packets pass which do not match, beside one which they match. Each of its packets is in its
// file at the next of the moments at which the others could write, too. Some are to begin another file each second: where nothing
// matches, none is begun, also behind one that has a packet.
func TestIdleWritesNothing(t *testing.T) {
	nettest.Require(t, "agent")
	near, _ := nettest.Pair(t)
	dir := t.TempDir()
	start := func(name string, args ...string) *nettest.Process {
		argv := append([]string{"agent", "-i", "veth0", "-w", filepath.Join(dir, name)}, args...)
		return nettest.Start(t, near.Command(argv...), "capturing on")
	}
	only := func(name string) string { // the one file whose name begins so
		t.Helper()
		all, err := filepath.Glob(filepath.Join(dir, name+"*"))
		must(t, err)
		if len(all) != 1 {
			t.Fatalf("%s: the files are %q", name, all)
		}
		return all[0]
	}
	idle := map[string]*nettest.Process{}
	for i, v := range variants {
		name := strconv.Itoa(i) + strings.Join(v, "")
		idle[name+"-plain"] = start(name+"-plain", append(v, "ether", "proto", "0x88b6")...)
		idle[name+"-U"] = start(name+"-U", append(v, "-U", "ether", "proto", "0x88b6")...)
	}
	const rotated = "-%Y%m%d-%H%M%S"
	idle["rotated"] = start("rotated"+rotated, "-G", "1", "ether", "proto", "0x88b6")
	idle["once"] = start("once"+rotated, "-G", "1", "ether", "proto", "0x88b7")
	busy := start("busy", "ether", "proto", "0x88b5")
	pass := func(kind uint16, size int) {
		near.Must(t, func() error {
			return nettest.Send("veth0", nettest.Ethernet(nettest.FarMAC, nettest.NearMAC, kind, make([]byte, size-14)))
		})
		if kind == nettest.TypeLocal {
			nettest.Await(t, filepath.Join(dir, "busy"), func(p nettest.Packet) bool { return int(p.Length) == size })
		}
	}
	pass(nettest.TypeLocal+2, 97)
	awaitDone(t, only("once")) // a file with a packet is ended by its time
	pass(nettest.TypeLocal, 98)
	pass(nettest.TypeLocal, 99) // by then all have long written the head of their files
	type before struct {
		disk  uint64
		state string
	}
	was := map[string]before{}
	for name, p := range idle {
		disk, state := written(t, p, only(name))
		was[name] = before{disk, state}
	}
	_, busyState := written(t, busy, filepath.Join(dir, "busy"))
	for n := range 3 {
		pass(nettest.TypeLocal, 100+n)
	}
	for name, p := range idle {
		if disk, state := written(t, p, only(name)); was[name] != (before{disk, state}) {
			t.Errorf("%s: %d bytes for the disk, then %d; %s, then %s", name, was[name].disk, disk, was[name].state, state)
		}
		p.Stop(t, syscall.SIGINT)
	}
	disk, state := written(t, busy, filepath.Join(dir, "busy"))
	if state == busyState {
		t.Error("a file that grew looks the same")
	}
	if disk == 0 {
		t.Log("the directory is not on a disk: only the files were looked at")
	}
	busy.Stop(t, syscall.SIGINT)
}

// TestNoWakelock looks into a daemon with all that has timers: none of them wakes a phone or keeps it awake (epoll_ctl(2), EPOLLWAKEUP; timerfd_create(2),
// CLOCK_BOOTTIME_ALARM; /sys/power/wake_lock).
func TestNoWakelock(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	b := &trouble{background: &background{Space: near, dir: t.TempDir()}, disk: t.TempDir(), far: far}
	b.launch(t, "f-%Y%m%d-%H%M%S", "-G", "3600", "--stats", "1", "--duration", "1h")
	must(t, <-send(far, 100, 1, false).stopped) // the file's time begins with it
	b.awaitCaptured(t, 1)
	dir := fmt.Sprintf("/proc/%d", b.pid)
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	must(t, err)
	timers, polls := 0, 0
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(dir, "fd", fd.Name()))
		must(t, err)
		if strings.Contains(to, "wake") {
			t.Errorf("it has %s open", to)
		}
		text, err := os.ReadFile(filepath.Join(dir, "fdinfo", fd.Name()))
		must(t, err)
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			switch {
			case len(f) > 1 && f[0] == "clockid:":
				timers++
				if f[1] == strconv.Itoa(unix.CLOCK_BOOTTIME_ALARM) || f[1] == strconv.Itoa(unix.CLOCK_REALTIME_ALARM) {
					t.Errorf("a timer wakes the phone: %s", text)
				}
			case len(f) > 3 && f[0] == "tfd:":
				polls++
				if events, err := strconv.ParseUint(f[3], 16, 32); err != nil || events&unix.EPOLLWAKEUP != 0 {
					t.Errorf("what comes keeps the phone awake: %s (%v)", line, err)
				}
			}
		}
	}
	if timers < 2 || polls < 2 {
		t.Errorf("%d timers and %d descriptors that are waited for prove nothing", timers, polls)
	}
	b.ask(t, "stop")
	b.gone(t)
}
