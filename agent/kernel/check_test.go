// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// running returns the offsets from the running kernel's own BTF. Before 5.11 what earlier checks held counts as locked
// memory for a while.
func running(t *testing.T) Offsets {
	t.Helper()
	if err := rlimit.RemoveMemlock(); err != nil && os.Geteuid() == 0 {
		t.Logf("raise the memory lock limit: %v", err)
	}
	s, err := btf.LoadKernelSpec()
	if err != nil {
		t.Skipf("the kernel has no BTF: %v", err)
	}
	o, err := Locate(s)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// without returns what is left of o when groups of it fall.
func (o Offsets) without(sockets, cgroups, tasks bool) Offsets {
	if sockets {
		o.SockUID, o.SockCookie = 0, 0
	}
	if cgroups {
		o.SockCgroup, o.CgroupNode, o.NodeID = 0, 0, 0
	}
	if tasks {
		o.TaskTgid, o.TaskComm = 0, 0
	}
	return o
}

func expect(t *testing.T, o, want Offsets) error {
	t.Helper()
	held, err := o.Check()
	if diff := cmp.Diff(want, held); diff != "" {
		t.Errorf("%+v: what holds (-want +got):\n%s%v", o, diff, err)
	}
	return err
}

// grouped starts the process in a cgroup of its own: the root's id is one that a wrong offset can meet.
func grouped(t *testing.T) func(*exec.Cmd) {
	t.Helper()
	return func(cmd *exec.Cmd) {
		mount := t.TempDir()
		if err := unix.Mount("cgroup2", mount, "cgroup2", 0, ""); err != nil {
			t.Fatalf("mount cgroup2: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(mount, 0); err != nil {
				t.Errorf("unmount cgroup2: %v", err)
			}
		})
		dir := filepath.Join(mount, fmt.Sprintf("kernel-test-%d", os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		var st syscall.Stat_t
		if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(f.Fd())
		cmd.Env = append(cmd.Env, fmt.Sprintf("KERNEL_TEST_CGROUP=%d", st.Ino))
	}
}

func TestCheck(t *testing.T) {
	if !again(t, grouped(t)) {
		return
	}
	right := running(t)
	if err := expect(t, right, right); err != nil {
		t.Errorf("the kernel's own: %v", err)
	}
	for _, m := range members {
		for _, shift := range []int{-8, -4, 4, 8} {
			wrong := right
			*m.place(&wrong) += uint32(shift)
			in := func(o Offsets) bool { return *m.place(&o) == 0 }
			lost := right.without(in(right.without(true, false, false)), in(right.without(false, true, false)),
				in(right.without(false, false, true)))
			err := expect(t, wrong, lost)
			name, _, _ := strings.Cut(m.path, ".cgroup|")
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s by %d: %v, which does not name it", m.path, shift, err)
			}
			// What is no address may also be the tag of an older kernel.
			if !errors.Is(err, ErrMismatch) && (name != "sock.sk_cgrp_data" || !errors.Is(err, ebpf.ErrNotSupported)) {
				t.Errorf("%s by %d: %v, want ErrMismatch", m.path, shift, err)
			}
		}
	}
}

func TestCheckOtherKernels(t *testing.T) {
	if !again(t, grouped(t)) {
		return
	}
	right := running(t)
	for _, test := range []struct {
		rule string
		o    Offsets
		want Offsets
	}{
		{"android12-5.10", Offsets{592, 88, 672, 280, 104, 1484, 1936}, Offsets{}},
		{"a vendor's 5.10", Offsets{704, 88, 808, 248, 104, 1316, 1784}, Offsets{}},
		{"tasks that moved fall alone", moved(right), right.without(false, false, true)},
		{"nothing known, nothing wrong", Offsets{}, Offsets{}},
		{"addresses that nothing has", Offsets{1 << 31, 1<<32 - 1, 1 << 31, 1, 1, 1<<32 - 8, 1 << 30}, Offsets{}},
	} {
		err := expect(t, test.o, test.want)
		if (err == nil) != (test.o == test.want) || err != nil && !errors.Is(err, ErrMismatch) {
			t.Errorf("%s: %v", test.rule, err)
		}
	}
	part := Offsets{SockUID: right.SockUID, TaskComm: right.TaskComm}
	if err := expect(t, part, part); err != nil {
		t.Errorf("members that are not known are not read: %v", err)
	}
	if err := expect(t, Offsets{SockCgroup: right.SockCgroup}, Offsets{}); !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("a part of the way to a cgroup: %v", err)
	}
}

