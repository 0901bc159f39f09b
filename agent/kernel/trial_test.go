// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

func TestTrials(t *testing.T) {
	for _, test := range []struct {
		name string
		try  func() error
	}{{"HaveClsact", HaveClsact}, {"HavePacketSocket", HavePacketSocket}, {"haveGlobals", haveGlobals}} {
		t.Run(test.name, func(t *testing.T) {
			// A process of its own: there are no threads and programs of other tests.
			if !again(t, unchanged) {
				return
			}
			qdiscs := kinds(t)
			for range 10 {
				if err := test.try(); err != nil {
					t.Fatal(err)
				}
			}
			await(t, "the threads are in one network namespace", func() bool { return len(namespaces(t)) == 1 })
			await(t, "no program of a trial is loaded", func() bool { return len(trials(t)) == 0 })
			if diff := cmp.Diff(qdiscs, kinds(t)); diff != "" {
				t.Errorf("qdiscs (-before +after):\n%s", diff)
			}
		})
	}
}

func TestTrialsRefused(t *testing.T) {
	for _, test := range []struct {
		rule   string
		change func(*exec.Cmd)
		clsact error // wrapped by the error of HaveClsact
		packet error
	}{
		{"a user", as(10123), os.ErrPermission, os.ErrPermission},
		{"root without capabilities", without(t, "-all"), os.ErrPermission, os.ErrPermission},
		{"root without CAP_NET_ADMIN", without(t, "-net_admin"), os.ErrPermission, nil},
		{"root without CAP_NET_RAW", without(t, "-net_raw"), nil, os.ErrPermission},
		{"root of a user namespace", namespaced, os.ErrPermission, os.ErrPermission},
	} {
		t.Run(test.rule, func(t *testing.T) {
			if !again(t, test.change) {
				return
			}
			if err := HaveClsact(); !errors.Is(err, test.clsact) {
				t.Errorf("clsact: %v, want %v", err, test.clsact)
			}
			if err := HavePacketSocket(); !errors.Is(err, test.packet) {
				t.Errorf("packet socket: %v, want %v", err, test.packet)
			}
		})
	}
}

func TestTrialWithoutPacketSockets(t *testing.T) {
	if !again(t, unchanged) {
		return
	}
	filter(t, unix.SYS_SOCKET, unix.EAFNOSUPPORT)
	if err := HavePacketSocket(); !errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, os.ErrPermission) {
		t.Errorf("%v, want ebpf.ErrNotSupported", err)
	}
}

func TestUnknownKind(t *testing.T) {
	for _, test := range []struct {
		errno syscall.Errno
		want  bool
	}{{unix.ENOENT, true}, {unix.EOPNOTSUPP, true}, {unix.EPERM, false}, {unix.EINVAL, false}} {
		if err := unknownKind(test.errno); errors.Is(err, ebpf.ErrNotSupported) != test.want || !errors.Is(err, test.errno) {
			t.Errorf("%v is %v", test.errno, err)
		}
	}
}

func TestOnThread(t *testing.T) {
	if !again(t, unchanged) {
		return
	}
	for range 20 {
		if err := onFirst(func() error {
			return onThread(func() error {
				if unix.Gettid() == unix.Getpid() {
					return errors.New("on the first thread")
				}
				return nil
			})
		}); err != nil {
			t.Fatal(err)
		}
	}
	want := errors.New("what f says")
	if err := onThread(func() error { return want }); err != want {
		t.Errorf("%v, want %v", err, want)
	}
	var tid int
	_ = onThread(func() error { tid = unix.Gettid(); return nil })
	await(t, "the thread ends", func() bool {
		return errors.Is(unix.Tgkill(os.Getpid(), tid, 0), unix.ESRCH)
	})
}

// onFirst runs f from the first thread of the process: whoever then waits for a goroutine that it has just started lets
// it run there.
func onFirst(f func() error) error {
	found, done := make(chan bool), make(chan struct{})
	defer close(done)
	result := make(chan error, 1)
	for {
		go func() {
			runtime.LockOSThread()
			first := unix.Gettid() == unix.Getpid()
			found <- first
			if !first {
				<-done // keeps the thread, so that the next goroutine is on another
			}
			runtime.UnlockOSThread()
			if first {
				result <- f()
			}
		}()
		if <-found {
			return <-result
		}
	}
}

// await waits for what the kernel does later and tells nobody.
func await(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for deadline := time.Now().Add(nettest.Patience); !happened(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// namespaces returns the network namespaces that threads of the process are in.
func namespaces(t *testing.T) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, link := range links {
		if ns, err := os.Readlink(link); err == nil && !slices.Contains(all, ns) {
			all = append(all, ns)
		}
	}
	return all
}

// trials returns the programs of trials that are loaded.
func trials(t *testing.T) []ebpf.ProgramID {
	t.Helper()
	var all []ebpf.ProgramID
	for id := ebpf.ProgramID(0); ; {
		var err error
		if id, err = ebpf.ProgramGetNextID(id); errors.Is(err, os.ErrNotExist) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		prog, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone
		}
		if info, err := prog.Info(); err == nil && info.Name == trialName {
			all = append(all, id)
		}
		_ = prog.Close()
	}
}

// kinds returns the qdiscs of this namespace's interfaces.
func kinds(t *testing.T) []string {
	t.Helper()
	all, err := netlink.QdiscList(nil)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, q := range all {
		list = append(list, fmt.Sprint(q.Attrs().LinkIndex, q.Type(), q.Attrs().Parent))
	}
	return list
}
