// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"io/fs"
	"math"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// texts is a root with these files.
func texts(files map[string]string) fstest.MapFS {
	root := fstest.MapFS{}
	for name, text := range files {
		root[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return root
}

// closed is a file system where one file may not be read.
type closed struct {
	fs.FS
	name string
}

func (c closed) Open(name string) (fs.File, error) {
	if name == c.name {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return c.FS.Open(name)
}

func TestLook(t *testing.T) {
	shell := map[string]string{
		"proc/self/status": "Name:\tagent\nUid:\t0\t2000\t2000\t2000\nGid:\t2000\t2000\t2000\t2000\nNoNewPrivs:\t1\n" +
			"CapInh:\t0000000000000000\nCapPrm:\t00000000000000c0\nCapEff:\t00000000000000c0\nSeccomp:\t2\nSeccomp_filters:\t1\n",
		"proc/self/limits": "Limit                     Soft Limit           Hard Limit           Units     \n" +
			"Max locked memory         65536                unlimited            bytes     \n",
		"proc/sys/kernel/cap_last_cap":  "40\n",
		"proc/sys/kernel/osrelease":     "5.10.198-android12-9-00019-g6efebf1322d6-ab11471183\n",
		"proc/self/uid_map":             "         0          0 4294967295\n",
		"proc/self/attr/current":        "u:r:shell:s0\x00",
		"sys/fs/selinux/enforce":        "1",
		"sys/kernel/security/lockdown":  "none integrity [confidentiality]\n",
		"sys/kernel/security/apparmor":  "not asked",
		"proc/self/attr/apparmor/never": "not asked",
	}
	whole := Surroundings{UID: 2000, Caps: 0xc0, LastCap: 40, Seccomp: 2, Memlock: 65536,
		Release:  "5.10.198-android12-9-00019-g6efebf1322d6-ab11471183",
		Lockdown: "confidentiality", SELinux: SELinux{Enabled: true, Enforcing: true, Context: "u:r:shell:s0"}}
	for _, test := range []struct {
		rule  string
		name  string // of the file that is another
		text  string
		want  func(*Surroundings)
		inner func(fs.FS) fs.FS
	}{
		{rule: "everything is read"},
		{rule: "another map of users is a user namespace", name: "proc/self/uid_map", text: "0 1000 1\n",
			want: func(s *Surroundings) { s.UserNamespace = true }},
		{rule: "so is one in parts", name: "proc/self/uid_map", text: "0 0 1000\n1000 1000 4294966295\n",
			want: func(s *Surroundings) { s.UserNamespace = true }},
		{rule: "no map is a kernel without user namespaces", name: "proc/self/uid_map", text: ""},
		{rule: "unlimited is the largest number", name: "proc/self/limits",
			text: "Max locked memory         unlimited            unlimited            bytes\n",
			want: func(s *Surroundings) { s.Memlock = math.MaxUint64 }},
		{rule: "SELinux may watch only", name: "sys/fs/selinux/enforce", text: "0",
			want: func(s *Surroundings) { s.SELinux.Enforcing = false }},
		{rule: "SELinux that hides itself is in force",
			inner: func(root fs.FS) fs.FS { return closed{root, "sys/fs/selinux/enforce"} }},
		{rule: "lockdown none", name: "sys/kernel/security/lockdown", text: "[none] integrity confidentiality\n",
			want: func(s *Surroundings) { s.Lockdown = "none" }},
		{rule: "lockdown that says nothing", name: "sys/kernel/security/lockdown", text: "none integrity\n",
			want: func(s *Surroundings) { s.Lockdown = "" }},
		{rule: "a status that is cut short", name: "proc/self/status", text: "Uid:\nSeccomp\nUid:\tx\t\nCapEff:\tzz",
			want: func(s *Surroundings) { s.UID, s.Caps, s.Seccomp = -1, 0, 0 }},
	} {
		t.Run(test.rule, func(t *testing.T) {
			files, want := texts(shell), whole
			if test.name != "" {
				files[test.name] = &fstest.MapFile{Data: []byte(test.text)}
			}
			if test.want != nil {
				test.want(&want)
			}
			var root fs.FS = files
			if test.inner != nil {
				root = test.inner(root)
			}
			if diff := cmp.Diff(want, Look(root)); diff != "" {
				t.Errorf("surroundings (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("without SELinux the context is another module's", func(t *testing.T) {
		files := texts(shell)
		delete(files, "sys/fs/selinux/enforce")
		if got := Look(files).SELinux; got != (SELinux{}) {
			t.Errorf("%+v, want nothing", got)
		}
	})
	t.Run("nothing to read is nothing known", func(t *testing.T) {
		if diff := cmp.Diff(Surroundings{UID: -1}, Look(fstest.MapFS{})); diff != "" {
			t.Errorf("surroundings (-want +got):\n%s", diff)
		}
	})
}

// What Look reads is what the kernel answers to system calls.
func TestLookHere(t *testing.T) {
	if !again(t, unchanged) {
		return
	}
	limit := unix.Rlimit{Cur: 64 << 10, Max: 64 << 10}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		t.Fatal(err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		t.Fatal(err)
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	s := Look(os.DirFS("/"))
	want := s // SELinux, Lockdown and UserNamespace are what they are
	want.UID, want.Caps, want.Memlock = os.Geteuid(), uint64(caps[1].Effective)<<32|uint64(caps[0].Effective), limit.Cur
	want.Release = unix.ByteSliceToString(name.Release[:])
	if diff := cmp.Diff(want, s); diff != "" {
		t.Errorf("surroundings (-want +got):\n%s", diff)
	}
	if s.LastCap < unix.CAP_AUDIT_READ {
		t.Errorf("the last capability is %d", s.LastCap)
	}
}

const security = "/sys/kernel/security"

// mounting gives the process mounts of its own.
func mounting(cmd *exec.Cmd) { cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS }

// mountSecurity mounts securityfs, unless it is.
func mountSecurity(t *testing.T) {
	t.Helper()
	if err := unix.Mount("securityfs", security, "securityfs", 0, ""); err != nil && err != unix.EBUSY {
		t.Fatalf("mount securityfs: %v", err)
	}
}

func TestLookAtLockdown(t *testing.T) {
	if !again(t, mounting) {
		return
	}
	mountSecurity(t)
	text, err := os.ReadFile(security + "/lockdown")
	got := Look(os.DirFS("/")).Lockdown
	if err == nil && (got == "" || !strings.Contains(string(text), "["+got+"]")) || err != nil && got != "" {
		t.Errorf("lockdown %q in %q, %v", got, text, err)
	}
}
