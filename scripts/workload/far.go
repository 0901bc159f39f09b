// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// order is what the near end asks of the far one.
type order struct {
	Do   string // a method of far below
	Way  way
	To   netip.Addr
	Port int    // at To
	From int    // at the far end, 0: any
	Text string // what begins the payload
	Size int
	N    int
}

// ask sends an order over the socket and waits until it is done.
func ask(fd int, o order) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if err := write(fd, b); err != nil {
		return err
	}
	b = make([]byte, 4096)
	n, err := read(fd, b)
	if err != nil {
		return fmt.Errorf("far end: %w", err)
	}
	if s := string(b[:n]); s != "ok" {
		return fmt.Errorf("far end: %s: %s", o.Do, s)
	}
	return nil
}

// far is the far end.
type far struct {
	mu   sync.Mutex
	late map[string]chan error // of a near end's address and port
}

// serveFar answers at the ports above and obeys on the sockets, until the first of them is closed.
func serveFar(controls []int) error {
	f := &far{late: map[string]chan error{}}
	for _, w := range []way{v4, v6} {
		for port, serve := range map[int]func(int, unix.Sockaddr) error{
			echoPort: func(fd int, _ unix.Sockaddr) error { return echo(fd) }, latePort: f.serveLate, abortPort: serveAbort,
			lossPort: serveLoss, optionPort: func(fd int, _ unix.Sockaddr) error { return echo(fd) },
		} {
			if err := f.serveTCP(w, port, serve); err != nil {
				return err
			}
		}
		for _, port := range []int{echoPort, optionPort} {
			if err := serveUDP(w, port); err != nil {
				return err
			}
		}
	}
	f.obeyAll(controls)
	return nil
}

func (f *far) obeyAll(controls []int) {
	var all sync.WaitGroup
	for _, fd := range controls {
		all.Go(func() { f.obey(fd) })
	}
	all.Wait()
}

func (f *far) serveTCP(w way, port int, serve func(int, unix.Sockaddr) error) error {
	l, err := w.listen(port)
	if err != nil {
		return err
	}
	// What it accepts is as patient: some connections are quiet until the capture has started.
	if err := unix.SetsockoptTimeval(l, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{}); err != nil {
		return err
	}
	if port == optionPort && w == v6 {
		if err := options(l); err != nil {
			return err
		}
	}
	go func() {
		for {
			fd, from, err := accept(l)
			if err == nil {
				go func() {
					_ = serve(fd, from) // the near end notices
				}()
			}
		}
	}()
	return nil
}

func serveUDP(w way, port int) error {
	fd, err := w.open(unix.SOCK_DGRAM, 0, port)
	if err != nil {
		return err
	}
	if port == optionPort && w == v6 {
		if err := options(fd); err != nil {
			return err
		}
	}
	go func() {
		for {
			_ = echoPackets(fd, 1<<30) // times out where nothing comes
		}
	}()
	return nil
}

// serveLate sends when the near end has closed, and says so to whoever waits for it.
func (f *far) serveLate(fd int, from unix.Sockaddr) error {
	b := make([]byte, 4096)
	for {
		n, err := read(fd, b)
		if err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		if n == 0 {
			break
		}
		if err := write(fd, b[:n]); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
	}
	err := write(fd, []byte("late"))
	// The reset of the other end: nothing is left to read, so that only an error is news.
	news := []unix.PollFd{{Fd: int32(fd)}}
	if poll := again(func() (err error) { _, err = unix.Poll(news, int(patience.Milliseconds())); return err }); err == nil && (poll != nil || news[0].Revents&unix.POLLERR == 0) {
		err = fmt.Errorf("no reset: %v", poll)
	}
	f.waiter(where(from)) <- err
	return unix.Close(fd)
}

func (f *far) waiter(key string) chan error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.late[key] == nil {
		f.late[key] = make(chan error, 1)
	}
	return f.late[key]
}

func where(a unix.Sockaddr) string {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String()
	}
	return ""
}

func serveAbort(fd int, _ unix.Sockaddr) error {
	if _, err := read(fd, make([]byte, 4096)); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	return abort(fd)
}

func serveLoss(fd int, _ unix.Sockaddr) error {
	if err := lose(fd); err != nil {
		return err
	}
	return echo(fd)
}

