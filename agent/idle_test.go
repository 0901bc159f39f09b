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
// file at the next of the moments at which the others could write, too.
func TestIdleWritesNothing(t *testing.T) {
	nettest.Require(t, "agent")
	near, _ := nettest.Pair(t)
	dir := t.TempDir()
	start := func(name string, args ...string) *nettest.Process {
		argv := append([]string{"agent", "-i", "veth0", "-w", filepath.Join(dir, name)}, args...)
		return nettest.Start(t, near.Command(argv...), "capturing on")
	}
	idle := map[string]*nettest.Process{}
	for _, v := range variants {
		idle[strings.Join(v, "")] = start(strings.Join(v, ""), append(v, "ether", "proto", "0x88b6")...)
		idle[strings.Join(v, "")+"-U"] = start(strings.Join(v, "")+"-U", append(v, "-U", "ether", "proto", "0x88b6")...)
	}
	busy := start("busy", "ether", "proto", "0x88b5")
	pass := func(size int) {
		near.Must(t, func() error {
			return nettest.Send("veth0", nettest.Ethernet(nettest.FarMAC, nettest.NearMAC, nettest.TypeLocal, make([]byte, size-14)))
		})
		nettest.Await(t, filepath.Join(dir, "busy"), func(p nettest.Packet) bool { return int(p.Length) == size })
	}
	pass(98)
	pass(99) // by then all have long written the head of their files
	type before struct {
		disk  uint64
		state string
	}
	was := map[string]before{}
	for name, p := range idle {
		disk, state := written(t, p, filepath.Join(dir, name))
		was[name] = before{disk, state}
	}
	_, busyState := written(t, busy, filepath.Join(dir, "busy"))
	for n := range 3 {
		pass(100 + n)
	}
	for name, p := range idle {
		if disk, state := written(t, p, filepath.Join(dir, name)); was[name] != (before{disk, state}) {
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
