// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// marked makes a file of so many bytes that carries a mark; old ones have a low age.
func marked(t *testing.T, path, mark string, bytes, age int) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = f.Write(make([]byte, bytes))
	if mark != "" {
		err = errors.Join(err, setMark(int(f.Fd()), mark))
	}
	when := time.Unix(1e9+int64(age), 0)
	if err := errors.Join(err, os.Chtimes(path, when, when)); err != nil {
		t.Fatal(err)
	}
}

func listed(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range list {
		all = append(all, e.Name())
	}
	return all
}

// next opens the next file of an opener for the test.
func next(t *testing.T, o *opener) plugin.File {
	t.Helper()
	f, err := o.Next("any")
	if err != nil {
		t.Fatal(err)
	}
	if o.repairs != nil {
		<-o.repairs // what it looks at is locked meanwhile
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A quota removes the oldest files of ours until there is room, never more, and nothing that is not certainly ours.
func TestQuota(t *testing.T) {
	disk := smallDisk(t, "4m")
	in := func(name string) string { return filepath.Join(disk, name) }
	marked(t, in("old"), markDone, 100_000, 1)
	marked(t, in("newer"), markDone, 100_000, 2)
	marked(t, in("newest"), markDone, 100_000, 3)
	marked(t, in("foreign"), "", 100_000, 0)
	marked(t, in("linked"), markDone, 100_000, 0)
	marked(t, in("written"), markOpen, 100_000, 0)
	held, err := os.Open(in("written"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	err = errors.Join(lock(int(held.Fd())), os.Link(in("linked"), in("linked too")), os.Symlink("old", in("link")), os.Mkdir(in("dir"), 0o700),
		unix.Mkfifo(in("fifo"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	strangers := []string{"dir", "fifo", "foreign", "link", "linked", "linked too", "written"}
	o := &opener{write: in("x"), room: &room{quota: 500_000}} // 400,000 are ours, one file of which is being written
	f := next(t, o)
	for _, step := range []struct {
		bytes int
		left  []string
		fails bool
	}{
		{100_000, []string{"newer", "newest", "old"}, false},
		{1, []string{"newer", "newest"}, false},
		{99_999, []string{"newer", "newest"}, false},
		{100_001, nil, false},
		{99_999, nil, false},
		{1, nil, true},
	} {
		_, err := f.Write(make([]byte, step.bytes))
		if errors.Is(err, plugin.ErrNoRoom) != step.fails || err != nil != step.fails {
			t.Errorf("%d bytes: %v", step.bytes, err)
		}
		want := append(slices.Clone(strangers), step.left...)
		if diff := cmp.Diff(slices.Sorted(slices.Values(append(want, "x"))), listed(t, disk)); diff != "" {
			t.Errorf("after %d bytes (-want +got):\n%s", step.bytes, diff)
		}
	}
	if _, err := (&opener{write: in("y"), room: &room{quota: 400_000}}).Next("any"); !errors.Is(err, plugin.ErrNoRoom) {
		t.Errorf("another file in spite of the quota: %v", err)
	}
	if slices.Contains(listed(t, disk), "y") {
		t.Error("a file was made that has no room")
	}
}

// Files that rotate stay in a quota together, whoever made them.
func TestQuotaAcrossFiles(t *testing.T) {
	disk := smallDisk(t, "4m")
	o := &opener{write: filepath.Join(disk, "x"), room: &room{quota: 350_000}, rotation: rotation{size: 100_000}}
	for i := range 8 {
		f := next(t, o)
		for range 10 {
			if _, err := f.Write(make([]byte, 10_000)); err != nil {
				t.Fatal(err)
			}
			sum := int64(0)
			for _, name := range listed(t, disk) {
				st, err := os.Stat(filepath.Join(disk, name))
				if err != nil {
					t.Fatal(err)
				}
				sum += st.Size()
			}
			if sum > 350_000 || i > 3 && sum < 250_000 {
				t.Fatalf("file %d: there are %d bytes", i, sum)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"x5", "x6", "x7"}, listed(t, disk)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// --min-free is kept within what is written between two looks, and as soon as there is more the file goes on.
func TestMinFree(t *testing.T) {
	disk := smallDisk(t, "8m")
	in := func(name string) string { return filepath.Join(disk, name) }
	marked(t, in("old"), markDone, 1<<20, 1)
	marked(t, in("new"), markDone, 1<<20, 2)
	marked(t, in("foreign"), "", 1<<20, 0)
	o := &opener{write: in("x"), room: &room{minFree: 3 << 20}}
	f := next(t, o)
	free := func() int64 {
		var st unix.Statfs_t
		if err := unix.Statfs(disk, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Bavail) * st.Bsize
	}
	written := 0
	var err error
	for err == nil {
		var n int
		n, err = f.Write(make([]byte, 64<<10))
		written += n
		if free() < 3<<20-lookEvery {
			t.Fatalf("%d bytes are free", free())
		}
	}
	if !errors.Is(err, plugin.ErrNoRoom) || written < 3<<20 {
		t.Errorf("%v after %d bytes", err, written)
	}
	if diff := cmp.Diff([]string{"foreign", "x"}, listed(t, disk)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if _, err := (&opener{write: in("y"), room: &room{minFree: 7 << 20}}).Next("any"); !errors.Is(err, plugin.ErrNoRoom) {
		t.Errorf("another file in spite of --min-free: %v", err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, plugin.ErrNoRoom) {
		t.Errorf("it goes on: %v", err)
	}
	if err := os.Remove(in("foreign")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); err != nil {
		t.Errorf("there is room again: %v", err)
	}
}

// Only as many files go as are needed, although those that somebody reads free nothing.
func TestMinFreeWithReaders(t *testing.T) {
	disk := smallDisk(t, "8m")
	for i := range 4 {
		name := filepath.Join(disk, fmt.Sprint("old", i))
		marked(t, name, markDone, 1<<20, i)
		r, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
	}
	_, err := (&opener{write: filepath.Join(disk, "x"), room: &room{minFree: 9 << 19}}).Next("any") // 4.5 MiB, and 4 are free
	if !errors.Is(err, plugin.ErrNoRoom) {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"old1", "old2", "old3"}, listed(t, disk)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// Where others have filled the disk so far that removing all of ours would not do, none goes.
func TestMinFreeInVain(t *testing.T) {
	disk := smallDisk(t, "8m")
	marked(t, filepath.Join(disk, "old"), markDone, 1<<20, 1)
	marked(t, filepath.Join(disk, "foreign"), "", 5<<20, 0)
	if _, err := (&opener{write: filepath.Join(disk, "x"), room: &room{minFree: 4 << 20}}).Next("any"); !errors.Is(err, plugin.ErrNoRoom) {
		t.Errorf("2 MiB are free: %v", err)
	}
	if diff := cmp.Diff([]string{"foreign", "old"}, listed(t, disk)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// On a full disk older files of ours go, where a flag says so, and no packet is lost.
func TestFullDiskRemovesOlderFiles(t *testing.T) {
	for _, c := range []struct {
		name string
		opener
		fails bool
	}{
		{"quota", opener{room: &room{quota: 1 << 30}}, false},
		{"ring", opener{room: &room{ring: 100}, rotation: rotation{packets: 200}}, false},
		{"neither", opener{rotation: rotation{packets: 200}}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := smallDisk(t, "1m")
			o := c.opener
			o.write = filepath.Join(disk, "x.pcapng")
			o.rotation.size = 150_000
			err := capture(t, &o, disk, 2000)
			if errors.Is(err, syscall.ENOSPC) != c.fails || err != nil != c.fails {
				t.Errorf("error %v", err)
			}
		})
	}
}

// capture writes packets of 1,000 bytes to as many files as it takes, and checks that the last file reads.
func capture(t *testing.T, o *opener, disk string, packets int) error {
	t.Helper()
	var f plugin.File
	var w *pcapng.Writer
	for i := range packets {
		if f == nil || w.Size() >= o.size {
			if f != nil {
				if err := errors.Join(w.Flush(), f.Close()); err != nil {
					return err
				}
			}
			f = next(t, o)
			w = pcapng.NewWriter(f, pcapng.Section{})
			if err := w.Write(&pcapng.Interface{Index: 1, Name: "wlan0", LinkType: pcapng.Raw}); err != nil {
				return err
			}
		}
		if err := w.Write(&pcapng.Packet{Interface: 1, Time: int64(i), Data: make([]byte, 1000)}); err != nil {
			return err
		}
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		return err
	}
	checkWhole(t, f.Name(), w.Packets())
	return nil
}

// checkWhole checks that a file is whole and has so many packets.
func checkWhole(t *testing.T, path string, packets uint64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	size, n, err := wholeFile(f, st.Size())
	if err != nil || size != st.Size() || n != packets {
		t.Errorf("%s: %d of %d bytes with %d of %d packets are whole, %v", path, size, st.Size(), n, packets, err)
	}
}

// A file whose disk was full goes on where its last whole block or frame ends when there is room again.
func TestGoesOnAfterFullDisk(t *testing.T) {
	for _, method := range []string{compressNone, compressZstd, compressGzip} {
		t.Run(method, func(t *testing.T) {
			disk := smallDisk(t, "1m")
			marked(t, filepath.Join(disk, "foreign"), "", 512<<10, 0)
			squeeze, err := newSqueezer(method)
			if err != nil {
				t.Fatal(err)
			}
			f := next(t, &opener{write: filepath.Join(disk, "x"), squeeze: squeeze})
			w := pcapng.NewWriter(f, pcapng.Section{})
			if err := w.Write(&pcapng.Interface{Index: 1, Name: "wlan0", LinkType: pcapng.Raw}); err != nil {
				t.Fatal(err)
			}
			noise := random(1400)
			put := func(n int) (err error) {
				for i := 0; i < n && err == nil; i++ {
					noise(i)
					err = w.Write(&pcapng.Packet{Interface: 1, Time: int64(i), Data: noise(i)})
				}
				return err
			}
			if err := put(1000); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("the disk is full: %v", err)
			}
			checkWhole(t, f.Name(), w.Packets())
			if err := os.Remove(filepath.Join(disk, "foreign")); err != nil {
				t.Fatal(err)
			}
			w.Resume()
			if err := errors.Join(put(200), w.Flush(), f.Close()); err != nil {
				t.Fatal(err)
			}
			checkWhole(t, f.Name(), w.Packets())
			if w.Packets() < 400 {
				t.Errorf("%d packets", w.Packets())
			}
		})
	}
}

// random returns texts of so many bytes that cannot be compressed.
func random(n int) func(int) []byte {
	state := uint64(1)
	return func(int) []byte {
		b := make([]byte, n)
		for i := range b {
			state ^= state << 13
			state ^= state >> 7
			state ^= state << 17
			b[i] = byte(state >> 32)
		}
		return b
	}
}

// A file is removed only if the name is still that of the file that was looked at, with no other name, and nobody writes it.
func TestRemoveLooksAgain(t *testing.T) {
	for name, exchange := range map[string]func(path string) error{
		"a link":       func(path string) error { return errors.Join(os.Remove(path), os.Symlink("precious", path)) },
		"another file": func(path string) error { return errors.Join(os.Rename(path, path+"2"), os.Rename("precious", path)) },
		"another own file": func(path string) error {
			return errors.Join(os.Rename(path, path+"2"), os.WriteFile(path, nil, 0o600), unix.Setxattr(path, markName, []byte(markDone), 0))
		},
		"another name": func(path string) error { return os.Link(path, path+"2") },
		"no mark":      func(path string) error { return unix.Removexattr(path, markName) },
		"a FIFO":       func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
		"nothing":      os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			disk := smallDisk(t, "1m")
			t.Chdir(disk)
			marked(t, "x", markDone, 10, 1)
			marked(t, "precious", "", 10, 1)
			d, err := openDirectory(".", 0)
			if err != nil {
				t.Fatal(err)
			}
			defer d.close()
			own, _, err := d.own(nil)
			if err != nil || len(own) != 1 || own[0].name != "x" {
				t.Fatalf("own files %+v, %v", own, err)
			}
			if err := exchange("x"); err != nil {
				t.Fatal(err)
			}
			before := listed(t, ".")
			if err := d.remove(own[0], false); err == nil {
				t.Error("it was removed")
			}
			if err := d.unlink(own[0], false); err == nil && name != "another name" && name != "no mark" {
				t.Error("its name was removed")
			} else if err != nil {
				if diff := cmp.Diff(before, listed(t, ".")); diff != "" {
					t.Errorf("files (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// The mark tells whether a file was closed.
func TestMark(t *testing.T) {
	disk := smallDisk(t, "1m")
	path := filepath.Join(disk, "x")
	f := next(t, &opener{write: path})
	mark := func() string {
		r, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		return markOf(int(r.Fd()))
	}
	if got := mark(); got != markOpen {
		t.Errorf("mark %q while it is written", got)
	}
	if err := f.(plugin.Syncer).Sync(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if got := mark(); got != markDone {
		t.Errorf("mark %q after it was closed", got)
	}
	if err := f.(plugin.Syncer).Sync(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("sync after close: %v", err)
	}
	// A file of the user's that a capture overwrites becomes its own.
	if _, err := fill(t, &opener{write: path}, "any", "x"); err != nil || mark() != markDone {
		t.Errorf("mark %q after it was written again, %v", mark(), err)
	}
}

// Sync and Close may meet.
func TestSyncWhileClosing(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		f := next(t, &opener{write: filepath.Join(dir, fmt.Sprint(i))})
		synced := make(chan error, 1)
		go func() {
			for {
				if err := f.(plugin.Syncer).Sync(); err != nil {
					synced <- err
					return
				}
			}
		}()
		if _, err := f.Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err := <-synced; !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	}
}

// Whoever cleans up a directory may remove the file that is written: that is told.
func TestSyncOfRemovedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	o := &opener{write: path}
	f := next(t, o).(plugin.Syncer)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); !errors.Is(err, errRemoved) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
	next(t, o) // from then on the agent itself may have removed it
	if err := f.Sync(); err != nil {
		t.Errorf("error %v", err)
	}
}

// What is remembered of a directory never stands for what has changed in it.
func TestOwnFilesAreLookedAtAgain(t *testing.T) {
	disk := smallDisk(t, "1m")
	in := func(name string) string { return filepath.Join(disk, name) }
	d, err := openDirectory(disk, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	var seen map[string]entry
	check := func(want ...string) {
		t.Helper()
		var own []entry
		var err error
		own, seen, err = d.own(seen)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range own {
			got = append(got, fmt.Sprint(e.name, " ", e.size))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if n := len(listed(t, disk)); len(seen) != n {
			t.Errorf("%d files are remembered, of %d", len(seen), n)
		}
	}
	marked(t, in("a"), markDone, 1, 1)
	marked(t, in("b"), markOpen, 2, 2)
	marked(t, in("c"), "", 3, 3)
	marked(t, in("d"), markDone, 4, 4)
	check("a 1", "b 2", "d 4")
	if err := errors.Join(os.WriteFile(in("b"), make([]byte, 20), 0o600), os.Chtimes(in("b"), time.Time{}, time.Unix(0, 1))); err != nil {
		t.Fatal(err)
	}
	check("b 20", "a 1", "d 4") // in another order, too
	if err := unix.Setxattr(in("c"), markName, []byte(markDone), 0); err != nil {
		t.Fatal(err)
	}
	check("b 20", "a 1", "c 3", "d 4")
	if err := errors.Join(os.WriteFile(in("new"), nil, 0o600), os.Rename(in("new"), in("a")), os.Link(in("d"), in("e")), os.Remove(in("b"))); err != nil {
		t.Fatal(err)
	}
	check("c 3")
}

// A disk that has no room for the name of a new file is full, too.
func TestFullDiskRemovesForNewFile(t *testing.T) {
	for _, c := range []struct {
		name string
		room *room
		want []string // nil: no file is made
	}{
		{"quota", &room{quota: 1 << 20}, []string{"foreign", "new", "x"}},
		{"no limit", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := smallDisk(t, "4m,nr_inodes=30")
			marked(t, filepath.Join(disk, "old"), markDone, 1000, 1)
			marked(t, filepath.Join(disk, "new"), markDone, 1000, 2)
			foreign := filepath.Join(disk, "foreign")
			if err := os.Mkdir(foreign, 0o700); err != nil {
				t.Fatal(err)
			}
			var err error
			for i := 0; err == nil; i++ {
				err = unix.Mkfifo(filepath.Join(foreign, fmt.Sprint(i)), 0o600)
			}
			if err != unix.ENOSPC {
				t.Fatal(err)
			}
			f, err := (&opener{write: filepath.Join(disk, "x"), room: c.room}).Next("any")
			if c.want == nil {
				if !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if diff := cmp.Diff(c.want, listed(t, disk)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

// Files of this capture that are still being closed go for a quota, too: a disk that is slow must cost no packets.
func TestQuotaWithFilesBeingClosed(t *testing.T) {
	disk := smallDisk(t, "4m")
	o := &opener{write: filepath.Join(disk, "x"), room: &room{quota: 250_000}, rotation: rotation{size: 100_000}}
	for i := range 6 {
		if _, err := next(t, o).Write(make([]byte, 100_000)); err != nil {
			t.Fatalf("file %d: %v", i, err)
		}
	}
	if diff := cmp.Diff([]string{"x4", "x5"}, listed(t, disk)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// Where files cannot be marked, a quota holds for those of this capture. Others stay.
func TestQuotaWithoutMarks(t *testing.T) {
	disk := smallDisk(t, "4m")
	if err := unix.Mount("test", disk, "ramfs", 0, ""); err != nil {
		t.Skip("no file system without marks to be had:", err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	marked(t, filepath.Join(disk, "foreign"), "", 1_000_000, 1)
	o := &opener{write: filepath.Join(disk, "x"), room: &room{quota: 250_000}, rotation: rotation{size: 100_000}}
	for range 6 {
		f := next(t, o)
		if _, err := f.Write(make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"foreign", "x4", "x5"}, listed(t, disk)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if _, err := next(t, o).Write(make([]byte, 250_001)); !errors.Is(err, plugin.ErrNoRoom) {
		t.Errorf("more than the quota: %v", err)
	}
}
