// SPDX-License-Identifier: Apache-2.0

// Package lab tests the agent on emulated phones, from outside: by adb, as a
// user would run it.
package lab

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// limit is for any one thing that the tests wait for.
const limit = time.Minute

// phone is a running emulated phone.
type phone struct {
	dir  string
	said string // by the agent in the last comparison
}

// boot starts a phone with the kernel of a Debian suite; it ends with the test. env is for phone.sh.
func boot(t *testing.T, suite string, env ...string) *phone {
	t.Helper()
	p := &phone{dir: filepath.Join(t.TempDir(), "phone")}
	cmd := exec.Command("./phone.sh", "-d", p.dir, "up", suite)
	cmd.Stderr, cmd.Env = os.Stderr, append(os.Environ(), env...)
	t.Cleanup(func() {
		if err := exec.Command("./phone.sh", "-d", p.dir, "down").Run(); err != nil {
			t.Errorf("switch the phone off: %v", err)
		}
	})
	if err := cmd.Run(); err != nil {
		t.Fatalf("boot the phone: %v", err)
	}
	return p
}

// environ is the environment in which plain adb talks to the phone.
func (p *phone) environ(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("./phone.sh", "-d", p.dir, "env").Output()
	if err != nil {
		t.Fatalf("phone.sh env: %v", err)
	}
	vars := strings.Fields(strings.TrimPrefix(string(out), "export "))
	return append(os.Environ(), append(vars, "LAB_ADB_TIMEOUT=400")...)
}

func (p *phone) adb(args ...string) *exec.Cmd {
	cmd := exec.Command("./phone.sh", append([]string{"-d", p.dir, "adb"}, args...)...)
	cmd.Env = append(os.Environ(), "LAB_ADB_TIMEOUT=400")
	return cmd
}

// push puts a file of the host on the phone, executable.
func (p *phone) push(t *testing.T, file, to string) {
	t.Helper()
	if out, err := p.adb("push", file, to).CombinedOutput(); err != nil {
		t.Fatalf("adb push %s: %v\n%s", file, err, out)
	}
	p.shell(t, "chmod 755 "+to)
}

// pull fetches a file of the phone, readable by root only, and gives its name here.
func (p *phone) pull(t *testing.T, file string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(file))
	if out, err := p.adb("pull", file, to).CombinedOutput(); err != nil {
		t.Fatalf("adb pull %s: %v\n%s", file, err, out)
	}
	return to
}

// run gives what a command line printed (both streams) and its exit code.
func (p *phone) run(t *testing.T, line string) (string, int) {
	t.Helper()
	out, err := p.adb("shell", line).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("adb shell %s: %v", line, err)
	}
	if exit != nil {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

// shell is run for what must succeed.
func (p *phone) shell(t *testing.T, line string) string {
	t.Helper()
	out, code := p.run(t, line)
	if code != 0 {
		t.Fatalf("adb shell %s: exit code %d\n%s", line, code, out)
	}
	return out
}

// root runs a line without quotes in it as root.
func (p *phone) root(t *testing.T, line string) string {
	t.Helper()
	return p.shell(t, "su -c '"+line+"'")
}

// eventually asks again until the answer is yes. Every question is a command on
// the phone, which paces it.
func eventually(t *testing.T, what string, yes func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !yes(); {
		if time.Now().After(end) {
			t.Fatalf("gave up waiting: %s", what)
		}
	}
}

// process is a program on the phone that runs while the test goes on.
type process struct {
	cmd   *exec.Cmd
	lines chan string // closed at its end
	seen  []string    // lines taken so far
}

// start runs adb with args, such as "shell", "su", "-c", ...
func (p *phone) start(t *testing.T, args ...string) *process {
	t.Helper()
	return start(t, p.adb(args...))
}

// start runs a command whose output, both streams, is followed.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	r, w := io.Pipe()
	pr := &process{cmd: cmd, lines: make(chan string, 1000)}
	pr.cmd.Stdout, pr.cmd.Stderr = w, w
	// A group of its own: an end reaches all of a pipeline.
	pr.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := pr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			pr.lines <- strings.TrimRight(s.Text(), "\r")
		}
		close(pr.lines)
	}()
	done := make(chan struct{})
	go func() {
		_ = pr.cmd.Wait()
		w.Close()
		close(done)
	}()
	t.Cleanup(func() {
		select {
		case <-done:
		default:
			// It may have ended just now: Wait has returned then, and done is not closed yet.
			if err := syscall.Kill(-pr.cmd.Process.Pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Errorf("interrupt %s: %v", pr.cmd, err)
			}
			<-done
		}
	})
	return pr
}

// interrupt does what Ctrl-C does at a terminal: SIGINT to the process group.
func (pr *process) interrupt(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-pr.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Errorf("interrupt %s: %v", pr.cmd, err)
	}
}

// until takes lines up to one that matches and gives its submatches.
func (pr *process) until(t *testing.T, re *regexp.Regexp) []string {
	t.Helper()
	end := time.After(limit)
	for {
		select {
		case line, ok := <-pr.lines:
			if !ok {
				t.Fatalf("ended without a line %q:\n%s", re, strings.Join(pr.seen, "\n"))
			}
			pr.seen = append(pr.seen, line)
			if m := re.FindStringSubmatch(line); m != nil {
				return m
			}
		case <-end:
			t.Fatalf("no line %q:\n%s", re, strings.Join(pr.seen, "\n"))
		}
	}
}

// end takes the remaining lines and gives the exit code.
func (pr *process) end(t *testing.T) int {
	t.Helper()
	end := time.After(limit)
	for {
		select {
		case line, ok := <-pr.lines:
			if !ok {
				return pr.cmd.ProcessState.ExitCode()
			}
			pr.seen = append(pr.seen, line)
		case <-end:
			t.Fatalf("does not end:\n%s", strings.Join(pr.seen, "\n"))
		}
	}
}

// packet is one record of a capture: its length on the wire and captured bytes.
type packet struct {
	wire uint32
	data string
}

// read gives the link type and packets of a capture in any format that editcap reads.
func read(t *testing.T, file string) (linktype uint32, packets []packet) {
	t.Helper()
	pcap := filepath.Join(t.TempDir(), "capture.pcap")
	if out, err := exec.Command("editcap", "-F", "pcap", file, pcap).CombinedOutput(); err != nil {
		t.Fatalf("editcap %s: %v\n%s", file, err, out)
	}
	b, err := os.ReadFile(pcap)
	if err != nil {
		t.Fatal(err)
	}
	// The pcap format: draft-ietf-opsawg-pcap, sections 4 and 5. editcap
	// writes in the host's byte order.
	order := binary.NativeEndian
	if len(b) < 24 || order.Uint32(b) != 0xa1b2c3d4 {
		t.Fatalf("editcap wrote no pcap: % x", b[:min(len(b), 24)])
	}
	linktype = order.Uint32(b[20:]) & 0xffff
	for b = b[24:]; len(b) >= 16; {
		n := 16 + int(order.Uint32(b[8:]))
		packets = append(packets, packet{order.Uint32(b[12:]), string(bytes.Clone(b[16:n]))})
		b = b[n:]
	}
	return linktype, packets
}
