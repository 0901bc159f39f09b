// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
)

// listed returns the names in a directory, sorted.
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
