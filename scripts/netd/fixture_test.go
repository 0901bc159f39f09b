// SPDX-License-Identifier: Apache-2.0

package netd

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// start starts a netd in the space for as long as the test runs.
func start(t *testing.T, s nettest.Space, o Options) *Netd {
	t.Helper()
	var n *Netd
	s.Must(t, func() (err error) {
		n, err = Start(o)
		return err
	})
	t.Cleanup(func() { must(t, n.Close()) })
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantError wants an error that says all of that.
func wantError(t *testing.T, err error, says ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that says %q", says)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("the error is %q, want it to say %q", err, s)
		}
	}
}

// taken is how many packets a program redirected.
func taken(t *testing.T, n *Netd, name string) uint64 {
	t.Helper()
	seen, err := n.Seen()
	must(t, err)
	c, ok := seen[name]
	if !ok {
		t.Fatalf("there is no %s in %v", name, seen)
	}
	return c.Taken
}

// later adds a filter behind all of netd's that counts as well.
func later(t *testing.T, n *Netd, ifname string, parent uint32) {
	t.Helper()
	must(t, n.simple(ifname, filter{parent: parent, pref: 100, proto: unix.ETH_P_ALL, kind: "bpf", role: "vendor"}))
}

// laterSaw is how many packets that has counted since the last call.
func laterSaw(t *testing.T, n *Netd, ifname string, parent uint32) uint64 {
	t.Helper()
	name := ifname + " " + way(parent) + " vendor"
	seen, err := n.Seen()
	must(t, err)
	was := n.counters()[name].mark
	must(t, n.Mark())
	return seen[name].Packets - was.Packets
}

var groups atomic.Uint64

// newCgroup makes a cgroup2 below the root and moves this process into it, for as long as the test runs.
func newCgroup(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(cgroupRoot(t), fmt.Sprintf("netd-test-%d-%d", os.Getpid(), groups.Add(1)))
	must(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		awaitEmpty(t, dir)
		must(t, os.Remove(dir))
	})
	enter := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	_, path, _ := strings.Cut(string(own), "0::")
	home := filepath.Join(cgroupRoot(t), strings.TrimSpace(path))
	must(t, enter(dir))
	t.Cleanup(func() { must(t, enter(home)) })
	return dir
}

// awaitEmpty waits until the last task has left: one that ends does not move, and leaves after its parent knows.
func awaitEmpty(t *testing.T, dir string) {
	t.Helper()
	events, err := os.Open(filepath.Join(dir, "cgroup.events"))
	must(t, err)
	defer events.Close()
	b := make([]byte, 256)
	for {
		n, err := events.ReadAt(b, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if strings.Contains(string(b[:n]), "populated 0") {
			return
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}, int(nettest.Patience.Milliseconds()))
		if ready == 0 || err != nil && !errors.Is(err, unix.EINTR) {
			t.Fatalf("%s is not empty (%v)", dir, err)
		}
	}
}

// cgroupRoot is where cgroup2 is mounted.
func cgroupRoot(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			return f[1]
		}
	}
	t.Skip("cgroup2 is not mounted")
	return ""
}

// pipe makes two tun devices, end to end: what a radio and the network behind it are to packets without a link-layer header.
func pipe(t *testing.T, name string, a, b nettest.Space) {
	t.Helper()
	one, other := nettest.QuietTun(t, a, name), nettest.QuietTun(t, b, name)
	carry := func(from, to *os.File) {
		buf := make([]byte, 64<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go carry(one, other)
	go carry(other, one)
}

// exchange sends a message from the space and waits until it is back.
func exchange(s nettest.Space, network string, to netip.AddrPort) error {
	return nettest.Ask(s, network, to, "a message of an odd length and no sum of zero.")
}

// qdiscAt is the kind of the qdisc at ffff: of an interface.
func qdiscAt(t *testing.T, n *Netd, ifname string) string {
	t.Helper()
	l, err := n.link(ifname)
	must(t, err)
	all, err := n.conn.qdiscs()
	must(t, err)
	for _, q := range all {
		if q.ifindex == l.Index && q.parent == netlink.HANDLE_CLSACT {
			return q.kind
		}
	}
	return ""
}

// logTo is a logger that writes lines without the time.
func logTo(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

var errWanted = errors.New("this is wanted")
