// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long anything that must happen may take.
const patience = 30 * time.Second

// folder is where an installed module is, and state what it makes for itself.
const (
	folder = "/data/adb/modules/droidtap/"
	state  = "/data/adb/droidtap/"
)

// phone is a root file system of BusyBox and stand-ins, in namespaces of its own: the
// scripts find the paths that they name, and nothing outlives the test.
type phone struct {
	t          *testing.T
	root       string
	init       *exec.Cmd
	told       *os.File // written by the stand-ins
	lines      *bufio.Reader
	exit, boot *os.File // read by them
}

// initScript makes /proc, in which the test can set the time since boot, and then reaps
// what loses its parent, as init does.
const initScript = `mount --make-rprivate / && mount -t proc proc "$1/proc" && mount --bind "$1/test/uptime" "$1/proc/uptime" &&
exec chroot "$1" /bin/busybox sh -c 'echo up; while :; do sleep 1000 & wait $!; done'`

func newPhone(t *testing.T) *phone {
	t.Helper()
	p := &phone{t: t, root: t.TempDir()}
	for _, d := range []string{"bin", "proc", "dev", "test/props", "system/bin", "data/adb/modules", "data/adb/modules_update", "data/local/tmp"} {
		p.must(os.MkdirAll(p.path(d), 0o755))
	}
	p.must(os.Chmod(p.path("data/adb"), 0o700))
	busybox, err := exec.LookPath("busybox")
	p.must(err)
	p.copy(busybox, "bin/busybox")
	p.must(os.Symlink("busybox", p.path("bin/sh")))
	for from, to := range map[string]string{"install.sh": "test", "boot.sh": "test", "getprop": "system/bin", "resetprop": "system/bin"} {
		p.copy(filepath.Join("testdata", from), filepath.Join(to, from))
	}
	p.must(unix.Mknod(p.path("dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	p.write("test/uptime", "1000.00 0.00\n")
	p.write("test/doctor", "0\n")
	p.write("test/props/sys.boot_completed", "1\n")
	p.told, p.exit, p.boot = p.fifo("told"), p.fifo("exit"), p.fifo("boot")
	p.lines = bufio.NewReader(p.told)

	p.init = exec.Command("sh", "-c", initScript, "init", p.root)
	p.init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	p.init.Stderr = os.Stderr
	out, err := p.init.StdoutPipe()
	p.must(err)
	p.must(p.init.Start())
	t.Cleanup(func() {
		_ = p.init.Process.Kill() // and all that has begun in its namespace
		_ = p.init.Wait()
	})
	if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
		t.Fatalf("the phone is not up: %v", err)
	}
	return p
}

func (p *phone) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *phone) path(name string) string { return filepath.Join(p.root, name) }

func (p *phone) copy(from, to string) {
	p.t.Helper()
	text, err := os.ReadFile(from)
	p.must(err)
	p.must(os.WriteFile(p.path(to), text, 0o755))
}

func (p *phone) write(name, text string) {
	p.t.Helper()
	p.must(os.WriteFile(p.path(name), []byte(text), 0o600))
}

func (p *phone) read(name string) string {
	p.t.Helper()
	text, err := os.ReadFile(p.path(name))
	p.must(err)
	return string(text)
}

func (p *phone) exists(name string) bool {
	_, err := os.Lstat(p.path(name))
	return err == nil
}

// fifo makes /test/NAME. It is open for both ways, so that nobody waits for the other end.
func (p *phone) fifo(name string) *os.File {
	p.t.Helper()
	path := p.path("test/" + name)
	p.must(unix.Mkfifo(path, 0o666))
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	p.must(err)
	p.t.Cleanup(func() { _ = f.Close() })
	return f
}

// sh runs BusyBox's ash in the phone, as a root manager does, and returns what it
// printed and its exit code. vars are NAME=VALUE.
func (p *phone) sh(vars []string, args ...string) (string, int) {
	p.t.Helper()
	line := []string{"-t", strconv.Itoa(p.init.Process.Pid), "-m", "-p", "-r", "-w", "/bin/busybox", "sh"}
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append(line, args...)...)
	cmd.Env = append([]string{"PATH=/bin:/system/bin", "ASH_STANDALONE=1"}, vars...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second // for a service that holds on to its starter's output: an error, then
	err := cmd.Run()
	if _, exited := err.(*exec.ExitError); err != nil && !exited || ctx.Err() != nil {
		p.t.Fatalf("%q: %v\n%s", args, err, out.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// run is sh of what must succeed.
func (p *phone) run(args ...string) string {
	p.t.Helper()
	out, code := p.sh(nil, args...)
	if code != 0 {
		p.t.Fatalf("%q: exit code %d\n%s", args, code, out)
	}
	return out
}

// hear waits for the next line of a stand-in.
func (p *phone) hear(want string) {
	p.t.Helper()
	if line := p.line(); line != want {
		p.t.Fatalf("heard %q, want %q\nlog:\n%s", line, want, p.log())
	}
}

// line returns the next line of a stand-in.
func (p *phone) line() string {
	p.t.Helper()
	p.must(p.told.SetReadDeadline(time.Now().Add(patience)))
	line, err := p.lines.ReadString('\n')
	if err != nil {
		p.t.Fatalf("heard %q: %v\nlog:\n%s", line, err, p.log())
	}
	return strings.TrimSuffix(line, "\n")
}

// send lets a stand-in go on that reads a FIFO.
func (p *phone) send(to *os.File, text string) {
	p.t.Helper()
	_, err := fmt.Fprintln(to, text)
	p.must(err)
}

var stamp = regexp.MustCompile(`(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d `)

// log is the service's, without the times.
func (p *phone) log() string {
	text, _ := os.ReadFile(p.path(state + "run/service.log"))
	return stamp.ReplaceAllString(string(text), "")
}

// supervisor returns a descriptor of the process that runs as the supervisor.
func (p *phone) supervisor() *os.File {
	p.t.Helper()
	own, _, _ := strings.Cut(p.read(state+"run/service.pid"), " ")
	space := func(pid string) string { s, _ := os.Readlink("/proc/" + pid + "/ns/pid"); return s }
	all, err := filepath.Glob("/proc/[0-9]*/status")
	p.must(err)
	for _, path := range all {
		text, _ := os.ReadFile(path) // it may have ended
		pid := filepath.Base(filepath.Dir(path))
		_, ids, _ := strings.Cut(string(text), "\nNSpid:")
		ids, _, _ = strings.Cut(ids, "\n")
		if f := strings.Fields(ids); len(f) == 2 && f[1] == own && space(pid) == space(strconv.Itoa(p.init.Process.Pid)) {
			n, err := strconv.Atoi(pid)
			p.must(err)
			fd, err := unix.PidfdOpen(n, 0)
			p.must(err)
			f := os.NewFile(uintptr(fd), "supervisor")
			p.t.Cleanup(func() { _ = f.Close() })
			return f
		}
	}
	p.t.Fatalf("no supervisor runs; its file names %q", own)
	return nil
}

// ended waits until a process has.
func (p *phone) ended(process *os.File) {
	p.t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(process.Fd()), Events: unix.POLLIN}}, int(patience.Milliseconds()))
	if n != 1 || err != nil {
		p.t.Fatalf("the supervisor has not ended: %v\nlog:\n%s", err, p.log())
	}
}

// killSupervisor has the supervisor die without a word.
func (p *phone) killSupervisor() {
	p.t.Helper()
	s := p.supervisor()
	p.must(unix.PidfdSendSignal(int(s.Fd()), unix.SIGKILL, nil, 0))
	p.ended(s)
}
