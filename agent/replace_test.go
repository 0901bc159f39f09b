// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"droidtap/agent/capture"
	"droidtap/scripts/nettest"
)

// replaceMain is an agent whose filter is replaced by each line of standard input. To standard error it says how that
// went. It ends with the input.
func replaceMain() {
	runAs(func(c *cli.Context) error {
		cfg, err := configure(c)
		if err != nil {
			return err
		}
		cfg.Control = &capture.Control{}
		if err := cfg.Control.Replace(c.Context, "udp"); err != capture.ErrNotRunning {
			return fmt.Errorf("replaced before the start: %w", err)
		}
		ctx, stop := context.WithCancel(c.Context)
		ready := cfg.Ready
		cfg.Ready = func(file string) {
			ready(file)
			go func() {
				defer stop()
				lines := bufio.NewScanner(os.Stdin)
				for n := 1; lines.Scan(); n++ {
					if err := cfg.Control.Replace(ctx, lines.Text()); err != nil {
						fmt.Fprintf(os.Stderr, "%d not replaced, exit code %d: %v\n", n, exitCode(err), err)
					} else {
						fmt.Fprintf(os.Stderr, "%d replaced\n", n)
					}
				}
			}()
		}
		sum, err := capture.Run(ctx, nil, cfg)
		printSummary(os.Stderr, sum)
		if again := cfg.Control.Replace(c.Context, "udp"); again != capture.ErrNotRunning {
			return fmt.Errorf("replaced after the end: %w", again)
		}
		return err
	})
}

// ports of TestReplace: what both filters match, what one of them does, and what neither does.
const (
	bothPort = 4000 + iota
	onePort
	otherPort
	neitherPort
)

// TestReplace replaces the filter under traffic, over and over. Each packet that both filters match is in the file, once,
// and none that neither does.
func TestReplace(t *testing.T) {
	nettest.Require(t, "agent-replace")
	for _, c := range []struct {
		variant    []string
		rule       string
		one, other string
	}{
		{variants[0], "exact filters", "udp and (port 4000 or port 4001)", "udp port 4000 or udp port 4002"},
		{variants[1], "exact filters", "udp and (port 4000 or port 4001)", "udp port 4000 or udp port 4002"},
		{variants[3], "exact filters", "udp and (port 4000 or port 4001)", "udp port 4000 or udp port 4002"},
		{variants[4], "exact filters", "udp and (port 4000 or port 4001)", "udp port 4000 or udp port 4002"},
		{variants[4], "filters of which one is judged behind the kernel", "ip protochain 17 and (port 4000 or port 4001)", "udp port 4000 or udp port 4002"},
		{variants[0], "filters of which one is judged behind the kernel", "ip protochain 17 and (port 4000 or port 4001)", "udp port 4000 or udp port 4002"},
		{variants[3], "filters that are judged behind the kernel", "ip protochain 17 and (port 4000 or port 4001)", "ip protochain 17 and (port 4000 or port 4002)"},
	} {
		t.Run(fmt.Sprintf("%s %s %s", c.variant[1], c.variant[3], c.rule), func(t *testing.T) {
			near, far := nettest.Pair(t)
			file := filepath.Join(t.TempDir(), "replaced.pcapng")
			cmd := near.Command(append(append([]string{"agent-replace", "-U", "-B", "65536", "-s", "64", "-w", file, "-i", "veth0"}, c.variant...), c.one)...)
			stdin, err := cmd.StdinPipe()
			must(t, err)
			p := nettest.Start(t, cmd, "capturing on veth0")
			traffic := startFlood(far)
			const rounds = 30
			for n := 1; n <= rounds; n++ {
				expr := c.other
				if n%2 == 0 {
					expr = c.one
				}
				_, err := io.WriteString(stdin, expr+"\n")
				must(t, err)
				p.Await(t, fmt.Sprintf("%d replaced\n", n))
				traffic.pass(t)
			}
			_, err = io.WriteString(stdin, "tcp port\n")
			must(t, err)
			p.Await(t, fmt.Sprintf("%d not replaced, exit code 2: filter \"tcp port\": can't parse filter expression: syntax error\n", rounds+1))
			sent := traffic.stop(t)
			must(t, stdin.Close())
			if code := p.Wait(t); code != 0 {
				t.Fatalf("code %d:\n%s", code, p.Stderr())
			}
			f := replaced(t, file, sent)
			if said := counters(t, p.Stderr()); said["captured"] != len(f.Packets) || said["received by filter"] != len(f.Packets) {
				t.Errorf("%d packets are in the file:\n%s", len(f.Packets), p.Stderr())
			}
			told := strings.Count(strings.Join(f.Interfaces[0].Comments, "\n")+"\n", "from here on the filter is: "+c.other+"\n")
			shown := slices.ContainsFunc(f.Packets, func(p nettest.Packet) bool { return strings.Contains(p.Comment, c.other) })
			if told != rounds/2 || !shown {
				t.Errorf("the file tells %d times that the other filter holds, and shows it at a packet: %v", told, shown)
			}
		})
	}
}

