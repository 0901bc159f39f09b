// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// worker is the process of one user at the near end.
type worker struct {
	net         Net
	user        int // index in UIDs
	far, broker int // sockets: orders to the far end, and what root does for us
	brokering   sync.Mutex
	old         []int
}

// other is how the far end speaks to a socket of that way.
func (w way) other() way {
	if w == mapped {
		return v4
	}
	return w
}

// number is that of a way in a round: no port is used twice.
func number(round int, w way) int {
	for i, each := range ways {
		if each == w {
			return round*len(ways) + i
		}
	}
	panic(w)
}

func (k *worker) port(c Case, round int, w way) int { return port(k.user, c, number(round, w)) }

// order asks the far end to speak to a near port.
func (k *worker) order(do string, w way, port, size, n int) error {
	return ask(k.far, order{Do: do, Way: w.other(), To: w.near(k.net), Port: port, Text: fmt.Sprintf("to port %d;", port), Size: size, N: n})
}

// prepare makes what is there before the capture starts.
func (k *worker) prepare() error {
	if err := ask(k.far, order{Do: "ready"}); err != nil {
		return err
	}
	for _, w := range ways {
		fd, err := w.dial(unix.SOCK_STREAM, k.port(TCPOld, 0, w), w.far(k.net), echoPort)
		if err != nil {
			return err
		}
		if err := exchange(fd, "old", 100, 1); err != nil {
			return err
		}
		k.old = append(k.old, fd)

		l, err := w.listen(k.port(TCPServer, 0, w))
		if err != nil {
			return err
		}
		go func() {
			for {
				if fd, _, err := accept(l); err == nil {
					go func() { _ = echo(fd) }() // the far end notices
				}
			}
		}()
		u, err := w.open(unix.SOCK_DGRAM, 0, k.port(UDPServer, 0, w))
		if err != nil {
			return err
		}
		go func() {
			for {
				_ = echoPackets(u, 1<<30)
			}
		}()
	}
	return nil
}

// step is one way to speak.
type step struct {
	c Case
	f func(k *worker, w way, port int) error
}

var steps = []step{
	{TCP, (*worker).tcp},
	{TCPAbort, (*worker).tcpAbort},
	{TCPLate, (*worker).tcpLate},
	{TCPTimeWait, (*worker).tcpTimeWait},
	{TCPServer, (*worker).tcpServer},
	{TCPServerNew, (*worker).tcpServerNew},
	{TCPRefused, (*worker).tcpRefused},
	{UDP, (*worker).udp},
	{UDPUnconnected, (*worker).udpUnconnected},
	{UDPServer, (*worker).udpServer},
	{UDPServerNew, (*worker).udpServerNew},
	{UDPRefused, (*worker).udpRefused},
	{Fragments, (*worker).fragments},
	{Extensions, (*worker).extensions},
	{Handed, (*worker).handed},
	{Chowned, (*worker).chowned},
	{Ping, func(k *worker, w way, port int) error { return k.ping(w, port, false) }},
	{PingRaw, func(k *worker, w way, port int) error { return k.ping(w, port, true) }},
}

// round does each step once in each way; what waits for retransmissions runs beside the others.
func (k *worker) round(n int) error {
	var beside sync.WaitGroup
	lossy := make(chan error, len(ways))
	for _, w := range ways {
		beside.Go(func() { lossy <- k.tcpLoss(w, k.port(TCPLoss, n, w)) })
	}
	err := k.steps(n)
	beside.Wait()
	for range ways {
		err = errors.Join(err, <-lossy)
	}
	return err
}

func (k *worker) steps(n int) error {
	for i, w := range ways {
		if err := exchange(k.old[i], "old", 300, 2); err != nil {
			return fmt.Errorf("%s %s: %w", TCPOld, w, err)
		}
		for _, s := range steps {
			if err := s.f(k, w, k.port(s.c, n, w)); err != nil {
				return fmt.Errorf("%s %s: %w", s.c, w, err)
			}
		}
	}
	return nil
}

// finish ends the connections that were there before.
func (k *worker) finish() (err error) {
	for _, fd := range k.old {
		err = errors.Join(err, finish(fd))
	}
	return err
}

// end sends the packets that come last. Its socket stays: a capture by a packet socket finds no owner otherwise.
func (k *worker) end() error {
	fd, err := v4.dial(unix.SOCK_DGRAM, k.port(End, 0, v4), k.net.Far4, echoPort)
	if err != nil {
		return err
	}
	return exchange(fd, "end", EndLength, 1)
}
