// SPDX-License-Identifier: Apache-2.0

// Package nettest gives tests network namespaces, packets to send in them, processes to run in them, and readers of
// the captures that come out.
package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Require skips the test without root or one of the tools.
func Require(t testing.TB, tools ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for namespaces and bpf")
	}
	for _, tool := range append(tools, "ip") {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

// Space is a network namespace.
type Space struct{ Name string }

var spaces atomic.Uint64

// NewSpace makes a namespace named after the test, with its loopback interface up, for as long as the test runs.
func NewSpace(t testing.TB) Space {
	t.Helper()
	name := strings.Map(func(r rune) rune {
		if r == '/' || r == ' ' {
			return '-'
		}
		return r
	}, t.Name())
	s := Space{fmt.Sprintf("%s-%d-%d", name, os.Getpid(), spaces.Add(1))}
	Run(t, "ip", "netns", "add", s.Name)
	t.Cleanup(func() { Run(t, "ip", "netns", "del", s.Name) })
	s.Run(t, "ip", "link", "set", "lo", "up")
	return s
}

// Command is exec.Command in the namespace, where /sys shows its interfaces. The process that it starts is argv's.
func (s Space) Command(argv ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", s.Name}, argv...)...)
}

// Run runs a command in the namespace and returns its standard output.
func (s Space) Run(t testing.TB, argv ...string) string {
	t.Helper()
	return output(t, s.Command(argv...))
}

// Run runs a command and returns its standard output.
func Run(t testing.TB, argv ...string) string {
	t.Helper()
	return output(t, exec.Command(argv[0], argv[1:]...))
}

func output(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return string(out)
}

// Do runs f on a thread of its own in the namespace, as that user, and always on the first processor: what several
// threads send then passes every hook in one order. The sockets that f makes stay in the namespace and belong to the
// user.
func (s Space) Do(uid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		done <- func() error {
			ns, err := netns.GetFromName(s.Name)
			if err != nil {
				return fmt.Errorf("open namespace %s: %w", s.Name, err)
			}
			defer ns.Close()
			if err := netns.Set(ns); err != nil {
				return fmt.Errorf("enter namespace %s: %w", s.Name, err)
			}
			var first unix.CPUSet
			first.Set(0)
			if err := unix.SchedSetaffinity(0, &first); err != nil {
				return fmt.Errorf("stay on one processor: %w", err)
			}
			// The owner of a socket is the file system uid of the thread that makes it (net/socket.c sock_alloc).
			if _, err := unix.SetfsuidRetUid(uid); err != nil {
				return fmt.Errorf("become user %d: %w", uid, err)
			}
			return f()
		}()
	}()
	return <-done
}

// Must is Do as root that fails the test.
func (s Space) Must(t testing.TB, f func() error) {
	t.Helper()
	if err := s.Do(0, f); err != nil {
		t.Fatal(err)
	}
}

// Addresses and hardware addresses of the two ends of Pair.
const (
	Near4, Far4 = "10.99.0.1", "10.99.0.2"
	Near6, Far6 = "fd00:99::1", "fd00:99::2"
	NearMAC     = "02:00:00:00:00:01"
	FarMAC      = "02:00:00:00:00:02"
)

// Pair makes two namespaces joined by veth0 in each.
func Pair(t testing.TB) (near, far Space) {
	t.Helper()
	near, far = NewSpace(t), NewSpace(t)
	for _, s := range []Space{near, far} {
		// No packets but those that the test sends: no duplicate address detection, no router solicitation, no second
		// multicast report.
		s.Run(t, "sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.router_solicitations=0",
			"net.ipv6.conf.default.mldv2_unsolicited_report_interval=3600000", "net.ipv6.conf.default.autoconf=0")
	}
	near.Run(t, "ip", "link", "add", "veth0", "address", NearMAC, "type", "veth",
		"peer", "name", "veth0", "address", FarMAC, "netns", far.Name)
	for _, end := range []struct {
		s      Space
		v4, v6 string
	}{{near, Near4, Near6}, {far, Far4, Far6}} {
		end.s.Run(t, "ip", "link", "set", "veth0", "addrgenmode", "none")
		end.s.Run(t, "ip", "link", "set", "veth0", "up")
		end.s.Run(t, "ip", "addr", "add", end.v4+"/24", "dev", "veth0")
		end.s.Run(t, "ip", "addr", "add", end.v6+"/64", "dev", "veth0", "nodad")
	}
	return near, far
}
