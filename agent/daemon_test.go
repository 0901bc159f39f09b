// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// TestDaemon follows a daemon through its life.
func TestDaemon(t *testing.T) {
	nettest.Require(t, "agent", "capinfos")
	near, far := nettest.Pair(t)
	b := launch(t, near, "agent", "udp port 9")
	if ready, err := os.ReadFile(b.file("ready")); string(ready) != fmt.Sprintln(b.pid) {
		t.Errorf("ready: %q, %v", ready, err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", b.pid))
	must(t, err)
	_, after, _ := strings.Cut(string(stat), ") ")
	if f := strings.Fields(after); f[3] != strconv.Itoa(b.pid) || f[4] != "0" {
		t.Errorf("session %s, terminal %s of pid %d", f[3], f[4], b.pid)
	}
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", b.pid)); string(comm) != "agent\n" {
		t.Errorf("it is called %q (%v)", comm, err)
	}
	datagrams(t, far, 5)
	b.awaitCaptured(t, 5)
	f, err := nettest.Read(b.file("f"))
	if must(t, err); len(f.Packets) != 5 {
		t.Errorf("%d packets are in the file when flush has returned", len(f.Packets))
	}
	var s status
	b.json(t, &s, "status")
	if s.Since.IsZero() {
		t.Error("it does not say since when")
	}
	want := status{Pid: b.pid, Version: version, State: "capturing", Label: "veth0", Filter: "udp port 9", Since: s.Since,
		totals: totals{Captured: 5, Received: 5, Unattributed: 5, File: b.file("f"), Files: 1}, Warnings: []warning{}}
	if d := cmp.Diff(want, s, cmp.AllowUnexported(status{})); d != "" {
		t.Errorf("status: (-want +got)\n%s", d)
	}
	for _, fact := range []string{"capturing on veth0 since ", fmt.Sprintf("\npid %d\n", b.pid), "\nfilter udp port 9\n", "\n5 packets captured\n", "\nfile " + b.file("f") + "\n"} {
		if text := b.ask(t, "status"); !strings.Contains(text, fact) {
			t.Errorf("status does not say %q:\n%s", fact, text)
		}
	}
	if text := b.ask(t, "stats"); !strings.HasPrefix(text, "5 packets captured\n5 packets received by filter\n0 packets dropped by kernel\n") {
		t.Errorf("stats:\n%s", text)
	}

	_, stderr, code := b.ends(b.argv("agent")...)
	if line := fmt.Sprintf("agent: an agent runs already, pid %d: it holds %s\n", b.pid, b.file("pid")); code != 1 || stderr != line {
		t.Errorf("a second one: code %d, %q, and not %q", code, stderr, line)
	}
	_, stderr, code = b.ends("agent", "--daemon", "--pid-file", b.file("pid2"), "--socket", b.file("sock"), "--log", b.file("log2"), "-w", b.file("f2"), "-i", "veth0")
	if code != 1 || !strings.Contains(stderr, "an agent listens there already") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("a second one at the socket: code %d, %q", code, stderr)
	}

	if out := b.ask(t, "stop"); out != "" {
		t.Errorf("stop says %q", out)
	}
	b.gone(t)
	if log := b.log(t); !strings.Contains(log, "Z capturing on veth0") && !strings.Contains(log, " capturing on veth0") || !strings.Contains(log, " 5 packets captured\n") {
		t.Errorf("the log:\n%s", log)
	}
	wireshark(t, "capinfos", b.file("f"))
	if _, stderr, code := b.ends("agent", "status", "--socket", b.file("sock")); code != 1 || !strings.Contains(stderr, "no agent listens there") {
		t.Errorf("status of none: code %d, %q", code, stderr)
	}
}

// TestUnattended is a capture in the foreground that is asked and stopped as a daemon is, as the module's service runs it: what it says
// once it captures is in its log alone.
func TestUnattended(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	b := &background{Space: near, dir: t.TempDir()}
	argv := slices.DeleteFunc(b.argv("agent", "--stats", "1", "udp port 9"), func(arg string) bool { return arg == "--daemon" })
	p := nettest.Start(t, near.Command(argv...), "capturing on veth0")
	b.pid = p.Pid()
	datagrams(t, far, 3)
	b.awaitCaptured(t, 3)
	awaitLog(t, b, "agent: 3 packets captured, ")
	var s status
	if b.json(t, &s, "status"); s.Pid != b.pid || s.State != "capturing" || s.Captured != 3 {
		t.Errorf("status: %+v", s)
	}
	b.ask(t, "stop")
	if code := p.Wait(t); code != 0 {
		t.Errorf("it was stopped, with exit code %d", code)
	}
	b.gone(t)
	if said := p.Stderr(); said != "capturing on veth0 to "+b.file("f")+"\n" {
		t.Errorf("on stderr:\n%s", said)
	}
	if log := b.log(t); !strings.Contains(log, " 3 packets captured\n") {
		t.Errorf("the log:\n%s", log)
	}
}

