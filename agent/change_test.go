// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"droidtap/scripts/nettest"
)

// TestLoopbackOwner has a packet that a wanted user sends to itself, which both
// leaves and comes in.
func TestLoopbackOwner(t *testing.T) {
	nettest.Require(t, "agent")
	for _, variant := range variants {
		t.Run(variant[1]+" "+variant[3], func(t *testing.T) {
			near, _ := nettest.Pair(t)
			file := filepath.Join(t.TempDir(), "lo.pcapng")
			argv := append([]string{"agent", "-U", "-i", "lo", "--uid", "10123", "-w", file}, variant...)
			p := nettest.Start(t, near.Command(append(argv, "udp dst port 9")...), "capturing on lo to "+file)
			for _, uid := range []int{10123, 10124, 10123} {
				must(t, near.Do(uid, func() error { return holdUDP(t, "127.0.0.1", 60+uid%10) }))
			}
			must(t, near.Do(10123, func() error { return holdUDP(t, "127.0.0.1", 200) }))
			nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length > 200 })
			p.Stop(t, syscall.SIGINT)
			f, err := nettest.Read(file)
			must(t, err)
			if len(f.Packets) != 3 {
				t.Errorf("%d packets, and 10123 sent 3:\n%s", len(f.Packets), p.Stderr())
			}
		})
	}
}

// TestBridge takes the interface into a bridge and out again, as tethering does;
// the kernel then tells of a deletion that is none.
func TestBridge(t *testing.T) {
	nettest.Require(t, "agent", "ip")
	near, far := nettest.Pair(t)
	file := filepath.Join(t.TempDir(), "bridge.pcapng")
	p := startAgent(t, near, file, "-i", "veth0", "udp port 9")
	near.Run(t, "ip", "link", "add", "br0", "type", "bridge")
	near.Run(t, "ip", "link", "set", "veth0", "master", "br0")
	near.Run(t, "ip", "link", "set", "veth0", "nomaster")
	datagrams(t, far, 3)
	seen := 0
	nettest.Await(t, file, func(nettest.Packet) bool { seen++; return seen >= 3 })
	p.Stop(t, syscall.SIGINT)
	if strings.Contains(p.Stderr(), "went away") {
		t.Errorf("the interface is there:\n%s", p.Stderr())
	}
}

// TestStartFails has a capture that cannot start spoil no file and leave none.
func TestStartFails(t *testing.T) {
	nettest.Require(t, "agent", "ip")
	near, _ := nettest.Pair(t)
	near.Run(t, "ip", "link", "set", "veth0", "down")
	near.Run(t, "ip", "link", "set", "veth0", "name", "v4-veth0", "up")
	dir := t.TempDir()
	old := filepath.Join(dir, "old.pcapng")
	must(t, os.WriteFile(old, []byte("precious"), 0o600))
	made := filepath.Join(dir, "made")
	for _, where := range [][]string{{"-w", old}, {"--output-dir", made}} {
		argv := append([]string{"agent", "-i", "v4-veth0", "--backend", "tc"}, where...)
		out, err := near.Command(argv...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "clat") || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%v: %v\n%s", where, err, out)
		}
	}
	if b, err := os.ReadFile(old); err != nil || string(b) != "precious" {
		t.Errorf("the old file holds %q, %v", b, err)
	}
	if _, err := os.Stat(made); !os.IsNotExist(err) {
		t.Errorf("a directory was made for nothing: %v", err)
	}
}

// TestOtherNamespace has /sys show other interfaces than the kernel has.
func TestOtherNamespace(t *testing.T) {
	nettest.Require(t, "agent", "nsenter")
	near, _ := nettest.Pair(t)
	near.Run(t, "ip", "link", "set", "lo", "down")
	near.Run(t, "ip", "link", "set", "lo", "name", "other") // else its index and name are those of every namespace
	out, err := near.Command("nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", os.Getpid()), "agent", "-i", "lo").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another network namespace") {
		t.Errorf("%v\n%s", err, out)
	}
}
