// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"errors"
	"os"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestUevents has the socket pass on no more than what comes online.
func TestUevents(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	runtime.LockOSThread() // and not unlocked: the thread ends with the namespace
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	fd, err := OpenUevents()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	other, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	want := []string{uevent + "7\x00ACTION=online\x00", uevent + "12\x00"}
	for _, message := range []string{"change@/devices/platform/battery\x00", want[0], "offline@/devices/system/cpu/cpu7\x00", "on", want[1]} {
		if err := unix.Sendto(other, []byte(message), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for b := make([]byte, 256); ; {
		n, err := unix.Read(fd, b)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(b[:n]))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCameOnline(t *testing.T) {
	for message, want := range map[string]int{
		uevent + "0\x00ACTION=online\x00":      0,
		uevent + "13\x00":                      13,
		uevent + "13":                          13, // cut off
		uevent + "\x00":                        -1,
		uevent + "idle\x00":                    -1,
		uevent + "-1\x00":                      -1,
		uevent + "99999999999999999999\x00":    -1,
		"online@/devices/system/memory/m\x00":  -1,
		"change@/devices/system/cpu/cpu1\x00":  -1,
		"offline@/devices/system/cpu/cpu1\x00": -1,
		"":                                     -1,
	} {
		cpu, ok := CameOnline([]byte(message))
		if !ok {
			cpu = -1
		}
		if cpu != want {
			t.Errorf("%q: processor %d, want %d", message, cpu, want)
		}
	}
}

func TestListed(t *testing.T) {
	for list, want := range map[string][]int{
		"0-7\n":      {0, 1, 2, 3, 4, 5, 6, 7},
		"0\n":        {0},
		"0,2-3,7\n":  {0, 2, 3, 7},
		"\n":         nil,
		"":           nil,
		"x,1-y,-2,4": {4},
	} {
		var got []int
		for cpu := range 10 {
			if Listed(list, cpu) {
				got = append(got, cpu)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", list, diff)
		}
	}
}
