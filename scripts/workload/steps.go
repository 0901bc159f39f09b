// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// speak connects, exchanges, and leaves the connection open.
func (k *worker) speak(kind int, w way, port, to int) (int, error) {
	fd, err := w.dial(kind, port, w.far(k.net), to)
	if err != nil {
		return -1, err
	}
	if err := exchange(fd, "near first", 600, 3); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

func (k *worker) tcp(w way, port int) error {
	fd, err := k.speak(unix.SOCK_STREAM, w, port, echoPort)
	if err != nil {
		return err
	}
	return finish(fd)
}

func (k *worker) tcpAbort(w way, port int) error {
	fd, err := k.speak(unix.SOCK_STREAM, w, port, echoPort)
	if err != nil {
		return err
	}
	if err := abort(fd); err != nil {
		return err
	}
	// The same port: nothing of the first connection is left.
	if fd, err = w.dial(unix.SOCK_STREAM, port, w.far(k.net), abortPort); err != nil {
		return err
	}
	if err := write(fd, []byte("reset me")); err != nil {
		return err
	}
	if _, err := read(fd, make([]byte, 10)); !errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("no reset: %v", err)
	}
	return unix.Close(fd)
}

func (k *worker) tcpLate(w way, port int) error {
	fd, err := k.speak(unix.SOCK_STREAM, w, port, latePort)
	if err != nil {
		return err
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	return k.order("late", w, port, 0, 0)
}

func (k *worker) tcpTimeWait(w way, port int) error {
	if err := k.tcp(w, port); err != nil {
		return err
	}
	return k.order("stray", w, port, 0, 0)
}

func (k *worker) tcpServer(w way, _ int) error {
	if err := k.order("tcp", w, k.port(TCPServer, 0, w), 400, 3); err != nil {
		return err
	}
	return k.order("tcp abort", w, k.port(TCPServer, 0, w), 100, 1)
}

func (k *worker) tcpServerNew(w way, port int) error {
	l, err := w.listen(port)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() {
		fd, _, err := accept(l)
		if err == nil {
			err = echo(fd)
		}
		served <- err
	}()
	err = k.order("tcp", w, port, 400, 2)
	if err != nil { // nobody came: the accept ends with the listener's timeout
		return errors.Join(err, unix.Close(l))
	}
	return errors.Join(<-served, unix.Close(l))
}

func (k *worker) tcpRefused(w way, port int) error {
	fd, err := w.dial(unix.SOCK_STREAM, port, w.far(k.net), closedPort)
	if !errors.Is(err, unix.ECONNREFUSED) {
		return errors.Join(fmt.Errorf("not refused: %v", err), unix.Close(fd))
	}
	return nil
}

// tcpLoss loses segments at both ends.
func (k *worker) tcpLoss(w way, port int) error {
	fd, err := w.dial(unix.SOCK_STREAM, port, w.far(k.net), lossPort)
	if err != nil {
		return err
	}
	if err := k.brokered(order{Do: "lose"}, fd); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	if err := exchange(fd, "loss", 1000, 12); err != nil {
		return fmt.Errorf("%s %s: %w", TCPLoss, w, errors.Join(err, unix.Close(fd)))
	}
	return finish(fd)
}

func (k *worker) udp(w way, port int) error {
	fd, err := k.speak(unix.SOCK_DGRAM, w, port, echoPort)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func (k *worker) udpUnconnected(w way, port int) error {
	fd, err := w.open(unix.SOCK_DGRAM, 0, port)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for range 3 {
		if err := unix.Sendto(fd, []byte("unconnected"), 0, w.sockaddr(w.far(k.net), echoPort)); err != nil {
			return err
		}
		if _, err := read(fd, make([]byte, 100)); err != nil {
			return err
		}
	}
	return nil
}

func (k *worker) udpServer(w way, _ int) error {
	return k.order("udp", w, k.port(UDPServer, 0, w), 200, 3)
}

func (k *worker) udpServerNew(w way, port int) error {
	fd, err := w.open(unix.SOCK_DGRAM, 0, port)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- echoPackets(fd, 2) }()
	if err := k.order("udp", w, port, 200, 2); err != nil {
		return err
	}
	return errors.Join(<-served, unix.Close(fd))
}

func (k *worker) udpRefused(w way, port int) error {
	fd, err := w.dial(unix.SOCK_DGRAM, port, w.far(k.net), closedPort)
	if err != nil {
		return err
	}
	if err := exchange(fd, "refuse me", 50, 1); !errors.Is(err, unix.ECONNREFUSED) {
		return errors.Join(fmt.Errorf("not refused: %v", err), unix.Close(fd))
	}
	return unix.Close(fd)
}

// fragments come from either end first.
func (k *worker) fragments(w way, port int) error {
	fd, err := w.dial(unix.SOCK_DGRAM, port, w.far(k.net), echoPort)
	if err != nil {
		return err
	}
	if err := exchange(fd, fmt.Sprintf("from port %d;", port), 4000, 2); err != nil {
		return err
	}
	if err := k.order("udp", w, k.port(UDPServer, 0, w), 4000, 1); err != nil {
		return err
	}
	return errors.Join(k.ownPing(w, port), unix.Close(fd))
}

// ownPing is an echo in fragments.
func (k *worker) ownPing(w way, id int) error {
	return w.other().ping(w.far(k.net), id, false, 3000)
}

func (k *worker) extensions(w way, port int) error {
	if w != v6 {
		return nil
	}
	for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
		fd, err := w.open(kind, 0, port)
		if err != nil {
			return err
		}
		if err := errors.Join(setOptions(fd, unix.IPV6_DSTOPTS), setOptions(fd, unix.IPV6_HOPOPTS)); err != nil {
			return err
		}
		if err := w.connect(fd, k.net.Far6, optionPort); err != nil {
			return err
		}
		if err := exchange(fd, "options", 300, 2); err != nil {
			return err
		}
		if kind == unix.SOCK_STREAM {
			err = finish(fd)
		} else {
			err = unix.Close(fd)
		}
		if err != nil {
			return err
		}
	}
	return k.order("udp options", w, k.port(UDPServer, 0, w), 100, 1)
}

