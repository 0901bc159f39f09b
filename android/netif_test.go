// SPDX-License-Identifier: Apache-2.0

package android

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// dir writes the sysfs directory of one interface; an empty value leaves the file out.
func dir(sys fstest.MapFS, name string, files map[string]string) {
	for file, text := range files {
		if text != "" {
			sys["class/net/"+name+"/"+file] = &fstest.MapFile{Data: []byte(text + "\n")}
		}
	}
}

// phone is what a phone on Wi-Fi and mobile data shows.
func phone() fstest.MapFS {
	sys := fstest.MapFS{"class/net/bonding_masters": {Data: []byte("\n")}}
	dir(sys, "lo", map[string]string{"ifindex": "1", "type": "772", "flags": "0x9", "operstate": "unknown", "carrier": "1"})
	dir(sys, "dummy0", map[string]string{"ifindex": "2", "type": "1", "flags": "0x82", "operstate": "down"})
	dir(sys, "wlan0", map[string]string{"ifindex": "30", "type": "1", "flags": "0x1003", "operstate": "up", "carrier": "1", "wireless/status": "0", "device/uevent": "x"})
	dir(sys, "wlan1", map[string]string{"ifindex": "31", "type": "1", "flags": "0x1003", "operstate": "down", "carrier": "0", "phy80211/index": "0"})
	dir(sys, "rmnet_data0", map[string]string{"ifindex": "12", "type": "519", "flags": "0x41", "operstate": "unknown", "carrier": "1"})
	dir(sys, "tun0", map[string]string{"ifindex": "40", "type": "65534", "flags": "0x1091", "operstate": "unknown", "carrier": "1", "tun_flags": "0x5001"})
	dir(sys, "eth0", map[string]string{"ifindex": "20", "type": "1", "flags": "0x1003", "operstate": "down", "carrier": "0", "device/uevent": "x"})
	dir(sys, "usb0", map[string]string{"ifindex": "21", "type": "1", "flags": "0x1002", "operstate": "down", "device/uevent": "x"})
	dir(sys, "gone0", map[string]string{"ifindex": "50", "type": "1"})
	return sys
}

func TestInterfaces(t *testing.T) {
	got, err := Interfaces(phone())
	if err != nil {
		t.Fatal(err)
	}
	want := []Interface{
		{Index: 12, Name: "rmnet_data0", Type: 519, Up: true, Running: true},
		{Index: 30, Name: "wlan0", Type: 1, Up: true, Running: true, Wireless: true, Carrier: HasCarrier},
		{Index: 40, Name: "tun0", Type: 65534, Up: true, Running: true, Carrier: HasCarrier},
		{Index: 1, Name: "lo", Type: 772, Up: true, Running: true, Loopback: true},
		{Index: 31, Name: "wlan1", Type: 1, Up: true, Wireless: true, Carrier: NoCarrier},
		{Index: 20, Name: "eth0", Type: 1, Up: true, Carrier: NoCarrier},
		{Index: 2, Name: "dummy0", Type: 1},
		{Index: 21, Name: "usb0", Type: 1, Carrier: NoCarrier},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Interfaces (-want +got):\n%s", diff)
	}
}

// broken answers an error for one file.
type broken struct {
	fs.FS
	name string
	err  error
}

func (b broken) Open(name string) (fs.File, error) {
	if name == b.name {
		return nil, &fs.PathError{Op: "read", Path: name, Err: b.err}
	}
	return b.FS.Open(name)
}

func TestInterfacesErrors(t *testing.T) {
	for _, c := range []struct {
		rule, file string
		err        error
		want       error
		left       int
	}{
		{"an interface that vanishes is left out", "class/net/wlan0/flags", syscall.ENODEV, nil, 7},
		{"a vanished operstate does not matter", "class/net/wlan0/operstate", fs.ErrNotExist, nil, 8},
		{"a refused directory is an error", "class/net", fs.ErrPermission, fs.ErrPermission, 0},
		{"a refused file is an error", "class/net/wlan0/type", fs.ErrPermission, fs.ErrPermission, 0},
		{"the carrier of an interface that is down is EINVAL", "class/net/usb0/carrier", syscall.EINVAL, nil, 8},
	} {
		t.Run(c.rule, func(t *testing.T) {
			got, err := Interfaces(broken{phone(), c.file, c.err})
			if !errors.Is(err, c.want) || len(got) != c.left {
				t.Errorf("got %d interfaces and %v, want %d and %v", len(got), err, c.left, c.want)
			}
		})
	}
}

