// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/urfave/cli/v2"
	"github.com/vishvananda/netns"

	"droidtap/agent/capture"
	"droidtap/scripts/flap"
	"droidtap/scripts/nettest"
)

// figures is what an agent holds.
type figures struct {
	goroutines, fds, maps, indexes int // maps: mappings of memory that belong to a descriptor; indexes: of the map "interfaces"
	heap                           int // bytes in use after a collection
}

const figuresFormat = "figures: %d goroutines, %d fds, %d maps, %d indexes, %d bytes\n"

// flapsMain is an agent that says its figures for each line of standard input, and ends with the input.
func flapsMain() {
	runAs(func(c *cli.Context) error {
		cfg, err := configure(c)
		if err != nil {
			return err
		}
		ctx, stop := context.WithCancel(c.Context)
		ready := cfg.Ready
		cfg.Ready = func(file string) {
			ready(file)
			go func() {
				defer stop()
				for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
					f, err := figuresNow()
					if err != nil {
						fmt.Fprintln(os.Stderr, "no figures:", err)
						return
					}
					fmt.Fprintf(os.Stderr, figuresFormat, f.goroutines, f.fds, f.maps, f.indexes, f.heap)
				}
			}()
		}
		sum, err := capture.Run(ctx, nil, cfg)
		printSummary(os.Stderr, sum)
		return err
	})
}

// figuresNow takes the figures of this process.
func figuresNow() (f figures, err error) {
	runtime.GC()
	runtime.GC() // what the first one has finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f.goroutines, f.heap = runtime.NumGoroutine(), int(m.HeapAlloc)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return f, err
	}
	f.fds = len(fds)
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return f, err
	}
	f.maps = len(regexp.MustCompile(`(?m)(socket:|anon_inode:).*$`).FindAll(maps, -1))
	for _, fd := range fds {
		of, err := os.ReadFile("/proc/self/fdinfo/" + fd.Name())
		if err != nil {
			continue // that of the directory
		}
		if id := regexp.MustCompile(`(?m)^map_id:\s*(\d+)$`).FindSubmatch(of); id != nil {
			n, err := countIndexes(string(id[1]))
			if err != nil {
				return f, err
			}
			f.indexes += n
		}
	}
	return f, nil
}

// countIndexes returns how many entries a map has, if its name is interfaces.
func countIndexes(id string) (n int, err error) {
	number, err := strconv.Atoi(id)
	if err != nil {
		return 0, err
	}
	m, err := ebpf.NewMapFromID(ebpf.MapID(number))
	if err != nil {
		return 0, err
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil || info.Name != "interfaces" {
		return 0, err
	}
	var key uint32
	for err = m.NextKey(nil, &key); err == nil; err = m.NextKey(key, &key) {
		n++
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = nil
	}
	return n, err
}

// flapping is an agent that is flapped, and what flaps it.
type flapping struct {
	*flap.Flapper
	*nettest.Process
	file  string
	stdin io.WriteCloser
	asked int
}

// startFlapping starts an agent in a namespace.
func startFlapping(t *testing.T, s nettest.Space, args ...string) *flapping {
	t.Helper()
	p := &flapping{file: filepath.Join(t.TempDir(), "flaps.pcapng")}
	p.Flapper = flapper(t, s)
	cmd := s.Command(append([]string{"agent-flaps", "-U", "-w", p.file}, args...)...)
	p.stdin = input(t, cmd)
	p.Process = nettest.Start(t, cmd, "capturing on")
	return p
}

func flapper(t *testing.T, s nettest.Space) *flap.Flapper {
	t.Helper()
	ns, err := netns.GetFromName(s.Name)
	must(t, err)
	defer ns.Close()
	f, err := flap.Open(ns)
	must(t, err)
	t.Cleanup(f.Close)
	return f
}

func input(t *testing.T, cmd *exec.Cmd) io.WriteCloser {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	must(t, err)
	return stdin
}

// figures asks the agent for its figures.
func (p *flapping) figures(t *testing.T) (f figures) {
	t.Helper()
	p.asked++
	_, err := io.WriteString(p.stdin, "\n")
	must(t, err)
	p.AwaitTimes(t, "\nfigures: ", p.asked)
	said := p.Stderr()
	_, err = fmt.Sscanf(said[strings.LastIndex(said, "\nfigures: ")+1:], figuresFormat, &f.goroutines, &f.fds, &f.maps, &f.indexes, &f.heap)
	must(t, err)
	return f
}

// moreHeap is by how many bytes the heap may differ: a batch of records, 256 KiB, may wait for a reader, and up to 256 indexes
// that left are remembered. 1,000 leaks of half a KiB would be more.
const moreHeap = 400 << 10

// same waits until the figures are no larger than before: rings end a moment after their interfaces, and indexes that left
// are counted until a tick, a second later at least. They may be smaller, for before was taken while the agent worked.
func (p *flapping) same(t *testing.T, before figures) {
	t.Helper()
	deadline := time.Now().Add(nettest.Patience)
	for {
		now := p.figures(t)
		if now.goroutines <= before.goroutines && now.fds <= before.fds && now.maps <= before.maps &&
			now.indexes <= before.indexes && now.heap <= before.heap+moreHeap {
			t.Logf("before: %+v, after: %+v", before, now)
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("before: %+v, after: %+v, descriptors:\n%s%s", before, now, p.descriptors(t), tail(p.Stderr()))
			return
		}
	}
}

// descriptors tells what the agent's descriptors are of.
func (p *flapping) descriptors(t *testing.T) string {
	t.Helper()
	of, err := exec.Command("ls", "-l", fmt.Sprintf("/proc/%d/fd", p.Pid())).CombinedOutput()
	must(t, err)
	return string(of)
}

// end ends the capture and fails the test unless that many gaps are counted.
func (p *flapping) end(t *testing.T, ifname string, gaps int) {
	t.Helper()
	must(t, p.stdin.Close())
	if code := p.Wait(t); code != 0 {
		t.Fatalf("code %d:\n%s", code, tail(p.Stderr()))
	}
	told(t, p.Process, p.file, ifname, gaps)
	if strings.Contains(p.Stderr(), "no such device") {
		t.Errorf("an interface that goes is no error:\n%s", tail(p.Stderr()))
	}
}

// tail returns the last lines of a long text.
func tail(text string) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "")
}

