// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"droidtap/agent/control"
	"droidtap/scripts/nettest"
)

// numberedFilter is what all captures of a sender of numbered have.
const numberedFilter = "ether proto 0x88b5"

// rotating is a capture that makes many files.
type rotating struct {
	name, socket string // name is of its files
	*nettest.Process
}

func startRotating(t *testing.T, s nettest.Space, dir, name string, args ...string) *rotating {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "sock")
	argv := append([]string{"agent", "-i", "veth0", "-w", filepath.Join(dir, name), "--socket", socket}, args...)
	return &rotating{name, socket, nettest.Start(t, s.Command(append(argv, numberedFilter)...), "capturing on")}
}

// ask has the capture do something.
func (r *rotating) ask(t *testing.T, what string, result any) {
	t.Helper()
	c, err := control.Dial(r.socket)
	must(t, err)
	defer c.Close()
	a, err := c.Ask(control.Request{Do: what})
	must(t, err)
	if a.Error != "" {
		t.Fatalf("%s: %s", what, a.Error)
	}
	must(t, json.Unmarshal(a.Result, result))
}

// files returns how many it has made.
func (r *rotating) files(t *testing.T) int {
	t.Helper()
	var s stats
	r.ask(t, control.Stats, &s)
	return s.Files
}

// TestRotation rotates captures of the same packets by size, by number, by time and by agent rotate, beside a tcpdump that rotates, too. Each file stands
// alone; each packet is in exactly one of each capture's, and all are in order. DROIDTAP_ROTATIONS says how many files each makes at least.
func TestRotation(t *testing.T) {
	nettest.Require(t, "agent", "tcpdump", "capinfos")
	near, far := nettest.Pair(t)
	dir := t.TempDir()
	least := envNumber("DROIDTAP_ROTATIONS", 60)
	tcpdump := nettest.Start(t, near.Command("tcpdump", "-Z", "root", "-U", "--immediate-mode", "-n", "-i", "veth0", "-B", "65536", "-C", "1",
		"-w", filepath.Join(dir, "tcpdump"), numberedFilter), "listening on")
	more := []string{"-B", "32768"}
	all := []*rotating{
		startRotating(t, near, dir, "size", append(more, "-C", "100k")...),
		startRotating(t, near, dir, "zstd", append(more, "-C", "200k", "--compress", "zstd", "-U")...),
		startRotating(t, near, dir, "number", append(more, "-b", "packets:100")...),
		startRotating(t, near, dir, "time", append(more, "-b", "duration:0.02")...),
		startRotating(t, near, dir, "asked", more...),
	}
	asked := all[len(all)-1]
	sender := send(far, 10000, 1<<30, false)
	begun := time.Now()
	for n := 0; ; {
		var r rotated
		asked.ask(t, control.Rotate, &r)
		if r.File != "" {
			n++
		}
		if n%20 != 0 || n < least {
			continue
		}
		if !slices.ContainsFunc(all, func(r *rotating) bool { return r.files(t) <= least }) {
			break
		}
		if time.Since(begun) > nettest.Patience*time.Duration(1+least/50) {
			t.Fatal("rotations take too long")
		}
	}
	sent := sender.end(t)
	took := time.Since(begun)
	for _, r := range all {
		used := usage(t, r.Pid())
		r.Stop(t, syscall.SIGINT)
		paths := family(t, dir, r.name)
		standsAlone(t, r, paths, sent)
		t.Logf("%s: %d packets in %d files, in %v; %s", r.name, sent, len(paths), took.Round(time.Millisecond), used)
	}
	inTcpdump(t, tcpdump, dir, "tcpdump", sent)
	argv := []string{"capinfos", "-c", "-M", "-T", "-r"}
	for _, r := range all {
		if r.name != "zstd" {
			argv = append(argv, family(t, dir, r.name)...)
		}
	}
	wireshark(t, argv...)
	nothingLeft(t, near)
}

