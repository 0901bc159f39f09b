// SPDX-License-Identifier: Apache-2.0

package mapped

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	patience = 20 * time.Second
	child    = "DROIDTAP_MAPPED_CHILD"
	uid      = 23456 // nobody's
)

func TestMain(m *testing.M) {
	if os.Getenv(child) != "" {
		if err := obey(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// obey is the child: it does what the lines of its input say, and answers each with a line.
func obey() error {
	comm, err := os.OpenFile("/proc/self/comm", os.O_WRONLY, 0) // which is root's behind setuid
	if err != nil {
		return err
	}
	fmt.Println("ok")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		f := strings.Fields(lines.Text())
		var err error
		switch f[0] {
		case "map", "delete": // a file, an offset
			err = mapFile(f[1], f[2], f[0] == "delete")
		case "mount":
			err = unix.Mount("none", f[1], "tmpfs", 0, "")
		case "copy":
			var b []byte
			if b, err = os.ReadFile(f[1]); err == nil {
				err = os.WriteFile(f[2], b, 0o600)
			}
		case "setuid":
			err = syscall.Setuid(uid)
		case "name":
			_, err = comm.WriteString(f[1])
		}
		if err != nil {
			return err
		}
		fmt.Println("ok")
	}
	return nil
}

// mapFile maps a page of a file at an offset, and to be executed the one behind it, as a dynamic linker does.
// The file may lose its name in between.
func mapFile(name, offset string, remove bool) error {
	at, err := strconv.ParseInt(offset, 10, 64)
	if err != nil {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if remove {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	page := os.Getpagesize()
	base, err := unix.Mmap(int(f.Fd()), at, 2*page, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	_, err = unix.MmapPtr(int(f.Fd()), at+int64(page), unsafe.Pointer(&base[page]), uintptr(page), unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_FIXED)
	return err
}

// mapper is a process that maps what it is told to.
type mapper struct {
	cmd   *exec.Cmd
	in    io.Writer
	lines *bufio.Scanner
}

func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to watch other processes")
	}
}

func newMapper(t *testing.T, flags uintptr) *mapper {
	t.Helper()
	root(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), child+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m := &mapper{cmd, in, bufio.NewScanner(out)}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	m.await(t)
	return m
}

func (m *mapper) await(t *testing.T) {
	t.Helper()
	if m.lines.Scan(); m.lines.Text() != "ok" {
		t.Fatalf("the child says %q", m.lines.Text())
	}
}

func (m *mapper) do(t *testing.T, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(m.in, format+"\n", args...); err != nil {
		t.Fatal(err)
	}
	m.await(t)
}