// flaps is how often something flaps, of which the first few are the warm-up: as often as the environment says.
func flaps(t *testing.T, few int) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("DROIDTAP_FLAPS"))
	if err != nil || n <= warmUp {
		return few
	}
	return n
}

const warmUp = 50

// TestClsactFlaps deletes clsact under a capture again and again, as netd does with each network that comes and goes.
func TestClsactFlaps(t *testing.T) {
	nettest.Require(t, "agent-flaps", "tc")
	for _, object := range []string{"ring", "legacy"} {
		t.Run(object, func(t *testing.T) {
			near, far := nettest.Pair(t)
			p := startFlapping(t, near, "-i", "veth0", "--object", object, "--backend", "tc", "udp")
			index, err := p.Index("veth0")
			must(t, err)
			var before figures
			n := flaps(t, 1000)
			var took []time.Duration
			for i := range n {
				if i == warmUp {
					before = p.figures(t)
				}
				d, err := p.Clsact(index)
				if err != nil {
					t.Fatalf("flap %d: %v\n%s", i, err, tail(p.Stderr()))
				}
				took = append(took, d)
				if in, out, err := p.Filters(index); err != nil || in != 1 || out != 1 {
					t.Fatalf("flap %d: %d filters at ingress, %d at egress (%v)", i, in, out, err)
				}
			}
			p.same(t, before)
			slices.Sort(took)
			t.Logf("filters were back after %v (median), %v (99 %%), %v (at most)", took[n/2], took[n*99/100], took[n-1])
			reached(t, far, p.file, 100)
			p.end(t, "veth0", n)
			if in, out, err := p.Filters(index); err != nil || in != 0 || out != 0 {
				t.Errorf("%d filters at ingress and %d at egress are left (%v)", in, out, err)
			}
		})
	}
}

// TestInterfaceFlaps has an interface go and come back with another index again and again.
func TestInterfaceFlaps(t *testing.T) {
	nettest.Require(t, "agent-flaps")
	const few = 100 // they take some 20 ms each
	n := flaps(t, few)
	some := variants
	if n == few { // objects differ in nothing that comes and goes with an interface, and take CI's time
		some = slices.DeleteFunc(slices.Clone(variants), func(variant []string) bool { return variant[1] != "ring" })
	}
	eachOf(t, some, func(t *testing.T, variant []string) {
		near := nettest.NewSpace(t)
		f := flapper(t, near)
		index, err := f.Make("flap0")
		must(t, err)
		p := startFlapping(t, near, append([]string{"-i", "flap0"}, append(variant, "udp")...)...)
		var before figures
		for i := range n {
			if i == warmUp {
				before = p.figures(t)
			}
			must(t, p.Delete(index))
			old := index
			index, err = p.Make("flap0")
			must(t, err)
			if index == old {
				t.Fatalf("index %d twice", index)
			}
			p.AwaitTimes(t, "and is captured again, by "+variant[3], i+1)
		}
		p.same(t, before)
		near.Run(t, "ip", "link", "set", flap.Peer, "up")
		near.Must(t, func() error { return nettest.Send(flap.Peer, markers(endIn)...) })
		nettest.Await(t, p.file, func(p nettest.Packet) bool { return p.Length == endIn })
		p.end(t, "flap0", n)
		nothingLeft(t, near)
		must(t, p.Delete(index))
	})
}
