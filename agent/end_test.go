// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// lastError returns the one line that begins with "agent: ".
func lastError(t *testing.T, p *nettest.Process) string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(p.Stderr()) {
		if strings.HasPrefix(line, "agent: ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	if len(lines) != 1 {
		t.Errorf("%d lines of the agent's own, not 1:\n%s", len(lines), p.Stderr())
		return ""
	}
	return lines[0]
}

// nothingLeft fails the test if something still hangs on an interface.
func nothingLeft(t *testing.T, s nettest.Space) {
	t.Helper()
	if what, err := attached(s); err != nil || len(what) > 0 {
		t.Errorf("left behind: %v (%v)", what, err)
	}
}

// TestDiskFull leaves a whole file of what there was room for, and counts that.
func TestDiskFull(t *testing.T) {
	nettest.Require(t, "agent", "tshark", "mount")
	for _, variant := range append(variants[:3:3], variants[4]) {
		t.Run(variant[1]+" "+variant[3], func(t *testing.T) {
			near, far := nettest.Pair(t)
			dir := t.TempDir()
			nettest.Run(t, "mount", "-t", "tmpfs", "-o", "size=64k", "droidtap-test", dir)
			t.Cleanup(func() { nettest.Run(t, "umount", dir) })
			file := filepath.Join(dir, "f.pcapng")
			p := startAgent(t, near, file, append([]string{"-i", "veth0"}, variant...)...)
			for range 20 {
				far.Must(t, func() error { return nettest.Send("veth0", markers(1400)...) })
			}
			if code := p.Wait(t); code != 1 {
				t.Errorf("code %d", code)
			}
			if line := lastError(t, p); !strings.Contains(line, "no space left on device") || !strings.Contains(line, file) {
				t.Errorf("says %q", line)
			}
			n := strings.Count(wireshark(t, "tshark", "-r", file), "\n")
			if said := counters(t, p.Stderr())["captured"]; said != n || n < 20 {
				t.Errorf("%d packets in the file, %d on stderr", n, said)
			}
			nothingLeft(t, near)
		})
	}
}

// TestPipe writes to standard output, whose reader goes away or does not read.
func TestPipe(t *testing.T) {
	nettest.Require(t, "agent")
	start := func(t *testing.T, near nettest.Space) (p *nettest.Process, r, w *os.File) {
		t.Helper()
		r, w, err := os.Pipe()
		must(t, err)
		t.Cleanup(func() { _, _ = r.Close(), w.Close() })
		cmd := near.Command("agent", "-i", "veth0", "-U", "-w", "-")
		cmd.Stdout = w
		p = nettest.Start(t, cmd, "capturing on veth0 to standard output")
		return p, r, w
	}
	t.Run("read to the end", func(t *testing.T) {
		near, far := nettest.Pair(t)
		p, r, w := start(t, near)
		must(t, w.Close())
		datagrams(t, far, 3)
		p.Signal(t, syscall.SIGINT)
		b, err := io.ReadAll(r)
		if code := p.Wait(t); code != 0 || err != nil {
			t.Errorf("code %d, %v", code, err)
		}
		file := filepath.Join(t.TempDir(), "f.pcapng")
		must(t, os.WriteFile(file, b, 0o600))
		f, err := nettest.Read(file)
		if said := counters(t, p.Stderr())["captured"]; err != nil || said != len(f.Packets) || said < 3 {
			t.Errorf("%d packets in the pipe, %d on stderr, %v", len(f.Packets), said, err)
		}
	})
	t.Run("reader goes away", func(t *testing.T) {
		near, far := nettest.Pair(t)
		p, r, w := start(t, near)
		must(t, w.Close())
		must(t, r.Close())
		datagrams(t, far, 3)
		if code := p.Wait(t); code != 1 {
			t.Errorf("code %d", code)
		}
		if line := lastError(t, p); !strings.Contains(line, "broken pipe") {
			t.Errorf("says %q", line)
		}
		nothingLeft(t, near)
	})
	t.Run("reader does not read", func(t *testing.T) {
		near, far := nettest.Pair(t)
		p, _, w := start(t, near)
		// Until the pipe is full: the agent can go no further.
		for room := 1; room > 0; {
			far.Must(t, func() error { return nettest.Send("veth0", markers(1400)...) })
			var err error
			room, err = unix.Poll([]unix.PollFd{{Fd: int32(w.Fd()), Events: unix.POLLOUT}}, 0)
			must(t, err)
		}
		for range 100 {
			far.Must(t, func() error { return nettest.Send("veth0", markers(1400)...) })
		}
		p.Signal(t, syscall.SIGINT)
		awaitDetached(t, near)
		p.Signal(t, syscall.SIGINT)
		if code := p.Wait(t); code != 1 {
			t.Errorf("code %d", code)
		}
		if line := lastError(t, p); !strings.Contains(line, "stopped at once") {
			t.Errorf("says %q", line)
		}
		nothingLeft(t, near)
	})
}

