// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/agent/pcapng"
)

// Of each beginning of a compressed file the longest one of whole frames is kept, whatever follows.
func TestEachBeginningIsRepaired(t *testing.T) {
	for _, method := range []string{compressZstd, compressGzip} {
		t.Run(method, func(t *testing.T) {
			counts := []int{0, 1, 7, 2}
			var all []byte
			ends, packets := []int{0}, []int{0}
			for i, text := range blocksOf(t, counts...) {
				all = append(all, frameOf(t, method, text)...)
				ends = append(ends, len(all))
				packets = append(packets, packets[i]+counts[i])
			}
			for n := 4; n <= len(all); n++ { // fewer bytes tell of no format
				for what, tail := range map[string][]byte{"nothing": nil, "zeros": make([]byte, 100), "noise": random(50)(0)} {
					text := append(bytes.Clone(all[:n]), tail...)
					last := len(ends) - 1
					for !bytes.HasPrefix(text, all[:ends[last]]) { // the last bytes of a member may be zeros themselves
						last--
					}
					size, got, err := wholeFile(bytes.NewReader(text), int64(len(text)))
					if err != nil || size != int64(ends[last]) || got != uint64(packets[last]) {
						t.Fatalf("%d of %d bytes and %s: %d bytes and %d packets are whole (%v), want %d and %d",
							n, len(all), what, size, got, err, ends[last], packets[last])
					}
				}
			}
		})
	}
}

// A frame whose checksum is wrong is not whole, nor is what follows.
func TestDamagedFrame(t *testing.T) {
	for _, method := range []string{compressZstd, compressGzip} {
		texts := blocksOf(t, 3, 5, 7)
		first, second, third := frameOf(t, method, texts[0]), frameOf(t, method, texts[1]), frameOf(t, method, texts[2])
		second[len(second)-6]++ // in the checksum, or in front of it
		all := append(append(bytes.Clone(first), second...), third...)
		if size, n, err := wholeFile(bytes.NewReader(all), int64(len(all))); err != nil || size != int64(len(first)) || n != 3 {
			t.Errorf("%s: %d bytes and %d packets are whole (%v), want %d and 3", method, size, n, err, len(first))
		}
	}
}

// Frames of others may end anywhere. Where the last one that is there does not end a block, one before may.
func TestForeignFrames(t *testing.T) {
	for _, method := range []string{compressZstd, compressGzip} {
		text := bytes.Join(blocksOf(t, 3, 5), nil)
		head := bytes.Join(blocksOf(t, 3), nil)
		cut := len(head) + 10
		parts := [][]byte{frameOf(t, method, head), frameOf(t, method, text[len(head):cut]), frameOf(t, method, text[cut:])}
		all := bytes.Join(parts, nil)
		two := len(parts[0]) + len(parts[1])
		for _, c := range []struct {
			name    string
			file    []byte
			size    int
			packets uint64
		}{
			{"whole", all, len(all), 8},
			{"the third is torn", all[:len(all)-1], len(parts[0]), 3},
			{"there is no third", all[:two], len(parts[0]), 3},
			{"one frame for all", frameOf(t, method, text), len(frameOf(t, method, text)), 8},
			{"one frame for all, torn", frameOf(t, method, text)[:100], 0, 0},
			{"an empty frame at the end", append(bytes.Clone(parts[0]), frameOf(t, method, nil)...), len(parts[0]) + len(frameOf(t, method, nil)), 3},
		} {
			size, n, err := wholeFile(bytes.NewReader(c.file), int64(len(c.file)))
			if err != nil || size != int64(c.size) || n != c.packets {
				t.Errorf("%s, %s: %d bytes and %d packets are whole (%v), want %d and %d", method, c.name, size, n, err, c.size, c.packets)
			}
		}
	}
	for _, text := range []string{"text that is long enough", "\x1f\x8b text that is long enough", "\x28\xb5\x2f\xfd text that is long enough"} {
		if size, _, err := wholeFile(strings.NewReader(text), int64(len(text))); size != 0 || err != nil && !errors.Is(err, pcapng.ErrFormat) {
			t.Errorf("%q: %d, %v", text, size, err)
		}
	}
	noCapture := frameOf(t, compressGzip, []byte("text that is long enough"))
	if _, _, err := wholeFile(bytes.NewReader(noCapture), int64(len(noCapture))); !errors.Is(err, pcapng.ErrFormat) {
		t.Errorf("compressed text: %v", err)
	}
}

