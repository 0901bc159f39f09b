// SPDX-License-Identifier: Apache-2.0

package uprobe

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// nothing is a program that does nothing. What it is attached to, and that it then runs, are tested in agent/probe/tlskey.
func nothing(t *testing.T) *ebpf.Program {
	t.Helper()
	nettest.Require(t)
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Kprobe, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func TestAttachSaysWhatIsWrong(t *testing.T) {
	p := nothing(t)
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Attach(f, 1<<40, p); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "behind the end of the file") {
		t.Errorf("an offset that the file has not: %v", err)
	}
	proc, err := os.Open("/proc/version")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if _, err := Attach(proc, 0, p); err == nil || !strings.Contains(err.Error(), "probe the instruction at 0x0") {
		t.Errorf("a file that nobody can map: %v", err)
	}
	wrong, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SocketFilter, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer wrong.Close()
	if _, err := Attach(f, 0, wrong); err == nil || !strings.Contains(err.Error(), "set the program of a uprobe") {
		t.Errorf("a program of another kind: %v", err)
	}
}

func TestKindSaysThatThereAreNone(t *testing.T) {
	if _, err := kindOf(nil, fs.ErrNotExist); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	if _, err := kindOf(nil, os.ErrPermission); !errors.Is(err, os.ErrPermission) || errors.Is(err, ErrNone) {
		t.Error(err)
	}
	if _, err := kindOf([]byte("seven\n"), nil); err == nil {
		t.Error("a type is a number")
	}
	if n, err := kindOf([]byte("7\n"), nil); n != 7 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestExplain(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EPERM, unix.EACCES, unix.ENOENT, unix.EINVAL, unix.EIO, unix.ENOEXEC, unix.EOPNOTSUPP, enotsupp, unix.EMFILE} {
		if err := Explain(errno); !errors.Is(err, errno) || err == error(errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	if err := Explain(unix.EBUSY); err != error(unix.EBUSY) {
		t.Error(err)
	}
}