// TestDaemonRefused says in one line why there is no daemon, with its exit code, and leaves none.
func TestDaemonRefused(t *testing.T) {
	nettest.Require(t, "agent", "setpriv")
	near, _ := nettest.Pair(t)
	open := t.TempDir()
	must(t, os.Chmod(open, 0o777))
	for _, c := range []struct {
		rule string
		args []string // behind those that say where its files are
		code int
		text string
	}{
		{"an interface", []string{"-i", "nope"}, 2, `no interface "nope"`},
		{"an expression", []string{"tcp", "port"}, 2, "syntax error"},
		{"a directory", []string{"-w", "/no/where"}, 2, "does not exist"},
		{"standard output", []string{"-w", "-"}, 2, "standard output"},
		{"a pid file where others write", []string{"--pid-file", filepath.Join(open, "pid")}, 2, "others than root may write there"},
		{"a socket where others write", []string{"--socket", filepath.Join(open, "sock")}, 2, "others than root may write there"},
		{"a log that is none", []string{"--log", open}, 1, "log"},
		{"no name", []string{"--pid-file", ""}, 2, "--pid-file needs a name"},
		{"statistics", []string{"--stats", "0"}, 2, "--stats 0"},
		{"JSON of nothing", []string{"--json"}, 2, "--json"},
	} {
		b := &background{Space: near, dir: t.TempDir()}
		_, stderr, code := b.ends(b.argv("agent", c.args...)...)
		if code != c.code || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "agent: ") || !strings.Contains(stderr, c.text) {
			t.Errorf("%s: code %d, %q", c.rule, code, stderr)
		}
		for _, name := range []string{"pid", "sock", "ready", "f"} {
			if _, err := os.Lstat(b.file(name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %s is there (%v)", c.rule, name, err)
			}
		}
	}
	b := &background{Space: near, dir: t.TempDir()}
	_, stderr, code := b.ends(append([]string{"setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"}, b.argv("agent")...)...)
	if code != 3 || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "agent: not permitted") {
		t.Errorf("not root: code %d, %q", code, stderr)
	}
	nothingLeft(t, near)
}

// TestDaemonPeers lets shell ask, and nobody else but root.
func TestDaemonPeers(t *testing.T) {
	nettest.Require(t, "agent", "setpriv")
	near, _ := nettest.Pair(t)
	b := launch(t, near, "agent")
	must(t, os.Chmod(b.dir, 0o755))
	must(t, os.Chmod(filepath.Dir(b.dir), 0o755))
	// The test's own directory is root's alone.
	program := filepath.Join(b.dir, "agent")
	path, err := exec.LookPath("agent")
	must(t, err)
	binary, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(program, binary, 0o755))
	as := func(uid string, words ...string) (string, int) {
		_, stderr, code := b.ends(append([]string{"setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", program, words[0], "--socket", b.file("sock")}, words[1:]...)...)
		return stderr, code
	}
	if stderr, code := as("2000", "status"); code != 0 {
		t.Errorf("shell: code %d, %q", code, stderr)
	}
	if stderr, code := as("1000", "status"); code != 3 || !strings.HasPrefix(stderr, "agent: not permitted") {
		t.Errorf("another by the mode of the socket: code %d, %q", code, stderr)
	}
	must(t, os.Chmod(b.file("sock"), 0o666))
	if stderr, code := as("1000", "stop"); code != 3 || stderr != "agent: not permitted: only root and shell may ask, and not user 1000\n" {
		t.Errorf("another: code %d, %q", code, stderr)
	}
	if stderr, code := as("2000", "stop"); code != 0 {
		t.Errorf("shell stops it: code %d, %q", code, stderr)
	}
	b.gone(t)
}

// TestDaemonKilled starts another one where the first could not clean up.
func TestDaemonKilled(t *testing.T) {
	nettest.Require(t, "agent")
	near, far := nettest.Pair(t)
	b := launch(t, near, "agent")
	datagrams(t, far, 3)
	b.awaitCaptured(t, 3)
	killed := b.pid
	fd, err := unix.PidfdOpen(killed, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, syscall.Kill(killed, syscall.SIGKILL))
	// Of a process whose first thread is a zombie others may still have its files open.
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(nettest.Patience.Milliseconds()))
	if must(t, err); n == 0 {
		t.Fatal("it outlives kill -9")
	}
	if f, err := nettest.Read(b.file("f")); err != nil || len(f.Packets) < 3 {
		t.Errorf("%d packets are left (%v)", len(f.Packets), err)
	}
	for _, name := range []string{"pid", "sock", "ready"} {
		_, err := os.Lstat(b.file(name))
		must(t, err) // or there is nothing to take over
	}
	line := fmt.Sprintf("an agent ended without removing its pid file, which is taken over, pid %d: %s", killed, b.file("pid"))
	b.start(t, "agent")
	var s status
	if b.json(t, &s, "status"); s.Pid == killed || s.Pid != b.pid {
		t.Errorf("pid %d, %d in the file, and %d was killed", s.Pid, b.pid, killed)
	}
	if len(s.Warnings) != 1 || s.Warnings[0].Text != line || !strings.Contains(b.log(t), line+"\n") {
		t.Errorf("%+v is said, and not %q; the log:\n%s", s.Warnings, line, b.log(t))
	}
	b.ask(t, "stop")
	b.gone(t)
}

