// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"

	"droidtap/scripts/netd"
	"droidtap/scripts/nettest"
)

// objects are the bpf objects that processes had open. Their numbers are not used again soon (kernel/bpf/syscall.c idr_alloc_cyclic).
type objects struct {
	programs, maps, links map[int]bool
}

// add adds those of a process that stands still or runs.
func (o *objects) add(pid int) {
	dir := fmt.Sprintf("/proc/%d/fdinfo", pid)
	entries, _ := os.ReadDir(dir) // it may have ended by itself
	for _, e := range entries {
		b, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		for line := range strings.Lines(string(b)) {
			name, number, _ := strings.Cut(line, ":")
			id, _ := strconv.Atoi(strings.TrimSpace(number))
			switch name {
			case "prog_id":
				o.programs[id] = true
			case "map_id":
				o.maps[id] = true
			case "link_id":
				o.links[id] = true
			}
		}
	}
}

// left names those that are in the kernel. It only asks for the next number: who opens an array of programs by its number and closes it
// again while its last user goes may keep it for good (kernel/bpf/arraymap.c prog_array_map_clear: schedule_work of what is scheduled).
func (o *objects) left() (all []string) {
	for id := range o.programs {
		if next, err := ebpf.ProgramGetNextID(ebpf.ProgramID(id - 1)); err == nil && next == ebpf.ProgramID(id) {
			all = append(all, fmt.Sprintf("program %d", id))
		}
	}
	for id := range o.maps {
		if next, err := ebpf.MapGetNextID(ebpf.MapID(id - 1)); err == nil && next == ebpf.MapID(id) {
			all = append(all, fmt.Sprintf("map %d", id))
		}
	}
	for id := range o.links {
		if l, err := link.NewFromID(link.ID(id)); !errors.Is(err, os.ErrNotExist) {
			all = append(all, fmt.Sprintf("link %d (%v)", id, err))
			if err == nil {
				_ = l.Close()
			}
		}
	}
	return all
}

// awaitGone waits until none is left: the kernel frees them some time after the last user went.
func (o *objects) awaitGone(t *testing.T) {
	t.Helper()
	var left []string
	for end := time.Now().Add(nettest.Patience); time.Now().Before(end); {
		if left = o.left(); len(left) == 0 {
			return
		}
	}
	t.Errorf("%d bpf objects are left:\n%s", len(left), strings.Join(left, "\n"))
}

// dump is what there is in the phone's namespace and at its cgroup.
func (p *phone) dump(t *testing.T) (text string) {
	t.Helper()
	p.Must(t, func() (err error) {
		text, err = netd.Dump(p.cgroup)
		return err
	})
	return text
}

// TestKill kills captures at random moments, from their first instruction on, while netd's interfaces come and go and traffic flows. Not
// one of netd's objects is harmed, and after one start and end more everything is as it was before the first.
func TestKill(t *testing.T) {
	nettest.Require(t, "agent", "agent-old", "capinfos")
	for _, c := range []struct {
		way, kills int
		hasNetd    bool
	}{{0, 20, true}, {1, 35, true}, {2, 20, false}, {3, 25, true}} {
		t.Run(fmt.Sprintf("%s, netd's file is there %v", ways[c.way].name, c.hasNetd), func(t *testing.T) {
			kill(t, ways[c.way].agent, c.kills, c.hasNetd)
		})
	}
}

