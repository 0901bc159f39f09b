// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"droidtap/scripts/nettest"
)

// trouble is a daemon that writes into a directory of its own, for which something is in the way.
type trouble struct {
	*background
	disk string
	far  nettest.Space
	sent *numbered
}

// launchTroubled starts one that writes to name in a file system of so many bytes; "" is a directory. It gets packets from then on.
func launchTroubled(t *testing.T, size, name string, args ...string) *trouble {
	t.Helper()
	near, far := nettest.Pair(t)
	b := &trouble{background: &background{Space: near, dir: t.TempDir()}, disk: filepath.Join(t.TempDir(), "disk"), far: far}
	must(t, os.Mkdir(b.disk, 0o755))
	if size != "" {
		nettest.Run(t, "mount", "-t", "tmpfs", "-o", "size="+size, "droidtap-test", b.disk)
		t.Cleanup(func() { nettest.Run(t, "umount", b.disk) })
	}
	b.launch(t, name, args...)
	b.sent = send(far, 2000, 1<<30, false)
	return b
}

func (b *trouble) launch(t *testing.T, name string, args ...string) {
	t.Helper()
	argv := b.argv("agent", append([]string{"-w", filepath.Join(b.disk, name)}, append(args, numberedFilter)...)...)
	if _, stderr, code := b.ends(argv...); code != 0 {
		t.Fatalf("code %d: %s", code, stderr)
	}
	var s status
	b.json(t, &s, "status")
	b.pid = s.Pid
}

// paused waits until the daemon has paused for a reason that has a text in it and nothing more was captured, and returns its status. The reason is in the text of
// agent status, among the warnings and in the log, too.
func (b *trouble) paused(t *testing.T, text string) status {
	t.Helper()
	s := b.until(t, "it pauses", func(s status) bool { return s.Paused != "" })
	if s.State != "capturing" || !strings.Contains(s.Paused, text) {
		t.Errorf("state %s, paused %q, and not %q", s.State, s.Paused, text)
	}
	b.warned(t, s, "nothing is written until the output works again", text)
	if said := b.ask(t, "status"); !strings.Contains(said, "\npaused: "+s.Paused+"\n") {
		t.Errorf("status:\n%s", said)
	}
	return s
}

// resumed waits until packets are written again.
func (b *trouble) resumed(t *testing.T) status {
	t.Helper()
	s := b.until(t, "it goes on", func(s status) bool { return s.Paused == "" })
	b.warned(t, s, "the output works again")
	return b.until(t, "more is captured", func(now status) bool { return now.Captured > s.Captured })
}

// warned wants a line with all texts in the log and in the status.
func (b *trouble) warned(t *testing.T, s status, texts ...string) {
	t.Helper()
	all := func(line string) bool {
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) })
	}
	if !slices.ContainsFunc(s.Warnings, func(w warning) bool { return all(w.Text) }) {
		t.Errorf("no warning has %q: %+v", texts, s.Warnings)
	}
	if !slices.ContainsFunc(strings.Split(b.log(t), "\n"), all) {
		t.Errorf("no line of the log has %q:\n%s", texts, b.log(t))
	}
}

func (b *trouble) until(t *testing.T, what string, is func(status) bool) (s status) {
	t.Helper()
	for end := time.Now().Add(nettest.Patience); time.Now().Before(end); {
		if b.json(t, &s, "status"); is(s) {
			return s
		}
	}
	t.Fatalf("not within %v: %s: %+v\n%s", nettest.Patience, what, s, b.log(t))
	return s
}

// finish ends the daemon, and wants what it says that it captured in the files: in order, and where some are missing, a comment that says so. Of the
// first ones it had flushed none is missing; what it did not capture it counted.
func (b *trouble) finish(t *testing.T, flushed uint64, name string) {
	t.Helper()
	sent := b.sent.end(t)
	b.ask(t, "stop")
	b.gone(t)
	got, before := 0, -1
	for _, path := range family(t, b.disk, name) {
		f, err := unpacked(t, path)
		must(t, err)
		if n := f.Interfaces[0].Statistics[8]; n != uint64(len(f.Packets)) { // isb_usrdeliv
			t.Errorf("%s has %d packets, and %d by its statistics", path, len(f.Packets), n)
		}
		for i, n := range numbers(f.Packets) {
			switch said := strings.Contains(strings.Join(f.Packets[i].Comments, "\n"), " packets were not written, in the "); {
			case n <= before || before+1 < int(flushed) && n != before+1:
				t.Fatalf("%s: packet %d behind %d; %d were flushed", path, n, before, flushed)
			case said != (n > before+1):
				t.Errorf("%s: packet %d behind %d has the comments %q", path, n, before, f.Packets[i].Comments)
			}
			before = n
			got++
		}
	}
	n := counters(t, b.log(t))
	if n["captured"] != got || n["captured"]+n["dropped by agent"]+n["dropped by kernel"] != sent || got == sent {
		t.Errorf("%d packets sent, %d in files:\n%s", sent, got, b.log(t))
	}
}

