// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// What a capture may be behind when it is killed: packets that came in the last second, or no more bytes than these.
const (
	mostBehind     = time.Second
	mostBytes      = 64 << 10
	mostBehindEver = 5 * mostBehind // on a machine that has other things to do
)

// crash is a capture that was killed.
type crash struct {
	name   string // of its files
	mode   string
	had    int // packets in them right behind that
	sent   int // before it
	late   time.Duration
	lacked int // bytes of packets that were sent before, and are not in them
}

// modes are how the captures that are killed write.
func modes() (all [][]string) {
	for _, eager := range [][]string{nil, {"-U"}} {
		for _, compress := range [][]string{nil, {"--compress", "zstd"}, {"--compress", "gzip"}} {
			for _, rotation := range [][]string{nil, {"-C", "100k"}} {
				all = append(all, slices.Concat(eager, compress, rotation))
			}
		}
	}
	return all
}

// TestCrash kills captures while they write, at random moments. What they had flushed is in their files, which the next start repairs, and that is all but
// the last second or 64 KiB. DROIDTAP_KILLS says how often.
func TestCrash(t *testing.T) {
	nettest.Require(t, "agent", "capinfos")
	near, far := nettest.Pair(t)
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(7, 7))
	seen := &objects{map[int]bool{}, map[int]bool{}, map[int]bool{}}
	all := modes()
	var crashes []crash
	for n := range envNumber("DROIDTAP_KILLS", len(all)*3/2) {
		mode := all[n%len(all)]
		backend := []string{"tcx", "tc", "packet"}[n/2%3]
		c := crash{name: fmt.Sprintf("%03d-", n), mode: strings.Join(append(mode, "--backend", backend), " ")}
		argv := []string{"agent", "-i", "veth0", "-w", filepath.Join(dir, c.name), "--backend", backend}
		a := nettest.Start(t, near.Command(append(append(argv, mode...), numberedFilter)...), "capturing on")
		if n > 0 {
			repairedByNext(t, dir, crashes[n-1])
		}
		sender := send(far, []int{100, 10000}[n/3%2], 1<<30, true)
		moment(random, 3*mostBehind/2)
		seen.add(a.Pid())
		killed := time.Now()
		a.Signal(t, syscall.SIGKILL)
		a.Wait(t)
		sender.end(t)
		c.behind(t, dir, sender.when, killed)
		crashes = append(crashes, c)
	}
	last := nettest.Start(t, near.Command("agent", "-i", "veth0", "-w", filepath.Join(dir, "last")), "capturing on")
	repairedByNext(t, dir, crashes[len(crashes)-1])
	last.Await(t, "an earlier capture was not closed, and is repaired")
	last.Stop(t, syscall.SIGINT)
	nothingLeft(t, near)
	seen.awaitGone(t)
	paths, err := filepath.Glob(filepath.Join(dir, "*"))
	must(t, err)
	wireshark(t, append([]string{"capinfos", "-c", "-M", "-T", "-r"}, slices.DeleteFunc(paths, func(path string) bool { return empty(t, path) })...)...)
	summary(t, crashes)
}

// behind finds out what a killed capture lacks of the packets that were sent at these times.
func (c *crash) behind(t *testing.T, dir string, when []time.Time, killed time.Time) {
	t.Helper()
	c.had = c.inOrder(t, dir, false)
	for n, at := range when {
		if at.After(killed) {
			break
		}
		c.sent++
		if n < c.had {
			continue
		}
		if c.lacked == 0 {
			c.late = killed.Sub(at)
		}
		c.lacked += lengthOf(n)
	}
	if c.late > mostBehindEver && c.lacked > mostBytes {
		t.Errorf("%s: %v and %d bytes are missing", c, c.late, c.lacked)
	}
}

// inOrder returns how many packets are in the files: those from 0 on.
func (c *crash) inOrder(t *testing.T, dir string, repaired bool) (next int) {
	t.Helper()
	paths := family(t, dir, c.name)
	for i, path := range paths {
		f, err := unpacked(t, path)
		if err != nil && (repaired || i < len(paths)-2) { // the last but one may be about to be closed
			t.Errorf("%s: %s: %v", c, path, err)
		}
		for _, n := range numbers(f.Packets) {
			if n != next {
				t.Fatalf("%s: %s: packet %d, and not %d", c, path, n, next)
			}
			next++
		}
	}
	return next
}

func (c *crash) String() string { return c.name + " " + c.mode }

// repairedByNext waits until the start of another capture has repaired the files, and looks at them.
func repairedByNext(t *testing.T, dir string, c crash) {
	t.Helper()
	for _, path := range family(t, dir, c.name) {
		mark := ""
		for end := time.Now().Add(nettest.Patience); time.Now().Before(end); {
			if mark = markOf(t, path); mark == "done" || mark == "" {
				break
			}
		}
		if mark == "" && empty(t, path) {
			continue // it was killed in the moment between making the file and marking it
		}
		if mark != "done" {
			t.Fatalf("%s is not repaired: %q", path, mark)
		}
	}
	if got := c.inOrder(t, dir, true); got != c.had {
		t.Errorf("%s: %d packets when it was repaired, and %d before", &c, got, c.had)
	}
}

// markOf returns what the agent says of a file of its own, that it is open or done; "" of another.
func markOf(t *testing.T, path string) string {
	t.Helper()
	b := make([]byte, 16)
	n, err := unix.Getxattr(path, "trusted.droidtap", b)
	if err != unix.ENODATA {
		must(t, err)
	}
	return string(b[:max(0, n)])
}

// awaitDone waits until a file is closed: it is on the disk, and marked so.
func awaitDone(t *testing.T, path string) {
	t.Helper()
	for end := time.Now().Add(nettest.Patience); markOf(t, path) != "done"; {
		if time.Now().After(end) {
			t.Fatalf("%s is not ended", path)
		}
	}
}

func empty(t *testing.T, path string) bool {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Size == 0
}

// summary says how far behind the killed captures were.
func summary(t *testing.T, crashes []crash) {
	t.Helper()
	late := 0
	for _, eager := range []bool{false, true} {
		var times []time.Duration
		var lacked []int
		packets := 0
		for _, c := range crashes {
			if strings.HasPrefix(c.mode, "-U") != eager {
				continue
			}
			packets += c.had
			times, lacked = append(times, c.late), append(lacked, c.lacked)
			if c.late > mostBehind && c.lacked > mostBytes {
				late++
				t.Logf("%s: %d of %d packets, %v and %d bytes behind", &c, c.had, c.sent, c.late, c.lacked)
			}
		}
		slices.Sort(times)
		slices.Sort(lacked)
		middle, end := len(times)/2, len(times)-1
		t.Logf("-U %v: %d kills, %d packets kept; behind: %v and %d bytes at the median, %v and %d bytes at most", eager, len(times), packets,
			times[middle], lacked[middle], times[end], lacked[end])
	}
	if late > len(crashes)/10 {
		t.Errorf("%d of %d were more than %v and %d bytes behind", late, len(crashes), mostBehind, mostBytes)
	}
}