// replaced reads a file of a capture whose filter was replaced while so many packets came to each port, and holds it against what was sent.
func replaced(t *testing.T, file string, sent int) nettest.File {
	t.Helper()
	f, err := nettest.Read(file)
	must(t, err)
	got := map[int]int{}
	for _, packet := range f.Packets {
		got[int(packet.Data[36])<<8|int(packet.Data[37])]++
		if len(packet.Data) != 64 {
			t.Fatalf("a packet has %d bytes, and -s is 64", len(packet.Data))
		}
	}
	t.Logf("%d packets to each port; in the file: %v", sent, got)
	if got[bothPort] != sent {
		t.Errorf("%d packets that both filters match are in the file, and %d were sent", got[bothPort], sent)
	}
	if got[neitherPort] != 0 {
		t.Errorf("%d packets that neither filter matches are in the file", got[neitherPort])
	}
	if got[onePort] == 0 || got[otherPort] == 0 || got[onePort] == sent || got[otherPort] == sent {
		t.Error("one of the filters was never in force")
	}
	return f
}

// flooding is a flood that goes on.
type flooding struct {
	sent   atomic.Int64 // packets that each port got
	ending chan struct{}
	ended  chan error
}

// startFlood has flood send from a namespace.
func startFlood(from nettest.Space) *flooding {
	f := &flooding{ending: make(chan struct{}), ended: make(chan error)}
	go func() { f.ended <- from.Do(0, func() error { return flood(f.ending, &f.sent) }) }()
	return f
}

// pass waits until some more packets were sent, however slow that may be.
func (f *flooding) pass(t *testing.T) {
	t.Helper()
	const some = 20
	end := time.Now().Add(nettest.Patience)
	for enough := f.sent.Load() + some; f.sent.Load() < enough; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("nothing is sent")
		}
	}
}

// stop ends it, and returns how many packets each port got.
func (f *flooding) stop(t *testing.T) int {
	t.Helper()
	close(f.ending)
	must(t, <-f.ended)
	return int(f.sent.Load())
}

// flood sends packets of 100 bytes to each port in turns, until stop is closed. It counts how many each got.
func flood(stop <-chan struct{}, sent *atomic.Int64) error {
	var conns []net.Conn
	for port := bothPort; port <= neitherPort; port++ {
		c, err := net.Dial("udp", net.JoinHostPort(nettest.Near4, fmt.Sprint(port)))
		if err != nil {
			return err
		}
		defer c.Close()
		conns = append(conns, c)
	}
	for ; ; sent.Add(1) {
		select {
		case <-stop:
			return nil
		default:
		}
		for _, c := range conns {
			// An answer that nobody listens there is the error of a later one, which is then not sent.
			_, err := c.Write(make([]byte, 58))
			for errors.Is(err, unix.ECONNREFUSED) {
				_, err = c.Write(make([]byte, 58))
			}
			if err != nil {
				return err
			}
		}
	}
}