// brokered has root's process do something with a socket of ours.
func (k *worker) brokered(o order, fd int) error {
	k.brokering.Lock()
	defer k.brokering.Unlock()
	if err := sendFD(k.broker, o, fd); err != nil {
		return err
	}
	_, err := answered(k.broker)
	return err
}

// handed makes sockets that root's process uses.
func (k *worker) handed(w way, port int) error {
	for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
		fd, err := w.open(kind, 0, port)
		if err != nil {
			return err
		}
		request := order{Do: "use", Way: w, To: w.far(k.net), Port: echoPort}
		if err := errors.Join(k.brokered(request, fd), unix.Close(fd)); err != nil {
			return err
		}
	}
	return nil
}

// chowned uses sockets that root's process has made for us.
func (k *worker) chowned(w way, port int) error {
	for _, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
		request := order{Do: "make", Way: w, Port: port, N: kind, From: UIDs[k.user]}
		var fd int
		k.brokering.Lock()
		err := sendFD(k.broker, request, -1)
		if err == nil {
			fd, err = answered(k.broker)
		}
		k.brokering.Unlock()
		if err != nil {
			return err
		}
		if err := use(fd, w, w.far(k.net), echoPort); err != nil {
			return err
		}
	}
	return nil
}

// use connects a socket, exchanges, and closes it.
func use(fd int, w way, to netip.Addr, port int) error {
	if err := w.connect(fd, to, port); err != nil {
		return err
	}
	if err := exchange(fd, "another's", 250, 2); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	if kind, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); kind == unix.SOCK_STREAM {
		return finish(fd)
	}
	return unix.Close(fd)
}

func (k *worker) ping(w way, id int, raw bool) error {
	if w == mapped { // there is none of IPv4 by IPv6
		return nil
	}
	return w.ping(w.far(k.net), id, raw, 56)
}