// TestFullDisk fills a small disk in the middle of a block, and makes it larger.
func TestFullDisk(t *testing.T) {
	nettest.Require(t, "agent", "mount")
	for _, args := range [][]string{nil, {"-U"}, {"-U", "--compress", "zstd"}, {"--compress", "gzip"}, {"-C", "64k"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			size := "256k"
			if slices.Contains(args, "--compress") {
				size = "32k" // the frames have little in them
			}
			b := launchTroubled(t, size, "f", args...)
			full := b.paused(t, "no space left on device")
			if full.Captured == 0 {
				t.Error("nothing was captured before")
			}
			nettest.Run(t, "mount", "-o", "remount,size=256m", b.disk)
			b.resumed(t)
			b.finish(t, full.Captured, "f")
		})
	}
}

// TestNoRoomYet starts a daemon where there is less free than --min-free: it waits for room.
func TestNoRoomYet(t *testing.T) {
	nettest.Require(t, "agent", "mount")
	b := launchTroubled(t, "512k", "f", "-C", "1", "--min-free", "1m")
	s := b.paused(t, "would have less free than the 1048576 bytes of --min-free")
	if s.Files != 0 || s.File != "" || !strings.Contains(b.log(t), "to a file as soon as there is room\n") {
		t.Errorf("%d files, %q:\n%s", s.Files, s.File, b.log(t))
	}
	b.until(t, "it counts what is lost", func(s status) bool { return s.Ignored > 0 })
	nettest.Run(t, "mount", "-o", "remount,size=256m", b.disk)
	b.resumed(t)
	b.finish(t, 0, "f")
}

// TestQuotaTooSmall has a quota that one file does not fit into: it pauses, and another file makes room.
func TestQuotaTooSmall(t *testing.T) {
	nettest.Require(t, "agent")
	b := launchTroubled(t, "", "f", "-U", "--disk-quota", "100k")
	full := b.paused(t, "would have more than the 102400 bytes of --disk-quota")
	first, err := unpacked(t, filepath.Join(b.disk, "f"))
	must(t, err)
	if uint64(len(first.Packets)) != full.Captured {
		t.Errorf("%d packets are in the file, and %d were captured", len(first.Packets), full.Captured)
	}
	b.ask(t, "rotate")
	s := b.resumed(t)
	if s.Files != 2 {
		t.Errorf("%d files", s.Files)
	}
	b.sent.end(t)
	b.ask(t, "stop")
	b.gone(t)
	used := int64(0)
	for _, path := range family(t, b.disk, "f") {
		st, err := os.Stat(path)
		must(t, err)
		used += st.Size()
	}
	if used > 100<<10 {
		t.Errorf("%d bytes are used", used)
	}
}

// TestUnwritable takes a directory from a daemon between two files, and gives it back.
func TestUnwritable(t *testing.T) {
	nettest.Require(t, "agent", "mount")
	for _, c := range []struct {
		rule, size, text string
		take, give       func(t *testing.T, disk string)
	}{
		{"read-only", "64m", "read-only file system",
			func(t *testing.T, disk string) { nettest.Run(t, "mount", "-o", "remount,ro", disk) },
			func(t *testing.T, disk string) { nettest.Run(t, "mount", "-o", "remount,rw", disk) }},
		{"renamed", "", "does not exist",
			func(t *testing.T, disk string) { must(t, os.Rename(disk, disk+"2")) },
			func(t *testing.T, disk string) { must(t, os.Rename(disk+"2", disk)) }},
	} {
		t.Run(c.rule, func(t *testing.T) {
			b := launchTroubled(t, c.size, "f")
			b.until(t, "it captures", func(s status) bool { return s.Captured > 100 })
			// Between two files none is open in it. No packet begins the next one meanwhile.
			sent := b.sent.end(t)
			b.until(t, "all is captured", func(s status) bool { b.ask(t, "flush"); return s.Captured == uint64(sent) })
			b.ask(t, "rotate")
			awaitDone(t, filepath.Join(b.disk, "f"))
			c.take(t, b.disk)
			b.sent = send(b.far, 2000, 1<<30, false)
			b.paused(t, c.text)
			c.give(t, b.disk)
			s := b.resumed(t)
			more := b.sent.end(t)
			b.ask(t, "stop")
			b.gone(t)
			if n := counters(t, b.log(t)); n["captured"]+n["dropped by agent"] != sent+more || n["dropped by agent"] == 0 {
				t.Errorf("%d and %d packets sent:\n%s", sent, more, b.log(t))
			}
			f, err := unpacked(t, filepath.Join(b.disk, "f"))
			if must(t, err); len(f.Packets) != sent {
				t.Errorf("%d packets are in the first file, and %d were sent", len(f.Packets), sent)
			}
			f, err = unpacked(t, filepath.Join(b.disk, "f1"))
			if must(t, err); len(f.Packets) == 0 || !strings.Contains(strings.Join(f.Packets[0].Comments, "\n"), "packets were not written") {
				t.Errorf("the second file has %d packets, and no comment", len(f.Packets))
			}
			if s.Files != 2 {
				t.Errorf("%d files", s.Files)
			}
		})
	}
}