// TestDaemonInput reads what the caller of --daemon gives it, which it has left when it is ready.
func TestDaemonInput(t *testing.T) {
	nettest.Require(t, "agent")
	near, _ := nettest.Pair(t)
	b := &background{Space: near, dir: t.TempDir()}
	cmd := near.Command(b.argv("agent", "-F", "/dev/stdin")...)
	cmd.Stdin = strings.NewReader("udp port 9\n")
	said, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	b.began(t)
	var s status
	b.json(t, &s, "status")
	if s.Filter != "udp port 9" {
		t.Errorf("the filter is %q", s.Filter)
	}
	if to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/0", b.pid)); to != os.DevNull {
		t.Errorf("its standard input is %s (%v)", to, err)
	}
	b.ask(t, "stop")
	b.gone(t)
}

// TestDaemonCgroup leaves the cgroup of a service, and no other.
func TestDaemonCgroup(t *testing.T) {
	nettest.Require(t, "agent", "nsenter")
	near, _ := nettest.Pair(t)
	service := filepath.Join(enterCgroup(t), "uid_2000", "pid_7")
	must(t, os.MkdirAll(service, 0o755))
	t.Cleanup(func() {
		removeCgroup(t, service)
		removeCgroup(t, filepath.Dir(service))
	})
	b := &background{Space: near, dir: t.TempDir()}
	own := func(pid string) (two string, others []string) {
		text, err := os.ReadFile("/proc/" + pid + "/cgroup")
		must(t, err)
		for line := range strings.Lines(string(text)) {
			if path, is := strings.CutPrefix(line, "0::"); is {
				two = strings.TrimSpace(path)
			} else {
				others = append(others, line)
			}
		}
		return two, others
	}
	// ip netns exec would hide where cgroups are mounted. So /sys shows another namespace's interfaces: lo is the same in all.
	said, err := exec.Command("nsenter", "--net=/run/netns/"+near.Name, "sh", "-c", `echo 0 >"$1/cgroup.procs" && cat /proc/self/cgroup && shift && exec "$@"`, "sh", service,
		"agent", "--daemon", "--pid-file", b.file("pid"), "--socket", b.file("sock"), "--log", b.file("log"), "-w", b.file("f"), "-i", "lo").CombinedOutput()
	if err != nil || !strings.Contains(string(said), "/uid_2000/pid_7\n") {
		t.Fatalf("%v\n%s", err, said)
	}
	b.began(t)
	two, others := own(strconv.Itoa(b.pid))
	_, before := own("self")
	if two != "/" {
		t.Errorf("it is in %s", two)
	}
	if d := cmp.Diff(before, others); d != "" {
		t.Errorf("other cgroups: (-before +after)\n%s", d)
	}
	b.ask(t, "stop")
	b.gone(t)
}

// TestDaemonAtHome has a daemon's files where a phone has a place that only root may enter. /data is the system's there.
func TestDaemonAtHome(t *testing.T) {
	nettest.Require(t, "agent")
	near, _ := nettest.Pair(t)
	file := filepath.Join(t.TempDir(), "f")
	cmd := near.Command("sh", "-c", home, "home", "sh", "-c", `set -e
mkdir -m 771 /data
chown 1000:1000 /data
agent --daemon -i veth0 -w "$1"
stat -c '%a %u %n' /data/adb /data/adb/droidtap /data/adb/droidtap/run
ls /data/adb/droidtap/run
agent status --json >/dev/null
agent --daemon -i veth0 -w "$1.second" || echo "code $?"
agent stop
ls /data/adb/droidtap/run
agent status || echo "code $?"
chown 1000:1000 /data/adb/droidtap/run
agent --daemon -i veth0 -w "$1" # as on a phone, where the system could become root anyway
agent stop
chown 2000:2000 /data/adb/droidtap/run
agent --daemon -i veth0 -w "$1" || echo "code $?"
`, "sh", file)
	said, err := cmd.CombinedOutput()
	must(t, err)
	got := regexp.MustCompile(`pid \d+`).ReplaceAllString(string(said), "pid N")
	want := `capturing on veth0 to FILE
700 0 /data/adb
700 0 /data/adb/droidtap
700 0 /data/adb/droidtap/run
agent.log
agent.pid
agent.sock
agent: an agent runs already, pid N: it holds /data/adb/droidtap/run/agent.pid
code 1
agent.log
agent: /data/adb/droidtap/run/agent.sock: no agent listens there
code 1
capturing on veth0 to FILE
agent: --pid-file /data/adb/droidtap/run/agent.pid: directory /data/adb/droidtap/run: others than root may write there
code 2
`
	if d := cmp.Diff(strings.ReplaceAll(want, "FILE", file), got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	nothingLeft(t, near)
}
