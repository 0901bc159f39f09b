// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// inode is that of a socket, as its file descriptor has it.
func (e *end) inode(t testing.TB) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(e.fd, &st); err != nil {
		t.Fatal(err)
	}
	return uint32(st.Ino)
}

// told is what a test of a dump compares.
func told(s Socket) string {
	return fmt.Sprintf("%d %s %s %d %d", s.Protocol, s.Local, s.Remote, s.UID, s.Inode)
}

func toldOf(t testing.TB, protocol uint8, e *end) string {
	t.Helper()
	f, _ := flowOf(t, protocol, e).unmapped()
	return told(Socket{Protocol: protocol, Local: f.Local, Remote: f.Remote, UID: uint32(e.uid), Inode: e.inode(t)})
}

func TestConnections(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	c := openIn(t, s)
	want := map[string]bool{}
	for _, ends := range [][3]string{
		{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"}, {"[::1]:0", "[::1]:0", "::1"}, {"127.0.0.1:0", "[::]:0", "::ffff:127.0.0.1"},
	} {
		server, client, _ := connected(t, s, ends[0], ends[1], ends[2], serverUID, clientUID)
		want[toldOf(t, unix.IPPROTO_TCP, server)], want[toldOf(t, unix.IPPROTO_TCP, client)] = true, true
		open := socketOf(t, s, serverUID, unix.SOCK_DGRAM, ends[0])
		u := socketOf(t, s, 0, unix.SOCK_DGRAM, ends[1]).connect(t, ends[2], open.port(t))
		want[toldOf(t, unix.IPPROTO_UDP, u)] = true
		socketOf(t, s, serverUID, unix.SOCK_STREAM, ends[0]).listen(t)
		// Many, so that the answer comes in more than one datagram.
		for range 100 {
			u := socketOf(t, s, givenUID, unix.SOCK_DGRAM, ends[1]).connect(t, ends[2], open.port(t))
			want[toldOf(t, unix.IPPROTO_UDP, u)] = true
		}
		_, gone, _ := connected(t, s, ends[0], ends[1], ends[2], serverUID, clientUID)
		want[toldOf(t, unix.IPPROTO_TCP, gone)] = false
		gone.close(t)
	}
	got := map[string]bool{}
	if err := c.Connections(func(s Socket) { got[told(s)] = true }); err != nil {
		t.Fatal(err)
	}
	for s, there := range want {
		if got[s] != there {
			t.Errorf("%s listed: %v", s, got[s])
		}
	}
}

func TestCgroup(t *testing.T) {
	nettest.Require(t)
	s := nettest.NewSpace(t)
	c := openIn(t, s)
	e := socketOf(t, s, serverUID, unix.SOCK_DGRAM, "127.0.0.1:0")
	found, known, err := c.Find(Flow{Protocol: unix.IPPROTO_UDP, Local: e.local(t), Remote: e.local(t)})
	if err != nil || !known || found.Inode != e.inode(t) {
		t.Fatalf("%+v, %v, %v", found, known, err)
	}
	// The same as the socket's own, which a classifier would be told.
	if found.Cgroup == 0 {
		t.Skip("this kernel does not tell cgroups")
	}
	var st unix.Stat_t
	path := cgroupPath(t)
	if err := unix.Stat(path, &st); err != nil {
		t.Skipf("%s: %v", path, err)
	}
	if found.Cgroup != st.Ino {
		t.Errorf("cgroup %d, want %d of %s", found.Cgroup, st.Ino, path)
	}
}