// moved is a custom kernel, where 125 members of task_struct are elsewhere.
func moved(o Offsets) Offsets {
	o.TaskTgid += 128
	o.TaskComm += 128
	return o
}

func TestCheckAfterFailure(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for bpf")
	}
	right := running(t)
	before := descriptors(t)
	for range 20 {
		_ = expect(t, moved(right), right.without(false, false, true))
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}

// descriptors counts what the process has open, and lets cilium/ebpf first find out what it keeps open.
func descriptors(t *testing.T) int {
	t.Helper()
	_, _ = running(t).Check()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// In a new network namespace lo is down and has no address.
func TestCheckInNewNamespace(t *testing.T) {
	if !again(t, func(cmd *exec.Cmd) { cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET }) {
		return
	}
	right := running(t)
	if err := expect(t, right, right); err != nil {
		t.Error(err)
	}
}

// The kernel's number for our cgroup is that of its directory, which user space knows.
func TestCurrentCgroup(t *testing.T) {
	if !again(t, grouped(t)) {
		return
	}
	id, err := currentCgroup()
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(binary.NativeEndian.Uint64(id)); got != os.Getenv("KERNEL_TEST_CGROUP") {
		t.Errorf("cgroup %s, want %s", got, os.Getenv("KERNEL_TEST_CGROUP"))
	}
}

func TestCheckRefused(t *testing.T) {
	for _, test := range []struct {
		rule   string
		change func(*exec.Cmd)
	}{
		{"a user", as(10123)},
		{"root without capabilities", without(t, "-all")},
		{"root of a user namespace", namespaced},
	} {
		t.Run(test.rule, func(t *testing.T) {
			if !again(t, test.change) {
				return
			}
			if err := expect(t, running(t), Offsets{}); !errors.Is(err, os.ErrPermission) || errors.Is(err, ErrMismatch) {
				t.Errorf("%v, want os.ErrPermission", err)
			}
		})
	}
}

func TestCheckWithoutReading(t *testing.T) {
	if !again(t, without(t, fmt.Sprintf("-sys_admin,-cap_%d", unix.CAP_PERFMON))) {
		return
	}
	err := expect(t, running(t).without(false, true, true), Offsets{})
	if !errors.Is(err, ErrNoKernelRead) || !errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, os.ErrPermission) {
		t.Errorf("%v, want ErrNoKernelRead", err)
	}
	t.Log(err)
	if why := Look(os.DirFS("/")).Explain(err, Calls{}); !strings.Contains(why, "CAP_PERFMON") {
		t.Errorf("explained as %q", why)
	}
}

// On a kernel that is locked down nothing can be checked, and why is said.
func TestCheckUnderLockdown(t *testing.T) {
	if !again(t, mounting) {
		return
	}
	mountSecurity(t)
	s, right := Look(os.DirFS("/")), running(t)
	if s.Lockdown != confidentiality {
		if err := expect(t, right, right); err != nil {
			t.Errorf("lockdown %q: %v", s.Lockdown, err)
		}
		return
	}
	err := expect(t, right, right.without(true, true, true))
	if !errors.Is(err, ErrNoKernelRead) || errors.Is(err, ErrMismatch) {
		t.Errorf("%v, want ErrNoKernelRead", err)
	}
	holds(t, s.Explain(err, AskCalls()), "locked down to confidentiality|captured all the same", "probably")
}