func kill(t *testing.T, agent []string, kills int, hasNetd bool) {
	p := newPhone(t)
	p.offload(t)
	must(t, p.DSCP("wlan0"))
	must(t, p.Vendor("wlan0"))
	before := p.dump(t)
	dir := t.TempDir()
	p.start(t, hasNetd, filepath.Join(dir, "ended.pcapng"), agent, "-i", "any").Stop(t, syscall.SIGINT)
	if d := cmp.Diff(before, p.dump(t)); d != "" {
		t.Errorf("one that was not killed left something, or took it away (-before +after):\n%s", d)
	}
	seen := &objects{map[int]bool{}, map[int]bool{}, map[int]bool{}}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() { stopped <- p.talkUntil(stop) }()

	begun := time.Now()
	first := p.start(t, hasNetd, filepath.Join(dir, "first.pcapng"), agent, "-i", "any")
	whole := time.Since(begun)
	seen.add(first.Pid())
	first.Signal(t, syscall.SIGKILL)
	first.Wait(t)
	residue := p.dump(t)
	t.Logf("a start takes %v; one kill leaves\n%s", whole, strings.Join(added(before, residue), "\n"))
	random := rand.New(rand.NewPCG(5, uint64(kills)))
	captured := 0
	for n := 1; n < kills; n++ {
		file := filepath.Join(dir, fmt.Sprintf("%03d.pcapng", n))
		argv := append(append([]string{}, agent...), "-w", file, "-i", "any")
		if n%2 > 0 {
			argv = append(argv, "-U")
		}
		a := nettest.Start(t, p.athome(hasNetd, argv...), "")
		if n%3 == 0 { // in the middle of a re-attach
			a.Await(t, "capturing on")
			must(t, p.Leave("wlan0"))
			must(t, p.Join("wlan0"))
			moment(random, 5*time.Millisecond)
		} else {
			moment(random, whole*3/2)
		}
		a.Signal(t, syscall.SIGSTOP)
		seen.add(a.Pid())
		captured += strings.Count(a.Stderr(), "capturing on")
		a.Signal(t, syscall.SIGKILL)
		a.Wait(t)
		if n%3 == 0 {
			must(t, p.DSCP("wlan0"))
			must(t, p.Vendor("wlan0"))
		}
		if err := p.Check(); err != nil {
			t.Fatalf("kill %d: %v", n, err)
		}
		if d := cmp.Diff(before, others(p.dump(t))); d != "" {
			t.Fatalf("kill %d: something of others is missing (-before +after):\n%s", n, d)
		}
	}
	close(stop)
	must(t, <-stopped)
	if captured < kills/4 || captured == kills {
		t.Errorf("%d of %d were killed while they captured: this tests too little", captured, kills)
	}
	next := p.start(t, hasNetd, filepath.Join(dir, "next.pcapng"), agent, "-i", "any")
	seen.add(next.Pid())
	next.Stop(t, syscall.SIGINT)
	t.Logf("%d of %d captured; the next start said\n%s", captured, kills, next.Stderr())
	must(t, p.Check())
	compareDumps(t, before, p.dump(t))
	seen.awaitGone(t)
	t.Logf("%d programs, %d maps and %d links were seen", len(seen.programs), len(seen.maps), len(seen.links))
	if pids := strings.TrimSpace(nettest.Run(t, "ip", "netns", "pids", p.Name)); pids != "" {
		t.Errorf("processes are left: %s", pids)
	}
	readable(t, dir)
}

// moment waits for a while that is not known beforehand.
func moment(random *rand.Rand, most time.Duration) {
	<-time.After(time.Duration(random.Int64N(int64(most))))
}

// talkUntil exchanges datagrams with the servers, some hundred times a second. One may be lost while a clsact is made or deleted.
func (p *phone) talkUntil(stop <-chan struct{}) error {
	return p.Do(0, func() error {
		var conns []net.Conn
		for _, s := range p.servers {
			c, err := net.Dial("udp", s.at.String())
			if err != nil {
				return err
			}
			defer c.Close()
			conns = append(conns, c)
		}
		tick := time.NewTicker(3 * time.Millisecond)
		defer tick.Stop()
		b := make([]byte, 100)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return nil
			case <-tick.C:
			}
			c := conns[n%len(conns)]
			if err := c.SetDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
				return err
			}
			if _, err := c.Write(b); err != nil {
				return err
			}
			_, _ = c.Read(b)
		}
	})
}

