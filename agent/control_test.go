// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// TestAgentFilter replaces a daemon's filter under traffic by agent filter: nothing is lost that both match.
func TestAgentFilter(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	const one, other = "udp and (port 4000 or port 4001)", "udp port 4000 or udp port 4002"
	b := launch(t, near, "agent", "-U", "-B", "65536", "-s", "64", one)
	traffic := startFlood(far)
	const rounds = 20
	for n := 1; n <= rounds; n++ {
		expr := one
		if n%2 > 0 {
			expr = other
		}
		if n%3 > 0 {
			b.ask(t, "filter", expr)
		} else {
			b.ask(t, append([]string{"filter"}, strings.Fields(expr)...)...)
		}
		var s status
		if b.json(t, &s, "status"); s.Filter != expr {
			t.Errorf("the filter is %q, and not %q", s.Filter, expr)
		}
		traffic.pass(t)
	}
	_, stderr, code := b.ends("agent", "filter", "--socket", b.file("sock"), "tcp", "port")
	if want := "agent: filter: filter \"tcp port\": can't parse filter expression: syntax error\n"; code != 2 || stderr != want {
		t.Errorf("code %d, %q", code, stderr)
	}
	_, stderr, code = b.ends("agent", "filter", "--socket", b.file("sock"))
	if code != 2 || !strings.Contains(stderr, "needs an expression") {
		t.Errorf("code %d, %q", code, stderr)
	}
	sent := traffic.stop(t)
	b.ask(t, "stop")
	b.gone(t)
	replaced(t, b.file("f"), sent)
}

// TestAgentRotate ends files by the command and by SIGHUP, of a daemon and of a capture in the foreground: each packet is in one of them.
func TestAgentRotate(t *testing.T) {
	nettest.Require(t, "agent", "capinfos")
	near, far := nettest.Pair(t)
	b := launch(t, near, "agent", "udp port 9")
	if out := b.ask(t, "rotate"); out != "the file has no packets yet\n" {
		t.Errorf("rotate says %q", out)
	}
	datagrams(t, far, 3)
	b.awaitCaptured(t, 3)
	if out := b.ask(t, "rotate"); out != b.file("f")+"\n" {
		t.Errorf("rotate says %q", out)
	}
	datagrams(t, far, 4)
	b.awaitCaptured(t, 7)
	var r rotated
	if b.json(t, &r, "rotate"); r.File != b.file("f1") {
		t.Errorf("rotate says %q", r.File)
	}
	datagrams(t, far, 5)
	b.awaitCaptured(t, 12)
	must(t, syscall.Kill(b.pid, syscall.SIGHUP))
	must(t, syscall.Kill(b.pid, syscall.SIGUSR1)) // is done behind it
	awaitLog(t, b, "12 packets captured, 12 received by filter, 0 dropped by kernel")
	b.ask(t, "filter", "udp dst port 9")
	datagrams(t, far, 6)
	b.awaitCaptured(t, 18)
	var s stats
	if b.json(t, &s, "stats"); s.Files != 4 || s.File != b.file("f3") {
		t.Errorf("%d files, the last one is %s", s.Files, s.File)
	}
	b.ask(t, "stop")
	b.gone(t)
	for n, packets := range []int{3, 4, 5, 6} {
		path := rotatedName(b.file("f"), n)
		f, err := nettest.Read(path)
		if must(t, err); len(f.Packets) != packets || f.Interfaces[0].Statistics == nil {
			t.Errorf("%s: %d packets, and not %d", path, len(f.Packets), packets)
		}
		filter := "udp port 9"
		if n == 3 {
			filter = "udp dst port 9"
		}
		if got := f.Interfaces[0].Filter; got != filter {
			t.Errorf("%s: the filter is %q, and not %q", path, got, filter)
		}
		wireshark(t, "capinfos", path)
	}
}

// rotatedName is the name of a file of agent rotate's: those before it number n.
func rotatedName(path string, n int) string {
	if n == 0 {
		return path
	}
	return path + strconv.Itoa(n)
}

// TestOneOutput cannot be rotated: SIGHUP ends it, and the command is refused.
func TestOneOutput(t *testing.T) {
	nettest.Require(t, "agent")
	near, _ := nettest.Pair(t)
	socket := filepath.Join(t.TempDir(), "sock")
	cmd := near.Command("agent", "-i", "veth0", "-w", "-", "--socket", socket)
	cmd.Stdout = io.Discard
	p := nettest.Start(t, cmd, "capturing on veth0")
	said, err := near.Command("agent", "rotate", "--socket", socket).CombinedOutput()
	if exit := new(exec.ExitError); err == nil || !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(said), "another file") {
		t.Errorf("%v, %q", err, said)
	}
	p.Stop(t, syscall.SIGHUP)
	nothingLeft(t, near)
}

