// SPDX-License-Identifier: Apache-2.0

package sockdiag

import (
	"errors"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// The uids of the two ends in these tests; that of a socket which is given away.
const (
	serverUID = 10001
	clientUID = 10002
	givenUID  = 10123
)

// end is a socket of a uid in a namespace.
type end struct {
	space nettest.Space
	uid   int
	fd    int
}

// socketOf makes a socket and binds it, with options set first; it is closed with the test if not before.
func socketOf(t testing.TB, s nettest.Space, uid, kind int, local string, options ...func(fd int) error) *end {
	t.Helper()
	e := &end{s, uid, -1}
	addr := netip.MustParseAddrPort(local)
	err := s.Do(uid, func() (err error) {
		family := unix.AF_INET6
		if addr.Addr().Is4() {
			family = unix.AF_INET
		}
		if e.fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		for _, option := range append(options, reuse, limit) {
			if err := option(e.fd); err != nil {
				return err
			}
		}
		return unix.Bind(e.fd, sockaddr(addr))
	})
	t.Cleanup(func() { e.close(t) })
	if err != nil {
		t.Fatalf("socket of %d at %s: %v", uid, local, err)
	}
	return e
}

func reuse(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }

// limit ends a wait for what does not come, also on what the socket accepts.
func limit(fd int) error {
	timeout := unix.NsecToTimeval(nettest.Patience.Nanoseconds())
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
}

func bindToDevice(fd int) error { return unix.BindToDevice(fd, "veth0") }

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(t testing.TB, sa unix.Sockaddr, err error) netip.AddrPort {
	t.Helper()
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	t.Fatalf("address %v: %v", sa, err)
	return netip.AddrPort{}
}

func (e *end) local(t testing.TB) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(e.fd)
	return addrPort(t, sa, err)
}

func (e *end) port(t testing.TB) uint16 {
	t.Helper()
	return e.local(t).Port()
}

func (e *end) close(t testing.TB) {
	t.Helper()
	if e.fd < 0 {
		return
	}
	if err := unix.Close(e.fd); err != nil {
		t.Error(err)
	}
	e.fd = -1
}

func (e *end) listen(t testing.TB) *end {
	t.Helper()
	if err := unix.Listen(e.fd, 8); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *end) connect(t testing.TB, addr string, port uint16) *end {
	t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(addr), port)
	if err := unix.Connect(e.fd, sockaddr(to)); err != nil {
		t.Fatalf("connect to %s: %v", to, err)
	}
	return e
}

// accept takes the connection as the listener's user, whose it is then.
func (e *end) accept(t testing.TB) *end {
	t.Helper()
	a := &end{e.space, e.uid, -1}
	if err := e.space.Do(e.uid, func() (err error) {
		a.fd, _, err = unix.Accept4(e.fd, unix.SOCK_CLOEXEC)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.close(t) })
	return a
}

// connected returns a TCP connection, and the client's flow.
func connected(t testing.TB, s nettest.Space, at, from, to string, serverUID, clientUID int) (server, client *end, f Flow) {
	t.Helper()
	listener := socketOf(t, s, serverUID, unix.SOCK_STREAM, at).listen(t)
	client = socketOf(t, s, clientUID, unix.SOCK_STREAM, from).connect(t, to, listener.port(t))
	server = listener.accept(t)
	listener.close(t)
	return server, client, flowOf(t, unix.IPPROTO_TCP, client)
}

// flowOf returns the flow of a connected socket.
func flowOf(t testing.TB, protocol uint8, e *end) Flow {
	t.Helper()
	sa, err := unix.Getpeername(e.fd)
	return Flow{Protocol: protocol, Local: e.local(t), Remote: addrPort(t, sa, err)}
}

func (f Flow) reverse() Flow {
	f.Local, f.Remote = f.Remote, f.Local
	return f
}

func openIn(t testing.TB, s nettest.Space) *Conn {
	t.Helper()
	var c *Conn
	s.Must(t, func() (err error) {
		c, err = Open()
		return err
	})
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := c.Missing(); err != nil {
		t.Skipf("this kernel cannot be asked: %v", err)
	}
	return c
}

// fill sends until the other end takes no more, so that what comes after has to wait.
func (e *end) fill(t *testing.T) {
	t.Helper()
	var err error
	for b := make([]byte, 64<<10); err == nil; {
		_, err = unix.SendmsgN(e.fd, b, nil, nil, unix.MSG_DONTWAIT)
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("send: %v", err)
	}
}

// drain reads until the other end has closed.
func (e *end) drain(t *testing.T) {
	t.Helper()
	for b := make([]byte, 64<<10); ; {
		if n, err := unix.Read(e.fd, b); err != nil || n == 0 {
			if err != nil {
				t.Fatalf("receive: %v", err)
			}
			return
		}
	}
}

// nobody is the owner that is not known.
const nobody = -1

func checkOwner(t testing.TB, c *Conn, f Flow, want int) {
	t.Helper()
	uid, known, err := c.Owner(f)
	got := nobody
	if known {
		got = int(uid)
	}
	if got != want || err != nil {
		t.Errorf("owner of %+v is %d, %v, want %d", f, got, err, want)
	}
}

// awaitState asks until the socket of the flow is in that state, which the other end's packets bring about.
func awaitState(t testing.TB, c *Conn, f Flow, state uint8) Socket {
	t.Helper()
	for deadline := time.Now().Add(nettest.Patience); ; runtime.Gosched() {
		s, err := c.find(f)
		if err == nil && s.State == state {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v is %+v, %v, not in state %d", f, s, err, state)
		}
	}
}

// Owner is the uid of what Find returns.
func (c *Conn) Owner(f Flow) (uid uint32, known bool, err error) {
	s, known, err := c.Find(f)
	return s.UID, known, err
}
