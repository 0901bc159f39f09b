// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/agent/pcapng"
	"droidtap/agent/plugin"
)

// TestDiskFull fills a disk with packets of several sizes, so that it is full at several places in a block, and
// expects every packet that was counted to be readable, without a warning.
func TestDiskFull(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("tshark is not installed (Debian package tshark)")
	}
	disk := smallDisk(t, "256k")
	for _, size := range []int{60, 333, 1400, 1514, 40000, 65536} {
		path := filepath.Join(disk, "full.pcapng")
		want := fillDisk(t, path, size)
		// Headers and options make a block at most 100 bytes longer than its packet.
		if least := uint64((256<<10-1000)/(size+100) - 1); want < least {
			t.Errorf("packets of %d bytes: %d counted, at least %d fit", size, want, least)
		}
		cmd := exec.Command(tshark, "-r", path, "-T", "fields", "-e", "frame.number")
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C.UTF-8"}
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		complaints := strings.ReplaceAll(stderr.String(), `Running as user "root" and group "root". This could be dangerous.`+"\n", "")
		if err != nil || complaints != "" {
			t.Errorf("packets of %d bytes: tshark: %v\n%s", size, err, complaints)
		}
		if got := uint64(strings.Count(stdout.String(), "\n")); got != want {
			t.Errorf("packets of %d bytes: %d counted, %d read", size, want, got)
		}
	}
}

// smallDisk mounts an empty file system of so many bytes for the test. Its marks are those of a phone's.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small disk needs root")
	}
	// The thread is never unlocked, so that it ends with the test, and its mounts with it.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skip("no private mount namespace to be had:", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	disk := t.TempDir()
	if err := unix.Mount("test", disk, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return disk
}

// fillDisk writes packets of size bytes to path until there is no room, and returns how many were counted.
func fillDisk(t *testing.T, path string, size int) uint64 {
	t.Helper()
	f, err := (&opener{write: path}).Next("any")
	if err != nil {
		t.Fatal(err)
	}
	w := pcapng.NewWriter(f, pcapng.Section{Application: "test"})
	err = w.Write(&pcapng.Interface{Index: 1, Name: "wlan0", LinkType: pcapng.Raw})
	for i := int64(0); err == nil; i++ {
		err = w.Write(&pcapng.Packet{
			Interface: 1, Time: 1795356192e9 + i, Data: make([]byte, size), Direction: pcapng.Inbound,
			Comments: []string{fmt.Sprint("packet ", i)},
		})
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is full: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("close on a full disk: %v", err)
	}
	return w.Packets()
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
			err := capture(t, &o, 2000)
			if errors.Is(err, syscall.ENOSPC) != c.fails || err != nil != c.fails {
				t.Errorf("error %v", err)
			}
		})
	}
}

// capture writes packets of 1,000 bytes to as many files as it takes, and checks that the last file reads.
func capture(t *testing.T, o *opener, packets int) error {
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