// standsAlone wants the packets from 0 to sent in the files of a capture, each once and in order. Each file has its interface, and what it counted adds up.
func standsAlone(t *testing.T, r *rotating, paths []string, sent int) {
	t.Helper()
	if c := counters(t, r.Stderr()); c["captured"] != sent || c["received by filter"] != sent || c["dropped by kernel"] != 0 || c["dropped by agent"] != 0 {
		t.Errorf("%s: %d packets sent:\n%s", r.name, sent, r.Stderr())
	}
	var received, delivered uint64
	next := 0
	for i, path := range paths {
		f, err := unpacked(t, path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if len(f.Interfaces) != 1 || f.Interfaces[0].Name != "veth0" || f.Interfaces[0].Statistics == nil {
			t.Fatalf("%s: %+v", path, f.Interfaces)
		}
		if len(f.Packets) == 0 && i < len(paths)-1 {
			t.Errorf("%s has no packets", path)
		}
		for _, n := range numbers(f.Packets) {
			if n != next {
				t.Fatalf("%s: packet %d, and not %d", path, n, next)
			}
			next++
		}
		received += f.Interfaces[0].Statistics[4]  // isb_ifrecv
		delivered += f.Interfaces[0].Statistics[8] // isb_usrdeliv
	}
	if next != sent || delivered != uint64(sent) || received < uint64(sent) {
		t.Errorf("%s: %d packets sent; %d in files, %d received and %d delivered by their statistics", r.name, sent, next, received, delivered)
	}
}

// inTcpdump returns how many of the packets tcpdump has, which are fewer where it says so.
func inTcpdump(t *testing.T, p *nettest.Process, dir, name string, sent int) (got int) {
	t.Helper()
	// It does not read what waits when it is told to end. Its counters are on stderr: to have it flush in the middle of a write spoils the file.
	end := time.Now().Add(nettest.Patience / 4)
	for n := 1; time.Now().Before(end); n++ {
		p.Signal(t, syscall.SIGUSR1)
		p.AwaitTimes(t, "dropped by kernel", n)
		if c := counters(t, p.Stderr()); c["captured"]+c["dropped by kernel"] >= sent {
			break
		}
	}
	used := usage(t, p.Pid())
	p.Stop(t, syscall.SIGINT)
	paths := family(t, dir, name)
	for _, path := range paths {
		f, err := nettest.Read(path)
		must(t, err)
		got += len(f.Packets)
	}
	said := strings.Join(strings.Fields(p.Stderr()[strings.Index(p.Stderr(), "listening"):]), " ")
	t.Logf("tcpdump: %d of %d packets in %d files; %s; %s", got, sent, len(paths), used, said)
	if c := counters(t, p.Stderr()); got != sent && c["dropped by kernel"] == 0 {
		t.Errorf("tcpdump has %d of %d packets, and says\n%s", got, sent, p.Stderr())
	}
	return got
}

// TestRotationFlood floods captures with files of a megabyte, and a tcpdump with the same options: what is not in the agent's files was counted.
func TestRotationFlood(t *testing.T) {
	nettest.Require(t, "agent", "tcpdump")
	for _, c := range []struct {
		name string
		args []string
	}{{"", nil}, {" -U", []string{"-U"}}, {" -s 96", []string{"-s", "96"}}, {" --compress zstd", []string{"--compress", "zstd"}}} {
		t.Run("-C 1"+c.name, func(t *testing.T) {
			near, far := nettest.Pair(t)
			dir := t.TempDir()
			a := startRotating(t, near, dir, "agent", append(c.args, "-C", "1")...)
			argv := []string{"tcpdump", "-Z", "root", "-n", "-i", "veth0", "-B", "4096", "-C", "1", "-w", filepath.Join(dir, "tcpdump")}
			if c.args != nil && c.args[0] != "--compress" {
				argv = append(argv, c.args...)
			}
			tcpdump := nettest.Start(t, near.Command(append(argv, numberedFilter)...), "listening on")
			begun := time.Now()
			sender := send(far, 0, envNumber("DROIDTAP_FLOOD", 60000), false)
			must(t, <-sender.stopped)
			sent, took := int(sender.sent.Load()), time.Since(begun)
			used := usage(t, a.Pid())
			a.Stop(t, syscall.SIGINT)
			got, before := 0, -1
			paths := family(t, dir, "agent")
			for _, path := range paths {
				f, err := unpacked(t, path)
				must(t, err)
				for _, n := range numbers(f.Packets) {
					if n <= before {
						t.Fatalf("%s: packet %d behind %d", path, n, before)
					}
					before = n
					got++
				}
			}
			n := counters(t, a.Stderr())
			t.Logf("%d packets sent in %v, %.0f a second; in %d files of the agent's: %d, %d dropped by kernel; %s", sent, took.Round(time.Millisecond),
				float64(sent)/took.Seconds(), len(paths), got, n["dropped by kernel"], used)
			if n["captured"] != got || got+n["dropped by kernel"]+n["dropped by agent"] != sent {
				t.Errorf("%d packets sent, %d in files:\n%s", sent, got, a.Stderr())
			}
			if len(paths) < 2 {
				t.Error("there is one file only: this tests nothing")
			}
			inTcpdump(t, tcpdump, dir, "tcpdump", sent)
		})
	}
}

// TestRotationRoom has captures that keep some of their files only: the newest, and never more than was said.
func TestRotationRoom(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	const quota = 1 << 20
	list := filepath.Join(t.TempDir(), "list")
	all := []struct {
		*rotating
		dir  string
		most int // files
	}{
		{dir: t.TempDir(), most: quota / (100 << 10)}, {dir: t.TempDir(), most: 5}, {dir: t.TempDir(), most: 7},
	}
	all[0].rotating = startRotating(t, near, all[0].dir, "quota", "-B", "32768", "-C", "100k", "--disk-quota", "1m")
	all[1].rotating = startRotating(t, near, all[1].dir, "ring", "-B", "32768", "-b", "packets:150", "-b", "files:5", "-z", "basename >>"+list)
	all[2].rotating = startRotating(t, near, all[2].dir, "cyclic", "-B", "32768", "-C", "100k", "-W", "7")
	sender := send(far, 2000, 6000, false)
	for running := true; running; {
		select {
		case err := <-sender.stopped:
			must(t, err)
			running = false
		default:
		}
		all[0].Signal(t, syscall.SIGSTOP) // or files would come and go meanwhile
		awaitStopped(t, all[0].Pid())
		used := int64(0)
		for _, path := range family(t, all[0].dir, "quota") {
			st, err := os.Stat(path)
			must(t, err)
			used += st.Size()
		}
		all[0].Signal(t, syscall.SIGCONT)
		if used > quota {
			t.Fatalf("%d bytes are used", used)
		}
	}
	sent := int(sender.sent.Load())
	for _, r := range all {
		r.Stop(t, syscall.SIGINT)
		paths := family(t, r.dir, r.name)
		if n := len(paths); n > r.most || n < r.most-1 {
			t.Errorf("%s: %d files, and not %d", r.name, n, r.most)
		}
		var got []int
		for _, path := range paths {
			f, err := unpacked(t, path)
			must(t, err)
			got = append(got, numbers(f.Packets)...)
		}
		slices.Sort(got) // names that are used again are in no order
		if len(got) == 0 || got[0] == 0 || got[len(got)-1] != sent-1 || got[len(got)-1]-got[0] != len(got)-1 {
			t.Errorf("%s: %d packets, the first and the last are %v", r.name, len(got), got[:1])
		}
		if c := counters(t, r.Stderr()); c["captured"] != sent {
			t.Errorf("%s: %d packets sent\n%s", r.name, sent, r.Stderr())
		}
	}
	var names []string
	for end := time.Now().Add(nettest.Patience); len(names) < 40 && time.Now().Before(end); {
		text, err := os.ReadFile(list)
		must(t, err)
		names = strings.Fields(string(text))
	}
	slices.Sort(names)
	for i, name := range names {
		if !strings.HasPrefix(name, fmt.Sprintf("ring_%05d_", i+1)) {
			t.Fatalf("-z was run for %s, and not for file %d", name, i+1)
		}
	}
	if len(names) != 40 {
		t.Errorf("-z was run %d times", len(names))
	}
	nothingLeft(t, near)
}

// awaitStopped waits until all threads of a process have stopped.
func awaitStopped(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(nettest.Patience); time.Now().Before(end); {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		must(t, err)
		running := false
		for _, path := range threads {
			stat, err := os.ReadFile(path)
			_, state, _ := strings.Cut(string(stat), ") ")
			running = running || err == nil && !strings.HasPrefix(state, "T")
		}
		if !running {
			return
		}
	}
	t.Fatalf("pid %d does not stop", pid)
}
