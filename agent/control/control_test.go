// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// as does f as another user, on a thread that ends with it: what it connects to sees that user.
func as(uid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- errno
			return
		}
		done <- f()
	}()
	return <-done
}

// serve listens as an agent would that answers with what it is asked for. All may come as far as to the socket.
func serve(t *testing.T, handle Handler) (path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, whom clients ask for")
	}
	dir, err := os.MkdirTemp("", "droidtap-test-") // paths of sockets are short
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	path = filepath.Join(dir, "sock")
	s, err := Listen(path)
	must(t, err)
	s.writePatience = 2 * time.Second
	must(t, os.Chmod(path, 0o666))
	s.Handle, s.Refuse = handle, 3
	s.Code = func(error) int { return 7 }
	ended := make(chan struct{})
	go func() {
		s.Serve(context.Background())
		close(ended)
	}()
	t.Cleanup(func() {
		must(t, s.Close())
		<-ended
	})
	return path
}

func echo(_ context.Context, r Request) (any, error) {
	if r.Do == Rotate {
		return nil, errors.New("not today")
	}
	if r.Expression != nil {
		return *r.Expression, nil
	}
	return r.Do, nil
}

// ask asks once and returns the answer as text.
func ask(path string, r Request) (string, error) {
	c, err := Dial(path)
	if err != nil {
		return "", err
	}
	defer c.Close()
	a, err := c.Ask(r)
	return fmt.Sprintf("%s|%d|%s", a.Result, a.Code, a.Error), err
}

func TestAsk(t *testing.T) {
	path := serve(t, echo)
	expr := "tcp[0] > 1 and \"\\\x01ä"
	for _, c := range []struct {
		rule string
		r    Request
		want string
	}{
		{"an answer", Request{Do: Status}, `"status"|0|`},
		{"an expression as it is", Request{Do: Filter, Expression: &expr}, `"tcp[0] \u003e 1 and \"\\\u0001ä"|0|`},
		{"an error of the agent's", Request{Do: Rotate}, `|7|not today`},
		{"a mistake", Request{Do: "dance"}, `|2|nothing is called "dance"`},
		{"no expression", Request{Do: Filter}, `|2|filter needs an expression`},
		{"one too many", Request{Do: Stats, Expression: &expr}, `|2|stats takes no expression`},
	} {
		if got, err := ask(path, c.r); err != nil || got != c.want {
			t.Errorf("%s: %s, %v", c.rule, got, err)
		}
	}
}

// TestAskOften asks over one connection for more than one answer may have.
func TestAskOften(t *testing.T) {
	long := strings.Repeat("x", 60<<10)
	c, err := Dial(serve(t, func(context.Context, Request) (any, error) { return long, nil }))
	must(t, err)
	defer c.Close()
	for n := range 10 {
		a, err := c.Ask(Request{Do: Status})
		if err != nil || len(a.Result) != len(long)+2 {
			t.Fatalf("answer %d: %d bytes, %v", n, len(a.Result), err)
		}
	}
}

func TestPeers(t *testing.T) {
	path := serve(t, echo)
	for uid, want := range map[int]string{
		0: `"stats"|0|`, 2000: `"stats"|0|`,
		1000: `|3|not permitted: only root and shell may ask, and not user 1000`, 10123: `|3|not permitted: only root and shell may ask, and not user 10123`,
	} {
		must(t, as(uid, func() error {
			got, err := ask(path, Request{Do: Stats})
			if got != want {
				t.Errorf("user %d: %s, %v", uid, got, err)
			}
			return err
		}))
	}
}

// TestImpostor asks nobody but root.
func TestImpostor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("", "droidtap-test-")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o777))
	path := filepath.Join(dir, "sock")
	var fd int
	must(t, as(2000, func() (err error) {
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0); err == nil {
			err = errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 1))
		}
		return err
	}))
	defer unix.Close(fd)
	if _, err := Dial(path); !errors.Is(err, ErrNotRoot) {
		t.Errorf("%v", err)
	}
}

