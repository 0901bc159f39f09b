// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// child is the environment variable that makes this binary a process of a test.
const child = "DROIDTAP_PROCESS_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(child) != "" {
		live()
		return
	}
	os.Exit(m.Run())
}

// live does what it is told on standard input, and says when it is done.
func live() {
	var sockets []net.PacketConn
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		order, argument, _ := strings.Cut(in.Text(), " ")
		switch order {
		case "comm":
			fmt.Println(os.WriteFile("/proc/self/comm", []byte(argument), 0))
		case "socket":
			c, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				fmt.Println(err)
				continue
			}
			sockets = append(sockets, c)
			conn, _ := c.(*net.UDPConn).SyscallConn()
			_ = conn.Control(func(fd uintptr) {
				var st syscall.Stat_t
				_ = syscall.Fstat(int(fd), &st)
				fmt.Println(st.Ino)
			})
		}
	}
	for _, c := range sockets {
		_ = c.Close()
	}
}

// person is a child.
type person struct {
	pid int
	in  io.WriteCloser
	out *bufio.Reader
	cmd *exec.Cmd
}

// birth starts a process that calls itself name, with more files from descriptor 3 on.
func birth(t *testing.T, name string, more ...*os.File) *person {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := &exec.Cmd{Path: self, Args: []string{name, "other"}, Env: append(os.Environ(), child+"=1"), ExtraFiles: more}
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &person{cmd.Process.Pid, in, bufio.NewReader(out), cmd}
	t.Cleanup(p.die)
	return p
}

// die returns when nothing is left of it.
func (p *person) die() {
	_ = p.in.Close()
	_ = p.cmd.Wait()
}

func (p *person) tell(t *testing.T, order string) string {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, order); err != nil {
		t.Fatal(err)
	}
	answer, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", order, err)
	}
	return strings.TrimSpace(answer)
}

func (p *person) rename(t *testing.T, comm string) {
	t.Helper()
	if answer := p.tell(t, "comm "+comm); answer != "<nil>" {
		t.Fatal(answer)
	}
}

func (p *person) socket(t *testing.T) uint32 {
	t.Helper()
	answer := p.tell(t, "socket")
	inode, err := strconv.ParseUint(answer, 10, 32)
	if err != nil {
		t.Fatal(answer)
	}
	return uint32(inode)
}

// clock stands still unless it is told to go on.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// open opens a table with a clock of the test's, which stands at some time behind the first walk. Who asks it waits as long
// as it takes.
func open(t *testing.T, o Options) (*Table, *clock) {
	t.Helper()
	table, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	table.mu.Lock()
	defer table.mu.Unlock()
	c := &clock{at: time.Now()}
	table.now, table.walked, table.sockets.wait = c.now, c.at, time.Hour
	return table, c
}

// fake is a folder that looks like /proc.
type fake string

// process makes one, or makes it another one.
func (f fake) process(t *testing.T, pid int, start uint64, comm, cmdline, cgroup string) {
	t.Helper()
	dir := filepath.Join(string(f), strconv.Itoa(pid))
	for name, text := range map[string]string{
		"stat":    fmt.Sprintf("%d (%s) S 1 %s%d 0 0\n", pid, comm, strings.Repeat("0 ", 17), start),
		"comm":    comm + "\n",
		"cmdline": cmdline,
		"cgroup":  "4:memory:/\n0::" + cgroup + "\n",
	} {
		write(t, filepath.Join(dir, name), text)
	}
}

// hold gives a process a socket.
func (f fake) hold(t *testing.T, pid, fd int, link string) {
	t.Helper()
	dir := filepath.Join(string(f), strconv.Itoa(pid), "fd")
	mkdir(t, dir)
	if err := os.Symlink(link, filepath.Join(dir, strconv.Itoa(fd))); err != nil {
		t.Fatal(err)
	}
}

func (f fake) remove(t *testing.T, pid int) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(string(f), strconv.Itoa(pid))); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	mkdir(t, filepath.Dir(path))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
}

