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

	"golang.org/x/sys/unix"

	"droidtap/agent/pcapng"
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
