// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// talk returns a Conn and the far end of its socket, where the test is the kernel.
func talk(t *testing.T) (*Conn, int) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(pair[1], true); err != nil {
		t.Fatal(err)
	}
	c := &Conn{fd: pair[0], missing: map[uint8]error{}}
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), unix.Close(pair[1])); err != nil {
			t.Error(err)
		}
	})
	if err := c.limit(); err != nil {
		t.Fatal(err)
	}
	return c, pair[1]
}

func say(t *testing.T, fd int, messages ...[]byte) {
	t.Helper()
	for _, b := range messages {
		if _, err := unix.Write(fd, b); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStuckKernel(t *testing.T) {
	c, far := talk(t)
	f := flow(unix.IPPROTO_TCP, a4+":5353", b4+":443")
	start := time.Now()
	uid, known, err := c.Owner(f)
	if !errors.Is(err, unix.EAGAIN) || known || uid != 0 {
		t.Errorf("without an answer the owner is %d, %v, %v", uid, known, err)
	}
	if d := time.Since(start); d > 10*patience {
		t.Errorf("no answer was waited for %v", d)
	}
	// The first answer comes after all, before the second.
	say(t, far, found(1, Socket{State: 1, UID: 10001, Inode: 77}), found(2, Socket{State: 1, UID: 10002, Inode: 78}))
	if uid, known, err := c.Owner(f); uid != 10002 || !known || err != nil {
		t.Errorf("behind a late answer the owner is %d, %v, %v", uid, known, err)
	}
	for range stale {
		say(t, far, found(1, Socket{State: 1, UID: 10001, Inode: 77}))
	}
	if _, known, err := c.Owner(f); !errors.Is(err, errOther) || known {
		t.Errorf("with late answers only: %v, %v", known, err)
	}
}

func TestListenerIsAskedFor(t *testing.T) {
	c, far := talk(t)
	say(t, far, found(1, Socket{State: stateSynRecv, UID: 0, Inode: 0}), found(2, Socket{State: 10, UID: 10001, Inode: 77}))
	uid, known, err := c.Owner(flow(unix.IPPROTO_TCP, a4+":5353", b4+":443"))
	if uid != 10001 || !known || err != nil {
		t.Errorf("the owner is %d, %v, %v", uid, known, err)
	}
	want := [2][sizeHeader + sizeRequest]byte{
		request(flow(unix.IPPROTO_TCP, a4+":5353", b4+":443"), 1, 0, 0xffffffff),
		request(flow(unix.IPPROTO_TCP, a4+":5353", "0.0.0.0:0"), 2, 0, 0xffffffff),
	}
	for _, w := range want {
		var got [200]byte
		if n, err := unix.Read(far, got[:]); err != nil || string(got[:n]) != string(w[:]) {
			t.Errorf("asked %x, %v, want %x", got[:n], err, w)
		}
	}
	// A connected UDP socket has the state of an established connection.
	say(t, far, found(3, Socket{State: Established, UID: 0, Inode: 0}))
	if _, known, err := c.Owner(flow(unix.IPPROTO_UDP, a4+":5353", b4+":443")); known || err != nil {
		t.Errorf("a UDP socket without an owner: %v, %v", known, err)
	}
}

func TestOwnerErrors(t *testing.T) {
	c, far := talk(t)
	if _, known, err := c.Owner(flow(unix.IPPROTO_UDP, a4+":1", "["+b6+"]:2")); known || err != nil {
		t.Errorf("ends of two families: %v, %v", known, err)
	}
	say(t, far, refused(unix.NLMSG_ERROR, 1, unix.ENOENT))
	if _, known, err := c.Owner(flow(unix.IPPROTO_UDP, a4+":1", b4+":2")); known || err != nil {
		t.Errorf("no socket: %v, %v", known, err)
	}
	say(t, far, refused(unix.NLMSG_ERROR, 2, unix.ENOMEM))
	_, known, err := c.Owner(flow(unix.IPPROTO_UDP, a4+":1", b4+":2"))
	if known || !errors.Is(err, unix.ENOMEM) || !strings.Contains(err.Error(), a4+":1 to "+b4+":2") {
		t.Errorf("an error of the kernel's: %v, %v", known, err)
	}
}

func TestMissing(t *testing.T) {
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Missing(); err != nil {
		t.Skipf("this kernel has not all: %v", err)
	}
	// 253 is for experiments (RFC 3692): no kernel has a handler for it.
	if err := c.probe(253); !errors.Is(err, ErrNoDiag) {
		t.Errorf("a protocol without a handler: %v", err)
	}
	c.missing[unix.IPPROTO_UDP] = ErrNoDiag
	seq := c.seq
	if _, known, err := c.Owner(flow(unix.IPPROTO_UDP, a4+":1", b4+":2")); known || !errors.Is(err, ErrNoDiag) || c.seq != seq {
		t.Errorf("without UDP_DIAG: %v, %v, %d questions", known, err, c.seq-seq)
	}
	if _, known, err := c.Owner(flow(unix.IPPROTO_TCP, a4+":1", b4+":2")); known || err != nil {
		t.Errorf("TCP without UDP_DIAG: %v, %v", known, err)
	}
	if err := c.Missing(); !errors.Is(err, ErrNoDiag) {
		t.Errorf("missing: %v", err)
	}
}