// inode returns that of a directory that it makes.
func inode(t *testing.T, dir string) uint64 {
	t.Helper()
	mkdir(t, dir)
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func equal(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// ask asks for a cgroup, and wants it to be of want; one without a pid is none.
func ask(t *testing.T, table *Table, what string, id uint64, want Process) {
	t.Helper()
	got, ok := table.OfCgroup(id)
	if ok != (want.PID != 0) {
		t.Errorf("%s: %v", what, ok)
	}
	equal(t, what, want, got)
}

func TestOpenWantsProc(t *testing.T) {
	if _, err := Open(Options{Proc: filepath.Join(t.TempDir(), "none")}); err == nil {
		t.Error("no error without /proc")
	}
}

func TestParseStart(t *testing.T) {
	const rest = " S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 "
	for name, c := range map[string]struct {
		stat  string
		start uint64
	}{
		"plain":               {"7 (sh)" + rest + "4242 1 2", 4242},
		"brackets in comm":    {"7 (a) S 1 (b)" + rest + "99 1", 99},
		"a line end in comm":  {"7 (a\n) b)" + rest + "99 1", 99},
		"ends before field":   {"7 (sh) S 1 2", 0},
		"no bracket":          {"7 sh" + rest + "4242", 0},
		"empty":               {"", 0},
		"start is no number":  {"7 (sh)" + rest + "x 1", 0},
		"start is too large":  {"7 (sh)" + rest + "99999999999999999999 1", 0},
		"start is the last":   {"7 (sh)" + rest + "5", 5},
		"bracket is the last": {"7 (sh)", 0},
	} {
		t.Run(name, func(t *testing.T) {
			start, ok := parseStart([]byte(c.stat))
			if start != c.start && ok || ok != (c.start != 0) {
				t.Errorf("%d, %v, want %d", start, ok, c.start)
			}
		})
	}
}

func FuzzParseStart(f *testing.F) {
	f.Add([]byte("7 (a) b) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1"))
	f.Fuzz(func(t *testing.T, stat []byte) {
		start, ok := parseStart(stat)
		if ok && !strings.Contains(string(stat), strconv.FormatUint(start, 10)) {
			t.Errorf("%d is not in %q", start, stat)
		}
	})
}

// Whatever the process calls itself is cut at what the kernel's own names have at most.
func TestNames(t *testing.T) {
	long := strings.Repeat("n", 300)
	for name, c := range map[string]struct{ comm, cmdline, wantComm, wantName string }{
		"plain":                    {"le:remote", "com.example:remote\x00x\x00", "le:remote", "com.example:remote"},
		"line ends are kept":       {"a\n\n", "b\n\x00", "a\n\n", "b\n"},
		"bytes are kept":           {"\xff\x1b[m", "\xfe\x01", "\xff\x1b[m", "\xfe\x01"},
		"no command line":          {"kworker", "", "kworker", ""},
		"nothing before the first": {"x", "\x00com.example", "x", ""},
		"too long":                 {long, long, long[:15], long[:255]},
	} {
		t.Run(name, func(t *testing.T) {
			f := fake(t.TempDir())
			f.process(t, 7, 1, c.comm, c.cmdline, "/")
			comm, name := procfs(f).names(7)
			equal(t, "names", [2]string{c.wantComm, c.wantName}, [2]string{comm, name})
		})
	}
}

func TestFindCgroups(t *testing.T) {
	const v1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
	for name, c := range map[string]struct{ mounts, want string }{
		"none":              {v1, ""},
		"hybrid":            {v1 + "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified"},
		"Android":           {"30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 none rw\n", "/sys/fs/cgroup"},
		"Android 10":        {v1 + "30 25 0:26 / /dev/cg2_bpf rw,nosuid - cgroup2 none rw\n", "/dev/cg2_bpf"},
		"whole before part": {"1 2 0:3 /a /part rw - cgroup2 n rw\n1 2 0:3 / /whole rw - cgroup2 n rw\n", "/whole"},
		"only a part":       {"1 2 0:3 /a /part rw - cgroup2 n rw\n1 2 0:3 /b /other rw - cgroup2 n rw\n", "/part"},
		"blanks":            {`1 2 0:3 / /a\040b\134040 rw - cgroup2 n rw`, `/a b\040`},
		"broken":            {" - cgroup2\n - \n\n-\n", ""},
	} {
		t.Run(name, func(t *testing.T) { equal(t, "mount", c.want, FindCgroups(c.mounts)) })
	}
}

func TestCacheLetsTheLongestUnusedGo(t *testing.T) {
	c := newCache[int, string](2)
	c.put(1, "one")
	c.put(2, "two")
	c.get(1)
	c.put(3, "three")
	c.put(3, "drei")
	got := map[int]string{}
	c.each(func(k int, v string) { got[k] = v })
	equal(t, "values", map[int]string{1: "one", 3: "drei"}, got)
}