// added are the lines that came.
func added(before, after string) (lines []string) {
	for line := range strings.Lines(after) {
		if !strings.Contains(before, line) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// loClsact is a clsact of ours: netd makes none on lo.
const loClsact = "qdisc lo clsact handle ffff: parent ffff:fff1\n"

// others are the lines of a dump that are not ours.
func others(dump string) string {
	var kept strings.Builder
	for line := range strings.Lines(dump) {
		if line != loClsact && !strings.Contains(line, "droidtap:") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

// compareDumps wants the two equal, but for an empty clsact of ours on lo: it stays where the agent was killed behind making it and ahead
// of putting the filter in it that says whose it is.
func compareDumps(t *testing.T, before, after string) {
	t.Helper()
	after = strings.ReplaceAll(after, loClsact, "")
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("something remained, or is missing (-before +after):\n%s", d)
	}
}

// readable has capinfos read what killed captures left: at worst it is cut short in its last block.
func readable(t *testing.T, dir string) {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*.pcapng"))
	must(t, err)
	argv := []string{"-c", "-M", "-r", "-T"}
	for _, file := range all {
		if i, err := os.Stat(file); err == nil && i.Size() > 0 {
			argv = append(argv, file)
		}
	}
	cmd := exec.Command("capinfos", argv...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "LC_ALL=C.UTF-8")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, _ := cmd.Output() // it fails where one is cut short
	for line := range strings.Lines(stderr.String()) {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "cut short") && !strings.HasPrefix(line, "capinfos: An error occurred after reading") {
			t.Errorf("capinfos: %s", line)
		}
	}
	packets := 0
	for line := range strings.Lines(string(out)) {
		n, _ := strconv.Atoi(strings.TrimSpace(line[strings.LastIndex(line, "\t")+1:]))
		packets += n
	}
	t.Logf("%d of %d files begin, with %d packets; %d are cut short", len(argv)-4, len(all), packets, strings.Count(stderr.String(), "cut short"))
	if packets == 0 {
		t.Error("there is not one packet in them")
	}
}

// TestEndAmid ends captures while something is being attached anew, right behind the removal of the filter, while the interface is down
// and while it is away: each ends well, and tells of what is missing.
func TestEndAmid(t *testing.T) {
	nettest.Require(t, "agent", "agent-old", "tc")
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			p := newPhone(t)
			file := filepath.Join(t.TempDir(), "out.pcapng")
			for _, c := range []struct {
				name    string
				signal  syscall.Signal
				times   int
				removed bool // our filter, if there is one
				do      func()
			}{
				{"a re-attach", syscall.SIGTERM, 3, true, func() { must(t, p.Leave("wlan0")); must(t, p.Join("wlan0")) }},
				{"a removal", syscall.SIGINT, 3, true, func() { must(t, p.Leave("wlan0")) }},
				{"a time down", syscall.SIGTERM, 1, false, func() { p.Run(t, "ip", "link", "set", "wlan0", "down") }},
				{"an absence", syscall.SIGINT, 1, false, func() { p.Run(t, "ip", "link", "del", "wlan0") }},
			} {
				for range c.times {
					must(t, p.Join("wlan0"))
					a := p.start(t, true, file, way.agent, "-i", "wlan0")
					if c.name != "an absence" {
						must(t, p.askAll("before", "wlan0"))
					}
					c.do()
					a.Stop(t, c.signal)
					f, err := nettest.Read(file)
					if err != nil || c.name != "an absence" && len(f.Packets) < 4 {
						t.Errorf("%s: %d packets are in the file (%v)", c.name, len(f.Packets), err)
					}
					if said := a.Stderr(); strings.Contains(said, "wlan0: somebody removed our tc filter") != (c.removed && strings.HasSuffix(way.name, "tc")) {
						t.Errorf("%s: it is said\n%s", c.name, said)
					}
					if left := p.dump(t); strings.Contains(left, "droidtap:") || strings.Contains(left, "tcx ") {
						t.Errorf("%s: left behind:\n%s", c.name, left)
					}
				}
			}
			must(t, p.Leave("wlan0"))
		})
	}
}
