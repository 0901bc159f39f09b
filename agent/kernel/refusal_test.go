// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// explained makes the calls and explains the first that was refused.
func explained(t *testing.T) string {
	t.Helper()
	c := AskCalls()
	t.Logf("command: %v; map: %v; program: %v; packet socket: %v", c.Command, c.Map, c.Program, c.Packet)
	err := c.Packet
	for _, refused := range []error{c.Program, c.Map} {
		if refused != nil {
			err = refused
		}
	}
	sentence := Look(os.DirFS("/")).Explain(err, c)
	t.Log(sentence)
	return sentence
}

func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		rule   string
		change func(*exec.Cmd)
		words  string
	}{
		{"nothing is refused to root", unchanged, ""},
		{"a user", as(10123), "user 10123|su"},
		{"root without capabilities", without(t, "-all"), "root|CAP_BPF|CAP_PERFMON|CAP_NET_ADMIN|CAP_NET_RAW"},
		{"root without one", without(t, "-net_raw"), "root here lacks CAP_NET_RAW:"},
		{"root of a user namespace", namespaced, "user namespace"},
	} {
		t.Run(test.rule, func(t *testing.T) {
			if again(t, test.change) {
				holds(t, explained(t), test.words, "")
			}
		})
	}
}

func TestAskCalls(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for bpf and packet sockets")
	}
	c := AskCalls()
	if !errors.Is(c.Command, unix.EINVAL) || cmp.Or(c.Map, c.Program, c.Packet) != nil {
		t.Errorf("%+v, want unix.EINVAL and no other error", c)
	}
}

func TestSeccomp(t *testing.T) {
	for _, test := range []struct {
		rule  string
		call  uint32
		errno syscall.Errno
		words string
	}{
		{"bpf refused as Docker does", unix.SYS_BPF, unix.EPERM, "seccomp filter refuses bpf(2)"},
		{"bpf refused as by a kernel without", unix.SYS_BPF, unix.ENOSYS, "seccomp filter refuses bpf(2)"},
		{"bpf refused as by SELinux", unix.SYS_BPF, unix.EACCES, "seccomp filter refuses bpf(2)"},
		{"sockets refused", unix.SYS_SOCKET, unix.EPERM, "seccomp filter may refuse"},
	} {
		t.Run(test.rule, func(t *testing.T) {
			if !again(t, unchanged) {
				return
			}
			filter(t, test.call, test.errno)
			holds(t, explained(t), test.words, "CAP_")
		})
	}
}

// Only a kernel before 5.11 refuses: there is one in the lab.
func TestMemlock(t *testing.T) {
	if !again(t, unchanged) {
		return
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 4096, Max: 4096}); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 1 << 20, MaxEntries: 1})
	if err == nil {
		_ = m.Close()
	}
	s := Look(os.DirFS("/"))
	if old := s.before(5, 11); (err != nil) != old {
		t.Fatalf("map of 1 MiB on %s: %v", s.Release, err)
	}
	if err != nil {
		holds(t, s.Explain(err, AskCalls()), "before kernel 5.11|4096 bytes|ulimit -l unlimited", "")
	}
}

// filter installs a seccomp filter in all threads, which refuses one system call.
func filter(t *testing.T, call uint32, errno syscall.Errno) {
	t.Helper()
	code := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // struct seccomp_data: nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	_, _, failed := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(code)
	if failed != 0 {
		t.Fatal(fmt.Errorf("install a seccomp filter: %w", failed))
	}
}