// TestClockSetBack has files of a later time, under the names that are to be used: they stay, at the start and while it captures.
func TestClockSetBack(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	b := &trouble{background: &background{Space: near, dir: t.TempDir()}, disk: t.TempDir(), far: far}
	name := time.Now().Format("f-2006") // not at the end of a year
	path := filepath.Join(b.disk, name)
	later := time.Now().Add(time.Hour)
	must(t, os.WriteFile(path, []byte("of an hour later"), 0o600))
	must(t, os.Chtimes(path, later, later))
	b.launch(t, "f-%Y", "-G", "1", "-U")
	b.sent = send(far, 100, 1<<30, false)
	s := b.until(t, "another file", func(s status) bool { return s.Files > 2 })
	b.warned(t, s, "the clock was set back: the earlier file of that name stays", path, path+"-1")
	sent := b.sent.end(t)
	b.ask(t, "stop")
	b.gone(t)
	if text, err := os.ReadFile(path); string(text) != "of an hour later" {
		t.Errorf("it has %d bytes (%v)", len(text), err)
	}
	got := 0
	all := family(t, b.disk, name+"-")
	for _, path := range all {
		f, err := unpacked(t, path)
		must(t, err)
		for _, n := range numbers(f.Packets) {
			if n != got {
				t.Fatalf("%s: packet %d, and not %d", path, n, got)
			}
			got++
		}
	}
	if got != sent {
		t.Errorf("%d packets sent, %d in %q", sent, got, all)
	}
}

// TestNoDaemon says in one line what keeps a daemon from starting, and does nothing else.
func TestNoDaemon(t *testing.T) {
	nettest.Require(t, "agent", "mount")
	near, _ := nettest.Pair(t)
	disk := t.TempDir()
	nettest.Run(t, "mount", "-t", "tmpfs", "-o", "ro", "droidtap-test", disk)
	t.Cleanup(func() { nettest.Run(t, "umount", disk) })
	flags := flagFile(t, "-U\n# more\n--frobnicate 3\n")
	for _, c := range []struct {
		rule   string
		args   []string
		code   int
		text   string
		logged bool // it had its log by then
	}{
		{"an unwritable directory", []string{"-w", filepath.Join(disk, "f")}, 1, "create " + filepath.Join(disk, "f") + ": read-only file system", true},
		{"no directory", []string{"-w", filepath.Join(disk, "d", "f")}, 2, "does not exist", true},
		{"a quota smaller than a file", []string{"-C", "2", "--disk-quota", "1"}, 2, "--disk-quota 1 has no room for one file of 2000000 bytes", false},
		{"a name without strftime", []string{"-G", "60"}, 2, "put the time into the name", false},
		{"an unknown flag in a file", []string{"--config", flags}, 2, flags + ":3: there is no option --frobnicate", false},
	} {
		b := &background{Space: near, dir: t.TempDir()}
		_, stderr, code := b.ends(b.argv("agent", c.args...)...)
		if code != c.code || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "agent: ") || !strings.Contains(stderr, c.text) {
			t.Errorf("%s: code %d, %q", c.rule, code, stderr)
		}
		if c.logged && strings.Count(b.log(t), c.text) != 1 {
			t.Errorf("%s: the log:\n%s", c.rule, b.log(t))
		}
		for _, name := range []string{"pid", "sock", "ready", "f"} {
			if _, err := os.Lstat(b.file(name)); err == nil {
				t.Errorf("%s: %s is there", c.rule, name)
			}
		}
	}
	nothingLeft(t, near)
}