// A torn frame may hold much more than those before it.
func TestLargeTornFrame(t *testing.T) {
	for _, method := range []string{compressZstd, compressGzip} {
		texts := blocksOf(t, 3, 200_000)
		first := frameOf(t, method, texts[0])
		all := append(bytes.Clone(first), frameOf(t, method, texts[1])...)
		if size, n, err := wholeFile(bytes.NewReader(all), int64(len(all)-1)); err != nil || size != int64(len(first)) || n != 3 {
			t.Errorf("%s: %d bytes and %d packets are whole (%v), want %d and 3", method, size, n, err, len(first))
		}
	}
}

// What is said to be whole is found whole again, whatever the file.
func FuzzWholeFile(f *testing.F) {
	for _, method := range []string{compressNone, compressZstd, compressGzip} {
		var all []byte
		for _, text := range blocksOf(f, 1, 2) {
			all = append(all, frameOf(f, method, text)...)
		}
		f.Add(all)
		f.Add(all[:len(all)-3])
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) == 0 {
			return
		}
		size, packets, err := wholeFile(bytes.NewReader(text), int64(len(text)))
		if err != nil || size == 0 {
			return
		}
		again, n, err := wholeFile(bytes.NewReader(text[:size]), size)
		if err != nil || again != size || n != packets {
			t.Errorf("%d bytes with %d packets, then %d with %d, %v", size, packets, again, n, err)
		}
	})
}

// runRepair is agent repair.
func runRepair(t *testing.T, paths ...string) (said string, err error) {
	t.Helper()
	var all []string
	var errs []error
	for _, path := range paths {
		r, err := repairNamed(path)
		all = append(all, fmt.Sprintf("%s: %v", path, r))
		errs = append(errs, err)
	}
	return strings.Join(all, "\n"), errors.Join(errs...)
}

func TestRepairCommand(t *testing.T) {
	t.Chdir(t.TempDir())
	text := bytes.Join(blocksOf(t, 3, 5), nil)
	when := time.Unix(1e9, 5000)
	for name, content := range map[string][]byte{
		"whole": text, "torn": text[:len(text)-1], "torn.gz": append(frameOf(t, compressGzip, text), 0x1f, 0x8b, 8), "empty": nil,
	} {
		if err := errors.Join(os.WriteFile(name, content, 0o640), os.Chtimes(name, when, when), unix.Setxattr(name, markName, []byte(markOpen), 0)); err != nil {
			t.Fatal(err)
		}
		first, err := runRepair(t, name)
		if err != nil {
			t.Error(err)
		}
		want := map[string]string{
			"whole": "whole: whole, with 8 packets", "torn": "torn: 55 bytes cut, 7 packets kept", "torn.gz": "torn.gz: 3 bytes cut, 8 packets kept",
			"empty": "empty: whole, with 0 packets",
		}[name]
		if first != want {
			t.Errorf("it said %q, want %q", first, want)
		}
		second, err := runRepair(t, name)
		if err != nil || !strings.Contains(second, "whole, with") {
			t.Errorf("the second time: %q, %v", second, err)
		}
		mark := make([]byte, 8)
		if n, err := unix.Getxattr(name, markName, mark); err != nil || string(mark[:n]) != markDone {
			t.Errorf("%s is marked %q (%v)", name, mark, err)
		}
		st, err := os.Stat(name)
		if err != nil || !st.ModTime().Equal(when) || st.Mode() != 0o640 {
			t.Errorf("%s: time %v, mode %v, %v", name, st.ModTime(), st.Mode(), err)
		}
	}
}

