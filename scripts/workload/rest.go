// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// rest makes, as root, what is not one user's: ports that change hands, closed ports, echoes that the kernel answers, and what the
// near end forwards.
type rest struct {
	net         Net
	far, behind int // sockets for orders
	// pause is how long a port that is reused is nobody's: an agent hears of a socket that is closed a moment later.
	pause time.Duration
}

// reuses is in how many rounds ports change hands: it takes a while.
const reuses = 3

// as runs f on a thread of its own as that user: the owner of a socket is the file system uid of the thread that makes or
// accepts it (net/socket.c sock_alloc, include/net/sock.h sock_graft).
func as(uid int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if _, err := unix.SetfsuidRetUid(uid); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (r *rest) prepare() error { return ask(r.behind, order{Do: "ready"}) }

func (r *rest) finish() error { return nil }
func (r *rest) end() error    { return nil }

func (r *rest) round(n int) error {
	for i, w := range []way{v4, v6} {
		for _, s := range []struct {
			c Case
			f func(way, int) error
		}{{Closed, r.closed}, {Echoed, r.echoed}, {UDPReuse, r.udpReuse(r.pause)}, {UDPReuseNow, r.udpReuse(0)}, {TCPReuse, r.tcpReuse}} {
			if s.c != Closed && s.c != Echoed && n >= reuses {
				continue
			}
			if err := s.f(w, sharedPort(s.c)+i); err != nil {
				return fmt.Errorf("%s %s: %w", s.c, w, err)
			}
		}
		if err := r.forwarded(w, n); err != nil {
			return fmt.Errorf("%s %s: %w", Forwarded, w, err)
		}
	}
	return nil
}

// udpReuse has the far end speak first, always from one port.
func (r *rest) udpReuse(pause time.Duration) func(way, int) error {
	return func(w way, port int) error {
		for i := range 3 {
			uid := Reuser(i)
			var fd int
			if err := as(uid, func() (err error) { fd, err = w.open(unix.SOCK_DGRAM, 0, port); return err }); err != nil {
				return err
			}
			served := make(chan error, 1)
			go func() { served <- echoPackets(fd, 2) }()
			err := ask(r.far, order{Do: "udp", Way: w, To: w.near(r.net), Port: port, From: 17000, Text: fmt.Sprintf("%06d", uid), Size: 100, N: 2})
			if err != nil {
				return err
			}
			if err := errors.Join(<-served, unix.Close(fd)); err != nil {
				return err
			}
			time.Sleep(pause)
		}
		return nil
	}
}

// tcpReuse has the far end connect, always from one port.
func (r *rest) tcpReuse(w way, port int) error {
	for i := range 3 {
		served := make(chan error, 1)
		listening := make(chan error, 1)
		go func() {
			served <- as(Reuser(i), func() error {
				l, err := w.listen(port)
				listening <- err
				if err != nil {
					return err
				}
				fd, _, err := accept(l)
				if err == nil {
					if err = echo(fd); errors.Is(err, unix.ECONNRESET) {
						err = nil
					}
				}
				return errors.Join(err, unix.Close(l))
			})
		}()
		if err := <-listening; err != nil {
			return err
		}
		if err := ask(r.far, order{Do: "tcp abort", Way: w, To: w.near(r.net), Port: port, From: 17001, Text: "reuse", Size: 100, N: 2}); err != nil {
			return err
		}
		if err := <-served; err != nil {
			return err
		}
		time.Sleep(r.pause)
	}
	return nil
}

func (r *rest) closed(w way, port int) error {
	return ask(r.far, order{Do: "refused", Way: w, To: w.near(r.net), Port: port, Size: 60})
}

// echoed has the far end ping with an id that a user's ping has, too.
func (r *rest) echoed(w way, _ int) error {
	return ask(r.far, order{Do: "ping", Way: w, To: w.near(r.net), Port: port(0, Ping, number(0, w)), Size: 56})
}

// forwarded has two others speak from and to ports at which the near end has servers, of any address.
func (r *rest) forwarded(w way, n int) error {
	tcp, udp := port(0, TCPServer, number(0, w)), port(0, UDPServer, number(0, w))
	behind, far := w.pick(r.net.Behind4, r.net.Behind6), w.far(r.net)
	return errors.Join(
		ask(r.far, order{Do: "tcp", Way: w, To: behind, Port: tcp, Size: 200, N: 3}),
		ask(r.far, order{Do: "udp", Way: w, To: behind, Port: udp, Size: 200, N: 3}),
		ask(r.far, order{Do: "ping", Way: w, To: behind, Port: port(0, Ping, number(n, w)), Size: 56}),
		ask(r.far, order{Do: "expire", Way: w, To: behind, Port: udp, Text: "expire"}),
		ask(r.behind, order{Do: "tcp", Way: w, To: far, Port: echoPort, From: port(0, TCPServerNew, number(n, w)), Size: 200, N: 3}),
		ask(r.behind, order{Do: "udp", Way: w, To: far, Port: echoPort, From: port(0, UDPServerNew, number(n, w)), Size: 200, N: 3}),
		ask(r.behind, order{Do: "udp", Way: w, To: far, Port: echoPort, Size: 3000, N: 1}),
		ask(r.behind, order{Do: "refused", Way: w, To: far, Port: closedPort, Size: 60}),
		ask(r.behind, order{Do: "ping", Way: w, To: far, Port: port(0, Ping, number(n, w)), Size: 56}),
	)
}

// serveBehind is what answers behind the near end, at ports of its servers.
func serveBehind(controls []int) error {
	f := &far{late: map[string]chan error{}}
	for _, w := range []way{v4, v6} {
		if err := f.serveTCP(w, port(0, TCPServer, number(0, w)), func(fd int, _ unix.Sockaddr) error { return echo(fd) }); err != nil {
			return err
		}
		if err := serveUDP(w, port(0, UDPServer, number(0, w))); err != nil {
			return err
		}
	}
	f.obeyAll(controls)
	return nil
}