// TestSignals asks a capture in the foreground by signals.
func TestSignals(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	file := filepath.Join(t.TempDir(), "f")
	p := nettest.Start(t, near.Command("agent", "-w", file, "-i", "veth0", "udp port 9"), "capturing on")
	p.Signal(t, syscall.SIGUSR1)
	p.Await(t, "agent: 0 packets captured, 0 received by filter, 0 dropped by kernel, 0 dropped by agent, 0 unattributed, 0 left out, 0 gaps, 1 files, "+file)
	datagrams(t, far, 1)
	far.Must(t, func() error { return sendUDP(nettest.Near4, 200) })
	nettest.Await(t, file, func(p nettest.Packet) bool { return p.Length == 242 })
	p.Signal(t, syscall.SIGUSR2)
	p.Signal(t, syscall.SIGHUP)
	p.Signal(t, syscall.SIGUSR1)
	p.AwaitTimes(t, "received by filter", 2)
	datagrams(t, far, 1)
	p.Stop(t, syscall.SIGTERM)
	for n, packets := range []int{2, 1} {
		if f, err := nettest.Read(rotatedName(file, n)); err != nil || len(f.Packets) != packets {
			t.Errorf("file %d: %d packets, and not %d (%v)", n, len(f.Packets), packets, err)
		}
	}
	nothingLeft(t, near)
}

// TestStats says the counters every second, as JSON.
func TestStats(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	file := filepath.Join(t.TempDir(), "f")
	p := startAgent(t, near, file, "-i", "veth0", "--stats", "1", "--json", "udp port 9")
	datagrams(t, far, 4)
	p.Await(t, `"captured":4,`)
	p.AwaitTimes(t, `"captured":4,`, 2) // in the foreground also where nothing has changed
	p.Stop(t, syscall.SIGINT)
	for lines := bufio.NewScanner(strings.NewReader(p.Stderr())); lines.Scan(); {
		if !strings.HasPrefix(lines.Text(), "{") {
			continue
		}
		var s stats
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil || s.Time.IsZero() || s.File != file || s.Files != 1 {
			t.Errorf("%v: %s", err, lines.Text())
		}
	}
}

// TestDaemonStats has the log say the counters where they have changed, and only there.
func TestDaemonStats(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	b := launch(t, near, "agent", "-U", "--stats", "1", "udp port 9")
	for n := range 3 {
		datagrams(t, far, 1)
		awaitLog(t, b, fmt.Sprintf("agent: %d packets captured, ", n+1))
	}
	b.ask(t, "stop")
	seen := map[string]int{}
	for line := range strings.Lines(b.log(t)) {
		_, text, _ := strings.Cut(line, " ")
		if strings.HasPrefix(text, "agent: ") {
			seen[text]++
		}
	}
	for text, times := range seen {
		if times != 1 {
			t.Errorf("%d times: %s", times, text)
		}
	}
}

// TestHungUp hangs up the terminal of a capture whose messages go elsewhere: it ends, and does not take that for a wish for
// another file. With nohup it goes on.
func TestHungUp(t *testing.T) {
	nettest.Require(t, "agent", "nohup")
	near, far := nettest.Pair(t)
	for _, nohup := range []bool{false, true} {
		file := filepath.Join(t.TempDir(), "f")
		argv := []string{"agent", "-U", "-i", "veth0", "-w", file, "udp port 9"}
		if nohup {
			argv = append([]string{"nohup", "agent", "--stats", "1"}, argv[1:]...)
		}
		p, hangUp := onTerminal(t, near.Command(argv...))
		hangUp()
		if nohup {
			p.AwaitTimes(t, "agent: 0 packets captured", 3) // one that ends says it no more
			datagrams(t, far, 1)
			nettest.Await(t, file, func(nettest.Packet) bool { return true })
			p.Signal(t, syscall.SIGHUP) // of somebody who means it
			p.Signal(t, syscall.SIGUSR1)
			p.Await(t, "agent: 1 packets captured")
			datagrams(t, far, 1)
			p.Await(t, "2 files, "+rotatedName(file, 1))
			p.Signal(t, syscall.SIGTERM)
		}
		if code := p.Wait(t); code != 0 {
			t.Errorf("code %d:\n%s", code, p.Stderr())
		}
		nothingLeft(t, near)
	}
}

// onTerminal starts a capture that has a terminal of its own, but for its messages, and returns what hangs that up.
func onTerminal(t *testing.T, cmd *exec.Cmd) (p *nettest.Process, hangUp func()) {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0))
	pts, err := os.OpenFile(filepath.Join("/dev/pts", strconv.Itoa(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	cmd.Stdin = pts
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	must(t, err)
	defer out.Close()
	cmd.Stdout = out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	p = nettest.Start(t, cmd, "capturing on")
	must(t, pts.Close())
	return p, func() { must(t, ptmx.Close()) }
}