// What must not be cut stays as it is.
func TestRepairRefuses(t *testing.T) {
	text := bytes.Join(blocksOf(t, 3, 5), nil)
	torn := text[:len(text)-1]
	tests := []struct {
		name, want string
		usage      bool
		place      func(path string) error
	}{
		{"text", "neither a pcapng nor a pcap file", false, func(path string) error { return os.WriteFile(path, []byte("a text"), 0o600) }},
		{"nothing whole", "left as it is", false, func(path string) error { return os.WriteFile(path, text[:20], 0o600) }},
		{"a link", "is a symbolic link", true, func(path string) error { return os.Symlink("torn", path) }},
		{"two names", "has 2 names", true, func(path string) error { return os.Link("torn", path) }},
		{"a directory", "is a directory", true, func(path string) error { return os.Mkdir(path, 0o700) }},
		{"a FIFO", "no regular file", true, func(path string) error { return unix.Mkfifo(path, 0o600) }},
		{"a device", "no regular file", true, func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }},
		{"a file that is written", "being written", true, func(path string) error {
			return errors.Join(os.WriteFile(path, torn, 0o600), hold(t, path))
		}},
		{"nothing", "no such file", false, func(string) error { return nil }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			if err := os.WriteFile("torn", torn, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := tt.place("x"); err != nil {
				t.Skip("it cannot be had:", err)
			}
			before, _ := os.Stat("x")
			_, err := runRepair(t, "x")
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "x") {
				t.Errorf("error %v, want %q", err, tt.want)
			}
			if tt.usage {
				checkUsage(t, err, tt.want)
			}
			if after, err := os.Stat("x"); err == nil && after.Size() != before.Size() {
				t.Errorf("%d bytes of %d are left", after.Size(), before.Size())
			}
			if got, err := os.ReadFile("torn"); err != nil || !bytes.Equal(got, torn) {
				t.Errorf("another file has changed: %v", err)
			}
		})
	}
}

// A capture that begins repairs what another one left open in its directory, and nothing else.
func TestLeftFilesAreRepaired(t *testing.T) {
	disk := smallDisk(t, "1m")
	in := func(name string) string { return filepath.Join(disk, name) }
	text := bytes.Join(blocksOf(t, 3, 5), nil)
	torn := text[:len(text)-1]
	outside := filepath.Join(t.TempDir(), "outside")
	type left struct {
		mark string
		text []byte
	}
	for name, l := range map[string]left{
		"open": {markOpen, torn}, "open.zst": {markOpen, append(frameOf(t, compressZstd, text), 1, 2, 3)}, "open and whole": {markOpen, text},
		"open and empty": {markOpen, nil}, "open and zero": {markOpen, make([]byte, 100)}, "done": {markDone, torn}, "foreign": {"", torn}, "held": {markOpen, torn},
		"linked": {markOpen, torn}, "../outside": {"", torn},
	} {
		path := in(name)
		if name == "../outside" {
			path = outside
		}
		marked(t, path, l.mark, 0, 0)
		if err := os.WriteFile(path, l.text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(hold(t, in("held")), os.Link(in("linked"), in("linked too")), os.Symlink(outside, in("link"))); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(slog.New(slog.NewTextHandler(&said, nil)))
	o := &opener{write: in("x")}
	if _, err := fill(t, o, "any", "x"); err != nil {
		t.Fatal(err)
	}
	<-o.repairs
	got := map[string]int{}
	for _, name := range append(listed(t, disk), "../outside") {
		path := in(name)
		if name == "../outside" {
			path = outside
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got[name] = len(b)
	}
	want := map[string]int{
		"open": len(text) - 56, "open.zst": len(frameOf(t, compressZstd, text)), "open and whole": len(text), "open and empty": 0, "open and zero": 100,
		"done": len(torn), "foreign": len(torn), "held": len(torn), "linked": len(torn), "linked too": len(torn), "link": len(torn), "../outside": len(torn), "x": 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("sizes (-want +got):\n%s", diff)
	}
	for _, name := range []string{"open", "open.zst", "open and whole", "open and empty", "open and zero"} {
		f, err := os.Open(in(name))
		if err != nil {
			t.Fatal(err)
		}
		if got := markOf(int(f.Fd())); got != markDone {
			t.Errorf("%s has mark %q", name, got)
		}
		f.Close()
		if n := len(regexp.MustCompile(regexp.QuoteMeta(name)+`"? ("bytes cut"|because)=`).FindAllString(said.String(), -1)); n != 1 {
			t.Errorf("%s is told of %d times", name, n)
		}
	}
	if n := strings.Count(said.String(), "\n"); n != 5 {
		t.Errorf("it said:\n%s", said.String())
	}
}