// awaitDetached waits until the first signal has had its effect: two that come at once are one to the kernel.
func awaitDetached(t *testing.T, s nettest.Space) {
	t.Helper()
	for {
		what, err := attached(s)
		must(t, err)
		if len(what) == 0 {
			return
		}
	}
}

// TestSecondSignal does no harm to a capture that ends well.
func TestSecondSignal(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	file := filepath.Join(t.TempDir(), "f.pcapng")
	p := startAgent(t, near, file, "-i", "veth0")
	mark(t, near, far, endOut, endIn)
	nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == endIn })
	p.Signal(t, syscall.SIGINT)
	p.Signal(t, syscall.SIGINT)
	if code := p.Wait(t); code != 0 {
		t.Errorf("code %d\n%s", code, p.Stderr())
	}
	f, err := nettest.Read(file)
	if err != nil || len(f.Packets) < 10 || f.Interfaces[0].Statistics == nil {
		t.Errorf("%d packets, %v", len(f.Packets), err)
	}
	nothingLeft(t, near)
}

// TestLongExpression takes 10 kB of expression.
func TestLongExpression(t *testing.T) {
	nettest.Require(t, "agent")
	for name, expr := range map[string]string{
		"ports": strings.Repeat("udp port 9 or ", 700) + "udp port 10",
		"hosts": hosts(500),
	} {
		for _, variant := range [][]string{variants[0], variants[3], variants[4]} {
			t.Run(name+" "+variant[1], func(t *testing.T) {
				near, far := nettest.Pair(t)
				file := filepath.Join(t.TempDir(), "f.pcapng")
				cmd := near.Command(append(append([]string{"agent", "-i", "veth0", "-c", "2", "-w", file}, variant...), expr)...)
				p := nettest.Start(t, cmd, "")
				// Either it begins, or it says why not.
				p.Await(t, "\n")
				if strings.Contains(p.Stderr(), "capturing on") {
					datagrams(t, far, 2)
					if code := p.Wait(t); code != 0 {
						t.Errorf("code %d\n%s", code, p.Stderr())
					}
					return
				}
				code := p.Wait(t)
				line := lastError(t, p)
				t.Logf("code %d: %s", code, line)
				if code != 2 || len(line) > 1000 {
					t.Errorf("code %d, a line of %d bytes", code, len(line))
				}
				nothingLeft(t, near)
			})
		}
	}
}

func hosts(n int) string {
	terms := make([]string, n)
	for i := range terms {
		terms[i] = "host " + net.IPv4(10, 98, byte(i*7), byte(i*13)).String()
	}
	return strings.Join(append(terms, "host "+nettest.Far4), " or ")
}

// TestInputUnread leaves standard input to others.
func TestInputUnread(t *testing.T) {
	nettest.Require(t, "agent")
	near, _ := nettest.Pair(t)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	defer w.Close()
	_, err = w.WriteString("mine")
	must(t, err)
	cmd := near.Command("agent", "-i", "veth0", "-w", filepath.Join(t.TempDir(), "f"))
	cmd.Stdin = r
	nettest.Start(t, cmd, "capturing on").Stop(t, syscall.SIGINT)
	if n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ); n != 4 {
		t.Errorf("%s bytes are left of 4 (%v)", strconv.Itoa(n), err)
	}
}