func TestFraming(t *testing.T) {
	for arphrd, want := range map[uint16]Framing{
		1: L2, 772: L2, 512: L3, 519: L3, 768: L3, 65534: L3,
		0: Unsupported, 280: Unsupported, 778: Unsupported, 801: Unsupported, 803: Unsupported, 824: Unsupported,
	} {
		if got := (Interface{Type: arphrd}).Framing(); got != want {
			t.Errorf("Framing of ARPHRD %d is %v, want %v", arphrd, got, want)
		}
	}
}

func TestDescribe(t *testing.T) {
	for _, c := range []struct {
		want string
		i    Interface
	}{
		{"[Up, Running, Loopback]", Interface{Up: true, Running: true, Loopback: true}},
		{"[Up, Running, Wireless, Associated]", Interface{Up: true, Running: true, Wireless: true, Carrier: HasCarrier}},
		{"[Up, Wireless, Not associated]", Interface{Up: true, Wireless: true, Carrier: NoCarrier}},
		{"[Up, Running, Connected]", Interface{Up: true, Running: true, Carrier: HasCarrier}},
		{"[Up, Disconnected]", Interface{Up: true, Carrier: NoCarrier}},
		{"[Up, Running]", Interface{Up: true, Running: true}},
		{"[none, Disconnected]", Interface{Carrier: NoCarrier}},
		{"[none]", Interface{}},
	} {
		if got := c.i.Describe(); got != c.want {
			t.Errorf("Describe of %+v is %q, want %q", c.i, got, c.want)
		}
	}
}

// TestTcpdump compares the order and the flags with those of the host's own tcpdump -D.
func TestTcpdump(t *testing.T) {
	out, err := exec.Command("tcpdump", "-D").Output()
	if err != nil {
		t.Skipf("tcpdump -D: %v", err)
	}
	all, err := Interfaces(os.DirFS("/sys"))
	if err != nil {
		t.Fatal(err)
	}
	var ours []string
	for _, i := range all {
		ours = append(ours, i.Name+" "+i.Describe())
	}
	known := func(name string) bool {
		return slices.ContainsFunc(all, func(i Interface) bool { return i.Name == name })
	}
	var theirs []string
	for _, m := range regexp.MustCompile(`(?m)^\d+\.(\S+) (?:\(.*\) )?(\[.*\])$`).FindAllStringSubmatch(string(out), -1) {
		if known(m[1]) {
			theirs = append(theirs, m[1]+" "+m[2])
		}
	}
	// tcpdump may not show one of ours; then that one is not compared.
	ours = slices.DeleteFunc(ours, func(line string) bool {
		name, _, _ := strings.Cut(line, " ")
		return !strings.Contains(string(out), "."+name+" ")
	})
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Errorf("tcpdump -D (-) and Interfaces (+):\n%s", diff)
	}
}

func FuzzInterfaces(f *testing.F) {
	f.Add("wlan0", "30\n", "1\n", "0x1003\n", "up\n", "1\n")
	f.Add("lo", "1", "772", "0x9", "unknown", "")
	f.Add("x", "-1", "65536", "zz", "\x00", "256")
	f.Fuzz(func(t *testing.T, name, ifindex, arphrd, flags, operstate, carrier string) {
		if !fs.ValidPath("class/net/"+name) || name == "." || strings.Contains(name, "/") {
			t.Skip("no file name")
		}
		sys := fstest.MapFS{}
		dir(sys, name, map[string]string{"ifindex": ifindex, "type": arphrd, "flags": flags, "operstate": operstate, "carrier": carrier})
		all, err := Interfaces(sys)
		for _, i := range all {
			if err != nil || i.Name != name || i.Index < 0 || i.Running && !i.Up || i.Describe() == "[]" {
				t.Errorf("Interfaces = %+v, %v", i, err)
			}
		}
	})
}

func TestHasNetd(t *testing.T) {
	if !HasNetd(fstest.MapFS{"system/bin/netd": {}}) {
		t.Error("a phone has no netd")
	}
	if HasNetd(fstest.MapFS{"system/bin/sh": {}}) {
		t.Error("another machine has netd")
	}
}