// obey carries out orders until the socket is closed.
func (f *far) obey(fd int) {
	b := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		var o order
		answer := "ok"
		if err = json.Unmarshal(b[:n], &o); err == nil {
			err = f.do(o)
		}
		if err != nil {
			answer = err.Error()
		}
		if err := write(fd, []byte(answer)); err != nil {
			fmt.Fprintln(os.Stderr, "workload: far end:", err)
		}
	}
}

func (f *far) do(o order) error {
	switch o.Do {
	case "ready": // it obeys, so it listens
		return nil
	case "tcp", "tcp abort":
		fd, err := o.Way.dial(unix.SOCK_STREAM, o.From, o.To, o.Port)
		if err != nil {
			return err
		}
		if err := exchange(fd, o.Text, o.Size, o.N); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		if o.Do == "tcp abort" {
			return abort(fd)
		}
		return finish(fd)
	case "udp", "udp options":
		return f.udp(o)
	case "refused":
		return refused(o)
	case "ping":
		return o.Way.ping(o.To, o.Port, false, o.Size)
	case "late":
		select {
		case err := <-f.waiter(netip.AddrPortFrom(o.To, uint16(o.Port)).String()):
			return err
		case <-time.After(patience):
			return errors.New("nothing was late")
		}
	case "stray":
		return o.stray()
	case "expire":
		return expire(o)
	}
	return fmt.Errorf("no order %q", o.Do)
}

func (f *far) udp(o order) error {
	fd, err := o.Way.open(unix.SOCK_DGRAM, 0, o.From)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if o.Do == "udp options" {
		if err := options(fd); err != nil {
			return err
		}
	}
	if err := unix.Connect(fd, o.Way.sockaddr(o.To, o.Port)); err != nil {
		return err
	}
	return exchange(fd, o.Text, o.Size, o.N)
}

// refused wants nobody at the port, by UDP and TCP.
func refused(o order) error {
	if fd, err := o.Way.dial(unix.SOCK_STREAM, o.From, o.To, o.Port); !errors.Is(err, unix.ECONNREFUSED) {
		return errors.Join(fmt.Errorf("TCP port %d is not closed: %v", o.Port, err), unix.Close(fd))
	}
	fd, err := o.Way.dial(unix.SOCK_DGRAM, o.From, o.To, o.Port)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := exchange(fd, o.Text, o.Size, 1); !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("UDP port %d is not closed: %v", o.Port, err)
	}
	return nil
}

// expire sends a datagram that may be forwarded no more: who forwards it answers.
func expire(o order) error {
	fd, err := o.Way.dial(unix.SOCK_DGRAM, o.From, o.To, o.Port)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	level, option := unix.IPPROTO_IP, unix.IP_TTL
	if o.Way == v6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return err
	}
	if err := errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1), nil); o.Way == v4 && err != nil {
		return err
	}
	return write(fd, []byte(o.Text))
}

// stray sends a segment of no connection from the echo port and waits for the acknowledgement that a near end in TIME_WAIT gives
// (net/ipv4/tcp_minisocks.c tcp_timewait_state_process).
func (o order) stray() error {
	w := o.Way
	fd, err := w.open(unix.SOCK_RAW, unix.IPPROTO_TCP, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, w.sockaddr(o.To, 0)); err != nil {
		return err
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	b := make([]byte, 20)
	be.PutUint16(b, echoPort)
	be.PutUint16(b[2:], uint16(o.Port))
	be.PutUint32(b[4:], 0x12345678)
	be.PutUint32(b[8:], 0x9abcdef0)
	b[12], b[13] = 0x50, 0x10
	be.PutUint16(b[16:], sum(append(pseudo(local, o.To), b...)))
	if err := write(fd, b); err != nil {
		return err
	}
	for in := make([]byte, 64<<10); ; {
		n, err := read(fd, in)
		if err != nil {
			return err
		}
		got := in[:n]
		if w == v4 {
			got = got[int(got[0]&15)*4:]
		}
		if len(got) >= 20 && be.Uint16(got) == uint16(o.Port) && be.Uint16(got[2:]) == echoPort {
			return nil
		}
	}
}

// pseudo is the pseudo-header of a TCP segment of 20 bytes.
func pseudo(local unix.Sockaddr, to netip.Addr) []byte {
	switch a := local.(type) {
	case *unix.SockaddrInet4:
		four := to.As4()
		return append(append(a.Addr[:], four[:]...), 0, 6, 0, 20)
	case *unix.SockaddrInet6:
		six := to.As16()
		return append(append(a.Addr[:], six[:]...), 0, 0, 0, 20, 0, 0, 0, 6)
	}
	return nil
}
