// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"droidtap/agent/pcapng"
	"droidtap/scripts/nettest"
)

const (
	streamPort = 9         // nobody is there
	streamSize = 1000      // bytes: 200 kB each second, so that of the two bounds it is the time that counts
	streamMost = 1_000_000 // datagrams
	streamExpr = "udp dst port 9"

	// What a power cut may cost: either of the two.
	mostBehind      = time.Second
	mostBehindBytes = 64 << 10
)

// behind is what a power cut cost a capture.
type behind struct {
	packets, bytes int
	time           time.Duration // from when the first of them was sent
}

// powerCuts are cuts of the power at random moments of a stream, each made of a log of what the phone wrote to its disk.
type powerCuts struct {
	log     *diskLog
	folders []string // of captures, in /data
	seed    uint64
	lost    map[string][]behind // by folder, in each cut
	by      map[loss]int
}

// moments are random places of the log, ascending, at which the stream was under way.
func (c *powerCuts) moments(t *testing.T, n int, rng *rand.Rand) (at []int) {
	t.Helper()
	marks := c.log.marks
	first := slices.IndexFunc(marks, func(m mark) bool { return m.sent > 0 })
	if first < 0 || len(marks)-first < 100 {
		t.Fatalf("%d marks of a stream", len(marks))
	}
	from, to := marks[first].at, marks[len(marks)-1].at
	for range n {
		at = append(at, from+1+rng.IntN(to-from))
	}
	slices.Sort(at)
	return at
}

// run looks at the captures after each of n cuts.
func (c *powerCuts) run(t *testing.T, n int) {
	t.Helper()
	c.lost, c.by = map[string][]behind{}, map[loss]int{}
	rng := rand.New(rand.NewPCG(c.seed, 0))
	disk, image := c.log.disk(t), filepath.Join(t.TempDir(), "image")
	for i, at := range c.moments(t, n, rng) {
		l := loss(i % int(losses))
		c.by[l]++
		disk.cut(t, at, l, rng, image)
		if err := c.look(image, at); err != nil {
			t.Fatalf("cut at write %d of %d, %v (seed %d): %v", at, len(c.log.log), l, c.seed, err)
		}
	}
}

// look adds what each capture in an image has lost.
func (c *powerCuts) look(image string, at int) error {
	if err := mend(image); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(image), "")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, folder := range c.folders {
		copied, err := dump(image, folder, dir)
		if err != nil {
			return err
		}
		got, err := last(copied, 1)
		if err != nil {
			return fmt.Errorf("%s: %w", folder, err)
		}
		c.lost[folder] = append(c.lost[folder], c.log.behind(at, got))
	}
	return nil
}

// behind compares the last number that is in a capture with what was sent. A cut comes some milliseconds after the mark before it
// and before the mark after it: what was sent by then counts.
func (d *diskLog) behind(at, got int) (b behind) {
	next, _ := slices.BinarySearchFunc(d.marks, at, func(m mark, at int) int { return m.at - at })
	next = min(next, len(d.marks)-1)
	missing := slices.IndexFunc(d.marks, func(m mark) bool { return m.sent > got })
	if missing < 0 || missing > next {
		return b
	}
	b.packets = d.marks[next].sent - got
	b.bytes = b.packets * (streamSize + 14 + 20 + 8 + 32) // Ethernet, IP, UDP, the block
	b.time = d.marks[next].time.Sub(d.marks[max(missing-1, 0)].time)
	return b
}

// last returns how many datagrams of a stream whose numbers begin with first are in the files of a folder. None between may be
// missing, or be there twice.
func last(folder string, first int) (n int, err error) {
	err = filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && e.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		numbers, err := numbers(path)
		if err != nil {
			return fmt.Errorf("%s: %w", e.Name(), err)
		}
		for _, got := range numbers {
			if got < first || got >= first+streamMost {
				continue
			}
			if got != first+n {
				return fmt.Errorf("%s has datagram %d behind %d", e.Name(), got, first+n-1)
			}
			n++
		}
		return nil
	})
	return n, err
}

// numbers reads the datagrams of a file, up to where it is torn.
func numbers(path string) (numbers []int, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(path, ".zst") {
		b, _ = exec.Command("zstd", "-dcq", path).Output() // what is whole; then it complains
	}
	// ext4 may know the size of a file before it knows that its blocks are written: then they read as zeros.
	if len(bytes.Trim(b, "\x00")) == 0 {
		return nil, nil
	}
	size, _, err := pcapng.Whole(bytes.NewReader(b))
	if err != nil || size == 0 {
		return nil, err
	}
	if err := os.WriteFile(path+".whole", b[:size], 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(path + ".whole")
	if out, err := exec.Command("capinfos", "-Mc", path+".whole").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("capinfos: %w\n%s", err, out)
	}
	f, err := nettest.Read(path + ".whole")
	if err != nil {
		return nil, err
	}
	for _, p := range f.Packets {
		if len(p.Data) == 14+20+8+streamSize && binary.BigEndian.Uint16([]byte(p.Data[36:])) == streamPort {
			numbers = append(numbers, int(binary.BigEndian.Uint64([]byte(p.Data[42:]))))
		}
	}
	return numbers, nil
}

// show prints what was lost, and fails where that is more than it may be.
func (c *powerCuts) show(t *testing.T, most time.Duration) {
	t.Helper()
	t.Logf("cuts, by what becomes of writes that were not flushed: %v", c.by)
	for _, folder := range c.folders {
		var packets, bytes []int
		var times []time.Duration
		over := 0
		for _, b := range c.lost[folder] {
			packets, bytes, times = append(packets, b.packets), append(bytes, b.bytes), append(times, b.time.Round(time.Millisecond))
			if b.time > most && b.bytes > mostBehindBytes {
				over++
			}
		}
		n := len(times)
		slices.Sort(packets)
		slices.Sort(bytes)
		slices.Sort(times)
		name := filepath.Base(folder)
		t.Logf("%-8s %d cuts: lost in the middle %d packets, %d bytes, %v; at most %d packets, %d bytes, %v",
			name, n, packets[n/2], bytes[n/2], times[n/2], packets[n-1], bytes[n-1], times[n-1])
		if over > 0 {
			t.Errorf("%s: %d of %d cuts cost more than %v and %d bytes (seed %d)", name, over, n, most, mostBehindBytes, c.seed)
		}
	}
}

// streamLine sends a datagram each 5 ms, with marks.
func streamLine(n, first int) string {
	return fmt.Sprintf("/lab/phone stream -every 5ms -n %d -first %d -size %d -marks /dev/vda2 %s:%d", n, first, streamSize, peer, streamPort)
}
