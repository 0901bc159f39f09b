// SPDX-License-Identifier: Apache-2.0

package apps

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"droidtap/agent/plugin"
	"droidtap/scripts/nettest"
)

// run runs agent apps and returns what it says on stdout and stderr.
func run(netd []string, args ...string) (stdout, stderr string, err error) {
	var out, said bytes.Buffer
	app := &cli.App{Name: "agent", Writer: &out, ErrWriter: &said, Commands: []*cli.Command{command(netd)}, ExitErrHandler: func(*cli.Context, error) {}}
	err = app.Run(append([]string{"agent", "apps"}, args...))
	return out.String(), said.String(), err
}

// sockets makes UDP sockets of a uid in the namespace, for as long as the test runs.
func sockets(t *testing.T, s nettest.Space, uid, count int) {
	t.Helper()
	for range count {
		err := s.Do(uid, func() error {
			c, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err == nil {
				t.Cleanup(func() { _ = c.Close() })
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// converse has a client say and hear that many bytes on a connection that stays.
func converse(t *testing.T, s nettest.Space, client, server, says, hears int) {
	t.Helper()
	var l net.Listener
	var here, there net.Conn
	try := func(uid int, f func() error) {
		t.Helper()
		if err := s.Do(uid, f); err != nil {
			t.Fatal(err)
		}
	}
	try(server, func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err })
	defer l.Close()
	try(client, func() (err error) { here, err = net.Dial("tcp", l.Addr().String()); return err })
	t.Cleanup(func() { _ = here.Close() })
	try(server, func() (err error) { there, err = l.Accept(); return err })
	t.Cleanup(func() { _ = there.Close() })
	for _, way := range []struct {
		from, to net.Conn
		bytes    int
	}{{here, there, says}, {there, here, hears}, {here, there, 1}} {
		if _, err := way.from.Write(make([]byte, way.bytes)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(way.to, make([]byte, way.bytes)); err != nil {
			t.Fatal(err)
		}
	}
}

// tree is a folder like /data of a phone with the users 0 and 10, and the path of its list.
func tree(t *testing.T) string {
	t.Helper()
	data := t.TempDir()
	for _, folder := range []string{"system", "user/0/com.example.one", "user/10/com.example.one", "user_de/10/com.android.chrome", "user/lost"} {
		if err := os.MkdirAll(filepath.Join(data, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(data, "system", "packages.list")
	write(t, path, line("com.example.one", 10200)+line("com.example.two", 10201)+line("com.android.chrome", 10123)+
		line("com.google.gms", 10050)+line("com.google.gsf", 10050)+"nonsense\n")
	return path
}

func TestApps(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	list := tree(t)
	for uid, count := range map[int]int{0: 1, 1051: 2, 10123: 3, 1010201: 1, 20123: 1, 99001: 1, 10050: 2, 15000: 1} {
		sockets(t, s, uid, count)
	}
	s.Must(t, func() error {
		pinned, err := pin(t, map[uint32]statsValue{10123: {1, 2222, 3, 4444}, 0: {1, 50, 1, 60}, 1010201: {1, 7, 1, 8}, 10050: {1, 5, 1, 6}})
		if err != nil {
			return err
		}
		netd := []string{pinned + "none", pinned}
		for _, c := range []struct {
			rule string
			args []string
			want string
		}{
			{"all", nil, `
PACKAGE                           UID      USER  SOCKETS  SENT  RECEIVED
-                                 15000    0     1        0     0
com.android.chrome                10123    0     3        4444  2222
com.android.chrome                1010123  10    0        0     0
com.android.chrome (SDK sandbox)  20123    0     1        0     0
com.example.one                   10200    0     0        0     0
com.example.one                   1010200  10    0        0     0
com.example.two                   10201    0     0        0     0
com.example.two                   1010201  10    1        8     7
com.google.gms                    10050*   0     2        6     5
com.google.gsf                    10050*   0     2        6     5
dns                               1051     0     2        0     0
isolated                          99001    0     1        0     0
root                              0        0     1        60    50
bytes since the phone was started, as netd counts them
* a uid that several packages share: its sockets and bytes are those of all of them
`},
			{"a part of the name", []string{"example.t"}, `
PACKAGE          UID      USER  SOCKETS  SENT  RECEIVED
com.example.two  10201    0     0        0     0
com.example.two  1010201  10    1        8     7
bytes since the phone was started, as netd counts them
`},
			{"a glob", []string{"com.android.*"}, `
PACKAGE                           UID      USER  SOCKETS  SENT  RECEIVED
com.android.chrome                10123    0     3        4444  2222
com.android.chrome                1010123  10    0        0     0
com.android.chrome (SDK sandbox)  20123    0     1        0     0
bytes since the phone was started, as netd counts them
`},
			{"a uid", []string{"1051"}, `
PACKAGE  UID   USER  SOCKETS  SENT  RECEIVED
dns      1051  0     2        0     0
bytes since the phone was started, as netd counts them
`},
		} {
			stdout, stderr, err := run(netd, append([]string{"--packages", list}, c.args...)...)
			if diff := cmp.Diff(strings.TrimPrefix(c.want, "\n"), stdout); diff != "" || err != nil {
				t.Errorf("%s: %v, -want +got:\n%s", c.rule, err, diff)
			}
			if want := "1 lines of " + list + " are no package's, the first: line 6: 1 columns, and a package has 6 at least\n"; stderr != want {
				t.Errorf("%s: on stderr %q, want %q", c.rule, stderr, want)
			}
		}
		return nil
	})
}

// pin mounts a bpf file system that only the calling thread sees, and pins a map like netd's there.
func pin(t *testing.T, content map[uint32]statsValue) (string, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return "", fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("make mounts private: %w", err)
	}
	folder := t.TempDir()
	if err := unix.Mount("bpf", folder, "bpf", 0, ""); err != nil {
		return "", fmt.Errorf("mount bpf: %w", err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "app_uid_stats", Type: ebpf.Hash, KeySize: 4, ValueSize: 32, MaxEntries: 100})
	if err != nil {
		return "", err
	}
	defer m.Close()
	for uid, value := range content {
		if err := m.Put(uid, value); err != nil {
			return "", err
		}
	}
	pinned := filepath.Join(folder, "map")
	return pinned, m.Pin(pinned)
}

func TestAppsWithoutNetd(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	list := tree(t)
	converse(t, s, 10123, 1010200, 1000, 77)
	s.Must(t, func() error {
		stdout, _, err := run(nil, "com.*[ce]*", "--json", "--packages", list)
		if err != nil {
			return err
		}
		var rows []Row
		if err := json.Unmarshal([]byte(stdout), &rows); err != nil {
			return err
		}
		got := map[uint32]Row{}
		for _, r := range rows {
			if r.BytesFrom != fromTCP {
				t.Errorf("bytes of %s are from %s", r.Package, r.BytesFrom)
			}
			got[r.UID] = r
		}
		for uid, want := range map[uint32]Row{
			10123:   {Package: "com.android.chrome", Kind: "app", Sockets: 1, Sent: 1000, Received: 77},
			1010200: {Package: "com.example.one", Kind: "app", User: 10, Sockets: 1, Sent: 77, Received: 1001},
			10200:   {Package: "com.example.one", Kind: "app"},
			10050:   {Package: "com.google.gsf", Kind: "app", Shared: true},
		} {
			r := got[uid]
			// The kernel counts the SYN as a byte that was confirmed, and the last byte may not be yet.
			if r.Sent < want.Sent || r.Sent > want.Sent+2 {
				t.Errorf("%d has sent %d bytes, want %d", uid, r.Sent, want.Sent)
			}
			want.UID, want.Name, want.BytesFrom, want.Sent = uid, want.Package, fromTCP, r.Sent
			if diff := cmp.Diff(want, r); diff != "" {
				t.Errorf("%d, -want +got:\n%s", uid, diff)
			}
		}
		if stdout, _, err := run(nil, "nothing.like.this", "--json", "--packages="+list); err != nil || stdout != "[]\n" {
			t.Errorf("of nothing: %q, %v", stdout, err)
		}
		return nil
	})
}

func TestAppsErrors(t *testing.T) {
	nettest.Require(t)
	list := tree(t)
	if err := unix.Mkfifo(list+".fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		rule, want string
		usage      bool
		args       []string
	}{
		{"two patterns", `apps takes one pattern, and "b" is another`, true, []string{"a", "b"}},
		{"an option that is none", "apps has no option --uid", true, []string{"a", "--uid"}},
		{"neither true nor false", `option --json is true or false, not "x"`, true, []string{"a", "--json=x"}},
		{"no value", "option --packages needs a value", true, []string{"a", "--packages"}},
		{"a bad glob", `pattern "[a": syntax error in pattern`, true, []string{"[a"}},
		{"nothing is like it", "no app is like com.exmaple.one: is it com.example.one?", false, []string{"--packages", list, "com.exmaple.one"}},
		{"nothing is anything like it", "no app is like zzzzz", false, []string{"zzzzz", "--packages", list}},
		{"a folder", "read " + filepath.Dir(list) + ": it is no file", false, []string{"--packages", filepath.Dir(list)}},
		{"a FIFO is not waited for", "read " + list + ".fifo: it is no file", false, []string{"--packages", list + ".fifo"}},
	} {
		_, _, err := run(nil, c.args...)
		if err == nil || err.Error() != c.want || plugin.IsUsage(err) != c.usage {
			t.Errorf("%s: %v, want %s", c.rule, err, c.want)
		}
	}
	s := nettest.NewSpace(t)
	sockets(t, s, 10123, 1)
	s.Must(t, func() error {
		stdout, stderr, err := run(nil, "--packages", list+".none")
		if want := "no list of packages at " + list + ".none: is this Android?\n"; stderr != want || err != nil || !strings.Contains(stdout, "-        10123  0     1        0     0\n") {
			t.Errorf("without a list: %q, %q, %v", stdout, stderr, err)
		}
		return nil
	})
}
