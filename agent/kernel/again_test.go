// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// again runs the test once more in a process of its own that change has prepared, and returns true in that one. What a
// process gives up it does not get back, and cilium/ebpf remembers what it was refused.
func again(t *testing.T, change func(*exec.Cmd)) bool {
	t.Helper()
	const mark = "KERNEL_TEST_AGAIN"
	if os.Getenv(mark) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root for bpf and to give up what root may do")
	}
	arguments := []string{"-test.v", "-test.run=^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"}
	// A path that needs no leave to walk to the file.
	cmd := exec.Command("/proc/self/exe", arguments...)
	// With -race the runtime would wait a second at each end.
	cmd.Env = append(os.Environ(), mark+"="+t.Name(), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	change(cmd)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return false
}

// unchanged is for a test that does to its process by itself what again is for.
func unchanged(*exec.Cmd) {}

// without takes capabilities away, for good.
func without(t *testing.T, capabilities string) func(*exec.Cmd) {
	t.Helper()
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip("setpriv is not installed")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return func(cmd *exec.Cmd) {
		cmd.Path = setpriv
		cmd.Args = append([]string{setpriv, "--bounding-set=" + capabilities, self}, cmd.Args[1:]...)
	}
}

// as makes the process a user's.
func as(uid uint32) func(*exec.Cmd) {
	return func(cmd *exec.Cmd) { cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid} }
}

// namespaced makes the process root of a user namespace.
func namespaced(cmd *exec.Cmd) {
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
	cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{Size: 1}}
	cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{Size: 1}}
}
