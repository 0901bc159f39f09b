// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"droidtap/scripts/nettest"
)

// wire is two namespaces that are joined, with an app in the near one and a server in the far one.
type wire struct {
	near, far nettest.Space
	index     int // of the near end
	made      []string
}

const nearAddress, farAddress = "10.99.0.1", "10.99.0.2"

var server = unix.SockaddrInet4{Port: 7, Addr: [4]byte{10, 99, 0, 2}}

// protocol is how they talk.
type protocol struct {
	name string
	kind int
}

var protocols = []protocol{{"UDP", unix.SOCK_DGRAM}, {"TCP", unix.SOCK_STREAM}}

func newWire() (*wire, error) {
	name := func(end string) nettest.Space {
		return nettest.Space{Name: fmt.Sprintf("owner-%s-%d", end, os.Getpid())}
	}
	w := &wire{near: name("near"), far: name("far")}
	for _, s := range []nettest.Space{w.near, w.far} {
		if err := ip("netns", "add", s.Name); err != nil {
			return w, err
		}
		w.made = append(w.made, s.Name)
	}
	for _, line := range []string{
		"-n " + w.near.Name + " link add veth0 type veth peer name veth0 netns " + w.far.Name,
		"-n " + w.near.Name + " address add " + nearAddress + "/24 dev veth0",
		"-n " + w.far.Name + " address add " + farAddress + "/24 dev veth0",
		"-n " + w.near.Name + " link set veth0 up",
		"-n " + w.far.Name + " link set veth0 up",
	} {
		if err := ip(strings.Fields(line)...); err != nil {
			return w, err
		}
	}
	return w, w.near.Do(0, func() error {
		i, err := net.InterfaceByName("veth0")
		if err == nil {
			w.index = i.Index
		}
		return err
	})
}

func (w *wire) close() error {
	var errs []error
	for _, name := range w.made {
		errs = append(errs, ip("netns", "del", name))
	}
	return errors.Join(errs...)
}

func ip(argv ...string) error {
	if out, err := exec.Command("ip", argv...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// talk has the app send messages to the server, one by one, each of which comes back.
func (w *wire) talk(p protocol) error {
	ready, served := make(chan error, 1), make(chan error, 1)
	go func() {
		served <- w.far.Do(0, func() error {
			fd, err := listen(p)
			ready <- err
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return echo(fd, p)
		})
	}()
	if err := <-ready; err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	asked := w.near.Do(app, func() error { return ask(p) })
	if asked != nil {
		return fmt.Errorf("talk: %w", asked) // the server may wait for ever
	}
	return <-served
}

func open(p protocol) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, p.kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	// What is lost ends the run instead of hanging it.
	patience := unix.Timeval{Sec: 10}
	return fd, errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
}

func listen(p protocol) (int, error) {
	fd, err := open(p)
	if err == nil {
		err = unix.Bind(fd, &server)
	}
	if err == nil && p.kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 1)
	}
	return fd, err
}

// echo sends the messages back.
func echo(fd int, p protocol) error {
	if p.kind == unix.SOCK_STREAM {
		conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(conn)
		fd = conn
	}
	b := make([]byte, len(message))
	for range messages {
		from, err := receive(fd, b)
		if err != nil {
			return err
		}
		if p.kind == unix.SOCK_STREAM {
			from = nil
		}
		if err := unix.Sendto(fd, b, 0, from); err != nil {
			return err
		}
	}
	return nil
}

var message [64]byte

// receive fills b with a message.
func receive(fd int, b []byte) (unix.Sockaddr, error) {
	for {
		n, from, err := unix.Recvfrom(fd, b, unix.MSG_WAITALL)
		switch {
		case errors.Is(err, unix.EINTR): // by the runtime's signals: with a timeout it is not begun anew
		case err != nil:
			return nil, fmt.Errorf("receive: %w", err)
		case n != len(b):
			return nil, fmt.Errorf("receive: %d bytes of %d", n, len(b))
		default:
			return from, nil
		}
	}
}

// ask sends the messages and waits for each.
func ask(p protocol) error {
	fd, err := open(p)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &server); err != nil {
		return err
	}
	b := message
	for range messages {
		if _, err := unix.Write(fd, b[:]); err != nil {
			return err
		}
		if _, err := receive(fd, b[:]); err != nil {
			return err
		}
	}
	return nil
}