// TestHostile sends what is no request: it gets one line, or nothing, and the next one is served.
func TestHostile(t *testing.T) {
	path := serve(t, echo)
	for _, c := range []struct{ rule, sent, want string }{
		{"nothing", "", ""},
		{"an empty line", "\n", "not a request"},
		{"no JSON", "status\n", "not a request"},
		{"bytes", "\xff\x00\x80\n", "not a request"},
		{"another type", `{"do":["status"]}` + "\n", "not a request"},
		{"a field too many", `{"do":"status","uid":0}` + "\n", "not a request"},
		{"two in a line", `{"do":"status"}{"do":"stop"}` + "\n", "not a request"},
		{"depth", strings.Repeat("[", 100_000) + "\n", "not a request"},
		{"a long line", strings.Repeat("x", mostLine+1), "at most"},
		{"a long expression", `{"do":"filter","expression":"` + strings.Repeat("x", MostExpression+1) + `"}` + "\n", "at most"},
		{"NUL", `{"do":"filter","expression":"udp\u0000"}` + "\n", "NUL"},
		{"no end", `{"do":"status"`, "not a request"},
	} {
		f, err := connect(path)
		must(t, err)
		_, _ = f.WriteString(c.sent) // it may have been refused by then
		raw, err := f.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) }))
		b, _ := io.ReadAll(f) // reset, where it was not read to its end
		must(t, f.Close())
		if got := string(b); strings.Count(got, "\n") > 1 || !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: %q", c.rule, got)
		}
		if got, err := ask(path, Request{Do: Status}); got != `"status"|0|` {
			t.Fatalf("%s: then %s, %v", c.rule, got, err)
		}
	}
}

// TestUnread asks and never reads. Others are answered meanwhile, and it is given up.
func TestUnread(t *testing.T) {
	path := serve(t, func(context.Context, Request) (any, error) { return strings.Repeat("x", 10_000), nil })
	f, err := connect(path)
	must(t, err)
	defer f.Close()
	must(t, f.SetWriteDeadline(time.Now().Add(20*time.Second)))
	given := make(chan error)
	go func() {
		for {
			if _, err := f.WriteString(`{"do":"stats"}` + "\n"); err != nil {
				given <- err
				return
			}
		}
	}()
	for others := 0; ; others++ {
		select {
		case err := <-given:
			if !errors.Is(err, unix.EPIPE) || others == 0 {
				t.Errorf("%v, after %d others", err, others)
			}
			return
		default:
		}
		if _, err := ask(path, Request{Do: Stats}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCrowd has shell hold as many connections as it gets: root is answered.
func TestCrowd(t *testing.T) {
	path := serve(t, echo)
	must(t, as(aidShell, func() error {
		refused := 0
		for range 2 * mostOfOne {
			c, err := Dial(path)
			if err != nil {
				return err
			}
			defer c.Close()
			if a, err := c.Ask(Request{Do: Stats}); err != nil || a.Error != "" {
				refused++
			}
		}
		if refused != mostOfOne {
			return fmt.Errorf("%d of %d were refused", refused, 2*mostOfOne)
		}
		got := make(chan error)
		go func() { // as root, on another thread
			answer, err := ask(path, Request{Do: Status})
			if answer != `"status"|0|` {
				err = fmt.Errorf("root gets %s, %w", answer, err)
			}
			got <- err
		}()
		return <-got
	}))
}

func TestListen(t *testing.T) {
	path := serve(t, echo)
	if _, err := Listen(path); !errors.Is(err, ErrTaken) {
		t.Errorf("%v", err)
	}
	file := path + ".file"
	must(t, os.WriteFile(file, []byte("kept"), 0o600))
	if _, err := Listen(file); err == nil {
		t.Error("a file is taken for a stale socket")
	}
	long := filepath.Join(filepath.Dir(path), strings.Repeat("x", 108))
	if _, err := Listen(long); err == nil || !strings.Contains(err.Error(), "107 bytes") {
		t.Errorf("%v", err)
	}
	for _, nobody := range []string{path + ".none", file + "/sock", file} {
		if _, err := Dial(nobody); !errors.Is(err, ErrNobody) {
			t.Errorf("%s: %v", nobody, err)
		}
	}
	// What a killed agent leaves is taken over.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	stale := path + ".stale"
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: stale}))
	must(t, unix.Close(fd))
	s, err := Listen(stale)
	must(t, err)
	must(t, s.Close())
	if _, err := os.Lstat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// TestStop holds the connection of whoever asked, and no other, until the process ends.
func TestStop(t *testing.T) {
	path := serve(t, echo)
	c, err := Dial(path)
	must(t, err)
	defer c.Close()
	if _, err := c.Stop(time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the process lives, and Stop says %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{`{"do":"status"}`, `{"do":"filter","expression":"tcp port 80"}`, `{"do":"filter"}`, `{}`, `[]`, "\x00", `{"do":"stop","expression":""}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := Parse(line)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("an error of several lines: %q", err)
			}
			return
		}
		if (r.Do == Filter) != (r.Expression != nil) {
			t.Errorf("%q is taken", line)
		}
		if r.Expression != nil && (len(*r.Expression) > MostExpression || strings.ContainsRune(*r.Expression, 0)) {
			t.Errorf("the expression %q is taken", *r.Expression)
		}
	})
}
